"""A recorded run beside what `gpumon bench` got from its disk: the verdict, the evidence, the devices."""

import json
from importlib import resources

import jsonschema
import pytest

from gpumon import metrics as m
from gpumon.analysis.render_text import render
from gpumon.analysis.report import build_report
from recorded import Disk, Training, record

SCHEMA = json.loads((resources.files("gpumon") / "analysis/report.schema.json").read_text())
CEILING = 48e6


def ceiling(rate, operations, pattern="random", parallel=8, device="loop0"):
    """The points of one measured ceiling."""
    at = {m.SYSTEM_DEVICE: device, m.BENCH_PATTERN: pattern, m.BENCH_PARALLEL: parallel}
    return [(m.DISK_CEILING_IO, rate, at), (m.DISK_CEILING_OPERATIONS, operations, at)]


MEASURED = [
    *ceiling(CEILING, CEILING / 1e5),
    *ceiling(11e6, 110.0, parallel=1),
    *ceiling(700e6, 7000.0, "sequential"),
]


def training(fraction, extra=(), **disk):
    """Eight workers blocked on a disk that gives *fraction* of its ceiling, 100 kB a request, steadily."""
    rate = fraction * CEILING
    given = {"await_s": 0.02, "queue": 7.0, "unloaded_s": 0.004, "reads_per_s": rate / 1e5, **disk}
    return Training(
        workers=8,
        disks=[Disk(read_bytes_per_s=rate, **given)],
        own_read_bytes_per_s=rate,
        fetch_s=rate / 1e5 * 0.02 / 10,  # ten steps a second: blocked as long as the disk reads
        accounts={("blocked.disk", "loop0"): 0.99, ("cpu", ""): 0.01},
        extra=list(extra),
    )


def report(path):
    content = build_report(path).as_dict()
    jsonschema.validate(content, SCHEMA, format_checker=jsonschema.FormatChecker())
    return content


def waits(content):
    return next(finding for finding in content["findings"] if finding["rule"] == "DataLoadingBound")


def benched(content):
    return [item for item in waits(content)["evidence"] if item["source"] == "gpumon bench"]


def test_a_run_at_its_disks_ceiling_is_saturated(tmp_path):
    """0.9 of what the bench got: the cause, with that evidence."""
    content = report(record(tmp_path, training(0.9, MEASURED)))

    assert waits(content)["cause"] == "disk_saturated"
    [fact] = benched(content)
    assert fact["metric"] == "system.disk.io"
    assert (fact["value"], fact["reference"]) == pytest.approx((0.9 * CEILING, CEILING))
    assert "43 MB/s of 48 MB/s (gpumon bench)" in content["headline"]


def test_a_run_far_below_it_is_not(tmp_path):
    """0.3 of it, however steady: the disk could give more."""
    content = report(record(tmp_path, training(0.3, MEASURED)))

    assert waits(content)["cause"] != "disk_saturated"
    assert benched(content)
    assert waits(content)["cause"] == "disk_slow"


def test_the_devices_say_how_much_of_how_much(tmp_path):
    """ "43 MB/s of 48 (gpumon bench)" in the text; in JSON the ceiling with its pattern."""
    path = record(tmp_path, training(0.9, MEASURED))
    content = report(path)
    [disk] = [device for device in content["devices"] if device["type"] == "disk"]

    assert disk["read_ceiling_bytes_per_s"] == CEILING
    assert disk["read_ceiling_pattern"] == "random, 8 at a time"
    text = " ".join(render(build_report(path)).replace("\u00a0", " ").split())
    assert "reads 43 MB/s of 48 (gpumon bench)" in text


def test_another_unit_is_said(tmp_path):
    """Of a disk that could give gigabytes."""
    path = record(tmp_path, training(0.9, ceiling(2.1e9, 2.1e9 / 1e5)))

    assert "reads 43 MB/s of 2.1 GB/s (gpumon bench)" in " ".join(render(build_report(path)).split())


def test_without_a_bench_the_report_is_as_it_was(tmp_path):
    """No key, no word, the cause by the run's own best second."""
    path = record(tmp_path, training(0.9))
    content = report(path)

    assert waits(content)["cause"] == "disk_saturated"
    assert "gpumon bench" not in json.dumps(content)
    assert "ceiling" not in json.dumps(content)
    assert "gpumon bench" not in render(build_report(path))


def test_the_ceiling_of_another_disk_is_not_its_own(tmp_path):
    """Only what was measured of this device counts."""
    content = report(record(tmp_path, training(0.9, ceiling(CEILING, 480.0, device="sdb"))))

    assert benched(content) == []


def test_as_many_readers_as_the_loader_has(tmp_path):
    """Eight workers are held against eight readers, not against one."""
    one = [*ceiling(CEILING, CEILING / 1e5, parallel=1), *ceiling(4 * CEILING, 4 * CEILING / 1e5)]
    content = report(record(tmp_path, training(0.9, one)))
    [disk] = [device for device in content["devices"] if device["type"] == "disk"]

    assert disk["read_ceiling_bytes_per_s"] == 4 * CEILING
    assert waits(content)["cause"] != "disk_saturated"


def test_small_records_are_held_against_nothing(tmp_path):
    """A memory map read by 4 KiB: bytes a second of whole files are no measure for it."""
    content = report(record(tmp_path, training(0.02, MEASURED, reads_per_s=0.02 * CEILING / 4096)))

    assert benched(content) == []
    assert "read_ceiling_bytes_per_s" not in json.dumps(content)
