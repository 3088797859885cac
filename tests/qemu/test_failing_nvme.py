"""A real failing disk: an NVMe of a guest whose firmware warns while a training reads from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qemu.guest import GROUPS, USERS, Nvme, available, boot

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]
HERE = Path(__file__).parent
SOCKET = "/run/gpumon/agent.sock"
DATA, OTHER = "SN-DATA-1", "SN-OTHER-2"
RELIABILITY = 4  # of the bits of NVMe's critical warning
SMART_S = 5


@pytest.fixture
def guest(tmp_path):
    """A guest with two disks; the data set is on the second."""
    if missing := available():
        pytest.skip(missing)
    files = tmp_path / "disk" / "train"
    files.mkdir(parents=True)
    for number in range(16):
        (files / f"{number}.bin").write_bytes(os.urandom(256 << 10))
    with boot(Nvme("other", OTHER), Nvme("data", DATA, folder=files.parent)) as guest:
        yield guest


def lines(text):
    """The whole lines of what is still being written."""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def status(text, disk):
    """The states of a disk in a run's metrics, one per export."""
    points = [
        point
        for line in lines(text)
        for resource in line["resourceMetrics"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == "hw.status"
        for point in metric["sum"]["dataPoints"]
    ]
    found = []
    for point in points:
        attributes = {each["key"]: each["value"].get("stringValue") for each in point["attributes"]}
        value = point.get("asDouble", point.get("asInt"))
        if attributes.get("hw.id") == disk and float(value) == 1:
            found.append(attributes["hw.state"])
    return found


def test_a_disk_that_begins_to_fail_is_seen_through_the_agent(guest, tmp_path):
    """The agent says so within two polls, an unprivileged training beside it records it, the report names the disk."""
    device = guest.mount(DATA, "/data")
    agent = guest.start(
        [sys.executable, "-m", "gpumon", "agent", "--socket", SOCKET, "--group", "gpumon"],
        environment={"GPUMON_INTERVALS": f"smart={SMART_S}"},
    )
    guest.wait_for(lambda: "ready" in agent.stderr, 120, "the agent:", agent)
    nobody = {"user": USERS["nobody"], "groups": [GROUPS["nogroup"], GROUPS["gpumon"]]}
    watch = guest.start([sys.executable, HERE / "watch.py", SOCKET], **nobody)
    train = guest.start(
        [sys.executable, HERE / "train.py", "/data/train", "/tmp/run", "/exchange/stop"],
        environment={"GPUMON_AGENT_SOCKET": SOCKET, "GPUMON_INTERVALS": f"smart={SMART_S}"},
        **nobody,
    )

    def polls(disk):
        assert watch.returncode is None, watch
        return [each for each in lines(watch.stdout) if each["disk"] == disk]

    def recorded():
        assert train.returncode is None, train
        return guest.run(["sh", "-c", "cat /tmp/run/metrics*.jsonl 2>/dev/null"]).stdout

    guest.wait_for(lambda: polls(DATA) and polls(OTHER), 120, "the first poll:", watch, agent)
    assert {each["state"] for each in polls(DATA) + polls(OTHER)} == {"ok"}
    guest.wait_for(lambda: "ok" in status(recorded(), DATA), 120, "the state in the recording:", train)
    # Of the disk itself nothing can be read here: whatever is recorded is the agent's.
    refused = guest.run(["smartctl", "-H", f"/dev/{device}"], **nobody)
    assert "Permission denied" in refused.stdout

    guest.set_critical_warning("data", RELIABILITY)
    warned_at = float(guest.run(["cat", "/proc/uptime"]).stdout.split()[0])

    def after():
        return [each["state"] for each in polls(DATA) if each["at"] > warned_at]

    guest.wait_for(lambda: "predicted_failure" in after(), 120, "the agent's news:", watch, agent)
    assert after().index("predicted_failure") < 2, after()
    assert {each["state"] for each in polls(OTHER)} == {"ok"}
    guest.wait_for(lambda: "predicted_failure" in status(recorded(), DATA), 120, "the recorded news:", train)

    (guest.exchange / "stop").touch()
    assert train.wait(120).returncode == 0, train
    agent.signal("TERM")
    assert agent.wait(60).returncode == 0, agent
    run = guest.copy_out("/tmp/run", tmp_path / "run")
    found = status("".join(file.read_text() for file in sorted(run.glob("metrics*.jsonl"))), DATA)
    assert found == sorted(found)  # ok, then predicted_failure, and no way back

    done = subprocess.run(
        [sys.executable, "-m", "gpumon", "report", str(run), "--json"], capture_output=True, text=True, check=True
    )
    finding = next(each for each in json.loads(done.stdout)["findings"] if each["rule"] == "DiskFailing")
    assert finding["severity"] == "critical"
    assert finding["device"] == device
    assert DATA in finding["summary"]
    assert "holds the data set" in finding["summary"]
