"""What each overlay adds, with a real training: sampling, span metrics, a vendor, ClickHouse."""

import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from otlp_receiver import eventually, receiver
from peers import (
    ClickHouse,
    Gateway,
    Jaeger,
    Prometheus,
    needs_clickhouse,
    needs_collector,
    needs_jaeger,
    needs_prometheus,
)
from run_lines import all_items, all_points, assert_same, spans

pytestmark = needs_collector

PROMETHEUS = Path(__file__).parents[2] / "prometheus" / "prometheus.yml"


def told(span):
    return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}


def reasons(found):
    """Trace → why it was kept; None where no span says it."""
    why = {}
    for span in found:
        why[span["traceId"]] = why.get(span["traceId"]) or told(span).get("gpumon.keep.reason")
    return why


def send_trace(gateway, trace_id, name, **attributes):
    """One span, by hand."""
    now = time.time_ns()
    span = {
        "traceId": trace_id,
        "spanId": f"{abs(hash(name)) % 16**15 + 1:016x}",
        "name": name,
        "startTimeUnixNano": str(now),
        "endTimeUnixNano": str(now + 1000),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }
    service = [{"key": "service.name", "value": {"stringValue": "by-hand"}}]
    body = {"resourceSpans": [{"resource": {"attributes": service}, "scopeSpans": [{"spans": [span]}]}]}
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(
        urllib.request.Request(f"{gateway.http}/v1/traces", json.dumps(body).encode(), headers)
    ).close()


@needs_jaeger
@needs_prometheus
def test_tail_sampling_keeps_whatever_was_kept_for_a_reason(train, steps_arrive, tmp_path):
    """Every slow, failed and first-of-epoch step, whole, and traces of others; of mere samples about a tenth.

    The file has all of them, and the span metrics count all of them.
    """
    with (
        Jaeger(tmp_path / "jaeger") as jaeger,
        Prometheus(tmp_path / "prometheus", PROMETHEUS) as prometheus,
        Gateway(
            tmp_path / "gateway",
            "tailsampling.yaml",
            "spanmetrics.yaml",
            jaeger=jaeger,
            prometheus=prometheus,
            DECISION_WAIT="1s",
            SPAN_METRICS_INTERVAL="1s",
        ) as gateway,
    ):
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file", GPUMON_SPANS="all")
        steps_arrive(gateway, training)
        send_trace(gateway, "a" * 32, "somebody-elses")
        send_trace(gateway, "b" * 32, "a-child")  # its root comes with the next request, and says slow
        send_trace(gateway, "b" * 32, "its-root", **{"gpumon.keep.reason": "slow"})
        time.sleep(7)
        training.finish()
        found = spans(training.run)
        why, sizes = reasons(found), Counter(span["traceId"] for span in found)
        assert Counter(why.values()).keys() >= {"slow", "failed", "first_of_epoch", "sampled"}
        must_stay = {trace for trace, reason in why.items() if reason != "sampled"}

        def in_jaeger():
            return {trace["traceID"]: len(trace["spans"]) for trace in jaeger.traces("training")}

        eventually(lambda: must_stay <= in_jaeger().keys(), timeout_s=15)
        time.sleep(1.5)  # the last decisions
        there = in_jaeger()
        sampled = [trace for trace, reason in why.items() if reason == "sampled"]
        left = [trace for trace in sampled if trace in there]
        print(f"{len(must_stay)} of {len(must_stay)} kept for a reason, {len(left)} of {len(sampled)} samples")
        assert {trace: sizes[trace] for trace in there} == there
        assert 0 < len(left) < len(sampled) / 3
        assert {trace["traceID"] for trace in jaeger.traces("by-hand")} == {"a" * 32, "b" * 32}
        assert len(jaeger.trace("b" * 32)["spans"]) == 2

        files = gateway.by_signal()
        assert {span["traceId"] for span in spans(files)} == why.keys() | {"a" * 32, "b" * 32}

        steps = [span for span in found if span["name"] == "train.step"]
        calls = 'sum by (gpumon_keep_reason) (traces_span_metrics_calls_total{job="training", span_name="train.step"})'
        counted = Counter(told(span)["gpumon.keep.reason"] for span in steps)

        def in_span_metrics():
            series = prometheus.query(calls)
            return {item["metric"]["gpumon_keep_reason"]: float(item["value"][1]) for item in series}

        eventually(lambda: in_span_metrics() == counted, timeout_s=15)
        took = sum(int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) for span in steps) / 1e9
        seconds = 'sum(traces_span_metrics_duration_seconds_sum{job="training", span_name="train.step"})'
        assert float(prometheus.query(seconds)[0]["value"][1]) == pytest.approx(took)
        for series in prometheus.query('{__name__=~"traces_span_metrics_.+", job="training"}'):
            assert not {"gpumon_step_number", "gpumon_run_id", "gpumon_epoch"} & series["metric"].keys()
        exemplars = prometheus.exemplars('traces_span_metrics_duration_seconds_bucket{span_name="train.step"}')
        assert {exemplar["labels"]["trace_id"] for exemplar in exemplars} <= why.keys() and exemplars


def test_a_vendor_gets_everything_with_its_headers(train, steps_arrive, tmp_path):
    """Over HTTP, compressed, under /v1/…, nothing thinned out; the headers come from the environment."""
    with receiver() as vendor:
        headers = {"api-key": "top secret", "x-scope": "team=a,b"}
        with Gateway(
            tmp_path / "gateway",
            "vendor.yaml",
            VENDOR_ENDPOINT=vendor.endpoint,
            VENDOR_HEADERS=json.dumps(headers),
        ) as gateway:
            training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file")
            steps_arrive(gateway, training)
            training.finish()
            gateway.stop()
        log = gateway.log.read_text()
    assert {path for path, _, _ in vendor.requests} >= {"/v1/traces", "/v1/metrics"}
    for _, sent, _ in vendor.requests:
        sent = {name.lower(): value for name, value in sent.items()}
        assert {name: sent.get(name) for name in headers} == headers
        assert sent["content-encoding"] == "gzip"
    assert len(vendor.spans()) == len(spans(training.run))
    sent = Counter(point["metric"] for point in all_points(training.run))
    arrived = Counter()
    for metric in vendor.metrics():
        arrived[metric.name] += len(getattr(metric, metric.WhichOneof("data")).data_points)
    assert arrived == sent
    assert "top secret" not in log


@needs_clickhouse
def test_clickhouse_gets_everything(train, steps_arrive, tmp_path):
    """As many rows as there are spans, points and events, with every attribute, in the tables of the names we know."""
    with (
        ClickHouse(tmp_path / "clickhouse") as clickhouse,
        Gateway(
            tmp_path / "gateway",
            "clickhouse.yaml",
            "tailsampling.yaml",
            clickhouse=clickhouse,
            CLICKHOUSE_DATABASE="default",
            CLICKHOUSE_COMPRESS="none",
            CLICKHOUSE_CREATE_SCHEMA="true",
            CLICKHOUSE_FLUSH="500ms",
        ) as gateway,
    ):
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file")
        steps_arrive(gateway, training)
        training.finish()
        gateway.stop()
        assert_same(training.run, gateway.by_signal())

        def count(table):
            return int(clickhouse.query(f"select count() as n from {table}")[0]["n"])

        points = Counter(kind(point) for point in all_points(training.run))
        expected = {
            "otel_traces": len(spans(training.run)),
            "otel_logs": len(all_items(training.run, "logs", "logRecords")),
            **{f"otel_metrics_{name}": number for name, number in points.items()},
        }
        assert {table: count(table) for table in expected} == expected
        run = json.loads((training.run / "run.json").read_text())["id"]
        for table in ("otel_traces", "otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram"):
            found = clickhouse.query(f"select distinct ResourceAttributes['gpumon.run.id'] as run from {table}")
            assert [row["run"] for row in found] == [run]
        numbers = clickhouse.query(
            "select SpanAttributes['gpumon.step.number'] as n from otel_traces where SpanName = 'train.step'"
        )
        assert Counter(row["n"] for row in numbers) == Counter(
            told(span).get("gpumon.step.number", "") for span in spans(training.run) if span["name"] == "train.step"
        )


def kind(point):
    """The table of a point: of numbers, those with a start are sums."""
    if "bucketCounts" in point:
        return "histogram"
    return "sum" if "startTimeUnixNano" in point else "gauge"
