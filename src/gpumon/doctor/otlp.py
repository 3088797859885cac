"""The OTLP receiver: reachable and answering, for every signal; else the reason and the setting that repairs it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gpumon import units
from gpumon.doctor.check import Repair, Result, absent, failed, ok, warning
from gpumon.doctor.otlp_ask import Answer, ask
from gpumon.doctor.otlp_peer import listens, names_in_certificate
from gpumon.doctor.otlp_target import SIGNALS, Target, targets, without_password
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import export
from gpumon.doctor.runner import at_once

_LIMIT_S: Final = 14.0
_OTHER_PORT: Final = {4318: (4317, "grpc"), 4317: (4318, "http/protobuf")}
_PROMETHEUS: Final = 9090
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_SERVICES: Final = ("otelcol-contrib", "otelcol", "opentelemetry-collector")


def otlp(place: Place) -> Iterator[Result]:
    """Send an empty request to the receiver of each signal."""
    asked = list(targets(place.environment))
    if not asked:
        yield absent("no endpoint is set: runs are recorded to files")
        return
    answers = list(zip(asked, at_once(ask, asked, _LIMIT_S, Answer(problem="silent")), strict=True))
    taken = [(target, answer) for target, answer in answers if 200 <= answer.status < 300]
    for endpoint in dict.fromkeys(target.endpoint for target, _ in taken):
        yield _answered([pair for pair in taken if pair[0].endpoint == endpoint])
    repairs = set()
    for target, answer in answers:
        if (target, answer) not in taken:
            beside = [other.signal for other, _ in taken if (other.host, other.port) == (target.host, target.port)]
            result = of_answer(place, target, answer, beside)
            if result.repair not in repairs:  # one line for what one command repairs
                repairs.add(result.repair)
                yield result


def _answered(taken: Sequence[tuple[Target, Answer]]) -> Result:
    target = taken[0][0]
    slowest = units.duration(max(answer.took_s for _, answer in taken))
    how = " (grpc)" if target.protocol == "grpc" else ""
    signals = [each.signal for each, _ in taken]
    which = "" if len(signals) == len(SIGNALS) else f" for {' and '.join(signals)}"
    return ok(f"{target.shown} answered in {slowest}{how}{which}")


def of_answer(place: Place, target: Target, answer: Answer, taken: Sequence[str]) -> Result:
    """What an answer that is no means; *taken*: the signals that this receiver takes."""
    if answer.status:
        return _of_status(target, answer, taken)
    return _CAUSES.get(answer.problem, _other)(place, target, answer)


# -- no answer -------------------------------------------------------------------------------------------


def _address(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.variable}={target.shown!r} is no address (http://host:port)"
    host, port = target.host or "localhost", target.port
    port = port if port not in (0, 80, 443) else 4317 if target.protocol == "grpc" else 4318
    return failed(text, export(target.variable, f"http://{host}:{port}"))


def _unknown_name(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: the name {target.host!r} is not known ({answer.detail})"
    if place.container in ("docker", "podman") and "." not in target.host:
        text += ": this container is in another network than the receiver"
        tool = "podman" if place.container == "podman" else "docker"
        return failed(
            text, Repair(f"{tool} network connect NETWORK $HOSTNAME".replace("$HOSTNAME", _hostname()), "host")
        )
    return failed(text, export(target.variable, target.at(host="COLLECTOR")))


def _hostname() -> str:
    import socket

    return socket.gethostname()


def _refused(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: connection refused, nothing listens there"
    port, protocol = _OTHER_PORT.get(target.port, (0, ""))
    if port and listens(target.host, port):
        address = export(target.variable, target.at(port=port)).removeprefix("export ")
        command = f"export {_protocol_variable(target)}={protocol} {address}"
        return failed(f"{text}; port {port} is open, for {protocol}", command)
    if target.host not in _LOOPBACK:
        return failed(text, Repair(f"sudo systemctl restart {_SERVICES[0]}", "receiver"))
    if place.container:
        host = {"podman": "host.containers.internal", "kubernetes": "COLLECTOR.NAMESPACE.svc"}
        text += f": {target.host} is this container itself"
        return failed(text, export(target.variable, target.at(host=host.get(place.container, "host.docker.internal"))))
    for service in _SERVICES:
        if any(
            place.exists(f"{folder}/{service}.service") for folder in ("/lib/systemd/system", "/etc/systemd/system")
        ):
            return failed(text, f"sudo systemctl restart {service}")
    if place.which("docker"):
        ports = "-p 127.0.0.1:4317:4317 -p 127.0.0.1:4318:4318"
        return failed(text, f"docker run -d {ports} otel/opentelemetry-collector")
    return failed(text, f"unset {target.variable}")


def _unreachable(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: cannot be reached ({answer.detail}): a wrong address, or a firewall"
    return failed(text, export(target.variable, target.at(host="COLLECTOR")))


def _silent(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: takes the connection and does not answer within {target.timeout_s:g} s"
    return failed(text, "export OTEL_EXPORTER_OTLP_TIMEOUT=10")


def _no_tls(place: Place, target: Target, answer: Answer) -> Result:
    how = "https" if target.endpoint.startswith("https") else "no http:// before it, which is TLS for grpc"
    text = f"{target.shown}: the receiver speaks no TLS ({how})"
    return failed(text, export(target.variable, target.at(scheme="http")))


def _needs_tls(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: the receiver speaks TLS only"
    return failed(text, export(target.variable, target.at(scheme="https")))


def _certificate(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: its certificate is not accepted ({answer.detail})"
    if "expired" in answer.detail or "not yet valid" in answer.detail:
        return failed(text, Repair("sudo certbot renew", "receiver"))
    if "mismatch" in answer.detail or "not valid for" in answer.detail:
        names = [name for name in names_in_certificate(target) if "*" not in name]
        told = f"; it is for {', '.join(names)}" if names else ""
        return failed(text + told, export(target.variable, target.at(host=names[0] if names else "NAME")))
    return failed(text, "export OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem")


def _client_certificate(place: Place, target: Target, answer: Answer) -> Result:
    has = "does not accept the client certificate" if target.certificate else "wants a client certificate"
    names = (
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/path/to/client.pem OTEL_EXPORTER_OTLP_CLIENT_KEY=/path/to/client.key"
    )
    return failed(f"{target.shown}: the receiver {has} ({answer.detail})", f"export {names}")


def _speaks_grpc(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: a grpc port, spoken to with {target.protocol}"
    return failed(text, f"export {_protocol_variable(target)}=grpc")


def _speaks_http(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: an HTTP port, spoken to with grpc"
    return failed(text, f"export {_protocol_variable(target)}=http/protobuf")


def _protocol_variable(target: Target) -> str:
    return target.variable.replace("ENDPOINT", "PROTOCOL") if target.is_own else "OTEL_EXPORTER_OTLP_PROTOCOL"


def _other_signal(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.variable}={target.shown}: the path of {target.other_signal}, which loses the {target.signal}"
    base = target.parts.path.rstrip("/").removesuffix(target.other_signal)
    return failed(text, export(target.variable, target.at(path=f"{base}{target.signal}")))


def _web_page(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: answers with a web page, so it is no OTLP receiver"
    return failed(text, _right_place(target))


def _proxy(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: not reached through the proxy {answer.detail}"
    return failed(text, _around_proxy(target))


def _around_proxy(target: Target) -> str:
    return f'export NO_PROXY="$NO_PROXY,{target.host}"'


def _other(place: Place, target: Target, answer: Answer) -> Result:
    text = f"{target.shown}: no answer ({answer.detail or 'the connection was closed'})"
    return failed(text, f"curl -v {shlex.quote(target.url)}")


_CAUSES: Final[dict[str, Callable[[Place, Target, Answer], Result]]] = {
    "address": _address,
    "unknown_name": _unknown_name,
    "refused": _refused,
    "unreachable": _unreachable,
    "silent": _silent,
    "no_tls": _no_tls,
    "needs_tls": _needs_tls,
    "certificate": _certificate,
    "client_certificate": _client_certificate,
    "speaks_grpc": _speaks_grpc,
    "speaks_http": _speaks_http,
    "proxy": _proxy,
    "web_page": _web_page,
    "other_signal": _other_signal,
}


# -- an answer that is no -----------------------------------------------------------------------------


def _of_status(target: Target, answer: Answer, taken: Sequence[str]) -> Result:
    status, said = answer.status, f": {answer.detail}" if answer.detail else ""
    if status in (401, 403):
        what = "refuses the headers that are set" if target.headers else "wants credentials, and no headers are set"
        text = f"{target.shown}: {what} ({_word(target, status)}{said})"
        return failed(text, "export OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN")
    if status == 407:
        return failed(f"{target.shown}: the proxy wants credentials (HTTP 407)", _around_proxy(target))
    if 300 <= status < 400:
        text = f"{target.shown}: is elsewhere now ({status} to {answer.location or '?'}); exporters do not follow"
        elsewhere = answer.location if "://" in answer.location else target.at(scheme="https")
        added = "" if target.is_own else f"/v1/{target.signal}"
        return failed(text, export(target.variable, elsewhere.removesuffix(added)))
    if status in (404, 405, 415):
        return _wrong_place(target, answer, taken)
    if status == 429:
        text = f"{target.shown}: takes no more for now ({_word(target, status)}{said})"
        return warning(text, "export OTEL_METRIC_EXPORT_INTERVAL=60000")
    if status >= 500:
        text = f"{target.shown}: the receiver fails ({_word(target, status)}{said})"
        return failed(text, Repair(f"sudo systemctl restart {_SERVICES[0]}", "receiver"))
    text = f"{target.shown}: answers an empty request with {_word(target, status)}{said}"
    return warning(text, f"curl -i -X POST -H 'Content-Type: application/x-protobuf' {shlex.quote(target.url)}")


def _word(target: Target, status: int) -> str:
    return f"{'HTTP ' if target.protocol != 'grpc' else 'grpc for '}{status}"


def _wrong_place(target: Target, answer: Answer, taken: Sequence[str]) -> Result:
    """404: the path is wrong, or this receiver takes other signals only, or it is no receiver at all."""
    path = target.parts.path
    said = f"{without_password(target.url)}: {_word(target, answer.status)}"
    is_http = target.protocol != "grpc"
    if is_http and target.is_own and not path.rstrip("/").endswith(f"/v1/{target.signal}"):
        text = f"{said}: {target.variable} is taken as it is, without /v1/{target.signal} added"
        return failed(text, export(target.variable, f"{target.endpoint.rstrip('/')}/v1/{target.signal}"))
    for signal in SIGNALS:
        if is_http and not target.is_own and f"/v1/{signal}" in target.endpoint:
            text = f"{said}: {target.variable} must not name a signal's path, /v1/{target.signal} is added to it"
            return failed(text, export(target.variable, target.endpoint.partition(f"/v1/{signal}")[0]))
    if taken:
        text = f"{said}: this receiver takes no {target.signal}"
        return warning(text, f"export OTEL_{target.signal.upper()}_EXPORTER=none")
    return failed(f"{said}: no OTLP is taken there", _right_place(target))


def _right_place(target: Target) -> str:
    """The setting with the port, or the path, that OTLP has by custom."""
    path, is_http = target.parts.path, target.protocol != "grpc"
    whole = f"/v1/{target.signal}" if target.is_own else ""
    base = path.removesuffix(f"/v1/{target.signal}").rstrip("/")
    if target.port == _PROMETHEUS and not base:
        return export(target.variable, target.at(path=f"/api/v1/otlp{whole}"))
    if base and target.port in _OTHER_PORT:
        return export(target.variable, target.at(path=whole))
    return export(target.variable, target.at(port=4318 if is_http else 4317, path=whole))
