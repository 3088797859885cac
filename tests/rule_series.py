"""Series as trainings, GPUs and disks send them, for promtool's unit tests: made-up values, one sample per 10 s.

    run = training(phases={"data.wait": 0.4, "forward": 0.6}, minutes=10)
    assert_fires(run, {9: {"DataLoadingBound critical": 1}, 14: {}})

Time is in minutes. A series that was pushed just ends with its sender; one that was scraped ends with a marker.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from peers import PROMTOOL

RULES = Path(__file__).parents[1] / "prometheus" / "rules" / "gpumon.yml"
STEP_S = 10
Series = dict[str, str]


def samples(minutes: float) -> int:
    return round(minutes * 60 / STEP_S)


class Line:
    """The values of a series: `Line().rises(0.5, 5).stays(2)` is 5 min of half a unit per second, then 2 min of it."""

    def __init__(self, begin: float = 0.0, *, after: float = 0.0) -> None:
        """*after*: minutes in which it is not there."""
        self._value = begin
        self._parts = [f"_x{samples(after)}"] if after else []

    def rises(self, per_s: float, minutes: float) -> Line:
        count = samples(minutes)
        step = per_s * STEP_S
        self._parts.append(f"{self._value:g}+{step:g}x{count - 1}")
        self._value += step * count
        return self

    def stays(self, minutes: float, at: float | None = None) -> Line:
        self._value = self._value if at is None else at
        self._parts.append(f"{self._value:g}x{samples(minutes) - 1}")
        return self

    def is_gone(self, minutes: float) -> Line:
        self._parts.append(f"_x{samples(minutes)}")
        return self

    def ends(self) -> Line:
        """A scraped one does so with a marker."""
        self._parts.append("stale")
        return self

    def __str__(self) -> str:
        return " ".join(self._parts)


def name(metric: str, **labels: object) -> str:
    return metric + "{" + ", ".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


class Sender:
    """One process: over OTLP, or an agent that is scraped (`is_scraped`), whose ratios have no suffix.

    `has_own_provider`: the provider is the application's, whose resource knows neither machine nor run.
    """

    def __init__(
        self,
        job: str,
        instance: str,
        *,
        host: str = "node1",
        node: str = "boot1",
        run: str = "",
        rank: str = "",
        is_scraped: bool = False,
        has_own_provider: bool = False,
        minutes: float = 10.0,
        after: float = 0.0,
    ) -> None:
        self.at = {"job": job, "instance": instance}
        self.minutes, self.after = minutes, after
        self.is_scraped = is_scraped
        self.series: Series = {}
        told = {"host_name": host, "gpumon_node_id": node, "gpumon_run_id": run, "gpumon_rank": rank}
        told = {key: value for key, value in told.items() if value}
        self.says("target_info", self.constant(1), **({} if has_own_provider else told))
        if not is_scraped:  # whose page has them on target_info alone
            promoted = {key: value for key, value in told.items() if key != "gpumon_run_id"}  # by Prometheus
            self.at = {**self.at, **(told if has_own_provider else promoted)}
        self.ratio("gpumon_collector_up", 1, gpumon_collector="disk")

    def constant(self, value: float) -> Line:
        line = Line(after=self.after).stays(self.minutes, value)
        return line.ends() if self.is_scraped else line

    def says(self, metric: str, values: object, **labels: object) -> None:
        self.series[name(metric, **self.at, **labels)] = str(values)

    def ratio(self, metric: str, values: object, **labels: object) -> None:
        """A gauge with the unit 1."""
        values = self.constant(values) if isinstance(values, int | float) else values
        self.says(metric if self.is_scraped else f"{metric}_ratio", values, **labels)

    def gauge(self, metric: str, value: float, **labels: object) -> None:
        self.says(metric, self.constant(value), **labels)

    def counter(self, metric: str, per_s: float, begin: float = 0.0, **labels: object) -> None:
        line = Line(begin, after=self.after).rises(per_s, self.minutes)
        self.says(metric, line.ends() if self.is_scraped else line, **labels)


def training(
    name: str = "train",
    instance: str = "i1",
    *,
    phases: Mapping[str, float] | None = None,
    steps_per_s: float = 10.0,
    first_wait: float = 0.0,
    busy: float = 1.0,
    stage: str = "train",
    **sender: Any,
) -> Sender:
    """A training: *busy*, the share of time that it spends in steps; *phases*, their shares of that.

    *first_wait*: the share of the steps' time that waits for first batches, part of data.wait.
    """
    found = Sender(name, instance, **{"run": "run1", "rank": "0", **sender})
    phases = {"data.wait": 0.03, "forward": 0.5, "backward": 0.47} if phases is None else phases
    at = {"gpumon_stage": stage}
    found.counter("gpumon_step_count_total", steps_per_s, **at)
    found.counter("gpumon_step_time_seconds_total", busy, **at)
    for phase, share in phases.items():
        found.counter("gpumon_phase_time_seconds_total", share * busy, gpumon_phase=phase, **at)
    found.counter("gpumon_first_of_epoch_wait_time_seconds_total", first_wait * busy, **at)
    found.counter("gpumon_first_of_epoch_step_time_seconds_total", first_wait * busy * 1.1, **at)
    p95 = busy / steps_per_s
    for bound in ("0.1", "1", "10", "100", "+Inf"):
        rate = steps_per_s if bound == "+Inf" or float(bound) >= p95 else 0.0
        found.counter("gpumon_step_duration_seconds_bucket", rate, le=bound, **at)
    return found


def merged(senders: Iterable[Sender | Series]) -> Series:
    return {key: line for each in senders for key, line in (each if isinstance(each, dict) else each.series).items()}


def gpu(sender: Sender, uuid: str = "GPU-1", index: str = "0", **says: object) -> Sender:
    """A busy, healthy GPU of a sender; *says*: another value, or a `Line`, of what is named here."""
    at = {"hw_id": uuid, "gpumon_gpu_index": index}
    core = {"hw_id": f"{uuid}/core", "hw_parent": uuid, "gpumon_gpu_index": index}

    def value(what: str, usual: float) -> Line:
        found = says.pop(what, usual)
        return sender.constant(found) if isinstance(found, int | float) else found  # type: ignore[return-value]

    sender.ratio("gpumon_gpu_info", 1, **at, hw_model="H100")
    sender.ratio("hw_gpu_utilization", value("utilization", 0.9), **at, hw_gpu_task="general")
    sender.says("hw_temperature_celsius", value("celsius", 70), **core)
    for kind, limit in (("high.degraded", 90), ("high.critical", 95)):
        sender.gauge("hw_temperature_limit_celsius", limit, **core, hw_limit_type=kind)
    sender.ratio("hw_gpu_memory_utilization", value("memory", 0.5), **at)
    sender.says("hw_gpu_memory_usage_bytes", value("bytes", 40 * 2**30), **at)
    sender.gauge("hw_gpu_memory_limit_bytes", 80 * 2**30, **at)
    sender.says("gpumon_gpu_clock_frequency_hertz", value("hertz", 1.98e9), **at, gpumon_gpu_clock="sm")
    sender.says("gpumon_gpu_pcie_link_width", value("width", 16), **at)
    sender.gauge("gpumon_gpu_pcie_link_width_limit", 16, **at)
    sender.ratio("gpumon_gpu_pcie_link_generation", value("generation", 5), **at)
    sender.ratio("gpumon_gpu_pcie_link_generation_limit", 5, **at)
    sender.says("hw_errors_total", value("uncorrected", 0), **at, hw_type="gpu", error_type="uncorrected")
    for remap in ("pending", "failed"):
        sender.says("gpumon_gpu_remapped_rows", value(remap, 0), **at, gpumon_gpu_remap=remap)
    status = {**at, "hw_type": "gpu"}
    sender.says("hw_status", value("ok", 1), **status, hw_state="ok")
    sender.says("hw_status", value("failed_state", 0), **status, hw_state="failed")
    for reason in ("sw_power_cap", "sw_thermal_slowdown", "hw_power_brake"):
        held = float(str(says.pop(reason, 0.0)))  # share of time
        where = {**at, "gpumon_gpu_throttle_reason": reason}
        sender.counter("gpumon_gpu_throttle_time_seconds_total", held, 17.0, **where)
        sender.ratio("gpumon_gpu_throttle_active", float(held > 0), **where)
    assert not says, says
    return sender


def disk(sender: Sender, serial: str = "S1", device: str = "sda", *, state: str = "ok", **says: object) -> Sender:
    """A physical disk of a sender that is well; *says*: SMART's counters, their growth, wear, faults."""
    at = {"hw_id": serial}
    sender.ratio("gpumon_smart_info", 1, **at, hw_model="ST4000", system_device=device)
    for each in ("ok", "degraded", "predicted_failure", "failed"):
        is_now = says.pop(each, float(each == state))
        status = {**at, "hw_type": "physical_disk", "hw_state": each}
        sender.says("hw_status", sender.constant(is_now) if isinstance(is_now, float) else is_now, **status)
    sender.ratio("hw_physical_disk_endurance_utilization", 1 - float(str(says.pop("used", 0.1))), **at)
    for counter in ("reallocated", "pending", "media", "link"):
        sender.gauge("gpumon_smart_count", float(str(says.pop(counter, 0))), **at, gpumon_smart_counter=counter)
        grown = float(str(says.pop(f"{counter}_grown", 0)))
        sender.gauge("gpumon_smart_growth", grown, **at, gpumon_smart_counter=counter)
    if before := says.pop("failed_before", ""):
        failed = {"hw_physical_disk_smart_attribute": before, "gpumon_smart_when": "before"}
        sender.ratio("gpumon_smart_failed", 1, **at, **failed)
    if (bits := says.pop("critical_warning", None)) is not None:
        sender.ratio(
            "hw_physical_disk_smart", float(str(bits)), **at, hw_physical_disk_smart_attribute="critical_warning"
        )
    assert not says, says
    return sender


def agent(instance: str = "agent1", **sender: Any) -> Sender:
    return Sender("gpumon-agent", instance, **sender)


def assert_fires(
    senders: Sender | Iterable[Sender | Series], at: Mapping[float, Mapping[str, int]], **how: Any
) -> None:
    """The alerts that fire, and no others: minute -> "Name severity" or "Name severity reason" -> how many."""
    checks = []
    for minute, expected in at.items():
        found = []
        for what, count in expected.items():
            alert, severity, *reason = what.split()
            labels = {"alertname": alert, "severity": severity, **({"reason": reason[0]} if reason else {})}
            found.append({"labels": name("", **labels), "value": count})
        expr = 'count by (alertname, severity, reason) (ALERTS{alertstate="firing"})'
        checks.append({"expr": expr, "eval_time": f"{round(minute * 60)}s", "exp_samples": found})
    promtool(senders, promql_expr_test=checks, **how)


@cache
def _groups() -> list[dict[str, Any]]:
    return yaml.safe_load(RULES.read_text())["groups"]  # type: ignore[no-any-return]


def promtool(
    senders: Sender | Iterable[Sender | Series], *, every_s: int = 30, groups: tuple[str, ...] = (), **checks: Any
) -> None:
    """Run a unit test of the rules, or of those *groups* that are enough for a test of days.

    *checks* as in promtool's files.

    Raises:
        AssertionError: what promtool says.
    """
    assert PROMTOOL is not None
    series = merged([senders] if isinstance(senders, Sender) else senders)
    test = {
        "interval": f"{STEP_S}s",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        **checks,
    }
    with tempfile.TemporaryDirectory() as folder:
        file, rules = Path(folder) / "test.yml", RULES
        if groups:
            rules = Path(folder) / "rules.yml"
            rules.write_text(
                yaml.safe_dump({"groups": [each for each in _groups() if each["name"].startswith(groups)]})
            )
        content = {"rule_files": [str(rules)], "evaluation_interval": f"{every_s}s", "tests": [test]}
        # Else promtool evaluates groups in any order, and those that build on others see them late, or not.
        content["group_eval_order"] = [each["name"] for each in _groups() if each["name"].startswith(groups or "")]
        file.write_text(yaml.safe_dump(content, width=10_000))
        done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def said(alert: str, summary: str, severity: str = "", reason: str = "") -> dict[str, str]:
    """The annotations of an alert: its summary as given, the rest as the file has it."""
    rules = [rule for group in _groups() for rule in group["rules"]]
    (found,) = [
        rule
        for rule in rules
        if rule.get("alert") == alert
        and rule["labels"]["severity"] == severity
        and rule["labels"].get("reason", "") == reason
    ]
    return {**found["annotations"], "summary": summary}
