"""Runs the measurement in a process of its own, so that reads that hang in the kernel hold nobody up."""

from __future__ import annotations

import os
import pickle
import signal
import struct
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from gpumon.errors import GpumonError

T = TypeVar("T")
Report = Callable[[str], None]
_LENGTH: Final = struct.Struct("=Q")


def apart(work: Callable[[Report], T], report: Report) -> T:
    """What *work* returns or raises in a fork of this process; what it reports is reported here.

    Ctrl-C ends the wait at once, whatever the fork is blocked in; it ends as soon as the kernel lets it.

    Raises:
        GpumonError: it ended without a result.
    """
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        _work(work, ours)
    os.close(ours)
    try:
        with open(theirs, "rb") as told:
            while head := told.read(_LENGTH.size):
                kind, value = pickle.loads(told.read(_LENGTH.unpack(head)[0]))
                if kind == "report":
                    report(value)
                elif kind == "error":
                    raise value
                else:
                    result: T = value
                    return result
    except (EOFError, pickle.UnpicklingError, struct.error):
        pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, os.WNOHANG)
    raise GpumonError("the measurement was ended from outside")


def _work(work: Callable[[Report], Any], out: int) -> NoReturn:
    """In the fork: never returns, and leaves nothing of the parent's behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):  # or whoever reads the parent's output would wait for us
            os.dup2(nothing, number)
        try:
            result = ("result", work(lambda text: _tell(out, ("report", text))))
        except GpumonError as error:
            result = ("error", error)
        except Exception as error:  # noqa: BLE001 - raised in the parent
            result = ("error", RuntimeError(f"{type(error).__name__}: {error}"))
        _tell(out, result)
    except BaseException:  # noqa: BLE001 - the parent has left
        pass
    finally:
        os._exit(0)


def _tell(out: int, what: tuple[str, Any]) -> None:
    data = pickle.dumps(what)
    data = _LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(out, data) :]
