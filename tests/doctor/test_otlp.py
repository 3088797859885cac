"""OTLP receivers that do not answer as they should: the reason, and the setting that repairs it."""

import contextlib
import ctypes
import os
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import gpumon
from doctor.examined import examine
from gpumon.doctor.otlp import of_answer
from gpumon.doctor.otlp_ask import Answer
from gpumon.doctor.otlp_target import Target, without_password
from gpumon.doctor.settings import _KNOWN
from otel_collector import OTELCOL, Collector, free_port, make_certificates
from otlp_receiver import receiver

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
needs_collector = pytest.mark.skipif(OTELCOL is None, reason="no Collector: put otelcol on PATH or set OTELCOL")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """The exporters' own variables, and proxies, are this test's."""
    for name in list(os.environ):
        if name.startswith(("OTEL_", "GPUMON_E")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@contextlib.contextmanager
def web_server(statuses, *, delay_s=0.0, ahead_s=0.0, headers=(), body=b"", context=None, host="127.0.0.1"):
    """An HTTP server that answers with these statuses by path, 404 elsewhere; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(delay_s)
            status = statuses.get(self.path, 404) if isinstance(statuses, dict) else statuses
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def date_time_string(self, timestamp=None):
            return formatdate(time.time() + ahead_s, usegmt=True)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def collectors(tmp_path_factory):
    """The real Collector: plain, with TLS and client certificates, with a token."""
    folder = tmp_path_factory.mktemp("collectors")
    made = {
        "plain": Collector(folder / "plain"),
        "tls": Collector(folder / "tls", tls=make_certificates(folder / "certificates")),
        "token": Collector(folder / "token", token="secret"),
    }
    for collector in made.values():
        collector.start()
    made["certificates"] = folder / "certificates"
    yield made
    for collector in made.values():
        if isinstance(collector, Collector):
            collector.stop()


def checked(somewhere, endpoint, **environment):
    return examine(somewhere.place(**{ENDPOINT: endpoint, **environment}), "otlp")


def other(url, scheme):
    return f"{scheme}://{url.split('//')[1]}"


# -- a real Collector ----------------------------------------------------------------------------------------


def test_no_endpoint_is_no_failure(somewhere):
    """Runs are recorded to files."""
    examined = examine(somewhere.place(), "otlp")

    examined.is_fine()
    assert examined.only("otlp")["status"] == "absent"


@needs_collector
@needs_openssl
class TestCollector:
    def test_it_answers(self, somewhere, collectors):
        """Over both protocols, with TLS and with a token; nothing is stored by asking."""
        plain, tls, token = (collectors[name] for name in ("plain", "tls", "token"))
        files = collectors["certificates"]
        certificates = {
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(files / "ca.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(files / "client.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(files / "client.key"),
        }
        bearer = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20secret"}

        for endpoint, settings in (
            (plain.http, {}),
            (plain.grpc, GRPC),
            (tls.http, certificates),
            (tls.grpc, {**certificates, **GRPC}),
            (token.http, bearer),
            (token.grpc, {**bearer, **GRPC}),
        ):
            examined = checked(somewhere, endpoint, **settings)
            examined.is_fine()
            summary = examined.only("otlp")["summary"]
            assert summary.startswith(f"{endpoint} answered in ")
            assert summary.endswith(" (grpc)") == ("OTEL_EXPORTER_OTLP_PROTOCOL" in settings)
        assert not any(file.stat().st_size for file in plain.folder.glob("*.jsonl"))

    def test_grpc_port_spoken_to_with_http(self, somewhere, collectors):
        """4317 instead of 4318, the commonest mistake of all."""
        examined = checked(somewhere, collectors["plain"].grpc)

        examined.names("failed", "a grpc port, spoken to with http", "export OTEL_EXPORTER_OTLP_PROTOCOL=grpc")

    def test_http_port_spoken_to_with_grpc(self, somewhere, collectors):
        """And the reverse."""
        examined = checked(somewhere, collectors["plain"].http, **GRPC)

        examined.names("failed", "an HTTP port, spoken to", "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")

    @pytest.mark.parametrize("settings", [{}, GRPC])
    def test_tls_to_a_plain_port(self, somewhere, collectors, settings):
        """https:// where nothing speaks it."""
        address = getattr(collectors["plain"], "grpc" if settings else "http")

        examined = checked(somewhere, other(address, "https"), **settings)

        examined.names("failed", "the receiver speaks no TLS", f"export {ENDPOINT}={address}")

    def test_grpc_without_a_scheme_is_tls(self, somewhere, collectors):
        """`localhost:4317` means TLS to the exporter, which nobody expects."""
        address = collectors["plain"].grpc

        examined = checked(somewhere, address.removeprefix("http://"), **GRPC)

        examined.names("failed", "no http:// before it", f"export {ENDPOINT}={address}")

    @pytest.mark.parametrize("settings", [{}, GRPC])
    def test_plain_to_a_tls_port(self, somewhere, collectors, settings):
        """http:// where only TLS is spoken."""
        address = getattr(collectors["tls"], "grpc" if settings else "http")

        examined = checked(somewhere, other(address, "http"), **settings)

        examined.names("failed", "the receiver speaks TLS only", f"export {ENDPOINT}={address}")

    @pytest.mark.parametrize("settings", [{}, GRPC])
    def test_unknown_authority(self, somewhere, collectors, settings):
        """A certificate of one's own."""
        address = getattr(collectors["tls"], "grpc" if settings else "http")

        examined = checked(somewhere, address, **settings)

        command = "export OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem"
        examined.names("failed", "its certificate is not accepted (", command)

    @pytest.mark.parametrize("settings", [{}, GRPC])
    def test_client_certificate_is_wanted(self, somewhere, collectors, settings):
        """Mutual TLS, and we show nothing."""
        address = getattr(collectors["tls"], "grpc" if settings else "http")
        authority = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(collectors["certificates"] / "ca.pem")}

        examined = checked(somewhere, address, **settings, **authority)

        (entry,) = examined.of("otlp")
        assert "wants a client certificate" in entry["summary"]
        assert entry["repair"]["command"].startswith("export OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=")

    @pytest.mark.parametrize("settings", [{}, GRPC])
    @pytest.mark.parametrize("headers", ["", "authorization=Bearer%20wrong"])
    def test_wrong_token(self, somewhere, collectors, settings, headers):
        """Refused, and whether anything was sent; the token itself is never printed."""
        address = getattr(collectors["token"], "grpc" if settings else "http")

        examined = checked(somewhere, address, **settings, OTEL_EXPORTER_OTLP_HEADERS=headers)

        cause = "refuses the headers that are set" if headers else "wants credentials, and no headers are set"
        examined.names("failed", cause, "export OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN")
        assert "wrong" not in examined.text


# -- any other ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, GRPC])
def test_refused(somewhere, settings):
    """Nothing listens there: no Collector runs."""
    somewhere.command("docker")
    port = free_port()

    examined = checked(somewhere, f"http://localhost:{port}", **settings)

    command = "docker run -d -p 127.0.0.1:4317:4317 -p 127.0.0.1:4318:4318 otel/opentelemetry-collector"
    examined.names("failed", f"http://localhost:{port}: connection refused", command)


def test_refused_where_the_other_port_is_open(somewhere):
    """A Collector with the grpc receiver alone: 4318 is refused, 4317 is open."""
    with socket.create_server(("127.0.0.9", 4317)):
        examined = checked(somewhere, "http://127.0.0.9:4318")

    command = f"export OTEL_EXPORTER_OTLP_PROTOCOL=grpc {ENDPOINT}=http://127.0.0.9:4317"
    examined.names("failed", "connection refused, nothing listens there; port 4317 is open, for grpc", command)


def test_refused_with_the_collectors_service(somewhere):
    """It is installed, and does not run."""
    somewhere.write("lib/systemd/system/otelcol-contrib.service", "")

    examined = checked(somewhere, f"http://127.0.0.1:{free_port()}")

    examined.names("failed", "connection refused", "sudo systemctl restart otelcol-contrib")


def test_refused_inside_a_container(somewhere):
    """localhost is the container itself."""
    somewhere.docker()
    port = free_port()

    examined = checked(somewhere, f"http://localhost:{port}")

    command = f"export {ENDPOINT}=http://host.docker.internal:{port}"
    examined.names("failed", "localhost is this container itself", command)


def test_unknown_name(somewhere):
    """A typing error, or DNS."""
    examined = checked(somewhere, "http://no-such-host.invalid:4318")

    examined.names("failed", "the name 'no-such-host.invalid' is not known", f"export {ENDPOINT}=http://COLLECTOR:4318")


def test_unknown_name_inside_a_container(somewhere, monkeypatch):
    """The name of a service of another network of Docker's."""
    somewhere.docker()
    monkeypatch.setattr("gpumon.doctor.otlp._hostname", lambda: "0f3c9a")

    examined = checked(somewhere, "http://no-such-collector:4318")

    command = "docker network connect NETWORK 0f3c9a"
    examined.names("failed", "this container is in another network", command, "host")


@pytest.mark.parametrize("settings", [{}, GRPC])
def test_silence(somewhere, settings):
    """It takes the connection and says nothing: it is overloaded, or no receiver."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()

        examined = checked(somewhere, endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="0.5", **settings)

    cause = "does not answer within 0.5 s"
    examined.names("failed", cause, "export OTEL_EXPORTER_OTLP_TIMEOUT=10")
    assert time.monotonic() - began < 10


def test_slow_answer(somewhere):
    """Slower than the exporter waits."""
    with web_server(200, delay_s=1.5) as port:
        examined = checked(somewhere, f"http://127.0.0.1:{port}", OTEL_EXPORTER_OTLP_TIMEOUT="0.3")

    examined.names("failed", "does not answer within 0.3 s", "export OTEL_EXPORTER_OTLP_TIMEOUT=10")


SIGNALS = ("traces", "metrics", "logs")


def test_paths_of_all_signals_are_asked(somewhere):
    """The general endpoint, and /v1/… added to it."""
    with web_server({f"/otlp/v1/{signal}": 200 for signal in SIGNALS}) as port:
        checked(somewhere, f"http://127.0.0.1:{port}/otlp").is_fine()
        checked(somewhere, f"http://127.0.0.1:{port}/otlp/").is_fine()


def test_base_path_that_is_wrong(somewhere):
    """404 for every signal, at a port that is OTLP's by custom or not."""
    with web_server({}) as port:
        examined = checked(somewhere, f"http://127.0.0.1:{port}/collector")

    cause = f"http://127.0.0.1:{port}/collector/v1/traces: HTTP 404: no OTLP is taken there"
    examined.names("failed", cause, f"export {ENDPOINT}=http://127.0.0.1:4318")


@pytest.mark.parametrize(
    ("port", "path", "repaired"),
    [(9090, "", "9090/api/v1/otlp"), (4318, "/otlp", "4318"), (16686, "", "4318")],
)
def test_well_known_ports(somewhere, port, path, repaired):
    """Prometheus takes OTLP under a path of its own; a user interface takes none."""
    target = Target("traces", "http/protobuf", f"http://h:{port}{path}", ENDPOINT, f"http://h:{port}{path}/v1/traces")

    result = of_answer(somewhere.place(), target, Answer(404), [])

    assert result.repair.command == f"export {ENDPOINT}=http://h:{repaired}"


def test_general_endpoint_with_a_signals_path(somewhere):
    """/v1/traces/v1/traces is asked then."""
    with web_server({f"/v1/{signal}": 200 for signal in SIGNALS}) as port:
        examined = checked(somewhere, f"http://127.0.0.1:{port}/v1/traces")

    examined.names("failed", "must not name a signal's path", f"export {ENDPOINT}=http://127.0.0.1:{port}")


@pytest.mark.parametrize("content_type", ["text/html", "Text/HTML; charset=utf-8"])
def test_a_web_page_is_no_receiver(somewhere, content_type):
    """A user interface that has a page for every path, as Jaeger's: 200 says nothing."""
    with web_server(200, headers=[("Content-Type", content_type)], body=b"<!doctype html>") as port:
        examined = checked(somewhere, f"http://127.0.0.1:{port}")

    cause = f"http://127.0.0.1:{port}: answers with a web page, so it is no OTLP receiver"
    examined.names("failed", cause, f"export {ENDPOINT}=http://127.0.0.1:4318")


def test_a_signals_endpoint_with_anothers_path(somewhere):
    """Spans are no metrics; an empty request shows nothing of it."""
    with web_server({f"/v1/{signal}": 200 for signal in SIGNALS}) as port:
        base = f"http://127.0.0.1:{port}/v1"
        place = somewhere.place(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{base}/metrics", OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{base}/metrics"
        )
        examined = examine(place, "otlp")

    command = f"export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={base}/traces"
    examined.names("failed", "the path of metrics, which loses the traces", command)


def test_a_signals_endpoint_without_its_path(somewhere):
    """Taken as it is: nothing is added."""
    with web_server({f"/v1/{signal}": 200 for signal in SIGNALS}) as port:
        place = somewhere.place(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{port}")
        examined = examine(place, "otlp")

    command = f"export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:{port}/v1/traces"
    examined.names("failed", "is taken as it is, without /v1/traces added", command)


def test_receiver_of_other_signals(somewhere):
    """A Collector without a pipeline for logs: the rest arrives."""
    with web_server({"/v1/traces": 200, "/v1/metrics": 200}) as port:
        examined = checked(somewhere, f"http://127.0.0.1:{port}")

    examined.names("warning", "this receiver takes no logs", "export OTEL_LOGS_EXPORTER=none")
    assert "for traces and metrics" in examined.text


def test_another_receiver_says_nothing_of_this_one(somewhere):
    """Metrics go elsewhere and arrive; that traces find nothing is about their own address."""
    with web_server(200) as good, web_server({}) as bad:
        place = somewhere.place(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{bad}/v1/traces",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"http://127.0.0.1:{good}/v1/metrics",
        )
        examined = examine(place, "otlp")

    cause = f"http://127.0.0.1:{bad}/v1/traces: HTTP 404: no OTLP is taken there"
    examined.names("failed", cause, "export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:4318/v1/traces")


def test_signal_that_is_switched_off_is_not_asked(somewhere):
    """OTEL_LOGS_EXPORTER=none."""
    with web_server({"/v1/traces": 200, "/v1/metrics": 200}) as port:
        checked(somewhere, f"http://127.0.0.1:{port}", OTEL_LOGS_EXPORTER="none").is_fine()


def test_an_endpoint_per_signal(somewhere):
    """Two receivers, one of them down: the line is about that one."""
    with web_server({"/here": 200}) as port:
        down = free_port()
        place = somewhere.place(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{down}/v1/traces",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"http://127.0.0.1:{port}/here",
        )
        examined = examine(place, "otlp")

    command = "unset OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    examined.names("failed", f"http://127.0.0.1:{down}/v1/traces: connection refused", command)
    assert f"http://127.0.0.1:{port}/here answered" in examined.text


@pytest.mark.parametrize(
    ("status", "level", "cause", "command", "where"),
    [
        (403, "failed", "wants credentials, and no headers are set (HTTP 403", "TOKEN", "here"),
        (429, "warning", "takes no more for now (HTTP 429", "export OTEL_METRIC_EXPORT_INTERVAL=60000", "here"),
        (503, "failed", "the receiver fails (HTTP 503", "sudo systemctl restart otelcol-contrib", "receiver"),
    ],
)
def test_statuses(somewhere, status, level, cause, command, where):
    """What the receiver says is in the line."""
    with web_server(status, body=b"because\nof me") as port:
        examined = checked(somewhere, f"http://127.0.0.1:{port}")

    command = command if command != "TOKEN" else "export OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN"
    examined.names(level, f"{cause}: because of me)", command, where)


def test_moved(somewhere):
    """A web server in front that wants https; exporters follow no redirection."""
    with web_server(308, headers=[("Location", "https://otlp.example.com/v1/traces")]) as port:
        place = somewhere.place(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{port}/v1/traces")
        examined = examine(place, "otlp")

    command = "export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://otlp.example.com/v1/traces"
    examined.names("failed", "308 to https://otlp.example.com/v1/traces", command)


@pytest.mark.parametrize(
    ("endpoint", "right"),
    [
        ("localhost:4318", "http://localhost:4318"),
        ("collector", "http://collector:4318"),
        ("http://:4318", "http://localhost:4318"),
        ("http://host:port", "http://host:4318"),
        ("http://[::1", "http://localhost:4318"),
        ("grpc://host:4317", "http://host:4317"),
    ],
)
def test_what_is_no_address(somewhere, endpoint, right):
    """Without http:// an exporter over http says only that it has no adapter for it."""
    examined = checked(somewhere, endpoint)

    examined.names("failed", f"{ENDPOINT}={endpoint!r} is no address", f"export {ENDPOINT}={right}")


def test_passwords_are_not_printed(somewhere):
    """An address with a password in it: the output may end up in a bug report."""
    examined = checked(somewhere, f"http://ada:sesame@127.0.0.1:{free_port()}")

    assert "sesame" not in examined.text
    assert "connection refused" in examined.text


def test_proxy_in_between(somewhere, monkeypatch):
    """HTTP_PROXY is set and leads nowhere."""
    proxy = f"http://user:sesame@127.0.0.1:{free_port()}"
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("http_proxy", proxy)

    examined = checked(somewhere, "http://collector.internal:4318")

    command = 'export NO_PROXY="$NO_PROXY,collector.internal"'
    examined.names("failed", "not reached through the proxy", command)
    assert "sesame" not in examined.text


@needs_openssl
def test_certificate_for_another_name(somewhere, tmp_path):
    """Its authority is trusted, the name is another."""
    files = make_certificates(tmp_path / "certificates")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "server.pem", files / "server.key")  # for localhost and 127.0.0.1
    with web_server(200, context=context, host="127.0.0.2") as port:
        authority = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(files / "ca.pem")}
        examined = checked(somewhere, f"https://127.0.0.2:{port}", **authority)

    examined.names("failed", "it is for 127.0.0.1, localhost", f"export {ENDPOINT}=https://127.0.0.1:{port}")


# -- the clock --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead_s", "status"), [(20.0, "warning"), (3600.0, "failed"), (-3600.0, "failed")])
def test_clock_that_is_wrong(somewhere, ahead_s, status):
    """Held against the date in the receiver's answer."""
    somewhere.command("timedatectl")
    with web_server(200, ahead_s=ahead_s) as port:
        endpoint = f"http://127.0.0.1:{port}"
        examined = examine(somewhere.place(**{ENDPOINT: endpoint}), "clock")

    cause = f"{'behind' if ahead_s > 0 else 'ahead of'} {endpoint}"
    examined.names(status, cause, "sudo timedatectl set-ntp true")


def test_clock_that_is_right(somewhere):
    """Within what an answer's whole seconds allow."""
    with web_server(404) as port:  # any answer has a date
        examine(somewhere.place(**{ENDPOINT: f"http://127.0.0.1:{port}"}), "clock").is_fine()


def test_clock_without_a_receiver(somewhere):
    """What the kernel says of it."""
    adjtimex = ctypes.CDLL(None).adjtimex
    is_kept = adjtimex(ctypes.create_string_buffer(512)) in range(5)
    somewhere.command("chronyc")

    examined = examine(somewhere.place(), "clock")

    if is_kept:
        examined.is_fine()
    else:
        examined.names("warning", "no NTP keeps it", "sudo chronyc makestep")


# -- settings ---------------------------------------------------------------------------------------------------


PIP = f"{sys.executable} -m pip install"


@pytest.mark.parametrize(
    ("environment", "status", "cause", "command"),
    [
        ({"GPUMON_EXPORT": "otpl"}, "failed", "GPUMON_EXPORT: expected one of", "unset GPUMON_EXPORT"),
        ({"GPUMON_INTERVALS": "disk"}, "failed", "GPUMON_INTERVALS: expected", "unset GPUMON_INTERVALS"),
        ({"GPUMON_COLLECTORS": "gpu,dsik"}, "failed", "no collector dsik", "export GPUMON_COLLECTORS=gpu"),
        ({"GPUMON_INTERVALS": "dsik=1,gpu=0.5"}, "failed", "no collector dsik", "export GPUMON_INTERVALS=gpu=0.5"),
        (
            {"GPUMON_DATA_PATH": "/data"},
            "warning",
            "GPUMON_DATA_PATH: there is no such setting; GPUMON_DATA_PATHS is meant?",
            'export GPUMON_DATA_PATHS="$GPUMON_DATA_PATH"; unset GPUMON_DATA_PATH',
        ),
        ({"GPUMON_COLOUR": "red"}, "warning", "GPUMON_COLOUR: there is no such setting", "unset GPUMON_COLOUR"),
        ({"GPUMON_EXPORT": "none"}, "warning", "nothing is recorded", "unset GPUMON_EXPORT"),
        ({"OTEL_SDK_DISABLED": "true"}, "warning", "nothing is recorded", "unset OTEL_SDK_DISABLED"),
        ({"OTEL_METRICS_EXPORTER": "none"}, "warning", "no metrics", "unset OTEL_METRICS_EXPORTER"),
        (
            {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "torch, gpumon"},
            "warning",
            "leaves gpumon out",
            "unset OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            "failed",
            "OTEL_TRACES_EXPORTER=zipkin: is not installed",
            f"{PIP} opentelemetry-exporter-zipkin",
        ),
        (
            {"OTEL_METRICS_EXPORTER": "otlp,promethues"},
            "failed",
            "OTEL_METRICS_EXPORTER=promethues: is no exporter",
            "export OTEL_METRICS_EXPORTER=otlp",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "warning",
            "is neither http/protobuf nor grpc",
            "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        ),
        (
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem"},
            "failed",
            "/nowhere/ca.pem: no such file or directory",
            "export OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem",
        ),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "10000"},
            "warning",
            "seconds in OpenTelemetry's Python, not milliseconds",
            "export OTEL_EXPORTER_OTLP_TIMEOUT=10",
        ),
        (
            {"OTEL_EXPORTER_OTLP_HEADERS": "a=b,Authorization: Bearer x"},
            "failed",
            "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is no key=value",
            "export OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN",
        ),
    ],
    ids=lambda value: next(iter(value.items()))[1] if isinstance(value, dict) else "",
)
def test_settings(somewhere, environment, status, cause, command):
    """A value that makes no sense, or keeps everything out, is named with its variable."""
    examine(somewhere.place(**environment), "settings").names(status, cause, command)


@pytest.mark.parametrize("headers", ["Authorization: Bearer sesame", "authorization=Bearer sésame"])
def test_headers_that_are_not_sent(somewhere, headers, caplog, capfd):
    """The exporters drop them; nobody prints them."""
    place = somewhere.place(OTEL_EXPORTER_OTLP_HEADERS=headers, **{ENDPOINT: f"http://127.0.0.1:{free_port()}"})
    examined = examine(place, "otlp", "settings", "clock")

    (entry,) = examined.of("settings")
    assert entry["summary"].startswith("OTEL_EXPORTER_OTLP_HEADERS: entry 1 is no key=value")
    assert "same" not in examined.text + caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("character", ["%0A", "%E2%80%93"], ids=["line feed", "dash"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_headers_that_cannot_be_sent(somewhere, character, protocol, capfd):
    """They are found before they are sent; what they say is a secret, and no traceback comes of it."""
    with receiver() as collector:
        place = somewhere.place(
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20sesame{character}X",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            **{ENDPOINT: collector.endpoint},
        )
        examined = examine(place, "otlp", "settings", "clock")

    (entry,) = examined.of("settings")
    assert entry["status"] == "failed"
    assert entry["summary"].startswith("OTEL_EXPORTER_OTLP_HEADERS: entry 1 has a character that no header may have")
    told = examined.text + "".join(capfd.readouterr())
    assert "sesame" not in told and "Traceback" not in told and "the check itself failed" not in told


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_times_that_nobody_can_wait(somewhere, seconds):
    """The exporters take them as they are, and deliver nothing; gpumon's own take the default."""
    examined = examine(somewhere.place(OTEL_EXPORTER_OTLP_TIMEOUT=seconds), "settings")
    examined.names("warning", "is no time to wait: the default is used", "unset OTEL_EXPORTER_OTLP_TIMEOUT")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@host:4318/v1", "http://host:4318/v1"),
        ("http://user:sec/ret@host:4318", "http://host:4318"),
        ("http://user:sec@ret@host:4318", "http://host:4318"),
        ("user:secret@host:9", "host:9"),
        ("http://host:4318/v1", "http://host:4318/v1"),
    ],
)
def test_passwords_are_not_shown(url, shown):
    """Also of addresses that are not as they should be."""
    assert without_password(url) == shown


def test_every_variable_that_is_read_is_known():
    """What the doctor takes for a mistake is nothing that the program reads."""
    source = Path(gpumon.__file__).parent
    read = {
        name
        for file in source.rglob("*.py")
        for name in re.findall(r"(?:environ|environment)(?:\.get\(|\.pop\(|\[)\"(GPUMON_\w+)\"", file.read_text())
    }

    assert len(read) >= 7
    assert read <= set(_KNOWN)


def test_names_that_kubernetes_sets_are_no_mistakes(somewhere):
    """Of a service `gpumon-collector` every pod of its namespace has these."""
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_OTLP_HTTP", "PORT", "PORT_4318_TCP", "PORT_4318_TCP_ADDR"]
    place = somewhere.place(**{f"GPUMON_COLLECTOR_{name}": "tcp://10.0.0.1:4318" for name in names})

    examine(place, "settings").is_fine()


def test_settings_that_make_sense(somewhere):
    """They are named."""
    examined = examine(somewhere.place(OTEL_SERVICE_NAME="vision", OTEL_TRACES_EXPORTER="otlp,console"), "settings")

    examined.is_fine()
    assert "OTEL_SERVICE_NAME, OTEL_TRACES_EXPORTER: understood" in examined.text


def test_grpc_without_its_package(somewhere, monkeypatch):
    """OTEL_EXPORTER_OTLP_PROTOCOL=grpc in a slim image that has the exporter over http only."""

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("opentelemetry.exporter.otlp.proto.grpc"):
                raise ModuleNotFoundError(f"No module named {name!r}")

    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter.otlp.proto.grpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("sys.meta_path", [Missing(), *sys.meta_path])

    examined = examine(somewhere.place(**GRPC), "settings")

    command = f"{PIP} --upgrade opentelemetry-exporter-otlp-proto-grpc"
    examined.names("failed", "the exporter for grpc cannot be imported", command)
