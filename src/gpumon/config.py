"""The settings of a process: arguments over environment over defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

EXPORTS = ("auto", "otlp", "file", "none", "auto+file", "otlp+file")
SPANS = ("default", "all", "none")
OTHER_VARIABLES = (
    "GPUMON_AGENT_SOCKET",
    "GPUMON_JOB_ID",
    "GPUMON_NODE_ID",
    "GPUMON_RUN_ID",
    "GPUMON_SMARTCTL",
    "GPUMON_STATE_DIR",
    "GPUMON_STRICT",
)
"""What is read where it is needed, and is no field of `Config`."""


@dataclass(frozen=True)
class Config:
    """What `gpumon.instrument()` was asked for.

    `GPUMON_<FIELD>` sets a field from the environment, or `OTEL_PYTHON_GPUMON_<FIELD>`, which
    `opentelemetry-instrument` offers as an option.
    """

    service_name: str | None = None
    export: str = "auto"  # EXPORTS
    endpoint: str | None = None
    run_dir: Path | None = None
    data_paths: tuple[str, ...] = ()
    collectors: tuple[str, ...] | None = None  # None: all
    intervals: Mapping[str, float] = field(default_factory=dict)  # collector -> seconds
    spans: str = "default"  # SPANS

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **arguments: Any) -> Config:
        """Build from `GPUMON_*` variables and the arguments that are not None.

        Lists are separated by `os.pathsep` (data_paths) or commas; intervals are `disk=1,host=2`.

        Raises:
            ValueError: a value does not fit; the text names the argument or the variable.
        """
        environment = os.environ if environment is None else environment
        known = {item.name for item in fields(cls)}
        if unknown := set(arguments) - known:
            raise ValueError(f"unknown argument: {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {}
        for name in known:
            given, source = arguments.get(name), name
            for variable in (f"GPUMON_{name.upper()}", f"OTEL_PYTHON_GPUMON_{name.upper()}"):
                if given is None or given == ():
                    given, source = environment.get(variable) or None, variable
            if given is not None:
                values[name] = _parse(name, given, source)
        return cls(**values)


Options: Any = make_dataclass("Options", [(item.name, Any, None) for item in fields(Config)])
"""The same fields, None where nothing is said, for OpenTelemetry's declarative configuration: it passes every
field on, and a default of `Config` would go before the environment."""


def _parse(name: str, value: Any, source: str) -> Any:
    if name == "run_dir":
        return Path(value)
    if name == "data_paths":
        return tuple(str(path) for path in _split(value, os.pathsep))
    if name == "collectors":
        return tuple(str(item) for item in _split(value, ","))
    if name == "intervals":
        return _intervals(value, source)
    if name == "export":
        return _one_of(EXPORTS, _export(value), source)
    if name == "spans":
        return _one_of(SPANS, str(value).lower(), source)
    return str(value)


def _export(value: Any) -> str:
    """`file + otlp` is `otlp+file`: the order says nothing."""
    places = {place.strip() for place in str(value).lower().split("+")}
    return "+".join(sorted(places, key=lambda place: (place == "file", place)))


def _split(value: str | Sequence[Any], separator: str) -> list[Any]:
    if isinstance(value, str | os.PathLike):
        return [item.strip() for item in str(value).split(separator) if item.strip()]
    return list(value)


def _intervals(value: Any, source: str) -> dict[str, float]:
    try:
        pairs = value.items() if isinstance(value, Mapping) else [item.split("=", 1) for item in _split(value, ",")]
        intervals = {str(key).strip(): float(seconds) for key, seconds in pairs}
    except ValueError:
        raise ValueError(f"{source}: expected collector=seconds, got {value!r}") from None
    if any(not 0.05 <= seconds <= 86400 for seconds in intervals.values()):
        raise ValueError(f"{source}: an interval is between 0.05 and 86400 seconds")
    return intervals


def _one_of(allowed: Sequence[str], value: str, source: str) -> str:
    if value not in allowed:
        raise ValueError(f"{source}: expected one of {', '.join(allowed)}, got {value!r}")
    return value
