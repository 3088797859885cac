"""What is said of physical disks: one finding per rule and disk, and what to do about it."""

from dataclasses import replace

import pytest

from gpumon.rules import RULES
from gpumon.rules.disk_health import Vitals
from gpumon.rules.drives import drive_findings, failing_under_data
from gpumon.rules.evidence import Drive, Evidence, Steps
from gpumon.rules.verdict import judge

DATA = Drive("Z1", model="ST4000NM0035", devices=("sda",), state="ok", holds_dataset=True, grown_over_s=3600.0)
CHECKPOINTS = Drive("N1", model="PM9A1", devices=("nvme0n1",), state="ok", holds_checkpoints=True)
SPARE = Drive("S1", model="870 EVO", devices=("sdb",), state="ok")
GROWING = replace(
    DATA,
    state="predicted_failure",
    vitals=Vitals(counters={"reallocated": 316}, growth={"reallocated": 12}),
    grown={"reallocated": 12},
)


def evidence(*drives, steps=600, wait=0.01):
    phases = {"data.wait": 60 * wait, "forward": 20.0, "backward": 38.0 - 60 * wait, "optimizer": 2.0}
    return Evidence(run_s=61.0, steps=Steps(steps, 60.0 if steps else 0.0, phases), drives=drives, gpu_busy=0.9)


def findings(*drives):
    return drive_findings(evidence(*drives))


def test_healthy_disks_are_no_finding():
    assert findings(DATA, CHECKPOINTS, SPARE) == []
    assert failing_under_data(evidence(DATA, CHECKPOINTS, SPARE)) == ""


def test_growth_under_the_data_set():
    """Which disk, how much since the run began, and where to save a checkpoint."""
    (finding,) = findings(GROWING, SPARE)

    assert (finding.rule, finding.severity, finding.device) == ("DiskFailing", "critical", "sda")
    assert finding.summary == (
        "sda (ST4000NM0035, serial number Z1), which holds the data set, is about to fail: "
        "316 reallocated sectors, +12 since the run began (12 per hour)."
    )
    (fact,) = finding.evidence
    assert (fact.metric, fact.value, fact.reference) == ("gpumon.smart.count", 316, 304)
    assert finding.advice[0] == "save a checkpoint on another disk than sda (sdb) now"
    assert "copy the data set to it" in finding.advice[1]
    assert len(finding.advice) <= 3


def test_growth_under_the_checkpoints():
    """The last one is in danger; the next go elsewhere."""
    ill = replace(CHECKPOINTS, state="predicted_failure", vitals=Vitals(counters={"media": 7}))
    (finding,) = findings(DATA, ill)

    assert finding.device == "nvme0n1"
    assert "which holds the checkpoints" in finding.summary
    assert finding.advice[0].startswith("copy the last checkpoint to another disk than nvme0n1 (sda) now")
    assert not any("data set" in line for line in finding.advice)


def test_both_on_one_disk():
    (finding,) = findings(replace(GROWING, holds_checkpoints=True))

    assert "which holds the data set and the checkpoints," in finding.summary
    assert "copy the last checkpoint to another disk than sda now" in finding.advice[0]
    assert "(sda" not in finding.advice[0]
    assert "copy the data set to another disk" in finding.advice[1]


def test_only_disks_that_are_well_are_named():
    """Neither the failing one, nor another that is ill or worn."""
    worn = replace(SPARE, id="S2", devices=("sdc",), state="degraded", vitals=Vitals(used=0.97))
    silent = replace(SPARE, id="S3", devices=("sdd",), state="failed")
    (finding, *_) = findings(GROWING, worn, silent, SPARE)

    assert "(sdb)" in finding.advice[0]
    assert not {"sdc", "sdd"} & set(" ".join(finding.advice).replace("(", " ").replace(")", " ").split())


def test_growth_before_the_run():
    """Within the week: as grave, and dated."""
    ill = replace(DATA, vitals=Vitals(counters={"pending": 3}, growth={"pending": 3}), grown={})
    (finding,) = findings(ill)

    assert finding.rule == "DiskFailing"
    assert "3 pending sectors, +3 within 7 days." in finding.summary


def test_growth_before_and_during_the_run():
    ill = replace(DATA, vitals=Vitals(counters={"pending": 9}, growth={"pending": 9}), grown={"pending": 2})
    (finding,) = findings(ill)

    assert "+2 since the run began (2.0 per hour), +9 within 7 days" in finding.summary


def test_a_rate_needs_time():
    """12 in a second are not 43200 an hour."""
    (finding,) = findings(replace(GROWING, grown_over_s=1.0))

    assert "+12 since the run began." in finding.summary


@pytest.mark.parametrize(("used", "severity"), [(0.85, "warning"), (1.04, "critical")])
def test_wear(used, severity):
    (finding,) = findings(replace(DATA, state="degraded", vitals=Vitals(used=used)))

    assert (finding.rule, finding.severity, finding.device) == ("DiskWearing", severity, "sda")
    assert f"{used:.0%} of its rated writes used" in finding.summary
    assert finding.evidence[0].value == pytest.approx(1 - used)
    assert finding.advice == ["plan to replace sda, and keep no only copy on it"]


def test_the_cable():
    ill = replace(DATA, state="degraded", vitals=Vitals(counters={"link": 30}, growth={"link": 18}), grown={"link": 18})
    (finding,) = findings(ill)

    assert (finding.rule, finding.severity) == ("DiskCableErrors", "warning")
    assert "30 errors of the link, +18 since the run began" in finding.summary
    assert "cable" in finding.advice[0]
    assert failing_under_data(evidence(ill)) == ""


def test_what_a_failing_disk_has_besides_is_the_same_news():
    """But for its cable, which is another repair."""
    ill = replace(GROWING, vitals=replace(GROWING.vitals, used=0.9, growth={"reallocated": 12, "link": 1}))

    assert [finding.rule for finding in findings(ill)] == ["DiskFailing", "DiskCableErrors"]


def test_a_disk_that_no_longer_answers():
    """Its counters may be of before."""
    (finding,) = findings(replace(DATA, state="failed", vitals=Vitals(has_failed=True, why_failed="it is silent")))

    assert finding.rule == "DiskFailing"
    assert "has failed or does not answer: it is silent." in finding.summary


def test_who_judged_with_more_than_the_run_holds_is_believed():
    """An agent that knows the disk for months."""
    ill = replace(DATA, state="predicted_failure")
    (finding,) = findings(ill)

    assert (finding.rule, finding.severity) == ("DiskFailing", "critical")
    assert 'its health is "predicted failure"' in finding.summary
    assert "save a checkpoint elsewhere" in failing_under_data(evidence(ill))


def test_a_disk_without_block_device_is_its_serial_number():
    """Behind a RAID controller that shows none."""
    (finding,) = findings(replace(GROWING, devices=(), holds_dataset=False))

    assert finding.device == "Z1"
    assert finding.summary.startswith("Z1 (ST4000NM0035) is about to fail")


def test_disks_with_the_runs_data_come_first():
    other = replace(GROWING, id="A0", devices=("sdx",), holds_dataset=False)
    found = findings(
        other, replace(GROWING, id="A1", devices=("sdy",), holds_dataset=False, holds_checkpoints=True), GROWING
    )

    assert [finding.device for finding in found] == ["sda", "sdy", "sdx"]


def test_all_rules_are_listed():
    """Where documents and dashboards look them up."""
    assert {"DiskFailing", "DiskWearing", "DiskCableErrors"} <= set(RULES)


def test_the_headline_warns_of_the_disk_with_the_data():
    """Beside the verdict, which it does not touch."""
    well, ill = judge(evidence(DATA, SPARE)), judge(evidence(GROWING, SPARE))

    assert ill.verdict == well.verdict == "compute_bound"
    assert ill.headline == (
        well.headline + " sda has 316 reallocated sectors, +12 since the run began (12 per hour):"
        " save a checkpoint elsewhere."
    )
    assert [finding.rule for finding in ill.findings] == ["DiskFailing"]


def test_a_warning_that_is_no_count():
    ill = replace(CHECKPOINTS, state="predicted_failure", vitals=Vitals(critical_warning=4))

    assert failing_under_data(evidence(ill)) == (
        " nvme0n1 is about to fail (it says that it is no longer reliable): save a checkpoint elsewhere."
    )


def test_a_disk_elsewhere_leaves_headline_and_verdict_alone():
    """The finding stands."""
    ill = replace(GROWING, holds_dataset=False)
    well, judged = judge(evidence(replace(DATA, holds_dataset=False))), judge(evidence(ill))

    assert (judged.verdict, judged.headline) == (well.verdict, well.headline)
    assert [finding.rule for finding in judged.findings] == ["DiskFailing"]


def test_a_run_too_short_to_be_judged_keeps_it():
    judged = judge(evidence(GROWING, steps=3))

    assert judged.verdict == "insufficient_data"
    assert [finding.rule for finding in judged.findings] == ["DiskFailing"]
    assert "save a checkpoint elsewhere" in judged.headline
