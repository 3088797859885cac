"""The process tree of a training and what /proc says of each process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WORKERS: Final[dict[int, int]] = {}
"""pid -> the DataLoader's number, of every worker process that runs now."""

CLOCK_TICKS: Final[int] = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
PAGE_SIZE: Final[int] = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_MAX_PROCESSES = 1024
_MAX_THREADS = 512
_LOOK_S = 60.0


@dataclass(frozen=True, slots=True)
class Stat:
    """Fields of /proc/PID/stat; CPU times in seconds. `children_*`: of ended children, waited for."""

    pid: int
    state: str
    parent: int
    minor_faults: int
    children_minor_faults: int
    major_faults: int
    children_major_faults: int
    user_s: float
    system_s: float
    children_user_s: float
    children_system_s: float
    threads: int
    started: int  # in clock ticks after boot: tells processes apart that had the same pid
    resident_bytes: int


def read_stat(pid: int, proc: str = "/proc") -> Stat:
    """Read /proc/PID/stat.

    Raises:
        OSError: the process is gone.
    """
    text = _read(f"{proc}/{pid}/stat")
    # The command's name may hold blanks and brackets.
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(
        pid=pid,
        state=fields[0],
        parent=int(fields[1]),
        minor_faults=int(fields[7]),
        children_minor_faults=int(fields[8]),
        major_faults=int(fields[9]),
        children_major_faults=int(fields[10]),
        user_s=int(fields[11]) / CLOCK_TICKS,
        system_s=int(fields[12]) / CLOCK_TICKS,
        children_user_s=int(fields[13]) / CLOCK_TICKS,
        children_system_s=int(fields[14]) / CLOCK_TICKS,
        threads=int(fields[17]),
        started=int(fields[19]),
        resident_bytes=int(fields[21]) * PAGE_SIZE,
    )


def read_io(pid: int, proc: str = "/proc") -> dict[str, int]:
    """Read /proc/PID/io: `rchar`, `read_bytes`, `write_bytes`, … in bytes.

    Ended children that were waited for are in their parent's numbers.

    Raises:
        OSError: the process is gone or is not ours.
    """
    pairs = (line.split(": ") for line in _read(f"{proc}/{pid}/io").splitlines())
    return {key: int(value) for key, value in pairs}


def threads(pid: int, proc: str = "/proc") -> list[int]:
    """Thread ids of a process; empty when it is gone."""
    try:
        return [int(name) for name in os.listdir(f"{proc}/{pid}/task")]  # noqa: PTH208
    except OSError:
        return []


def read_runqueue_s(pid: int, thread: int, proc: str = "/proc") -> float:
    """Time that a thread was runnable and did not run: field 2 of its schedstat (ns).

    Raises:
        OSError: the thread is gone, or the kernel keeps no such account.
    """
    return int(_read(f"{proc}/{pid}/task/{thread}/schedstat").split()[1]) / 1e9


def children(pid: int, proc: str = "/proc") -> list[int] | None:
    """Direct children, of all threads; None where the kernel does not list them."""
    found: list[int] = []
    listed = False
    for thread in threads(pid, proc)[:_MAX_THREADS]:
        try:
            text = _read(f"{proc}/{pid}/task/{thread}/children")
        except FileNotFoundError:
            continue
        except OSError:
            continue
        listed = True
        if text:
            found += map(int, text.split())
    if not listed and os.path.exists(f"{proc}/{pid}"):  # noqa: PTH110
        return None
    return found


def tree(root_pid: int, proc: str = "/proc") -> list[int]:
    """The process and all its descendants, parents first; just itself where that cannot be found out."""
    pids = [root_pid]
    for pid in pids:
        below = children(pid, proc)
        if below is None:
            return _tree_by_parents(root_pid, proc)
        pids += [child for child in below if child not in pids]
        if len(pids) >= _MAX_PROCESSES:
            break
    return pids


class OurProcesses:
    """Which processes belong to this tree. Reading it is dear, so only a process that is new leads to a look."""

    def __init__(self, tree: Callable[[int], list[int]] = tree) -> None:
        self._tree = tree
        self._ours: set[int] = set()
        self._foreign: set[int] = set()
        self._looked = 0.0

    def of(self, pids: Iterable[int], now: float) -> list[int]:
        """Those of *pids* that are this process or descend from it."""
        pids = list(pids)
        unknown = any(pid not in self._ours and pid not in self._foreign for pid in pids)
        if unknown or (pids and now - self._looked > _LOOK_S):  # pids are used again
            self._ours, self._looked = set(self._tree(os.getpid())), now
            self._foreign = set(pids) - self._ours
        return [pid for pid in pids if pid in self._ours]


def _tree_by_parents(root_pid: int, proc: str) -> list[int]:
    """For kernels without /proc/PID/task/TID/children: asks every process for its parent."""
    if not Path(proc).exists():
        return _tree_by_psutil(root_pid)
    by_parent: dict[int, list[int]] = {}
    for name in os.listdir(proc):  # noqa: PTH208
        if name.isdigit():
            try:
                by_parent.setdefault(read_stat(int(name), proc).parent, []).append(int(name))
            except (OSError, ValueError):
                continue
    pids = [root_pid]
    for pid in pids:
        pids += by_parent.get(pid, [])
    return pids[:_MAX_PROCESSES]


def _tree_by_psutil(root_pid: int) -> list[int]:
    import psutil

    try:
        below = psutil.Process(root_pid).children(recursive=True)
    except psutil.Error:
        return [root_pid]
    return [root_pid, *(process.pid for process in below)]


def _read(file: str) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
