"""What is wrong with a physical disk: one finding per rule and disk."""

from __future__ import annotations

from gpumon import units
from gpumon.rules import thresholds as limit
from gpumon.rules.disk_health import CABLE, FAILING, WEARING, Condition, conditions
from gpumon.rules.evidence import Drive, Evidence
from gpumon.rules.findings import Fact, Finding

_SAY = {FAILING: "is about to fail", WEARING: "wears out", CABLE: "has errors on the way to it"}
_DAY_S = 86400.0


def drive_findings(evidence: Evidence) -> list[Finding]:
    """Every finding of every disk, those with the run's own data first."""
    drives = sorted(evidence.drives, key=lambda drive: (not drive.holds_dataset, not drive.holds_checkpoints, drive.id))
    return [finding for drive in drives for finding in _findings(drive, evidence)]


def failing_under_data(evidence: Evidence) -> str:
    """A sentence on the disk with the run's data or checkpoints, where one is about to fail; else empty."""
    for drive in evidence.drives:
        wrong = [each for each in _wrong(drive) if each.rule == FAILING]
        if wrong and (drive.holds_dataset or drive.holds_checkpoints):
            return (
                f" {drive.name} has {_counted(wrong[0], drive)}: save a checkpoint elsewhere."
                if wrong[0].counter
                else f" {drive.name} {_said(FAILING, drive)} ({wrong[0].text}): save a checkpoint elsewhere."
            )
    return ""


def _wrong(drive: Drive) -> list[Condition]:
    wrong = conditions(drive.vitals)
    if not wrong and drive.state in ("failed", "predicted_failure"):  # judged by more than the run holds
        return [Condition(FAILING, "critical", f'its health is "{drive.state.replace("_", " ")}"')]
    return wrong


def _said(rule: str, drive: Drive) -> str:
    return _SAY[rule] if drive.state != "failed" or rule != FAILING else "has failed or does not answer"


def _findings(drive: Drive, evidence: Evidence) -> list[Finding]:
    wrong = _wrong(drive)
    found: list[Finding] = []
    for rule in (FAILING, WEARING, CABLE):
        if of_rule := [each for each in wrong if each.rule == rule]:
            # What a failing disk has besides is part of the same news.
            if rule == WEARING and found:
                continue
            found.append(_finding(rule, of_rule, drive, evidence))
    return found


def _finding(rule: str, wrong: list[Condition], drive: Drive, evidence: Evidence) -> Finding:
    about = ", ".join(filter(None, (drive.model, f"serial number {drive.id}" if drive.devices else "")))
    holds = " and ".join(
        what
        for what, is_so in (("the data set", drive.holds_dataset), ("the checkpoints", drive.holds_checkpoints))
        if is_so
    )
    name = drive.name + (f" ({about})" if about else "") + (f", which holds {holds}," if holds else "")
    return Finding(
        rule=rule,
        severity=max((each.severity for each in wrong), key=("info", "warning", "critical").index),
        device=drive.devices[0] if drive.devices else drive.id,
        confidence=limit.MOST_CONFIDENT if rule == FAILING else 0.8,
        summary=f"{name} {_said(rule, drive)}: {'; '.join(_counted(each, drive) for each in wrong)}.",
        evidence=[_fact(each, drive) for each in wrong],
        advice=_advice(rule, drive, evidence),
    )


def _counted(condition: Condition, drive: Drive) -> str:
    """A condition with how much its counter grew, and since when."""
    if not condition.counter:
        return condition.text
    since_start = drive.grown.get(condition.counter, 0.0)
    text = condition.text
    if since_start > 0:
        text += f", +{since_start:.0f} since the run began"
        if drive.grown_over_s >= 60.0:
            text += f" ({units.number(since_start / drive.grown_over_s * 3600)} per hour)"
    if condition.grown > since_start:
        text += f", +{condition.grown:.0f} within {limit.HEALTH_MEMORY_S / _DAY_S:.0f} days"
    return text


def _fact(condition: Condition, drive: Drive) -> Fact:
    if condition.counter:
        count = drive.vitals.counters.get(condition.counter, 0.0)
        grown = drive.grown.get(condition.counter, 0.0)
        reference, source = (count - grown, "when the run began") if grown > 0 else (0.0, "a disk that is well")
        return Fact("gpumon.smart.count", count, "{error}", reference, f"{condition.counter}: {source}")
    if drive.vitals.used is not None and "rated writes" in condition.text:
        left = round(1.0 - drive.vitals.used, 4)
        return Fact("hw.physical_disk.endurance_utilization", left, "1", 1.0 - limit.WORN[0], "remaining")
    return Fact("hw.status", drive.state, "", "ok", condition.text)


def _advice(rule: str, drive: Drive, evidence: Evidence) -> list[str]:
    if rule == CABLE:
        return [
            f"reseat or replace the cable of {drive.name}, or its slot: the errors are of the link, not of the disk"
        ]
    if rule == WEARING:
        return [f"plan to replace {drive.name}, and keep no only copy on it"]
    well = [other.name for other in evidence.drives if other.id != drive.id and other.is_well]
    where = f"another disk than {drive.name}" + (f" ({', '.join(well[:2])})" if well else "")
    advice = [f"save a checkpoint on {where} now"]
    if drive.holds_checkpoints:
        advice = [f"copy the last checkpoint to {where} now, and save the next ones there"]
    if drive.holds_dataset:
        advice.append(f"copy the data set to {'it' if well else 'another disk'} while it can still be read")
    return [*advice, f"replace {drive.name}; `smartctl -x` has the details for the vendor"]
