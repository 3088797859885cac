"""What was measured of a disk is found again by what the disk is, and by nothing else."""

import json
import os
import subprocess

import pytest

from faketree import Machine
from gpumon.system.ceilings import Ceiling, Ceilings
from loop_mount import loop_device

GIVEN = [Ceiling("sequential", 1, 89e6, 89.0), Ceiling("random", 8, 48e6, 480.0)]


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path / "machine")
    machine.write("proc/sys/kernel/random/boot_id", "boot-1\n")
    return machine


def ceilings(machine, *folders):
    return Ceilings(machine.root, folders or [machine.root / "state"])


def keep(machine, device, given=GIVEN, **more):
    return ceilings(machine).keep(device, given, **{"measured": "2026-11-24T14:00:00.000Z", "path": "/data", **more})


def replaced(machine, tmp_path, device, number, **files):
    """The same machine, another disk under the same name."""
    other = Machine(tmp_path / "replaced")
    other.write("proc/sys/kernel/random/boot_id", "boot-1\n")
    other.disk(device, number, **files)
    return Ceilings(other.root, [machine.root / "state"])


@pytest.mark.parametrize(
    ("device", "own", "another"),
    [
        ("nvme0n1", {"wwid": "eui.0025385"}, {"wwid": "eui.0025386"}),
        ("sda", {"device_wwid": "naa.5000c500a1"}, {"device_wwid": "naa.5000c500a2"}),
        ("sda", {"device_serial": "ZA1", "device_model": "ST8000"}, {"device_serial": "ZA2", "device_model": "ST8000"}),
        ("vda", {"serial": "vol-1"}, {"serial": "vol-2"}),
        ("sda", {"device_serial": "0123", "device_model": "Stick"}, {"device_serial": "0123", "device_model": "Other"}),
        ("vda", {"diskseq": "3"}, {"diskseq": "4"}),
        ("md0", {"md_uuid": "aa:bb"}, {"md_uuid": "aa:cc"}),
    ],
)
def test_another_disk_of_the_same_name_is_not_credited(machine, tmp_path, device, own, another):
    """By WWN, serial number and model, UUID, or the kernel's number of the set-up."""
    machine.disk(device, "8:0", **own)
    keep(machine, device)

    assert ceilings(machine).of(device) == GIVEN
    assert replaced(machine, tmp_path, device, "8:0", **another).of(device) == []
    assert replaced(machine, tmp_path / "same", device, "8:0", **own).of(device) == GIVEN


def test_the_same_disk_under_another_name_is_known(machine, tmp_path):
    """Names move when disks are added."""
    machine.disk("sdb", "8:16", device_wwid="naa.1")
    keep(machine, "sdb")

    assert replaced(machine, tmp_path, "sdc", "8:32", device_wwid="naa.1").of("sdc") == GIVEN


def test_another_size_is_another_disk(machine, tmp_path):
    """Cheap bridges all have one serial number; volumes are resized."""
    machine.disk("sda", "8:0", device_serial="0000", size=1000)
    keep(machine, "sda")

    assert replaced(machine, tmp_path, "sda", "8:0", device_serial="0000", size=2000).of("sda") == []


def test_without_any_identity_it_is_known_until_the_machine_starts_again(machine):
    """A virtual disk without serial number."""
    machine.disk("vda", "254:0", diskseq="9")
    keep(machine, "vda")
    assert ceilings(machine).of("vda") == GIVEN

    machine.write("proc/sys/kernel/random/boot_id", "boot-2\n")

    assert ceilings(machine).of("vda") == []


def test_a_volume_that_moved_to_another_disk_is_another(machine, tmp_path):
    """The UUID of a logical volume is the same after `pvmove`; its disk is not."""
    machine.disk("sda", "8:0", device_wwid="naa.1")
    machine.disk("dm-0", "253:0", below=["sda"], dm_uuid="LVM-abc")
    keep(machine, "dm-0")
    assert ceilings(machine).of("dm-0") == GIVEN
    assert ceilings(machine).of("sda") == []

    other = Machine(tmp_path / "moved")
    other.write("proc/sys/kernel/random/boot_id", "boot-1\n")
    other.disk("sdb", "8:16", device_wwid="naa.2")
    other.disk("dm-0", "253:0", below=["sdb"], dm_uuid="LVM-abc")
    assert Ceilings(other.root, [machine.root / "state"]).of("dm-0") == []


def test_a_new_measurement_replaces_the_old_one(machine):
    """All of it: other readers, another data set."""
    machine.disk("sda", "8:0", device_wwid="naa.1")
    keep(machine, "sda")
    keep(machine, "sda", [Ceiling("random", 4, 1e6, 10.0)], measured="2026-11-25T14:00:00.000Z")

    assert ceilings(machine).of("sda") == [Ceiling("random", 4, 1e6, 10.0)]


def test_the_newest_of_two_folders_counts(machine, tmp_path):
    """A user's own, and that of root, which everybody may read."""
    machine.disk("sda", "8:0", device_wwid="naa.1")
    mine, roots = tmp_path / "mine", tmp_path / "roots"
    newer = [Ceiling("random", 4, 1e6, 10.0)]
    ceilings(machine, mine).keep("sda", GIVEN, measured="2026-11-24T14:00:00.000Z", path="/data")
    ceilings(machine, roots).keep("sda", newer, measured="2026-11-25T14:00:00.000Z", path="/data")

    assert ceilings(machine, mine, roots).of("sda") == newer
    assert ceilings(machine, mine).of("sda") == GIVEN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": "gpumon.ceilings/2"}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_no_ceiling(machine, content):
    """Memory is lost, nothing else."""
    machine.disk("sda", "8:0", device_wwid="naa.1")
    keep(machine, "sda").write_bytes(content)

    assert ceilings(machine).of("sda") == []


@pytest.mark.parametrize(
    "change",
    [{"bytes_per_s": 0}, {"bytes_per_s": "fast"}, {"operations_per_s": None}, {"parallel": None}, {"bytes_per_s": -1}],
)
def test_a_figure_that_is_none_is_left_out(machine, change):
    """The others count."""
    machine.disk("sda", "8:0", device_wwid="naa.1")
    file = keep(machine, "sda")
    state = json.loads(file.read_text())
    state["ceilings"][0] |= change
    file.write_text(json.dumps(state))

    assert ceilings(machine).of("sda") == GIVEN[1:]


def test_a_device_that_is_not_there_has_none(machine):
    """Neither is anything kept for it."""
    assert keep(machine, "sdz") is None
    assert ceilings(machine).of("sdz") == []


def test_a_folder_that_cannot_be_written_is_said(machine):
    """To the caller, who says so."""
    machine.disk("sda", "8:0", device_wwid="naa.1")
    (machine.root / "state").write_text("a file")
    with pytest.raises(OSError):
        keep(machine, "sda")


def test_users_read_what_root_measured(monkeypatch, tmp_path):
    """A user's own folder first, then /var/lib/gpumon; with a folder named, that one alone."""
    monkeypatch.delenv("GPUMON_STATE_DIR", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert [str(folder) for folder in Ceilings()._folders] == [
        f"{tmp_path}/gpumon/ceilings",
        "/var/lib/gpumon/ceilings",
    ]
    monkeypatch.setenv("GPUMON_STATE_DIR", str(tmp_path / "named"))
    assert [str(folder) for folder in Ceilings()._folders] == [f"{tmp_path}/named/ceilings"]


@pytest.mark.disk
def test_a_loop_device_is_another_one_when_it_is_set_up_anew(tmp_path):
    """Even on the same file: nobody knows what the file holds now."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    known = Ceilings(folders=[tmp_path / "state"])
    with loop_device(image) as device:
        name = os.path.basename(device)
        known.keep(name, GIVEN, measured="2026-11-24T14:00:00.000Z", path="/data")
        assert known.of(name) == GIVEN
    for _ in range(8):  # until it gets the same name
        with loop_device(image) as again:
            if os.path.basename(again) == name:
                assert known.of(name) == []
                return
    subprocess.run(["losetup", "--list"], check=True)
    pytest.fail(f"{name} was given to somebody else meanwhile")
