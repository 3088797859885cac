"""Accounts of fetches that the training thread does itself (`num_workers=0`)."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque

from gpumon.tracing.fetch_ring import Fetch, ThreadClock

FULL_NS = 1_000_000
"""A mean fetch of at least this gets an account each; below, one in so many that this much lies between."""

_MAX_EVERY = 64
_BACKLOG = 20_000  # accounts kept while nobody takes them


class InlineFetches:
    """Counts and times all fetches of one thread, and takes the full account of some of them.

    `begin` and `end` are called in the training thread around each fetch; `take` by one other thread. With
    several training threads only the one that came first is watched, until it ends.
    """

    def __init__(self) -> None:
        self.begin_ns = 0  # of the fetch in progress; 0: none
        self.thread = 0  # native id of the thread that is watched; 0: none yet
        self._ident = 0
        self._clock: ThreadClock | None = None
        self._random = random.Random().random  # never the global one: its state is the user's
        self._every = 1
        self._left = 0
        self._full = False
        self._cpu = self._runnable = self._read = 0
        self._count = self._wall_ns = 0
        self._taken = (0, 0)
        self._accounts: deque[Fetch] = deque(maxlen=_BACKLOG)

    def begin(self) -> None:
        """A fetch begins."""
        if threading.get_ident() != self._ident and not self._adopt():
            return
        if self._left:
            self._left -= 1
        else:
            self._full = True
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
        if got:
            self._wall_ns += end - begin
            self._count += 1
        if self._full:
            self._full = False
            clock = self._clock
            assert clock is not None
            cpu = time.thread_time_ns() - self._cpu
            runnable = clock.runnable_ns() - self._runnable
            read = clock.read_bytes() - self._read
            if got:
                self._accounts.append(Fetch(begin, end, cpu, runnable, read, -1, 0))
            # At random, or it would lock onto a period of the loop.
            self._left = int(self._random() * (2 * self._every - 1))

    def take(self) -> tuple[list[Fetch], int, int]:
        """Since the last call: the accounts taken, the number of all fetches, and their wall time [ns]."""
        accounts = []
        while self._accounts:
            accounts.append(self._accounts.popleft())
        count, wall_ns = self._count, self._wall_ns
        before, self._taken = self._taken, (count, wall_ns)
        count -= before[0]
        wall_ns -= before[1]
        if count:
            self._every = max(1, min(_MAX_EVERY, FULL_NS * count // max(wall_ns, 1)))
        return accounts, count, wall_ns

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
