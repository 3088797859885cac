"""Nothing of ours holds up an exit, and forked children say nothing a second time."""

import json
import socket
import time

import pytest

from gpumon.telemetry.run_json import read_run
from otlp_receiver import receiver
from run_lines import points, spans

CLOSE = """
import time
began = time.monotonic()
complete = t.close()
seconds_of_close = time.monotonic() - began
print(complete, seconds_of_close)
"""


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def exit_of(output):
    """(complete, seconds that close took) of the last line."""
    complete, seconds = output.strip().splitlines()[-1].split()
    return complete == "True", float(seconds)


def test_a_dead_receiver_does_not_hold_up_the_exit(program, silent_server):
    """No one listens, or nobody answers: the process ends within 3 s, says so in a line, and how much was lost."""
    text = "t = Training()\nt.step()\nwhile t.collections < 2: pass\nt.step()" + CLOSE
    text += "print(complete, seconds_of_close, time.time())"
    cases = [
        {"ENDPOINT": endpoint, "PROTOCOL": protocol, "TIMEOUT": timeout}
        for endpoint, timeout in (("http://127.0.0.1:9", ""), (silent_server, ""), (silent_server, "60"))
        for protocol in ("http/protobuf", "grpc")
    ]
    for case in cases:
        process = program.start(text, **{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in case.items()})
        output, errors = process.communicate(timeout=60)
        complete, seconds, at = output.strip().splitlines()[-1].split()
        complete, seconds, until_end = complete == "True", float(seconds), time.time() - float(at)
        print(f"{case}: closed after {seconds:.2f} s, ended {until_end:.2f} s later; {errors.strip().splitlines()[-1]}")

        assert seconds + until_end < 3
        assert process.returncode == 0
        assert not complete
        assert seconds < 2.5
        assert errors.count("gpumon cannot deliver") <= 1
        assert errors.count("gpumon ends with") == 1
        assert all(line.startswith("gpumon ") for line in errors.strip().splitlines()), errors


def test_a_receiver_that_comes_back_gets_everything(program):
    """What could not be delivered is kept and sent later, with its own timestamps."""
    text = """
        import sys, time
        t = Training()
        t.step()
        while t.collections < 4: time.sleep(0.02)
        print("ready", flush=True)
        sys.stdin.readline()
        assert t.close()
    """
    with receiver() as collector:
        collector.status = dict.fromkeys(collector.status, 503)
        process = program.start(text, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="1")
        assert process.stdout.readline() == "ready\n"
        assert not collector.requests
        collector.status = dict.fromkeys(collector.status, 200)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    times = [point.time_unix_nano for point in collector.points("gpumon.step.count")]

    assert len(collector.spans()) == 1
    assert len(times) >= 3
    assert times == sorted(set(times))


def test_a_batch_that_the_receiver_refuses_is_dropped_alone(program):
    """A receiver without a traces pipeline still gets the metrics; the spans are counted as dropped."""
    text = """
        import time
        t = Training()
        t.step()
        while not sum(count for count, _ in t.output.dropped()): time.sleep(0.02)
        dropped = {at["gpumon.signal"]: count for count, at in t.output.dropped()}
        assert dropped == {"traces": 1, "metrics": 0, "logs": 0}, dropped
        t.close()
    """
    with receiver() as collector:
        collector.status["/v1/traces"] = 404
        program.run(text, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)

    assert collector.points("gpumon.step.count")


def test_a_collection_that_hangs_does_not_hold_up_the_exit(program):
    """Whatever is called before a collection may hang for ever: the exit goes on without it."""
    text = """
        import time
        t = Training(export="file")
        t.step()
        t.before_collect = lambda: time.sleep(600)
        time.sleep(0.5)
    """
    output, _ = program.run(dedented(text) + CLOSE)

    assert not exit_of(output)[0]
    assert exit_of(output)[1] < 2.5


def test_a_killed_process_loses_its_last_window_at_most(program):
    """SIGKILL: what was recorded until the last export is there; the run is not marked as ended."""
    process = program.start("""
        import time
        t = Training(export="file")
        while True:
            t.step(); print(t.steps, t.collections, flush=True); time.sleep(0.01)
    """)
    for line in process.stdout:
        if int(line.split()[1]) >= 3:
            break
    at_least = int(line.split()[0])
    program.kill(process)
    (run,) = program.runs

    assert len(spans(run)) > at_least // 2
    assert int(points(run, "gpumon.step.count")[-1]["asInt"]) >= at_least // 2
    assert read_run(run)["ended"] is None
    assert read_run(run)["processes"][0]["ended"] is None


FORK = """
import multiprocessing, os, time
def child(queue):
    time.sleep(0.7)
    queue.put(os.getpid())
def fork_children(count):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=child, args=(queue,)) for _ in range(count)]
    for process in children: process.start()
    pids = [queue.get(timeout=20) for _ in children]
    for process in children: process.join(20)
    return pids
"""


def test_forked_children_write_nothing(program):
    """DataLoader workers are forks: only their parent has files, and counts once."""
    program.run(FORK + "t = Training(export='file')\nt.step()\nfork_children(3)\nt.step(); t.close()")
    (run,) = program.runs

    assert len({path.name.split(".")[2] for path in run.glob("*.jsonl*")}) == 1
    assert [point["asInt"] for point in points(run, "gpumon.step.count")][-1] == "2"
    assert len(read_run(run)["processes"]) == 1


def test_forked_children_repeat_nothing_through_the_applications_readers(program):
    """The SDK restarts periodic readers in every fork: they export none of our series, histograms neither."""
    text = """
    import json
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    class Lines(MetricExporter):
        def export(self, data, timeout_millis=10_000, **_):
            for item in data.resource_metrics:
                for scoped in item.scope_metrics:
                    for metric in scoped.metrics:
                        os.write(1, (json.dumps([os.getpid(), metric.name]) + "\\n").encode())
            return MetricExportResult.SUCCESS
        def shutdown(self, timeout_millis=0, **_): pass
        def force_flush(self, timeout_millis=0): return True

    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(Lines(), 100)]))
    metrics.get_meter("app").create_counter("app.counter").add(1)
    t = Training()
    t.step()
    while t.collections < 3: time.sleep(0.02)
    pids = fork_children(2)
    t.step()
    while t.collections < 8: time.sleep(0.02)
    t.close()
    os.write(1, (json.dumps([os.getpid(), "parent"]) + "\\n").encode())
    os.write(1, (json.dumps([pids[0], "child"]) + "\\n").encode())
    """
    output, _ = program.run(FORK + dedented(text))
    names = {}
    for line in output.splitlines():
        pid, name = json.loads(line)
        names.setdefault(pid, set()).add(name)
    parent = next(pid for pid in names if "parent" in names[pid])
    children = {name for pid, found in names.items() if pid != parent for name in found}

    assert {"gpumon.step.count", "gpumon.step.duration", "app.counter"} <= names[parent]
    assert "app.counter" in children  # the readers do run there
    assert not {name for name in children if name.startswith("gpumon.")}


def test_a_fork_during_a_collection_does_not_hang(program):
    """Forks at any moment of the export, also while it holds its locks: every child comes back."""
    text = """
        import os, threading, time
        t = Training(export="file")
        stop = False
        def busy():
            while not stop: t.step()
        thread = threading.Thread(target=busy)
        thread.start()
        for _ in range(60):
            pid = os.fork()
            if pid == 0:
                t.step()
                t.close()
                os._exit(7)
            deadline = time.monotonic() + 10
            while True:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done: break
                assert time.monotonic() < deadline, "a child hangs"
                time.sleep(0.001)
            assert os.waitstatus_to_exitcode(status) == 7
        stop = True
        thread.join()
        t.close()
    """
    program.run(text, OTEL_METRIC_EXPORT_INTERVAL="100")


def dedented(text):
    import textwrap

    return textwrap.dedent(text)
