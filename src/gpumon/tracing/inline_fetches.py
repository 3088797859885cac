"""Accounts of fetches that the training thread does itself (`num_workers=0`)."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from gpumon.tracing.fetch_ring import Fetch, ThreadClock

FULL_NS = 300_000
"""A mean fetch of at least this gets an account each; shorter ones are sampled, for an account costs 10 µs."""

_BACKLOG = 20_000  # accounts kept while nobody takes them


class InlineFetches:
    """Takes full accounts of fetches in one thread: of all of them, or of one after each `take`.

    `begin` and `end` are called in the training thread around a fetch while `armed`, `take` by one other thread. With
    several training threads only the one that came first is watched, until it ends.
    """

    def __init__(self) -> None:
        self.begin_ns = 0  # of the fetch in progress; 0: none, or none that is accounted
        self.thread = 0  # native id of the thread that is watched; 0: none yet
        self.armed = True
        self._ident = 0
        self._clock: ThreadClock | None = None
        self._all = False
        self._cpu = self._runnable = self._read = 0
        self._taken = (0, 0)
        self._accounts: deque[Fetch] = deque(maxlen=_BACKLOG)

    def begin(self) -> None:
        """A fetch begins."""
        if threading.get_ident() != self._ident and not self._adopt():
            return
        clock = self._clock
        assert clock is not None
        self._read = clock.read_bytes()
        self._runnable = clock.runnable_ns()
        self._cpu = time.thread_time_ns()
        self.begin_ns = time.perf_counter_ns()

    def end(self, got: bool = True) -> None:
        """The fetch ended; *got*: with a batch, or an error of the data set; not with the end of the data."""
        begin = self.begin_ns
        if not begin or threading.get_ident() != self._ident:
            return
        end = time.perf_counter_ns()
        self.begin_ns = 0
        clock = self._clock
        assert clock is not None
        cpu = time.thread_time_ns() - self._cpu
        runnable = clock.runnable_ns() - self._runnable
        read = clock.read_bytes() - self._read
        if got:
            self._accounts.append(Fetch(begin, end, cpu, runnable, read, -1, 0))
        self.armed = self._all

    def take(self, count: int, wall_ns: int) -> tuple[list[Fetch], int, int]:
        """Since the last call: the accounts taken, the number of all fetches, and their wall time [ns].

        *count* and *wall_ns* are those of all fetches so far.
        """
        accounts = []
        while self._accounts:
            accounts.append(self._accounts.popleft())
        before, self._taken = self._taken, (count, wall_ns)
        count -= before[0]
        wall = wall_ns - before[1]
        if count:
            self._all = wall >= FULL_NS * count
        self.armed = True
        return accounts, count, wall

    def _adopt(self) -> bool:
        """Watch the calling thread, when the one watched so far is gone."""
        if self.thread and os.path.exists(f"/proc/self/task/{self.thread}"):  # noqa: PTH110 - in the hot path
            return False
        if self._clock is not None:
            self._clock.close()
        self._clock = ThreadClock()
        self._ident = threading.get_ident()
        self.thread = threading.get_native_id()
        self.begin_ns = 0
        return True
