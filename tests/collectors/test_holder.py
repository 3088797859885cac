"""The holder collector: which Slurm job or Kubernetes container holds each GPU, idle or not, and uses each disk."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest

from fakekubelet import container, kubelet, pod
from fakenode import Node
from gpumon import metrics as m
from gpumon.agent import collect
from gpumon.collectors.holder import HolderCollector
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.instrumentor import make_sampler
from nvml.standin import GIB, standing_in

UID, OTHER_UID = "7f2f1a3c-1f0b-4b1d-9a3a-0123456789ab", "00000000-1f0b-4b1d-9a3a-0123456789ab"
ID, OTHER_ID = "a" * 64, "b" * 64
SHORT = {
    m.HW_ID: "gpu",
    m.SYSTEM_DEVICE: "disk",
    m.HW_PARENT: "parent",
    m.JOB_ID: "job",
    m.JOB_ARRAY: "array",
    m.JOB_STEP: "step",
    m.JOB_USER: "user",
    m.K8S_NAMESPACE_NAME: "namespace",
    m.K8S_POD_NAME: "pod",
    m.K8S_POD_UID: "uid",
    m.K8S_CONTAINER_NAME: "container",
}


def gpu(index):
    return f"GPU-{index:08}-1111-2222-3333-444444444444"


def part(index, number):
    return f"MIG-{index:08}-{number:04}-2222-3333-444444444444"


def v2(job, step, task=0):
    return f"0::/system.slice/slurmstepd.scope/job_{job}/step_{step}/user/task_{task}"


def v1(job, step, uid=1000):
    group = f"/slurm/uid_{uid}/job_{job}/step_{step}"
    return (f"9:devices:{group}", f"8:memory:{group}/task_0", f"4:freezer:{group}", "1:name=systemd:/system.slice")


def in_pod(uid=UID, identity=ID):
    slice_ = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
    return f"0::/kubepods.slice/kubepods-burstable.slice/{slice_}/cri-containerd-{identity}.scope"


@pytest.fixture
def nvml(tmp_path):
    """Eight healthy GPUs; /dev/nvidiaN is NVML's GPU N."""
    with standing_in(tmp_path) as standin:
        standin.healthy(gpus=8)
        yield standin


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path / "node")


@pytest.fixture
def socket(tmp_path):
    return str(tmp_path / "kubelet.sock")


def collector(node, socket="/nonexistent/kubelet.sock", **options):
    return HolderCollector(root=node.root, kubelet=socket, pod_logs=node.root / "var/log/pods", **options)


def look(source):
    """(holders as plain dictionaries, the reason why some are not known)."""
    found, reason = [], ""
    try:
        for reading in source.collect():
            assert reading.metric is m.DEVICE_HOLDER_INFO and reading.value == 1.0
            assert set(reading.attributes) <= set(m.DEVICE_HOLDER_INFO.attributes)
            found.append({SHORT[name]: value for name, value in reading.attributes.items()})
    except CollectorError as error:
        reason = str(error)
    return sorted(found, key=str), reason


def gpus_of(source):
    """Job or pod -> its GPUs, in order."""
    found: dict[str, list[str]] = {}
    for holder in look(source)[0]:
        if "gpu" in holder:
            found.setdefault(holder.get("job") or holder.get("pod") or holder["uid"], []).append(holder["gpu"])
    return found


# -- who runs it --------------------------------------------------------------------------------------


def test_a_training_has_no_such_collector():
    """It looks at everybody's processes: only the node agent asks for it."""
    names = {name for name, _up, _reason in make_sampler(Config()).state()}
    named = {name for name, _up, _reason in make_sampler(Config(collectors=("holder", "disk"))).state()}
    of_agent = {name for name, _up, _reason in collect.make_sampler(Config(), collect.Demand()).state()}

    assert "gpu" in names and "holder" not in names
    assert named == {"disk"}
    assert of_agent == names - collect.OF_A_TRAINING | {"holder"}


def test_where_there_is_neither_that_is_said(node, nvml):
    with pytest.raises(NoDataError, match="neither Slurm nor Kubernetes here"):
        look(collector(node))


def test_an_idle_node_of_slurm_is_no_failure(node, nvml):
    """slurmd runs and there is no job: nobody holds anything."""
    node.process(700, "0::/system.slice/slurmd.service")

    assert look(collector(node)) == ([], "")


# -- Slurm --------------------------------------------------------------------------------------------


def test_a_batch_job_holds_its_gpus_while_no_process_uses_them(node, nvml):
    """cgroup v2: what slurmd wrote into the batch script's environment; user and step come with it."""
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_USER="ada", SLURM_JOB_GPUS="2,3")
    node.process(101, v2(5, "extern", "special"))

    assert look(collector(node)) == (
        [
            {"gpu": gpu(2), "job": "5", "user": "ada", "step": "batch"},
            {"gpu": gpu(3), "job": "5", "user": "ada", "step": "batch"},
        ],
        "",
    )


def test_numbers_that_begin_at_zero_in_every_task_are_not_taken_for_the_nodes(node, nvml):
    """Under ConstrainDevices each job sees its GPUs as 0, 1, …"""
    for pid, job, ours in ((100, 5, "4,5"), (200, 6, "6,7")):
        local = {"CUDA_VISIBLE_DEVICES": "0,1", "GPU_DEVICE_ORDINAL": "0,1"}
        node.process(pid, v2(job, "batch"), SLURM_JOB_ID=job, SLURM_JOB_GPUS=ours, **local)
    node.process(300, v2(7, 0), SLURM_JOB_ID="7", CUDA_VISIBLE_DEVICES="0")

    assert gpus_of(collector(node)) == {"5": [gpu(4), gpu(5)], "6": [gpu(6), gpu(7)]}


def test_a_step_does_not_hold_what_the_batch_script_holds_on_another_node(node, nvml):
    """srun hands SLURM_JOB_GPUS of the first node on to tasks on all nodes; SLURM_STEP_GPUS is their own."""
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0,1", SLURM_STEP_GPUS="6,7")

    assert look(collector(node))[0] == [
        {"gpu": gpu(6), "job": "5", "step": "0"},
        {"gpu": gpu(7), "job": "5", "step": "0"},
    ]


def test_steps_share_a_jobs_gpus(node, nvml):
    """A GPU that one numbered step has names it; one that two have, or only the job, names none of them."""
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0-2")
    node.process(110, v2(5, 0), SLURM_JOB_ID="5", SLURM_STEP_GPUS="0,1")
    node.process(120, v2(5, 1), SLURM_JOB_ID="5", SLURM_STEP_GPUS="1")

    steps = {holder["gpu"]: holder.get("step") for holder in look(collector(node))[0]}
    assert steps == {gpu(0): "0", gpu(1): None, gpu(2): "batch"}


def test_uuids_are_what_they_say(node, nvml):
    """Flags=env_uuid, and always with MIG: CUDA_VISIBLE_DEVICES has UUIDs; each task its own."""
    node.process(100, v2(5, 0, 0), SLURM_JOB_ID="5", CUDA_VISIBLE_DEVICES=gpu(1))
    node.process(101, v2(5, 0, 1), SLURM_JOB_ID="5", CUDA_VISIBLE_DEVICES=f"{gpu(3)},{gpu(4)}")

    assert gpus_of(collector(node)) == {"5": [gpu(1), gpu(3), gpu(4)]}


def test_where_device_files_have_another_order_a_number_is_not_guessed(node, nvml):
    """/dev/nvidia0 is GPU 1 of NVML: Slurm's 0 may mean either. The reason is told, numbers that agree count."""
    nvml.set({"0.minor": 1, "1.minor": 0})
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
    node.process(200, v2(6, "batch"), SLURM_JOB_ID="6", SLURM_JOB_GPUS="2")
    holders, reason = look(collector(node))

    assert [(holder["gpu"], holder["job"]) for holder in holders] == [(gpu(2), "6")]
    assert "job 5" in reason and "env_uuid" in reason


def test_with_mig_on_the_node_numbers_count_instances(node, nvml):
    """SLURM_JOB_GPUS=3 is the fourth instance then, not GPU 3."""
    nvml.set({"0.mig": 4})
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="3", CUDA_VISIBLE_DEVICES=part(0, 3))
    node.process(200, v2(6, "batch"), SLURM_JOB_ID="6", SLURM_JOB_GPUS="2")
    holders, reason = look(collector(node))

    assert holders == [{"gpu": part(0, 3), "parent": gpu(0), "job": "5", "step": "batch"}]
    assert "job 6" in reason


def test_devices_of_a_control_group_tell_where_no_environment_does(node, nvml):
    """cgroup v1: the job's list of device files, readable by everybody; numbers are those of the files."""
    nvml.set({"6.minor": 7, "7.minor": 6})
    node.process(100, *v1(5, "extern"))
    allowed = "c 1:3 rwm\nc 195:255 rwm\nc 195:254 rwm\nc 195:0 rwm\nc 195:7 rwm\n"
    node.write("sys/fs/cgroup/devices/slurm/uid_1000/job_5/devices.list", allowed)

    assert look(collector(node)) == ([{"gpu": gpu(0), "job": "5"}, {"gpu": gpu(6), "job": "5"}], "")


def test_an_unconstrained_control_group_tells_nothing(node, nvml):
    """Without ConstrainDevices a job may open every file: it does not hold them all."""
    node.process(100, *v1(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="1")
    node.write("sys/fs/cgroup/devices/slurm/uid_1000/job_5/devices.list", "a *:* rwm\n")

    assert gpus_of(collector(node)) == {"5": [gpu(1)]}


def test_what_a_job_may_not_open_it_does_not_hold(node, nvml):
    """A user may write anything into an environment; the control group is slurmd's."""
    node.process(100, *v1(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0,1,2", CUDA_VISIBLE_DEVICES=gpu(7))
    node.write("sys/fs/cgroup/devices/slurm/uid_1000/job_5/devices.list", "c 195:1 rwm\n")

    assert gpus_of(collector(node)) == {"5": [gpu(1)]}


def test_an_array_and_a_heterogeneous_job_have_the_ids_that_users_know(node, nvml):
    """A component's group has its own number; SLURM_JOB_ID is the leader's in all of them."""
    array = {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "7"}
    node.process(100, v2(47, "batch"), SLURM_JOB_ID="47", SLURM_JOB_GPUS="0", **array)
    node.process(200, v2(61, 0), SLURM_JOB_ID="60", SLURM_HET_SIZE="2", SLURM_STEP_GPUS="1")

    assert look(collector(node))[0] == [
        {"gpu": gpu(0), "job": "47", "array": "40_7", "step": "batch"},
        {"gpu": gpu(1), "job": "60", "step": "0"},
    ]


def test_groups_named_by_slurms_own_id_have_the_jobs_number(node, nvml):
    """Slurm 26.05: …/sXXXXXXXXXXXXX/step_0; a job none of whose environments is known keeps that name."""
    group = "0::/system.slice/slurmstepd.scope/{}/step_0/user/task_0"
    node.process(100, group.format("s05AJNGB5ZYD00"), SLURM_JOB_ID="5", SLURM_STEP_GPUS="0")
    node.process(200, group.format("s05AJNGB5ZYD01"), CUDA_VISIBLE_DEVICES=gpu(1))

    assert gpus_of(collector(node)) == {"5": [gpu(0)], "s05AJNGB5ZYD01": [gpu(1)]}


def test_a_job_that_ended_holds_nothing(node, nvml):
    """At once: with the next look; and the pid may be another job's then."""
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
    source = collector(node)
    assert gpus_of(source) == {"5": [gpu(0)]}

    node.end(100)
    node.process(100, v2(6, "batch"), SLURM_JOB_ID="6", SLURM_JOB_GPUS="1")

    assert gpus_of(source) == {"6": [gpu(1)]}


def test_whoever_computes_on_a_gpu_holds_it(node, nvml):
    """A process that came by ssh into the job's extern step has no variable of Slurm's."""
    node.process(100, v2(5, "extern", "special"))
    nvml.set({"3.process.100": GIB, "4.process.500": GIB})

    assert look(collector(node))[0] == [{"gpu": gpu(3), "job": "5"}]


def test_environments_that_may_not_be_read_are_told():
    """Without the capabilities there is no attribution, and a reason. (root reads everything, so not as root.)"""
    code = """if True:
        import os, sys
        from gpumon.collectors.holder import HolderCollector
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            print(list(HolderCollector(root=sys.argv[1], kubelet="/nonexistent").collect()))
        except Exception as error:
            print(type(error).__name__, error)
    """
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder))
        node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
        (node.root / "proc/100/environ").chmod(0)
        Path(folder).chmod(0o755)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60)

    assert done.stdout.startswith("CollectorError Slurm: environments of jobs: permission denied"), done
    assert "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH" in done.stdout


# -- Kubernetes ---------------------------------------------------------------------------------------


def test_a_container_holds_its_gpu_while_nothing_runs_in_it(node, nvml, socket):
    """Its image is still pulled: the kubelet has given it the GPU, no process is there."""
    (node.root / f"var/log/pods/ml_train-0_{UID}").mkdir(parents=True)
    with kubelet(socket) as told:
        told.pods = [
            pod("train-0", container("trainer", [("nvidia.com/gpu", gpu(0), gpu(1))]), namespace="ml"),
            pod("web", container("nginx")),
        ]
        found = look(collector(node, socket))

    at = {"namespace": "ml", "pod": "train-0", "uid": UID, "container": "trainer"}
    assert found == ([{"gpu": gpu(0), **at}, {"gpu": gpu(1), **at}], "")


def test_pods_that_share_a_gpu_are_all_holders(node, nvml, socket):
    """Time slicing and MPS: the device plugin numbers the shares."""
    with kubelet(socket) as told:
        told.pods = [
            pod("a", container("main", [("nvidia.com/gpu.shared", f"{gpu(0)}::0")])),
            pod("b", container("main", [("nvidia.com/gpu.shared", f"{gpu(0)}::11")])),
            pod("c", container("main", [("example.com/vgpu", f"{gpu(0)}-3")])),
        ]
        found, _reason = look(collector(node, socket))

    assert [(holder["gpu"], holder["pod"]) for holder in found] == [(gpu(0), "a"), (gpu(0), "b"), (gpu(0), "c")]


def test_mig_instances_name_their_gpu(node, nvml, socket):
    """So that figures of the whole GPU can be joined too; the old form of the UUID is taken as it is."""
    nvml.set({"1.mig": 2})
    old = f"MIG-{gpu(1)}/7/0"
    with kubelet(socket) as told:
        told.pods = [
            pod("a", container("main", [("nvidia.com/mig-1g.10gb", part(1, 0))])),
            pod("b", container("main", [("nvidia.com/mig-1g.10gb.shared", f"{part(1, 1)}::2")])),
            pod("c", container("main", [("nvidia.com/mig-1g.10gb", old)])),
        ]
        found, _reason = look(collector(node, socket))

    assert [(holder["pod"], holder["gpu"], holder.get("parent")) for holder in found] == [
        ("a", part(1, 0), gpu(1)),
        ("b", part(1, 1), gpu(1)),
        ("c", old, None),
    ]


def test_device_files_of_googles_plugin_lead_to_their_gpu(node, nvml, socket):
    """nvidia0, nvidia0/gi1, nvidia0/vgpu1: by the file's number, not NVML's."""
    nvml.set({"0.minor": 3, "3.minor": 0, "1.mig": 2})
    with kubelet(socket) as told:
        told.pods = [
            pod("a", container("main", [("nvidia.com/gpu", "nvidia0/vgpu1", "nvidia9")])),
            pod("b", container("main", [("nvidia.com/gpu", "nvidia1/gi2", "nvidia1/gi1/vgpu0")])),
        ]
        found = gpus_of(collector(node, socket))

    assert found == {"a": [gpu(3)], "b": [part(1, 0), part(1, 1)]}


def test_resource_claims_lead_to_their_gpu(node, nvml, socket):
    """Dynamic resource allocation: by the UUID in a CDI name, or NVIDIA's device name, N of /dev/nvidiaN."""
    nvml.set({"2.minor": 5, "5.minor": 2, "6.mig": 2})
    claim = "k8s.gpu.nvidia.com/claim=0e2b6f0a-gpu-5"
    with kubelet(socket) as told:
        told.pods = [
            pod("a", container("main", claims=[("gpu.nvidia.com", "gpu-5", claim)])),
            pod("b", container("main", claims=[("gpu.example.com", "x", f"example.com/gpu={gpu(0)}")])),
            pod("c", container("main", claims=[("gpu.nvidia.com", "gpu-6-mig-1g10gb-19-4")])),
            pod("d", container("main", claims=[("nic.example.com", "gpu-1")])),
        ]
        found, _reason = look(collector(node, socket))

    assert [(holder["pod"], holder["gpu"], holder.get("parent")) for holder in found] == [
        ("b", gpu(0), None),
        ("a", gpu(2), None),
        ("c", "gpu-6-mig-1g10gb-19-4", gpu(6)),
    ]


def test_devices_that_are_no_gpus_are_left_out(node, nvml, socket):
    with kubelet(socket) as told:
        told.pods = [pod("a", container("main", [("intel.com/sriov", "0000:3b:02.1"), ("amd.com/gpu", "card0")]))]

        assert look(collector(node, socket)) == ([], "")


def test_uuids_need_no_driver(node, nvml, socket):
    """An agent without NVML passes on what the kubelet says."""
    nvml.off()
    with kubelet(socket) as told:
        told.pods = [pod("a", container("main", [("nvidia.com/gpu", gpu(0))]))]

        assert gpus_of(collector(node, socket)) == {"a": [gpu(0)]}


def test_a_pod_that_came_again_has_the_uid_of_the_one_that_runs(node, nvml, socket):
    """A StatefulSet's pods keep their name; the folder of the one before may still be there."""
    for uid in (OTHER_UID, UID):
        (node.root / f"var/log/pods/ml_train-0_{uid}").mkdir(parents=True)
    source = collector(node, socket)
    with kubelet(socket) as told:
        told.pods = [pod("train-0", container("trainer", [("nvidia.com/gpu", gpu(0))]), namespace="ml")]
        before = look(source)[0]
        node.view("mnt:[1]", ("/", "0:60", "overlay", "/"))
        node.process(100, in_pod(), namespace="mnt:[1]")
        after = look(source)[0]

    assert "uid" not in before[0]
    assert after[0]["uid"] == UID


def test_a_kubelet_that_is_down_is_a_reason_and_hides_no_job(node, nvml, socket):
    """It stopped: the socket's file is left, nobody listens. Later it is back."""
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
    source = collector(node, socket)
    with kubelet(socket) as told:
        told.pods = [pod("a", container("main", [("nvidia.com/gpu", gpu(1))]))]
        assert gpus_of(source) == {"5": [gpu(0)], "a": [gpu(1)]}
    open(socket, "w").close()
    holders, reason = look(source)
    assert [holder.get("job") for holder in holders] == ["5"]
    assert reason == "kubelet: not running"

    with kubelet(socket) as told:
        told.pods = [pod("b", container("main", [("nvidia.com/gpu", gpu(1))]))]
        assert gpus_of(source) == {"5": [gpu(0)], "b": [gpu(1)]}


def test_a_kubelet_that_is_slow_delays_nobody_for_long(node, nvml, socket):
    """It is left after three seconds, with a reason."""
    node.process(100, v2(5, "batch"), SLURM_JOB_ID="5", SLURM_JOB_GPUS="0")
    with kubelet(socket) as told:
        told.delay_s = 8.0
        began = time.monotonic()
        holders, reason = look(collector(node, socket))
        took_s = time.monotonic() - began

    assert reason == "kubelet: no answer within 3 s"
    assert [holder["job"] for holder in holders] == ["5"]
    assert took_s < 7


def test_a_kubelet_that_refuses_says_why(node, nvml, socket):
    with kubelet(socket) as told:
        told.code = grpc.StatusCode.UNIMPLEMENTED

        assert look(collector(node, socket))[1] == "kubelet: unimplemented: no such thing"


def test_a_pod_that_computes_without_having_asked_is_a_holder_too(node, nvml, socket):
    """A privileged pod with NVIDIA_VISIBLE_DEVICES=all; the one that the kubelet named is not told twice."""
    (node.root / f"var/log/pods/ml_train-0_{UID}").mkdir(parents=True)
    (node.root / f"var/log/pods/ops_burn_{OTHER_UID}").mkdir(parents=True)
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"))
    node.process(100, in_pod(), namespace="mnt:[1]")
    node.process(200, in_pod(OTHER_UID, OTHER_ID), namespace="mnt:[1]")
    nvml.set({"0.process.100": GIB, "0.process.200": GIB})
    with kubelet(socket) as told:
        told.pods = [pod("train-0", container("trainer", [("nvidia.com/gpu", gpu(0))]), namespace="ml")]
        found, _reason = look(collector(node, socket))

    assert found == [
        {"gpu": gpu(0), "namespace": "ml", "pod": "train-0", "uid": UID, "container": "trainer"},
        {"gpu": gpu(0), "namespace": "ops", "pod": "burn", "uid": OTHER_UID},
    ]


def test_a_driver_that_hangs_hides_neither_pods_nor_disks(node, nvml, socket):
    """The kubelet's UUIDs need no NVML; the hang is told, and over once it is over."""
    nvml.set({"hang.nvmlDeviceGetCount_v2": 1})
    source = collector(node, socket, hang_s=0.2)
    with kubelet(socket) as told:
        told.pods = [pod("a", container("main", [("nvidia.com/gpu", gpu(0))]))]
        holders, reason = look(source)
        assert [holder["pod"] for holder in holders] == ["a"]
        assert reason == "NVML: no answer: the call hangs"

        nvml.set({"hang.nvmlDeviceGetCount_v2": None})
        deadline = time.monotonic() + 10
        while look(source)[1] and time.monotonic() < deadline:
            pass
        assert look(source)[1] == ""


# -- disks --------------------------------------------------------------------------------------------


def disks_of(source):
    """Job, pod or UID -> its disks."""
    found: dict[str, set[str]] = {}
    for holder in look(source)[0]:
        if "disk" in holder:
            found.setdefault(holder.get("job") or holder.get("pod") or holder["uid"], set()).add(holder["disk"])
    return found


@pytest.fixture
def disks(node):
    """A machine with a system disk, a data disk, and a volume of LVM on a third; mount point -> mount id."""
    node.disk("nvme0n1", "259:0")
    node.disk("nvme1n1", "259:1")
    node.disk("dm-0", "253:0", below=("nvme1n1",))
    return {
        "/": 20,
        "/data": node.mount("/data", "259:0", "ext4", "/dev/nvme0n1"),
        "/scratch": node.mount("/scratch", "253:0", "xfs", "/dev/mapper/vg-scratch"),
        "/home": node.mount("/home", "0:50", "nfs4", "server:/home"),
    }


def test_a_job_uses_the_disks_of_its_open_data_files(node, disks, nvml):
    """All layers of it; mounting says nothing, since every job sees all mounts of the machine."""
    files = [
        ("/scratch/set/part-0.tar", disks["/scratch"]),
        ("/home/ada/slurm-5.out", disks["/home"]),
        ("/usr/lib/locale/locale-archive", disks["/"]),
        ("socket:[12345]", 0),
    ]
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", SLURM_JOB_USER="ada", files=files)
    node.process(200, v2(6, 0), SLURM_JOB_ID="6")

    assert look(collector(node))[0] == [
        {"disk": "dm-0", "job": "5", "user": "ada"},
        {"disk": "nvme1n1", "job": "5", "user": "ada"},
    ]


def test_data_on_the_system_disk_counts_where_it_is_open(node, disks, nvml):
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", files=[("/srv/set/a.bin", disks["/"])])

    assert disks_of(collector(node)) == {"5": {"sda"}}


def test_a_large_mapped_file_is_open_data(node, disks, nvml):
    """Its descriptor may be closed long since. Code is none, nor is what is small."""
    maps = [
        "7f00-7f01 r--s 00000000 103:00 12 /data/set.arrow".replace("7f00-7f01", "7f0000000000-7f0000200000"),
        "7f1000000000-7f1000001000 r--s 00000000 fd:00 13 /scratch/small.arrow",
        "7f2000000000-7f2000400000 r-xp 00000000 fd:00 14 /scratch/conda/bin/python3.11",
        "7f3000000000-7f3000400000 r--p 00000000 fd:00 15 /scratch/conda/lib/libcudart.so.12",
        "7f4000000000-7f4000400000 rw-p 00000000 00:00 0 [heap]",
    ]
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", maps=maps)

    assert disks_of(collector(node)) == {"5": {"nvme0n1"}}


def test_a_disk_has_several_holders(node, disks, nvml):
    for pid, job in ((100, 5), (200, 6)):
        node.process(pid, v2(job, 0), SLURM_JOB_ID=job, files=[("/data/set.tar", disks["/data"])])

    assert disks_of(collector(node)) == {"5": {"nvme0n1"}, "6": {"nvme0n1"}}


def test_a_file_that_is_closed_counts_for_some_minutes_and_not_for_ever(node, disks, nvml):
    """Loaders open and close files; a job that read its data once does not hold the disk for days."""
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", files=[("/data/set.tar", disks["/data"])])
    source = collector(node)
    assert disks_of(source) == {"5": {"nvme0n1"}}

    (node.root / "proc/100/fd/3").unlink()
    seen = [bool(disks_of(source)) for _round in range(40)]

    assert seen[:20] == [True] * 20
    assert seen[-1] is False


def test_every_process_gets_its_turn(node, disks, nvml):
    """Of a thousand processes one has the data open."""
    for pid in range(1000, 2000):
        files = [("/data/set.tar", disks["/data"])] if pid == 1777 else []
        node.process(pid, v2(5, 0), SLURM_JOB_ID="5", files=files)
    source = collector(node)
    rounds = next(number for number in range(1, 40) if disks_of(source))

    assert disks_of(source) == {"5": {"nvme0n1"}}
    assert all(disks_of(source) for _round in range(2 * rounds))


def test_what_an_ended_job_used_is_forgotten(node, disks, nvml):
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", files=[("/data/set.tar", disks["/data"])])
    source = collector(node)
    assert disks_of(source) == {"5": {"nvme0n1"}}

    node.end(100)
    node.process(200, v2(6, 0), SLURM_JOB_ID="6")

    assert disks_of(source) == {}


GIVEN = (  # what every container has of the kubelet's disk
    ("/etc/hosts", "8:1", "ext4", f"/var/lib/kubelet/pods/{UID}/etc-hosts"),
    ("/dev/termination-log", "8:1", "ext4", f"/var/lib/kubelet/pods/{UID}/containers/trainer/0f3c"),
    ("/etc/resolv.conf", "8:1", "ext4", "/var/lib/containerd/sandboxes/1/resolv.conf"),
    ("/run/secrets/token", "0:70", "tmpfs", "/"),
)


def test_a_container_uses_the_disks_of_its_volumes(node, disks, nvml):
    """A volume on a data disk counts although no file is open; the image's layers, the kubelet's files and an
    emptyDir on the system disk do not. The container's name comes from what the kubelet mounts into it."""
    (node.root / f"var/log/pods/ml_train-0_{UID}").mkdir(parents=True)
    volume = ("/data", "259:0", "ext4", "/volumes/pvc-1")
    empty = ("/cache", "8:1", "ext4", f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/cache")
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"), *GIVEN, volume, empty)
    node.process(100, in_pod(), namespace="mnt:[1]", files=[("/app/weights.bin", 600)])

    assert look(collector(node))[0] == [
        {"disk": "nvme0n1", "namespace": "ml", "pod": "train-0", "uid": UID, "container": "trainer"}
    ]


def test_a_container_with_a_data_file_on_the_system_disk_uses_it(node, disks, nvml):
    """On a node with one disk that is where data is: an emptyDir or a hostPath, with a file open in it."""
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"), ("/cache", "8:1", "ext4", "/var/lib/x"))
    node.process(100, in_pod(), namespace="mnt:[1]", files=[("/cache/set.tar", 601)])

    assert look(collector(node))[0] == [{"disk": "sda", "uid": UID}]


def test_a_system_pod_that_sees_the_whole_machine_uses_no_disk(node, disks, nvml):
    """Exporters and storage drivers mount the machine's root with all that is mounted below it."""
    host = (
        ("/host", "8:1", "ext4", "/"),
        (">/host/data", "259:0", "ext4", "/"),
        (">/host/scratch", "253:0", "xfs", "/"),
    )
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"), *GIVEN, *host)
    node.process(100, in_pod(), namespace="mnt:[1]", files=[("/host/var/log/pods/a/b/0.log", 606)])

    assert disks_of(collector(node)) == {}


def test_a_kubelets_own_disk_is_everybodys(node, disks, nvml):
    """/var/lib/kubelet on a disk of its own: each container has files of it, none uses it by that."""
    given = [(point, "259:0" if kind == "ext4" else number, kind, folder) for point, number, kind, folder in GIVEN]
    empty = ("/cache", "259:0", "ext4", f"/pods/{UID}/volumes/kubernetes.io~empty-dir/cache")
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"), *given, empty)
    node.process(100, in_pod(), namespace="mnt:[1]")

    assert disks_of(collector(node)) == {}


def test_an_image_on_a_block_device_of_its_own_is_not_data(node, disks, nvml):
    """devmapper and zfs snapshotters: the container's root is a device."""
    node.view("mnt:[1]", ("/", "253:0", "xfs", "/rootfs"), *GIVEN)
    node.process(100, in_pod(), namespace="mnt:[1]", files=[("/app/set.tar", 600)])

    assert disks_of(collector(node)) == {}


def test_a_container_inside_a_job_uses_its_volumes(node, disks, nvml):
    """enroot, apptainer: a view of its own, with the data bound into it; folders of the system say nothing."""
    system = ("/etc/passwd", "8:1", "ext4", "/etc/passwd")
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"), ("/mnt/set", "259:0", "ext4", "/set"), system)
    node.process(100, v2(5, 0), SLURM_JOB_ID="5", namespace="mnt:[1]")

    assert disks_of(collector(node)) == {"5": {"nvme0n1"}}


# -- the real thing -----------------------------------------------------------------------------------


@pytest.fixture
def step_folder():
    """A control group as slurmd makes it, on this machine."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {before.split()[4]: after.split()[0] for before, after in mounts}
    hierarchies = [Path(point) for point, kind in kinds.items() if kind in ("cgroup", "cgroup2")]
    top = next((point for point in hierarchies if point.name in ("pids", "freezer")), None) or hierarchies[0]
    folder = top / "slurm/uid_0/job_4242/step_batch"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"needs a control group that may be written: {error}")
    yield folder
    for place in (folder, *list(folder.parents)[:3]):
        place.rmdir()


@pytest.mark.disk
def test_a_real_process_in_a_real_group_with_a_real_disk(step_folder, quick_disk, nvml):
    """The kernel's own /proc: control group, environment, mount, open file."""
    (quick_disk.path / "set.tar").write_bytes(bytes(5000))
    code = "import sys; file = open(sys.argv[1]); print(1, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(quick_disk.path / "set.tar")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"SLURM_JOB_ID": "4242", "SLURM_JOB_USER": "ada", "SLURM_JOB_GPUS": "3"},
    )
    try:
        child.stdout.readline()
        (step_folder / "cgroup.procs").write_text(str(child.pid))
        found, reason = look(HolderCollector(kubelet="/nonexistent"))
    finally:
        child.kill()
        child.communicate()

    assert reason == ""
    assert {"gpu": gpu(3), "job": "4242", "user": "ada", "step": "batch"} in found
    assert {"disk": quick_disk.device, "job": "4242", "user": "ada"} in found


def test_a_round_over_two_thousand_processes_costs_little(node, disks, nvml, socket):
    """CPU time of all threads; half of them in jobs, half in containers. The first round reads more."""
    for pid in range(1000, 2000):
        node.process(pid, v2(pid // 100, 0), SLURM_JOB_ID=pid // 100, files=[("/data/set.tar", disks["/data"])])
    node.view("mnt:[1]", ("/", "0:60", "overlay", "/"), *GIVEN, ("/data", "259:0", "ext4", "/x"))
    for pid in range(2000, 3000):
        node.process(pid, in_pod(identity=f"{pid // 10:064x}"), namespace="mnt:[1]")
    source = collector(node, socket)
    with kubelet(socket) as told:
        told.pods = [pod(f"p{number}", container("main", [("nvidia.com/gpu", gpu(0))])) for number in range(100)]
        look(source)
        costs = []
        for _round in range(12):
            began = time.process_time()
            assert look(source)[1] == ""
            costs.append(time.process_time() - began)

    assert sorted(costs)[len(costs) // 2] < 0.15, costs  # 0.035 on an idle machine
