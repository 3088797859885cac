"""Sends OTLP requests and reads what the receiver says of them; `OTEL_EXPORTER_OTLP_*` hold as for the exporters."""

from __future__ import annotations

import gzip
import importlib
import random
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gpumon.telemetry import otlp
from gpumon.telemetry.otlp_requests import response_class, service_name

TIMEOUT_S = 10.0
GIVE_UP_S = 60.0
"""So long a request is sent again where the receiver says that it may be, or says nothing."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 10.0
_TRANSIENT = (429, 502, 503, 504)
_TRANSIENT_CODES = (
    "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED",
)  # fmt: skip
_OF_BATCH = (400, 413)
"""What is wrong with one request, not with all of them."""
_OF_BATCH_CODES = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "INTERNAL")
_REJECTED = {"traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records"}


class Refused(Exception):
    """The receiver does not take a request; `is_final`: it will take none of this signal.

    `is_absent`: it was asked again and again, and there was no answer, or that it cannot now.
    """

    def __init__(self, why: str, *, is_final: bool, is_absent: bool = False) -> None:
        super().__init__(why)
        self.is_final, self.is_absent = is_final, is_absent


class _Transient(Exception):
    """It may take the same request later."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


@dataclass(frozen=True)
class Taken:
    """What became of a request: how many items of it were rejected, and why."""

    rejected: int = 0
    why: str = ""


class OtlpClient:
    """One signal's way to a receiver, over http/protobuf or grpc."""

    def __init__(self, signal: str, endpoint: str, give_up_s: float = GIVE_UP_S) -> None:
        self._signal = signal
        self._give_up_s = give_up_s
        send = _Grpc(signal, endpoint) if otlp.protocol_of(signal) == "grpc" else _Http(signal, endpoint)
        self._send: Callable[[bytes], bytes] = send
        self.close: Callable[[], None] = send.close

    def send(self, request: Any) -> Taken:
        """Deliver one request, again and again for some time where that may help.

        Raises:
            Refused: it was not taken.
        """
        body, deadline, delay = request.SerializeToString(), time.monotonic() + self._give_up_s, _FIRST_DELAY_S
        while True:
            try:
                return self._taken(self._send(body))
            except _Transient as error:
                wait = error.after_s if error.after_s is not None else delay * random.uniform(0.8, 1.2)
                if time.monotonic() + wait > deadline:
                    tried = f", tried for {self._give_up_s:.0f} s" if self._give_up_s >= 1 else ""
                    raise Refused(f"{error}{tried}", is_final=True, is_absent=True) from None
                time.sleep(wait)
                delay = min(2 * delay, _LONGEST_DELAY_S)

    def _taken(self, answer: bytes) -> Taken:
        decoded = _decoded(response_class(self._signal), answer)
        if decoded is None:  # some receivers answer with something else
            return Taken()
        partial = decoded.partial_success
        return Taken(getattr(partial, _REJECTED[self._signal]), _line(partial.error_message))


class _Http:
    def __init__(self, signal: str, endpoint: str) -> None:
        requests: Any = importlib.import_module("requests")  # it has no types
        self._errors = requests.exceptions
        files = otlp.files_of(signal)
        authority, key, chain = (str(files[name]) if files[name] else None for name in otlp.FILES)
        self._session = otlp.session_with(authority) if authority else requests.Session()
        if chain:
            self._session.cert = (chain, key) if key else chain
        self._url = f"{endpoint.rstrip('/')}/v1/{signal}"
        self._compression = otlp.compression_of(signal, ("gzip", "deflate", "none"))
        self._timeout_s = otlp.timeout_of(signal, TIMEOUT_S)
        self._session.headers.update({"Content-Type": "application/x-protobuf", "User-Agent": "gpumon"})
        if self._compression != "none":
            self._session.headers["Content-Encoding"] = self._compression
        self._session.headers.update(_headers(signal))

    def __call__(self, body: bytes) -> bytes:
        pack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
        packed = pack.get(self._compression, bytes)(body)
        try:
            answer = self._session.post(self._url, packed, timeout=self._timeout_s, allow_redirects=False)
        except (self._errors.ConnectionError, self._errors.Timeout) as error:
            raise _Transient(_line(_root(error))) from None
        except (self._errors.RequestException, OSError) as error:
            raise Refused(_line(_root(error)), is_final=True) from None
        status = answer.status_code
        if 200 <= status < 300:
            content: bytes = answer.content
            return content
        why = f"{status} {answer.reason}: {_said(answer.content)}".rstrip(": ")
        if status in _TRANSIENT:
            raise _Transient(why, _seconds(answer.headers.get("Retry-After")))
        raise Refused(why, is_final=status not in _OF_BATCH)

    def close(self) -> None:
        self._session.close()


class _Grpc:
    def __init__(self, signal: str, endpoint: str) -> None:
        grpc: Any = importlib.import_module("grpc")  # it has no types
        self._error = grpc.RpcError
        parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
        if otlp.is_insecure(signal, endpoint):
            self._channel = grpc.insecure_channel(parts.netloc)
        else:
            files = otlp.files_of(signal)
            authority, key, chain = (file.read_bytes() if file else None for file in files.values())
            self._channel = grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials(authority, key, chain))
        self._call = self._channel.unary_unary(
            service_name(signal), request_serializer=bytes, response_deserializer=bytes
        )
        self._metadata = tuple((name.lower(), value) for name, value in _headers(signal).items())
        gzipped = otlp.compression_of(signal, ("gzip", "none")) == "gzip"
        self._compression = grpc.Compression.Gzip if gzipped else grpc.Compression.NoCompression
        self._timeout_s = otlp.timeout_of(signal, TIMEOUT_S)

    def __call__(self, body: bytes) -> bytes:
        try:
            answer: bytes = self._call(
                body, timeout=self._timeout_s, metadata=self._metadata, compression=self._compression
            )
            return answer
        except self._error as error:
            code, why = error.code().name, _line(error.details() or "")
            if code in _TRANSIENT_CODES and "larger than max" not in why:
                raise _Transient(f"{code}: {why}") from None
            raise Refused(f"{code}: {why}", is_final=code not in _OF_BATCH_CODES) from None

    def close(self) -> None:
        self._channel.close()


def _headers(signal: str) -> dict[str, str]:
    from opentelemetry.util.re import parse_env_headers

    return dict(parse_env_headers(otlp.setting(signal, "HEADERS") or "", liberal=True))


def _said(content: bytes) -> str:
    """The text of an error: google.rpc.Status, as the protocol has it, or whatever else it is."""
    with suppress(ImportError):
        status: Any = importlib.import_module("google.rpc.status_pb2")  # it has no types
        decoded = _decoded(status.Status, content)
        if decoded is not None and decoded.message:
            return _each_once(decoded.message)
    return _each_once(content[:10_000].decode("utf-8", "replace"))


def _each_once(text: str) -> str:
    """Prometheus says the same of every sample."""
    return _line(" ".join(dict.fromkeys(text.splitlines())))


def _decoded(message_class: Any, content: bytes) -> Any:
    """A protobuf message; None where it is none."""
    from google.protobuf.message import DecodeError

    try:
        return message_class.FromString(content)
    except DecodeError:
        return None


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None  # a date: our own delay will do


def _root(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(getattr(error, "strerror", None) or error)


def _line(text: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:300]
