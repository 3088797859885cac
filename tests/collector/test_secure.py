"""secure.yaml with real certificates and tokens, and agent.yaml on the way to it."""

import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from otel_collector import make_certificates
from otlp_receiver import eventually
from peers import Gateway, Jaeger, Prometheus, needs_collector, needs_jaeger, needs_prometheus
from run_lines import all_points, assert_same, lines, points, spans

pytestmark = [
    needs_collector,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl"),
]


@pytest.fixture
def certificates(tmp_path):
    return make_certificates(tmp_path / "tls")


@pytest.fixture
def secure(tmp_path, certificates):
    """The settings of a gateway with TLS and the token `secret`."""
    token = tmp_path / "token"
    token.write_text("secret")
    return {
        "TLS_CERT_FILE": f"{certificates}/server.pem",
        "TLS_KEY_FILE": f"{certificates}/server.key",
        "TOKEN_FILE": str(token),
    }


def client(gateway, certificates, protocol="http/protobuf", token="secret"):
    """The settings of a process that may send to it."""
    endpoint = gateway.http if protocol.startswith("http") else gateway.grpc
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.replace("http:", "https:"),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": f"{certificates}/ca.pem",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}",
        "GPUMON_EXPORT": "otlp+file",
    }


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_with_the_token_all_arrives(train, steps_arrive, tmp_path, certificates, secure, protocol):
    with Gateway(tmp_path / "gateway", "secure.yaml", **secure) as gateway:
        training = train(**client(gateway, certificates, protocol))
        steps_arrive(gateway, training)
        training.finish()
        assert_same(training.run, gateway.by_signal())


def test_without_it_nothing_does(train, tmp_path, certificates, secure):
    """A wrong token, none, no TLS, and a receiver that the process cannot trust: the training goes on, and says so."""
    with Gateway(tmp_path / "gateway", "secure.yaml", **secure) as gateway:
        right = client(gateway, certificates)
        wrong = [
            {**right, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20wrong"},
            {name: value for name, value in right.items() if name != "OTEL_EXPORTER_OTLP_HEADERS"},
            {**right, "OTEL_EXPORTER_OTLP_ENDPOINT": gateway.http},
            {name: value for name, value in right.items() if name != "OTEL_EXPORTER_OTLP_CERTIFICATE"},
            client(gateway, certificates, "grpc", token="wrong"),
        ]
        trainings = [train(**settings) for settings in wrong]
        time.sleep(4)
        for training in trainings:
            said = training.finish()
            assert "gpumon cannot deliver to" in said["log"], said["log"]
            assert said["exit_s"] < 3
            assert spans(training.run)
        assert not gateway.files


def test_a_new_token_holds_without_a_restart(tmp_path, certificates, secure):
    """The file is read again when it changes."""
    with Gateway(tmp_path / "gateway", "secure.yaml", **secure) as gateway:

        def status(token):
            import ssl

            context = ssl.create_default_context(cafile=f"{certificates}/ca.pem")
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
            url = gateway.http.replace("http:", "https:") + "/v1/traces"
            try:
                with urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), context=context) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code

        assert (status("secret"), status("next")) == (200, 401)
        (tmp_path / "token").write_text("next")
        eventually(lambda: (status("secret"), status("next")) == (401, 200), timeout_s=15)


def test_clients_with_a_certificate_alone(train, tmp_path, certificates, secure):
    """TLS_CLIENT_CA_FILE: who shows no certificate of that authority is not heard."""
    more = {"TLS_CLIENT_CA_FILE": f"{certificates}/ca.pem"}
    with Gateway(tmp_path / "gateway", "secure.yaml", **secure, **more) as gateway:
        unknown = train(**client(gateway, certificates))
        known = train(
            **client(gateway, certificates),
            OTEL_EXPORTER_OTLP_CLIENT_KEY=f"{certificates}/client.key",
            OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=f"{certificates}/client.pem",
        )
        time.sleep(4)
        assert "gpumon cannot deliver to" in unknown.finish()["log"]
        assert "gpumon cannot deliver to" not in known.finish()["log"]
        assert_same(known.run, gateway.by_signal())


@needs_jaeger
@needs_prometheus
def test_queues_on_disk_outlive_the_gateway(train, tmp_path, certificates, secure):
    """What it took while Jaeger and Prometheus were away, the gateway delivers after a SIGKILL."""
    jaeger, prometheus = Jaeger(tmp_path / "jaeger"), Prometheus(tmp_path / "prometheus")
    with Gateway(tmp_path / "gateway", "secure.yaml", jaeger=jaeger, prometheus=prometheus, **secure) as gateway:
        training = train(**client(gateway, certificates))
        time.sleep(4)
        training.finish()
        gateway.kill()
        kept = {span["traceId"] for span in spans(training.run)}
        count = [float(point["asInt"]) for point in points(training.run, "gpumon.step.count")]
        with jaeger, prometheus:
            gateway.start()
            eventually(lambda: {trace["traceID"] for trace in jaeger.traces("training")} == kept, timeout_s=30)

            def arrived():
                found = prometheus.query("gpumon_step_count_total[1h]")
                return [float(value) for series in found for _, value in series["values"]] == count

            eventually(arrived, timeout_s=30)
        assert_same(training.run, gateway.by_signal())


def test_from_the_nodes_collector_to_the_gateway(train, steps_arrive, tmp_path, certificates, secure):
    """agent.yaml takes what the node's processes send and shows the gateway its token; no process needs one."""
    with (
        Gateway(tmp_path / "gateway", "secure.yaml", **secure) as gateway,
        Gateway(
            tmp_path / "agent",
            base="agent.yaml",
            GATEWAY_ENDPOINT=gateway.grpc.removeprefix("http://"),
            GATEWAY_INSECURE="false",
            GATEWAY_CA_FILE=f"{certificates}/ca.pem",
            GATEWAY_AUTHORIZATION="Bearer secret",
            HOST_METRICS_INTERVAL="500ms",
        ) as agent,
    ):
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=agent.http, GPUMON_EXPORT="otlp+file")
        steps_arrive(gateway, training)
        training.finish()
        agent.stop()

        files = gateway.by_signal()
        for name, held in (("spans", spans), ("points", lambda place: list(all_points(place)))):
            sent, arrived = len(held(training.run)), len([item for item in held(files) if not is_the_collectors(item)])
            assert sent == arrived, name
        hosts = {text for line in lines(files, "metrics") for text in resource_values(line, "host.name")}
        assert len(hosts) == 1
        names = {point["metric"] for point in all_points(files)}
        assert {"system.disk.io", "collector.system.disk.io", "collector.system.memory.usage"} <= names


def is_the_collectors(item):
    return item.get("metric", "").startswith("collector.")


def resource_values(line, key):
    return [
        item["value"]["stringValue"]
        for resource in line["resourceMetrics"]
        for item in resource["resource"]["attributes"]
        if item["key"] == key
    ]


def test_the_nodes_collector_reads_the_disk_as_gpumon_does(train, tmp_path):
    """Bytes, operations and busy time of every disk that both know, within what passes between two readings."""
    with (
        Gateway(tmp_path / "gateway") as gateway,
        Gateway(
            tmp_path / "agent",
            base="agent.yaml",
            GATEWAY_ENDPOINT=gateway.grpc.removeprefix("http://"),
            HOST_METRICS_INTERVAL="250ms",
        ) as agent,
    ):
        training = train(OTEL_EXPORTER_OTLP_ENDPOINT=agent.http)
        for _ in range(20):
            data = tmp_path / "written"
            data.write_bytes(b"x" * 4_000_000)
            subprocess.run(["sync", data], check=True)
            time.sleep(0.2)
        training.finish()
        agent.stop()
        files = gateway.by_signal()
        compared = 0
        for name in ("system.disk.io", "system.disk.operations", "system.disk.io_time"):
            ours, theirs = (series(files, prefix + name) for prefix in ("", "collector."))
            for key in ours.keys() & theirs.keys():
                at, value = ours[key][-1]
                near = min(theirs[key], key=lambda point: abs(point[0] - at))
                slack = {"system.disk.io": 16e6, "system.disk.operations": 2000, "system.disk.io_time": 2}[name]
                assert near[1] == pytest.approx(value, abs=slack), (name, key)
                compared += value > 10 * slack
        assert compared or not any(value > 1e9 for found in ours.values() for _, value in found)


def series(files, name):
    """(device, direction) → (seconds, value) of every point."""
    found = {}
    for point in points(files, name):
        told = {item["key"]: item["value"].get("stringValue") for item in point["attributes"]}
        key = told.get("system.device") or told.get("device"), told.get("disk.io.direction") or told.get("direction")
        value = float(point.get("asInt", point.get("asDouble", 0)))
        found.setdefault(key, []).append((int(point["timeUnixNano"]) / 1e9, value))
    return found
