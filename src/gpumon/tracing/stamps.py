"""What a training thread stores while it trains: timestamps, and nothing else.

A regular step (fetch, backward, update, in this order) becomes one row; whatever is irregular becomes
events. Both go into one list in time order, which a background thread takes and folds.
"""

from __future__ import annotations

import threading
from typing import Any

# A row: (fetch begin, fetch end, backward begin, end, update begin, end, iterator, samples, end of the step)
ROW = 9
# Events are tuples that begin with one of these; times are perf_counter_ns.
ITERATOR, FETCH, BACKWARD, BACKWARD_END, UPDATE, UPDATE_END, SCALER, SCALER_END, UNCAUGHT, PHASE, BEGIN, END = range(12)


class Stamps:
    """One training thread's slots and its log."""

    __slots__ = (
        "b0", "b1", "depth", "f0", "f1", "in_fetch", "it", "log", "n", "o0", "o1", "opt", "samples",
        "thread", "waiting", "manual", "stack",
    )  # fmt: skip

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.log: list[tuple[Any, ...]] = []
        self.n = 0  # how far the regular step has come: 1 fetched, 2 and 3 backward, 4 and 5 update
        self.depth = 0  # nested updates
        self.in_fetch = False
        self.manual = 0
        self.stack: list[Any] = []
        self.f0 = self.f1 = self.b0 = self.b1 = self.o0 = self.o1 = self.it = self.samples = 0
        self.opt = 0

    def flush(self) -> None:
        """What the slots hold, as events: the step did not stay regular."""
        n, self.n = self.n, 0
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
