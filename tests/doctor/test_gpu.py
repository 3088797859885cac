"""Set-ups in which a training finds no GPU: each with its cause, and the command that repairs it there."""

import grp
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from doctor.examined import Somewhere, examine, unprivileged
from gpumon.doctor import Place
from nvml.standin import standing_in

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue May  6 12:00:00 UTC 2025\nGCC version: gcc\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"
UUID = "GPU-0000000{}-1111-2222-3333-444444444444"


@pytest.fixture
def nvml(tmp_path):
    with standing_in(tmp_path) as standin:
        yield standin


def driver(somewhere, version="580.65.06", text=VERSION):
    somewhere.write("proc/driver/nvidia/version", text.format(version))


def on_the_bus(somewhere, bound=None):
    """An NVIDIA GPU in a slot; *bound*: to this driver."""
    folder = "sys/bus/pci/devices/0000:01:00.0"
    somewhere.write(f"{folder}/vendor", "0x10de\n")
    somewhere.write(f"{folder}/class", "0x030200\n")
    if bound:
        (somewhere.root / folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{bound}")


def files(somewhere, *names, mode=0o666, group=0):
    for name in names:
        file = somewhere.write(f"dev/{name}", "")
        file.chmod(mode)
        if group:
            shutil.chown(file, group=group)


NO_DRIVER, NO_LIBRARY, MISMATCH, UNKNOWN = 9, 12, 18, 999


def failing(nvml, code):
    nvml.set({"error.nvmlInitWithFlags": code, "error.nvmlInit_v2": code})


def test_gpus_that_work(somewhere, nvml):
    """Versions and counts are told in one line."""
    driver(somewhere)
    nvml.set(gpus=8)

    examined = examine(somewhere.place(CUDA_VISIBLE_DEVICES="0,1,2"), "nvml")

    examined.is_fine()
    summary = examined.only("nvml")["summary"]
    assert summary == "driver 580.65.06, 8 GPUs visible (NVIDIA H100 80GB HBM3), 3 allowed by CUDA_VISIBLE_DEVICES"


def test_no_gpu_at_all_is_no_failure(somewhere, nvml):
    """A machine without an NVIDIA GPU, such as a laptop or a CI runner."""
    failing(nvml, NO_LIBRARY)

    examined = examine(somewhere.place(), "nvml")

    examined.is_fine()
    assert examined.only("nvml")["status"] == "absent"


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("docker", "docker run --gpus all …"),
        ("podman", "podman run --device nvidia.com/gpu=all …"),
        ("kubernetes", "kubectl set resources deployment/NAME --limits=nvidia.com/gpu=1"),
        ("apptainer", "apptainer exec --nv …"),
    ],
)
@pytest.mark.parametrize("code", [NO_DRIVER, NO_LIBRARY, UNKNOWN])
def test_container_without_its_gpus(somewhere, nvml, kind, command, code):
    """The host's driver is loaded, but nothing of it was passed into the container."""
    driver(somewhere, text=OPEN)
    failing(nvml, code)
    environment = {}
    if kind == "docker":
        somewhere.docker()
    elif kind == "podman":
        somewhere.write("run/.containerenv", "")
    elif kind == "kubernetes":
        environment["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    else:
        environment["APPTAINER_CONTAINER"] = "/images/train.sif"

    examined = examine(somewhere.place(**environment), "nvml")

    cause = "this container was started without GPUs (no /dev/nvidia0), while the host's driver 580.65.06 is loaded"
    examined.names("failed", cause, command, "host")


def test_container_that_was_told_to_see_no_gpu(somewhere, nvml):
    """NVIDIA_VISIBLE_DEVICES=void, as images set it, wins over --gpus all."""
    driver(somewhere)
    somewhere.docker()
    failing(nvml, NO_DRIVER)

    examined = examine(somewhere.place(NVIDIA_VISIBLE_DEVICES="void"), "nvml")

    command = "docker run --gpus all -e NVIDIA_VISIBLE_DEVICES=all …"
    examined.names("failed", "NVIDIA_VISIBLE_DEVICES=void keeps the GPUs out", command, "host")


def test_container_with_device_files_and_no_library(somewhere, nvml):
    """NVIDIA_DRIVER_CAPABILITIES without `utility` leaves NVML out."""
    driver(somewhere)
    somewhere.docker()
    files(somewhere, "nvidia0", "nvidiactl", "nvidia-uvm")
    failing(nvml, NO_LIBRARY)

    examined = examine(somewhere.place(), "nvml")

    command = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility …"
    examined.names("failed", "device files, and not NVML's library", command, "host")


def test_driver_and_library_of_different_versions(somewhere, nvml):
    """The driver's packages were updated and the old module is still loaded."""
    driver(somewhere, "570.124.06")
    somewhere.write("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06", "")
    failing(nvml, MISMATCH)

    examined = examine(somewhere.place(), "nvml")

    cause = "differ in version (driver 570.124.06, library 580.65.06)"
    examined.names("failed", cause, "sudo reboot")


def test_image_with_a_library_of_its_own(somewhere, nvml):
    """In a container the library has to be the host's: one in the image hides it."""
    driver(somewhere, "570.124.06")
    somewhere.docker()
    somewhere.machine.mount("/", "0:40", "overlay")
    somewhere.write("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06", "")
    files(somewhere, "nvidia0", "nvidiactl")
    failing(nvml, MISMATCH)

    examined = examine(somewhere.place(), "nvml")

    examined.names("failed", "the image brings an NVIDIA library", "sudo rm /usr/lib/x86_64-linux-gnu/libnvidia-ml.so*")


def test_host_whose_driver_was_updated_under_a_container(somewhere, nvml):
    """The library is the host's, mounted: the reboot is the host's as well."""
    driver(somewhere, "570.124.06")
    somewhere.docker()
    somewhere.machine.mount("/", "0:40", "overlay")
    file = somewhere.write("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.65.06", "")
    somewhere.machine.mount(f"/{file.relative_to(somewhere.root)}", "8:1", "ext4")
    files(somewhere, "nvidia0", "nvidiactl")
    failing(nvml, MISMATCH)

    examined = examine(somewhere.place(uid=0), "nvml")

    examined.names("failed", "driver 570.124.06, library 580.65.06", "sudo reboot", "host")


@pytest.mark.parametrize(
    ("distribution", "tool", "command"),
    [
        ("debian", "apt-get", "sudo apt-get install -y libnvidia-ml1"),
        ("ubuntu", "apt-get", "sudo apt-get install -y libnvidia-compute-580"),
        ("rocky", "dnf", "sudo dnf install -y libnvidia-ml"),
    ],
)
def test_driver_without_its_library(somewhere, nvml, distribution, tool, command):
    """The package that holds NVML is named as this distribution calls it."""
    driver(somewhere)
    somewhere.write("etc/os-release", f'NAME="x"\nID="{distribution}"\n')
    somewhere.without("apt-get")
    somewhere.command(tool)
    files(somewhere, "nvidia0", "nvidiactl", "nvidia-uvm")
    failing(nvml, NO_LIBRARY)

    examine(somewhere.place(), "nvml").names("failed", "libnvidia-ml.so.1) is not installed", command)


def test_library_where_nobody_looks(somewhere, nvml):
    """A driver installed by hand, or WSL's: the loader is told of the folder."""
    driver(somewhere)
    somewhere.write("usr/lib/wsl/lib/libnvidia-ml.so.1", "")
    failing(nvml, NO_LIBRARY)

    examined = examine(somewhere.place(uid=0), "nvml")

    examined.names("failed", "NVML's library is in /usr/lib/wsl/lib", "ldconfig /usr/lib/wsl/lib")


def test_driver_that_is_not_loaded(somewhere, nvml):
    """There is a module for this kernel: it only has to be loaded."""
    on_the_bus(somewhere)
    somewhere.write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
    somewhere.write("lib/modules/6.1.0-18-amd64/updates/dkms/nvidia.ko.xz", "")
    failing(nvml, NO_DRIVER)

    examine(somewhere.place(), "nvml").names("failed", "installed and not loaded", "sudo modprobe nvidia")


def test_nouveau_holds_the_gpu(somewhere, nvml):
    """The free driver came first."""
    on_the_bus(somewhere, bound="nouveau")
    somewhere.write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
    somewhere.write("lib/modules/6.1.0-18-amd64/nvidia.ko", "")
    failing(nvml, NO_DRIVER)

    examined = examine(somewhere.place(), "nvml")

    examined.names("failed", "nouveau holds the GPU", "sudo sh -c 'modprobe -r nouveau && modprobe nvidia'")


def test_driver_that_was_not_built_for_this_kernel(somewhere, nvml):
    """After an update of the kernel without its headers."""
    on_the_bus(somewhere)
    somewhere.command("dkms")
    somewhere.write("proc/sys/kernel/osrelease", "6.1.0-20-amd64\n")
    somewhere.write("usr/src/nvidia-580.65.06/dkms.conf", "")
    failing(nvml, NO_DRIVER)

    examined = examine(somewhere.place(uid=0), "nvml")

    command = "apt-get install -y linux-headers-6.1.0-20-amd64 && dkms autoinstall && modprobe nvidia"
    examined.names("failed", "not built for this kernel (6.1.0-20-amd64)", command)


@pytest.mark.parametrize(
    ("tool", "command"),
    [("apt-get", "sudo apt-get install -y nvidia-driver"), ("dnf", "sudo dnf install -y nvidia-open")],
)
def test_gpu_without_any_driver(somewhere, nvml, tool, command):
    """A fresh machine."""
    on_the_bus(somewhere)
    somewhere.without("apt-get")
    somewhere.command(tool)
    failing(nvml, NO_LIBRARY)

    examine(somewhere.place(), "nvml").names("failed", "no driver for it", command)


@pytest.mark.parametrize(
    ("value", "cause", "command"),
    [
        ("", "CUDA_VISIBLE_DEVICES='': all 4 GPUs are hidden", "unset CUDA_VISIBLE_DEVICES"),
        ("-1", "CUDA_VISIBLE_DEVICES='-1': all 4 GPUs are hidden", "unset CUDA_VISIBLE_DEVICES"),
        ("0,8,1", "names '8', but there are GPU 0 to 3", "export CUDA_VISIBLE_DEVICES=0,1"),
        ("7", "names '7', but there are GPU 0 to 3", "export CUDA_VISIBLE_DEVICES=0,1,2,3"),
        ("GPU-ffff", "names 'GPU-ffff'", "export CUDA_VISIBLE_DEVICES=0,1,2,3"),
        ("1,1", "names '1' twice", "export CUDA_VISIBLE_DEVICES=1"),
    ],
)
def test_cuda_visible_devices_that_hides_gpus(somewhere, nvml, value, cause, command):
    """Set by a scheduler or left over: CUDA stops reading at the first name that fits no GPU."""
    driver(somewhere)
    nvml.set(gpus=4)

    examine(somewhere.place(CUDA_VISIBLE_DEVICES=value), "nvml").names("failed", cause, command)


def test_slurm_job_that_is_shown_no_gpu(somewhere, nvml):
    """Slurm's own word for it; another value would not help."""
    nvml.set(gpus=4)

    examined = examine(somewhere.place(CUDA_VISIBLE_DEVICES="NoDevFiles", SLURM_JOB_ID="4711"), "nvml")

    examined.names("failed", "this Slurm job was given no GPU", "srun --gres=gpu:1 …")


def test_uuids_are_names_too(somewhere, nvml):
    """As Slurm and Kubernetes set them; cut short as long as they fit one GPU only."""
    nvml.set(gpus=2)

    examined = examine(somewhere.place(CUDA_VISIBLE_DEVICES=f"{UUID.format(1)},GPU-00000000"), "nvml")

    examined.is_fine()
    assert "2 allowed by CUDA_VISIBLE_DEVICES" in examined.text


def test_mig_without_an_instance(somewhere, nvml):
    """MIG mode is on and nothing was carved out: CUDA finds no device."""
    driver(somewhere)
    nvml.set({"gpus": 2, "1.mig": 1, "1.error.nvmlDeviceGetMigDeviceHandleByIndex": 6})

    examined = examine(somewhere.place(), "nvml")

    examined.names("failed", "GPU 1: MIG is on and there is no instance", "sudo nvidia-smi mig -i 1 -cgi 0 -C")


def test_mig_instances_are_counted(somewhere, nvml):
    """What CUDA can use is the instances."""
    nvml.set(mig=2)

    examined = examine(somewhere.place(), "nvml")

    examined.is_fine()
    assert "2 MIG instances" in examined.text


@pytest.mark.parametrize(
    ("state", "cause", "command"),
    [
        ({"2.lost": 1}, "GPU 2: lost (it fell off the bus)", "sudo reboot"),
        ({"2.error.nvmlDeviceGetUUID": 16}, "GPU 2: reset required", "sudo nvidia-smi --gpu-reset -i 2"),
    ],
)
def test_gpu_that_does_not_answer(somewhere, nvml, state, cause, command):
    """The others are there; a training on all of them dies."""
    driver(somewhere)
    nvml.set({"gpus": 4, **state})

    examine(somewhere.place(), "nvml").names("failed", cause, command)


def test_gpus_of_other_jobs(somewhere, nvml):
    """NVML counts them and lets nobody else in: nothing is wrong."""
    driver(somewhere)
    nvml.set({"gpus": 4, **{f"{gpu}.error.nvmlDeviceGetHandleByIndex_v2": 4 for gpu in (0, 1, 3)}})

    examined = examine(somewhere.place(CUDA_VISIBLE_DEVICES="0"), "nvml")

    examined.is_fine()
    assert "1 GPU visible (NVIDIA H100 80GB HBM3), 3 more not for this process, 1 allowed" in examined.text


def test_numbers_of_a_gpu_behind_those_of_other_jobs(somewhere, nvml):
    """CUDA counts it as 0, nvidia-smi as 2."""
    driver(somewhere)
    nvml.set({"gpus": 3, **{f"{gpu}.error.nvmlDeviceGetHandleByIndex_v2": 4 for gpu in (0, 1)}})
    nvml.set({"2.mig": 1, "2.error.nvmlDeviceGetMigDeviceHandleByIndex": 6})

    examined = examine(somewhere.place(CUDA_VISIBLE_DEVICES="0"), "nvml")

    examined.names("failed", "GPU 2: MIG is on and there is no instance", "sudo nvidia-smi mig -i 2 -cgi 0 -C")


def test_container_that_is_let_in_nowhere(somewhere, nvml):
    """The device files are open, and the driver says no all the same."""
    driver(somewhere)
    somewhere.docker()
    files(somewhere, "nvidia0", "nvidiactl", "nvidia-uvm")
    nvml.set({"gpus": 2, "error.nvmlDeviceGetHandleByIndex_v2": 4})

    examined = examine(somewhere.place(), "nvml")

    cause = "NVML: no permission: the driver 580.65.06 runs and does not let this process in"
    examined.names("failed", cause, "docker run --gpus all …", "host")


def test_user_who_is_let_in_nowhere(somewhere, nvml, monkeypatch):
    """As under AppArmor: no reboot helps; the agent reads for those who may not."""
    monkeypatch.setattr("gpumon.doctor.gpu_start.gpumon", lambda: "gpumon")
    driver(somewhere)
    files(somewhere, "nvidia0", "nvidiactl", "nvidia-uvm")
    nvml.set({"gpus": 2, "error.nvmlDeviceGetHandleByIndex_v2": 4})

    examined = examine(somewhere.place(), "nvml")

    examined.names("failed", "NVML: no permission: the driver 580.65.06 runs", "sudo gpumon agent --group gpumon")


def test_cuda_needs_more_files_than_nvml(somewhere, nvml):
    """nvidia-smi works, and torch.cuda.is_available() is False: nvidia-uvm is not loaded."""
    driver(somewhere)
    files(somewhere, "nvidia0", "nvidiactl")

    examined = examine(somewhere.place(), "nvml")

    examined.names("failed", "/dev/nvidia-uvm is not there: CUDA cannot start", "sudo modprobe nvidia-uvm")


def test_slurm_job_without_a_gpu(somewhere, nvml):
    """The node has GPUs, the job asked for none."""
    driver(somewhere)
    failing(nvml, NO_DRIVER)

    examined = examine(somewhere.place(SLURM_JOB_ID="4711"), "nvml")

    examined.names("failed", "this Slurm job was given no GPU", "srun --gres=gpu:1 …")


class TestRights:
    """Device files that this user may not open."""

    @pytest.fixture
    def open_place(self):
        """A machine in a folder that everybody may enter."""
        folder = Path(tempfile.mkdtemp(prefix="gpumon-doctor-"))
        folder.chmod(0o755)
        yield Somewhere(folder)
        shutil.rmtree(folder)

    @pytest.mark.parametrize("works", [False, True])
    def test_device_files_of_a_group(self, open_place, nvml, works, monkeypatch):
        """0660 root:video, as some sites have it: the user has to be in the group."""
        monkeypatch.setattr("gpumon.doctor.repairs.user", lambda: "ada")
        driver(open_place)
        files(open_place, "nvidia0", "nvidiactl", "nvidia-uvm", mode=0o660)
        video = grp.getgrnam("video").gr_gid
        if os.geteuid() == 0:
            for file in (open_place.root / "dev").iterdir():
                os.chown(file, 0, video)
        else:
            pytest.skip("needs root, to make files of a group that one is not in")
        if not works:
            failing(nvml, 4)
        examine(open_place.place(), "nvml")  # imports what an unprivileged process may not read here

        with unprivileged():
            examined = examine(open_place.place(), "nvml")

        files_of_it = "/dev/nvidia-uvm, /dev/nvidia0, /dev/nvidiactl"
        cause = f"{files_of_it}: permission denied to this user, who is not in group video"
        examined.names("failed", cause, "sudo usermod -aG video ada")

    def test_device_files_of_root_alone(self, open_place, nvml):
        """0600: somebody changed the driver's setting."""
        driver(open_place)
        files(open_place, "nvidia0", "nvidiactl", "nvidia-uvm")
        (open_place.root / "dev/nvidia0").chmod(0)
        examine(open_place.place(), "nvml")

        with unprivileged():
            examined = examine(open_place.place(), "nvml")

        examined.names("failed", "/dev/nvidia0: permission denied to this user", "sudo chmod a+rw /dev/nvidia0")


def test_driver_that_hangs_holds_up_nobody(somewhere, nvml, monkeypatch):
    """NVML never answers: whoever waits for it gives up in time, and all say what they found."""
    monkeypatch.setattr(Place.share, "__defaults__", (0.5,))
    driver(somewhere)
    nvml.set({"hang.nvmlInitWithFlags": 1, "hang.nvmlInit_v2": 1})
    began = time.monotonic()
    try:
        examined = examine(somewhere.place(), "nvml", "torch", "tensorflow", "jax", "disks")
    finally:
        nvml.set({"hang.nvmlInitWithFlags": None, "hang.nvmlInit_v2": None})

    assert time.monotonic() - began < 10
    (entry,) = examined.of("nvml")
    assert entry["summary"] == "NVML does not answer: the driver hangs"
    assert entry["repair"] == {"command": "sudo reboot", "where": "here"}
    for name in ("torch", "tensorflow", "jax"):
        assert not [each for each in examined.of(name) if each["status"] == "failed"]
    assert examined.code == 1


@pytest.mark.disk
def test_container_that_has_lost_its_gpus(somewhere, nvml):
    """After `systemctl daemon-reload` on the host: NVML says "unknown error", though the files look as before."""
    driver(somewhere)
    somewhere.docker()
    failing(nvml, UNKNOWN)
    folder = somewhere.root / "dev"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev,size=64k", "none", folder], check=True)
    try:
        for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
            os.mknod(folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # may not be opened, whatever its mode says
            (folder / name).chmod(0o666)
        examined = examine(somewhere.place(), "nvml")
    finally:
        subprocess.run(["umount", folder], check=True)

    examined.names("failed", "the container has lost its right to it", f"docker restart {os.uname().nodename}", "host")
