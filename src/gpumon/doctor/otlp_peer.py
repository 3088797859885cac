"""What listens at an address, by a few bytes of each language: does it listen at all, TLS or not, HTTP/1 or HTTP/2?"""

from __future__ import annotations

import socket
import ssl
from typing import Final, Literal

from gpumon.doctor.otlp_target import Target

Problem = Literal[
    "unknown_name", "refused", "unreachable", "silent", "no_tls", "needs_tls", "certificate", "client_certificate",
    "speaks_grpc", "speaks_http", "other",
]  # fmt: skip

_STEP_S: Final = 2.0
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS
_SETTINGS: Final = 4


def problem_of(target: Target) -> tuple[Problem, str]:
    """(why a request to *target* is not answered, detail); "other" where nothing wrong is found."""
    try:
        socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return "unknown_name", str(getattr(error, "strerror", None) or error)
    try:
        _connect(target).close()
    except ConnectionRefusedError:
        return "refused", ""
    except TimeoutError:
        return "unreachable", f"no answer within {_STEP_S:g} s"
    except OSError as error:
        return "unreachable", str(error.strerror or error)
    is_tls = _speaks_tls(target)
    if target.is_secure and not is_tls:
        return "no_tls", ""
    if is_tls and not target.is_secure:
        return "needs_tls", ""
    if is_tls and (problem := _tls_problem(target)):
        return problem
    wants_grpc = target.protocol == "grpc"
    speaks = _version(target, is_tls)
    if speaks and wants_grpc != (speaks == 2):
        return ("speaks_http" if wants_grpc else "speaks_grpc"), ""
    return "other", ""


def listens(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def names_in_certificate(target: Target) -> list[str]:
    """The names that the receiver's certificate is for, where its authority is trusted."""
    context = _context(target)
    context.check_hostname = False
    try:
        with context.wrap_socket(_connect(target), server_hostname=target.host) as connection:
            told = connection.getpeercert() or {}
    except (OSError, ValueError):
        return []
    entries = [each for each in told.get("subjectAltName", ()) if isinstance(each, tuple) and len(each) == 2]
    return [str(name) for kind, name in entries if kind in ("DNS", "IP Address")]


def _connect(target: Target) -> socket.socket:
    return socket.create_connection((target.host, target.port), timeout=min(_STEP_S, target.timeout_s))


def _speaks_tls(target: Target) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(_connect(target), server_hostname=target.host):
            return True
    except ssl.SSLError as error:  # an alert is TLS too; what is not TLS is no record at all
        return "ALERT" in (error.reason or "")
    except (OSError, ValueError):
        return False


def _context(target: Target) -> ssl.SSLContext:
    """What the exporters trust: the authorities that were named, else requests' own (grpc has the same ones)."""
    import certifi

    context = ssl.create_default_context(cafile=target.authorities or certifi.where())
    if target.certificate:
        context.load_cert_chain(target.certificate, target.key)
    return context


def _tls_problem(target: Target) -> tuple[Problem, str] | None:
    try:
        with _context(target).wrap_socket(_connect(target), server_hostname=target.host) as connection:
            connection.settimeout(0.3)
            connection.recv(1)  # TLS 1.3 says only then that it wants a certificate of ours
    except ssl.SSLCertVerificationError as error:
        return "certificate", error.verify_message
    except ssl.SSLError as error:
        reason = (error.reason or "").replace("_", " ").lower()
        wants_ours = "certificate required" in reason or "handshake failure" in reason or "bad certificate" in reason
        return ("client_certificate", reason) if wants_ours else None
    except (OSError, ValueError):  # it waits for a request, as it should
        return None
    return None


def _version(target: Target, is_tls: bool) -> int:
    """1 or 2, the HTTP that it speaks; 0 where it does not say."""
    if is_tls:
        if target.protocol == "grpc":
            return 2 if _agrees_on(target, "h2") else 1
        return 1 if _agrees_on(target, "http/1.1") else 2 if _agrees_on(target, "h2") else 0
    try:
        with _connect(target) as plain:
            plain.sendall(_PREFACE)
            said = plain.recv(9)
    except (OSError, ValueError):
        return 0
    if said.startswith(b"HTTP/1"):
        return 1
    return 2 if len(said) >= 4 and said[3] == _SETTINGS else 0


def _agrees_on(target: Target, protocol: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    try:
        with context.wrap_socket(_connect(target), server_hostname=target.host) as connection:
            return connection.selected_alpn_protocol() == protocol
    except (OSError, ValueError):
        return False
