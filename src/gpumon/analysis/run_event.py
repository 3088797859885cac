"""What `run.json` says of a run, as an event among its logs: so a run that was exported keeps its start, end and exit.

`gpumon export` writes it, and reports read it where there is no `run.json`: in a Collector's file, in ClickHouse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gpumon.analysis.source import Execute
from gpumon.metrics import SCOPE
from gpumon.telemetry.otlp_json import attributes
from gpumon.version import __version__

RUN_EVENT = "gpumon.run"
_FACTS = ("schema", "id", "service", "started", "ended", "host", "exit_code", "signal", "dropped", "not_recorded")
"""Not the command: its arguments are nobody's business but the recording machine's."""


def event_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a logs file with the event of *info*, a `run.json`; empty where that says nothing."""
    started, ended = unix_s(info.get("started")), unix_s(info.get("ended"))
    if not info.get("id") or started is None:
        return {}
    told = {"service.name": info.get("service"), "host.name": info.get("host"), "gpumon.run.id": info["id"]}
    body = json.dumps({name: info[name] for name in _FACTS if name in info}, ensure_ascii=False)
    record = {
        "timeUnixNano": str(round((ended or started) * 1e9)),
        "severityNumber": 9,
        "body": {"stringValue": body},
        "eventName": RUN_EVENT,
    }
    resource = {"attributes": attributes({name: value for name, value in told.items() if value})}
    scope = {"name": SCOPE, "version": __version__}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": [record]}]}]}


def run_event(execute: Execute) -> dict[str, Any]:
    """What the last such event says; empty where there is none, or where it is not of the one run that there is."""
    row = execute(
        f"""select "Body" from otel_logs where "EventName" = '{RUN_EVENT}' order by "Timestamp" desc limit 1"""
    ).fetchone()
    try:
        info = json.loads(row[0]) if row else {}
    except ValueError:
        return {}
    ids = {run_id for (run_id,) in execute("select distinct run_id from stg_windows").fetchall() if run_id}
    return info if isinstance(info, dict) and ids <= {info.get("id")} else {}


def unix_s(text: Any) -> float | None:
    """Seconds since 1970 of an RFC 3339 time; None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
