"""`clickhouse://…`: what it may say, and that its password is nowhere to be read."""

import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpumon.analysis.clickhouse.address import Address, parse
from gpumon.analysis.clickhouse.server import Server
from gpumon.analysis.report import build_report
from gpumon.cli import commands
from gpumon.errors import RunError
from otlp_receiver import eventually

SECRET = "p@ss/wört"
QUOTED = "p%40ss%2Fw%C3%B6rt"


def test_everything_that_an_address_says():
    """User, password and database as URLs quote them; TLS, its files and times as parameters."""
    url = (
        f"clickhouse://me%40work:{QUOTED}@ch.example:9999/my%20otel?run=7f3a&secure=1&verify=0&ca_cert=/ca.pem"
        "&client_cert=/c.pem&client_cert_key=/k.pem&connect_timeout=2.5"
    )

    assert parse(url, {}) == Address(
        "ch.example",
        9999,
        "my otel",
        "me@work",
        SECRET,
        True,
        "7f3a",
        {
            "verify": False,
            "ca_cert": "/ca.pem",
            "client_cert": "/c.pem",
            "client_cert_key": "/k.pem",
            "connect_timeout": 2.5,
        },
    )


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("clickhouse://host", {}, ("host", 8123, "default", "default", "")),
        ("clickhouse://host/otel?secure=true", {}, ("host", 8443, "otel", "default", "")),
        ("clickhouse://[::1]:81/otel/", {}, ("::1", 81, "otel", "default", "")),
        (
            "clickhouse://host",
            {"CLICKHOUSE_USER": "u", "CLICKHOUSE_PASSWORD": "p"},
            ("host", 8123, "default", "u", "p"),
        ),
        (
            "clickhouse://a:b@host",
            {"CLICKHOUSE_USER": "u", "CLICKHOUSE_PASSWORD": "p"},
            ("host", 8123, "default", "a", "b"),
        ),
    ],
)
def test_defaults(url, environment, expected):
    """Ports of the HTTP interface; user and password of the environment where the address has none."""
    found = parse(url, environment)

    assert (found.host, found.port, found.database, found.user, found.password) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("clickhouse:///otel", "is no address of a ClickHouse"),
        ("clickhouse://host:port/otel", "the port is no number"),
        ("clickhouse://host/otel?sekure=1", "'sekure' is no setting of a ClickHouse address (known: run, secure,"),
        ("clickhouse://host/otel?secure=maybe", "'secure=maybe' in a ClickHouse address: expected 1 or 0"),
        ("clickhouse://host/otel?connect_timeout=soon", "expected seconds"),
    ],
)
def test_what_is_no_address(url, why):
    """One line that says what is expected, and repeats no password."""
    url = url.replace("host", f"me:{QUOTED}@host")
    result = CliRunner(env={"GPUMON_STRICT": ""}).invoke(commands, ["report", url])

    assert why in str(result.exception)
    assert QUOTED not in str(result.exception)


@pytest.fixture
def server():
    """Answers every request as told: a status and a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(server.text)))
            self.end_headers()
            self.wfile.write(server.text.encode())

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.text = 200, ""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "why"),
    [
        (
            403,
            f"Code: 516. DB::Exception: me: Authentication failed: {SECRET} is incorrect. (AUTHENTICATION_FAILED)",
            "does not let user 'me' in: wrong name or password (CLICKHOUSE_USER and CLICKHOUSE_PASSWORD set them)",
        ),
        (
            404,
            "Code: 81. DB::Exception: Database otel does not exist. (UNKNOWN_DATABASE)",
            "there is no database 'otel'",
        ),
        (
            500,
            "Code: 497. DB::Exception: me: Not enough privileges. To execute this query, it's necessary to have the "
            "grant SELECT(run_id) ON otel.gpumon_runs. (ACCESS_DENIED) (version 26.3.1.1 (official build))",
            "user 'me' may not do this: me: Not enough privileges. To execute this query, it's necessary to have the "
            "grant SELECT(run_id) ON otel.gpumon_runs",
        ),
        (500, f"Code: 241. DB::Exception: Memory limit exceeded for {SECRET}. (MEMORY_LIMIT_EXCEEDED)", "Memory limit"),
    ],
)
def test_what_a_server_refuses(server, status, text, why):
    """Its reason in one line, without what surrounds it, and without the password should it repeat that."""
    server.status, server.text = status, text
    address = f"clickhouse://127.0.0.1:{server.server_port}/otel"
    with pytest.raises(RunError) as error:
        build_report(address.replace("127", f"me:{QUOTED}@127"))

    said = str(error.value)
    assert said.startswith(address) and why in said
    assert "\n" not in said and SECRET not in said and QUOTED not in said
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_nobody_is_there(capfd):
    """Refused, on the native port with a hint; clickhouse-connect says nothing beside it."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RunError, match=rf"^cannot reach clickhouse://127.0.0.1:{port}/otel: Connection refused$"):
        build_report(f"clickhouse://127.0.0.1:{port}/otel")
    with pytest.raises(RunError, match=r"refused; 9440 is ClickHouse's native port, gpumon speaks HTTP: 8123"):
        Server(parse("clickhouse://127.0.0.1:9440/otel"))
    assert capfd.readouterr() == ("", "")


def test_without_clickhouse_connect(monkeypatch):
    """The command that installs it."""
    monkeypatch.setitem(sys.modules, "clickhouse_connect", None)
    with pytest.raises(RunError, match=r"pip install 'opentelemetry-instrumentation-gpumon\[clickhouse\]'"):
        build_report("clickhouse://127.0.0.1/otel")


def test_no_repr_has_the_password():
    """What ends up in logs and tracebacks."""
    address = parse(f"clickhouse://me:{QUOTED}@host/otel?secure=1", {})

    assert str(address) == "clickhouse://host:8443/otel?secure=1"
    assert SECRET not in f"{address!r} {address} {address.of_run('7f')}"


@pytest.mark.parametrize("scheme", ["clickhouse", "http"])
def test_the_process_title_has_no_password(tmp_path, scheme):
    """While a command waits for a server that never answers, `ps` shows asterisks."""
    Path(tmp_path, "metrics.0.1.jsonl").write_text(
        '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"a","gauge":{"dataPoints":[{"asInt":"1"}]}}]}]}]}\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://me:{QUOTED}@127.0.0.1:{silent.getsockname()[1]}/otel"
        process = subprocess.Popen([sys.executable, "-m", "gpumon", "export", tmp_path, url])
        try:
            silent.accept()
            title = Path(f"/proc/{process.pid}/cmdline")
            eventually(lambda: b"****" in title.read_bytes())
            assert QUOTED.encode() not in title.read_bytes()
        finally:
            process.kill()
            process.wait()
