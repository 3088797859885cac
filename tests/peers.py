"""The real servers that signals go to: Jaeger, Prometheus and Alertmanager, ClickHouse's engine, each on free ports.

    with Prometheus(tmp_path / "prometheus") as prometheus:
        ...  # send to prometheus.otlp
        eventually(lambda: prometheus.query("gpumon_step_count_total"))

Each is the program on PATH or the one that its variable names; tests that need one are marked `@needs_jaeger` and
so on, and skipped elsewhere. `Gateway` is the Collector with the files of collector-config/; with a configuration
that a test brings it is in `otel_collector.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_collector import OTELCOL, free_port
from otlp_receiver import eventually


def _program(variable: str, name: str) -> str | None:
    return os.environ.get(variable) or shutil.which(name)


JAEGER = _program("JAEGER", "jaeger")
PROMETHEUS = _program("PROMETHEUS", "prometheus")
PROMTOOL = _program("PROMTOOL", "promtool")
ALERTMANAGER = _program("ALERTMANAGER", "alertmanager") or shutil.which("prometheus-alertmanager")  # Debian's name
CLICKHOUSE_HTTP = _program("CLICKHOUSE_HTTP", "clickhouse-http")

needs_collector = pytest.mark.skipif(
    OTELCOL is None,
    reason="no Collector: put otelcol on PATH or set OTELCOL (opentelemetry.io/docs/collector/install)",
)
needs_jaeger = pytest.mark.skipif(
    JAEGER is None, reason="no Jaeger: put jaeger on PATH or set JAEGER (jaegertracing.io/download)"
)
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="no Prometheus: put prometheus on PATH or set PROMETHEUS (prometheus.io/download)"
)
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool: put it on PATH or set PROMTOOL (prometheus.io/download, or apt: prometheus)"
)
needs_alertmanager = pytest.mark.skipif(
    ALERTMANAGER is None,
    reason="no Alertmanager: put alertmanager on PATH or set ALERTMANAGER (apt: prometheus-alertmanager)",
)
needs_clickhouse = pytest.mark.skipif(
    CLICKHOUSE_HTTP is None,
    reason="no ClickHouse: put clickhouse-http (chdb behind ClickHouse's interface) on PATH or set CLICKHOUSE_HTTP",
)


class Peer:
    """A server that is started, stopped, killed and started again; `url` is where it answers, `log` what it says."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str | Path],
        ready: str,
        environment: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> None:
        """*ready*: a URL that answers with 2xx once the server serves; *cwd*: instead of *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._cwd = cwd or folder
        self.log = folder / "log"
        self.url = "{0.scheme}://{0.netloc}".format(urllib.parse.urlsplit(ready))
        self._command, self._ready, self._environment = list(command), ready, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout_s: float = 60) -> None:
        with open(self.log, "a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._cwd, env={**os.environ, **self._environment}, stdout=log, stderr=log
            )
        try:
            eventually(self._is_ready, timeout_s=timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 30) -> None:
        """End it in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout_s)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def get(self, path: str, **parameters: str | int | float) -> Any:
        """JSON of a GET."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=30) as answer:
            return json.load(answer)

    def _is_ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(self._ready, timeout=2):
                return True
        except OSError:
            return False


_JAEGER = """
service:
  extensions: [jaeger_storage, jaeger_query]
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
extensions:
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 100000}}}}}}}}
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}
receivers:
  otlp:
    protocols:
      http: {{endpoint: "127.0.0.1:{http}"}}
      grpc: {{endpoint: "127.0.0.1:{grpc}"}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""


class Jaeger(Peer):
    """Jaeger, all in one, in memory. `http` and `grpc` take OTLP, `url` is the query API's."""

    def __init__(self, folder: Path) -> None:
        assert JAEGER is not None
        folder.mkdir(parents=True, exist_ok=True)
        ports = {name: free_port() for name in ("http", "grpc", "query", "query_grpc")}
        self.http, self.grpc = (f"http://127.0.0.1:{ports[name]}" for name in ("http", "grpc"))
        config = folder / "jaeger.yaml"
        config.write_text(_JAEGER.format(**ports))
        super().__init__(folder, [JAEGER, f"--config={config}"], f"http://127.0.0.1:{ports['query']}/api/services")

    def services(self) -> list[str]:
        return self.get("/api/services")["data"] or []

    def traces(self, service: str, *, limit: int = 10_000, **parameters: str | int) -> list[dict[str, Any]]:
        """The traces that a search finds; *parameters* are the API's: `tags` (JSON), `minDuration`, `operation` …"""
        found: list[dict[str, Any]] = self.get(
            "/api/traces", service=service, limit=limit, **{"lookback": "1h", **parameters}
        )["data"]
        return found

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """One trace as the API gives it, None where it is unknown."""
        try:
            found = self.get(f"/api/traces/{trace_id}")["data"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return found[0] if found else None


def tags(span: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a span of Jaeger's API."""
    return {tag["key"]: tag["value"] for tag in span["tags"]}


class Prometheus(Peer):
    """Prometheus with the OTLP receiver and exemplars. `otlp` is the endpoint that takes OTLP over HTTP."""

    def __init__(self, folder: Path, config: Path | str = "global: {scrape_interval: 1s}", *options: str) -> None:
        """*config*: a configuration file, or its text; *options*: further flags."""
        assert PROMETHEUS is not None
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(config, str):
            (folder / "prometheus.yml").write_text(config)
            config = folder / "prometheus.yml"
        port = free_port()
        command = [
            *(PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--web.enable-otlp-receiver", "--web.enable-lifecycle"),
            *("--enable-feature=exemplar-storage", *options),
        ]
        super().__init__(folder, command, f"http://127.0.0.1:{port}/-/ready")
        self.otlp = f"{self.url}/api/v1/otlp"

    def query(self, promql: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query, each with `metric` (labels) and `value` ([time, text])."""
        data = self.get("/api/v1/query", query=promql, **({} if at is None else {"time": at}))["data"]
        result: list[dict[str, Any]] = data["result"]
        return result

    def query_range(self, promql: str, start: float, end: float, step: float = 1) -> list[dict[str, Any]]:
        """The series of a range query, each with `metric` (labels) and `values`."""
        data = self.get("/api/v1/query_range", query=promql, start=start, end=end, step=step)["data"]
        result: list[dict[str, Any]] = data["result"]
        return result

    def exemplars(self, promql: str) -> list[dict[str, Any]]:
        """The exemplars of the last hour, each with `labels` (trace_id, span_id), `value`, `timestamp`."""
        now = time.time()
        found = self.get("/api/v1/query_exemplars", query=promql, start=now - 3600, end=now + 60)["data"]
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def names(self) -> list[str]:
        """The names of all metrics."""
        found: list[str] = self.get("/api/v1/label/__name__/values")["data"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/v1/alerts")["data"]["alerts"]
        return found


class Alertmanager(Peer):
    """Alertmanager, alone."""

    def __init__(self, folder: Path, config: Path) -> None:
        assert ALERTMANAGER is not None
        address = f"127.0.0.1:{free_port()}"
        command = [
            *(ALERTMANAGER, f"--config.file={config}", f"--storage.path={folder / 'data'}"),
            *(f"--web.listen-address={address}", "--cluster.listen-address="),
        ]
        super().__init__(folder, command, f"http://{address}/-/ready")

    def alerts(self) -> list[dict[str, Any]]:
        """What was reported, each with `labels`, `receivers` and `status` (`state`, `inhibitedBy`)."""
        found: list[dict[str, Any]] = self.get("/api/v2/alerts")
        return found


class ClickHouse(Peer):
    """ClickHouse's engine behind its HTTP interface; `url` serves clickhouse-connect and the Collector's exporter.

    The exporter reaches it with `endpoint: {url}/default` and `compress: none`.
    """

    def __init__(self, folder: Path, config: Path | None = None) -> None:
        """*config*: a configuration of the server's, for clusters and macros."""
        assert CLICKHOUSE_HTTP is not None
        self.port = free_port()
        data = folder.resolve() / "data"
        place = data if config is None else f"file:{data}?config-file={config}"
        command = [sys.executable, CLICKHOUSE_HTTP, "--port", str(self.port), "--path", place]
        super().__init__(folder, command, f"http://127.0.0.1:{self.port}/ping")

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query, or nothing of a statement."""
        url = f"{self.url}/?default_format=JSONEachRow"
        try:
            with urllib.request.urlopen(url, sql.encode(), timeout=120) as answer:
                return [json.loads(line) for line in answer.read().splitlines()]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode(errors="replace")[:2000]) from None


CONFIGS = Path(__file__).parent.parent / "collector-config"


class Gateway(Peer):
    """The Collector with `collector-config/gateway.yaml` and overlays of that folder, in this order.

    `http` and `grpc` take OTLP; `file` is what its file exporter writes; backends that are not given are not there.
    """

    def __init__(
        self,
        folder: Path,
        *overlays: str,
        prometheus: Prometheus | None = None,
        jaeger: Jaeger | None = None,
        clickhouse: ClickHouse | None = None,
        base: str = "gateway.yaml",
        **environment: str,
    ) -> None:
        """*environment*: variables that the files name, instead of those chosen here."""
        assert OTELCOL is not None
        ports = {name: str(free_port()) for name in ("OTLP_GRPC_PORT", "OTLP_HTTP_PORT", "HEALTH_PORT")}
        nobody = f"127.0.0.1:{free_port()}"
        self.data = folder.resolve() / "data"
        self.file = self.data / "otlp.jsonl"
        environment = {
            **ports,
            "OWN_METRICS_PORT": str(free_port()),
            "DATA_DIR": str(self.data),
            "PROMETHEUS_OTLP_ENDPOINT": prometheus.otlp if prometheus else f"http://{nobody}",
            "TRACES_ENDPOINT": jaeger.grpc.removeprefix("http://") if jaeger else nobody,
            **({"CLICKHOUSE_ENDPOINT": f"{clickhouse.url}/default"} if clickhouse else {}),
            **environment,
        }
        self.http, self.grpc = (f"http://127.0.0.1:{ports[f'OTLP_{name}_PORT']}" for name in ("HTTP", "GRPC"))
        self.own_metrics = f"http://127.0.0.1:{environment['OWN_METRICS_PORT']}/metrics"
        configs = [f"--config={CONFIGS / name}" for name in (base, *overlays)]
        super().__init__(folder, [OTELCOL, *configs], f"http://127.0.0.1:{ports['HEALTH_PORT']}/", environment)

    @property
    def files(self) -> list[Path]:
        """What the file exporter wrote, closed files first."""
        return [*sorted(self.data.glob("otlp-*.jsonl")), *self.data.glob("otlp.jsonl")]

    def by_signal(self) -> Path:
        """A folder with the same lines as files per signal, as a run directory has them (`run_lines` reads it)."""
        folder = self.folder / "by_signal"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        signals = {'{"resourceSpans"': "traces", '{"resourceMetrics"': "metrics", '{"resourceLogs"': "logs"}
        for path in self.files:
            for line in path.read_text().splitlines(keepends=True):
                with open(folder / f"{signals[line.partition(':')[0]]}.0.1.jsonl", "a") as file:
                    file.write(line)
        return folder
