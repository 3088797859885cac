"""What the GPU collector does where NVML fails: a reason, never a wrong value; one GPU never hides another."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gpumon import metrics as m
from gpumon.collectors.gpu import GpuCollector
from gpumon.errors import CollectorError, NoDataError
from gpumon.sampler import Sampler
from gpumon.system import nvml as door
from gpumon.system.visible_gpus import Listed, visible
from nvml.standin import HEALTHY, environment, standing_in
from otlp_receiver import eventually
from readings import Readings

CODES = [*range(1, 30), 999]
LOUD = {key: 3 for key in HEALTHY if key.startswith(("field.", "gpm."))}
"""Every value above 0, so that a 0 is a value that was made up."""


@pytest.fixture
def nvml(tmp_path):
    with standing_in(tmp_path) as standin:
        yield standin


def uuid(index):
    return f"GPU-{index:08d}-1111-2222-3333-444444444444"


def collector(**options):
    return GpuCollector(environment={}, **options)


def reason_of(gpus):
    """Why a collection failed; and what it told before."""
    told = []
    try:
        for reading in gpus.collect():
            told.append(reading)
    except (NoDataError, CollectorError) as error:
        return str(error), Readings(told)
    return "", Readings(told)


def loud(nvml, state=None):
    nvml.healthy({**LOUD, "enc": 5, "dec": 5, "reasons": 0xFC, f"process.{os.getpid()}": 1 << 30, **(state or {})})


def functions_of(nvml):
    """Every NVML function that is called in some looks at a GPU."""
    loud(nvml)
    gpus = collector()
    for _ in range(12):
        list(gpus.collect())
    nvml.set(has_samples=0, has_memory_v2=0, has_temperature_v=0, mig=1)
    list(collector().collect())
    return [name for name in nvml.functions() if any(nvml.calls(name, gpu) for gpu in (-1, 0))]


def test_every_function_may_fail_in_every_way(nvml):
    """No exception but the two of a collector, no value that was not read, and a reason for what is missing."""
    functions = functions_of(nvml)
    loud(nvml)
    whole = {(reading.metric.name, frozenset(reading.attributes)) for reading in collector().collect()}
    assert len(functions) > 35

    for function in functions:
        for code in CODES:
            loud(nvml, {f"error.{function}": code})
            gpus = collector()
            for _look in range(2):
                failure, told = reason_of(gpus)
                case = function, code, failure
                for reading in told.all:
                    quiet = reading.metric in (m.STATUS, m.COLLECTOR_UP) or "hw_slowdown" in reading.attributes.values()
                    begins = function == "nvmlDeviceGetFieldValues" and reading.metric is m.GPU_THROTTLE_TIME
                    assert reading.value or quiet or begins, (case, reading)
                missing = whole - {(reading.metric.name, frozenset(reading.attributes)) for reading in told.all}
                reasons = [failure, *(why for of_gpu in gpus.missing().values() for why in of_gpu.values())]
                reasons += [str(reading.attributes.get(m.REASON, "")) for reading in told.of(m.COLLECTOR_UP)]
                if missing and function != "nvmlDeviceGetMigMode":
                    assert any(door.reason(code) in why for why in reasons), (case, missing, reasons)


@pytest.mark.parametrize("code", CODES)
def test_everything_fails(nvml, code):
    """The reason is NVML's, in few words."""
    nvml.healthy({"error.*": code})
    failure, told = reason_of(collector())

    assert failure == f"NVML: {door.reason(code)}"
    assert told.all == []


@pytest.mark.parametrize("code", CODES)
def test_everything_fails_later(nvml, code):
    """No reading but that the GPU cannot be read, and why."""
    nvml.healthy(gpus=2)
    gpus = collector()
    list(gpus.collect())
    nvml.set({"error.*": code})
    time.sleep(0.6 if code == door.NOT_FOUND else 0)  # an empty buffer may mean that the next sample is due
    for _look in range(2):
        failure, told = reason_of(gpus)

        assert door.reason(code) in failure
        assert {reading.metric for reading in told.all} <= {m.STATUS, m.COLLECTOR_UP}
        assert {reading.value for reading in told.of(m.COLLECTOR_UP)} <= {0}
    nvml.set({"error.*": None})
    if code not in door.GONE and code not in door.UNSUPPORTED and code not in (9, 12):  # asked again after some time
        assert reason_of(gpus)[0] == ""


def test_a_gpu_is_lost(nvml):
    """1 of 8 falls off the bus in mid-run: its readings end, its state is failed, the others go on."""
    nvml.healthy(gpus=8)
    gpus = collector()
    sampler = Sampler({"gpu": gpus})
    sampler._collect(sampler._entries[0])
    nvml.set({"3.lost": 1})
    found = Readings(gpus.collect())

    assert {reading.attributes[m.GPU_INDEX] for reading in found.of(m.GPU_UTILIZATION)} == {0, 1, 2, 4, 5, 6, 7}
    assert {reading.metric for reading in found.all if uuid(3) in reading.attributes.values()} == {
        m.STATUS,
        m.COLLECTOR_UP,
    }
    assert {name: found.value(m.STATUS, uuid(3), name) for name in ("ok", "degraded", "failed")} == {
        "ok": 0,
        "degraded": 0,
        "failed": 1,
    }
    assert found.value(m.STATUS, uuid(4), "ok") == 1
    sampler._collect(sampler._entries[0])
    up = {at.get(m.HW_ID): (value, at.get(m.REASON)) for value, at in sampler.observe(m.COLLECTOR_UP, 1)}
    assert up == {None: (1.0, None), uuid(3): (0.0, "lost")}
    assert {at[m.COLLECTOR] for _value, at in sampler.observe(m.COLLECTOR_UP, 1)} == {"gpu"}


def test_a_lost_gpu_is_left_alone_and_comes_back(nvml, monkeypatch):
    """It is not asked on every look; after a reset it goes on, and nothing says that it was lost."""
    nvml.healthy(gpus=2)
    gpus = collector()
    list(gpus.collect())
    nvml.set({"1.lost": 1})
    list(gpus.collect())
    nvml.reset()
    list(gpus.collect())
    assert nvml.all_calls(1) == {}
    nvml.set({"1.lost": None})
    monkeypatch.setattr("gpumon.collectors.gpu.time.monotonic", lambda moment=time.monotonic() + 60: moment)
    found = Readings(gpus.collect())

    assert found.value(m.STATUS, uuid(1), "ok") == 1
    assert found.of(m.COLLECTOR_UP) == []


def test_a_gpu_that_is_lost_from_the_start(nvml):
    """Its UUID is not known: it is called by its index, and the others are read."""
    nvml.healthy({"1.lost": 1}, gpus=2)
    found = Readings(collector().collect())

    assert found.value(m.COLLECTOR_UP, "GPU 1", "lost") == 0
    assert found.value(m.STATUS, "GPU 1", "failed") == 1
    assert found.value(m.STATUS, uuid(0), "ok") == 1


@pytest.mark.parametrize("devices", [None, "0"])
def test_gpus_that_are_others(nvml, devices):
    """NVML counts those of other jobs, too; CUDA does not: its 0 is the first that this process may use."""
    nvml.healthy({f"{gpu}.error.nvmlDeviceGetHandleByIndex_v2": 4 for gpu in (0, 1, 3)}, gpus=4)

    found = Readings(GpuCollector(environment={} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}).collect())

    named = [reading.attributes[m.HW_ID] for reading in found.all if m.HW_ID in reading.attributes]
    assert {name.partition("/")[0] for name in named} == {uuid(2)}


def test_no_gpu_is_for_this_process(nvml):
    """Each says why."""
    nvml.healthy({"error.nvmlDeviceGetHandleByIndex_v2": 4}, gpus=2)

    assert reason_of(collector())[0] == "NVML: GPU 0: no permission; GPU 1: no permission"


def test_all_gpus_are_lost(nvml):
    """Then the collector is down, and says why."""
    nvml.healthy(gpus=2)
    gpus = collector()
    list(gpus.collect())
    nvml.set({"error.*": 15})

    failure, told = reason_of(gpus)
    assert failure == f"NVML: {uuid(0)}: lost; {uuid(1)}: lost"
    assert told.value(m.STATUS, uuid(1), "failed") == 1


def test_only_the_last_reason_of_a_device_is_told(nvml):
    """A reason that changed does not stand beside the new one, nor one that is over."""
    nvml.healthy(gpus=2)
    sampler = Sampler({"gpu": collector()})

    def ups():
        sampler._collect(sampler._entries[0])
        return [(value, at.get(m.REASON)) for value, at in sampler.observe(m.COLLECTOR_UP, 1) if m.HW_ID in at]

    assert ups() == []
    nvml.set({"1.error.nvmlDeviceGetClockInfo": 4})
    assert ups() == [(1, "memory clock: no permission; sm clock: no permission")]
    nvml.set({"1.error.nvmlDeviceGetClockInfo": 10})
    assert ups() == [(1, "memory clock: timeout; sm clock: timeout")]
    nvml.set({"1.error.nvmlDeviceGetClockInfo": None})
    assert ups() == []


def test_a_part_that_fails_is_said_of_a_gpu_that_works(nvml):
    """The GPU is up, with the reason of what it does not tell."""
    nvml.healthy({"error.nvmlDeviceGetClockInfo": 4})
    found = Readings(collector().collect())

    assert found.of(m.GPU_CLOCK_FREQUENCY) == []
    [up] = found.of(m.COLLECTOR_UP)
    assert (up.value, up.attributes[m.REASON]) == (1, "memory clock: no permission; sm clock: no permission")


@pytest.mark.parametrize("code", [4, 10, 999])
def test_one_field_fails(nvml, code):
    """The other fields are read, and the reason is said."""
    nvml.healthy({"field.83.error": code})
    gpus = collector()
    for _look in range(2):
        found = Readings(gpus.collect())
        assert found.of(m.ENERGY) == []
        assert found.value(m.GPU_PCIE_REPLAYS) == 2
        assert found.value(m.COLLECTOR_UP, uuid(0), f"fields: {door.reason(code)}") == 1
    nvml.set({"field.83.error": None})
    assert Readings(gpus.collect()).value(m.ENERGY) == 5000


def test_a_field_says_that_the_gpu_is_lost(nvml):
    """As a call would."""
    nvml.healthy({"1.field.83.error": 15}, gpus=2)

    assert Readings(collector().collect()).value(m.COLLECTOR_UP, uuid(1), "lost") == 0


def test_nvml_was_shut_down_by_somebody(nvml):
    """It is started again."""
    gpus = collector()
    list(gpus.collect())
    nvml.set({"error.nvmlDeviceGetSamples": 1})
    assert reason_of(gpus)[0] == "NVML: not initialized"
    nvml.set({"error.nvmlDeviceGetSamples": None, "xid.1": "0:79"})

    assert reason_of(gpus)[0] == ""
    eventually(lambda: gpus.take_events())


def test_without_a_driver(nvml):
    """The reasons of a host without GPUs: no data, and asked again only after a minute."""
    nvml.off()
    gpus = collector()
    assert reason_of(gpus)[0] == "NVML: driver not loaded"
    nvml.reset()
    assert reason_of(gpus)[0] == "NVML: driver not loaded"
    assert nvml.calls("nvmlInitWithFlags") == 0


def test_a_driver_that_was_exchanged(nvml):
    """The library is newer than the driver that runs."""
    nvml.healthy({"error.nvmlInitWithFlags": 18})

    assert reason_of(collector())[0] == "NVML: driver and library differ in version"


def test_no_gpu_is_left(nvml):
    """CUDA_VISIBLE_DEVICES is empty."""
    assert reason_of(GpuCollector(environment={"CUDA_VISIBLE_DEVICES": ""}))[0] == (
        "NVML: CUDA_VISIBLE_DEVICES leaves no GPU"
    )


def test_a_gpu_that_hangs_delays_the_others_once(nvml):
    """It is left to its thread; the others go on at once, and so does it when its call ends."""
    nvml.healthy(gpus=3)
    gpus = collector(hang_s=0.3)
    list(gpus.collect())
    nvml.set({"1.hang.nvmlDeviceGetMemoryInfo_v2": 1})
    began = time.monotonic()
    found = Readings(gpus.collect())
    assert time.monotonic() - began < 1.5
    assert {reading.attributes[m.GPU_INDEX] for reading in found.of(m.GPU_UTILIZATION)} == {0, 2}
    assert found.value(m.COLLECTOR_UP, uuid(1), "no answer: memory hangs") == 0

    began = time.monotonic()
    found = Readings(gpus.collect())
    assert time.monotonic() - began < 0.2
    assert {reading.attributes[m.GPU_INDEX] for reading in found.of(m.GPU_UTILIZATION)} == {0, 2}
    nvml.set({"1.hang.nvmlDeviceGetMemoryInfo_v2": None})
    eventually(lambda: Readings(gpus.collect()).value(m.GPU_UTILIZATION, uuid(1), "general") is not None)
    assert Readings(gpus.collect()).of(m.COLLECTOR_UP) == []


HANGS = """
    import sys, time
    from gpumon import metrics as m
    from gpumon.collectors.gpu import GpuCollector
    from gpumon.collectors.host import HostCollector
    from gpumon.sampler import Sampler

    sampler = Sampler({"gpu": GpuCollector(), "host": HostCollector()}, {"host": 0.05})
    sampler.start()
    time.sleep(1)
    assert [value for value, at in sampler.observe(m.MEMORY_USAGE, 1)]
    sampler.stop()
    print("done", flush=True)
"""


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetSamples", "nvmlEventSetWait_v2"])
def test_a_call_that_hangs_delays_neither_others_nor_the_exit(nvml, function):
    """Other collectors are read, and the process ends."""
    nvml.healthy({f"hang.{function}": 1})
    command = [sys.executable, "-c", textwrap.dedent(HANGS)]
    began = time.monotonic()
    done = subprocess.run(command, env=environment(nvml.file), capture_output=True, text=True, timeout=30)

    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0
    assert time.monotonic() - began < 10


def test_the_libraries_own_loading(nvml):
    """Another process finds the library by its name, as pynvml does."""
    nvml.healthy(gpus=2)
    script = """
    from gpumon.collectors.gpu import GpuCollector
    print(sum(reading.metric.name == "hw.power" for reading in GpuCollector().collect()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment(nvml.file), capture_output=True, text=True)

    assert done.stdout == "2\n", done.stderr


def test_a_fork_asks_nothing(nvml):
    """A child neither uses its parent's handles nor starts the library again."""
    gpus = collector()
    list(gpus.collect())
    nvml.reset()
    pid = os.fork()
    if pid == 0:
        reasons = {reason_of(gpus)[0], reason_of(collector())[0]}
        asked = any(nvml.calls(name, gpu) for name in nvml.functions() for gpu in (-1, 0) if "EventSet" not in name)
        os._exit(int(asked) * 2 + int(reasons != {"NVML: in use by the parent of this process"}))

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- XIDs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("xid", "state"), [(79, "failed"), (48, "failed"), (13, "degraded"), (31, "degraded")])
def test_an_xid_is_an_event_and_a_state(nvml, xid, state):
    """With its time, GPU and number; taken once."""
    nvml.healthy(gpus=2)
    gpus = collector()
    list(gpus.collect())
    before = time.time_ns()
    nvml.set({"xid.1": f"1:{xid}"})
    eventually(lambda: gpus.events)

    [(at, name, body, attributes)] = gpus.take_events()
    assert before - 50_000_000 <= at <= time.time_ns()
    assert name == "gpumon.gpu.xid"
    assert body.startswith(f"XID {xid}: ")
    assert attributes == {m.HW_ID: uuid(1), m.GPU_INDEX: 1, m.GPU_XID: xid}
    assert gpus.take_events() == []
    found = Readings(gpus.collect())
    assert found.value(m.STATUS, uuid(1), state) == 1
    assert found.value(m.STATUS, uuid(0), "ok") == 1


def test_an_xid_of_a_program_is_forgotten(nvml):
    """After five minutes the GPU is well again; a fatal one stays."""
    gpus = collector()
    list(gpus.collect())
    nvml.set({"xid.1": "0:13"})
    eventually(lambda: gpus.events)

    assert gpus._xids.state(uuid(0), time.monotonic()) == "degraded"
    assert gpus._xids.state(uuid(0), time.monotonic() + 301) == "ok"


def test_without_events_there_is_no_thread(nvml):
    """A GPU that reports none."""
    nvml.healthy(has_events=0)
    before = set(threading.enumerate())
    gpus = collector()
    list(gpus.collect())

    assert {thread.name for thread in set(threading.enumerate()) - before} == {"gpumon-gpu-nvml"}


# -- CUDA_VISIBLE_DEVICES ---------------------------------------------------------------------------

GPUS = [
    Listed(0, "GPU-aaaa0000-1"),
    Listed(1, "GPU-aaaa1111-2", ("MIG-11", "MIG-12", "MIG-GPU-aaaa1111-2/1/1", "MIG-GPU-aaaa1111-2/1/10")),
    Listed(2, "GPU-bbbb2222-3"),
    Listed(10, "GPU-cccc3333-4"),
]


@pytest.mark.parametrize(
    ("value", "indexes"),
    [
        (None, [0, 1, 2, 10]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [0, 2]),
        ("10", [10]),
        ("0,-1,2", [0]),
        ("0,7,2", [0]),
        ("0, 2", [0, 2]),
        ("0,0", []),
        ("GPU-bbbb2222-3", [2]),
        ("GPU-b,GPU-aaaa0", [0, 2]),
        ("GPU-a", []),
        ("GPU-b,GPU-a,0", [2]),
        ("none", []),
        ("0,none,2", [0]),
        ("MIG-11", [1]),
        ("MIG-9", []),
    ],
)
def test_cuda_visible_devices(value, indexes):
    """As CUDA reads it: the first entry that fits no GPU, or more than one, ends the list."""
    found = visible(GPUS, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})

    assert [item.gpu.index for item in found] == indexes


def test_instances_that_are_visible():
    """Those that are listed; all of a GPU that is listed itself."""
    assert visible(GPUS, {"CUDA_VISIBLE_DEVICES": "MIG-12"})[0].instances == ["MIG-12"]
    assert visible(GPUS, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-aaaa1111-2/1/1"})[0].instances == ["MIG-GPU-aaaa1111-2/1/1"]
    assert visible(GPUS, {"CUDA_VISIBLE_DEVICES": "1"})[0].instances is None
