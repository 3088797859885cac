"""`gpumon views`: tables and views in a ClickHouse: on one server, replicated, and on a cluster."""

import re
import shutil
import ssl
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from clickhouse_flow import address
from gpumon.analysis.clickhouse.address import parse
from gpumon.analysis.clickhouse.install import ensure_database, install, script, tables_script
from gpumon.analysis.clickhouse.server import Server
from gpumon.analysis.clickhouse.tables import COLUMNS, Layout
from gpumon.analysis.report import build_report
from gpumon.analysis.views import VIEWS
from gpumon.cli import commands
from gpumon.errors import RunError
from gpumon.export import export
from otel_collector import make_certificates
from peers import ClickHouse, needs_clickhouse
from recorded import RUN_ID, record_everything

COMMITTED = Path(__file__).parents[2] / "collector-config" / "clickhouse" / "tables.sql"
CLUSTER = """<clickhouse>
  <tcp_port>9000</tcp_port>
  <remote_servers><training><shard><replica><host>localhost</host><port>9000</port></replica></shard></training></remote_servers>
  <macros><cluster>training</cluster><shard>01</shard><replica>r1</replica></macros>
  <zookeeper><implementation>testkeeper</implementation></zookeeper>
</clickhouse>
"""


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory):
    """The engine, as the one node of a cluster."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "config.xml").write_text(CLUSTER)
    with ClickHouse(folder, config=folder / "config.xml") as clickhouse:
        yield clickhouse


@pytest.fixture
def gpumon(monkeypatch):
    """Runs a command; returns what it printed."""
    monkeypatch.delenv("GPUMON_STRICT")

    def run(*arguments):
        result = CliRunner().invoke(commands, arguments, standalone_mode=False)
        if result.exception:
            raise result.exception
        return result.output

    return run


@pytest.fixture
def database(clickhouse, request):
    """A new database; its name is the test's."""
    name = re.sub(r"\W", "_", request.node.name)[:60]
    ensure_database(parse(address(clickhouse, name)))
    return address(clickhouse, name)


def statements_of(text):
    """The single statements of a script, without comments."""
    plain = re.sub(r"--.*", "", text)
    return [statement for statement in plain.split(";\n") if statement.strip()]


@needs_clickhouse
def test_an_installation_says_what_it_created(clickhouse, gpumon):
    """Database, tables and views; a second time there is nothing to do; views of another gpumon are replaced."""
    url = address(clickhouse, "new")
    first = gpumon("views", "install", "--tables", "--ttl-days", "90", url)
    second = gpumon("views", "install", "--tables", url)
    clickhouse.query("alter table new.gpumon_runs modify comment 'gpumon 0.0.1 0123456789ab'")
    with pytest.raises(
        RunError, match=r"are of another gpumon \(gpumon 0.0.1 .*`gpumon views install '.*/new'` replaces them"
    ):
        build_report(url)
    third = gpumon("views", "install", url)

    assert first.startswith("created database: new\ncreated: otel_metrics_gauge, ")
    assert all(name in first for name in (*COLUMNS, *VIEWS))
    assert second == f"there already: {', '.join((*COLUMNS, 'otel_traces_trace_id_ts_mv', *VIEWS))}\n"
    assert third == f"replaced: {', '.join(VIEWS)}\n"
    with pytest.raises(RunError, match="no runs in"):
        build_report(url)


@needs_clickhouse
def test_rows_go_when_their_time_is_over(clickhouse, database):
    """By day, in every table; without a number of days they stay."""
    with Server(parse(database)) as server:
        install(server, layout=Layout(ttl_days=7))
        ttl = server.query(
            "select name from system.tables where database = currentDatabase() and engine like '%MergeTree' "
            "and create_table_query like '%TTL toDate(%) + toIntervalDay(7)%'"
        ).rows
        assert {name for (name,) in ttl} == set(COLUMNS)
    assert "toIntervalDay" not in script(Layout())


@needs_clickhouse
def test_what_is_not_there(clickhouse, database):
    """No views, no tables, tables of a kind that cannot be read: each with what repairs it."""
    with pytest.raises(RunError, match=r"no views of gpumon in .*: `gpumon views install '.*'` creates them"):
        build_report(database)
    with pytest.raises(RunError, match=r"no tables for OpenTelemetry in .*`gpumon views install --tables '"):
        export(Path(__file__), database)
    with Server(parse(database)) as server:
        with pytest.raises(RunError, match=r"no table otel_metrics_gauge, .*`--tables` creates ours"):
            install(server)
        install(server, layout=Layout())
        server.command("drop view gpumon_windows")
        with pytest.raises(RunError, match=r"no view gpumon_windows in "):
            build_report(database)
        server.command("alter table otel_logs drop column EventName")
        with pytest.raises(RunError, match=r"of an old exporter: `ALTER TABLE otel_logs ADD COLUMN EventName String`"):
            install(server)


@needs_clickhouse
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")
def test_tls(clickhouse, database, tmp_path, gpumon):
    """With the authority that the server's certificate is of; without it nothing is sent."""
    certificates = make_certificates(tmp_path / "tls")
    with tls_in_front_of(clickhouse, certificates) as port:
        url = f"{database.replace(str(clickhouse.port), str(port))}?secure=1"
        trusted = f"{url}&ca_cert={certificates}/ca.pem&connect_timeout=5.5&send_receive_timeout=60&compress=zstd"
        with pytest.raises(RunError, match=rf"^cannot reach {re.escape(url)}: .*certificate"):
            gpumon("views", "install", url)
        assert "created: otel_metrics_gauge" in gpumon("views", "install", "--tables", trusted)
        assert "refused" not in gpumon("export", str(record_everything(tmp_path / "run", windows=2)), trusted)
        assert "2 ranks on node17" in gpumon("report", trusted)
        plain = f"{database.replace(str(clickhouse.port), str(port))}"
        with pytest.raises(RunError, match=r"^cannot reach .*does it want TLS\? \(\?secure=1\)"):
            gpumon("report", plain)


@contextmanager
def tls_in_front_of(clickhouse, certificates):
    """A port that speaks TLS and passes every request on."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            kept = {name: value for name, value in self.headers.items() if name in ("Content-Encoding", "Content-Type")}
            request = urllib.request.Request(f"{clickhouse.url}{self.path}", body or None, kept)
            try:
                with urllib.request.urlopen(request) as answer:
                    status, headers, content = answer.status, answer.headers, answer.read()
            except urllib.error.HTTPError as error:
                status, headers, content = error.code, error.headers, error.read()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_options_that_need_tables(gpumon):
    """A time to live, or replicas, of no table."""
    for options in (["--ttl-days", "3"], ["--replicated"]):
        with pytest.raises(ValueError, match=f"{options[0]} is about tables: add --tables"):
            gpumon("views", "sql", *options)


@needs_clickhouse
@pytest.mark.parametrize("layout", [Layout(cluster="training"), Layout(cluster="{cluster}", ttl_days=36_500)], ids=str)
def test_a_cluster(clickhouse, tmp_path, layout, request):
    """Distributed tables over local ones: an exported run is in the local ones, and the report is the directory's.

    The engine here has no Keeper for `ON CLUSTER`, so each statement is run without it.
    """
    name = f"cluster_{request.node.name.count('{')}"
    clickhouse.query(f"create database {name}")
    run = record_everything(tmp_path, windows=6)
    with Server(parse(address(clickhouse, name))) as server:
        for statement in statements_of(script(layout, layout.cluster)):
            alone, count = re.subn(r" on cluster `[^`]+`", "", statement)
            assert count == 1, statement
            server.command(alone)
    outcome = export(run, address(clickhouse, name))
    ours, theirs = (build_report(where).as_dict() for where in (run, address(clickhouse, name, RUN_ID)))

    assert outcome.is_whole, outcome.reasons
    (there,) = clickhouse.query(f"select toInt32(count()) as spans from {name}.otel_traces_local")
    assert there["spans"] == outcome.sent["traces"] > 0
    assert clickhouse.query(f"select engine from system.tables where database = '{name}' and name = 'otel_traces'") == [
        {"engine": "Distributed"}
    ]
    assert (ours["verdict"], ours["headline"], ours["steps"]["count"]) == (
        theirs["verdict"],
        theirs["headline"],
        theirs["steps"]["count"],
    )


@needs_clickhouse
def test_replicas(clickhouse):
    """Every table is a ReplicatedMergeTree, whose place in Keeper tells shards, databases and tables apart."""
    clickhouse.query("create database replicas")
    with Server(parse(address(clickhouse, "replicas"))) as server:
        for _, statement in Layout(is_replicated=True).statements():
            server.command(statement)
        rows = server.query(
            "select name, engine, engine_full from system.tables "
            "where database = currentDatabase() and engine <> 'MaterializedView'"
        ).rows
    assert {(name, engine) for name, engine, _ in rows} == {(name, "ReplicatedMergeTree") for name in COLUMNS}
    assert all("'/clickhouse/tables/{shard}/" in full for _, _, full in rows)


@pytest.mark.parametrize(
    ("options", "engine", "is_distributed"),
    [
        (["--ttl-days", "90"], "MergeTree\n", False),
        (["--replicated"], "ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')", False),
        (["--cluster", "prod"], "MergeTree\n", True),
        (["--cluster", "{cluster}", "--replicated", "--ttl-days", "7"], "ReplicatedMergeTree('/clickhouse", True),
    ],
    ids=str,
)
def test_statements_for_somebody_else_to_run(gpumon, options, engine, is_distributed):
    """Tables of every variant, then the views; on a cluster each of them on all of it."""
    printed = gpumon("views", "sql", "--tables", *options)

    assert printed.count(f"engine = {engine}") == len(COLUMNS)
    assert printed.count("engine = Distributed(") == is_distributed * len(COLUMNS)
    assert printed.count(" on cluster `") == is_distributed * len(statements_of(printed))
    assert printed.count("toIntervalDay(") == ("--ttl-days" in options) * len(COLUMNS)
    assert re.findall(r"create or replace view (\w+)", printed) == list(VIEWS)
    assert gpumon("views", "sql").count("create table") == 0


def test_the_tables_file_is_what_the_code_makes():
    """collector-config/clickhouse/tables.sql, for those who set up a server before they have gpumon."""
    assert COMMITTED.read_text() == tables_script(Layout())
