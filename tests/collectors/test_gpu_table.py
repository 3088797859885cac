"""What the GPU collector reads, by the real nvidia-ml-py, from a stand-in for the driver's library."""

import ctypes
import gc
import os
import time

import pytest
from benchmarks.cpu_speed import slowness

from gpumon import metrics as m
from gpumon.collectors.gpu import GpuCollector
from gpumon.sampler import Sampler
from gpumon.system.processes import OurProcesses
from nvml.standin import GIB, standing_in
from readings import Readings

pytestmark = pytest.mark.alone

UUID = "GPU-00000000-1111-2222-3333-444444444444"
STARTED_US = 1_700_000_000_000_000


@pytest.fixture
def nvml(tmp_path):
    with standing_in(tmp_path) as standin:
        yield standin


def collector(**environment):
    return GpuCollector(environment=environment)


def look(gpus):
    return Readings(gpus.collect())


def second_look(nvml, gpus=None):
    """The second of two looks, one second apart in the driver's time."""
    gpus = gpus or collector()
    nvml.set(now_us=STARTED_US)
    look(gpus)
    nvml.set(now_us=STARTED_US + 1_000_000)
    return look(gpus)


TABLE = [
    # metric, value, unit, attribute values; what nvidia-smi calls it
    (m.GPU_UTILIZATION, 0.5, "1", {"general"}),  # utilization.gpu [%]
    (m.GPU_UTILIZATION, 0.25, "1", {"encoder"}),
    (m.GPU_UTILIZATION, 0.12, "1", {"decoder"}),
    (m.GPU_MEMORY_ACTIVITY, 0.2, "1", set()),  # utilization.memory [%]
    (m.GPU_MEMORY_USAGE, 20 * GIB, "By", set()),  # memory.used [MiB]
    (m.GPU_MEMORY_LIMIT, 80 * GIB, "By", set()),  # memory.total [MiB]
    (m.GPU_MEMORY_UTILIZATION, 0.25, "1", set()),
    (m.TEMPERATURE, 55, "Cel", {f"{UUID}/core", UUID}),  # temperature.gpu
    (m.TEMPERATURE, 70, "Cel", {f"{UUID}/memory", UUID}),  # temperature.memory
    (m.TEMPERATURE_LIMIT, 90, "Cel", {f"{UUID}/core", "high.degraded"}),
    (m.TEMPERATURE_LIMIT, 95, "Cel", {f"{UUID}/core", "high.critical"}),
    (m.TEMPERATURE_LIMIT, 100, "Cel", {f"{UUID}/memory", "high.degraded"}),
    (m.POWER, 250, "W", {"gpu"}),  # power.draw [W]
    (m.ENERGY, 5000, "J", {"gpu"}),
    (m.GPU_POWER_LIMIT, 700, "W", {"gpu"}),  # enforced.power.limit [W]
    (m.GPU_CLOCK_FREQUENCY, 1.98e9, "Hz", {"sm"}),  # clocks.sm [MHz]
    (m.GPU_CLOCK_FREQUENCY, 2.619e9, "Hz", {"memory"}),  # clocks.mem [MHz]
    (m.GPU_THROTTLE_ACTIVE, 1, "1", {"sw_power_cap"}),
    (m.GPU_THROTTLE_ACTIVE, 0, "1", {"hw_thermal_slowdown"}),
    (m.GPU_THROTTLE_TIME, 3.5, "s", {"sw_power_cap"}),
    (m.GPU_THROTTLE_TIME, 1, "s", {"sw_thermal_slowdown"}),
    (m.GPU_PCIE_WIDTH, 8, "{lane}", set()),  # pcie.link.width.current
    (m.GPU_PCIE_WIDTH_LIMIT, 16, "{lane}", set()),  # pcie.link.width.max
    (m.GPU_PCIE_GENERATION, 5, "1", set()),  # pcie.link.gen.current
    (m.GPU_PCIE_GENERATION_LIMIT, 4, "1", set()),  # pcie.link.gen.max: a slot of generation 4
    (m.GPU_PCIE_REPLAYS, 2, "{replay}", set()),
    (m.GPU_IO, 3e12, "By", {"transmit"}),
    (m.GPU_IO, 4e12, "By", {"receive"}),
    (m.GPU_NVLINK_IO, 1000 * 1024, "By", {"transmit"}),
    (m.GPU_NVLINK_IO, 2000 * 1024, "By", {"receive"}),
    (m.ERRORS, 0, "{error}", {"gpu", "corrected"}),  # ecc.errors.corrected.volatile.total
    (m.ERRORS, 0, "{error}", {"gpu", "uncorrected"}),
    (m.STATUS, 1, "1", {"gpu", "ok"}),
    (m.STATUS, 0, "1", {"gpu", "degraded"}),
    (m.STATUS, 0, "1", {"gpu", "failed"}),
    (m.GPU_REMAPPED_ROWS, 1, "{row}", {"correctable"}),
    (m.GPU_REMAPPED_ROWS, 0, "{row}", {"uncorrectable"}),
    (m.GPU_REMAPPED_ROWS, 0, "{row}", {"pending"}),
    (m.GPU_REMAPPED_ROWS, 0, "{row}", {"failed"}),
    (m.FAN_SPEED_RATIO, 0.35, "1", set()),  # fan.speed [%]
    (m.GPU_SM_ACTIVITY, 0.8, "1", set()),
    (m.GPU_SM_OCCUPANCY, 0.4, "1", set()),
    (m.GPU_TENSOR_ACTIVITY, 0.3, "1", set()),
    (m.GPU_DRAM_ACTIVITY, 0.6, "1", set()),
    (m.GPU_PROCESS_MEMORY_USAGE, 3 * GIB, "By", {os.getpid()}),
    (m.GPU_INFO, 1, "1", {"NVIDIA H100 80GB HBM3", "1654321000000", "580.65.06", "NVIDIA", "00000000:10:00.0", "off"}),
]


def test_the_whole_table(nvml):
    """Every metric with its value and unit, of the GPU's UUID and index; nothing is told that is not expected."""
    ours = {f"process.{os.getpid()}": 3 * GIB, "process.1": GIB}
    nvml.healthy(ours, width=8, max_generation=4, reasons=4 | 1, enc=25, dec=12)
    found = second_look(nvml)

    for metric, value, unit, attributes in TABLE:
        reading = found.one(metric, *attributes)
        assert reading is not None, (metric.name, attributes)
        assert reading.value == pytest.approx(value), (metric.name, attributes)
        assert metric.unit == unit
        assert reading.attributes[m.GPU_INDEX] == 0
        assert UUID in (reading.attributes[m.HW_ID], reading.attributes.get(m.HW_PARENT))
        assert set(reading.attributes) <= set(metric.attributes)
    expected = {metric.name for metric, *_ in TABLE}
    assert {reading.metric.name for reading in found.all} == expected


def test_the_table_is_the_catalogue():
    """Every GPU metric of the catalogue is in this test's table."""
    tested = {metric for metric, *_ in TABLE}

    assert {metric for metric in m.CATALOGUE if m.GPU_INDEX in metric.attributes} == tested


@pytest.mark.parametrize("window_s", [1, 3, 7])
@pytest.mark.parametrize("tick_s", [0.7, 1.0, 1.3])
def test_a_load_that_comes_and_goes_is_its_mean(nvml, monkeypatch, window_s, tick_s):
    """0 and 100 % at 1 Hz are 50 % over every export window: the driver's samples are all used."""
    nvml.healthy(wave_hz=1)
    gpus, clock = collector(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    sampler = Sampler({"gpu": gpus}, {"gpu": tick_s})
    entry = sampler._entries[0]

    means, exported_at = [], 0.0
    for tick in range(60):
        passed_s = tick * tick_s
        clock[0] = 1000.0 + passed_s
        nvml.set(now_us=int(STARTED_US + 333_000 + passed_s * 1e6))
        sampler._collect(entry)
        if passed_s - exported_at >= window_s:
            exported_at = passed_s
            means += [value for value, at in sampler.observe(m.GPU_UTILIZATION, 1) if at["hw.gpu.task"] == "general"]

    assert len(means) >= 5
    if tick_s == 1.0 or window_s == 7:  # the window holds whole waves, or many
        assert all(abs(mean - 0.5) <= 0.05 for mean in means[1:]), means
    assert sum(means) / len(means) == pytest.approx(0.5, abs=0.05)


def test_structures_are_nvmls():
    """What is read from memory directly is laid out as nvidia-ml-py has it."""
    import pynvml

    from gpumon.system import gpu_events
    from gpumon.system import nvml as door

    sizes = [
        (door.Fields._MANY.size, pynvml.c_nvmlFieldValue_t),
        (door.Gpm._ONE.size, pynvml.c_nvmlGpmMetric_t),
        (door.ProcessMemory._ONE.size, pynvml.c_nvmlProcessInfo_v2_t),
        (ctypes.sizeof(door._MemoryV2), pynvml.c_nvmlMemory_v2_t),
        (ctypes.sizeof(gpu_events._Data), pynvml.c_nvmlEventData_t),
        (16, pynvml.c_nvmlSample_t),
    ]
    for size, structure in sizes:
        assert ctypes.sizeof(structure) == size, structure
    assert pynvml.c_nvmlGpmMetricsGet_t.metrics.offset == door.Gpm._METRICS_AT
    assert pynvml.c_nvmlFieldValue_t.nvmlReturn.offset == 28
    assert pynvml.c_nvmlFieldValue_t.value.offset == 32


def test_samples_are_used_once(nvml):
    """A look has only what was sampled since the last one."""
    nvml.healthy(gpu=90)
    gpus = collector()
    nvml.set(now_us=STARTED_US)
    look(gpus)
    nvml.set(gpu=10, now_us=STARTED_US + 1_000_000)

    assert look(gpus).value(m.GPU_UTILIZATION, "general") == pytest.approx(0.1)


def test_an_idle_gpu_reads_zero(nvml):
    """The driver samples an idle GPU no more: an empty buffer is 0 %, for every engine."""
    nvml.healthy(idle=1)
    found = second_look(nvml)

    for task in ("general", "encoder", "decoder"):
        assert found.value(m.GPU_UTILIZATION, task) == 0
    assert found.value(m.GPU_MEMORY_ACTIVITY) == 0


def test_a_busy_gpu_whose_samples_are_lost_is_not_idle(nvml):
    """An empty buffer means idle only where the driver's own mean says so too."""
    nvml.healthy({"error.nvmlDeviceGetSamples": 6}, gpu=77)

    assert second_look(nvml).value(m.GPU_UTILIZATION, "general") == pytest.approx(0.77)


def test_without_samples_the_drivers_mean_is_used(nvml):
    """Where this GPU keeps no buffer: nvmlDeviceGetUtilizationRates and power usage."""
    nvml.healthy(has_samples=0, gpu=60, mem=30, enc=5)
    found = second_look(nvml)

    assert found.value(m.GPU_UTILIZATION, "general") == pytest.approx(0.6)
    assert found.value(m.GPU_UTILIZATION, "encoder") == pytest.approx(0.05)
    assert found.value(m.GPU_MEMORY_ACTIVITY) == pytest.approx(0.3)
    assert found.value(m.POWER) == 250


def test_older_drivers(nvml):
    """Memory by version 1, whose `used` has the driver's reserve in it; temperature and reasons by older names."""
    older = {"error.nvmlDeviceGetCurrentClocksEventReasons": 13}
    nvml.healthy(older, has_memory_v2=0, has_temperature_v=0, reasons=0x40)
    found = second_look(nvml)

    assert found.value(m.GPU_MEMORY_USAGE) == 21 * GIB
    assert found.value(m.TEMPERATURE, f"{UUID}/core") == 55
    assert found.value(m.GPU_THROTTLE_ACTIVE, "hw_thermal_slowdown") == 1


def test_idle_and_chosen_clocks_are_no_throttling(nvml):
    """Idle, application clocks and display clocks hold clocks down, as somebody wanted."""
    nvml.healthy(reasons=0x1 | 0x2 | 0x100)

    assert {reading.value for reading in second_look(nvml).of(m.GPU_THROTTLE_ACTIVE)} == {0}


def test_throttle_time_without_counters_is_added_up(nvml):
    """Of reasons that the driver does not count: the time between two looks at which they were active."""
    nvml.healthy({"field.74": None, "gpus": 1}, reasons=4)
    gpus = collector()
    look(gpus)
    time.sleep(0.2)

    assert look(gpus).value(m.GPU_THROTTLE_TIME, "sw_power_cap") == pytest.approx(0.2, abs=0.1)


def test_what_is_not_supported_is_absent(nvml):
    """No ECC, no fan, no GPM, no memory sensor: no reading, and the GPU is well."""
    nvml.healthy(dict.fromkeys(("field.3", "field.4", "field.82", "field.83", "fan")), gpm=0)
    gpus = collector()
    found = second_look(nvml, gpus)

    for metric in (m.ERRORS, m.ENERGY, m.FAN_SPEED_RATIO, m.GPU_SM_ACTIVITY, m.COLLECTOR_UP):
        assert found.of(metric) == [], metric.name
    assert [reading.attributes[m.HW_ID] for reading in found.of(m.TEMPERATURE)] == [f"{UUID}/core"]
    assert found.value(m.STATUS, "ok") == 1
    assert gpus.missing()[UUID]["fan"] == "not supported"


def test_pcie_and_nvlink_by_rate_where_they_are_not_counted(nvml):
    """GPM tells MiB per second; these add up to bytes."""
    fields = {f"field.{field}": None for field in (138, 139, 197, 198)}
    nvml.healthy(fields, **{"gpm.20": 100, "gpm.61": 10})
    gpus = collector()
    look(gpus)
    time.sleep(0.2)
    look(gpus)
    time.sleep(0.2)
    found = look(gpus)

    assert found.value(m.GPU_IO, "transmit") == pytest.approx(40 * (1 << 20), rel=0.3)
    assert found.value(m.GPU_NVLINK_IO, "transmit") == pytest.approx(4 * (1 << 20), rel=0.3)


def test_a_counter_of_32_bit_may_run_over(nvml):
    """PCIe bytes go on from where they were."""
    nvml.healthy({"field.197": 0xFFFF_FFF0, "field.197.type": 1})
    gpus = collector()
    look(gpus)
    nvml.set({"field.197": 16})

    assert look(gpus).value(m.GPU_IO, "transmit") == 0xFFFF_FFF0 + 32


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"field.4": 1}, "degraded"),
        ({"field.144": 1}, "degraded"),
        ({"field.145": 1}, "failed"),
        ({"field.3": 9}, "ok"),
    ],
)
def test_the_state_of_the_memory_is_the_gpus(nvml, fields, state):
    """Uncorrected errors and a row that waits for a reset degrade it, one that found no spare row is a failure."""
    nvml.healthy(fields)
    found = second_look(nvml)

    assert {name: found.value(m.STATUS, name) for name in ("ok", "degraded", "failed")} == {
        name: float(name == state) for name in ("ok", "degraded", "failed")
    }


def test_memory_of_other_processes_is_not_told(nvml):
    """Only this process tree; a new process leads to one look at the tree, a known one to none."""
    looks = []
    ours = OurProcesses(lambda root: looks.append(root) or [root, 7])

    assert ours.of([7, 8], 0.0) == [7]
    assert ours.of([7, 8], 1.0) == [7]
    assert looks == [os.getpid()]
    assert ours.of([7, 8, 9], 2.0) == [7]
    assert len(looks) == 2


def test_many_processes_fit(nvml):
    """More than the buffer first holds."""
    nvml.healthy({f"process.{pid}": GIB for pid in range(100_000, 100_050)} | {f"process.{os.getpid()}": GIB})

    assert second_look(nvml).value(m.GPU_PROCESS_MEMORY_USAGE, os.getpid()) == GIB


def test_few_questions_per_look(nvml):
    """At most 15 calls per GPU and look, busy or idle."""
    for state in ({}, {"idle": 1}, {"has_samples": 0}, {"mig": 0, f"process.{os.getpid()}": GIB}):
        nvml.healthy(state, gpus=2)
        gpus = collector()
        look(gpus)
        time.sleep(0.6)
        look(gpus)
        for _ in range(15):
            time.sleep(0.05)
            nvml.reset()
            look(gpus)
            calls = nvml.all_calls(1)
            assert sum(calls.values()) <= 15, (state, calls)
            assert "nvmlDeviceGetPcieThroughput" not in calls


def test_eight_gpus_cost_less_than_a_millisecond(nvml):
    """CPU time of a look at the whole table of 8 GPUs, with 50 samples each: the best of many."""
    nvml.healthy(gpus=8, sample_us=2000)
    gc.collect()  # event threads of other tests' collectors
    gpus = collector()
    look(gpus)
    best = slow = float("inf")
    for _ in range(100):
        time.sleep(0.1)
        slow = min(slow, slowness())
        began = time.process_time()
        readings = list(gpus.collect())
        best = min(best, time.process_time() - began)
        if best < 0.0009:
            break

    assert len(readings) > 8 * 50
    assert best < 0.001 * slow


def test_only_the_gpus_of_this_process(nvml):
    """CUDA_VISIBLE_DEVICES chooses, also when the program sets it late."""
    nvml.healthy(gpus=4)
    environment = {"CUDA_VISIBLE_DEVICES": "2,1"}
    gpus = GpuCollector(environment=environment)

    assert {reading.attributes[m.GPU_INDEX] for reading in look(gpus).of(m.GPU_MEMORY_USAGE)} == {1, 2}
    environment["CUDA_VISIBLE_DEVICES"] = "3"
    assert {reading.attributes[m.GPU_INDEX] for reading in look(gpus).of(m.GPU_MEMORY_USAGE)} == {3}


def test_mig_instances(nvml):
    """Memory per instance, by the instance's UUID; temperature and power are the GPU's."""
    nvml.healthy(mig=2)
    found = look(collector())

    parts = [reading for reading in found.of(m.GPU_MEMORY_USAGE) if m.HW_PARENT in reading.attributes]
    assert [reading.attributes[m.HW_ID][:13] for reading in parts] == ["MIG-00000000-"] * 2
    assert {reading.attributes[m.HW_PARENT] for reading in parts} == {UUID}
    assert {reading.value for reading in parts} == {5 * GIB}
    assert len(found.of(m.GPU_INFO)) == 3
    one = look(collector(CUDA_VISIBLE_DEVICES="MIG-00000000-0001"))
    assert [
        reading.attributes[m.HW_ID][:17] for reading in one.of(m.GPU_MEMORY_USAGE) if m.HW_PARENT in reading.attributes
    ] == ["MIG-00000000-0001"]


def test_a_gpu_is_divided_anew(nvml):
    """While it is watched: within a minute its new instances are there, and the old ones are gone."""
    nvml.healthy()
    gpus = collector()

    def instances(*, a_minute_later=True):
        if a_minute_later:
            gpus._places[0].gpu._asked_first.due = 0.0
        found = look(gpus)
        return [
            [reading.attributes[m.HW_ID][13:17] for reading in found.of(metric) if m.HW_PARENT in reading.attributes]
            for metric in (m.GPU_MEMORY_USAGE, m.GPU_INFO)
        ]

    assert instances(a_minute_later=False) == [[], []]
    nvml.set(mig=2)
    assert instances(a_minute_later=False) == [[], []]
    assert instances() == [["0000", "0001"]] * 2
    nvml.set({"error.nvmlDeviceGetMemoryInfo_v2": 999})
    assert instances(a_minute_later=False)[0] == []
    nvml.set({"mig": 1, "error.nvmlDeviceGetMemoryInfo_v2": None})
    assert instances() == [["0000"]] * 2
    nvml.set(mig=0)
    assert instances() == [[], []]
    assert not any("memory of" in question for question in gpus.missing()[UUID])


def test_the_slot_limits_the_link(nvml, tmp_path, monkeypatch):
    """A GPU of 16 lanes in a slot of 8: 8 is what it can have."""
    slot = tmp_path / "devices/pci0000:00/0000:00:01.0"
    (slot / "0000:10:00.0").mkdir(parents=True)
    (slot / "max_link_width").write_text("8\n")
    (slot / "max_link_speed").write_text("8.0 GT/s PCIe\n")
    devices = tmp_path / "bus/pci/devices"
    devices.mkdir(parents=True)
    (devices / "0000:10:00.0").symlink_to(slot / "0000:10:00.0")
    gpus = collector()
    look(gpus)
    gpu = gpus._places[0].gpu
    gpu._sysfs = tmp_path

    assert {reading.metric: reading.value for reading in gpu._pcie_limits()} == {
        m.GPU_PCIE_WIDTH_LIMIT: 8,
        m.GPU_PCIE_GENERATION_LIMIT: 3,
    }
