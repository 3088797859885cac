"""Collectors whose readings come from the node's agent where the process itself may not read.

The agent may come, go and restart at any time; counters and ratios go on where they were.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gpumon import metrics as m
from gpumon.collectors.base import Collector
from gpumon.errors import CollectorError, NoDataError
from gpumon.from_agent.node_agent import NodeAgent, Told
from gpumon.metrics import Attributes, Metric, Reading
from gpumon.system.agent_socket import VARIABLE, NoAgentError

SHARED: Final = ("gpu", "disk", "kernel", "smart")
"""The collectors whose readings an agent may have where the process has none."""
PREFERRED: Final = ("smart",)
"""Of these, the ones that are the agent's wherever it answers: a disk is asked once per node, not per process."""

_PATIENCE_S: Final = 3.0  # of a collector with a thread of its own, for the first answer
_SLOW_S: Final = 30.0  # between questions for what the agent itself reads every few minutes
_MAX_SERIES: Final = 20_000

Series = tuple[str, tuple[tuple[str, m.AttributeValue], ...]]


class Shared:
    """A collector of the process, with the agent's readings where it has none of its own."""

    def __init__(self, name: str, collector: Collector, agent: NodeAgent, interval_s: float) -> None:
        self._name, self._collector, self._agent = name, collector, agent
        self.interval_s, self.may_block = collector.interval_s, collector.may_block
        self._ask_s = min(interval_s, _SLOW_S)
        self._is_from_agent = False
        self._passed_on = 0.0  # when the agent's answer came that was passed on last
        self._own: list[Reading] = []  # our last whole round, as long as there were no other readings
        self._series: dict[Series, _Spliced] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collector, name)  # what a collector may have beyond the protocol

    @property
    def again_s(self) -> float:
        own: float = getattr(self._collector, "again_s", math.inf)
        return self._ask_s if self._is_from_agent else own

    def before_last(self) -> bool:
        if self._is_from_agent:
            self._agent.want(self._name, 0.0)
            return True
        ready = getattr(self._collector, "before_last", None)
        return ready is not None and bool(ready())

    def collect(self) -> Iterable[Reading]:
        if self._name in PREFERRED and (told := self._ask()) is not None and told.up is not False:
            yield from self._theirs(told)
            return
        own: list[Reading] = []
        failure: Exception | None = None
        try:
            for reading in self._collector.collect():
                own.append(reading)  # noqa: PERF402 - keeps what came before a failure
        except Exception as error:  # noqa: BLE001 - raised below, after what there is
            failure = error
        if isinstance(failure, NoDataError | CollectorError):
            told = self._ask()
            if told is not None and told.up is not False and not self._is_nobodys():
                yield from self._theirs(told)
                return
            failure = type(failure)(f"{failure}{self._why(told)}")
        yield from self._ours(own, is_whole=failure is None)
        if failure is not None:
            raise failure

    def _ask(self) -> Told | None:
        """The agent's last answer; None where it gives none. The first one is waited for, on a thread of one's own."""
        agent = self._agent
        for _attempt in range(2):
            agent.want(self._name, self._ask_s)
            if not self.may_block or agent.told(self._name) is not None:
                break
            agent.wait(_PATIENCE_S)
        return agent.told(self._name)

    def _is_nobodys(self) -> bool:
        return self._name == "gpu" and self._agent.no_gpu() is not None

    def _why(self, told: Told | None) -> str:
        """Why the agent does not help either; nothing where nobody set one up."""
        if told is None:
            problem = self._agent.problem
            return "" if isinstance(problem, NoAgentError) and VARIABLE not in os.environ else f"; {problem}"
        if told.up is False:
            return f"; the node's agent neither: {told.reason}"
        return f"; {self._agent.no_gpu()}"

    # -- one series from two sources ------------------------------------------------------------------

    def _ours(self, own: list[Reading], *, is_whole: bool) -> Iterable[Reading]:
        self._is_from_agent = False
        if not self._series:
            if is_whole:
                self._own = own
            return own
        return [self._spliced(reading, "") for reading in own]

    def _theirs(self, told: Told) -> Iterator[Reading]:
        if told.up is None:
            raise CollectorError("the node's agent is reading it for the first time")
        if self._own:
            for reading in self._own:
                self._spliced(reading, "")
            self._own = []
        self._is_from_agent = True
        if told.at == self._passed_on:
            return
        self._passed_on = told.at
        for each in told.readings:
            metric = m.BY_NAME.get(each["metric"])
            attributes = each["attributes"]
            if metric is None or metric.kind != each["kind"] or not self._agent.is_ours(self._name, attributes):
                continue
            if metric is m.DISK_INFO:
                attributes = self._agent.with_use(attributes)
            terms = each.get("terms")
            if terms is None:
                if "value" in each:
                    yield self._spliced(Reading(metric, each["value"], attributes), told.instance)
            elif terms["is_ratio"]:
                yield self._spliced(Reading(metric, terms["value"], attributes, terms["per"]), told.instance)
            elif (mean := self._mean(metric, each, attributes, told.instance)) is not None:
                yield mean

    def _spliced(self, reading: Reading, source: str) -> Reading:
        """The reading, going on where its series was before it came from this source."""
        if reading.metric.kind != "counter" and reading.per is None:
            return reading
        series = self._of(reading)
        series.add(source, reading.value, reading.per or 0.0, is_ratio=reading.per is not None)
        return Reading(reading.metric, series.value, series.attributes, None if reading.per is None else series.per)

    def _mean(self, metric: Metric, each: Mapping[str, Any], attributes: Attributes, source: str) -> Reading | None:
        """The mean of the samples since the last answer; None where the agent took none."""
        value, per = each["terms"]["value"], each["terms"]["per"]
        series = self._of(Reading(metric, 0.0, attributes))
        before, series.source = series.source, source
        last_value, last_per = series.last_value, series.last_per
        series.last_value, series.last_per = value, per
        if before != source or per < last_per:
            return Reading(metric, each["value"], series.attributes) if "value" in each else None
        return Reading(metric, (value - last_value) / (per - last_per), series.attributes) if per > last_per else None

    def _of(self, reading: Reading) -> _Spliced:
        key = reading.metric.name, tuple(sorted(reading.attributes.items()))
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= _MAX_SERIES:
                self._series.clear()
            series = self._series[key] = _Spliced(reading.attributes)
        return series


@dataclass(slots=True)
class _Spliced:
    """A counter, or the two of a ratio, that several sources count one after the other."""

    attributes: Attributes
    source: str | None = None
    last_value: float = 0.0  # the source's own
    last_per: float = 0.0
    value: float = 0.0
    per: float = 0.0

    def add(self, source: str, value: float, per: float, *, is_ratio: bool) -> None:
        if self.source is None:
            self.value, self.per = value, per
        elif self.source == source:
            if not is_ratio:
                self.value += max(0.0, value - self.last_value)
            elif per >= self.last_per:
                self.value += value - self.last_value
                self.per += per - self.last_per
        elif self.source and source and not is_ratio:
            # An agent that began anew: the kernel's counters went on, and its own began after the old one's end.
            self.value += max(0.0, value - self.last_value)
        self.source, self.last_value, self.last_per = source, value, per
