"""What an agent costs its machine, with 8 GPUs and 24 disks at default intervals."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

import smart_documents
from agent_process import agent_process, short_folder
from fake_smartctl import FakeSmartctl
from nvml import standin
from otlp_receiver import eventually, receiver

pytestmark = pytest.mark.alone

MEMORY_KB = 60_000
SHARE = 0.005  # of a core
WINDOW_S = 31.0
NUM_DISKS = 24


@contextlib.contextmanager
def loop_devices(folder):
    """Names of 24 block devices that the kernel counts like any other."""
    devices = []
    try:
        for number in range(NUM_DISKS):
            image = folder / f"disk{number}"
            image.touch()
            os.truncate(image, 64 << 20)
            made = subprocess.check_output(["losetup", "--find", "--show", image], text=True).strip()
            devices.append(made.removeprefix("/dev/"))
        yield devices
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", f"/dev/{device}"], check=True)


def drives():
    """Answers of hard disks, SSDs and NVMe drives, each with a serial number of its own."""
    for number in range(NUM_DISKS):
        kind = number % 3
        if kind == 0:
            yield f"/dev/sd{chr(97 + number)}", smart_documents.hdd(f"HDD{number}"), "scsi"
        elif kind == 1:
            yield f"/dev/sd{chr(97 + number)}", smart_documents.ssd(serial=f"SSD{number}"), "scsi"
        else:
            yield f"/dev/nvme{number}", smart_documents.nvme(f"NVME{number}"), "nvme"


def share_of_a_core(agent):
    began, before = time.monotonic(), agent.cpu_s()
    time.sleep(WINDOW_S)
    return (agent.cpu_s() - before) / (time.monotonic() - began)


@pytest.mark.disk
def test_the_budget():
    """Below 60 MB resident and half a percent of a core, with OTLP over http and Prometheus' page on."""
    with short_folder() as folder, loop_devices(folder) as disks, receiver() as otlp:
        smartctl = FakeSmartctl(folder)
        for path, document, kind in drives():
            smartctl.answer(path, document, kind)
        state = folder / "nvml.state"
        state.write_text("".join(f"{key}={value}\n" for key, value in {**standin.HEALTHY, "gpus": 8}.items()))
        with agent_process(
            folder,
            *("--prometheus", "0"),
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp.endpoint,
            LD_LIBRARY_PATH=str(standin.built()),
            NVML_STANDIN=str(state),
            GPUMON_SMARTCTL=str(smartctl.command),
        ) as agent:
            eventually(lambda: agent.ask("/v1/health")["exports"], timeout_s=20)
            eventually(lambda: len(agent.ask("/v1/devices")["smart"]) == NUM_DISKS, timeout_s=20)
            devices = agent.ask("/v1/devices")
            assert len(devices["gpus"]) == 8
            assert {each["device"] for each in devices["disks"]} >= set(disks)
            requests = len(otlp.requests)
            time.sleep(16)  # as after a demand: nobody asks from here on
            share = share_of_a_core(agent)
            if share >= SHARE:  # somebody else's load on the machine's caches counts too
                share = min(share, share_of_a_core(agent))
            memory_kb = agent.rss_kb()
            loaded = (folder / f"/proc/{agent.pid}/maps").read_text()

            assert otlp.points("hw.power") and len(otlp.requests) > requests
            assert share < SHARE
            assert memory_kb < MEMORY_KB
            assert not [name for name in ("duckdb", "grpc", "numpy", "torch") if f"/{name}/" in loaded]


def test_what_is_not_needed_is_not_loaded():
    """A round of readings loads no exporter, no server and nothing of the reports."""
    code = (
        "import sys; from gpumon import cli\n"
        "try: cli.main(['agent', '--once'])\n"
        "except SystemExit: pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())

    assert "gpumon.collectors.gpu" in loaded
    unneeded = {"duckdb", "rich", "grpc", "numpy", "torch", "requests", "asyncio", "waitress", "prometheus_client"}
    assert not loaded & (unneeded | {"opentelemetry.sdk", "gpumon.analysis.report", "gpumon.integrations.torch"})
