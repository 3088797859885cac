"""Where each signal is to be sent, as `OTEL_EXPORTER_OTLP_*` and `GPUMON_ENDPOINT` say."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

SIGNALS: Final = ("traces", "metrics", "logs")
PROTOCOLS: Final = ("http/protobuf", "grpc")
DEFAULT_TIMEOUT_S: Final = 2.0
_LONGEST_S: Final = 5.0  # what somebody waits for here, whatever a training would


@dataclass(frozen=True)
class Target:
    """The receiver of one signal."""

    signal: str
    protocol: str  # PROTOCOLS
    endpoint: str  # as somebody set it
    variable: str  # which variable set it
    url: str  # what is asked: over http with the signal's path
    headers: tuple[tuple[str, str], ...] = ()
    is_secure: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    authorities: str | None = None  # files
    certificate: str | None = None
    key: str | None = None

    @property
    def shown(self) -> str:
        """The endpoint as it may be printed: without a password in it."""
        return without_password(self.endpoint)

    @property
    def parts(self) -> SplitResult:
        return _split(self.url)

    @property
    def host(self) -> str:
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        """Its port; 0 where what stands there is none."""
        try:
            return self.parts.port or (443 if self.is_secure else 80)
        except ValueError:
            return 0

    @property
    def is_own(self) -> bool:
        """Whether the endpoint is this signal's own: then it is the whole address."""
        return self.variable == f"OTEL_EXPORTER_OTLP_{self.signal.upper()}_ENDPOINT"

    @property
    def other_signal(self) -> str:
        """The signal whose path was given for this one, or empty."""
        last = self.parts.path.rstrip("/").rpartition("/v1/")[2]
        return last if self.is_own and self.protocol != "grpc" and last in SIGNALS and last != self.signal else ""

    def at(self, *, scheme: str = "", host: str = "", port: int = 0, path: str | None = None) -> str:
        """The endpoint with something else in its place."""
        scheme = scheme or ("https" if self.is_secure else "http")
        host = host or self.host
        host = f"[{host}]" if ":" in host else host
        given = _split(self.endpoint).path
        return f"{scheme}://{host}:{port or self.port}{given if path is None else path}"


def setting(environment: Mapping[str, str], signal: str, name: str) -> tuple[str, str]:
    """(value, variable) of a setting: the signal's own goes before the general one; ("", …) where none is set."""
    own, general = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    variable = own if environment.get(own) else general
    return (environment.get(variable) or "").strip(), variable


def targets(environment: Mapping[str, str]) -> Iterator[Target]:
    """Of every signal that is sent somewhere; none where no endpoint was named."""
    everywhere = environment.get("GPUMON_ENDPOINT") or environment.get("OTEL_PYTHON_GPUMON_ENDPOINT") or ""
    for signal in SIGNALS:
        if environment.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none":
            continue
        endpoint, variable = setting(environment, signal, "ENDPOINT")
        if everywhere:
            endpoint, variable = everywhere, "GPUMON_ENDPOINT"
        if endpoint:
            yield _target(environment, signal, endpoint, variable)


def _target(environment: Mapping[str, str], signal: str, endpoint: str, variable: str) -> Target:
    protocol = setting(environment, signal, "PROTOCOL")[0].lower()
    protocol = protocol if protocol in PROTOCOLS else PROTOCOLS[0]
    url = endpoint
    if protocol != "grpc" and variable != f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT":
        url = f"{endpoint.rstrip('/')}/v1/{signal}"
    scheme = endpoint.partition("://")[0].lower() if "://" in endpoint else ""
    insecure = setting(environment, signal, "INSECURE")[0].lower() == "true"
    is_secure = scheme == "https" or (protocol == "grpc" and scheme != "http" and not insecure)
    files = (
        setting(environment, signal, name)[0] or None for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    )
    authorities, certificate, key = files
    headers = parse_headers(setting(environment, signal, "HEADERS")[0])
    return Target(
        signal,
        protocol,
        endpoint,
        variable,
        url,
        tuple(headers.items()),
        is_secure,
        min(timeout_s(setting(environment, signal, "TIMEOUT")[0]), _LONGEST_S),
        authorities,
        certificate,
        key,
    )


def timeout_s(text: str) -> float:
    try:
        return max(0.1, float(text)) if text else DEFAULT_TIMEOUT_S
    except ValueError:
        return DEFAULT_TIMEOUT_S


def parse_headers(text: str) -> dict[str, str]:
    """Headers as the exporters take them; what they drop they would print, secrets and all."""
    from opentelemetry.util.re import parse_env_headers

    logger = logging.getLogger("opentelemetry.util.re")
    logger.addFilter(_drop)
    try:
        return dict(parse_env_headers(text, liberal=True))
    finally:
        logger.removeFilter(_drop)


def _drop(_record: logging.LogRecord) -> bool:
    return False


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url if "://" in url else f"//{url}")
    except ValueError:  # brackets that are no address
        return urlsplit("")


def without_password(url: str) -> str:
    return re.sub(r"^((?:[a-z][a-z0-9+.-]*:)?//)?[^?#\s]*@", lambda found: found[1] or "", url, flags=re.IGNORECASE)
