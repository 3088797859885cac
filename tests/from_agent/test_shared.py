"""Readings of the node's agent where the process has none: they come, go and come back, and nothing jumps."""

import os
import socket
import threading
import time

import pytest

from agent.serving import Says, serving
from agent_process import short_folder
from faketree import Machine
from gpumon import metrics as m
from gpumon.errors import CollectorError, NoDataError
from gpumon.from_agent.node_agent import NodeAgent
from gpumon.from_agent.shared import Shared
from gpumon.metrics import Reading
from gpumon.sampler import Sampler
from gpumon.system.datasets import Datasets
from gpumon.system.storage import Storage, StorageMap
from otlp_receiver import eventually

SDA = {m.SYSTEM_DEVICE: "sda"}
READS = {**SDA, m.DISK_IO_DIRECTION: "read"}
REASON = "/proc/diskstats: Permission denied"


class Disk:
    """A disk: `read` lets it answer reads. Counts from *reads* on; its times are those of a source of its own."""

    interval_s = 0.05
    may_block = False

    def __init__(self, reads=0, failure=None):
        self.reads, self.seconds, self.failure, self.level = reads, reads * 0.5, failure, 3.0

    def read(self, count, seconds_each):
        self.reads += count
        self.seconds += count * seconds_each

    def collect(self):
        if self.failure:
            raise self.failure
        yield Reading(m.DISK_OPERATIONS, self.reads, READS)
        yield Reading(m.DISK_AWAIT, self.seconds, READS, per=self.reads)
        yield Reading(m.DISK_IN_FLIGHT, self.level, SDA)
        yield Reading(m.DISK_INFO, 1.0, {**SDA, m.DISK_HOLDS_DATASET: False})


@pytest.fixture
def folder():
    with short_folder() as found:
        yield found


def node_agent(folder, **options):
    options.setdefault("datasets", (Datasets(), Datasets()))
    return NodeAgent(folder / "agent.sock", environment=options.pop("environment", {}), **options)


class Process:
    """A process' sampler over one collector of its own and the agent."""

    def __init__(self, folder, name, collector, **options):
        self.agent = node_agent(folder, **options)
        self.sampler = Sampler({name: Shared(name, collector, self.agent, 0.05)}, {name: 0.05})
        self._name = name

    def __enter__(self):
        self.sampler.start()
        return self

    def __exit__(self, *_):
        self.sampler.stop()

    def value(self, metric, *values):
        found = [value for value, at in self.sampler.observe(metric, 1) if set(values) <= set(at.values())]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def state(self):
        """(up, reason)"""
        return next((up, reason) for name, up, reason in self.sampler.state() if name == self._name)


def unreadable():
    return Disk(failure=CollectorError(REASON))


def test_what_the_process_may_not_read_the_agent_tells(folder):
    """Counters, means over the process' own windows, facts: as if it had read them itself."""
    disk = Disk(1000)
    with serving(folder / "agent.sock", {"disk": disk}), Process(folder, "disk", unreadable()) as process:
        eventually(lambda: process.value(m.DISK_OPERATIONS) == 1000)
        assert process.state == (True, "")
        assert process.value(m.DISK_IN_FLIGHT) == 3.0
        eventually(lambda: process.value(m.DISK_AWAIT) is None)  # no reads in its window: no await
        disk.read(10, 0.087)
        eventually(lambda: process.value(m.DISK_AWAIT) == pytest.approx(0.087))
        assert process.value(m.DISK_OPERATIONS) == 1010


def test_a_process_that_may_read_asks_nobody(folder):
    """Its own readings; the agent hears nothing of it."""
    asked = []
    agents = Disk(5)
    own = Disk(1000)
    with serving(folder / "agent.sock", {"disk": agents}) as node:
        original = node.readings
        node.readings = lambda *arguments: asked.append(arguments) or original(*arguments)
        with Process(folder, "disk", own) as process:
            eventually(lambda: process.value(m.DISK_OPERATIONS) == 1000)
            time.sleep(0.5)

            assert process.value(m.DISK_OPERATIONS) == 1000
    assert asked == []


def test_an_agent_that_comes_later_and_goes(folder):
    """Absent with a reason before and after, there in between; nothing jumps when it is back."""
    disk = Disk(1000)
    with Process(folder, "disk", unreadable()) as process:
        eventually(lambda: process.state == (False, REASON))
        with serving(folder / "agent.sock", {"disk": disk}):
            eventually(lambda: process.value(m.DISK_OPERATIONS) == 1000)
            assert process.state == (True, "")
        eventually(lambda: process.state[0] is False)
        assert REASON in process.state[1]
        eventually(lambda: process.value(m.DISK_OPERATIONS) is None)
        disk.read(500, 0.002)  # while nobody looked
        with serving(folder / "agent.sock", {"disk": disk}):
            eventually(lambda: process.value(m.DISK_OPERATIONS) == 1500)
            eventually(lambda: process.state == (True, ""))
            disk.read(10, 0.050)
            eventually(lambda: process.value(m.DISK_AWAIT) == pytest.approx(0.050))


def test_counters_of_an_agent_that_began_anew_go_on(folder):
    """What the agent itself counts (throttled time) is 0 again after its restart: nothing falls, nothing jumps."""
    seen = []
    with Process(folder, "disk", unreadable()) as process:
        for begin in (1000, 0, 0, 7):
            disk = Disk(begin)
            with serving(folder / "agent.sock", {"disk": disk}):
                eventually(lambda: process.state == (True, "") and process.value(m.DISK_OPERATIONS) is not None)
                for _ in range(4):
                    before = process.value(m.DISK_OPERATIONS)
                    disk.read(5, 0.010)
                    eventually(lambda: process.value(m.DISK_OPERATIONS) >= before + 5)
                    seen.append(process.value(m.DISK_OPERATIONS))
                    if (mean := process.value(m.DISK_AWAIT)) is not None:
                        assert mean == pytest.approx(0.010)
            eventually(lambda: process.state[0] is False)

    assert seen == sorted(seen)
    assert 1000 + 4 * 20 <= seen[-1] <= 1000 + 4 * 20 + 7


def test_from_its_own_readings_to_the_agents_and_back(folder):
    """A right that is taken away in the middle of a run, and given again: two sources, one series."""
    own, agents = Disk(100), Disk(90_000)
    with serving(folder / "agent.sock", {"disk": agents}), Process(folder, "disk", own) as process:
        eventually(lambda: process.value(m.DISK_OPERATIONS) == 100)
        own.read(20, 0.004)
        eventually(lambda: process.value(m.DISK_AWAIT) == pytest.approx(0.004))
        agents.level = 9.0
        own.failure = CollectorError(REASON)
        eventually(lambda: process.value(m.DISK_IN_FLIGHT) == 9.0)
        assert process.value(m.DISK_OPERATIONS) == 120
        agents.read(30, 0.006)
        eventually(lambda: process.value(m.DISK_OPERATIONS) == 150)
        assert process.value(m.DISK_AWAIT) == pytest.approx(0.006)
        own.failure = None
        eventually(lambda: process.value(m.DISK_IN_FLIGHT) == 3.0)
        own.read(7, 0.008)
        eventually(lambda: process.value(m.DISK_OPERATIONS) == 157)
        assert process.value(m.DISK_AWAIT) == pytest.approx(0.008)


def test_a_mean_is_over_the_agents_samples_not_over_asks(folder):
    """The agent reads seldom: what it read stands until it reads again, and is no stronger for being asked often."""
    disk = Disk(5)
    disk.interval_s = 0.5
    with serving(folder / "agent.sock", {"disk": disk}), Process(folder, "disk", unreadable()) as process:
        eventually(lambda: process.value(m.DISK_IN_FLIGHT) == 3.0)
        disk.level = 9.0
        eventually(lambda: process.value(m.DISK_IN_FLIGHT) == 9.0)
        assert process.value(m.DISK_IN_FLIGHT) == 9.0


def test_smart_is_the_agents_where_it_answers(folder):
    """A disk is asked once per node: the process starts no smartctl of its own while the agent tells."""
    calls = []

    def own():
        calls.append(1)
        yield Reading(m.SMART_AGE, 5.0, {m.HW_ID: "MINE"})

    def theirs():
        yield Reading(m.PHYSICAL_DISK_SMART, 304, {m.HW_ID: "ZA1", m.SMART_ATTRIBUTE: "Reallocated_Sector_Ct"})

    mine = Says(own, 0.05, may_block=True)
    with Process(folder, "smart", mine) as process:
        with serving(folder / "agent.sock", {"smart": Says(theirs)}):
            eventually(lambda: process.value(m.PHYSICAL_DISK_SMART) == 304)
            count = len(calls)
            time.sleep(0.5)
            assert len(calls) == count
        eventually(lambda: len(calls) > count)
        eventually(lambda: process.value(m.SMART_AGE) == 5.0)


def test_smart_of_an_agent_that_was_there_from_the_start(folder):
    """Not one question of one's own, at the end of the run neither."""
    calls = []

    def theirs():
        yield Reading(m.PHYSICAL_DISK_SMART, 304, {m.HW_ID: "ZA1", m.SMART_ATTRIBUTE: "Reallocated_Sector_Ct"})

    mine = Says(lambda: calls.append(1) or (), 0.05, may_block=True)
    with (
        serving(folder / "agent.sock", {"smart": Says(theirs)}),
        Process(folder, "smart", mine) as process,
    ):
        eventually(lambda: process.value(m.PHYSICAL_DISK_SMART) == 304)
        process.sampler.collect_now()

    assert calls == []


def test_why_neither_has_a_reading(folder):
    """Its own reason and the agent's, with what to do; nothing of an agent where nobody set one up."""

    def nothing():
        raise NoDataError("NVML: library not found")
        yield

    own = Says(nothing, 0.05, may_block=True)
    with Process(folder, "gpu", own) as process:
        eventually(lambda: process.state[0] is False)
        assert process.state[1] == "NVML: library not found"
    with (
        serving(folder / "agent.sock", {"gpu": Says(nothing), "disk": Says(list)}),
        Process(folder, "gpu", own) as process,
    ):
        eventually(lambda: process.state[0] is False)
        assert process.state[1] == "NVML: library not found; the node's agent neither: NVML: library not found"
    with serving(folder / "agent.sock", {"disk": Says(list)}), Process(folder, "gpu", own) as process:
        eventually(lambda: "does not run this collector" in process.state[1])


def test_an_agent_that_hangs_holds_up_no_other_collector(folder):
    """It takes connections and never answers: the process' other readings keep their pace."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "agent.sock"))
        listening.listen(100)
        agent = node_agent(folder)
        host = Says(lambda: [Reading(m.CPU_BUSIEST, 0.5)])
        count = []
        host.function = lambda: count.append(1) or [Reading(m.CPU_BUSIEST, 0.5)]
        sampler = Sampler({"disk": Shared("disk", unreadable(), agent, 0.05), "host": host}, {"disk": 0.05})
        sampler.start()
        try:
            eventually(lambda: any("no answer from the agent" in reason for _, _, reason in sampler.state()))
            before = len(count)
            time.sleep(1.0)
            assert len(count) - before > 4  # it would be none: the agent is given two seconds
        finally:
            sampler.stop()


GPUS = [(0, "GPU-aa"), (1, "GPU-bb"), (2, "GPU-cc")]


def three_gpus():
    for index, uuid in GPUS:
        at = {m.HW_ID: uuid, m.GPU_INDEX: index}
        yield Reading(m.GPU_MEMORY_LIMIT, 1000 + index, at)
        yield Reading(m.TEMPERATURE, 50 + index, {m.HW_ID: f"{uuid}/core", m.HW_PARENT: uuid, m.GPU_INDEX: index})
    at = {m.HW_ID: "MIG-1", m.HW_PARENT: "GPU-cc", m.GPU_INDEX: 2}
    yield Reading(m.GPU_INFO, 1.0, {m.HW_ID: "GPU-cc", m.GPU_INDEX: 2, m.GPU_MIG: "on"})
    for name, limit in (("MIG-1", 7), ("MIG-2", 9)):
        yield Reading(m.GPU_INFO, 1.0, {**at, m.HW_ID: name, m.GPU_MIG: "instance"})
        yield Reading(m.GPU_MEMORY_LIMIT, limit, {**at, m.HW_ID: name})
    yield Reading(m.COLLECTOR_UP, 0.0, {m.HW_ID: "GPU-bb", m.REASON: "lost"})


@pytest.mark.parametrize(
    ("environment", "limits"),
    [
        ({}, {1000, 1001, 1002, 7, 9}),
        ({"CUDA_VISIBLE_DEVICES": "1"}, {1001}),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-aa"}, {1000}),
        ({"NVIDIA_VISIBLE_DEVICES": "1,2", "CUDA_VISIBLE_DEVICES": "0"}, {1001}),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, {1002, 7}),
    ],
)
def test_only_the_gpus_of_the_process(folder, environment, limits):
    """By what the container's runtime and CUDA leave it, as the agent numbers them."""

    def nothing():
        raise NoDataError("NVML: library not found")
        yield

    with (
        serving(folder / "agent.sock", {"gpu": Says(three_gpus)}),
        Process(folder, "gpu", Says(nothing, 0.05, may_block=True), environment=environment) as process,
    ):

        def found():
            return {value for value, _ in process.sampler.observe(m.GPU_MEMORY_LIMIT, 1)}

        eventually(lambda: found() == limits)
        lost = [at for _, at in process.sampler.observe(m.COLLECTOR_UP, 1) if at.get(m.HW_ID) == "GPU-bb"]
        assert bool(lost) == (1001 in limits)
        temperatures = {value for value, _ in process.sampler.observe(m.TEMPERATURE, 1)}
        assert temperatures == {limit - 950 for limit in limits if limit >= 1000}


def test_a_process_without_a_gpu_of_the_agents(folder):
    """None is taken for its own, and it is said why."""

    def nothing():
        raise NoDataError("NVML: library not found")
        yield

    with (
        serving(folder / "agent.sock", {"gpu": Says(three_gpus)}),
        Process(
            folder,
            "gpu",
            Says(nothing, 0.05, may_block=True),
            environment={"NVIDIA_VISIBLE_DEVICES": "void"},
        ) as process,
    ):
        eventually(lambda: "the agent has no GPU of this process (NVIDIA_VISIBLE_DEVICES=void)" in process.state[1])
        assert process.value(m.GPU_MEMORY_LIMIT) is None


def test_layers_of_others_are_left_alone(folder):
    """Whole disks, and the volumes that this process' data lies on; what a disk is used for is the process' to say."""

    def disks():
        for name in ("sda", "dm-0", "loop7"):
            yield Reading(m.DISK_OPERATIONS, 1, {m.SYSTEM_DEVICE: name, m.DISK_IO_DIRECTION: "read"})
            parents = {m.DISK_PARENTS: "sda"} if name == "dm-0" else {}
            yield Reading(m.DISK_INFO, 1.0, {m.SYSTEM_DEVICE: name, m.DISK_HOLDS_DATASET: False, **parents})

    datasets = Datasets()
    datasets.add_storage(Storage("/data", "block", "dm-0", ("sda",), "/data", "xfs", ("dm-0", "sda")))
    with (
        serving(folder / "agent.sock", {"disk": Says(disks)}),
        Process(folder, "disk", unreadable(), datasets=(datasets, Datasets())) as process,
    ):

        def facts():
            return {at[m.SYSTEM_DEVICE]: at for _, at in process.sampler.observe(m.DISK_INFO, 1)}

        eventually(lambda: set(facts()) == {"sda", "dm-0"})
        assert facts()["dm-0"][m.DISK_HOLDS_DATASET] is True
        assert facts()["dm-0"][m.SYSTEM_FILESYSTEM_MOUNTPOINT] == "/data"


def test_a_forked_child_asks_nobody(folder):
    """The thread that asks is the parent's."""
    with serving(folder / "agent.sock", {"disk": Disk(1)}), Process(folder, "disk", unreadable()) as process:
        eventually(lambda: process.value(m.DISK_OPERATIONS) == 1)
        child = os.fork()
        if child == 0:
            process.agent.want("disk", 0.0)
            os._exit(threading.active_count())

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_paths_that_only_the_agent_can_resolve(folder, tmp_path):
    """A container's layers: the mount and all places on it get the device that the agent tells."""
    machine = Machine(tmp_path / "machine")
    machine.disk("sda", "8:0", {"sda1": "8:1"})
    machine.mount("/", "8:1", "ext4", "/dev/sda1")
    inside = Machine(tmp_path / "inside")
    inside.mount("/", "0:55", "overlay", "overlay", options="rw,lowerdir=/var/lib/docker/l1")
    (machine.root / "var/lib/docker/l1").mkdir(parents=True)
    mounts = "9" + (inside.root / "proc/self/mountinfo").read_text()  # the kernel gives no number twice
    machine.write(f"proc/{os.getpid()}/mountinfo", mounts)
    storage_map = StorageMap(inside.root)
    datasets = Datasets(storage_map)
    before = datasets.add_path("/data/imagenet")
    assert (before.kind, before.device) == ("container", None)
    with (
        serving(folder / "agent.sock", {"disk": Disk(1)}, root=str(machine.root)),
        Process(folder, "disk", unreadable(), storage_map=storage_map, datasets=(datasets, Datasets(storage_map))),
    ):
        eventually(lambda: datasets.devices() == {"sda"})

    (place,) = datasets.places()
    assert (place.path, place.kind, place.device, place.mount_point) == ("/data/imagenet", "block", "sda", "/")
    assert storage_map.of_path("/elsewhere").device == "sda"
    assert storage_map.of_mount(20).device == "sda"
