"""Settings that keep recordings out or make no sense, and the packages that they need."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from gpumon.config import OTHER_VARIABLES, Config
from gpumon.doctor.check import Result, failed, ok, warning
from gpumon.doctor.otlp_target import PROTOCOLS, SIGNALS, parse_headers, setting, targets
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import export, pip_install

_PACKAGES: Final = {
    "http/protobuf": (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        "opentelemetry-exporter-otlp-proto-http",
    ),
    "grpc": ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", "opentelemetry-exporter-otlp-proto-grpc"),
}
_EXPORTERS: Final = {  # entry point -> distribution
    "otlp": "opentelemetry-exporter-otlp",
    "otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "otlp_json_file": "opentelemetry-exporter-otlp-json-file",
    "prometheus": "opentelemetry-exporter-prometheus",
    "prometheus_remote_write": "opentelemetry-exporter-prometheus-remote-write",
    "zipkin": "opentelemetry-exporter-zipkin",
    "zipkin_json": "opentelemetry-exporter-zipkin-json",
    "zipkin_proto": "opentelemetry-exporter-zipkin-proto-http",
}
_FIELDS: Final = tuple(f"GPUMON_{item.name.upper()}" for item in fields(Config))
_KNOWN: Final = (*_FIELDS, *(f"OTEL_PYTHON_{name}" for name in _FIELDS), *OTHER_VARIABLES)
_NOT_OURS: Final = re.compile(
    "GPUMON_GID"  # of the compose files
    r"|\w+_SERVICE_(HOST|PORT)(_\w+)?|\w+_PORT(_\d+_\w+)?"  # of Kubernetes, in every pod beside a service gpumon-…
)
_FILES: Final = ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
_IN_MILLISECONDS: Final = 1000.0


def settings(place: Place) -> Iterator[Result]:
    """`GPUMON_*` and `OTEL_*`."""
    found = [
        *_misspelt(place),
        *_ours(place),
        *_switched_off(place),
        *_exporters(place),
        *_otlp(place),
        *_headers(place),
    ]
    yield from found
    if not found:
        names = sorted(name for name in place.environment if name.startswith(("GPUMON_", "OTEL_")))
        few = ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
        yield ok(f"{few}: understood" if names else "no GPUMON_* or OTEL_* variable is set")


def _misspelt(place: Place) -> Iterator[Result]:
    for name in sorted(place.environment):
        prefix, _, own = name.partition("GPUMON_")
        if prefix not in ("", "OTEL_PYTHON_") or not own or name in _KNOWN or _NOT_OURS.fullmatch(name):
            continue
        ours = [known.removeprefix("GPUMON_") for known in _KNOWN if known.startswith("GPUMON_")]
        right = [f"GPUMON_{close}" for close in difflib.get_close_matches(own, ours, 1, 0.7)]
        text = f"{name}: there is no such setting{f'; {right[0]} is meant?' if right else ''}"
        moved = f'export {right[0]}="${name}"; ' if right else ""  # its value may be a secret
        yield warning(text, f"{moved}unset {name}")


def _ours(place: Place) -> Iterator[Result]:
    try:
        config = Config.load(place.environment)
    except ValueError as error:
        yield failed(str(error), f"unset {str(error).partition(':')[0]}")
        return
    if config.export == "none":
        yield warning("GPUMON_EXPORT=none: nothing is recorded", "unset GPUMON_EXPORT")
    yield from _collectors("GPUMON_COLLECTORS", {name: name for name in config.collectors or ()})
    intervals = {name: f"{name}={seconds:g}" for name, seconds in config.intervals.items()}
    yield from _collectors("GPUMON_INTERVALS", intervals)


def _collectors(variable: str, entries: Mapping[str, str]) -> Iterator[Result]:
    """*entries*: what was said of each collector, by its name."""
    from gpumon.collectors.base import registered

    if unknown := [name for name in entries if name not in registered()]:
        known = [entry for name, entry in entries.items() if name not in unknown]
        repair = export(variable, ",".join(known)) if known else f"unset {variable}"
        yield failed(f"{variable}: there is no collector {', '.join(unknown)}", repair)


def _switched_off(place: Place) -> Iterator[Result]:
    environment = place.environment
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield warning("OTEL_SDK_DISABLED=true: nothing is recorded", "unset OTEL_SDK_DISABLED")
    if environment.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none":
        yield warning("OTEL_METRICS_EXPORTER=none: a run has no metrics, and no report", "unset OTEL_METRICS_EXPORTER")
    disabled = environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    if {"gpumon", "*"} & {name.strip() for name in disabled.split(",")}:
        text = f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={disabled}: `opentelemetry-instrument` leaves gpumon out"
        yield warning(text, "unset OTEL_PYTHON_DISABLED_INSTRUMENTATIONS")


def _exporters(place: Place) -> Iterator[Result]:
    """Names that `opentelemetry-instrument` has to find a package for."""
    for signal in SIGNALS:
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        known = {entry.name for entry in entry_points(group=f"opentelemetry_{signal}_exporter")} | {"none", "console"}
        for name in (name.strip() for name in place.environment.get(variable, "").split(",")):
            if not name or name.lower() in known or name in known:
                continue
            package = _EXPORTERS.get(name.lower())
            what = "is not installed" if package else "is no exporter"
            repair = pip_install(package) if package else export(variable, "otlp")
            yield failed(f"{variable}={name}: {what}", repair)


def _otlp(place: Place) -> Iterator[Result]:
    environment = place.environment
    seen: set[str] = set()
    for signal in SIGNALS:
        protocol, variable = setting(environment, signal, "PROTOCOL")
        if protocol and protocol.lower() not in PROTOCOLS and variable not in seen:
            text = f"{variable}={protocol} is neither {PROTOCOLS[0]} nor grpc: {PROTOCOLS[0]} is used"
            yield warning(text, export(variable, PROTOCOLS[0]))
        seen.add(variable)
        for name in _FILES:
            file, variable = setting(environment, signal, name)
            if file and variable not in seen and (problem := _unreadable(file)):
                yield failed(f"{variable}={file}: {problem}", export(variable, f"/path/to/{Path(file).name}"))
            seen.add(variable)
        seconds, variable = setting(environment, signal, "TIMEOUT")
        if seconds and variable not in seen:
            yield from _timeout(variable, seconds)
        seen.add(variable)
    used = {protocol.lower() for signal in SIGNALS if (protocol := setting(environment, signal, "PROTOCOL")[0])}
    used |= {target.protocol for target in targets(environment)}
    for protocol in sorted(used & set(PROTOCOLS)):
        module, package = _PACKAGES[protocol]
        try:
            import_module(module)
        except Exception as error:  # noqa: BLE001 - a package that is there and broken raises what it likes
            told = " ".join(f"{error}".split())
            yield failed(f"the exporter for {protocol} cannot be imported ({told})", pip_install(package, "--upgrade"))


def _unreadable(file: str) -> str:
    try:
        with open(file, "rb"):
            return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _timeout(variable: str, text: str) -> Iterator[Result]:
    try:
        seconds = float(text)
    except ValueError:
        yield warning(f"{variable}={text} is no number of seconds: the default is used", f"unset {variable}")
        return
    if not 0 < seconds < math.inf:
        yield warning(f"{variable}={text} is no time to wait: the default is used", f"unset {variable}")
    elif seconds >= _IN_MILLISECONDS:
        right = export(variable, f"{seconds / 1000:g}")
        yield warning(f"{variable}={text}: seconds in OpenTelemetry's Python, not milliseconds", right)


def _headers(place: Place) -> Iterator[Result]:
    """What is no key=value is dropped by the exporters, with no more than a line in a log."""
    seen = set()
    for signal in SIGNALS:
        text, variable = setting(place.environment, signal, "HEADERS")
        if not text or variable in seen:
            continue
        seen.add(variable)
        entries = [entry for entry in text.split(",") if entry.strip()]
        if odd := [
            number
            for number, entry in enumerate(entries, 1)
            for value in dict(parse_headers(entry)).values()
            if not value.isprintable() or not value.isascii()
        ]:
            told = f"{variable}: entry {odd[0]} has a character that no header may have: nothing is sent"
            yield failed(told, export(variable, "authorization=Bearer%20TOKEN"))
        if bad := [number for number, entry in enumerate(entries, 1) if not parse_headers(entry)]:
            # What it says is a secret, most likely: only its place is told.
            told = f"{variable}: entry {bad[0]} is no key=value with the value URL-encoded, and is not sent"
            yield failed(told, export(variable, "authorization=Bearer%20TOKEN"))
