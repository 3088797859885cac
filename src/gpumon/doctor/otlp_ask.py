"""Sends an empty OTLP request, which stores nothing, and says how it was answered, or why it was not."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from gpumon.doctor.otlp_peer import Problem, problem_of
from gpumon.doctor.otlp_target import Target, without_password

_SERVICES: Final = {
    "traces": "trace.v1.TraceService",
    "metrics": "metrics.v1.MetricsService",
    "logs": "logs.v1.LogsService",
}
_STATUS_OF: Final = {  # grpc's codes as HTTP's statuses
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "UNIMPLEMENTED": 404,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "INTERNAL": 500,
}


@dataclass(frozen=True)
class Answer:
    """`status` is HTTP's, 0 where there was no answer: then `problem` is the cause."""

    status: int = 0
    detail: str = ""  # what the receiver said of it
    problem: Problem | Literal["address", "proxy", "web_page", "other_signal", ""] = ""
    took_s: float = 0.0
    ahead_s: float | None = None  # of its clock against ours
    location: str = ""  # where it sends us to


def ask(target: Target) -> Answer:
    """Send one empty request."""
    if not target.host or not target.port or not _has_scheme(target):
        return Answer(problem="address")
    if target.other_signal:
        return Answer(problem="other_signal")  # there an empty request is as welcome as here
    began = time.monotonic()
    try:
        return _grpc(target) if target.protocol == "grpc" else _http(target)
    except ImportError as error:  # a package that is missing: another check names it
        return Answer(detail=str(error), took_s=time.monotonic() - began)
    except OSError as error:  # a file with certificates
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return Answer(detail=_clean(told), problem="other", took_s=time.monotonic() - began)
    except ValueError:  # its text would have the header, which is a secret most likely
        return Answer(detail="a header has a character that cannot be sent", problem="other")


def _has_scheme(target: Target) -> bool:
    return target.protocol == "grpc" or target.endpoint.lower().startswith(("http://", "https://"))


def _http(target: Target) -> Answer:
    import requests

    began, began_s = time.monotonic(), time.time()
    certificate: Any = (target.certificate, target.key) if target.certificate and target.key else target.certificate
    headers = {"Content-Type": "application/x-protobuf", "User-Agent": "gpumon-doctor", **dict(target.headers)}
    try:
        with requests.Session() as session:
            settings = session.merge_environment_settings(target.url, {}, None, target.authorities, certificate)
            if target.authorities:
                settings["verify"] = target.authorities
            answer = session.post(
                target.url, data=b"", headers=headers, timeout=target.timeout_s, allow_redirects=False, **settings
            )
    except requests.exceptions.InvalidHeader:
        raise ValueError("header") from None
    except OSError as error:  # requests' exceptions, and files that cannot be read
        return _no_answer(target, error, _proxy(target), time.monotonic() - began)
    took_s = time.monotonic() - began
    ahead = None
    if date := answer.headers.get("Date"):
        try:
            ahead = parsedate_to_datetime(date).timestamp() + 0.5 - (began_s + took_s / 2)  # it has whole seconds
        except ValueError:
            ahead = None
    detail = answer.content[:200].decode("utf-8", "replace")
    if answer.status_code == 400 and "HTTPS server" in detail + answer.reason:
        return Answer(problem="needs_tls", took_s=took_s)
    if answer.ok and answer.headers.get("Content-Type", "").lower().startswith("text/html"):
        return Answer(problem="web_page", took_s=took_s)  # Jaeger's user interface has one for every path
    return Answer(answer.status_code, _clean(detail), "", took_s, ahead, answer.headers.get("Location", ""))


def _proxy(target: Target) -> str:
    """The proxy that a request would go through; empty without one."""
    from requests.utils import get_environ_proxies, select_proxy

    return select_proxy(target.url, get_environ_proxies(target.url)) or ""


def _no_answer(target: Target, error: OSError, proxy: str, took_s: float) -> Answer:
    import requests

    told = _clean(str(_root(error)))
    if proxy:
        return Answer(detail=f"{without_password(proxy)}: {told}", problem="proxy", took_s=took_s)
    problem, detail = problem_of(target)
    if problem == "other" and isinstance(error, requests.exceptions.ReadTimeout):
        return Answer(problem="silent", took_s=took_s)
    return Answer(detail=detail or told, problem=problem, took_s=took_s)


def _root(error: BaseException) -> BaseException:
    """The exception that the others were made of."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _grpc(target: Target) -> Answer:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it prints to stderr what its error says again
    import grpc

    began = time.monotonic()
    name = f"{f'[{target.host}]' if ':' in target.host else target.host}:{target.port}"
    if target.is_secure:
        files = (target.authorities, target.key, target.certificate)
        authority, key, chain = (_bytes(file) for file in files)
        pair = (key, chain) if key and chain else (None, None)
        channel = grpc.secure_channel(name, grpc.ssl_channel_credentials(authority, *pair))
    else:
        channel = grpc.insecure_channel(name)
    method = f"/opentelemetry.proto.collector.{_SERVICES[target.signal]}/Export"
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    headers = tuple((key.lower(), value) for key, value in target.headers)
    try:
        call(b"", timeout=target.timeout_s, metadata=headers)
        return Answer(200, took_s=time.monotonic() - began)
    except grpc.RpcError as error:
        return _grpc_problem(target, error, time.monotonic() - began)
    finally:
        channel.close()


def _grpc_problem(target: Target, error: Any, took_s: float) -> Answer:
    code, detail = error.code().name, _clean(error.details() or "")
    if "http2 header with status" in detail or "content-type" in detail:
        return Answer(problem="speaks_http", took_s=took_s)
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"):
        problem, why = problem_of(target)
        if problem != "other":
            return Answer(detail=why, problem=problem, took_s=took_s)
        if code == "DEADLINE_EXCEEDED":
            return Answer(problem="silent", took_s=took_s)
    if (status := _STATUS_OF.get(code)) is None:
        return Answer(detail=f"{code}: {detail}", problem="other", took_s=took_s)
    return Answer(status, detail, took_s=took_s)


def _bytes(file: str | None) -> bytes | None:
    if not file:
        return None
    with open(file, "rb") as opened:
        return opened.read()


def _clean(text: str) -> str:
    """One line of what somebody else's program says."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:120]
