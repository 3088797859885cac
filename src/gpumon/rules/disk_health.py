"""How well a physical disk is: the conditions that hold for it, and the state that follows from them.

The thresholds and what they rest on: counts that drives report before they fail (Backblaze's and Google's
published fleets), and the NVMe and ATA specifications. `PASSED` alone says next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gpumon.rules import thresholds as limit

STATES: Final = ("ok", "degraded", "predicted_failure", "failed")
FAILING, WEARING, CABLE = "DiskFailing", "DiskWearing", "DiskCableErrors"

COUNTER_WORDS: Final = {
    "reallocated": "reallocated sectors",
    "uncorrected": "uncorrectable errors reported",
    "pending": "pending sectors",
    "offline_uncorrectable": "offline uncorrectable sectors",
    "media": "media errors",
    "link": "errors of the link",
}
"""The counters that are judged, in the order of what they foretell, and their names for people."""
_TOO_MANY: Final = {
    "reallocated": limit.REALLOCATED,
    "uncorrected": limit.UNREADABLE,
    "pending": limit.UNREADABLE,
    "offline_uncorrectable": limit.UNREADABLE,
    "media": 1,
}
_WARNING_BITS: Final = {
    0: (FAILING, "its spare blocks are below their threshold"),
    1: (WEARING, "its temperature is outside its limits: it slows down"),
    2: (FAILING, "it says that it is no longer reliable"),
    3: (FAILING, "it has become read-only"),
    4: (FAILING, "the backup of its volatile memory failed"),
    5: (FAILING, "its persistent memory region is no longer reliable"),
}
"""NVMe's critical warning, bit by bit. Source: NVM Express base specification, SMART / Health Information log."""


@dataclass(frozen=True)
class Vitals:
    """What is known of a disk's health, whoever read it. `growth`: of counters, over the time that counts."""

    has_failed: bool = False  # its own judgement (ATA, SCSI), or it no longer answers
    why_failed: str = "its own health check fails"
    critical_warning: int = 0  # NVMe's bits
    spare: float | None = None
    spare_threshold: float | None = None
    used: float | None = None  # share of the rated writes
    failing: Sequence[str] = ()  # attributes below their threshold now that foretell failure
    failed_before: Sequence[str] = ()
    self_test_failed: bool = False
    io_errors: float = 0.0  # that the kernel saw, over the time that counts
    counters: Mapping[str, float] = field(default_factory=dict)  # by the names of `COUNTER_WORDS`
    growth: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """One thing that is wrong, and the rule that it belongs to."""

    rule: str
    severity: str
    text: str  # half a sentence: "304 reallocated sectors"
    counter: str = ""
    grown: float = 0.0


def conditions(vitals: Vitals) -> list[Condition]:
    """Everything that is wrong, the worst first."""
    found = [*_said(vitals), *_counted(vitals), *_worn(vitals)]
    return sorted(found, key=lambda each: (each.rule != FAILING, each.severity != "critical"))


def state_of(vitals: Vitals) -> str:
    """One of `STATES`."""
    if vitals.has_failed:
        return "failed"
    found = conditions(vitals)
    if any(each.rule == FAILING for each in found):
        return "predicted_failure"
    return "degraded" if found else "ok"


def _said(vitals: Vitals) -> Iterator[Condition]:
    if vitals.has_failed:
        yield Condition(FAILING, "critical", vitals.why_failed)
    for bit, (rule, text) in _WARNING_BITS.items():
        if vitals.critical_warning >> bit & 1:
            yield Condition(rule, "critical" if rule == FAILING else "warning", text)
    spare, threshold = vitals.spare, vitals.spare_threshold
    if spare is not None and threshold is not None and spare < threshold and not vitals.critical_warning & 1:
        yield Condition(
            FAILING, "critical", f"{spare:.0%} of its spare blocks are left, below the {threshold:.0%} limit"
        )
    for name in vitals.failing:
        yield Condition(FAILING, "critical", f"{name} is below its threshold")
    for name in vitals.failed_before:
        yield Condition(WEARING, "warning", f"{name} was below its threshold before")
    if vitals.self_test_failed:
        yield Condition(WEARING, "warning", "its log holds a failed self-test")
    if vitals.io_errors > 0:
        yield Condition(FAILING, "critical", f"{vitals.io_errors:.0f} I/O errors seen by the kernel")


def _counted(vitals: Vitals) -> Iterator[Condition]:
    for counter, words in COUNTER_WORDS.items():
        count, grown = vitals.counters.get(counter, 0.0), vitals.growth.get(counter, 0.0)
        text = f"{count:.0f} {words if count != 1 else words.replace('errors', 'error').replace('sectors', 'sector')}"
        if counter == "link":  # the cable, the backplane or the connector, not the disk
            if grown > 0:
                yield Condition(CABLE, "warning", text, counter, grown)
        elif grown > 0 or count >= _TOO_MANY[counter]:
            yield Condition(FAILING, "critical", text, counter, grown)
        elif count > 0:
            yield Condition(WEARING, "warning", text, counter)


def _worn(vitals: Vitals) -> Iterator[Condition]:
    if vitals.used is not None and vitals.used >= limit.WORN[0]:
        severity = "critical" if vitals.used >= limit.WORN[1] else "warning"
        yield Condition(WEARING, severity, f"{vitals.used:.0%} of its rated writes used")
