"""The gateway killed in mid-run, and its backends away: the training does not notice, and nothing is lost."""

import re
import statistics
import time
import urllib.request
from pathlib import Path

import pytest

from otlp_receiver import eventually
from peers import Gateway, Jaeger, Prometheus, needs_collector, needs_jaeger, needs_prometheus
from run_lines import all_points, assert_same, spans

pytestmark = [pytest.mark.alone, needs_collector, needs_jaeger, needs_prometheus]

PROMETHEUS = Path(__file__).parents[2] / "prometheus" / "prometheus.yml"
COUNT = "gpumon_step_count_total"
REFUSED = re.compile(r"gpumon cannot deliver to \S+ now \(")
"""What gpumon says, with the reason, when a receiver does not take something."""


@pytest.fixture
def backends(tmp_path):
    with Jaeger(tmp_path / "jaeger") as jaeger, Prometheus(tmp_path / "prometheus", PROMETHEUS) as prometheus:
        yield jaeger, prometheus


@pytest.mark.parametrize("outage_s", [pytest.param(5, id="5s"), pytest.param(60, id="60s", marks=pytest.mark.scenario)])
def test_a_gateway_that_is_killed(train, steps_arrive, backends, tmp_path, outage_s):
    """SIGKILL, and back later: the steps go on at their pace; the file, Jaeger and Prometheus miss nothing."""
    jaeger, prometheus = backends
    with Gateway(tmp_path / "gateway", prometheus=prometheus, jaeger=jaeger) as gateway:
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file")
        steps_arrive(gateway, training)
        time.sleep(2)
        # What it has taken and not handed on is lost with it: its queues are in memory (secure.yaml: on disk).
        eventually(lambda: handed_on(gateway, jaeger, prometheus), timeout_s=20)
        gateway.kill()
        began = time.time()
        time.sleep(outage_s)
        ended = time.time()
        gateway.start()
        time.sleep(3)
        said = training.finish()

        in_it, outside = (
            [took for at, took, is_slow in said["steps"][20:] if (began < at < ended) is inside and not is_slow]
            for inside in (True, False)
        )
        ratio = statistics.median(in_it) / statistics.median(outside)
        print(
            f"killed for {outage_s} s: {len(in_it)} steps meanwhile, step time x{ratio:.3f}, "
            f"exit {said['exit_s']:.2f} s; {len(spans(gateway.by_signal()))} of {len(spans(training.run))} spans and "
            f"{len(list(all_points(gateway.by_signal())))} of {len(list(all_points(training.run)))} points in the file"
        )
        assert_same(training.run, gateway.by_signal())
        assert len(in_it) > 10 * outage_s
        assert ratio < 1.2
        assert said["exit_s"] < 3
        assert len(REFUSED.findall(said["log"])) == 1
        kept = {span["traceId"] for span in spans(training.run)}
        eventually(lambda: {trace["traceID"] for trace in jaeger.traces("training")} == kept, timeout_s=20)
        eventually(lambda: samples(prometheus, COUNT) == counted(training.run), timeout_s=20)


def handed_on(gateway, jaeger, prometheus):
    files = gateway.by_signal()
    there = {trace["traceID"] for trace in jaeger.traces("training")}
    return {span["traceId"] for span in spans(files)} <= there and samples(prometheus, COUNT) == counted(files)


def samples(prometheus, name):
    """(time in ms, value) of every sample of a counter."""
    found = prometheus.query(f"{name}[1h]")
    return [(round(at * 1000), float(value)) for series in found for at, value in series["values"]]


def counted(run):
    """The same of the run directory."""
    found = [point for point in all_points(run) if point["metric"] == "gpumon.step.count"]
    return [(int(point["timeUnixNano"]) // 10**6, float(point["asInt"])) for point in found]


def test_backends_that_are_away(train, backends, tmp_path):
    """Jaeger and Prometheus are stopped for a while: the file has all of it once, and both get the rest later."""
    jaeger, prometheus = backends
    with Gateway(tmp_path / "gateway", prometheus=prometheus, jaeger=jaeger) as gateway:
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file")
        eventually(lambda: samples(prometheus, COUNT), timeout_s=30)
        jaeger.stop()
        prometheus.stop()
        time.sleep(4)
        jaeger.start()
        prometheus.start()
        said = training.finish()

        assert not REFUSED.search(said["log"])
        assert_same(training.run, gateway.by_signal())
        eventually(lambda: samples(prometheus, COUNT) == counted(training.run), timeout_s=30)
        late = {span["traceId"] for span in spans(training.run)} - {
            trace["traceID"] for trace in jaeger.traces("training")
        }
        print(f"{len(late)} of the traces went with Jaeger's memory, before it stopped")


def test_a_backend_that_never_comes_back(train, steps_arrive, tmp_path):
    """Nobody takes metrics or traces, and the queues are full: the file has all of it, the training is not told."""
    with Gateway(tmp_path / "gateway", QUEUE_BYTES="1100000") as gateway:
        more = {"OTEL_METRIC_EXPORT_INTERVAL": "100", "GPUMON_SPANS": "all"}
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file", **more)
        steps_arrive(gateway, training)

        def dropped():
            with urllib.request.urlopen(gateway.own_metrics) as answer:
                text = answer.read().decode()
            return sum(map(float, re.findall(r"^otelcol_exporter_enqueue_failed_metric_\S+ (\S+)$", text, re.M))) > 1000

        eventually(dropped, timeout_s=90)
        said = training.finish()
        assert not REFUSED.search(said["log"])
        assert_same(training.run, gateway.by_signal())
