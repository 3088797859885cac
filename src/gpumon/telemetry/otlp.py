"""OpenTelemetry's own OTLP exporters, set up as `OTEL_EXPORTER_OTLP_*` say.

The exporters read most of those variables themselves. Read here, for both protocols and any version, is what
they read differently or not at all:

- `…_PROTOCOL`: which exporter it is, is for the caller to say;
- over grpc `…_COMPRESSION=none` is an error there, client certificates need a CA file of the same signal, a
  file that is missing is a traceback, and a key without its certificate ends the process;
- over http `REQUESTS_CA_BUNDLE` goes before `…_CERTIFICATE`;
- `…_TIMEOUT`: their default is 10 s, ours is `TIMEOUT_S`. The number is in seconds, as in all of
  OpenTelemetry's Python, where the specification has milliseconds.

Each variable may name a signal (`OTEL_EXPORTER_OTLP_TRACES_…`), which goes before the general one.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
PROTOCOLS = ("http/protobuf", "grpc")
_CLASSES = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}
_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000))
"""A channel waits up to two minutes before it tries to connect again: a receiver that is back is not seen for that
long, by new channels neither. Our own exports come once a second at most."""
FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")


def named(endpoint: str | None) -> bool:
    """Whether an OTLP receiver was named, by argument or by `OTEL_EXPORTER_OTLP_*ENDPOINT`."""
    return bool(endpoint) or any(setting(signal, "ENDPOINT") for signal in _CLASSES)


def place(endpoint: str | None) -> str:
    """The receiver's address, for messages: one for all signals, or one for each."""
    places = [endpoint_of(signal, endpoint) for signal in _CLASSES]
    return " and ".join(dict.fromkeys(places))


def exporter(signal: str, endpoint: str | None) -> Any:
    """The exporter of *signal*; a setting that makes no sense is a warning, and its default holds."""
    protocol = protocol_of(signal)
    module, name = _CLASSES[signal]
    kind = "grpc" if protocol == "grpc" else "http"
    create = getattr(importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.{module}"), name)
    files = files_of(signal)
    settings = _grpc(signal, endpoint, files) if kind == "grpc" else _http(signal, endpoint, files)
    return create(timeout=timeout_of(signal), **settings)


def setting(signal: str, name: str) -> str | None:
    """`OTEL_EXPORTER_OTLP_<SIGNAL>_<NAME>`, else `OTEL_EXPORTER_OTLP_<NAME>`; empty is not set."""
    return os.environ.get(_variable(signal, name), "").strip() or None


def _variable(signal: str, name: str) -> str:
    """The variable that says *name* for *signal*."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"
    return own if os.environ.get(own) else f"OTEL_EXPORTER_OTLP_{name}"


def protocol_of(signal: str) -> str:
    protocol = (setting(signal, "PROTOCOL") or PROTOCOLS[0]).strip().lower()
    if protocol in PROTOCOLS:
        return protocol
    _ignored(signal, "PROTOCOL", f"expected {' or '.join(PROTOCOLS)}; {PROTOCOLS[0]} is used")
    return PROTOCOLS[0]


def endpoint_of(signal: str, given: str | None) -> str:
    is_grpc = (setting(signal, "PROTOCOL") or "").strip().lower() == "grpc"
    return given or setting(signal, "ENDPOINT") or f"http://localhost:{4317 if is_grpc else 4318}"


def timeout_of(signal: str, default: float = TIMEOUT_S) -> float:
    text = setting(signal, "TIMEOUT")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if 0 < seconds < math.inf:
        return seconds
    _ignored(signal, "TIMEOUT", f"expected seconds; {default:g} is used")
    return default


def compression_of(signal: str, known: tuple[str, ...]) -> str:
    compression = (setting(signal, "COMPRESSION") or "none").strip().lower()
    if compression in known:
        return compression
    _ignored(signal, "COMPRESSION", f"expected {' or '.join(known)}; none is used")
    return "none"


def files_of(signal: str) -> dict[str, Path | None]:
    files = {name: _file(signal, name) for name in FILES}
    # Over http both may be in one file. Over grpc half a pair is the end of the process: grpc aborts it.
    for half, other in (("CLIENT_KEY", "CLIENT_CERTIFICATE"), ("CLIENT_CERTIFICATE", "CLIENT_KEY")):
        is_one_file = half == "CLIENT_CERTIFICATE" and protocol_of(signal) != "grpc"
        if files[half] and not files[other] and not is_one_file:
            _ignored(signal, half, f"there is no {_variable(signal, other)} with it")
            files[half] = None
    return files


def _file(signal: str, name: str) -> Path | None:
    text = setting(signal, name)
    if text is None or os.access(text, os.R_OK):
        return Path(text) if text else None
    _ignored(signal, name, "the file cannot be read")
    return None


def _ignored(signal: str, name: str, why: str) -> None:
    _warn(_variable(signal, name), setting(signal, name), why)


@lru_cache  # one warning, though three signals ask
def _warn(variable: str, value: str | None, why: str) -> None:
    logger.warning("%s=%r: %s", variable, value, why)


def _http(signal: str, endpoint: str | None, files: dict[str, Path | None]) -> dict[str, Any]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    given = {"certificate_file": "CERTIFICATE", "client_key_file": "CLIENT_KEY"}
    given["client_certificate_file"] = "CLIENT_CERTIFICATE"
    settings: dict[str, Any] = {argument: str(files[name]) for argument, name in given.items() if files[name]}
    if files["CERTIFICATE"] and not any(name.endswith("_CREDENTIAL_PROVIDER") for name in os.environ):
        settings["session"] = session_with(str(files["CERTIFICATE"]))
    settings["compression"] = Compression(compression_of(signal, ("gzip", "deflate", "none")))
    if endpoint:  # an endpoint given in code is the full address of one signal
        settings["endpoint"] = f"{endpoint.rstrip('/')}/v1/{signal}"
    return settings


def is_insecure(signal: str, target: str) -> bool:
    """Whether *target* is spoken to over grpc without TLS."""
    scheme = urlsplit(target).scheme
    return scheme == "http" or (scheme != "https" and (setting(signal, "INSECURE") or "").lower() == "true")


def session_with(authorities: str) -> Any:
    """A session that trusts *authorities*: `requests` would let its own variables go before that."""
    requests: Any = importlib.import_module("requests")  # it has no types
    session = requests.Session()
    merge = session.merge_environment_settings
    session.merge_environment_settings = lambda url, proxies, stream, _, cert: merge(
        url, proxies, stream, authorities, cert
    )
    return session


def _grpc(signal: str, endpoint: str | None, files: dict[str, Path | None]) -> dict[str, Any]:
    grpc: Any = importlib.import_module("grpc")  # it has no types
    target = endpoint_of(signal, endpoint)
    insecure = is_insecure(signal, target)
    gzip = compression_of(signal, ("gzip", "none")) == "gzip"
    settings: dict[str, Any] = {
        "endpoint": target,
        "insecure": insecure,
        "compression": grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression,
        "channel_options": _RECONNECT,
    }
    if not insecure and any(files.values()):
        authority, key, chain = (file.read_bytes() if file else None for file in files.values())
        settings["credentials"] = grpc.ssl_channel_credentials(authority, key, chain)
    return settings
