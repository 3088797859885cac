"""From the steps to one verdict: measure time, let shares add up, name the largest loss, abstain on ties."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpumon import units
from gpumon.rules import sentences
from gpumon.rules import thresholds as limit
from gpumon.rules.advice import advise, startup_advice
from gpumon.rules.causes import cause_of_waits
from gpumon.rules.drives import drive_findings, failing_under_data
from gpumon.rules.evidence import Evidence, Steps, share
from gpumon.rules.facts import facts_of
from gpumon.rules.findings import SEVERITIES, Fact, Finding, severity
from gpumon.rules.gpus import gpu_findings, most_throttled


@dataclass(frozen=True)
class Judgement:
    """A verdict, the sentence for it, and every finding, the most serious first."""

    verdict: str
    headline: str
    findings: list[Finding] = field(default_factory=list)


def judge(evidence: Evidence) -> Judgement:
    """The verdict over a stretch of training, and what stands behind it."""
    of_gpus = gpu_findings(evidence)
    of_drives = drive_findings(evidence)
    failing = failing_under_data(evidence)
    if reason := too_little(evidence.steps):
        broken = [item for item in of_gpus if item.rule == "GpuError"]
        return Judgement("insufficient_data", reason + failing, [*broken, *of_drives])
    found: list[tuple[str, Finding]] = []
    if is_data_loading_bound(evidence.steps):
        found.append(("data_loading_bound", data_loading_bound(evidence)))
    for name, rule, phase, what in (
        ("transfer_bound", "TransferBound", "transfer", "copies to the device"),
        ("communication_bound", "CommunicationBound", "communication", "communication with other ranks"),
    ):
        if evidence.steps.steady.fraction(phase) >= limit.LARGE_LOSS:
            found.append((name, _phase_bound(evidence, rule, phase, what)))
    if (hot := most_throttled(evidence)) is not None:
        found += [
            ("throttled", item) for item in of_gpus if (item.rule, item.device) == ("GpuThermalThrottling", hot.id)
        ]
    if found:
        verdict, first = max(found, key=lambda item: item[1].seconds_lost or 0.0)
        headline = first.summary
    else:
        verdict, headline = _without_loss(evidence)
        if verdict == "overhead_bound":
            overhead = _overhead_bound(evidence, headline)
            found.append((verdict, overhead))
    findings = [finding for _, finding in found]
    findings += [item for item in (*of_gpus, *of_drives) if item not in findings]
    if (slow := first_batch_slow(evidence)) is not None:
        findings.append(slow)
    findings += collector_blind(evidence, findings)
    findings.sort(key=lambda item: (SEVERITIES.index(item.severity), -(item.seconds_lost or 0.0)))
    return Judgement(verdict, headline + failing, findings)


def too_little(steps: Steps) -> str | None:
    """Why there is nothing to judge; None where there is."""
    if not steps.count:
        return "No training step was seen."
    if steps.count < limit.MIN_STEPS:
        return f"Too few steps to judge: {steps.count} of {limit.MIN_STEPS}."
    if steps.time_s < limit.MIN_STEP_TIME_S:
        took, least = units.duration(steps.time_s), units.duration(limit.MIN_STEP_TIME_S)
        return f"Too little time in steps to judge: {took} of {least}."
    if steps.wait_s > 1.05 * steps.time_s:
        return "The clocks disagree: more time was waited than steps took."
    return None


def is_data_loading_bound(steps: Steps) -> bool:
    """Whether waiting for data is what costs the time, in the steady state or at the start of epochs."""
    if steps.first_fraction >= limit.STARTUP and steps.wait_fraction >= limit.LARGE_LOSS:
        return True
    steady = steps.steady
    wait = steady.wait_fraction
    others = max(steady.fraction(phase) for phase in ("transfer", "communication", "checkpoint", "other"))
    return wait >= limit.LARGE_LOSS or (wait >= limit.NO_ALARM_WAIT and wait > others)


def data_loading_bound(evidence: Evidence) -> Finding:
    """DataLoadingBound: the training waits for data, and why."""
    cause = cause_of_waits(evidence)
    steps = evidence.steps if cause.name == "worker_startup" else evidence.steps.steady
    lost = lost_to_waits(steps)
    return Finding(
        rule="DataLoadingBound",
        cause=cause.name,
        severity=severity(lost, evidence.run_s),
        device=cause.device,
        seconds_lost=round(lost, 3),
        from_s=evidence.from_s,
        to_s=evidence.to_s,
        confidence=cause.confidence,
        candidates=cause.candidates,
        summary=f"{sentences.waits(evidence)}: {sentences.because(cause, evidence)}.",
        evidence=facts_of(cause, evidence),
        advice=advise(cause, evidence),
    )


def first_batch_slow(evidence: Evidence) -> Finding | None:
    """FirstBatchSlow: epochs begin with a long wait."""
    steps = evidence.steps
    if share(steps.first_wait_s, evidence.run_s) < limit.FIRST_BATCHES:
        return None
    lost = max(0.0, steps.first_wait_s - limit.TOLERATED_WAIT * steps.first_time_s)
    return Finding(
        rule="FirstBatchSlow",
        severity=severity(lost, evidence.run_s),
        seconds_lost=round(lost, 3),
        confidence=limit.MOST_CONFIDENT,
        summary=sentences.first_batches(evidence),
        evidence=[
            Fact(
                "gpumon.first_of_epoch.wait.time",
                steps.first_wait_s,
                "s",
                limit.FIRST_BATCHES * evidence.run_s,
                "5 % of the run",
            ),
            Fact("gpumon.first_of_epoch.count", steps.first_count, "{step}"),
        ],
        advice=startup_advice(evidence),
    )


def collector_blind(evidence: Evidence, findings: list[Finding]) -> list[Finding]:
    """CollectorBlind: what a verdict would have needed and could not be read."""
    waits = next((item for item in findings if item.rule == "DataLoadingBound"), None)
    needed: dict[str, str] = {}
    if waits is not None and waits.cause == "unknown":
        needed["disk"] = "which disk is waited for, and how it does"
        if not evidence.fetches.wall_s:
            needed["fetches"] = "what the fetches were doing"
    if evidence.gpu_busy is None and not findings and evidence.steps.phases.get("transfer"):
        needed["gpu"] = "whether the GPU was busy"
    blind = [(name, what) for name, what in needed.items() if name in evidence.blind]
    return [
        Finding(
            rule="CollectorBlind",
            severity="info",
            summary=f"{name}: {evidence.blind[name]}; {what} is therefore not known.",
            evidence=[Fact("gpumon.collector.up", 0, "1", None, name)],
            advice=["`gpumon doctor` says what is readable here and how to repair the rest"],
        )
        for name, what in blind
    ]


def lost_to_waits(steps: Steps) -> float:
    """Seconds of waits beyond what is tolerated."""
    return max(0.0, steps.wait_s - limit.TOLERATED_WAIT * steps.time_s)


def is_compute_bound(evidence: Evidence) -> bool:
    if evidence.gpu_busy is not None:
        return evidence.gpu_busy >= limit.BUSY
    steady = evidence.steps.steady
    if steady.fraction("forward", "backward", "optimizer") < limit.BUSY:
        return False
    cpu_s = evidence.machine.trainer_cpu_s
    compute_s = sum(evidence.steps.phases.get(phase, 0.0) for phase in ("forward", "backward", "optimizer"))
    return cpu_s is None or share(cpu_s, compute_s) >= limit.TRAINER_CPU


def _without_loss(evidence: Evidence) -> tuple[str, str]:
    if is_compute_bound(evidence):
        return "compute_bound", sentences.healthy(evidence)
    if evidence.gpu_busy is not None and evidence.gpu_busy < limit.IDLE_GPU:
        return "overhead_bound", (
            f"The GPU is busy only {units.percent(evidence.gpu_busy)} of the time, and neither data nor copies "
            "explain it: Python, logging, synchronization or tiny kernels."
        )
    return "balanced", sentences.healthy(evidence)


def _phase_bound(evidence: Evidence, rule: str, phase: str, what: str) -> Finding:
    steady = evidence.steps.steady
    lost = max(0.0, steady.phases.get(phase, 0.0) - limit.TOLERATED_WAIT * steady.time_s)
    fraction = steady.fraction(phase)
    return Finding(
        rule=rule,
        severity=severity(lost, evidence.run_s),
        seconds_lost=round(lost, 3),
        from_s=evidence.from_s,
        to_s=evidence.to_s,
        confidence=_at_most(fraction + 0.3),
        summary=f"{units.percent(fraction)} of each training step goes into {what}.",
        evidence=[Fact("gpumon.phase.time", fraction, "1", limit.LARGE_LOSS, f"share of step time in {phase}")],
        advice=["pin_memory=True and .to(device, non_blocking=True): copies then overlap with compute"]
        if phase == "transfer"
        else [],
    )


def _overhead_bound(evidence: Evidence, summary: str) -> Finding:
    busy = evidence.gpu_busy or 0.0
    lost = max(0.0, (limit.BUSY - busy) * evidence.steps.steady.time_s)
    return Finding(
        rule="OverheadBound",
        severity=severity(lost, evidence.run_s),
        seconds_lost=round(lost, 3),
        confidence=0.6,
        summary=summary,
        evidence=[Fact("hw.gpu.utilization", busy, "1", limit.IDLE_GPU, "busy below which overhead is to blame")],
        advice=[
            "look for .item(), .cpu() and print in the loop: each waits for the GPU",
            "torch.compile or CUDA graphs: fewer, larger kernels",
        ],
    )


def _at_most(value: float) -> float:
    return round(min(limit.MOST_CONFIDENT, value), 2)
