"""Given a recorded run, what the report says of its physical disks."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from gpumon import metrics as m
from gpumon.analysis import report as module
from gpumon.analysis.load import load
from gpumon.analysis.report import build_report
from gpumon.rules.disk_health import STATES
from recorded import Disk, Gpu, Recorder, Training, write_run

SCHEMA = json.loads(Path(module.__file__).with_name("report.schema.json").read_text())
COMPUTE = {"data.wait": 0.01, "forward": 0.3, "backward": 0.6, "optimizer": 0.09}
DATA = Disk("sda", type="HDD", await_s=0.004, queue=0.05, utilization=0.02, mount_point="/data")
ELSEWHERE = replace(DATA, name="sdz", holds_dataset=False, mount_point="/old")


def told(serial, devices, state="ok", counters=None, growth=None, used=None, celsius=31.0, failed=(), values=None):
    """What the collector says of a disk in one export."""
    at = {m.HW_ID: serial}
    info = {m.HW_MODEL: f"Model {serial}", m.HW_SERIAL_NUMBER: serial, m.SYSTEM_DEVICE: devices}
    points = [
        (m.SMART_INFO, 1, {**at, **{key: value for key, value in info.items() if value}}),
        (m.SMART_AGE, 3.0, at),
        *(
            (m.STATUS, int(each == state), {**at, m.HW_TYPE: "physical_disk", m.HW_STATE: each})
            for each in STATES
            if state
        ),
    ]
    points += [(m.SMART_COUNT, count, {**at, m.SMART_COUNTER: name}) for name, count in (counters or {}).items()]
    points += [(m.SMART_GROWTH, count, {**at, m.SMART_COUNTER: name}) for name, count in (growth or {}).items()]
    points += [
        (m.PHYSICAL_DISK_SMART, value, {**at, m.SMART_ATTRIBUTE: name}) for name, value in (values or {}).items()
    ]
    points += [(m.SMART_FAILED, 1, {**at, m.SMART_ATTRIBUTE: name, m.SMART_WHEN: when}) for name, when in failed]
    if used is not None:
        points.append((m.PHYSICAL_DISK_ENDURANCE, 1 - used, {**at, m.PHYSICAL_DISK_STATE: "remaining"}))
    if celsius is not None:
        points.append((m.TEMPERATURE, celsius, at))
    return points


def checkpoints_on(device, **more):
    return [(m.DISK_INFO, 1, {m.SYSTEM_DEVICE: device, m.DISK_HOLDS_CHECKPOINTS: True, **more})]


def recorded(directory, *exports, training=None, window_s=60.0, disks=(DATA,)):
    """A run with one export per window, each a list of points of disks."""
    recorder = Recorder(directory)
    for points in exports:
        given = training or Training(phases=COMPUTE, gpus=[Gpu()])
        recorder.window(replace(given, disks=list(disks), extra=points), window_s)
    write_run(directory, ended_s=recorder.at_s)
    return directory


def report_of(directory, *exports, **how):
    report = build_report(recorded(directory, *exports, **how))
    jsonschema.validate(json.loads(json.dumps(report.as_dict())), SCHEMA)
    return report


def found(report):
    return {(finding.rule, finding.device, finding.severity) for finding in report.findings}


SPARE = told("N1", "nvme0n1", counters={"media": 0}, used=0.1)
STEADY = [told("Z1", "sda", counters={"reallocated": 0, "pending": 0}), SPARE]


def test_reallocated_sectors_that_grow_during_the_run(tmp_path):
    """By how much since it began, on which disk, and to save a checkpoint on another one."""
    counts = (304, 304, 310, 316, 316)
    report = report_of(
        tmp_path,
        *(
            told("Z1", "sda", "predicted_failure", {"reallocated": count, "pending": 0}, {"reallocated": count - 304})
            + SPARE
            for count in counts
        ),
    )
    (finding,) = report.findings

    assert report.verdict == "compute_bound"
    assert (finding.rule, finding.device, finding.severity) == ("DiskFailing", "sda", "critical")
    assert "316 reallocated sectors, +12 since the run began (180 per hour)" in finding.summary
    assert "sda (Model Z1, serial number Z1), which holds the data set," in finding.summary
    assert finding.advice[0] == "save a checkpoint on another disk than sda (nvme0n1) now"
    assert [(fact.value, fact.reference) for fact in finding.evidence] == [(316, 304)]
    assert "sda has 316 reallocated sectors, +12 since the run began" in report.headline
    assert "save a checkpoint elsewhere" in report.headline
    assert "316 reallocated sectors, +12 since the run began" in " ".join(str(report).split())


def test_growth_on_the_disk_with_the_checkpoints(tmp_path):
    """Which torch.save wrote to."""
    report = report_of(
        tmp_path,
        *(
            told("Z1", "sda", counters={"pending": 0})
            + told("N1", "nvme0n1", "predicted_failure", {"media": count})
            + checkpoints_on("nvme0n1")
            for count in (0, 1)
        ),
    )
    (finding,) = report.findings

    assert (finding.rule, finding.device) == ("DiskFailing", "nvme0n1")
    assert "which holds the checkpoints" in finding.summary
    assert "copy the last checkpoint to another disk than nvme0n1 (sda) now" in finding.advice[0]
    assert "nvme0n1 has 1 media error, +1 since the run began" in report.headline
    disk = next(device for device in report.devices if device["id"] == "nvme0n1")
    assert (disk["health"], disk["holds_checkpoints"]) == ("predicted_failure", True)


def test_growth_before_the_run_only(tmp_path):
    """Within the week, as whoever reads the disk remembers."""
    report = report_of(tmp_path, *[told("Z1", "sda", "predicted_failure", {"pending": 3}, {"pending": 3}) + SPARE] * 3)
    (finding,) = report.findings

    assert finding.rule == "DiskFailing"
    assert "3 pending sectors, +3 within 7 days" in finding.summary
    assert "since the run began" not in finding.summary


def test_old_errors_that_do_not_grow(tmp_path):
    """A few: a flaw; no headline."""
    report = report_of(tmp_path, *[told("Z1", "sda", "degraded", {"reallocated": 4}, {"reallocated": 0}) + SPARE] * 3)

    assert found(report) == {("DiskWearing", "sda", "warning")}
    assert "save a checkpoint" not in report.headline


@pytest.mark.parametrize(("used", "severity"), [(0.85, "warning"), (1.04, "critical")])
def test_wear(tmp_path, used, severity):
    report = report_of(tmp_path, *[told("Z1", "sda") + told("N1", "nvme0n1", "degraded", used=used)] * 3)
    (finding,) = report.findings

    assert (finding.rule, finding.device, finding.severity) == ("DiskWearing", "nvme0n1", severity)
    assert f"{used:.0%} of its rated writes used" in finding.summary


def test_errors_of_the_cable(tmp_path):
    """Growth of the link's errors."""
    report = report_of(tmp_path, *(told("Z1", "sda", "degraded", {"link": count}) + SPARE for count in (5, 9, 12)))
    (finding,) = report.findings

    assert (finding.rule, finding.device, finding.severity) == ("DiskCableErrors", "sda", "warning")
    assert "12 errors of the link, +7 since the run began" in finding.summary


def test_healthy_disks(tmp_path):
    """Nothing to report; their state and temperature are among the devices."""
    report = report_of(tmp_path, *[STEADY[0] + STEADY[1]] * 3)
    disk = next(device for device in report.devices if device["id"] == "sda")

    assert report.findings == []
    assert disk["health"] == "ok"
    assert disk["temperature_celsius"]["mean"] == pytest.approx(31.0)
    assert "holds_checkpoints" not in disk


def test_a_data_set_in_memory_and_a_failing_disk_elsewhere(tmp_path):
    """The finding stands, verdict and headline are untouched."""
    ill = told("Z9", "sdz", "predicted_failure", {"reallocated": 22144})
    well = report_of(tmp_path / "well", *[told("Z9", "sdz")] * 3, disks=[ELSEWHERE])
    report = report_of(tmp_path / "ill", *[ill] * 3, disks=[ELSEWHERE])

    assert (report.verdict, report.headline) == (well.verdict, well.headline)
    assert well.findings == []
    assert found(report) == {("DiskFailing", "sdz", "critical")}
    assert "sdz" in [device["id"] for device in report.devices]


def test_waits_for_data_stay_the_verdict(tmp_path):
    """A slow disk that fails: both are said."""
    slow = Training(
        phases={"data.wait": 0.7, "forward": 0.1, "backward": 0.15, "optimizer": 0.05}, gpus=[Gpu(busy=0.2)]
    )
    slow.accounts = {("blocked.disk", "sda"): 0.95, ("cpu", ""): 0.05}
    disk = replace(DATA, await_s=0.08, queue=2.0, utilization=1.0)
    report = report_of(
        tmp_path,
        *(told("Z1", "sda", "predicted_failure", {"pending": count}) for count in (0, 4, 9)),
        training=slow,
        disks=[disk],
    )

    assert report.verdict == "data_loading_bound"
    assert {finding.rule for finding in report.findings} >= {"DataLoadingBound", "DiskFailing"}
    assert "save a checkpoint elsewhere" in report.headline


def test_a_run_with_too_few_steps_keeps_the_finding(tmp_path):
    """It need not be long for a disk to fail."""
    report = report_of(
        tmp_path,
        *(told("Z1", "sda", "predicted_failure", {"pending": count}) for count in (0, 4)),
        window_s=0.5,
    )

    assert report.verdict == "insufficient_data"
    assert found(report) == {("DiskFailing", "sda", "critical")}


def test_a_disk_that_no_longer_answers(tmp_path):
    """Its last state counts, not its best one."""
    silent = told("Z1", "sda", "failed", celsius=None)
    report = report_of(tmp_path, *STEADY[:1] * 2, silent, silent)

    assert found(report) == {("DiskFailing", "sda", "critical")}
    assert "has failed or does not answer" in report.findings[0].summary


def test_thresholds_and_nvme_warnings(tmp_path):
    """What only attributes tell."""
    nvme = {"critical_warning": 4, "available_spare": 5, "available_spare_threshold": 10}
    ill = told("N1", "nvme0n1", "predicted_failure", values=nvme)
    ata = told("Z1", "sda", "predicted_failure", failed=[("End-to-End_Error", "now"), ("self_test", "before")])
    report = report_of(tmp_path, ill + ata, ill + ata)
    summaries = {finding.device: finding.summary for finding in report.findings}

    assert "it says that it is no longer reliable" in summaries["nvme0n1"]
    assert "5% of its spare blocks are left" in summaries["nvme0n1"]
    assert "End-to-End_Error is below its threshold" in summaries["sda"]


def test_a_data_set_on_a_volume_over_several_disks(tmp_path):
    """The disk below it that fails is the one that holds the data."""
    volume = [(m.DISK_INFO, 1, {m.SYSTEM_DEVICE: "md0", m.DISK_HOLDS_DATASET: True, m.DISK_PARENTS: "sdb,sdc"})]
    ill = told("Z1", "sdb") + told("Z2", "sdc", "predicted_failure", {"pending": 12}) + volume
    report = report_of(tmp_path, *[ill] * 2, disks=[])
    (finding,) = report.findings

    assert (finding.device, "which holds the data set" in finding.summary) == ("sdc", True)
    assert "(sdb)" in finding.advice[0]


def test_disks_behind_a_raid_controller_share_their_volume(tmp_path):
    """Either of them may be the one with the data: their serial numbers tell them apart."""
    ill = told("M0", "sda") + told("M1", "sda", "predicted_failure", {"reallocated": 387})
    report = report_of(tmp_path, *[ill] * 2)
    (finding,) = report.findings

    assert finding.device == "sda"
    assert "serial number M1" in finding.summary
    disk = next(device for device in report.devices if device["id"] == "sda")
    assert disk["health"] == "predicted_failure"


def test_two_processes_that_read_the_same_disk(tmp_path):
    """Their readings are of one disk: growth is counted once."""
    for rank in range(2):
        recorder = Recorder(tmp_path, rank=rank, instance=f"instance-{rank}")
        for count in (0, 6, 12):
            points = told("Z1", "sda", "predicted_failure", {"pending": count}, {"pending": count})
            recorder.window(Training(phases=COMPUTE, gpus=[Gpu()], disks=[DATA], extra=points), 60.0)
    write_run(tmp_path, ended_s=recorder.at_s)
    (finding,) = (finding for finding in build_report(tmp_path).findings if finding.rule == "DiskFailing")

    assert "12 pending sectors, +12 since the run began" in finding.summary


def test_the_views_have_what_the_report_says(tmp_path):
    """First, last, growth and growth per hour of every attribute and counter."""
    run = load(
        recorded(
            tmp_path,
            *(
                told(
                    "Z1",
                    "sda",
                    "predicted_failure",
                    {"reallocated": count},
                    used=0.2,
                    values={"Power_On_Hours": 15823 + count},
                )
                for count in (304, 310, 316)
            ),
        )
    )
    rows = run.connection.execute(
        """select serial_number, metric, attribute, first_value, last_value, growth, round(growth_per_hour, 6)
        from gpumon_disk_health order by metric, attribute"""
    ).fetchall()

    assert rows == [
        ("Z1", "gpumon.smart.count", "reallocated", 304, 316, 12, 360),
        ("Z1", "hw.physical_disk.smart", "Power_On_Hours", 15823 + 304, 15823 + 316, 12, 360),
    ]
    assert run.connection.execute(
        "select serial_number, model, devices, state, remaining from gpumon_physical_disks"
    ).fetchall() == [("Z1", "Model Z1", "sda", "predicted_failure", pytest.approx(0.8))]


def test_one_reading_has_no_growth_per_hour(tmp_path):
    """Not known is not 0."""
    run = load(recorded(tmp_path, told("Z1", "sda", counters={"pending": 3})))

    assert run.connection.execute("select growth, growth_per_hour from gpumon_disk_health").fetchall() == [(0, None)]
