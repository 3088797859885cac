"""Looks, some times a second, at what the threads that are inside a fetch wait on."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from gpumon.tracing.blocked import WaitPoint, WaitPoints
from gpumon.tracing.guard import guard

TICK_S = 0.1
"""Mean time between looks while a training thread waits for data."""

ELSEWHERE = 5
"""While none waits, one tick in so many looks; what it sees counts as much more."""

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
        """Somebody to look at is about to begin."""
        self._wake.set()

    @property
    def has_ended(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        pause = TICK_S
        last = 0.0  # when there was somebody
        while True:
            if self._wake.wait(pause):
                self._wake.clear()
                last = time.monotonic()
            if self._stopped:
                return
            with guard("fetch sampler"):
                now = time.monotonic()
                if self.tick():
                    last = now
                # Jittered, or it would lock onto the period of the steps.
                pause = IDLE_S if now - last > IDLE_AFTER_S else TICK_S * self._random.uniform(0.7, 1.3)
            self.cpu_ns = time.thread_time_ns()

    def tick(self) -> bool:
        """One look at everybody who fetches; False when there is nobody at all."""
        weight = TICK_S
        if not self._is_waiting():
            if self._random.random() * ELSEWHERE >= 1:
                return True
            weight *= ELSEWHERE
        fetching = self._fetching()
        if fetching is None:
            return False
        number = len(fetching)
        # Shuffled, so that the limit on helper threads falls on everybody alike.
        fetching = self._random.sample(list(fetching), min(len(fetching), MAX_READS))
        weight *= max(1.0, number / MAX_READS)
        self._points.reads = 0
        self._points.limit = MAX_READS
        for pid, thread, begin in fetching:
            for point, share in self._points.look(pid, thread):
                self._keep(pid, begin, point, weight * share)
        return True
