"""A training beside an agent that exports: each series arrives once over OTLP, and the run has them all."""

import run_lines
from agent_process import agent_process, short_folder
from live_training import LiveTraining
from otlp_receiver import eventually, receiver

SOON = {"OTEL_METRIC_EXPORT_INTERVAL": "300"}
QUICK = {"GPUMON_INTERVALS": "disk=0.3,host=0.3,pressure=0.3"}
THE_MACHINES = {"system.disk.io", "gpumon.disk.utilization", "system.cpu.utilization", "system.network.io"}
ITS_OWN = {"gpumon.step.count", "gpumon.cpu.usable", "gpumon.collector.up"}


def names_of_the_last(otlp, count=3):
    """Names of metrics in the last requests; empty until there are so many."""
    requests = [request for path, _, request in list(otlp.requests) if path == "/v1/metrics"][-count:]
    return {
        metric.name
        for request in requests
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_devices_are_exported_by_one_of_both():
    """While the agent's receiver takes them the process sends none; before and after it does. Files have everything."""
    with short_folder() as folder, receiver() as theirs, receiver() as ours:
        training = LiveTraining(
            folder / "training",
            **SOON,
            **QUICK,
            GPUMON_EXPORT="otlp+file",
            OTEL_EXPORTER_OTLP_ENDPOINT=ours.endpoint,
            GPUMON_AGENT_SOCKET=str(folder / "agent.sock"),
        )
        try:
            eventually(lambda: names_of_the_last(ours) >= THE_MACHINES | ITS_OWN, timeout_s=20)
            with agent_process(folder, **SOON, **QUICK, OTEL_EXPORTER_OTLP_ENDPOINT=theirs.endpoint):
                eventually(lambda: names_of_the_last(theirs) >= THE_MACHINES, timeout_s=20)
                eventually(lambda: not names_of_the_last(ours) & THE_MACHINES, timeout_s=30)
                assert names_of_the_last(ours) >= ITS_OWN
                points = len(run_lines.points(training.run, "system.disk.io"))
                eventually(lambda: len(run_lines.points(training.run, "system.disk.io")) > points)
            eventually(lambda: names_of_the_last(ours) >= THE_MACHINES | ITS_OWN, timeout_s=30)
            done = training.finish()
        finally:
            training.kill()

    assert done["steps"]
    assert "Traceback" not in done["log"]
    assert not {"gpumon.step.count", "gpumon.cpu.usable"} & {metric.name for metric in theirs.metrics()}
