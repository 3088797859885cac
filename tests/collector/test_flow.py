"""A recorded and a live training through the gateway: what arrives in the file, in Jaeger and in Prometheus."""

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from live_training import LiveTraining
from otlp_receiver import eventually
from peers import Gateway, Jaeger, Prometheus, needs_collector, needs_jaeger, needs_prometheus, tags
from run_lines import all_items, all_points, assert_same, lines, spans

pytestmark = [needs_collector, needs_jaeger, needs_prometheus]

PROMETHEUS = Path(__file__).parents[2] / "prometheus" / "prometheus.yml"
SENT = "(gpumon|hw|system|process)_[^:]+"  # what rules recorded has colons
HISTOGRAMS = "gpumon_(step|data_wait|collector)_duration_seconds_(bucket|sum|count)"


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Both trainings, ended, and everything arrived: over HTTP with a run directory beside, over gRPC without."""
    folder = tmp_path_factory.mktemp("flow")
    with (
        Jaeger(folder / "jaeger") as jaeger,
        Prometheus(folder / "prometheus", PROMETHEUS) as prometheus,
        Gateway(folder / "gateway", prometheus=prometheus, jaeger=jaeger) as gateway,
    ):
        recorded = LiveTraining(
            folder / "recorded", "recorded", OTEL_EXPORTER_OTLP_ENDPOINT=gateway.http, GPUMON_EXPORT="otlp+file"
        )
        live = LiveTraining(
            folder / "live", "live", OTEL_EXPORTER_OTLP_ENDPOINT=gateway.grpc, OTEL_EXPORTER_OTLP_PROTOCOL="grpc"
        )
        time.sleep(8)
        done = {"recorded": recorded.finish(), "live": live.finish()}
        for service, said in done.items():
            eventually(lambda: count(prometheus, service) == len(said["steps"]), timeout_s=20)
        files = {service: select(gateway, service, folder / f"{service}_files") for service in done}
        eventually(
            lambda: all(trace_sizes(jaeger, service) == sizes(spans(files[service])) for service in done), timeout_s=20
        )
        yield SimpleNamespace(
            jaeger=jaeger, prometheus=prometheus, gateway=gateway, run=recorded.run, done=done, files=files
        )


def count(prometheus, service):
    found = prometheus.query(f'gpumon_step_count_total{{job="{service}"}}')
    return found and float(found[0]["value"][1])


def select(gateway, service, folder):
    """The lines of one service, by signal: a line is what one process sent at once."""
    folder.mkdir()
    for signal in ("traces", "metrics", "logs"):
        with open(folder / f"{signal}.0.1.jsonl", "w") as file:
            for line in lines(gateway.by_signal(), signal):
                if f'"{service}"' in json.dumps(line):
                    file.write(json.dumps(line) + "\n")
    return folder


def sizes(found):
    return Counter(span["traceId"] for span in found)


def trace_sizes(jaeger, service):
    return Counter({trace["traceID"]: len(trace["spans"]) for trace in jaeger.traces(service)})


def test_the_file_holds_what_was_sent(flow):
    """Span by span and point by point what the run directory holds, once."""
    assert_same(flow.run, flow.files["recorded"])
    points, kept = len(list(all_points(flow.run))), len(spans(flow.run))
    print(f"{kept} spans, {points} points and {len(all_items(flow.run, 'logs', 'logRecords'))} events in the file")
    assert kept > 30 and points > 300


def test_the_live_training_is_there_too(flow):
    """Its last point counts every step it did."""
    last = [point for point in all_points(flow.files["live"]) if point["metric"] == "gpumon.step.count"][-1]
    assert int(last["asInt"]) == len(flow.done["live"]["steps"])


def test_jaeger_has_every_kept_trace(flow):
    """Every trace of the run directory with every one of its spans, and no more; the live one's as in the file."""
    assert trace_sizes(flow.jaeger, "recorded") == sizes(spans(flow.run))
    assert trace_sizes(flow.jaeger, "live") == sizes(spans(flow.files["live"]))


def test_jaeger_finds_slow_and_failed_steps(flow):
    """By tag and by minimum duration: those that the run directory has."""
    steps = [span for span in spans(flow.run) if span["name"] == "train.step"]

    def kept(is_wanted):
        told = [({item["key"]: item["value"] for item in step["attributes"]}, step) for step in steps]
        return {step["traceId"] for attributes, step in told if is_wanted(step, attributes)}

    def found(**search):
        return {trace["traceID"] for trace in flow.jaeger.traces("recorded", operation="train.step", **search)}

    slow = kept(lambda _, told: told["gpumon.step.slow"]["boolValue"])
    failed = kept(lambda step, _: step["status"].get("code") == 2)
    first = kept(lambda _, told: told["gpumon.step.first_of_epoch"]["boolValue"])
    long = kept(lambda step, _: int(step["endTimeUnixNano"]) - int(step["startTimeUnixNano"]) >= 250e6)
    assert slow and failed and first and long
    assert found(tags='{"gpumon.step.slow":"true"}') == slow
    assert found(tags='{"gpumon.keep.reason":"failed"}') == failed
    assert found(tags='{"gpumon.step.first_of_epoch":"true"}') == first
    assert found(minDuration="250ms") == long
    assert found(tags='{"gpumon.step.slow":"true"}', minDuration="250ms") == slow & long


def test_prometheus_has_every_point(flow):
    """As many samples as the run directory has points, and of histograms the last sum and count."""
    sent = [point for point in all_points(flow.run) if "bucketCounts" not in point]
    series = flow.prometheus.query(f'{{job="recorded", __name__=~"{SENT}", __name__!~"{HISTOGRAMS}"}}[30m]')
    assert sum(len(found["values"]) for found in series) == len(sent)
    duration = [point for point in all_points(flow.run) if point["metric"] == "gpumon.step.duration"][-1]
    for part in ("count", "sum"):
        (last,) = flow.prometheus.query(f'gpumon_step_duration_seconds_{part}{{job="recorded"}}')
        assert float(last["value"][1]) == pytest.approx(float(duration[part]))


@pytest.mark.parametrize("service", ["recorded", "live"])
def test_an_exemplar_opens_the_trace_of_its_step(flow, service):
    """From a point of gpumon.step.duration in Prometheus' API to the trace in Jaeger's: that step, that long."""
    exemplars = flow.prometheus.exemplars(f'gpumon_step_duration_seconds_bucket{{job="{service}"}}')
    assert len(exemplars) > 3
    slow = []
    for exemplar in exemplars:
        trace = flow.jaeger.trace(exemplar["labels"]["trace_id"])
        (step,) = [span for span in trace["spans"] if span["spanID"] == exemplar["labels"]["span_id"]]
        assert step["operationName"] == "train.step"
        assert step["duration"] / 1e6 == pytest.approx(float(exemplar["value"]), abs=2e-6)
        slow.append((float(exemplar["value"]), tags(step)["gpumon.step.slow"]))
    assert max(slow)[0] > 0.3 and max(slow)[1], "the slowest exemplar is a slow step's"


def test_series_have_the_labels_that_queries_join_on(flow):
    """job, instance, host_name and rank on every series; the run on target_info, for joins."""
    series = flow.prometheus.query(f'{{job="recorded", __name__=~"{SENT}"}}')
    assert len(series) > 30
    for labels in (found["metric"] for found in series):
        assert {"job", "instance", "host_name", "gpumon_node_id", "gpumon_rank"} <= labels.keys()
        assert not {"gpumon_run_id", "gpumon_step_number", "process_pid"} & labels.keys()
    joined = "gpumon_step_count_total * on (job, instance) group_left (gpumon_run_id) target_info"
    runs = {found["metric"]["gpumon_run_id"] for found in flow.prometheus.query(joined)}
    assert len(runs) == 2 and json.loads((flow.run / "run.json").read_text())["id"] in runs


def report(*arguments):
    done = subprocess.run([sys.executable, "-m", "gpumon.cli", "report", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_report_on_the_file_says_what_the_runs_own_says(flow, tmp_path):
    """Of one run, picked out of a file of two with grep: verdict, findings, devices and every figure."""
    run_id = json.loads((flow.run / "run.json").read_text())["id"]
    one = tmp_path / "run.jsonl"
    with open(one, "w") as file:
        subprocess.run(["grep", "-h", run_id, *flow.gateway.files], stdout=file, check=True)
    ours, theirs = (json.loads(report(str(place), "--json")) for place in (flow.run, one))
    assert 0 < len(one.read_text().splitlines()) < len(flow.gateway.file.read_text().splitlines())
    assert_close(ours, theirs)


def assert_close(ours, theirs, path=""):
    """Equal, numbers within rounding. Only run.json knows when the process began, a moment before it measured."""
    if path in (".run.path", ".run.exit_code", ".run.complete", ".run.started", ".run.service"):
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            assert_close(ours.get(key), theirs.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(one, other, f"{path}[{at}]")
    elif isinstance(ours, float) and isinstance(theirs, (int, float)):
        is_since_the_start = path.endswith(("from_s", "to_s", "duration_s"))
        assert theirs == pytest.approx(ours, rel=1e-6, abs=0.2 if is_since_the_start else 1e-9), path
    else:
        assert ours == theirs, path


def test_the_nodes_own_metrics_change_no_report(train, tmp_path):
    """A file that also holds what agent.yaml's Collector read of the host gives the figures of the run's directory."""
    with (
        Gateway(tmp_path / "gateway") as gateway,
        Gateway(
            tmp_path / "agent",
            base="agent.yaml",
            GATEWAY_ENDPOINT=gateway.grpc.removeprefix("http://"),
            HOST_METRICS_INTERVAL="500ms",
        ) as agent,
    ):
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=agent.http, GPUMON_EXPORT="otlp+file")
        time.sleep(5)
        training.finish()
        agent.stop()
        assert any(point["metric"] == "collector.system.disk.io" for point in all_points(gateway.by_signal()))
        ours, theirs = (json.loads(report(str(place), "--json")) for place in (training.run, gateway.file))
    assert ours["steps"]["count"] and ours["devices"]
    assert_close(ours, theirs)


def post(gateway, signal, body):
    """OTLP as JSON, by hand."""
    headers = {"Content-Type": "application/json"}
    url = f"{gateway.http}/v1/{signal}"
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).close()


def test_only_prometheus_gets_less(flow):
    """Runs and step numbers on points, as an application's own providers send them, are whole in the file.

    In Prometheus they are no labels, and two runs that do not say which instance they are stay apart.
    """
    now = time.time_ns()

    def point(run, value):
        told = {"gpumon.run.id": run, "gpumon.rank": "0", "gpumon.step.number": "7", "gpumon.epoch": "3", "own": "yes"}
        attributes = [{"key": key, "value": {"stringValue": text}} for key, text in told.items()]
        return {"attributes": attributes, "timeUnixNano": str(now), "startTimeUnixNano": str(now), "asDouble": value}

    def request(run, value):
        data = {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": [point(run, value)]}
        service = [{"key": "service.name", "value": {"stringValue": "own-providers"}}]
        scope = {"metrics": [{"name": "gpumon.test.count", "unit": "{step}", "sum": data}]}
        return {"resourceMetrics": [{"resource": {"attributes": service}, "scopeMetrics": [scope]}]}

    for run, value in (("run-a", 5), ("run-b", 9)):
        post(flow.gateway, "metrics", request(run, value))
    eventually(lambda: len(flow.prometheus.query("gpumon_test_count_total")) == 2)

    found = flow.prometheus.query("gpumon_test_count_total")
    assert {series["metric"]["instance"]: series["value"][1] for series in found} == {"run-a/0": "5", "run-b/0": "9"}
    for series in found:
        assert set(series["metric"]) == {"__name__", "job", "instance", "gpumon_rank", "own"}
    whole = [point for point in all_points(flow.gateway.by_signal()) if point["metric"] == "gpumon.test.count"]
    assert [{item["key"] for item in point["attributes"]} for point in whole] == [
        {"gpumon.run.id", "gpumon.rank", "gpumon.step.number", "gpumon.epoch", "own"}
    ] * 2


def test_the_gateway_adds_what_it_was_told_and_no_host_of_its_own(tmp_path):
    """Its OTEL_RESOURCE_ATTRIBUTES, where the sender does not say the same; where it runs is nobody's host."""
    told = "deployment.environment.name=lab,service.name=gateway"
    with Gateway(tmp_path / "gateway", OTEL_RESOURCE_ATTRIBUTES=told) as gateway:
        record = {"body": {"stringValue": "hello"}}
        service = {"key": "service.name", "value": {"stringValue": "sender"}}
        sent = [{"resource": {"attributes": [service]}, "scopeLogs": [{"logRecords": [record]}]}]
        post(gateway, "logs", {"resourceLogs": sent})
        (line,) = lines(gateway.by_signal(), "logs")
        attributes = line["resourceLogs"][0]["resource"]["attributes"]
        assert {item["key"]: item["value"]["stringValue"] for item in attributes} == {
            "service.name": "sender",
            "deployment.environment.name": "lab",
        }


def test_prometheus_takes_what_comes_late(flow):
    """A run of days ago, replayed with its own times beside newer points of the same series."""
    days_ago = time.time_ns() - 5 * 24 * 3600 * 10**9

    def request(at, value):
        data = {"dataPoints": [{"timeUnixNano": str(at), "asDouble": value}]}
        told = {"service.name": "replayed", "service.instance.id": "1"}
        attributes = [{"key": key, "value": {"stringValue": text}} for key, text in told.items()]
        scope = {"metrics": [{"name": "gpumon.test.gauge", "gauge": data}]}
        return {"resourceMetrics": [{"resource": {"attributes": attributes}, "scopeMetrics": [scope]}]}

    for at, value in ((time.time_ns(), 2), (days_ago, 1)):
        post(flow.gateway, "metrics", request(at, value))

    def at_both():
        found = [flow.prometheus.query("gpumon_test_gauge", at=at) for at in (time.time(), days_ago / 1e9 + 1)]
        return [series["value"][1] for (series,) in found] == ["2", "1"] if all(found) else False

    eventually(at_both)
