"""A whole process, from `gpumon.instrument()` or OpenTelemetry's launcher to what arrives."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpumon.analysis.report import build_report
from gpumon.config import Config
from gpumon.instrumentor import make_sampler
from otlp_receiver import receiver

TRAIN = """
import torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.full((8,), float(index)), torch.ones(1)

def train(epochs=2, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for _ in range(epochs):
        for inputs, targets in DataLoader(Rows(), batch_size=4, **options):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
"""
PROVIDERS = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

reader, spans = InMemoryMetricReader(), InMemorySpanExporter()

def set_providers():
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider([reader]))
"""
PRINT = """
import json, time
import gpumon
time.sleep(1.5)  # disks are read every second; a gauge wants a window
data = reader.get_metrics_data()
gpumon.uninstrument()
points = {}
for resource in data.resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            if metric.name.startswith(("gpumon.step", "gpumon.phase", "gpumon.sample", "gpumon.epoch", "gpumon.data")):
                points[metric.name] = len(metric.data.data_points)
steps = [p.value for r in data.resource_metrics for s in r.scope_metrics for x in s.metrics
         if x.name == "gpumon.step.count" for p in x.data.data_points]
names = sorted({span.name for span in spans.get_finished_spans()})
print(json.dumps({"points": points, "steps": steps, "spans": names}))
"""


def python(script, *, folder, wrap=(), **environment):
    """What a script printed, run in *folder* in an interpreter of its own."""
    done = subprocess.run(
        [*wrap, sys.executable, "-c", script] if not wrap else [*wrap, script],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_an_applications_own_providers_before_and_after(tmp_path):
    """Set before or after `instrument()`, they get the same signals, and no run directory appears."""
    before = python(
        TRAIN + PROVIDERS + "set_providers()\nimport gpumon\ngpumon.instrument()\ntrain()\n" + PRINT, folder=tmp_path
    )
    after = python(
        TRAIN + PROVIDERS + "import gpumon\ngpumon.instrument()\nset_providers()\ntrain()\n" + PRINT, folder=tmp_path
    )

    one, two = json.loads(before.stdout), json.loads(after.stdout)
    assert one == two
    assert one["steps"] == [32]
    assert {"train.step", "data.wait", "forward", "backward", "optimizer.step"} <= set(one["spans"])
    assert one["points"]["gpumon.phase.time"] == 5
    assert not (tmp_path / "gpumon-runs").exists()


def test_opentelemetry_instrument_without_an_edit(tmp_path):
    """OpenTelemetry's launcher finds gpumon by itself; every step arrives, once, and helpers send nothing."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN + "if __name__ == '__main__':\n    train(num_workers=2, multiprocessing_context='spawn')\n")
    with receiver() as collector:
        python(
            str(script),
            folder=tmp_path,
            wrap=(str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_LOGS_EXPORTER="none",
            OTEL_METRIC_EXPORT_INTERVAL="500",
            GPUMON_STRICT="0",
        )

    assert collector.points("gpumon.step.count")[-1].as_int == 32
    instances = {
        attribute.value.string_value
        for path, _, request in collector.requests
        if path == "/v1/metrics"
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        if scope.scope.name == "gpumon"
        for attribute in resource.resource.attributes
        if attribute.key == "service.instance.id"
    }
    assert len(instances) == 1
    assert "train.step" in {span.name for span in collector.spans()}


def test_a_run_killed_in_the_middle_is_reported(tmp_path):
    """SIGKILL: everything is there but the last window, and the report says that the run was cut short."""
    script = (
        TRAIN
        + "import gpumon, time\ngpumon.instrument('killed', run_dir='run')\nprint('on', flush=True)\ntrain(100000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gpumon = str(Path(sys.executable).with_name("gpumon"))
    done = subprocess.run([gpumon, "report", "run", "--json"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["run"]["complete"] is False
    assert report["steps"]["count"] > 100
    assert report["run"]["duration_s"] > 1.5


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_of_many_epochs_leave_nothing_behind(tmp_path, context):
    """Epochs of loaders with four workers: no thread, no descriptor, no shared file more than at their start."""
    epochs = 50 if context == "fork" else 6
    script = tmp_path / "train.py"
    script.write_text(
        TRAIN + "import gpumon, json, os, time, threading\n"
        "def state():\n"
        "    return [threading.active_count(), len(os.listdir('/proc/self/fd'))]\n"
        "def main():\n"
        "    gpumon.instrument('workers', run_dir='run')\n"
        f"    options = dict(num_workers=4, multiprocessing_context='{context}')\n"
        "    train(2, **options)\n"
        "    time.sleep(3)  # until every file of the run is open\n"
        "    before = state()\n"
        f"    train({epochs}, **options)\n"
        "    end = time.time() + 10\n"
        "    while state() != before and time.time() < end:\n"
        "        time.sleep(0.1)\n"
        "    print(json.dumps([before, state()]))\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert after == before
    series = set()
    for line in (tmp_path / "run").glob("metrics*.jsonl"):
        series.add(line.name.split(".")[2])
    assert len(series) == 1
    last = json.loads(next((tmp_path / "run").glob("metrics*.jsonl")).read_text().splitlines()[-1])
    counts = [
        point["asInt"]
        for resource in last["resourceMetrics"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == "gpumon.step.count"
        for point in metric["sum"]["dataPoints"]
    ]
    assert [int(count) for count in counts] == [16 * (2 + epochs)]


@pytest.mark.parametrize("local_rank, is_read", [("0", True), ("1", False)])
def test_one_rank_of_a_host_asks_the_disks(monkeypatch, local_rank, is_read):
    """A smartctl per disk from each of eight ranks would be eight times the work."""
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    collectors = {name for name, _up, _reason in make_sampler(Config()).state()}

    assert ("smart" in collectors) is is_read
    assert "disk" in collectors


def test_a_second_instrument_is_a_warning(tmp_path):
    """Twice is a warning, not an error; uninstrument and instrument again works."""
    done = python(
        TRAIN + "import gpumon\n"
        "gpumon.instrument('twice', run_dir='one')\ngpumon.instrument()\ntrain(1)\ngpumon.uninstrument()\n"
        "gpumon.instrument('twice', run_dir='two')\ntrain(1)\ngpumon.uninstrument()\n",
        folder=tmp_path,
    )
    assert "already instrumented" in done.stderr
    assert (tmp_path / "one" / "run.json").exists()
    assert (tmp_path / "two" / "run.json").exists()


def test_a_wrong_setting_is_an_error_that_names_it(tmp_path):
    """What the user got wrong is said at once; nothing else is ever raised."""
    import gpumon

    with pytest.raises(ValueError, match="export"):
        gpumon.instrument(export="carrier pigeon")


def test_an_example_under_its_own_providers(tmp_path):
    """examples/own_providers.py prints the metrics and spans it promises."""
    example = Path(__file__).parents[1] / "examples" / "own_providers.py"
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert "train.step" in done.stdout
    assert "gpumon.step.count" in done.stdout


@pytest.mark.parametrize("name", ["plain_pytorch.py", "without_a_dataloader.py"])
def test_examples_are_recorded(tmp_path, name):
    """The other examples run as their first lines say, and leave a run whose report has their steps."""
    example = str(Path(__file__).parents[1] / "examples" / name)
    gpumon = str(Path(sys.executable).with_name("gpumon"))
    command = [gpumon, "run", "--no-report", "--", sys.executable, example]
    if "import gpumon" in Path(example).read_text():
        command = [sys.executable, example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(
        subprocess.run([gpumon, "report", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    )

    assert report["steps"]["count"] == (120 if name == "plain_pytorch.py" else 200)
    assert report["steps"]["epochs"] == (3 if name == "plain_pytorch.py" else 2)


OWN_PROVIDERS = """
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

def set_providers():
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(), 60_000)]))
"""


@pytest.mark.parametrize("launcher", [(), ("-m", "gpumon", "run", "--no-report", "--", sys.executable)])
def test_the_end_of_a_run_arrives_at_providers_that_came_later(tmp_path, launcher):
    """Python shuts down first what came last; the step that failed, and all before it, are there nevertheless."""
    script = tmp_path / "train.py"
    script.write_text(
        TRAIN + OWN_PROVIDERS + "import time, gpumon\ngpumon.instrument()\nset_providers()\ntrain()\ntime.sleep(1)\n"
        "with gpumon.step():\n    raise ValueError('a bad batch')\n"
    )
    with receiver() as collector:
        done = subprocess.run(
            [sys.executable, *launcher, str(script)],
            cwd=tmp_path,
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "GPUMON_EXPORT": "auto"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert done.returncode == 1 and "a bad batch" in done.stderr
    spans = collector.spans()
    assert "train.run" in {span.name for span in spans}
    failed = [span for span in spans if any(at.value.string_value == "failed" for at in span.attributes)]
    assert len(failed) == 1
    assert collector.points("gpumon.step.count")[-1].as_int == 32
    assert collector.points("gpumon.step.failures")[-1].as_int == 1


def ids(collector):
    """The run ids of all that arrived, on resources, points and spans."""
    found = set()
    for _path, _headers, request in collector.requests:
        found |= set(re.findall(r'"gpumon.run.id"[^}]*?string_value: "(\w+)"', str(request), re.DOTALL))
    return found


@pytest.mark.parametrize("own", [False, True], ids=["", "provider of the application"])
def test_ranks_that_send_alone_are_one_run(tmp_path, own):
    """A folder is named and none is written; also under `gpumon run`, whose run it is."""
    script = tmp_path / "train.py"
    begin = OWN_PROVIDERS + "set_providers()\n" if own else ""
    script.write_text(TRAIN + begin + "import gpumon\ngpumon.instrument()\ntrain()\n")
    both = f"for rank in 0 1; do RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 {sys.executable} {script} & done; wait"
    launched = [sys.executable, "-m", "gpumon", "run", "--no-report", "--out", "run", "--", "sh", "-c", both]
    for command in (["sh", "-c", both], launched):
        with receiver() as collector:
            environment = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
                "GPUMON_EXPORT": "otlp",
                "GPUMON_RUN_DIR": str(tmp_path / "named"),
            }
            subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, timeout=120, check=True)
        assert len(ids(collector)) == 1
        assert {point.as_int for point in collector.points("gpumon.step.count")} >= {32}
    assert ids(collector) == {json.loads((tmp_path / "run" / "run.json").read_text())["id"]}


TWO_PROCESSES = """
import gpumon

def work(rank):
    gpumon.instrument(run_dir=f"run-{rank}")
    train(num_workers=1)

if __name__ == "__main__":
    import multiprocessing
    context = multiprocessing.get_context(METHOD)
    children = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    raise SystemExit(max(child.exitcode for child in children))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_that_train_are_recorded(tmp_path, method):
    """Each that calls `instrument()`, to its last step; its loader's workers, which are such processes too, are not."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN + TWO_PROCESSES.replace("METHOD", repr(method)))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("run-*")) == ["run-0", "run-1"]
    for run in ("run-0", "run-1"):
        report = build_report(tmp_path / run).as_dict()
        assert (report["steps"]["count"], report["run"]["complete"]) == (32, True)


def test_a_handler_that_raises_at_the_exit_loses_nothing(tmp_path):
    """As torch's of SIGCHLD does, wherever the program is, after a loader's worker was killed."""
    script = tmp_path / "train.py"
    script.write_text(
        TRAIN + "import gpumon, os, signal\nfrom gpumon.tracing.steps import StepTracer\n"
        "gpumon.instrument(run_dir='run')\ntrain()\n"
        "def handler(*_):\n    raise RuntimeError('DataLoader worker is killed by signal')\n"
        "signal.signal(signal.SIGUSR1, handler)\nfinish = StepTracer.finish\n"
        "def killed(self):\n    StepTracer.finish = finish\n    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    finish(self)\nStepTracer.finish = killed\n"
    )
    subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "GPUMON_STRICT": "0"}, timeout=120, check=True
    )
    report = build_report(tmp_path / "run").as_dict()

    assert (report["steps"]["count"], report["run"]["complete"]) == (32, True)


@pytest.mark.parametrize("variable", ["OTEL_PROPAGATORS", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"])
def test_a_variable_that_opentelemetry_cannot_read_does_not_end_the_training(tmp_path, variable):
    """It raises while it is imported; one line says that nothing is recorded."""
    script = (
        "import gpumon\ngpumon.instrument()\nfor _ in gpumon.steps([1, 2]):\n    with gpumon.phase('forward'):\n"
        "        pass\nwith gpumon.step():\n    pass\ngpumon.uninstrument()\nprint('trained')"
    )
    done = python(script, folder=tmp_path, GPUMON_STRICT="0", **{variable: "xyz"})

    assert done.stdout == "trained\n"
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("gpumon: not recorded: ")
