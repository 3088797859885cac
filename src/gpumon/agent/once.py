"""`gpumon agent --once`: one round of readings, as JSON lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from gpumon import metrics as m
from gpumon.agent.collect import Demand, make_sampler
from gpumon.config import Config
from gpumon.sampler import Sampler

APART_S: Final = 1.0
"""Between the two reads that make a ratio (a disk's await and utilization)."""
LIMIT_S: Final = 35.0
"""For collectors that may block: a disk may take 30 s to tell its SMART data."""
_TWICE: Final = ("gpu", "disk", "host", "pressure")


def print_once(config: Config, *, limit_s: float = LIMIT_S) -> None:
    """Print an object per reading on stdout; who did not answer within *limit_s*, on stderr."""
    sampler = make_sampler(config, Demand(), default_s=dict.fromkeys(_TWICE, APART_S))
    sampler.start()
    try:
        silent = _wait(sampler, limit_s)
        for line in _lines(sampler):
            sys.stdout.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
        sys.stdout.flush()
    finally:
        sampler.stop()
    if silent:
        sys.stderr.write(f"gpumon: no answer within {limit_s:g} s: {', '.join(silent)}\n")


def _wait(sampler: Sampler, limit_s: float) -> list[str]:
    """Until every collector has answered, and the quick ones twice; those that did not within the limit."""
    until = time.monotonic() + limit_s
    while True:
        rounds = {name: sum(durations.counts) for name, durations in sampler.durations()}
        failed = {name for name, up, _ in sampler.state() if up is False}
        waiting = [name for name in rounds if rounds[name] < (2 if name in _TWICE and name not in failed else 1)]
        waiting += [name for name in sampler.unfinished() if name not in waiting]
        if not waiting or time.monotonic() > until:
            return waiting
        time.sleep(0.05)


def _lines(sampler: Sampler) -> Iterator[dict[str, Any]]:
    for each in sampler.latest(math.inf):
        if each.value is not None:
            yield _line(each.metric, each.value, each.attributes)
    for value, attributes in sampler.observe(m.COLLECTOR_UP, 0):
        if m.HW_ID not in attributes:
            yield _line(m.COLLECTOR_UP, value, attributes)


def _line(metric: m.Metric, value: float, attributes: m.Attributes) -> dict[str, Any]:
    return {"metric": metric.name, "value": value, "unit": metric.unit, "attributes": attributes}
