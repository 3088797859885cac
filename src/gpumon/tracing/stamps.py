"""What a training thread stores while it trains: timestamps, and nothing else.

A regular step (fetch, backward, update, in this order) becomes one row; whatever is irregular becomes
events. Both go into one list in time order, which a background thread takes and folds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpumon.tracing.device_time import DeviceTimer

# A row: (fetch begin, fetch end, backward begin, end, update begin, end, iterator, samples, end of the step)
ROW = 9
# Events are tuples of other lengths that begin with one of these; times are perf_counter_ns.
(
    ITERATOR,  # begin, end, iterator, loader
    FETCH,  # begin, end, None | "stop" | type of the exception, iterator, is grad enabled, samples
    BACKWARD,  # begin
    BACKWARD_END,  # end, None | type of the exception
    UPDATE,  # begin, optimizer
    UPDATE_END,  # end, optimizer
    SCALER,  # begin, optimizer
    SCALER_END,  # end, optimizer, None | type of the exception
    UNCAUGHT,  # at, type of the exception
    PHASE,  # name, begin, end
    BEGIN,  # at, end of the wait for its batch | 0, stage, epoch, is first of an iteration, iterator | 0, samples
    END,  # at, None | type of the exception
) = range(12)

_MARKS = {FETCH: 3, BACKWARD: 0, BACKWARD_END: 2, UPDATE: 0, UPDATE_END: 0}
"""What a device timer marks, and where such an event says that it failed."""

LOG_LIMIT = 1_000_000  # entries; nobody takes them any more

OUTSIDE, FETCHING, ASKED = 0, 1, 2  # in no fetch; in one; `gpumon.steps` asked for a batch


class Stamps:
    """One training thread's slots and its log."""

    __slots__ = (
        "b0", "b1", "f0", "f1", "gpu", "ident", "in_backward", "in_fetch", "inner", "it", "log", "manual", "n", "o0",
        "o1", "opt", "samples", "thread",
    )  # fmt: skip

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.ident = threading.get_ident()
        self.log: list[tuple[Any, ...]] = []
        self.gpu: DeviceTimer | None = None  # where the training uses a device that can be timed
        self.n = 0  # how far the regular step has come: 1 fetched, 2 in backward, 3 after it, 4 in update, 5 after it
        self.in_fetch = OUTSIDE
        self.in_backward = False  # in one that `n` does not tell of
        self.inner = 0  # the iterator that gave the batch that `gpumon.steps` asked for
        self.manual: list[str] = []  # stages of the steps that the training marks itself
        self.f0 = self.f1 = self.b0 = self.b1 = self.o0 = self.o1 = self.it = self.samples = 0
        self.opt = 0

    @property
    def is_in_backward(self) -> bool:
        return self.n == 2 or self.in_backward

    def row(self, end: int) -> None:
        """Log the regular step in the slots; *end* is the begin of what comes next."""
        self.n = 0
        self.log.append((self.f0, self.f1, self.b0, self.b1, self.o0, self.o1, self.it, self.samples, end))

    def event(self, *event: Any) -> None:
        """Log an event behind what the slots hold."""
        if self.n:
            self.flush()
        self.log.append(event)
        if self.gpu is not None and (failing := _MARKS.get(event[0])) is not None:
            self.gpu.mark(event[0], bool(failing and event[failing]))
        if len(self.log) > LOG_LIMIT:
            del self.log[:]

    def flush(self) -> None:
        """What the slots hold, as events: the step did not stay regular."""
        n, self.n = self.n, 0
        self.in_backward = self.in_backward or n == 2
        log = self.log
        if n > 0:
            log.append((FETCH, self.f0, self.f1, None, self.it, True, self.samples))
        if n > 1:
            log.append((BACKWARD, self.b0))
        if n > 2:
            log.append((BACKWARD_END, self.b1, None))
        if n > 3:
            log.append((UPDATE, self.o0, self.opt))
        if n > 4:
            log.append((UPDATE_END, self.o1, self.opt))


NOBODY = Stamps()
"""Of no thread."""
NOBODY.ident = 0


def events_of(row: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """A row as events, but for its end: what comes next says that."""
    f0, f1, b0, b1, o0, o1, it, samples, _ = row
    yield FETCH, f0, f1, None, it, True, samples
    yield BACKWARD, b0
    yield BACKWARD_END, b1, None
    yield UPDATE, o0, 0
    yield UPDATE_END, o1, 0
