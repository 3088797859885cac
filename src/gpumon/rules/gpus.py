"""What is wrong with a GPU: one function per rule, each over one GPU of the run."""

from __future__ import annotations

from collections.abc import Iterator

from gpumon import units
from gpumon.rules import thresholds as limit
from gpumon.rules.evidence import Evidence, Gpu, share
from gpumon.rules.findings import Fact, Finding
from gpumon.system import xids

THERMAL = ("thermal",)
BRAKES = ("thermal", "power_brake")
POWER_CAP = ("power_cap",)


def gpu_findings(evidence: Evidence) -> list[Finding]:
    """Every finding of every GPU."""
    return [finding for gpu in evidence.gpus for rule in _RULES for finding in rule(gpu)]


def throttled_fraction(gpu: Gpu) -> float:
    """Share of the time it was used in which heat or the power brake slowed it down."""
    return min(1.0, share(gpu.slowed_s(*BRAKES), gpu.busy_s))


def most_throttled(evidence: Evidence) -> Gpu | None:
    """The GPU that is slowed down enough to be the verdict: the slowest rank's pace is everybody's."""
    gpu = max(evidence.gpus, key=throttled_fraction, default=None)
    return gpu if gpu is not None and throttled_fraction(gpu) >= limit.THROTTLED_GPU else None


def thermal_throttling(gpu: Gpu) -> Iterator[Finding]:
    """GpuThermalThrottling: heat, or the power brake, slows the GPU down."""
    seconds = gpu.slowed_s(*BRAKES)
    fraction = throttled_fraction(gpu)
    if not seconds or (seconds < limit.THERMAL_S and fraction < limit.THERMAL):
        return
    heat = gpu.slowed_s(*THERMAL)
    lost = gpu.lost_fraction
    why = "slows down because of heat" if heat else "is slowed down by the power brake"
    text = f"{gpu.name} {why} for {units.percent(fraction)} of the time it works"
    if heat and gpu.temperature_c is not None:
        text += f", at {units.quantity(round(gpu.temperature_c), 'Cel')}"
    if lost and gpu.clock_hz and gpu.best_clock_hz:
        text += f": its clock is {_mhz(gpu.clock_hz)} instead of {_mhz(gpu.best_clock_hz)}"
        text += f", which costs {units.duration(seconds * lost)}"
    evidence = [Fact("gpumon.gpu.throttle.time", round(seconds, 3), "s", None, "heat or power brake")]
    if gpu.temperature_c is not None:
        evidence.append(Fact("hw.temperature", gpu.temperature_c, "Cel", gpu.slowdown_c, "slowdown limit"))
    evidence += _clocks(gpu)
    yield Finding(
        rule="GpuThermalThrottling",
        severity="critical" if fraction >= limit.THROTTLED_GPU else "warning",
        device=gpu.id,
        seconds_lost=None if lost is None else round(seconds * lost, 3),
        confidence=limit.MOST_CONFIDENT,
        summary=text + ".",
        evidence=evidence,
        advice=[
            "look at the airflow: fans, dust, blanking panels, the neighbours' exhaust, the room",
            f"until then `nvidia-smi -i {_number(gpu)} -pl WATTS` with a lower power limit runs cooler and steadier",
        ]
        if heat
        else ["the power supply or the rack asks for less power: check its redundancy and its cables"],
    )


def power_capped(gpu: Gpu) -> Iterator[Finding]:
    """GpuPowerCapped: the power limit holds the clocks down."""
    fraction = min(1.0, share(gpu.slowed_s(*POWER_CAP), gpu.busy_s))
    if fraction < limit.POWER_CAPPED:
        return
    # Clocks are known while heat or a cap was active: with heat they say nothing of the cap.
    lost = gpu.lost_fraction if not gpu.slowed_s(*BRAKES) else None
    fell = lost is not None and lost >= limit.CLOCKS_FELL
    text = f"{gpu.name} is held at its power limit for {units.percent(fraction)} of the time it works"
    if gpu.power_w is not None and gpu.power_limit_w:
        text += f" ({gpu.power_w:.0f} W of {gpu.power_limit_w:.0f} W)"
    if fell and gpu.clock_hz and gpu.best_clock_hz:
        text += f": its clock is {_mhz(gpu.clock_hz)} instead of {_mhz(gpu.best_clock_hz)}"
    evidence = [Fact("gpumon.gpu.throttle.time", round(gpu.slowed_s(*POWER_CAP), 3), "s", None, "power cap")]
    if gpu.power_w is not None:
        evidence.append(Fact("hw.power", gpu.power_w, "W", gpu.power_limit_w, "power limit"))
    yield Finding(
        rule="GpuPowerCapped",
        severity="warning" if fell else "info",
        device=gpu.id,
        seconds_lost=round(gpu.slowed_s(*POWER_CAP) * lost, 3) if fell and lost else None,
        confidence=0.8,
        summary=text + ".",
        evidence=[*evidence, *(_clocks(gpu) if fell else [])],
        advice=[f"raise the limit where the cooling allows it: `nvidia-smi -i {_number(gpu)} -pl WATTS`"]
        if fell
        else [],
    )


def overheating(gpu: Gpu) -> Iterator[Finding]:
    """GpuOverheating: hot for long, or past what the device allows."""
    hottest = gpu.hottest_c
    if hottest is None:
        return
    is_past = gpu.slowdown_c is not None and hottest >= gpu.slowdown_c
    if gpu.hot_s < limit.HOT_S and not is_past:
        return
    past = f", past its slowdown limit of {units.quantity(gpu.slowdown_c, 'Cel')}" if is_past and gpu.slowdown_c else ""
    yield Finding(
        rule="GpuOverheating",
        severity="critical" if is_past else "warning",
        device=gpu.id,
        confidence=limit.MOST_CONFIDENT,
        summary=f"{gpu.name} reaches {units.quantity(hottest, 'Cel')}{past}; "
        f"{units.duration(gpu.hot_s)} at {limit.HOT_C:.0f} °C and above.",
        evidence=[Fact("hw.temperature", hottest, "Cel", gpu.slowdown_c or limit.HOT_C, "peak")],
        advice=["look at the airflow: fans, dust, blanking panels, the neighbours' exhaust, the room"],
    )


def link_degraded(gpu: Gpu) -> Iterator[Finding]:
    """PcieLinkDegraded: under load the link is narrower or slower than device and slot allow."""
    faults, evidence = [], []
    if gpu.link_width and gpu.link_width[0] < gpu.link_width[1]:
        faults.append(f"{gpu.link_width[0]:.0f} of {gpu.link_width[1]:.0f} lanes")
        evidence.append(
            Fact("gpumon.gpu.pcie.link.width", gpu.link_width[0], "{lane}", gpu.link_width[1], "under load")
        )
    if gpu.link_generation and gpu.link_generation[0] < gpu.link_generation[1]:
        faults.append(f"generation {gpu.link_generation[0]:.0f} of {gpu.link_generation[1]:.0f}")
        found, most = gpu.link_generation
        evidence.append(Fact("gpumon.gpu.pcie.link.generation", found, "{generation}", most, "under load"))
    if not faults:
        return
    yield Finding(
        rule="PcieLinkDegraded",
        severity="warning",
        device=gpu.id,
        confidence=0.9,
        summary=f"The PCIe link of {gpu.name} runs with {' and '.join(faults)} under load: copies take longer.",
        evidence=evidence,
        advice=[
            "reseat the card and its riser, and look for dirt on the contacts; then compare with another slot",
            "`nvidia-smi -q -d PCIE` and `dmesg | grep -i pcie` show replays and retraining",
        ],
    )


def memory_growth(gpu: Gpu) -> Iterator[Finding]:
    """GpuMemoryGrowth: memory in use rises, block by block, long after the start."""
    if gpu.memory_grew is None:
        return
    grown, steps = gpu.memory_grew
    left = ""
    if gpu.memory_limit_bytes and gpu.memory_peak is not None:
        rest = gpu.memory_limit_bytes * (1 - gpu.memory_peak)
        left = f"; at this pace it is full after {max(0.0, rest / grown * steps):.0f} more steps"
    yield Finding(
        rule="GpuMemoryGrowth",
        severity="warning",
        device=gpu.id,
        confidence=0.8,
        summary=f"Memory in use on {gpu.name} grew by {units.size(grown)} over {steps:.0f} steps{left}.",
        evidence=[
            Fact("hw.gpu.memory.usage", grown, "By", limit.MEMORY_GROWTH_BYTES, f"growth over {steps:.0f} steps")
        ],
        advice=[
            "keep numbers, not tensors: `total += loss.item()`, never a list of losses with their graphs",
            "detach what is stored between steps, and clear caches and metric states every epoch",
        ],
    )


def memory_pressure(gpu: Gpu) -> Iterator[Finding]:
    """GpuMemoryPressure: almost full."""
    warning, critical = limit.MEMORY_PRESSURE
    peak = gpu.memory_peak
    if peak is None or peak < warning:
        return
    of = f" of {units.size(gpu.memory_limit_bytes)}" if gpu.memory_limit_bytes else ""
    yield Finding(
        rule="GpuMemoryPressure",
        severity="critical" if peak >= critical else "warning",
        device=gpu.id,
        confidence=0.8,
        summary=f"Memory of {gpu.name} is {units.percent(peak)} used at its peak{of}: a longer batch ends the run.",
        evidence=[Fact("hw.gpu.memory.utilization", peak, "1", warning, "peak")],
        advice=["a smaller batch, activation checkpointing or a lower precision leave room"],
    )


def error(gpu: Gpu) -> Iterator[Finding]:
    """GpuError: results may be wrong, or the GPU is gone."""
    evidence, said = [], []
    if fatal := sorted({xid for xid in gpu.xids if xid in xids.FATAL}):
        said += [f"XID {xid} ({xids.MEANINGS[xid]})" if xid in xids.MEANINGS else f"XID {xid}" for xid in fatal]
        evidence += [Fact("gpumon.gpu.xid", xid, "{xid}") for xid in fatal]
    if gpu.uncorrected_errors > 0:
        said.append(f"{gpu.uncorrected_errors:.0f} uncorrected memory errors")
        evidence.append(Fact("hw.errors", gpu.uncorrected_errors, "{error}", 0, "uncorrected, during the run"))
    if gpu.remap:
        said.append(f"row remapping {' and '.join(gpu.remap)}")
        evidence += [Fact("gpumon.gpu.remapped_rows", 1, "{row}", 0, state) for state in gpu.remap]
    if gpu.is_failed and not said:
        said.append("the driver lost it or says that it failed")
    if gpu.is_failed:
        evidence.append(Fact("hw.status", "failed", ""))
    if not said:
        return
    yield Finding(
        rule="GpuError",
        severity="critical",
        device=gpu.id,
        confidence=limit.MOST_CONFIDENT,
        summary=f"{gpu.name} failed: {', '.join(said)}. Results since then may be wrong.",
        evidence=evidence,
        advice=[
            "save a checkpoint elsewhere, end the run and take the GPU out of service",
            f"`nvidia-smi -q -i {_number(gpu)}` and `dmesg | grep -i xid` for the vendor's support",
        ],
    )


_RULES = (thermal_throttling, power_capped, overheating, link_degraded, memory_growth, memory_pressure, error)


def _clocks(gpu: Gpu) -> list[Fact]:
    if gpu.clock_hz is None:
        return []
    return [Fact("gpumon.gpu.clock.frequency", gpu.clock_hz, "Hz", gpu.best_clock_hz, "best window of the run")]


def _mhz(hertz: float) -> str:
    return f"{hertz / 1e6:.0f} MHz"


def _number(gpu: Gpu) -> str:
    return gpu.id if gpu.index is None else str(gpu.index)
