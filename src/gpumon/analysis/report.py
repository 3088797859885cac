"""The report: where a run's time went, which device is the cause, and what could not be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from gpumon.analysis.devices import devices_of
from gpumon.analysis.gather import Gathered, gather
from gpumon.analysis.missing import missing_of
from gpumon.analysis.open import opened
from gpumon.analysis.quantiles import durations
from gpumon.analysis.rows import query
from gpumon.analysis.run_event import run_event, unix_s
from gpumon.analysis.source import Execute, Source
from gpumon.rules.evidence import share
from gpumon.rules.findings import Finding
from gpumon.rules.verdict import judge

SCHEMA = "gpumon.report/1"


@dataclass(frozen=True)
class StepsReport:
    """Training steps, all of them; fractions are of step time."""

    count: int
    samples: int
    epochs: int
    failed: int
    skipped: int
    assumed: int
    duration_s: Mapping[str, float | None]  # mean, p50, p95, max
    data_wait_fraction: float | None
    first_of_epoch: Mapping[str, float | None]  # count, wait_s, fraction
    phases: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """What `gpumon report` says of a run."""

    path: Path | str
    run: Mapping[str, Any]
    steps: StepsReport
    verdict: str
    headline: str
    findings: list[Finding]
    devices: list[dict[str, Any]]
    missing: list[dict[str, str]]
    fetches: dict[str, Any] | None = field(default=None)

    def as_dict(self) -> dict[str, Any]:
        """As in `gpumon report --json`."""
        return {
            "schema": SCHEMA,
            "run": dict(self.run),
            "steps": asdict(self.steps),
            "verdict": self.verdict,
            "headline": self.headline,
            "findings": [finding.as_dict() for finding in self.findings],
            "devices": self.devices,
            "missing": self.missing,
            "fetches": self.fetches,
        }

    def __str__(self) -> str:
        from gpumon.analysis.render_text import render

        return render(self)

    def _repr_html_(self) -> str:
        from gpumon.analysis.render_html import render_html

        return render_html(self)

    def __repr__(self) -> str:
        first = next((finding for finding in self.findings if finding.cause), None)
        why = f" ({' on '.join(filter(None, (first.cause, first.device)))})" if first and first.cause else ""
        return f"<Report {self.run['service']} {self.steps.count} steps: {self.verdict}{why}>"


def build_report(path: str | PathLike[str] | None = None) -> Report:
    """Judge a recorded run; None: the newest one under `gpumon-runs/`.

    Raises:
        RunError: there is no run at *path*, or it cannot be read; the text is one line for the user.
    """
    with opened(path) as run:
        return report_of(run)


def report_of(run: Source) -> Report:
    """Judge what is known of a run until now."""
    execute = run.execute
    info = run.info or run_event(execute)
    begin_s, run_s = _span(execute, info)
    gathered = gather(execute, run_s, begin_s)
    judgement = judge(gathered.evidence)
    return Report(
        path=run.path,
        run=_run(run, info, gathered, begin_s, run_s),
        steps=_steps(execute, gathered),
        verdict=judgement.verdict,
        headline=judgement.headline,
        findings=judgement.findings,
        devices=devices_of(gathered),
        missing=missing_of(run, info, gathered),
        fetches=_fetches(gathered),
    )


def _span(execute: Execute, info: Mapping[str, Any]) -> tuple[float, float]:
    """(start in seconds since 1970, seconds until the end or the last sign of life)."""
    begin = unix_s(info.get("started"))
    end = unix_s(info.get("ended"))
    row = execute(
        "select min(begin_s), max(end_s) from stg_windows where run_id = (select max(run_id) from stg_windows)"
    ).fetchone()
    first, last = row or (None, None)
    # The first step is always kept; the first export may come a minute after it, and says not since when it counts.
    first_span, last_span = execute("select min(begin_s), max(begin_s + duration_s) from stg_spans").fetchone()
    if begin is None:
        begin = min((at for at in (first, first_span) if at is not None), default=None)
    if end is None:
        end = max((at for at in (last, last_span) if at is not None), default=begin)
    if begin is None or end is None:
        return 0.0, 0.0
    return begin, max(0.0, end - begin)


def _run(run: Source, info: Mapping[str, Any], gathered: Gathered, begin_s: float, run_s: float) -> dict[str, Any]:
    known = _speakers(run.execute)
    ids = run.execute("select distinct run_id from stg_windows order by run_id").fetchall()
    number, code = info.get("signal"), info.get("exit_code")
    if isinstance(code, int) and code < 0:  # as subprocess says it
        number, code = -code, 128 - code
    started = info.get("started") or (_rfc3339(begin_s) if begin_s else None)
    hosts = {row["host"] for row in known if row["host"]} or {info.get("host")} - {None}
    return {
        "id": info.get("id") or next((name for (name,) in ids if name), None),
        "service": info.get("service") or next((row["service"] for row in known if row["service"]), "training"),
        "started": started,
        "duration_s": round(run_s, 3),
        "ranks": sorted({process.rank for process in gathered.trainers}),
        "hosts": sorted(hosts),
        "complete": _is_complete(info, number),
        "exit_code": code,
        "signal": number,
        "path": str(run.path),
    }


def _speakers(execute: Execute) -> list[dict[str, Any]]:
    """Service and host of everyone who recorded for a run; of whoever is there where nothing names a run."""
    tables = {
        "otel_metrics_gauge": "Attributes",
        "otel_metrics_sum": "Attributes",
        "otel_traces": "SpanAttributes",
        "otel_logs": "LogAttributes",
    }
    each = (
        f"""select distinct coalesce("ResourceAttributes"['service.name'], '') as service,
            gpumon_host("ResourceAttributes", "{own}") as host,
            case when gpumon_run_id("ResourceAttributes", "{own}") = '' then 0 else 1 end as is_of_run from {table}"""
        for table, own in tables.items()
    )
    found = query(execute, f"select distinct * from ({' union all '.join(each)}) as everyone order by all")
    return [row for row in found if row["is_of_run"]] or found


def _is_complete(info: Mapping[str, Any], number: Any) -> bool:
    """Whether it ended by itself; a single file has no end that anyone wrote down."""
    if not info:
        return True
    return bool(info.get("ended")) and number is None and not any(info.get("dropped", {}).values())


def _steps(execute: Execute, gathered: Gathered) -> StepsReport:
    totals, evidence = gathered.totals, gathered.evidence
    time_s = evidence.steps.time_s
    phases = {name: share(seconds, time_s) for name, seconds in gathered.phases.items()}
    instances = {process.instance for process in gathered.trainers}
    first = evidence.steps.first_count
    return StepsReport(
        count=evidence.steps.count,
        samples=round(totals["samples"]),
        epochs=round(totals["epochs"]),
        failed=round(totals["failed"]),
        skipped=round(totals["skipped"]),
        assumed=round(totals["assumed"]),
        duration_s={
            "mean": share(time_s, evidence.steps.count) if evidence.steps.count else None,
            **durations(execute, instances),
        },
        data_wait_fraction=min(1.0, evidence.steps.wait_fraction) if evidence.steps.count else None,
        first_of_epoch={
            "count": first,
            "wait_s": evidence.steps.first_wait_s,
            "fraction": min(1.0, share(evidence.steps.first_wait_s, time_s)),
        },
        phases=dict(sorted(phases.items(), key=lambda item: -item[1])),
    )


def _fetches(gathered: Gathered) -> dict[str, Any] | None:
    if not gathered.fetch_count:
        return None
    seconds: dict[tuple[str, str, str, str], float] = {}
    for row in gathered.fetch_accounts:
        key = (row["account"], row["device"], row["call"], row["file_system"])
        seconds[key] = seconds.get(key, 0.0) + row["seconds"]
    wall_s = sum(seconds.values())
    return {
        "workers": gathered.evidence.loader.workers,
        "count": round(gathered.fetch_count),
        "mean_s": share(wall_s, gathered.fetch_count) if wall_s else None,
        "wall_s": wall_s,
        "accounts": [
            {
                "account": account,
                "device": device or None,
                "call": call or None,
                "file_system": file_system or None,
                "fraction": share(spent, wall_s),
                "seconds": spent,
            }
            for (account, device, call, file_system), spent in sorted(seconds.items(), key=lambda item: -item[1])
        ],
    }


def _rfc3339(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
