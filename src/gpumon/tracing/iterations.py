"""Iterations over loaders, and what of their start-up is a wait for data."""

from __future__ import annotations

from gpumon.tracing.open_step import Fetch, Iteration

STARTUP_GAP_NS = 50_000_000  # between a loader's `__iter__` and its first fetch, when both are one wait
LIMIT = 4096


class Iterations:
    """The iterations of one thread, by their number; and how long that thread did something else."""

    def __init__(self) -> None:
        self.outside_ns = 0  # start-up that is in no step
        self._known: dict[int, Iteration] = {}
        self._idle_ns = self._idle_from = 0

    def get(self, it: int) -> Iteration | None:
        return self._known.get(it)

    def fed(self, it: int) -> bool:
        """Whether a step used a batch of it."""
        known = self._known.get(it)
        return known is not None and known.fed

    def loader(self, it: int) -> int:
        """The number of an iteration's loader; one of its own where that was never seen."""
        known = self._known.get(it)
        return known.loader if known else -it

    def made_at(self, it: int) -> int:
        known = self._known.get(it)
        return known.made_at if known else 0

    def begins(self, at: int) -> None:
        """Some event begins."""
        if self._idle_from:
            self._idle_ns += max(0, at - self._idle_from)
        self._idle_from = at

    def ends(self, at: int) -> None:
        """The last one, which took time, has ended."""
        self._idle_from = at

    def make(self, number: int, loader: int, begin: int, end: int, steps: int) -> None:
        """A loader made an iterator, when *steps* were closed."""
        self._known[number] = Iteration(number, loader, begin, (begin, end), self._idle_ns, steps)
        if len(self._known) > LIMIT:
            for old in list(self._known)[: LIMIT // 2]:
                del self._known[old]

    def fetch(self, it: int, begin: int, end: int, grad: bool, samples: int, steps: int) -> Fetch:
        """A batch; the workers' start is part of the wait for the first one, where that followed at once."""
        known = self._known.setdefault(it, Iteration(it, -it, fetches=1))
        startup, known.made = known.made, None
        if startup and (self._idle_ns - known.idle_ns >= STARTUP_GAP_NS or known.after_step != steps):
            self.outside_ns += startup[1] - startup[0]
            startup = None
        known.fetches += 1
        return Fetch(begin, end, it, samples, known.fetches == 1, grad, startup)
