"""From what is known of a step that is over to its record, with the phases that the training named."""

from __future__ import annotations

from collections.abc import Callable

from gpumon.tracing.open_step import Fetch, Open, Part, overlay, sums
from gpumon.tracing.records import Step, Totals

SPANS = 256  # of a step; sums are exact beyond, too
PHASES = 10_000  # that wait for the end of their step


class Closer:
    """Makes a `Step` of what ended; counts epochs."""

    def __init__(self, totals: Totals, on_step: Callable[[Step], None]) -> None:
        self.epoch = 0
        self._totals = totals
        self._on_step = on_step
        self._phases: list[Part] = []

    def begin_epoch(self, stage: str) -> None:
        self._totals.stage(stage).epochs += 1
        self.epoch += stage == "train"

    def phase(self, name: str, begin: int, end: int) -> None:
        self._phases.append((name, begin, end))
        if len(self._phases) > PHASES:
            del self._phases[: PHASES // 2]

    def has_no_phases(self, after: int) -> bool:
        """Whether no named phase reaches beyond *after*."""
        if self._phases:
            self._phases = [phase for phase in self._phases if phase[2] > after]
        return not self._phases

    def step(
        self, cur: Open, end: int, stage: str, *, epoch: int | None, first: bool, samples: int, assumed: bool
    ) -> None:
        """*epoch* and *samples*, where given, are as the training says."""
        parts = overlay(cur.parts, self._phases, cur.begin, end)
        self._on_step(
            Step(
                number=self._totals.stage(stage).steps + 1,
                stage=stage,
                epoch=self.epoch if epoch is None else epoch,
                begin_ns=cur.begin,
                end_ns=end,
                spans=parts[:SPANS],
                phase_ns=sums(cur.begin, end, parts),
                samples=samples or sum(fetch.samples for fetch in cur.fetches),
                first_of_epoch=first or any(fetch.first for fetch in cur.fetches),
                failed=cur.failed,
                skipped=cur.updates > 0 and cur.real_updates == 0,
                assumed=assumed,
            )
        )
        self.has_no_phases(end)

    def evaluation(self, fetch: Fetch) -> int:
        """A batch of an evaluation: a step from its fetch to what came next; returns its end."""
        begin, end = fetch.from_, max(fetch.end, fetch.until)
        parts = overlay(fetch.waits(), self._phases, begin, end)
        self._on_step(
            Step(
                number=self._totals.stage("validation").steps + 1,
                stage="validation",
                epoch=self.epoch,
                begin_ns=begin,
                end_ns=end,
                spans=parts[:SPANS],
                phase_ns=sums(begin, end, parts, rest="forward"),
                samples=fetch.samples,
                first_of_epoch=fetch.first,
            )
        )
        self.has_no_phases(end)
        return end
