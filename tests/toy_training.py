"""A small stand-in for a training process: steps counted by the test, everything behind it real."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.config import Config
from gpumon.metrics import Attributes, Metric
from gpumon.telemetry.instruments import HUB
from gpumon.telemetry.output import Output

AT = {m.STAGE: "train"}


class Training:
    """Counts steps; `output` is where they go."""

    def __init__(self, *, tracer_provider: Any = None, meter_provider: Any = None, **settings: Any) -> None:
        self.steps = 0
        self.durations = Buckets()
        self.collections = 0
        self.before_collect = lambda: None
        HUB.attach(self._observe)
        self.output = Output.open(
            Config.load(**settings),
            histograms=lambda: [(m.STEP_DURATION, AT, self.durations)],
            before_collect=self._before_collect,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
        )
        self.output.start()

    def step(self, seconds: float = 0.015) -> None:
        """One step, kept as a span."""
        self.steps += 1
        self.durations.add(seconds)
        for tracer, extra in self.output.tracers():
            tracer.start_span("train.step", attributes={"gpumon.step.number": self.steps, **extra}).end()

    def close(self) -> bool:
        closed = self.output.close()
        HUB.detach()
        return closed

    def _before_collect(self) -> None:
        self.collections += 1
        self.before_collect()

    def _observe(self, metric: Metric, reader: int) -> Iterator[tuple[float, Attributes]]:
        if metric is m.STEP_COUNT and self.steps:
            yield self.steps, AT
