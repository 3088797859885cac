"""Events: log records with a name."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from opentelemetry import _logs
from opentelemetry.sdk import _logs as sdk_logs

from gpumon.metrics import Attributes

_LogRecord: Any = getattr(sdk_logs, "LogRecord", _logs.LogRecord)
"""Exporters of an SDK before 1.39 take records of the SDK's own only, and ask them for the resource."""


def emit(
    target: Any,
    name: str,
    body: str,
    attributes: Attributes,
    *,
    time_ns: int | None = None,
    is_warning: bool = False,
) -> None:
    """Emit an event of now or of *time_ns* to a logger; nothing before OpenTelemetry 1.35."""
    with suppress(TypeError):
        record = _LogRecord(
            timestamp=time_ns or time.time_ns(),
            severity_number=_logs.SeverityNumber.WARN if is_warning else _logs.SeverityNumber.INFO,
            body=body,
            attributes=dict(attributes),
            event_name=name,
        )
        if _LogRecord is not _logs.LogRecord and hasattr(target, "resource"):
            record.resource = target.resource
        target.emit(record)
