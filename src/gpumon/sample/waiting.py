"""The grid of ticks, and waiting on it without missing a signal or a reader that leaves."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Protocol


class Wait(Protocol):
    def __call__(self, until: float) -> bool:
        """Wait until a moment of the clock; True where it is time to end."""


def grid(every_s: float, looks: int, wait: Wait, clock: Callable[[], float] = time.monotonic) -> Iterator[bool]:
    """Yield at start + n · every_s: True at a tick, False at the `looks - 1` moments between two.

    Ticks do not drift, however long the work between them takes. What was slept through (a suspended
    machine) is one late tick, then the grid goes on.
    """
    start, step_s, step = clock(), every_s / looks, 0
    while True:
        last = step
        step = max(step + 1, int((clock() - start) / step_s))
        if wait(start + step * step_s):
            return
        yield step // looks > last // looks


class Interruptible:
    """Waits until SIGINT or SIGTERM asks to end; rows are never cut, for the signal only ends the wait.

    A second signal ends the process as usual. Raises BrokenPipeError when the reader of *descriptor* leaves.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._reader = descriptor
        self._before: dict[int, Any] = {}
        self._ends, self._asks = os.pipe()

    def __enter__(self) -> Interruptible:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._ends)
        os.close(self._asks)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        os.write(self._asks, b".")
        signal.signal(number, signal.SIG_DFL)

    def __call__(self, until: float) -> bool:
        poll = select.poll()
        poll.register(self._ends, select.POLLIN)
        if self._reader is not None:
            poll.register(self._reader, 0)  # an error is always reported
        while True:
            left_s = max(0.0, until - time.monotonic())
            found = dict(poll.poll(left_s * 1000))
            if self._ends in found:
                return True
            if found:
                raise BrokenPipeError
            if time.monotonic() >= until:
                return False
