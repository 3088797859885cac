"""Names: as our function says them, as the real Prometheus has them, as dashboards, rules and views use them."""

import re
import threading
from importlib import resources
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.resources import Resource

from gpumon.buckets import Buckets
from gpumon.metrics import BY_NAME, CATALOGUE
from gpumon.telemetry.node import prometheus_app
from gpumon.telemetry.reader import Reader
from monitoring.dashboards import BOARDS
from monitoring.names import label, prometheus_name, series_names
from monitoring.rules import ALERTS, RECORDS
from otlp_receiver import eventually
from peers import Prometheus, needs_prometheus
from promql_selectors import labels, names

RESOURCE = {"job", "instance", "host_name", "gpumon_node_id", "gpumon_run_id", "gpumon_rank"}
OF_ALERTS = {"alertname", "alertstate", "severity", "reason", "monitor"}


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def values(metric, _reader):
    """A point of every metric, with every attribute that it may have."""
    return [(1.0, dict.fromkeys(metric.attributes, "x"))]


def histograms():
    buckets = Buckets()
    buckets.add(0.1)
    for metric in CATALOGUE:
        if metric.kind == "histogram":
            yield metric, dict.fromkeys(metric.attributes, "x"), buckets


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """All of the catalogue is in it, over OTLP (job: pushed) and from a page /metrics (job: scraped)."""
    described = Resource.create({"service.name": "pushed", "service.instance.id": "1", "host.name": "here"})
    page = make_server("127.0.0.1", 0, prometheus_app(values, histograms, described), handler_class=Quiet)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    scrape = f'[{{job_name: scraped, static_configs: [{{targets: ["127.0.0.1:{page.server_port}"]}}]}}]'
    config = f"global: {{scrape_interval: 1s}}\nscrape_configs: {scrape}\n"
    with Prometheus(tmp_path_factory.mktemp("names"), config) as server:
        data = Reader(values, histograms, described).read()
        OTLPMetricExporter(endpoint=f"{server.otlp}/v1/metrics").export(data)
        eventually(lambda: server.query('{job="scraped", __name__=~"gpumon_.*"}'))
        yield server
    page.shutdown()


def series(prometheus, job):
    found = prometheus.query(f'{{job="{job}", __name__=~"gpumon_.*|hw_.*|system_.*|process_.*"}}')
    return {each["metric"]["__name__"]: each["metric"].keys() for each in found}


@needs_prometheus
@pytest.mark.parametrize("job", ["pushed", "scraped"])
def test_every_name_is_what_prometheus_makes_of_it(prometheus, job):
    """Of the whole catalogue, no name more and none less; and every attribute's label."""
    found = series(prometheus, job)
    expected = {name: metric for metric in CATALOGUE for name in series_names(metric, is_scraped=job == "scraped")}
    assert found.keys() == expected.keys()
    for name, metric in expected.items():
        assert {label(attribute) for attribute in metric.attributes} <= found[name], name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpumon.step.time", "gpumon_step_time_seconds_total"),
        ("gpumon.step.duration", "gpumon_step_duration_seconds"),
        ("hw.gpu.utilization", "hw_gpu_utilization_ratio"),
        ("hw.fan.speed_ratio", "hw_fan_speed_ratio"),
        ("hw.status", "hw_status"),
        ("gpumon.disk.limit.io", "gpumon_disk_limit_io_bytes_per_second"),
        ("gpumon.disk.limit.operations", "gpumon_disk_limit_operations_per_second"),
        ("system.disk.io_time", "system_disk_io_time_seconds_total"),
    ],
)
def test_names_that_have_a_twist(name, expected):
    assert prometheus_name(BY_NAME[name]) == expected


def test_no_two_metrics_have_one_name():
    told = [name for metric in CATALOGUE for name in series_names(metric)]
    assert len(told) == len(set(told))


# -- who uses them ----------------------------------------------------------------------------------------

KNOWN = {name for metric in CATALOGUE for way in (False, True) for name in series_names(metric, is_scraped=way)}
RECORDED = {record.name for record in RECORDS}
LABELS = {label(attribute) for metric in CATALOGUE for attribute in metric.attributes} | RESOURCE | OF_ALERTS


def plain(expression):
    """Without Grafana's variables, which are no PromQL where a time is wanted."""
    return re.sub(r"\$__\w+", "1m", expression)


@needs_prometheus
def test_rules_use_the_catalogue(prometheus):
    for rule in (*RECORDS, *ALERTS):
        used = names(prometheus, rule.expr)
        assert used and used <= KNOWN | RECORDED | {"target_info", "ALERTS"}, rule.name
        assert labels(prometheus, rule.expr) <= LABELS, rule.name


@needs_prometheus
def test_dashboards_use_the_catalogue(prometheus):
    """Recorded series they do without: they work where the rules were not loaded."""
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                used = names(prometheus, plain(query.expr))
                assert used and used <= KNOWN | {"target_info", "ALERTS"}, panel.title
                assert labels(prometheus, plain(query.expr)) <= LABELS, panel.title
        for variable in board.variables:
            assert names(prometheus, plain(variable.query.removeprefix("label_values(").rpartition(",")[0])), variable


def test_views_use_the_catalogue():
    """Every name that a view compares a metric with."""
    views = resources.files("gpumon.analysis.views")
    used = {}
    for view in views.iterdir():
        if view.name.endswith(".sql"):
            text = re.sub(r"--[^\n]*", "", view.read_text())
            for compared in re.findall(
                r"""(?:\bmetric|"MetricName"|metric_name)\s*(?:=|<>|in\s*\()([^)]*?)(?:\)|\band\b|\bor\b|\bthen\b|\n|$)""",
                text,
            ):
                for name in re.findall(r"'([^']+)'", compared):
                    used.setdefault(name, view.name)
    assert len(used) > 20
    assert {name: view for name, view in used.items() if name not in BY_NAME} == {}
