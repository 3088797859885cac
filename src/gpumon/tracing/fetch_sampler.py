"""Looks, some times a second, at what the threads that are inside a fetch wait on."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from gpumon.tracing.blocked import WaitPoint, WaitPoints
from gpumon.tracing.guard import guard

WAITING_S, QUIET_S = 0.1, 0.5
"""Mean time between looks after one that saw a training thread wait for data, and after one that did not."""

BEGIN_S = 2.0  # after it was woken it looks as often as if one waited
IDLE_S = 5.0  # between ticks when nobody was there to look at, nor woke us, for
IDLE_AFTER_S = 60.0  # as long as this: spawned workers take their time to begin
MAX_READS = 16  # threads looked at per tick

Fetching = tuple[int, int, int]
"""A thread inside a fetch: pid, thread id, begin of the fetch [ns]."""


class FetchSampler:
    """The sampling thread.

    Args:
        fetching: the threads that are inside a fetch now; None when there is nobody to look at at all.
        is_waiting: whether a training thread waits for data now.
        keep: gets (pid, begin of the fetch [ns], wait point, weight [s]) for everything seen.
    """

    def __init__(
        self,
        points: WaitPoints,
        fetching: Callable[[], Sequence[Fetching] | None],
        is_waiting: Callable[[], bool],
        keep: Callable[[int, int, WaitPoint, float], None],
    ) -> None:
        self._points, self._fetching, self._is_waiting, self._keep = points, fetching, is_waiting, keep
        self._random = random.Random()  # the global one's state is the user's
        self._wake = threading.Event()
        self._stopped = False
        self._is_idle = True  # in a long pause
        self._thread: threading.Thread | None = None
        self.cpu_ns = 0  # CPU time of this thread

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gpumon-fetches", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    def wake(self) -> None:
        """Somebody to look at is about to begin: end a long pause."""
        if self._is_idle:
            self._wake.set()

    @property
    def has_ended(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        pause = WAITING_S
        last = 0.0  # when there was somebody
        looked = woken = time.monotonic()
        while True:
            if self._wake.wait(pause):
                self._wake.clear()
                last = woken = time.monotonic()
            if self._stopped:
                return
            with guard("fetch sampler"):
                now = time.monotonic()
                if self.tick(min(now - looked, 2 * QUIET_S)):
                    last = now
                looked = now
                # Jittered, or it would lock onto the period of the steps.
                is_quick = now - woken < BEGIN_S or self._is_waiting()
                self._is_idle = now - last > IDLE_AFTER_S
                pause = (WAITING_S if is_quick else QUIET_S) * self._random.uniform(0.7, 1.3)
                if self._is_idle:
                    pause = IDLE_S
            self.cpu_ns = time.thread_time_ns()

    def tick(self, since_s: float) -> bool:
        """One look at everybody who fetches, which stands for the time since the last; False: there is nobody."""
        fetching = self._fetching()
        if fetching is None:
            return False
        number = len(fetching)
        # Shuffled, so that the limit on helper threads falls on everybody alike.
        fetching = self._random.sample(list(fetching), min(len(fetching), MAX_READS))
        weight = since_s * max(1.0, number / MAX_READS)
        self._points.reads = 0
        self._points.limit = MAX_READS
        for pid, thread, begin in fetching:
            for point, share in self._points.look(pid, thread):
                self._keep(pid, begin, point, weight * share)
        return True
