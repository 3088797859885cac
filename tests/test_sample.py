"""`gpumon sample`: rows that agree with iostat and nvidia-smi, on one steady grid, and an end without noise."""

import contextlib
import csv
import io
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

import pytest

from faketree import Machine
from gpumon import metrics as m
from gpumon.collectors.disk import DiskCollector
from gpumon.errors import CollectorError, GpumonError, NoDataError
from gpumon.metrics import Reading
from gpumon.sample import sample
from gpumon.sample.fields import TOOLS, known, parse
from gpumon.sample.output import RotatedFile
from gpumon.sample.waiting import grid
from gpumon.sample.window import Source
from gpumon.system.datasets import Datasets
from gpumon.system.storage import StorageMap
from nvml import standin

UUID = "GPU-11111111-2222-3333-4444-555555555555"
IOSTAT = [
    *("r/s", "rkB/s", "rrqm/s", "%rrqm", "r_await", "rareq-sz"),
    *("w/s", "wkB/s", "wrqm/s", "%wrqm", "w_await", "wareq-sz"),
    *("d/s", "dkB/s", "drqm/s", "%drqm", "d_await", "dareq-sz"),
    *("f/s", "f_await", "aqu-sz", "%util"),
]


class Said:
    """A collector that yields what it was told to, one list per look, the last one for ever."""

    interval_s = 1.0

    def __init__(self, *looks, may_block=True):
        self._looks = list(looks)
        self.may_block = may_block

    def collect(self):
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(look, Exception):
            raise look
        yield from look


def gpu(index=0, uuid=UUID, **changed):
    """One look at a GPU, in the units that collectors yield."""
    at = {m.HW_ID: uuid, m.GPU_INDEX: index}
    told = {
        m.HW_MODEL: "NVIDIA H100 80GB HBM3", m.HW_SERIAL_NUMBER: "165", m.HW_DRIVER_VERSION: "580.159.03",
        m.GPU_PCI_BUS_ID: "00000000:0F:00.0",
    }  # fmt: skip
    busy = changed.get("busy", 0.42)
    return [
        Reading(m.GPU_INFO, 1.0, {**at, **told}),
        Reading(m.GPU_UTILIZATION, busy, {**at, m.HW_GPU_TASK: "general"}),
        Reading(m.GPU_UTILIZATION, 0.0, {**at, m.HW_GPU_TASK: "encoder"}),
        Reading(m.GPU_MEMORY_ACTIVITY, 0.17, at),
        Reading(m.GPU_MEMORY_USAGE, 1234 << 20, at),
        Reading(m.GPU_MEMORY_LIMIT, 81559 << 20, at),
        Reading(m.TEMPERATURE, 61.0, {m.HW_ID: f"{uuid}/core", m.HW_PARENT: uuid, m.GPU_INDEX: index}),
        Reading(m.TEMPERATURE, 70.0, {m.HW_ID: f"{uuid}/memory", m.HW_PARENT: uuid, m.GPU_INDEX: index}),
        Reading(m.POWER, changed.get("power", 312.456), {**at, m.HW_TYPE: "gpu"}),
        Reading(m.GPU_POWER_LIMIT, 700.0, {**at, m.HW_TYPE: "gpu"}),
        Reading(m.ENERGY, changed.get("energy", 1000.0), {**at, m.HW_TYPE: "gpu"}),
        Reading(m.GPU_CLOCK_FREQUENCY, 1980e6, {**at, m.GPU_CLOCK: "sm"}),
        Reading(m.GPU_CLOCK_FREQUENCY, 2619e6, {**at, m.GPU_CLOCK: "memory"}),
        Reading(m.GPU_PCIE_WIDTH, 16, at),
        Reading(m.GPU_PCIE_GENERATION, 5, at),
        Reading(m.GPU_PCIE_WIDTH_LIMIT, 16, at),
        Reading(m.ERRORS, 0, {**at, m.HW_TYPE: "gpu", m.ERROR_TYPE: "uncorrected"}),
        Reading(m.GPU_THROTTLE_ACTIVE, 1.0, {**at, m.GPU_THROTTLE_REASON: "sw_power_cap"}),
        Reading(m.GPU_THROTTLE_ACTIVE, 0.0, {**at, m.GPU_THROTTLE_REASON: "hw_power_brake"}),
    ]


def disk(name="sda", reads=0, busy_s=0.0):
    """One look at a disk: each read takes 10 ms and has 64 KiB."""
    at = {m.SYSTEM_DEVICE: name, m.DISK_IO_DIRECTION: "read"}
    return [
        Reading(m.DISK_OPERATIONS, reads, at),
        Reading(m.DISK_OPERATION_TIME, reads * 0.010, at),
        Reading(m.DISK_IO, reads * 65536, at),
        Reading(m.DISK_AWAIT, reads * 0.010, at, per=reads),
        Reading(m.DISK_AWAIT, 0.0, {**at, m.DISK_IO_DIRECTION: "write"}, per=0),
        Reading(m.DISK_IO_TIME, busy_s, {m.SYSTEM_DEVICE: name}),
    ]


def rows(capsys, *names, collectors, **options):
    """The rows of a table, as dictionaries of texts."""
    sample(names, collectors=collectors, **{"every_s": 0.05, "count": 1, **options})
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


# -- fields -------------------------------------------------------------------------------------------


def test_nvidia_smi_names_have_its_units_and_formats(capsys):
    """What `nvidia-smi --query-gpu=… --format=csv,nounits` prints: MiB, W with two digits, whole %, MHz, C."""
    expected = {
        "index": "0", "uuid": UUID, "name": "NVIDIA H100 80GB HBM3", "driver_version": "580.159.03",
        "serial": "165", "pci.bus_id": "00000000:0F:00.0", "utilization.gpu": "42", "utilization.memory": "17",
        "utilization.encoder": "0", "memory.used": "1234", "memory.total": "81559", "temperature.gpu": "61",
        "temperature.memory": "70", "power.draw": "312.46", "power.limit": "700.00", "clocks.sm": "1980",
        "clocks.current.memory": "2619", "pcie.link.width.current": "16", "pcie.link.gen.current": "5",
        "pcie.link.width.max": "16", "ecc.errors.uncorrected.volatile.total": "0",
        "clocks_event_reasons.sw_power_cap": "Active",
        "clocks_throttle_reasons.hw_power_brake_slowdown": "Not Active",
        "fan.speed": "", "pcie.link.gen.max": "", "utilization.decoder": "", "clocks_event_reasons.sync_boost": "",
    }  # fmt: skip

    (row,) = rows(capsys, *expected, collectors={"gpu": Said(gpu())})

    assert (row["device"], row["type"]) == ("gpu0", "gpu")
    assert {name: row[name] for name in expected} == expected


def test_a_gauge_is_its_mean_over_the_interval(capsys):
    """Looks between two ticks count too; the look that ended the interval before does not."""
    looks = [gpu(busy=1.0), gpu(busy=0.2), gpu(busy=0.6), gpu(busy=0.7)]

    (row,) = rows(capsys, "utilization.gpu", collectors={"gpu": Said(*looks)}, every_s=2.05)

    assert row["utilization.gpu"] == "50"


def test_a_rate_is_per_second_of_the_clock_and_a_mean_is_per_request(capsys):
    """iostat's formulas on Δ of two looks; where nothing was read or written there is no await."""
    looks = [disk(reads=100, busy_s=1.0), disk(reads=110, busy_s=1.02), disk(reads=110, busy_s=1.02)]
    names = ("r/s", "rkB/s", "r_await", "rareq-sz", "w_await", "%util", "gpumon.disk.await[read]")

    first, second = rows(capsys, *names, collectors={"disk": Said(*looks, may_block=False)}, every_s=0.2, count=2)

    assert float(first["r/s"]) == pytest.approx(50, rel=0.1)
    assert float(first["rkB/s"]) == pytest.approx(3200, rel=0.1)
    assert float(first["%util"]) == pytest.approx(10, rel=0.1)
    assert (first["r_await"], first["rareq-sz"], first["gpumon.disk.await[read]"]) == ("10.00", "64.00", "0.01")
    assert (second["r/s"], second["r_await"], second["rareq-sz"]) == ("0.00", "", "")
    assert (first["w_await"], second["gpumon.disk.await[read]"]) == ("", "")


def test_a_metric_without_a_choice_is_one_column_per_series(capsys):
    """`gpumon.disk.await` is both directions; a counter is what was counted, with /s its rate."""
    looks = [disk(reads=100), disk(reads=110)]
    names = ("gpumon.disk.await", "system.disk.operations[read]", "system.disk.operations[read]/s")

    (row,) = rows(capsys, *names, collectors={"disk": Said(*looks, may_block=False)}, every_s=0.1)

    assert list(row)[3:] == [
        "gpumon.disk.await[read]",
        "gpumon.disk.await[write]",
        "system.disk.operations[read]",
        "system.disk.operations[read]/s",
    ]
    assert row["system.disk.operations[read]"] == "110"
    assert 10 < float(row["system.disk.operations[read]/s"]) < 110  # of 10 reads in 0.1 s, or more where this is late


def test_gpu_metrics_by_our_names(capsys):
    """Base units of the catalogue; the part of a GPU (`/core`) is chosen like an attribute."""
    looks = [gpu(energy=1000.0), gpu(energy=1031.0)]
    names = ("hw.temperature[core]", "hw.power", "hw.energy/s", "gpumon.gpu.clock.frequency[sm]", "hw.gpu.memory.usage")

    (row,) = rows(capsys, *names, collectors={"gpu": Said(*looks)}, every_s=0.1)

    assert row["hw.temperature[core]"] == "61"
    assert row["hw.power"] == "312.456"
    assert float(row["hw.energy/s"]) == pytest.approx(310, rel=0.1)
    assert row["gpumon.gpu.clock.frequency[sm]"] == "1980000000"
    assert row["hw.gpu.memory.usage"] == str(1234 << 20)


def test_disks_discards_and_flushes_are_those_of_the_kernel(tmp_path, capsys):
    """Fields 15 to 20 of /proc/diskstats; an older kernel without them has empty cells."""
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0")
    machine.disk("sdb", "8:16")
    datasets = Datasets(StorageMap(machine.root), exists=lambda _: True)
    source = DiskCollector(root=machine.root, datasets=datasets, discards_and_flushes=True)
    machine.diskstats(sda=(0,) * 17, sdb=(0,) * 11)
    seen = list(source.collect())
    machine.diskstats(sda=(*(0,) * 11, 4, 1, 2048, 8, 3, 30), sdb=(0,) * 11)
    looks = [seen, list(source.collect())]

    sda, sdb = rows(
        capsys, "d_await", "dareq-sz", "%drqm", "f_await", "r/s", collectors={"disk": Said(*looks, may_block=False)}
    )

    assert (sda["d_await"], sda["dareq-sz"], sda["%drqm"], sda["f_await"]) == ("2.00", "256.00", "20.00", "10.00")
    assert (sdb["d_await"], sdb["f_await"], sdb["r/s"]) == ("", "", "0.00")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("utilisation.gpu", "unknown field 'utilisation.gpu': did you mean utilization.gpu, "),
        ("r_wait", "unknown field 'r_wait': did you mean r_await, "),
        ("gpumon.disk.awaits", "unknown field 'gpumon.disk.awaits': did you mean gpumon.disk.await"),
        ("xyzzy", "unknown field 'xyzzy' (`gpumon sample --list` has all)"),
        ("gpumon.disk.await[reed]", "'gpumon.disk.await[reed]': expected [read] or [write]"),
        ("gpumon.disk.await[read]/s", "'gpumon.disk.await[read]/s': gpumon.disk.await is a gauge"),
        ("hw.power[core]", "'hw.power[core]': hw.power has one value per device"),
        ("gpumon.step.time", "unknown field 'gpumon.step.time'"),
    ],
)
def test_an_unknown_field_is_one_line_with_the_nearest_names(name, line):
    """Before anything is read."""
    with pytest.raises(ValueError) as raised:
        parse([f"r/s,{name}"])

    assert str(raised.value).startswith(line)


def test_fields_are_separated_by_spaces_or_commas_and_count_once():
    """As nvidia-smi's own option has them; time, device and type are there anyway."""
    found = parse(["r/s,w/s", "time", "gpumon.disk.limit.io[read,/sys/fs/io.max], r/s"])

    assert [field.name for field in found] == ["r/s", "w/s", "gpumon.disk.limit.io[read,/sys/fs/io.max]"]


def test_every_listed_field_has_a_meaning_and_can_be_asked_for():
    """`--list` names only what there is."""
    names = [field.name.partition("[")[0] for field in known()]

    assert all(field.meaning for field in known())
    assert set(IOSTAT) <= set(names)
    assert len(parse([*names, *TOOLS])) == len({*names, *TOOLS})


# -- rows ---------------------------------------------------------------------------------------------


def test_gpus_and_disks_of_a_tick_share_its_time(capsys):
    """One header, one row per device and tick, in order; a cell that a device cannot have is empty."""
    collectors = {"gpu": Said(gpu() + gpu(10, "GPU-b") + gpu(2, "GPU-c")), "disk": Said(disk(), may_block=False)}

    found = rows(capsys, "utilization.gpu", "r/s", collectors=collectors, count=2)

    assert [row["device"] for row in found] == ["gpu0", "gpu2", "gpu10", "sda"] * 2
    assert len({row["time"] for row in found[:4]}) == 1 and len({row["time"] for row in found}) == 2
    assert found[0]["r/s"] == "" and found[3]["utilization.gpu"] == ""
    assert datetime.fromisoformat(found[0]["time"]).utcoffset() == timedelta(0)
    assert len(found[0]["time"]) == len("2026-11-24T14:02:11.000+00:00")


def test_json_is_an_object_per_line_with_null(capsys):
    """Numbers are numbers; what is absent is null."""
    collectors = {"gpu": Said(gpu()), "disk": Said(disk(reads=3), disk(reads=3), may_block=False)}
    sample(("power.draw", "memory.used", "r_await"), every_s=0.05, count=1, form="json", collectors=collectors)

    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [list(item) for item in found] == [["time", "device", "type", "power.draw", "memory.used", "r_await"]] * 2
    assert [list(item.values())[1:] for item in found] == [
        ["gpu0", "gpu", 312.46, 1234, None],
        ["sda", "disk", None, None, None],
    ]


def test_a_gpu_that_is_lost_hides_no_other_device(capsys):
    """What a collector said before it failed counts; the GPU that says nothing has no row."""
    both, one = gpu() + gpu(1, "GPU-b"), gpu()

    class Losing(Said):
        def collect(self):
            yield from super().collect()
            raise CollectorError("GPU 1: lost")

    found = rows(
        capsys, "utilization.gpu", "r/s",
        collectors={"gpu": Losing(both, one), "disk": Said(disk(), may_block=False)},
    )  # fmt: skip

    assert [row["device"] for row in found] == ["gpu0", "sda"]


def test_a_driver_that_hangs_holds_up_no_disk(capsys):
    """Rows of disks go on; the GPU has none, rather than its last values for ever."""
    answer = threading.Event()

    class Hanging(Said):
        def collect(self):
            yield from super().collect()
            if len(self._looks) == 1:
                answer.wait(20)

    began = time.monotonic()
    try:
        collectors = {"gpu": Hanging(gpu(), gpu(), gpu(), gpu()), "disk": Said(disk(), may_block=False)}
        found = rows(capsys, "utilization.gpu", "r/s", collectors=collectors, every_s=0.2, count=4)
    finally:
        answer.set()

    assert [row["device"] for row in found] == ["gpu0", "sda", "sda", "sda", "sda"]
    assert time.monotonic() - began < 2


def test_no_gpu_is_said_in_one_line_where_gpu_fields_were_asked_for(capsys):
    """Disks alone then; without a disk either there is nothing to do."""
    missing = NoDataError("NVML: library not found")
    sample(
        ("power.draw", "r/s"), every_s=0.05, count=1,
        collectors={"gpu": Said(missing), "disk": Said(disk(), may_block=False)},
    )  # fmt: skip
    captured = capsys.readouterr()

    assert captured.err == "gpumon: no GPU (NVML: library not found); disks alone\n"
    assert captured.out.splitlines()[1].endswith(",sda,disk,,0.00")
    with pytest.raises(NoDataError, match="no GPU: NVML: library not found"):
        sample(("power.draw",), collectors={"gpu": Said(missing)})


def test_a_slow_driver_is_late_not_absent(capsys):
    """A look that takes longer than a tick waits counts in the next row."""

    class Slow(Said):
        def collect(self):
            time.sleep(0.15)
            yield from super().collect()

    found = rows(capsys, "power.draw", collectors={"gpu": Slow(gpu())}, every_s=0.2, count=4)

    assert [row["power.draw"] for row in found] == ["312.46"] * len(found)
    assert len(found) >= 3


def test_an_instance_on_a_gpu_has_a_row_of_its_own(capsys):
    """By its UUID, for the index is the whole GPU's; its parent's temperature is not its own."""
    at = {m.HW_ID: "MIG-1", m.HW_PARENT: UUID, m.GPU_INDEX: 0}
    look = [*gpu(), Reading(m.GPU_MEMORY_USAGE, 5 << 20, at), Reading(m.GPU_MEMORY_LIMIT, 9 << 20, at)]

    found = rows(capsys, "uuid", "memory.used", "temperature.gpu", collectors={"gpu": Said(look)})

    assert [list(row.values())[1:] for row in found] == [
        ["MIG-1", "gpu", "MIG-1", "5", ""],
        ["gpu0", "gpu", UUID, "1234", "61"],
    ]


def test_only_the_devices_that_were_asked_for(capsys):
    """Patterns of names, of GPUs their UUID too; a device that is not there is an error."""
    collectors = {"gpu": Said(gpu() + gpu(1, "GPU-b")), "disk": Said(disk() + disk("sdb"), may_block=False)}

    found = rows(capsys, collectors=collectors, devices=("GPU-b", "sd[b-z]"))

    assert [row["device"] for row in found] == ["gpu1", "sdb"]
    with pytest.raises(NoDataError, match="no device is called sdz"):
        sample((), collectors={"disk": Said(disk(), may_block=False)}, devices=("sdz",))


def test_a_device_pattern_brings_in_partitions_and_loops(tmp_path):
    """The disk collector leaves them out by itself."""
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0", {"sda1": "8:1"})
    machine.disk("loop0", "7:0", backing="/x")
    machine.diskstats(sda=(1,), sda1=(1,), loop0=(1,))

    def devices(*only):
        source = Source("disk", DiskCollector(root=machine.root, only=only), only)
        source.look()
        return source.devices()

    assert devices() == ["sda"]
    assert devices("sda1", "loop*") == ["loop0", "sda1"]


# -- the grid of ticks --------------------------------------------------------------------------------


class Clock:
    """A clock that moves when somebody waits on it."""

    def __init__(self):
        self.now, self.waits = 100.0, []

    def __call__(self):
        return self.now

    def wait(self, until):
        self.waits.append(round(until, 6))
        self.now = max(self.now, until) + 0.001  # nobody wakes up in time
        return False


def test_ticks_do_not_drift():
    """Work and late wake-ups shift no tick: start + n · every."""
    clock = Clock()
    ticks = grid(5.0, 5, clock.wait, clock)
    found = []
    for _ in range(500):
        is_tick = next(ticks)
        clock.now += 0.3
        if is_tick:
            found.append(clock.waits[-1])

    assert found == [100.0 + 5 * (number + 1) for number in range(100)]


def test_ticks_that_were_slept_through_are_one():
    """A suspended machine: one late tick, then the grid goes on."""
    clock = Clock()
    ticks = grid(1.0, 1, clock.wait, clock)
    assert next(ticks)
    clock.now += 10.5
    assert next(ticks) and next(ticks) and next(ticks)

    assert clock.waits == [101.0, 111.0, 112.0, 113.0]


# -- a file -------------------------------------------------------------------------------------------


def test_a_file_is_appended_to_and_has_one_header(tmp_path, capsys):
    """A second start goes on where the first one ended, also after a line that was cut off."""
    file = tmp_path / "gpu.csv"
    for _ in range(2):
        sample(("r/s",), every_s=0.05, count=2, out=file, collectors={"disk": Said(disk(), may_block=False)})
    with file.open("a") as opened:
        opened.write("2026-11-24T14:0")
    sample(("r/s",), every_s=0.05, count=1, out=file, collectors={"disk": Said(disk(), may_block=False)})
    lines = file.read_text().splitlines()

    assert lines[0] == "time,device,type,r/s"
    assert [line.endswith(",sda,disk,0.00") for line in lines[1:]] == [True] * 4 + [False, True]
    assert capsys.readouterr().out == ""


def test_a_file_of_other_columns_is_left_alone(tmp_path):
    """Rows of two kinds in one table are of no use, and a script named by mistake is not to be damaged."""
    file = tmp_path / "train.py"
    file.write_text("import torch\n")
    for form in ("csv", "json"):
        with pytest.raises(GpumonError, match="holds something else"):
            sample(("r/s",), out=file, form=form, collectors={"disk": Said(disk(), may_block=False)})

    assert file.read_text() == "import torch\n"


def test_a_file_is_rotated_before_it_grows_too_big(tmp_path):
    """Five older ones are kept, each with the header; no row is lost or cut."""
    file = RotatedFile(tmp_path / "gpu.csv", limit_bytes=40)
    file.begin("header\n")
    for number in range(30):
        file.write(f"row {number:06}\n")

    assert sorted(item.name for item in tmp_path.iterdir()) == ["gpu.csv", *(f"gpu.csv.{n}" for n in range(1, 6))]
    texts = [(tmp_path / f"gpu.csv{suffix}").read_text() for suffix in (".2", ".1", "")]
    assert texts == [f"header\nrow {first:06}\nrow {first + 1:06}\nrow {first + 2:06}\n" for first in (21, 24, 27)]


def test_a_file_in_no_folder_is_one_line(tmp_path):
    """Not a traceback."""
    with pytest.raises(GpumonError, match=r"cannot write .*: No such file or directory"):
        sample(("r/s",), out=tmp_path / "none" / "x.csv", collectors={"disk": Said(disk(), may_block=False)})


# -- the command --------------------------------------------------------------------------------------


def started(*arguments, environment=os.environ, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "gpumon", "sample", *arguments],
        env={**environment, "GPUMON_STRICT": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def first_lines(process, count):
    """Lines as they come: each tick is flushed."""
    return [process.stdout.readline() for _ in range(count)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number):
    """Exit code 0 as iostat's, whole lines, nothing on stderr, at once and not at the next tick."""
    process = started("r/s", "--every", "0.2")
    first_lines(process, 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=2)

    assert (process.returncode, err) == (0, "")
    assert out == "" or out.endswith("\n")


def test_a_signal_ends_a_long_wait():
    """Nobody waits an hour for Ctrl-C."""
    process = started("r/s", "--every", "3600")
    first_lines(process, 1)
    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=2) == ("", "")
    assert process.returncode == 0


def test_a_reader_that_leaves_ends_it_silently():
    """`gpumon sample | head -2`: found out at once, not at the next row."""
    process = started("r/s", "--every", "0.1")
    assert first_lines(process, 2)[0] == "time,device,type,r/s\n"
    process.stdout.close()

    assert process.wait(2) == 141
    assert process.stderr.read() == ""
    process = started("r/s", "--every", "3600")
    first_lines(process, 1)
    process.stdout.close()
    assert process.wait(2) == 141


def test_defaults_and_count():
    """Both tools' most asked fields beside each other; `--count` ends it; each row comes when its tick does."""
    process = started("--every", "0.5", "--count", "2")
    header = process.stdout.readline()
    began = time.monotonic()
    assert select.select([process.stdout], [], [], 0.2)[0] == []  # the first row comes after an interval
    out, err = process.communicate(timeout=5)

    assert 0.7 < time.monotonic() - began < 3
    assert header.startswith("time,device,type,utilization.gpu,memory.used,") and header.endswith(",aqu-sz,%util\n")
    assert len({line.partition(",")[0] for line in out.splitlines()}) == 2
    assert (process.returncode, err) == (0, "")


def test_wrong_usage_is_one_line_and_exit_code_2():
    """An unknown field, a device that is not there."""
    for arguments in (["r_awaits"], ["r/s", "--device", "nothing"], ["--every", "0"], ["--count", "0"]):
        process = started(*arguments)
        out, err = process.communicate(timeout=5)

        assert (process.returncode, out) == (2, "")
        assert err.startswith("gpumon: ") and err.count("\n") == 1


def test_list_has_every_field():
    """With unit, where the name is from, and what it means."""
    process = started("--list")
    out, _ = process.communicate(timeout=5)
    by_name = {line.split()[0]: line for line in out.splitlines()}

    assert "iostat" in by_name["r_await"] and " ms " in by_name["r_await"]
    assert "nvidia-smi" in by_name["memory.used"] and " MiB " in by_name["memory.used"]
    assert "gpumon.disk.await[read|write]" in by_name


def test_it_loads_nothing_heavy():
    """It starts like a small tool: no SDK, no torch, DuckDB or rich."""
    code = (
        "import sys; from gpumon import cli\n"
        "try: cli.main(['sample', '--every', '0.05', '--count', '1'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'duckdb', 'rich', 'numpy', 'opentelemetry.sdk', 'pySMART')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


# -- against NVML and iostat -----------------------------------------------------------------------------------


def test_gpus_through_nvml_beside_disks(tmp_path):
    """The command with the real nvidia-ml-py, over a stand-in for the driver's library with two GPUs."""
    state = tmp_path / "nvml.state"
    state.write_text("".join(f"{key}={value}\n" for key, value in {**standin.HEALTHY, "gpus": 2}.items()))
    names = ("index", "name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw")
    names += ("power.limit", "clocks.sm", "pcie.link.width.current", "fan.speed", "hw.gpu.io[receive]", "r/s")
    process = started(*names, "--every", "0.3", "--count", "2", environment=standin.environment(state))
    out, err = process.communicate(timeout=20)
    found = [row for row in csv.DictReader(io.StringIO(out)) if row["type"] == "gpu"]

    assert (process.returncode, err) == (0, "")
    assert [row["device"] for row in found] == ["gpu0", "gpu1"] * 2
    assert ",disk," in out
    assert {name: found[0][name] for name in names} == {
        "index": "0", "name": "NVIDIA H100 80GB HBM3", "utilization.gpu": "50", "memory.used": "20480",
        "memory.total": "81920", "temperature.gpu": "55", "power.draw": "250.00", "power.limit": "700.00",
        "clocks.sm": "1980", "pcie.link.width.current": "16", "fan.speed": "35",
        "hw.gpu.io[receive]": "4000000000000", "r/s": "",
    }  # fmt: skip


LOAD = """
import ctypes, mmap, os, platform, random, struct, sys, time
folder = sys.argv[1]
descriptor = os.open(folder + "/big", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
view = memoryview(buffer)
can_merge = platform.machine() == "x86_64"
if can_merge:
    libc, context = ctypes.CDLL(None), ctypes.c_ulong()
    assert libc.syscall(206, 32, ctypes.byref(context)) == 0  # io_setup
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))

def submit(opcode, offset):
    "Eight neighbouring requests at once, which the kernel merges."
    packed = [struct.pack("=QIIHhIQQqQII", 0, 0, 0, opcode, 0, descriptor, address + 4096 * i, 4096,
                          offset + 4096 * i, 0, 0, 0) for i in range(8)]
    requests = [ctypes.create_string_buffer(item) for item in packed]
    pointers = (ctypes.c_void_p * 8)(*map(ctypes.addressof, requests))
    assert libc.syscall(209, context, 8, pointers) == 8  # io_submit
    libc.syscall(208, context, 8, 8, ctypes.create_string_buffer(32 * 8), None)  # io_getevents

due = time.monotonic()
for turn in range(10**9):
    due += 0.01
    os.preadv(descriptor, [view[:262144]], random.randrange(900) << 16)
    os.pwritev(descriptor, [view[:131072]], random.randrange(900) << 16)
    if can_merge and turn % 5 == 0:
        submit(0, random.randrange(900) << 16)
        submit(1, random.randrange(900) << 16)
    if turn % 20 == 0:
        with open(folder + "/small", "wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        os.unlink(folder + "/small")
    time.sleep(max(0, due - time.monotonic()))
"""


@contextlib.contextmanager
def load(target):
    """Reads, writes, merged ones, discards and flushes at a steady rate, past the page cache."""
    (target.path / "big").write_bytes(os.urandom(64 << 20))
    subprocess.run(["mount", "-o", "remount,discard", str(target.path)], check=True)
    process = subprocess.Popen([sys.executable, "-c", LOAD, str(target.path)])
    time.sleep(2)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def means(table):
    """Mean of each column over a window, of the rows that have a value; awaits weighted by their requests."""
    sums, weights = defaultdict(float), defaultdict(float)
    for row in table:
        for name in IOSTAT:
            if row[name] != "":
                per = f"{name[0]}/s" if name.endswith(("_await", "areq-sz")) else None
                weight = float(row[per]) if per else 1.0
                sums[name] += weight * float(row[name])
                weights[name] += weight
    return {name: sums[name] / weights[name] if weights[name] else None for name in IOSTAT}


@pytest.mark.disk
@pytest.mark.skipif(not shutil.which("iostat"), reason="needs iostat: apt-get install sysstat")
def test_every_column_agrees_with_iostat(quick_disk, tmp_path):
    """Both watch a busy disk over the same 30 s: every column of `iostat -x -y` within 5 %."""
    seconds = int(os.environ.get("GPUMON_IOSTAT_SECONDS", "30"))
    device = quick_disk.device
    with load(quick_disk):
        ours = started(*IOSTAT, "--every", "1", "--count", str(seconds), "--device", device)
        header = ours.stdout.readline()  # it has looked for the first time: iostat begins at the same moment
        command = ["iostat", "-x", "-y", "-o", "JSON", device, "1", str(seconds)]
        iostat = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        out, err = ours.communicate(timeout=seconds + 20)
        theirs, _ = iostat.communicate(timeout=20)
    assert err == ""
    found = list(csv.DictReader(io.StringIO(header + out)))
    statistics = json.loads(theirs)["sysstat"]["hosts"][0]["statistics"]
    expected = means([{name: entry["disk"][0][name.lstrip("%")] for name in IOSTAT} for entry in statistics])
    actual = means(found)
    apart = {name: (actual[name] or 0.0) - expected[name] for name in IOSTAT}
    for name in IOSTAT:
        print(f"{name:9} gpumon {actual[name] or 0:10.3f}  iostat {expected[name]:10.3f}  {apart[name]:+.3f}")

    assert {row["device"] for row in found} == {device} and len(found) == seconds
    # iostat rounds each row to two digits: half a digit may be missing from a small value.
    assert {name: apart[name] for name in IOSTAT if abs(apart[name]) > 0.05 * expected[name] + 0.005} == {}
    busy = set(IOSTAT) - {"drqm/s", "%drqm"} - (set() if platform.machine() == "x86_64" else {"rrqm/s", "%rrqm"})
    assert [name for name in sorted(busy) if not expected[name]] == [], "the load did not reach every column"
    times = [datetime.fromisoformat(row["time"]) for row in found]
    late = [(time - times[0]).total_seconds() - number for number, time in enumerate(times)]
    assert abs(fmean(late)) < 0.2 and abs(late[-1]) < 0.2


def test_docs_name_the_defaults():
    """docs/sample.md lists what is shown without arguments."""
    from gpumon.sample.fields import DEFAULT

    text = (Path(__file__).parents[1] / "docs" / "sample.md").read_text(encoding="utf-8")
    assert " ".join(DEFAULT) in " ".join(text.split())
