"""What is behind the data set, which disks' SMART can be read, and what the kernel tells of disks at all."""

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path

import pytest

from doctor.examined import Agent, Somewhere, examine, unprivileged

HEALTHY = {
    "smartctl": {"exit_status": 0},
    "smart_status": {"passed": True},
    "nvme_smart_health_information_log": {"critical_warning": 0, "percentage_used": 3},
}


def problem(message, status=2):
    return {"smartctl": {"exit_status": status, "messages": [{"string": message, "severity": "error"}]}}


@pytest.fixture
def smartctl(tmp_path, monkeypatch):
    """A smartctl that answers with these documents by path; `version`, and what `--scan` lists."""

    def make(documents, version="7.3", types=None, sleeps=()):
        devices = [{"name": path, "type": (types or {}).get(path, "nvme")} for path in documents]
        answers = tmp_path / "answers.json"
        told = {path: json.dumps(document) for path, document in documents.items()}
        answers.write_text(json.dumps({"scan": json.dumps({"devices": devices}), **told}))
        script = tmp_path / "bin" / "smartctl"
        script.write_text(
            f"#!{sys.executable} -S\n"
            "import json, sys, time\n"
            f"if '--version' in sys.argv: sys.exit(print('smartctl {version} 2022-02-28 r5338'))\n"
            f"answers = json.load(open({str(answers)!r}))\n"
            f"if sys.argv[-1] in {list(sleeps)!r}: time.sleep(60)\n"
            "print(answers['scan' if '--scan' in sys.argv else sys.argv[-1]])\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("GPUMON_SMARTCTL", str(script))

    return make


def nvme(somewhere, *names):
    for number, name in enumerate(names):
        somewhere.machine.disk(f"{name}n1", f"259:{number}", queue_rotational="0", device_model="Samsung SSD 980")


@pytest.fixture
def no_smartctl(monkeypatch):
    monkeypatch.delenv("GPUMON_SMARTCTL", raising=False)
    monkeypatch.setattr("gpumon.system.smartctl._FOLDERS", ())
    monkeypatch.setenv("PATH", "/nonexistent")


# -- SMART -------------------------------------------------------------------------------------------------


def test_disks_that_can_be_read(somewhere, smartctl):
    """One line for all of them; one that sleeps is left asleep."""
    nvme(somewhere, "nvme0", "nvme1")
    smartctl({"/dev/nvme0": HEALTHY, "/dev/nvme1": {"smartctl": {"exit_status": 3}}})

    examined = examine(somewhere.place(), "smart")

    examined.is_fine()
    assert examined.only("smart")["summary"] == "smartctl 7.3 reads /dev/nvme0, /dev/nvme1, 1 asleep"


def test_virtual_disks_have_no_smart(somewhere, no_smartctl):
    """A virtual machine: smartctl is not even missed."""
    somewhere.machine.disk("vda", "254:0")

    examined = examine(somewhere.place(), "smart")

    examined.is_fine()
    assert examined.only("smart")["status"] == "absent"


@pytest.mark.parametrize(
    ("tool", "uid", "command"),
    [
        ("apt-get", 1000, "sudo apt-get install -y smartmontools"),
        ("dnf", 1000, "sudo dnf install -y smartmontools"),
        ("apk", 0, "apk add smartmontools"),
    ],
)
def test_no_smartctl(somewhere, no_smartctl, tool, uid, command):
    """There is a real disk, and nothing to ask it with."""
    nvme(somewhere, "nvme0")
    somewhere.without("apt-get")
    somewhere.command(tool)

    examine(somewhere.place(uid=uid), "smart").names("failed", "nvme0n1: smartctl is not installed", command)


def test_without_sudo_there_is_su(somewhere, no_smartctl):
    """A minimal Debian."""
    nvme(somewhere, "nvme0")
    somewhere.without("sudo")

    command = "su -c 'apt-get install -y smartmontools'"
    examine(somewhere.place(), "smart").names("failed", "smartctl is not installed", command)


def test_old_smartctl(somewhere, smartctl):
    """Before 7.0 it prints no JSON."""
    nvme(somewhere, "nvme0")
    smartctl({"/dev/nvme0": HEALTHY}, version="6.6")

    examined = examine(somewhere.place(), "smart")

    examined.names("warning", "smartctl 6.6 prints no JSON", "sudo apt-get install -y smartmontools")


@pytest.mark.parametrize(
    ("path", "type", "message", "capability"),
    [
        ("/dev/nvme0", "nvme", "Smartctl open device: /dev/nvme0 failed: Permission denied", "CAP_SYS_ADMIN"),
        ("/dev/nvme0", "nvme", "NVME_IOCTL_ADMIN_CMD: Permission denied", "CAP_SYS_ADMIN"),
        ("/dev/sda", "sat", "Smartctl open device: /dev/sda [SAT] failed: Permission denied", "CAP_SYS_RAWIO"),
        ("/dev/sda", "scsi", "", "CAP_SYS_RAWIO"),  # smartctl says no word of it
    ],
)
def test_no_rights(somewhere, smartctl, path, type, message, capability):
    """On a machine the node agent has the rights, nobody else; the capability is that of the kind of disk."""
    document = problem(message) if message else {"smartctl": {"exit_status": 2}}
    smartctl({path: document}, types={path: type})

    examined = examine(somewhere.place(), "smart")

    (entry,) = examined.of("smart")
    assert entry["status"] == "failed"
    assert entry["summary"] == f"{path}: permission denied, needs {capability}"
    words = shlex.split(entry["repair"]["command"])
    assert (words[0], words[-1], entry["repair"]["where"]) == ("sudo", "agent", "here")
    assert words[1].startswith("/")  # sudo has a PATH of its own
    assert examined.code == 1


def test_no_rights_beside_an_agent_that_does_not_run(somewhere, smartctl):
    """Its unit is installed: it only has to be started."""
    somewhere.write("etc/systemd/system/gpumon-agent.service", "")
    smartctl({"/dev/nvme0": problem("Smartctl open device: /dev/nvme0 failed: Permission denied")})

    examined = examine(somewhere.place(), "smart")

    examined.names("failed", "needs CAP_SYS_ADMIN", "sudo systemctl start gpumon-agent")


def test_no_rights_in_a_container(somewhere, smartctl):
    """Started again with the capability and the device; two disks are one line."""
    somewhere.docker()
    denied = problem("Smartctl open device: failed: Permission denied")
    smartctl({"/dev/nvme0": denied, "/dev/nvme1": denied})

    examined = examine(somewhere.place(), "smart")

    command = "docker run --cap-add SYS_ADMIN --device /dev/nvme0 --device /dev/nvme1 …"
    examined.names("failed", "/dev/nvme0, /dev/nvme1: permission denied, needs CAP_SYS_ADMIN", command, "host")


def test_the_agent_reads_for_those_who_may_not(somewhere, smartctl):
    """Its socket is there: nothing is missing."""
    smartctl({"/dev/nvme0": problem("Smartctl open device: failed: Permission denied")})
    with tempfile.TemporaryDirectory(prefix="gpumon-") as folder, Agent(Path(folder, "a.sock"), {"version": "1"}):
        examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=f"{folder}/a.sock"), "smart")

    examined.is_fine()
    assert examined.only("smart")["summary"] == "/dev/nvme0: read by the node agent"


def test_virtual_disks_that_may_not_be_opened(somewhere, smartctl):
    """A cloud's machine: they would have no SMART anyway."""
    somewhere.machine.disk("sda", "8:0", device_model="Virtual Disk")
    smartctl(
        {"/dev/sda": problem("Smartctl open device: /dev/sda failed: Permission denied")}, types={"/dev/sda": "scsi"}
    )

    examined = examine(somewhere.place(), "smart")

    examined.is_fine()
    assert examined.only("smart")["summary"] == "/dev/sda: no SMART (virtual)"


def test_no_devices_in_a_container(somewhere, smartctl):
    """/sys tells of the host's disks, /dev has none of them."""
    somewhere.docker()
    nvme(somewhere, "nvme0")
    somewhere.machine.disk("sda", "8:0", queue_rotational="1")
    smartctl({})

    examined = examine(somewhere.place(), "smart")

    command = "docker run --cap-add SYS_ADMIN --cap-add SYS_RAWIO --device /dev/nvme0 --device /dev/sda …"
    examined.names("failed", "nvme0n1, sda: not in this container's /dev", command, "host")


def test_one_disk_that_hangs_hides_no_other(somewhere, smartctl, monkeypatch):
    """It is named with smartctl's command, the others are read."""
    monkeypatch.setattr("gpumon.doctor.smart.ANSWER_S", 1.0)
    smartctl({"/dev/nvme0": HEALTHY, "/dev/sda": HEALTHY}, types={"/dev/sda": "sat"}, sleeps=["/dev/sda"])

    examined = examine(somewhere.place(), "smart")

    assert [entry["status"] for entry in examined.of("smart")] == ["ok", "failed"]
    assert "/dev/sda: smartctl: no answer within 1 s" in examined.text
    assert "→ sudo smartctl -x /dev/sda" in examined.text


def test_wrong_smartctl_is_named(somewhere, monkeypatch):
    """The variable that says so is the cause."""
    monkeypatch.setenv("GPUMON_SMARTCTL", "/nowhere/smartctl")

    examined = examine(somewhere.place(GPUMON_SMARTCTL="/nowhere/smartctl"), "smart")

    examined.names("failed", "GPUMON_SMARTCTL: no command '/nowhere/smartctl'", "unset GPUMON_SMARTCTL")


# -- the data set ------------------------------------------------------------------------------------------


def test_data_set_on_disks(somewhere):
    """Down through LVM to the disk, with what it is."""
    machine = somewhere.machine
    nvme(somewhere, "nvme0")
    machine.disk("dm-0", "253:0", below=("nvme0n1",))
    machine.mount("/", "259:0", "ext4", "/dev/nvme0n1")
    machine.mount("/data", "253:0", "xfs", "/dev/mapper/vg-data")
    somewhere.write("data/imagenet/x", "")

    examined = examine(somewhere.place(paths=["/data/imagenet"]), "data")

    examined.is_fine()
    told = examined.only("data")["summary"]
    assert told == "/data/imagenet: xfs at /data on dm-0 over nvme0n1 (NVMe, Samsung SSD 980)"


def test_data_set_in_the_image(somewhere):
    """A container's own layer: no disk can be named from inside."""
    somewhere.docker()
    somewhere.machine.mount("/", "0:40", "overlay", options="rw,lowerdir=/var/lib/docker/l1,upperdir=/var/lib/docker/u")
    somewhere.write("data/x", "")

    examined = examine(somewhere.place(paths=["/data"]), "data")

    cause = "/data: in the container's image layer, whose disk cannot be seen from inside"
    examined.names("warning", cause, "docker run -v /path/on/host:/data:ro …", "host")


def test_data_set_on_the_network(somewhere):
    """NFS is asked nothing: a dead server would hang whoever does."""
    somewhere.machine.mount("/", "8:1", "ext4", "/dev/sda1")
    somewhere.machine.mount("/mnt/set", "0:50", "nfs4", "filer:/set")

    examined = examine(somewhere.place(paths=["/mnt/set/imagenet"]), "data")

    cause = "/mnt/set/imagenet: on nfs4 at /mnt/set: network storage"
    examined.names("warning", cause, "cp -a /mnt/set/imagenet /path/on/a/local/disk")


def test_data_set_in_a_bucket(somewhere):
    """An address instead of a path."""
    examined = examine(somewhere.place(paths=["s3://bucket/train"]), "data")

    command = "aws s3 sync s3://bucket/train /path/on/a/local/disk"
    examined.names("warning", "s3://bucket/train: read over the network", command)


def test_data_set_in_memory(somewhere):
    """No disk is read: nothing is wrong with that."""
    somewhere.machine.mount("/", "8:1", "ext4", "/dev/sda1")
    somewhere.machine.mount("/dev/shm", "0:23", "tmpfs", "tmpfs")
    somewhere.write("dev/shm/set", "")

    examined = examine(somewhere.place(paths=["/dev/shm/set"]), "data")

    examined.is_fine()
    assert "in RAM (tmpfs at /dev/shm)" in examined.text


def test_data_set_that_was_not_mounted(somewhere):
    """fstab has it, the mount table does not."""
    somewhere.machine.mount("/", "8:1", "ext4", "/dev/sda1")
    somewhere.write("etc/fstab", "# disks\n/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /data ext4 nofail 0 2\n")
    (somewhere.root / "data").mkdir()

    examined = examine(somewhere.place(paths=["/data/imagenet"]), "data")

    examined.names("failed", "/data/imagenet: not there; /data of /etc/fstab is not mounted", "sudo mount /data")


def test_data_set_that_was_not_passed_in(somewhere):
    """A container without its volume."""
    somewhere.docker()
    somewhere.machine.mount("/", "0:40", "overlay")

    examined = examine(somewhere.place(paths=["/data/my set"]), "data")

    command = "docker run -v '/data/my set':'/data/my set':ro …"
    examined.names("failed", "/data/my set: not there, in this container", command, "host")


@pytest.mark.parametrize(
    ("closed", "setfacl", "cause", "command"),
    [
        ("data", False, "/data/set: permission denied to this user (/data is closed)", "sudo chmod a+x /data"),
        ("data", True, "(/data is closed)", "sudo setfacl -m u:ada:x /data"),
        ("data/set", False, "/data/set: permission denied to this user", "sudo chmod -R a+rX /data/set"),
        ("data/set", True, "/data/set: permission denied to this user", "sudo setfacl -R -m u:ada:rX /data/set"),
    ],
)
def test_data_set_of_somebody_else(monkeypatch, closed, setfacl, cause, command):
    """There, and closed to this user: what gpumon may not enter, the training may not either."""
    monkeypatch.setattr("gpumon.doctor.disks.user", lambda: "ada")
    with tempfile.TemporaryDirectory(prefix="gpumon-doctor-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        here = Somewhere(folder)
        if setfacl:
            here.command("setfacl")
        here.machine.mount("/", "8:1", "ext4", "/dev/sda1")
        here.write("data/set/x", "")
        (here.root / closed).chmod(0o700 if os.geteuid() == 0 else 0)
        examine(here.place(), "data")
        with unprivileged():
            examined = examine(here.place(paths=["/data/set"]), "data")
        (here.root / closed).chmod(0o700)

    examined.names("failed", cause, command)


def test_data_paths_of_the_environment(somewhere):
    """GPUMON_DATA_PATHS names them too."""
    somewhere.machine.mount("/", "8:1", "ext4", "/dev/sda1")
    somewhere.write("data/x", "")

    examined = examine(somewhere.place(GPUMON_DATA_PATHS="/data:/nowhere"), "data")

    assert [entry["status"] for entry in examined.of("data")] == ["warning", "failed"]
    assert "→ gpumon doctor /" in examined.text


# -- what the kernel tells ---------------------------------------------------------------------------------


def test_kernel_files(somewhere):
    """As on any Linux."""
    nvme(somewhere, "nvme0")
    somewhere.machine.diskstats(nvme0n1=[1, 2, 3])

    somewhere.machine.disk("loop0", "7:0")

    examined = examine(somewhere.place(), "disks")

    examined.is_fine()
    assert "tell of 1 block device\n" in examined.text


@pytest.mark.parametrize(
    ("prepare", "cause", "command", "where"),
    [
        (lambda here: here.docker(), "/sys/class/block: nothing to read", "docker run -v /sys:/sys:ro …", "host"),
        (
            lambda here: (here.docker(), here.write("proc/version", "Linux version 4.4.0 (gVisor)")),
            "gVisor hides it",
            "docker run --runtime=runc …",
            "host",
        ),
        (lambda here: None, "/sys/class/block: nothing to read", "sudo mount -t sysfs sysfs /sys", "here"),
    ],
)
def test_no_sys(somewhere, prepare, cause, command, where):
    """Without /sys no disk is seen at all."""
    somewhere.machine.diskstats(sda=[1])
    prepare(somewhere)

    examine(somewhere.place(), "disks").names("failed", cause, command, where)


def test_hidden_diskstats(somewhere):
    """/proc with subset=pid, as hardened services have it."""
    nvme(somewhere, "nvme0")
    somewhere.machine.mount("/proc", "0:20", "proc", "proc", options="rw,subset=pid")

    examined = examine(somewhere.place(uid=0), "disks")

    examined.names("failed", "/proc/diskstats: nothing to read, so no disk is seen (/proc is mounted with subset=pid)",
                   "mount -t proc proc /proc")  # fmt: skip


def pressure(somewhere):
    for name in ("io", "cpu", "memory"):
        somewhere.write(f"proc/pressure/{name}", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")


def test_pressure_files(somewhere):
    """As a kernel has them with psi=1."""
    pressure(somewhere)

    examine(somewhere.place(), "pressure").is_fine()


@pytest.mark.parametrize(
    ("tools", "command"),
    [
        (("grubby",), "sudo grubby --update-kernel=ALL --args=psi=1"),
        (
            ("update-grub",),
            """sudo sh -c 'sed -i '"'"'s/^GRUB_CMDLINE_LINUX="/&psi=1 /'"'"' /etc/default/grub && update-grub'""",
        ),
    ],
)
def test_no_pressure_files(somewhere, tools, command):
    """Switched off, as on RHEL and some Debian kernels: a boot parameter switches them on."""
    for tool in tools:
        somewhere.command(tool)

    examine(somewhere.place(), "pressure").names("warning", "which has to boot with psi=1", command)


def test_no_pressure_files_in_a_container(somewhere):
    """The kernel is the host's."""
    somewhere.docker()
    somewhere.without("apt-get")
    somewhere.command("dnf")

    examined = examine(somewhere.place(uid=0), "pressure")

    examined.names("warning", "psi=1", "sudo grubby --update-kernel=ALL --args=psi=1", "host")


def test_kernel_without_pressure(somewhere):
    """Not switched off but left out: no parameter helps."""
    somewhere.write("proc/sys/kernel/osrelease", "5.4.0-x\n")
    somewhere.write("boot/config-5.4.0-x", "CONFIG_SMP=y\n# CONFIG_PSI is not set\n")

    examined = examine(somewhere.place(), "pressure")

    examined.names("warning", "5.4.0-x was built without it", "sudo apt-get install -y linux-image-amd64")
