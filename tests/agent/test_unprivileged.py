"""A training of an unprivileged user in a network and a mount namespace of its own, as in a container."""

import json
import os
import subprocess

import pytest

import run_lines
import smart_documents
from agent.namespaces import contained, python
from agent_process import agent_process, short_folder
from fake_smartctl import FakeSmartctl
from nvml import standin
from otlp_receiver import eventually

GROUP = 45678
TRAIN = """
import json, sys, time
import gpumon

gpumon.instrument(service_name="contained", run_dir=sys.argv[1], data_paths=[sys.argv[2]])
began, waits = time.monotonic(), []
for batch in gpumon.steps(range(10_000)):
    before = time.perf_counter()
    time.sleep(0.02)
    waits.append(time.perf_counter() - before)
    if time.monotonic() - began > float(sys.argv[3]):
        break
gpumon.uninstrument()
print(json.dumps(sorted(waits)[len(waits) // 2]))
"""


@pytest.fixture
def node(quick_disk):
    """An agent that sees two GPUs, two drives, a disk with data; its clients find no NVML, no diskstats, no sysfs."""
    with short_folder() as folder:
        smartctl = FakeSmartctl(folder)
        smartctl.answer("/dev/sda", smart_documents.hdd())
        smartctl.answer("/dev/nvme0", smart_documents.nvme(), "nvme")
        state = folder / "nvml.state"
        state.write_text("".join(f"{key}={value}\n" for key, value in {**standin.HEALTHY, "gpus": 2}.items()))
        unreadable = folder / "unreadable"
        unreadable.write_text("")
        unreadable.chmod(0)
        (folder / "data").mkdir()
        (folder / "runs").mkdir()
        (folder / "runs").chmod(0o777)
        (quick_disk.path / "sets").mkdir()
        variables = {
            "LD_LIBRARY_PATH": str(standin.built()),
            "NVML_STANDIN": str(state),
            "GPUMON_SMARTCTL": str(smartctl.command),
        }
        with agent_process(folder, "--group", str(GROUP), **variables) as agent:
            agent.mounts = [
                f"mount --bind {quick_disk.path}/sets {folder}/data",
                f"mount --bind {unreadable} /proc/diskstats",
                "mount -t tmpfs none /sys",
            ]
            agent.folder, agent.device = folder, quick_disk.device
            eventually(lambda: len(agent.ask("/v1/devices")["smart"]) == 2)
            yield agent


def train(node, seconds, **options):
    """The run that the contained user's training recorded."""
    run = node.folder / "runs" / "1"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
    gpu = node.ask("/v1/devices")["gpus"][1]["id"]
    process = contained(
        python(TRAIN, run, node.folder / "data", seconds),
        mounts=node.mounts,
        env={**kept, "GPUMON_AGENT_SOCKET": str(node.socket), "CUDA_VISIBLE_DEVICES": gpu, "HOME": "/nonexistent"},
        cwd=node.folder / "runs",
        **options,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out) < 0.05
    return run, gpu


def attributes(point):
    return {each["key"]: next(iter(each["value"].values())) for each in point["attributes"]}


def why(run):
    """Collector -> (up, reason) at the end of the run."""
    found = {}
    for point in run_lines.points(run, "gpumon.collector.up"):
        at = attributes(point)
        if "hw.id" not in at:
            found[at["gpumon.collector"]] = (point["asDouble"], at.get("gpumon.reason"))
    return found


@pytest.mark.disk
def test_it_trains_with_the_agents_readings(node):
    """Its own GPU, the disk that holds its data and the drives' health, none of which it may read."""
    run, gpu = train(node, 8, groups=[GROUP])

    assert {attributes(point)["hw.id"] for point in run_lines.points(run, "hw.gpu.memory.usage")} == {gpu}
    assert run_lines.points(run, "hw.gpu.utilization") and run_lines.points(run, "hw.power")
    disks = {attributes(point)["system.device"] for point in run_lines.points(run, "system.disk.io")}
    assert node.device in disks
    facts = [attributes(point) for point in run_lines.points(run, "gpumon.disk.info")]
    assert any(each["system.device"] == node.device and each["gpumon.disk.holds_dataset"] for each in facts)
    places = [attributes(point) for point in run_lines.points(run, "gpumon.dataset.info")]
    assert {(each.get("system.device"), each["gpumon.data.path"]) for each in places} >= {
        (node.device, str(node.folder / "data"))
    }
    assert len({attributes(point)["hw.id"] for point in run_lines.points(run, "gpumon.smart.info")}) == 2
    up = why(run)
    assert up["gpu"] == up["disk"] == up["smart"] == (1.0, None)


@pytest.mark.disk
def test_without_the_group_it_hears_what_to_do(node):
    """A clear refusal, in the run and in its report; the training goes on."""
    run, _ = train(node, 5)

    assert not run_lines.points(run, "hw.gpu.memory.usage")
    assert not run_lines.points(run, "gpumon.smart.info")
    refusal = f"{node.socket}: permission denied: start the container with --group-add {GROUP}"
    up = why(run)
    assert up["gpu"] == (0.0, f"NVML: library not found; {refusal}")
    assert up["smart"][0] == 0.0 and up["smart"][1].endswith(refusal)
    assert up["disk"][0] == 0.0 and up["disk"][1].endswith(refusal)
    from gpumon.analysis.report import build_report

    report = build_report(run).as_dict()
    assert report["steps"]["count"] > 50
    assert any(refusal in each["reason"] for each in report["missing"] if each["what"] == "gpu")


@pytest.mark.disk
def test_the_kernel_keeps_others_out(node):
    """Without the group not even a connection; with it every question, and no way to write."""
    code = (
        "import socket, sys\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "try:\n    client.connect(sys.argv[1])\n"
        "except PermissionError: print('refused')\n"
        "else: print('connected')\n"
    )
    said = []
    for groups in ([], [GROUP]):
        process = contained(python(code, node.socket), groups=groups)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        said.append(out.strip())

    assert said == ["refused", "connected"]
    assert (
        subprocess.run(["stat", "-c", "%a %g", node.socket], capture_output=True, text=True).stdout == f"660 {GROUP}\n"
    )
