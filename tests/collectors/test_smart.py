"""The SMART collector over a smartctl of our own: readings of every disk, whatever the others do."""

import contextlib
import gc
import itertools
import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

import smart_documents as documents
from fake_smartctl import FakeSmartctl
from faketree import Machine
from gpumon import metrics as m
from gpumon.collectors import smart as collector
from gpumon.collectors.smart import SmartCollector
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.rules.disk_health import STATES
from gpumon.sampler import Sampler
from gpumon.system.state import read_state
from otlp_receiver import eventually
from readings import Readings

ALWAYS_DUE = 0.001


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The smartctl that is found."""
    made = FakeSmartctl(tmp_path)
    monkeypatch.setenv("GPUMON_SMARTCTL", str(made.command))
    yield made
    made.kill_all()


@pytest.fixture
def machine(tmp_path):
    """The block devices that the kernel has: none at first."""
    return Machine(tmp_path / "machine")


@pytest.fixture
def make(tmp_path, machine):
    """A collector that asks at every collection, patient enough for a busy machine."""
    made = []

    def make(interval_s=ALWAYS_DUE, timeout_s=20.0, **options):
        options = {"state": tmp_path / "state/smart.json", "root": machine.root, **options}
        made.append(SmartCollector(Config(intervals={"smart": interval_s}), timeout_s=timeout_s, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def poll(of):
    """One collection; where all disks fail, what it says before."""
    time.sleep(2 * ALWAYS_DUE)
    found = []
    with contextlib.suppress(CollectorError):
        for reading in of.collect():
            found.append(reading)
    return Readings(found)


def answered(of, timeout_s=20.0):
    """Collections until no answer is outstanding."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = poll(of)
        if all(disk.asked is None for disk in of._disks.values()):
            return found
    raise AssertionError("a disk did not answer")


def status(found, disk):
    states = {reading.attributes[m.HW_STATE]: reading.value for reading in found.of(m.STATUS) if has(reading, disk)}
    assert not states or (set(states) == set(STATES) and sum(states.values()) == 1.0)
    return next((state for state, value in states.items() if value), None)


def reason(found, disk):
    """(up, why) of one disk; None where nothing is said."""
    reading = found.one(m.COLLECTOR_UP, disk)
    return None if reading is None else (reading.value, reading.attributes[m.REASON].removeprefix("SMART: "))


def has(reading, disk):
    return reading.attributes.get(m.HW_ID) == disk


def disks(found):
    return {reading.attributes[m.HW_ID] for reading in found.of(m.SMART_INFO)}


# -- What is read ---------------------------------------------------------------------------------------


def test_everything_of_a_turning_disk(fake, make, machine):
    """Identity, attributes, counters, temperature, health; packed values unpacked."""
    machine.disk("sda", "8:0", queue_rotational="1")
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=304, crc=3, timeouts=12_885_098_517, exit_status=64))
    found = poll(make())

    info = found.one(m.SMART_INFO, "Z1").attributes
    assert info == {
        m.HW_ID: "Z1",
        m.HW_MODEL: "ST4000TEST-1V4107",
        m.HW_SERIAL_NUMBER: "Z1",
        m.HW_FIRMWARE_VERSION: "TN05",
        m.PHYSICAL_DISK_TYPE: "HDD",
        m.SYSTEM_DEVICE: "sda",
        m.SMART_PROTOCOL: "ATA",
        m.SMART_TARGET: "/dev/sda",
    }
    assert status(found, "Z1") == "predicted_failure"
    assert found.one(m.PHYSICAL_DISK_SMART, "Command_Timeout").attributes[m.SMART_NUMBER] == 188
    assert found.value(m.PHYSICAL_DISK_SMART, "Command_Timeout") == 21
    assert found.value(m.PHYSICAL_DISK_SMART, "Reallocated_Sector_Ct") == 304
    assert {reading.attributes[m.SMART_COUNTER]: reading.value for reading in found.of(m.SMART_COUNT)} == {
        "reallocated": 304,
        "uncorrected": 0,
        "pending": 0,
        "offline_uncorrectable": 0,
        "link": 3,
    }
    assert {reading.value for reading in found.of(m.SMART_GROWTH)} == {0}
    assert found.value(m.TEMPERATURE, "Z1") == 31.0
    assert found.value(m.PHYSICAL_DISK_SIZE, "Z1") == 4_000_787_030_016
    assert found.value(m.ERRORS, "Z1", "media") == 0
    assert found.value(m.ERRORS, "Z1", "link") == 3
    assert 0 <= found.value(m.SMART_AGE, "Z1") < 5
    assert found.of(m.PHYSICAL_DISK_ENDURANCE) == found.of(m.COLLECTOR_UP) == found.of(m.SMART_FAILED) == []


def test_everything_of_an_nvme_disk(fake, make, machine):
    """Wear as what is left; all block devices of a controller."""
    machine.disk("nvme0n1", "259:0")
    (machine.root / "sys/class/nvme/nvme0/nvme0n1").mkdir(parents=True)
    fake.answer("/dev/nvme0", documents.nvme("N1", used=16, media=7), "nvme")
    found = poll(make())

    assert found.one(m.SMART_INFO, "N1").attributes[m.PHYSICAL_DISK_TYPE] == "NVMe"
    assert found.one(m.SMART_INFO, "N1").attributes[m.SYSTEM_DEVICE] == "nvme0n1"
    assert found.value(m.PHYSICAL_DISK_ENDURANCE, "N1", "remaining") == pytest.approx(0.84)
    assert found.value(m.SMART_COUNT, "media") == found.value(m.ERRORS, "media") == 7
    assert status(found, "N1") == "predicted_failure"


def test_every_kind_of_disk_at_once(fake, make):
    """RAID controllers, USB bridges, SAS: one run of smartctl each."""
    fake.answer("/dev/sda", documents.ssd(serial="S1"))
    fake.answer("/dev/sdb", documents.usb("U1"))
    fake.answer("/dev/sdc", documents.sas("A1", defects=1))
    fake.answer("/dev/bus/0", documents.megaraid(0, "M0"), "megaraid,0")
    fake.answer("/dev/bus/0", documents.megaraid(1, "M1"), "megaraid,1")
    found = answered(make(interval_s=300.0))

    assert disks(found) == {"S1", "U1", "A1", "M0", "M1"}
    assert found.one(m.SMART_INFO, "M1").attributes[m.SMART_TARGET] == "/dev/bus/0 (megaraid,1)"
    assert {disk: status(found, disk) for disk in disks(found)} == {
        "S1": "ok",
        "U1": "ok",
        "A1": "degraded",
        "M0": "ok",
        "M1": "ok",
    }
    assert len(fake.calls()) == 1 + 5


def test_thresholds_that_were_passed_are_readings(fake, make):
    """Now or before, and a failed self-test."""
    rows = [
        documents.attribute(184, "End-to-End_Error", 3, value=1, thresh=99, prefail=True, when="now"),
        documents.attribute(11, "Calibration_Retry_Count", 0, thresh=97, prefail=True, when="past"),
    ]
    fake.answer("/dev/sda", documents.hdd("Z1", rows=rows, exit_status=128))
    found = poll(make())

    assert {
        (reading.attributes[m.SMART_ATTRIBUTE], reading.attributes[m.SMART_WHEN])
        for reading in found.of(m.SMART_FAILED)
    } == {("End-to-End_Error", "now"), ("Calibration_Retry_Count", "before"), ("self_test", "before")}


def test_no_smartctl_and_no_disk_are_no_data(fake, make, monkeypatch):
    """As long as it lasts, without a question asked again and again."""
    asking = make(interval_s=300.0)
    for _ in range(3):
        with pytest.raises(NoDataError, match="lists no physical disk"):
            list(asking.collect())
    assert len(fake.calls()) == 1
    assert asking.again_s == 30.0

    monkeypatch.setenv("GPUMON_SMARTCTL", "/nowhere/smartctl")
    with pytest.raises(NoDataError, match="GPUMON_SMARTCTL"):
        list(make().collect())


# -- Disks that do not answer ---------------------------------------------------------------------------


def test_a_disk_that_hangs_delays_no_other(fake, make):
    """The others' readings come within seconds, every time; its question is the only one in flight."""
    for name, serial in (("sda", "Z1"), ("sdb", "Z2"), ("sdd", "Z4")):
        fake.answer(f"/dev/{name}", documents.hdd(serial))
    fake.hang("/dev/sdc", stubborn=True)
    asking = make(timeout_s=60.0)
    began = time.monotonic()
    first = poll(asking)
    took = time.monotonic() - began
    began = time.monotonic()
    again = [poll(asking) for _ in range(5)]

    assert took < 4.5
    assert time.monotonic() - began < 4.0
    for found in (first, *again):
        assert disks(found) == {"Z1", "Z2", "Z4"}
        assert reason(found, "/dev/sdc") == (0.0, "no answer yet")
    assert len(fake.calls("/dev/sdc")) == 1
    assert len(fake.processes()) == 2
    assert asking.again_s == ALWAYS_DUE
    asking.close()
    eventually(lambda: fake.processes() == [])


def test_answers_that_are_late_come_with_a_later_collection(fake, make, monkeypatch):
    """A disk at work may take its time."""
    monkeypatch.setattr(collector, "_WAIT_S", 0.1)
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", documents.hdd("Z2"), after_s=1.0)
    asking = make(interval_s=300.0)

    assert "Z2" not in disks(poll(asking))
    assert asking.again_s == 1.0
    assert disks(answered(asking)) == {"Z1", "Z2"}
    assert asking.again_s == 30.0
    assert len(fake.calls("/dev/sdb")) == 1


def test_a_disk_that_stops_answering_has_failed_at_the_second_poll(fake, make):
    """Once may be chance; what it said before is no reading of today."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make(timeout_s=0.3)
    assert status(poll(asking), "Z1") == "ok"

    fake.hang("/dev/sda")
    once = answered(asking)
    assert status(once, "Z1") is None
    assert reason(once, "Z1") == (0.0, "smartctl: no answer within 0.3 s")
    twice = answered(asking)
    assert status(twice, "Z1") == "failed"
    for metric in (m.TEMPERATURE, m.SMART_COUNT, m.PHYSICAL_DISK_SMART, m.SMART_GROWTH):
        assert twice.of(metric) == []
    assert twice.value(m.SMART_AGE, "Z1") > 0.5

    fake.answer("/dev/sda", documents.hdd("Z1", pending=1))
    back = answered(asking)
    assert status(back, "Z1") == "predicted_failure"
    assert reason(back, "Z1") is None


@pytest.mark.parametrize(
    "document",
    [
        documents.unanswered_sata("Input/output error"),
        documents.header(exit_status=2, messages=[("Smartctl open device: /dev/sda failed: I/O error", "error")]),
    ],
)
def test_a_disk_that_answers_with_errors_is_silent_too(fake, make, document):
    """smartctl comes back, without health."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make()
    poll(asking)
    fake.answer("/dev/sda", document)

    assert status(poll(asking), "Z1") is None
    assert status(poll(asking), "Z1") == "failed"


def test_a_dead_disk_is_not_taken_for_one_asleep(fake, make):
    """smartctl says "SLEEP" of a disk that does not answer whether it sleeps."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make()
    poll(asking)
    fake.asleep("/dev/sda", documents.unanswered_sata("Input/output error"), mode="SLEEP")

    assert reason(poll(asking), "Z1") == (0.0, "Read Device Identity failed: Input/output error")
    assert status(poll(asking), "Z1") == "failed"


@pytest.mark.parametrize("name", ["nvme, denied", "open, denied", "sata, denied", "sata, unanswered"])
def test_a_right_that_is_missing_is_no_failure(fake, make, name):
    """However often; and what was read before is not shown as of today."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", documents.hdd("Z2"))
    asking = make()
    poll(asking)
    fake.answer("/dev/sda", documents.document(name))
    for _ in range(4):
        found = poll(asking)

    assert status(found, "Z1") is None
    assert found.one(m.TEMPERATURE, "Z1") is None
    assert reason(found, "Z1")[0] == 0.0
    assert status(found, "Z2") == "ok"


@pytest.mark.parametrize("how", ["garbage", "die", "flood"])
def test_a_broken_smartctl_is_no_failure_of_the_disk(fake, make, how):
    """It is said, and nothing old is shown as new."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make()
    poll(asking)
    {
        "garbage": lambda: fake.answer("/dev/sda", "sudo: a password is required", status=1),
        "die": lambda: fake.die("/dev/sda"),
        "flood": lambda: fake.flood("/dev/sda"),
    }[how]()
    for _ in range(3):
        found = answered(asking)

    assert status(found, "Z1") is None
    assert reason(found, "Z1")[0] == 0.0
    assert found.of(m.TEMPERATURE) == []


def test_when_no_disk_can_be_read_the_collector_says_why(fake, make, monkeypatch):
    """With the repair, for who is not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    fake.answer("/dev/nvme0", documents.denied_nvme(), "nvme")
    fake.answer("/dev/sda", documents.denied_behind_sat())
    asking = make()
    found = []

    with pytest.raises(CollectorError, match=r"Permission denied.*gpumon agent"):
        found.extend(asking.collect())
    with pytest.raises(CollectorError):
        for reading in asking.collect():
            found.append(reading)
    assert {reading.attributes[m.HW_ID] for reading in found} == {"/dev/nvme0", "/dev/sda"}


def test_a_disk_without_smart_is_said_once_and_harms_nobody(fake, make):
    """RAID volumes and virtual disks beside real ones."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", documents.raid_volume())
    fake.answer("/dev/vda", documents.virtio())
    found = poll(make())

    assert disks(found) == {"Z1"}
    assert reason(found, "/dev/sdb")[1].startswith("the disk has no SMART")
    assert reason(found, "/dev/vda") == (0.0, "Unable to detect device type")


@pytest.mark.disk
def test_a_smartctl_that_cannot_be_killed_is_the_last_one(slow_mount, fake, make):
    """In the kernel, waiting for a disk: none is started beside it; the disk has failed until it answers."""
    answer = slow_mount.path / "answer"
    answer.write_bytes(b"x" * 8192)
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", documents.hdd("Z2"))
    asking = make(timeout_s=0.3)
    poll(asking)
    slow_mount.set_delay(6.0)
    fake.read_past_the_cache("/dev/sda", answer)
    fake.forget_calls()
    eventually(
        lambda: reason(poll(asking), "Z1") == (0.0, "smartctl hangs in the kernel; the disk is not asked until it ends")
    )
    found = [poll(asking) for _ in range(10)][-1]

    assert len(fake.processes()) == 1
    assert len(fake.calls("/dev/sda")) == 1
    assert (status(found, "Z1"), status(found, "Z2")) == ("failed", "ok")
    fake.answer("/dev/sda", documents.hdd("Z1"))
    eventually(lambda: status(poll(asking), "Z1") == "ok", timeout_s=40.0)


@pytest.mark.disk
def test_a_scan_that_cannot_be_killed_is_the_last_one(slow_mount, fake, make, machine):
    """The disks that are known are asked on."""
    answer = slow_mount.path / "answer"
    answer.write_bytes(b"x" * 8192)
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make(timeout_s=0.3)
    poll(asking)
    slow_mount.set_delay(6.0)
    fake.scan(f"exec dd iflag=direct bs=4096 count=1 status=none if={answer}")
    for number in range(3):
        machine.disk(f"sd{number}", f"8:{number}")
        assert disks(poll(asking)) == {"Z1"}

    assert len(fake.processes()) == 1
    assert sum("--scan" in call.arguments for call in fake.calls()) == 2
    fake.scan()
    fake.answer("/dev/sdb", documents.hdd("Z2"))
    eventually(lambda: disks(poll(asking)) == {"Z1", "Z2"}, timeout_s=40.0)


# -- Sleep ----------------------------------------------------------------------------------------------


def test_a_disk_asleep_is_left_asleep(fake, make):
    """Its state and age stay, its temperature does not; it is up."""
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=1))
    asking = make()
    poll(asking)
    fake.asleep("/dev/sda", documents.hdd("Z1"))
    found = [poll(asking) for _ in range(4)][-1]

    assert reason(found, "Z1") == (1.0, "asleep (standby), left alone")
    assert status(found, "Z1") == "degraded"
    assert found.value(m.SMART_AGE, "Z1") > 0
    assert disks(found) == {"Z1"}
    for metric in (m.TEMPERATURE, m.PHYSICAL_DISK_SMART, m.SMART_COUNT, m.PHYSICAL_DISK_ENDURANCE):
        assert found.of(metric) == []
    assert not fake.woken("/dev/sda")


def test_a_disk_that_does_not_wake_up_has_failed(fake, make):
    """Sleep is no excuse for one that then hangs."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make(timeout_s=0.3)
    poll(asking)
    fake.asleep("/dev/sda", documents.hdd("Z1"))
    poll(asking)
    fake.hang("/dev/sda")

    assert reason(answered(asking), "Z1") == (0.0, "smartctl: no answer within 0.3 s")
    assert status(answered(asking), "Z1") == "failed"


def test_a_disk_that_slept_from_the_start_is_known_when_it_wakes(fake, make):
    """Until then there is nothing to say but that."""
    fake.asleep("/dev/sda", documents.hdd("Z1"))
    asking = make()
    found = poll(asking)

    assert [reading.metric for reading in found.all] == [m.COLLECTOR_UP]
    assert reason(found, "/dev/sda") == (1.0, "asleep (standby), left alone")
    fake.answer("/dev/sda", documents.hdd("Z1"))
    assert status(poll(asking), "Z1") == "ok"
    assert not fake.woken("/dev/sda")


def test_only_what_turns_is_left_asleep(fake, make, machine):
    """By the kernel's word before the first answer, then by the disk's; SSDs that say "asleep" for ever are read."""
    machine.disk("sda", "8:0", queue_rotational="1")
    machine.disk("sdb", "8:16", queue_rotational="0")
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.asleep("/dev/sdb", documents.ssd(serial="S1"))
    fake.answer("/dev/sdc", documents.ssd(serial="S2"))
    fake.answer("/dev/nvme0", documents.nvme("N1"), "nvme")
    asking = make()
    found = [poll(asking) for _ in range(2)][-1]

    def nocheck(path):
        return ["--nocheck=standby,3" in call.arguments for call in fake.calls(path)]

    assert disks(found) == {"Z1", "S1", "S2", "N1"}
    assert nocheck("/dev/sda") == [True, True]
    assert nocheck("/dev/sdb") == [False, False]
    assert nocheck("/dev/sdc") == [True, False]
    assert nocheck("/dev/nvme0") == [True, False]


def test_the_kind_of_disk_is_found_out_once(fake, make):
    """Finding it out may wake a disk."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", documents.usb("U1"))
    asking = make()
    poll(asking), poll(asking)

    kinds = {path: [call.arguments[-2] for call in fake.calls(path)] for path in ("/dev/sda", "/dev/sdb")}
    assert kinds == {"/dev/sda": ["auto", "sat"], "/dev/sdb": ["auto", "usbjmicron"]}


# -- Which disks ----------------------------------------------------------------------------------------


def test_a_disk_that_is_plugged_in_is_seen_at_once(fake, make, machine):
    """When the kernel has a new block device; one that is gone is gone."""
    machine.disk("sda", "8:0")
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make()
    assert disks(poll(asking)) == {"Z1"}

    machine.disk("sdb", "8:16")
    fake.answer("/dev/sdb", documents.hdd("Z2"))
    assert disks(poll(asking)) == {"Z1", "Z2"}

    (machine.root / "sys/class/block/sda").unlink()
    fake.remove("/dev/sda")
    found = poll(asking)
    assert disks(found) == {"Z2"}
    assert status(found, "Z1") is None
    assert sum("--scan" in call.arguments for call in fake.calls()) == 3


def test_a_disk_that_comes_and_goes_while_it_hangs_is_asked_once(fake, make, machine):
    """A bad cable: its question is still open when it is back under its old name."""
    fake.answer("/dev/sdb", documents.hdd("Z2"))
    fake.hang("/dev/sda")
    asking = make(timeout_s=60.0)
    poll(asking)
    for number in range(1, 4):
        fake.remove("/dev/sda")
        machine.disk(f"sd{number}", f"8:{number}")
        assert disks(poll(asking)) == {"Z2"}
        fake.hang("/dev/sda")
        machine.disk(f"sd1{number}", f"9:{number}")
        poll(asking)

    assert len(fake.calls("/dev/sda")) == len(fake.processes()) == 1
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.kill_all()
    eventually(lambda: disks(poll(asking)) == {"Z1", "Z2"})


def test_loop_devices_are_no_reason_to_look_for_disks(fake, make, machine):
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make()
    poll(asking)
    machine.disk("loop0", "7:0")
    machine.disk("dm-0", "253:0")
    poll(asking)

    assert sum("--scan" in call.arguments for call in fake.calls()) == 1


def test_another_disk_in_the_same_bay_is_another_disk(fake, make):
    """With an own history, and of another kind perhaps."""
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=0))
    asking = make()
    poll(asking)
    # A SAS disk: what is asked as a SATA disk fails.
    failed, sas = documents.unanswered_sata("Invalid argument"), documents.sas("A1", defects=50)
    fake.runs(
        "/dev/sda",
        f"case $* in *'-d sat'*)\n{fake._says(failed)};;\nesac\n{fake._says(sas)}",
    )
    poll(asking)
    found = poll(asking)

    assert disks(found) == {"A1"}
    assert status(found, "A1") == "degraded"
    assert found.value(m.SMART_GROWTH, "A1", "reallocated") == 0


def test_two_disks_with_one_serial_number_are_told_apart_by_their_wwn(fake, make):
    """As some series of cheap SSDs have it."""
    fake.answer("/dev/sda", documents.ssd(serial="SAME", wwn=(5, 9528, 1)))
    fake.answer("/dev/sdb", documents.ssd(serial="SAME", wwn=(5, 9528, 2), reallocated=7))
    found = answered(make(interval_s=300.0))

    assert disks(found) == {"5002538000000001", "5002538000000002"}
    assert found.value(m.SMART_COUNT, "5002538000000002", "reallocated") == 7
    assert {reading.attributes[m.HW_SERIAL_NUMBER] for reading in found.of(m.SMART_INFO)} == {"SAME"}


def test_two_disks_with_one_serial_number_and_a_wwn_of_zeros_are_two(fake, make):
    """Which cheap SSDs have as well: it is nobody's, and no second way to one disk."""
    fake.answer("/dev/sda", documents.ssd(serial="SAME", wwn=(5, 0, 0)))
    fake.answer("/dev/sdb", documents.ssd(serial="SAME", wwn=(5, 0, 0), reallocated=700))
    found = answered(make(interval_s=300.0))

    assert disks(found) == {"SAME /dev/sda", "SAME /dev/sdb"}
    assert status(found, "SAME /dev/sdb") == "predicted_failure"


def test_two_disks_with_nothing_of_their_own_are_told_apart_by_their_place(fake, make):
    """Behind bridges that give all the same number."""
    fake.answer("/dev/sda", documents.usb("0123456789ABCDEF", wwn=None))
    fake.answer("/dev/sdb", documents.usb("0123456789ABCDEF", wwn=None, reallocated=7))
    fake.answer("/dev/sdc", documents.usb("", wwn=None))
    found = answered(make(interval_s=300.0))

    assert disks(found) == {"0123456789ABCDEF /dev/sda", "0123456789ABCDEF /dev/sdb", "/dev/sdc"}


def test_two_ways_to_one_disk_are_one_disk(fake, make):
    """Multipath: one serial number, one WWN."""
    fake.answer("/dev/sda", documents.sas("A1"))
    fake.answer("/dev/sdb", documents.sas("A1"))
    found = answered(make(interval_s=300.0))

    assert len(found.of(m.SMART_INFO)) == 1
    assert len(found.of(m.STATUS)) == len(STATES)
    assert len({tuple(sorted(reading.attributes.items())) for reading in found.of(m.PHYSICAL_DISK_SMART)}) == len(
        found.of(m.PHYSICAL_DISK_SMART)
    )


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 1000", "kill -SEGV $$", "echo garbage"])
def test_a_scan_that_fails_forgets_no_disk(fake, make, machine, script):
    """The disks that were there are asked all the same."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    asking = make(timeout_s=1.0)
    poll(asking)
    fake.scan(script)
    machine.disk("sdb", "8:16")
    fake.answer("/dev/sda", documents.hdd("Z1", celsius=44))

    assert poll(asking).value(m.TEMPERATURE, "Z1") == 44.0


def test_a_first_scan_that_fails_is_tried_again(fake, make):
    """With the reason meanwhile."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.scan("echo 'sudo: a password is required' >&2; exit 1")
    asking = make()
    with pytest.raises(CollectorError, match="password"):
        list(asking.collect())

    fake.scan()
    assert disks(poll(asking)) == {"Z1"}


def test_a_scan_that_is_slow_is_waited_for(fake, make):
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.scan(after_s=1.5)

    assert disks(poll(make())) == {"Z1"}


# -- Growth ---------------------------------------------------------------------------------------------


def test_growth_makes_a_failure_of_a_few_errors(fake, make):
    """Four old ones are a flaw; one more is news."""
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=4))
    asking = make()
    assert status(poll(asking), "Z1") == "degraded"
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=5))
    found = poll(asking)

    assert found.value(m.SMART_GROWTH, "Z1", "reallocated") == 1
    assert status(found, "Z1") == "predicted_failure"


def test_errors_of_the_cable_are_none_of_the_disk(fake, make):
    fake.answer("/dev/sda", documents.hdd("Z1", crc=3_118_119))
    asking = make()
    assert status(poll(asking), "Z1") == "ok"
    fake.answer("/dev/sda", documents.hdd("Z1", crc=3_118_120))

    assert status(poll(asking), "Z1") == "degraded"


def test_growth_is_known_across_restarts_and_places(fake, make):
    """By serial number, in the state file."""
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=304))
    poll(make())
    fake.remove("/dev/sda")
    fake.answer("/dev/sdk", documents.hdd("Z1", reallocated=316))

    assert poll(make()).value(m.SMART_GROWTH, "Z1", "reallocated") == 12


def test_a_state_folder_that_cannot_be_written_is_no_failure(fake, make, tmp_path):
    """Growth is known within the process."""
    (tmp_path / "blocked").write_text("")
    fake.answer("/dev/sda", documents.hdd("Z1", pending=0))
    asking = make(state=tmp_path / "blocked/smart.json")
    poll(asking)
    fake.answer("/dev/sda", documents.hdd("Z1", pending=2))

    assert poll(asking).value(m.SMART_GROWTH, "Z1", "pending") == 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[[[", '{"Z1": 3}', '{"Z1": {"seen": 1, "counters": {"pending": [[1, 1e999]]}}}']
)
def test_a_damaged_state_file_is_forgotten(fake, make, tmp_path, damage):
    """And replaced."""
    file = tmp_path / "state/smart.json"
    file.parent.mkdir()
    file.write_text(damage)
    fake.answer("/dev/sda", documents.hdd("Z1", pending=2))

    assert poll(make()).value(m.SMART_GROWTH, "Z1", "pending") == 0
    assert set(read_state(file)) == {"Z1"}


# -- In a sampler ---------------------------------------------------------------------------------------


def observed(sampler, metric, *values):
    found = [value for value, at in sampler.observe(metric, 1) if set(values) <= set(at.values())]
    return found[0] if found else None


@pytest.fixture
def sampling():
    """Start a sampler over one SMART collector; it is stopped after the test."""
    running = []

    def start(of, interval_s):
        running.append(Sampler({"smart": of}, {"smart": interval_s}))
        running[-1].start()
        return running[-1]

    yield start
    for sampler in running:
        sampler.stop()


def test_counts_are_never_averaged(fake, make, sampling):
    """No disk ever had 304.5 reallocated sectors."""
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=304))
    sampler = sampling(make(interval_s=0.05), 0.05)
    eventually(lambda: observed(sampler, m.SMART_COUNT, "reallocated") == 304)
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=309))
    seen = set()
    eventually(lambda: seen.add(observed(sampler, m.SMART_COUNT, "reallocated")) or 309 in seen)

    assert seen <= {304, 309}
    assert observed(sampler, m.STATUS, "predicted_failure") == 1.0


def test_a_run_ends_with_a_reading(fake, make, sampling, monkeypatch):
    """So that it is known what grew since it began, though no poll was due."""
    monkeypatch.setattr(collector, "_FRESH_S", 0.0)
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=304))
    sampler = sampling(make(interval_s=300.0), 300.0)
    eventually(lambda: observed(sampler, m.SMART_COUNT, "reallocated") == 304)
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=316))
    sampler.collect_now()

    assert observed(sampler, m.SMART_COUNT, "reallocated") == 316
    assert observed(sampler, m.SMART_GROWTH, "reallocated") == 12


def test_the_end_of_a_run_is_not_held_up(fake, make, sampling, monkeypatch):
    """By a disk that hangs; the others have their last reading."""
    monkeypatch.setattr(collector, "_FRESH_S", 0.0)
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", documents.hdd("Z2"))
    sampler = sampling(make(interval_s=300.0, timeout_s=60.0), 300.0)
    eventually(lambda: len(list(sampler.observe(m.TEMPERATURE, 1))) == 2)
    fake.answer("/dev/sda", documents.hdd("Z1", reallocated=12))
    fake.hang("/dev/sdb")
    began = time.monotonic()
    sampler.collect_now()
    took = time.monotonic() - began
    sampler.stop()

    assert took < 2.0
    assert observed(sampler, m.SMART_COUNT, "Z1", "reallocated") == 12
    eventually(lambda: fake.processes() == [])


def test_a_reading_that_is_fresh_is_the_last_one(fake, make, sampling):
    """A short run asks no disk twice."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    sampler = sampling(make(interval_s=300.0), 300.0)
    eventually(lambda: observed(sampler, m.TEMPERATURE, "Z1") is not None)
    sampler.collect_now()

    assert len(fake.calls("/dev/sda")) == 1


def test_a_late_answer_does_not_wait_for_the_interval(fake, make, sampling, monkeypatch):
    """The collector asks to be called again soon."""
    monkeypatch.setattr(collector, "_WAIT_S", 0.1)
    fake.answer("/dev/sda", documents.hdd("Z1"), after_s=0.5)
    sampler = sampling(make(interval_s=300.0), 300.0)

    eventually(lambda: observed(sampler, m.TEMPERATURE, "Z1") == 31.0, timeout_s=10.0)


def test_an_old_reason_is_gone_with_its_cause(fake, make, sampling):
    """What cannot be read has one reason at a time, however many there were."""
    fake.answer("/dev/sda", documents.hdd("Z1"))
    fake.answer("/dev/sdb", "line 0", status=1)
    sampler = sampling(make(interval_s=0.02), 0.02)

    def reasons():
        return [at[m.REASON] for _, at in sampler.observe(m.COLLECTOR_UP, 1) if m.HW_ID in at]

    for number in range(20):
        fake.answer("/dev/sdb", f"line {number}", status=1)
        eventually(lambda number=number: reasons() == [f"SMART: smartctl: no JSON: line {number}"])
    assert len(sampler._series[m.COLLECTOR_UP.name]) <= 3


# -- Many polls -----------------------------------------------------------------------------------------


def resources(fake):
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(fake.processes())


def memory_of_ours():
    """Bytes that our code, and what it uses, has allocated and not given back."""
    gc.collect()
    files = ("gpumon", "json", "pySMART", "subprocess.py", "threading.py", "selectors.py")
    kept = [tracemalloc.Filter(True, pattern) for name in files for pattern in (f"*/{name}", f"*/{name}/*")]
    return sum(each.size for each in tracemalloc.take_snapshot().filter_traces(kept).statistics("filename"))


def misbehave(fake, number):
    """What the last four disks do in this round."""
    serial = f"Z{number % 7}"
    ways = itertools.cycle(
        (
            lambda path: fake.answer(path, documents.hdd(serial, pending=number)),
            lambda path: fake.answer(path, f"garbage {number}", status=number % 256),
            lambda path: fake.die(path),
            lambda path: fake.answer(path, ""),
            lambda path: fake.asleep(path, documents.hdd(serial)),
            lambda path: fake.answer(path, documents.denied_sata()),
            lambda path: fake.answer(path, documents.standby("SLEEP")),
            lambda path: fake.flood(path) if number % 40 == 0 else fake.answer(path, documents.raid_volume()),
            lambda path: fake.hang(path, stubborn=number % 80 == 0) if number % 20 == 0 else fake.die(path),
        )
    )
    for _ in range(number % 9):
        next(ways)
    for place in range(4):
        next(ways)(f"/dev/bad{place}")


@pytest.mark.parametrize("polls", [2_000, pytest.param(10_000, marks=[pytest.mark.scenario, pytest.mark.timeout(900)])])
def test_nothing_grows_over_many_polls(fake, make, polls):
    """Processes, threads, open files, memory: 16 healthy disks, and four that hang, flood, die, lie."""
    healthy = [f"/dev/ok{place}" for place in range(16)]
    for place, path in enumerate(healthy):
        fake.answer(path, documents.nvme(f"N{place}") if place % 2 else documents.hdd(f"H{place}"))
    asking = make(timeout_s=0.4)
    warm_up, rounds = 20, polls // 20
    most = 0
    for number in range(warm_up):
        misbehave(fake, number)
        answered(asking)
    before = resources(fake)
    tracemalloc.start()
    asked = len(fake.calls())
    for number in range(rounds):
        misbehave(fake, number)
        found = answered(asking)
        most = max(most, len(fake.processes()) if number % 20 == 0 else 0)
        assert {f"H{place}" for place in range(0, 16, 2)} | {f"N{place}" for place in range(1, 16, 2)} <= disks(found)
        if number % 50 == 0:
            asked += len(fake.calls())
            fake.forget_calls()
    held = memory_of_ours()
    tracemalloc.stop()

    assert resources(fake) == before
    assert most <= 4 * 2
    assert held < 1_000_000
    assert Path(asking._memory._file).stat().st_size < 100_000
    assert asked + len(fake.calls()) >= polls
