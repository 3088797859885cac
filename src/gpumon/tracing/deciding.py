"""What a loader's batches were for: a step, an evaluation beside it, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpumon.tracing.iterations import Iterations
from gpumon.tracing.open_step import Fetch, Open, Pending

MANY = 4  # times as many batches as the step's own: an evaluation


class Decider:
    """Remembers which loaders feed steps."""

    def __init__(self, iterations: Iterations) -> None:
        self.steps = 0  # closed
        self.previous: set[int] = set()  # loaders that fed the previous step
        self.ever: set[int] = set()  # loaders that ever fed a step
        self._iterations = iterations
        self._newcomers: dict[int, int] = {}  # loader -> the step after the one that it was first seen in

    def fed(self, loaders: set[int], steps: int) -> None:
        """*steps* were closed, the last of them with batches of *loaders*."""
        self.steps += steps
        self.previous = loaders or self.previous
        self.ever |= loaders

    def decide(self, pend: Mapping[int, Pending], last: int, rounds: Iterable[Open]) -> tuple[list[Fetch], list[Fetch]]:
        """(fetches for the step that begins or goes on now, fetches for evaluation), each in time order.

        *last* is the iteration that was fetched from last: it feeds the step, unless it is over and another
        is not. *rounds* were before, in this step or as steps.
        """
        going_on = [it for it, item in pend.items() if not item.stopped and item.fetches]
        if last not in pend or (pend[last].stopped and going_on):
            candidates = going_on or list(pend)
            last = max(candidates, key=lambda it: max((fetch.end for fetch in pend[it].fetches), default=0))
        before = {self._iterations.loader(fetch.it) for item in rounds for fetch in item.fetches}
        previous, ever = self.previous | before, self.ever | before
        training: list[Fetch] = []
        evaluation: list[Fetch] = []
        for it, item in pend.items():
            loader = self._iterations.loader(it)
            if it == last:
                training += item.fetches
            elif (item.stopped and loader not in previous) or len(item.fetches) > MANY * len(pend[last].fetches):
                evaluation += item.fetches
            elif self._iterations.loader(last) in previous and loader not in ever:
                # Evaluation left by `break`, or a loader that feeds steps from now on: then it comes again.
                if self._newcomers.get(loader) == self.steps:
                    training += item.fetches
                else:
                    self._newcomers[loader] = self.steps + 1
                    evaluation += item.fetches
            elif (
                previous
                and self._iterations.loader(last) not in previous
                and item.fetches[-1].begin < self._iterations.made_at(last)
            ):
                pass  # left over by a loader that was replaced by another
            else:
                training += item.fetches
        return sorted(training, key=_begin), sorted(evaluation, key=_begin)


def _begin(fetch: Fetch) -> int:
    return fetch.begin
