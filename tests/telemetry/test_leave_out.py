"""What a node's agent exports, a process' OTLP does not export again; its run directory has it all the same."""

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader

import run_lines
from gpumon import metrics as m
from gpumon.config import Config
from gpumon.system.node_series import device_of
from gpumon.telemetry import output
from gpumon.telemetry.instruments import HUB
from gpumon.telemetry.output import Output
from otlp_receiver import eventually, receiver

SERIES = {
    m.DISK_IO: [({m.SYSTEM_DEVICE: "sda", m.DISK_IO_DIRECTION: "read"}, 5), ({m.SYSTEM_DEVICE: "sdb"}, 6)],
    m.GPU_UTILIZATION: [({m.HW_ID: "GPU-aa", m.GPU_INDEX: 0}, 0.5)],
    m.STEP_COUNT: [({m.STAGE: "train"}, 7)],
}


def of_sda_and_gpus(name, attributes):
    return device_of(name, attributes) in (("disk", "sda"), ("gpu", "GPU-aa"))


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Opens an output; `exported` is what the agent exports now."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.setattr(output, "GRACE_S", 0.0)
    opened = []

    def start(*, exported, **settings):
        HUB.attach(lambda metric, reader: [(value, at) for at, value in SERIES.get(metric, ())])
        providers = {key: settings.pop(key) for key in ("meter_provider",) if key in settings}
        opening = Output.open(
            Config.load({}, **settings), histograms=list, before_collect=lambda: None, exported=exported, **providers
        )
        opening.start()
        opened.append(opening)
        return opening

    yield start
    for each in opened:
        each.close()
    HUB.detach()


def devices(points):
    return {each.value.string_value for point in points for each in point.attributes if each.key == "system.device"}


def test_otlp_without_it_files_with_it(process, tmp_path):
    """With `otlp+file` the receiver gets the rest, the run directory everything."""
    run = tmp_path / "run"
    with receiver() as otlp:
        process(export="otlp+file", endpoint=otlp.endpoint, run_dir=run, exported=lambda: of_sda_and_gpus)
        eventually(lambda: otlp.points("gpumon.step.count"))
        eventually(lambda: run_lines.points(run, "hw.gpu.utilization"))

        assert devices(otlp.points("system.disk.io")) == {"sdb"}
        assert not otlp.points("hw.gpu.utilization")
    assert {
        next(iter(each["value"].values()))
        for point in run_lines.points(run, "system.disk.io")
        for each in point["attributes"]
        if each["key"] == "system.device"
    } == {"sda", "sdb"}


def test_it_is_sent_again_when_the_agent_sends_it_no_more(process):
    """The agent ended, or its receiver takes nothing: the process sends its own."""
    agents = [of_sda_and_gpus]
    with receiver() as otlp:
        process(export="otlp", endpoint=otlp.endpoint, exported=lambda: agents[0])
        eventually(lambda: otlp.points("gpumon.step.count"))
        assert devices(otlp.points("system.disk.io")) == {"sdb"}
        agents[0] = None
        eventually(lambda: devices(otlp.points("system.disk.io")) == {"sda", "sdb"})


def test_nothing_is_left_over(process):
    """Everything is the agent's: not even an empty request is sent."""
    with receiver() as otlp:
        everything = process(export="otlp", endpoint=otlp.endpoint, exported=lambda: lambda name, attributes: True)
        everything.close()

        assert not [request for request in otlp.requests if request[0] == "/v1/metrics"]


def test_an_applications_otlp_readers_leave_it_out_too(process):
    """`opentelemetry-instrument` exports through a provider that is not ours; a reader that is no OTLP has it all."""
    with receiver() as otlp:
        exporter = OTLPMetricExporter(endpoint=f"{otlp.endpoint}/v1/metrics")
        sending = PeriodicExportingMetricReader(exporter, export_interval_millis=100)
        reading = InMemoryMetricReader()
        provider = MeterProvider([sending, reading])
        process(export="auto", meter_provider=provider, exported=lambda: of_sda_and_gpus)
        eventually(lambda: otlp.points("gpumon.step.count"))
        data = reading.get_metrics_data()
        provider.shutdown()

        assert devices(otlp.points("system.disk.io")) == {"sdb"}
    names = {metric.name for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics}
    assert "hw.gpu.utilization" in names


@pytest.mark.parametrize(
    ("metric", "attributes", "family"),
    [
        (m.GPU_UTILIZATION, {m.HW_ID: "GPU-a", m.GPU_INDEX: 0}, ("gpu", "GPU-a")),
        (m.TEMPERATURE, {m.HW_ID: "GPU-a/core", m.HW_PARENT: "GPU-a", m.GPU_INDEX: 0}, ("gpu", "GPU-a")),
        (m.TEMPERATURE, {m.HW_ID: "ZA1"}, ("smart", "ZA1")),
        (m.STATUS, {m.HW_ID: "ZA1", m.HW_TYPE: "physical_disk", m.HW_STATE: "ok"}, ("smart", "ZA1")),
        (m.GPU_PROCESS_MEMORY_USAGE, {m.HW_ID: "GPU-a", m.GPU_INDEX: 0, m.PROCESS_PID: 1}, None),
        (m.COLLECTOR_UP, {m.HW_ID: "GPU-a", m.COLLECTOR: "gpu"}, None),
        (m.DISK_AWAIT, {m.SYSTEM_DEVICE: "sda", m.DISK_IO_DIRECTION: "read"}, ("disk", "sda")),
        (m.DISK_INFO, {m.SYSTEM_DEVICE: "sda", m.DISK_HOLDS_DATASET: False}, ("disk", "sda")),
        (m.DISK_INFO, {m.SYSTEM_DEVICE: "sda", m.DISK_HOLDS_DATASET: True}, None),
        (m.DISK_UNLOADED_AWAIT, {m.SYSTEM_DEVICE: "sda"}, None),
        (m.DISK_LIMIT_IO, {m.SYSTEM_DEVICE: "sda", m.LIMIT_SOURCE: "io.max"}, None),
        (m.CPU_UTILIZATION, {m.CPU_MODE: "user"}, ("host", "")),
        (m.CPU_USABLE, {}, None),
        (m.MEMORY_LIMIT, {}, None),
        (m.PRESSURE_STALL_RATIO, {m.PRESSURE_SCOPE: "system", m.PRESSURE_KIND: "some"}, ("pressure", "")),
        (m.PRESSURE_STALL_RATIO, {m.PRESSURE_SCOPE: "cgroup", m.PRESSURE_KIND: "some"}, None),
        (m.NETWORK_IO, {m.NETWORK_INTERFACE_NAME: "eth0"}, ("network", "eth0")),
        (m.STEP_TIME, {m.STAGE: "train"}, None),
        (m.FETCH_READ, {m.SYSTEM_DEVICE: "sda"}, None),
        (m.PROCESS_MEMORY_USAGE, {m.PROCESS_ROLE: "trainer"}, None),
    ],
)
def test_what_is_the_machines(metric, attributes, family):
    """The same whoever reads it; limits of a cgroup, and what a run or a process did, are its own."""
    assert device_of(metric.name, attributes) == family
