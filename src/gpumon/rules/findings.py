"""What rules say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpumon.rules import thresholds as limit
from gpumon.rules.evidence import share

SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True)
class Fact:
    """A figure that a finding rests on, held against a reference where there is one."""

    metric: str
    value: float | str
    unit: str
    reference: float | str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Finding:
    """A rule that held, over a stretch of the run in seconds since its start."""

    rule: str
    severity: str
    summary: str
    cause: str | None = None
    device: str | None = None
    rank: int | None = None
    seconds_lost: float | None = None
    from_s: float | None = None
    to_s: float | None = None
    confidence: float | None = None
    candidates: Sequence[str] = ()
    evidence: Sequence[Fact] = ()
    advice: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """As in the report's JSON."""
        content = asdict(self)
        order = (
            "rule", "cause", "severity", "device", "rank", "seconds_lost", "from_s", "to_s", "confidence",
            "candidates", "summary", "evidence", "advice",
        )  # fmt: skip
        return {key: list(content[key]) if isinstance(content[key], tuple) else content[key] for key in order}


def severity(lost_s: float, run_s: float) -> str:
    """By the share of the run's time that was lost."""
    lost = share(lost_s, run_s)
    if lost >= limit.CRITICAL:
        return "critical"
    return "warning" if lost >= limit.WARNING else "info"
