"""Calls into a driver that may never come back, on a thread that can be left behind."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any


class HangsError(Exception):
    """The call has not ended in time; it goes on, on a thread that nobody waits for."""


class Call:
    """A call that was handed over."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._running = threading.Lock()  # held until the call ended; cheaper than an Event
        self._running.acquire()
        self._failure: BaseException | None = None
        self._result: Any = None

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as failure:  # noqa: BLE001 - raised where the result is asked for
            self._failure = failure
        self._running.release()

    @property
    def is_done(self) -> bool:
        return not self._running.locked()

    def result(self, timeout_s: float) -> Any:
        """What the call returned or raised.

        Raises:
            HangsError: not within *timeout_s*.
        """
        if not self._running.acquire(timeout=timeout_s):
            raise HangsError
        self._running.release()
        if self._failure is not None:
            raise self._failure
        return self._result


class Caller:
    """One daemon thread that calls; a thread whose call hangs is left behind, and the next call gets a new one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Call | None] | None = None
        self._cpu_ns: list[int] = []  # by thread

    @property
    def cpu_ns(self) -> int:
        """CPU time of the threads."""
        return sum(self._cpu_ns)

    def start(self, function: Callable[[], Any]) -> Call:
        """Hand a call over, behind those that were handed over before."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            weakref.finalize(self, self._calls.put, None).atexit = False
            self._cpu_ns.append(0)
            arguments = (self._calls, self._cpu_ns, len(self._cpu_ns) - 1)
            threading.Thread(target=_serve, args=arguments, name=self._name, daemon=True).start()
        call = Call(function)
        self._calls.put(call)
        return call

    def leave_behind(self) -> None:
        """Give the thread up; it ends when its call does."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def _serve(calls: queue.SimpleQueue[Call | None], cpu_ns: list[int], place: int) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # it may hold what owns this thread
        cpu_ns[place] = time.thread_time_ns()
