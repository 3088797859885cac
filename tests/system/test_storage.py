"""From a path to the disks below it, for every layout that data sets are found on."""

import os
import subprocess

import pytest

import slowdisk
from faketree import Machine
from gpumon.system.storage import StorageMap


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0", {"sda1": "8:1", "sda2": "8:2"})
    machine.mount("/", "8:1", "ext4", "/dev/sda1")
    return machine


def storage(machine, path, **settings):
    return StorageMap(machine.root, **settings).of_path(path)


def test_a_partition_is_its_whole_disk(machine):
    """ext4 on nvme1n1p1 is on nvme1n1, whether or not the file exists."""
    machine.disk("nvme1n1", "259:0", {"nvme1n1p1": "259:1"})
    machine.mount("/data", "259:1", "ext4", "/dev/nvme1n1p1")

    found = storage(machine, "/data/images/1.jpg")

    assert (found.kind, found.device, found.disks, found.layers) == (
        "block",
        "nvme1n1",
        ("nvme1n1",),
        ("nvme1n1",),
    )
    assert (found.path, found.mount_point, found.file_system) == ("/data/images/1.jpg", "/data", "ext4")


def test_a_folder_that_only_begins_like_a_mount_point_is_not_on_it(machine):
    """/database is not below /data."""
    machine.disk("sdb", "8:16")
    machine.mount("/data", "8:16", "xfs", "/dev/sdb")

    assert storage(machine, "/database/x").device == "sda"
    assert storage(machine, "/data").device == "sdb"


def test_encrypted_and_logical_volumes_show_all_layers(machine):
    """LVM on LUKS on a partition: the top is the device, the disk is at the bottom."""
    machine.disk("nvme1n1", "259:0", {"nvme1n1p1": "259:1"})
    machine.disk("dm-0", "253:0", below=["nvme1n1p1"])
    machine.disk("dm-1", "253:1", below=["dm-0"])
    machine.mount("/data", "253:1", "ext4", "/dev/mapper/vg-data")

    found = storage(machine, "/data")

    assert found.device == "dm-1"
    assert found.layers == ("dm-1", "dm-0", "nvme1n1")
    assert found.disks == ("nvme1n1",)


def test_a_raid_has_several_disks(machine):
    """md0 over partitions of three disks."""
    for number, name in enumerate(("sdb", "sdc", "sdd"), 1):
        machine.disk(name, f"8:{16 * number}", {f"{name}1": f"8:{16 * number + 1}"})
    machine.disk("md0", "9:0", below=["sdb1", "sdc1", "sdd1"])
    machine.mount("/data", "9:0", "xfs", "/dev/md0")

    found = storage(machine, "/data")

    assert found.device == "md0"
    assert found.disks == ("sdb", "sdc", "sdd")


def test_btrfs_is_on_all_its_devices(machine):
    """The mount names one device under an anonymous number; /sys/fs/btrfs knows the others."""
    machine.disk("sdb", "8:16")
    machine.disk("dm-3", "253:3", below=["sdc"], dm_name="crypt")
    machine.disk("sdc", "8:32")
    for name in ("sdb", "dm-3"):
        machine.write(f"sys/fs/btrfs/aaaa-bbbb/devices/{name}", "")
    machine.mount("/data", "0:40", "btrfs", "/dev/mapper/crypt", of="/@data")

    found = storage(machine, "/data/x")

    assert found.kind == "block"
    assert found.device == "dm-3"
    assert found.disks == ("sdc", "sdb")


def test_zfs_asks_the_pool(machine):
    """A pool of one disk has a device, a pool of two has disks only."""
    machine.disk("sdb", "8:16", {"sdb1": "8:17"})
    machine.disk("sdc", "8:32", {"sdc1": "8:33"})
    machine.mount("/tank", "0:50", "zfs", "tank/set")
    machine.mount("/pool", "0:51", "zfs", "pool")
    pools = {"tank": ["/dev/sdb1"], "pool": ["/dev/sdb1", "/dev/sdc1"]}

    one = storage(machine, "/tank/x", zpool=pools.get)
    two = storage(machine, "/pool/x", zpool=pools.get)

    assert (one.kind, one.device, one.disks) == ("block", "sdb", ("sdb",))
    assert (two.kind, two.device, two.disks) == ("block", None, ("sdb", "sdc"))


def test_a_loop_device_leads_to_the_disk_of_its_file(machine):
    """A squashfs image in a file on sda: the device is the loop, the disk is sda."""
    machine.disk("loop3", "7:3", backing="/images/set.squashfs")
    machine.mount("/data", "7:3", "squashfs", "/dev/loop3")

    found = storage(machine, "/data/x")

    assert (found.device, found.disks, found.layers) == ("loop3", ("sda",), ("loop3", "sda"))


def test_a_loop_device_on_a_network_file_ends_there(machine):
    """Nothing below the loop device has a block device, so it is the disk."""
    machine.mount("/nfs", "0:60", "nfs4", "server:/x")
    machine.disk("loop3", "7:3", backing="/nfs/set.img")
    machine.mount("/data", "7:3", "ext4", "/dev/loop3")

    assert storage(machine, "/data/x").disks == ("loop3",)


@pytest.mark.parametrize(
    "file_system",
    ["nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "fuse.gcsfuse", "fuse", "9p", "virtiofs"],
)
def test_network_file_systems_have_no_device(machine, file_system):
    """What is behind a server is not a disk of this machine, FUSE included."""
    machine.mount("/data", "0:60", file_system, "server:/export")

    found = storage(machine, "/data/x")

    assert (found.kind, found.device, found.disks) == ("network", None, ())
    assert found.file_system == file_system


def test_ntfs_through_fuse_is_on_its_disk(machine):
    """fuseblk has a real block device."""
    machine.disk("sdb", "8:16", {"sdb1": "8:17"})
    machine.mount("/data", "8:17", "fuseblk", "/dev/sdb1")

    assert (storage(machine, "/data").kind, storage(machine, "/data").device) == ("block", "sdb")


@pytest.mark.parametrize("number, file_system", [("0:23", "tmpfs"), ("0:24", "ramfs"), ("253:9", "ext4")])
def test_memory_is_no_disk(machine, number, file_system):
    """tmpfs, ramfs, and a file system on compressed RAM."""
    machine.disk("zram0", "253:9")
    machine.mount("/data", number, file_system)

    found = storage(machine, "/data/x")

    assert (found.kind, found.device, found.disks) == ("memory", None, ())


def test_the_image_of_a_container_is_on_an_unknown_disk(tmp_path):
    """An overlay's folders are paths of the host; from inside they lead nowhere."""
    machine = Machine(tmp_path)
    machine.disk("vda", "254:0")
    host = "lowerdir=/var/lib/docker/l/A:/var/lib/docker/l/B,upperdir=/var/lib/docker/u"
    machine.mount("/", "0:43", "overlay", "overlay", options=f"rw,{host}")
    machine.mount("/data", "254:0", "ext4", "/dev/vda", of="/srv/sets")

    assert (storage(machine, "/app").kind, storage(machine, "/app").device) == ("container", None)
    assert storage(machine, "/data/x").device == "vda"


def test_an_overlay_whose_folders_are_here_is_on_their_disk(machine):
    """On the host itself the overlay's folders lead on."""
    for folder in ("lower", "upper"):
        (machine.root / "srv" / folder).mkdir(parents=True)
    machine.mount("/merged", "0:43", "overlay", "overlay", options="rw,lowerdir=/srv/lower,upperdir=/srv/upper")

    found = storage(machine, "/merged/x")

    assert (found.kind, found.device, found.file_system) == ("block", "sda", "overlay")


def test_a_bind_mount_is_where_its_folder_is(machine):
    """A volume in a container: the mount shows a folder of the host's disk."""
    machine.disk("sdb", "8:16")
    machine.mount("/home/me/set", "8:16", "ext4", "/dev/sdb", of="/sets/imagenet")

    assert storage(machine, "/home/me/set/train").device == "sdb"
    assert storage(machine, "/home/me/other").device == "sda"


def test_the_last_of_two_mounts_at_one_point_counts(machine):
    """A mount hides what was mounted there before, and all mounts below that."""
    machine.disk("sdb", "8:16")
    machine.disk("sdc", "8:32")
    machine.mount("/data", "8:16", "ext4", "/dev/sdb")
    machine.mount("/data/deep", "0:60", "nfs4", "server:/x")
    machine.mount("/data", "8:32", "ext4", "/dev/sdc")

    assert storage(machine, "/data/deep/x").device == "sdc"


def test_links_are_followed_into_other_mounts(machine):
    """A data folder that is a link to the disk it is on, absolute or relative."""
    machine.disk("sdb", "8:16")
    machine.mount("/mnt/big", "8:16", "ext4", "/dev/sdb")
    (machine.root / "home").mkdir()
    (machine.root / "home/set").symlink_to("/mnt/big/set")
    (machine.root / "home/near").symlink_to("../mnt/big")

    assert storage(machine, "/home/set/train").device == "sdb"
    assert storage(machine, "/home/near/x").device == "sdb"


def test_mount_points_with_blanks_are_found(machine):
    """The kernel writes them as octal numbers."""
    machine.disk("sdb", "8:16")
    machine.mount("/my data", "8:16", "ext4", "/dev/sdb")

    found = storage(machine, "/my data/x")

    assert (found.device, found.mount_point) == ("sdb", "/my data")


def test_a_mount_is_found_by_its_number(machine):
    """As /proc/PID/fdinfo names it; the path is the mount point then, and an unknown number is unknown."""
    machine.disk("sdb", "8:16")
    identity = machine.mount("/data", "8:16", "ext4", "/dev/sdb")
    storage_map = StorageMap(machine.root)

    found = storage_map.of_mount(identity)

    assert (found.path, found.device) == ("/data", "sdb")
    assert storage_map.of_mount(identity) == found
    assert storage_map.of_mount(99999).kind == "unknown"


def test_a_process_with_mounts_of_its_own_is_asked_for_them(machine):
    """A worker in a container sees other mounts under the same numbers."""
    machine.disk("sdb", "8:16")
    machine.write("proc/77/mountinfo", "20 1 8:16 / / rw - ext4 /dev/sdb rw\n")
    for pid, namespace in (("self", "mnt:[1]"), ("77", "mnt:[2]")):
        (machine.root / f"proc/{pid}/ns").mkdir(exist_ok=True)
        (machine.root / f"proc/{pid}/ns/mnt").symlink_to(namespace)
    storage_map = StorageMap(machine.root)

    assert storage_map.of_mount(20).device == "sda"
    assert storage_map.of_mount(20, 77).device == "sdb"


def test_without_sysfs_the_kind_is_still_known(machine):
    """A container that hides /sys: block storage, but which device cannot be said."""
    machine.mount("/data", "8:77", "ext4", "/dev/sde")

    assert (storage(machine, "/data").kind, storage(machine, "/data").device) == ("block", None)


def test_a_url_is_network_storage(machine):
    """Buckets have no mount."""
    found = storage(machine, "s3://bucket/train")

    assert (found.kind, found.file_system, found.path) == ("network", "s3", "s3://bucket/train")
    assert storage(machine, "file:///data").device == "sda"


@pytest.mark.disk
def test_a_real_loop_device_is_found_as_soon_as_it_is_mounted(tmp_path):
    """The kernel tells that the mounts changed; nothing waits for a cache to age."""
    storage_map = StorageMap()
    folder = storage_map.of_path(tmp_path)
    with slowdisk.quick_disk(size_mb=64) as disk:
        file = disk.path / "file"
        file.write_text("data")

        found = storage_map.of_path(file)
        with file.open() as opened:
            facts = dict(line.split(":\t") for line in _read(f"/proc/self/fdinfo/{opened.fileno()}"))
            by_mount = storage_map.of_mount(int(facts["mnt_id"]), os.getpid())

    assert (found.device, found.file_system, found.mount_point) == (disk.device, "ext4", str(disk.path))
    assert found.disks == folder.disks
    assert by_mount.device == disk.device
    assert storage_map.of_path(file).device == folder.device


@pytest.mark.disk
def test_a_real_slow_disk_and_a_real_mount(slow_disk, slow_mount):
    """ext4 on a loop device in a FUSE file is the loop device; FUSE itself is network storage."""
    storage_map = StorageMap()

    disk, share = storage_map.of_path(slow_disk.path / "x"), storage_map.of_path(slow_mount.path / "x")

    assert (disk.kind, disk.device, disk.disks) == ("block", slow_disk.device, (slow_disk.device,))
    assert (share.kind, share.device) == ("network", None)
    assert share.file_system.startswith("fuse")


def test_the_root_file_system_agrees_with_findmnt():
    """Another program's opinion of what is mounted at /tmp."""
    try:
        told = subprocess.run(
            ["findmnt", "-n", "-o", "TARGET,FSTYPE", "-T", "/tmp"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs findmnt")

    found = StorageMap().of_path("/tmp")

    assert [found.mount_point, found.file_system] == told.stdout.split()


def _read(path):
    with open(path) as file:
        return [line for line in file.read().splitlines() if ":\t" in line]
