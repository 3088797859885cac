"""From steps to one verdict, and the findings behind it."""

from dataclasses import replace

import pytest

from gpumon.rules.evidence import Account, Disk, Evidence, Fetches, Loader, Machine, Steps
from gpumon.rules.verdict import judge

SLOW = Disk(
    "loop0", type="virtual", mount_point="/data/images", file_system="ext4", seconds=60.0, await_s=0.087, queue=2.0,
    read_time_s=95.0, read_bytes=6e7, own_read_bytes=6e7, best_read_bytes_per_s=1.1e6, quiet_s=0.0021,
)  # fmt: skip
BLOCKED = Fetches(600, [Account("blocked.disk", 94.0, "loop0"), Account("cpu", 6.0)], 0.99, 0.02)


def training(wait=0.71, *, first_wait_s=0.0, epochs=2, run_s=61.2, step_s=60.0, steps=600, **others):
    """A minute of training in 600 steps, of which *wait* is waiting for data."""
    phases = {"data.wait": wait * (step_s - first_wait_s) + first_wait_s}
    rest = step_s - sum(phases.values())
    shares = others or {"forward": 0.4, "backward": 0.5, "optimizer": 0.05, "other": 0.05}
    phases |= {name: rest * share / sum(shares.values()) for name, share in shares.items()}
    return Steps(steps, step_s, phases, epochs, first_wait_s + epochs * wait * 0.1, first_wait_s + epochs * 0.1)


def evidence(steps=None, **changes):
    given = {
        "run_s": 61.2,
        "steps": steps or training(),
        "fetches": BLOCKED,
        "disks": {"loop0": replace(SLOW, quiet_s=0.06)},
        "machine": Machine(cpus=2.0, trainer_cpu_s=60.0),
        "loader": Loader(workers=2, prefetch=2, batch_size=32),
        "read_bytes_per_step": 1e5,
    }
    return Evidence(**{**given, **changes})


def rules(judgement):
    return [finding.rule for finding in judgement.findings]


def test_waits_of_a_slow_disk_are_the_verdict():
    """Share, severity, seconds, device and cause in one finding, and the sentence with the numbers."""
    judgement = judge(evidence())
    finding = judgement.findings[0]

    assert judgement.verdict == "data_loading_bound"
    assert (finding.rule, finding.cause, finding.device, finding.severity) == (
        "DataLoadingBound",
        "disk_slow",
        "loop0",
        "critical",
    )
    assert finding.seconds_lost == pytest.approx((0.71 - 0.02) * 59.8, rel=0.01)
    for words in (
        "71 % of each training step waits for data",
        "loop0",
        "/data/images",
        "ext4",
        "87 ms",
        "2 workers",
        "94 %",
    ):
        assert words in judgement.headline


def test_the_sentence_holds_the_latency_against_the_disks_own_baseline():
    """A disk that became slow during the run is so many times its quiet self."""
    slow = replace(SLOW, best_read_bytes_per_s=9e6)

    assert "41× its quiet baseline (2.1 ms)" in judge(evidence(disks={"loop0": slow})).headline


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (Steps(), "No training step was seen."),
        (Steps(4, 40.0, {"data.wait": 30.0}), "Too few steps to judge: 4 of 20."),
        (Steps(400, 4.0, {"data.wait": 3.0}), "Too little time in steps to judge: 4.0 s of 5.0 s."),
        (Steps(400, 40.0, {"data.wait": 50.0}), "The clocks disagree"),
    ],
)
def test_too_little_is_not_judged(steps, words):
    """Abstain, and say what there is."""
    judgement = judge(evidence(steps))

    assert (judgement.verdict, judgement.findings) == ("insufficient_data", [])
    assert words in judgement.headline


def test_a_slow_disk_that_eight_workers_hide_is_no_finding():
    """The disk is as slow as before; the training does not wait."""
    judgement = judge(evidence(training(0.05)))

    assert (judgement.verdict, judgement.findings) == ("compute_bound", [])
    assert judgement.headline == "Nothing stands out: compute 90 % of the step, data wait 5 %."


def test_a_busy_disk_that_holds_no_data_set_is_no_cause():
    """Fetches are on the CPU; whatever another disk does explains none of their time."""
    hog = replace(SLOW, name="sda", holds_dataset=False, await_s=0.3, queue=30.0)
    decoding = Fetches(600, [Account("cpu", 95.0), Account("runnable", 5.0)], 0.99)
    finding = judge(evidence(fetches=decoding, disks={"sda": hog})).findings[0]

    assert (finding.cause, finding.device) == ("loader_cpu", None)


def test_page_cache_hits_on_a_slow_disk_are_no_finding():
    """What is cached is not waited for: no waits, nothing to explain."""
    cached = Fetches(600, [Account("cpu", 5.0)], 0.1)

    assert judge(evidence(training(0.03), fetches=cached)).findings == []


def test_validation_and_checkpoints_are_not_waits_for_data():
    """A pause is in its own phase; what is left of the step is judged."""
    paused = training(0.04, checkpoint=0.3, forward=0.3, backward=0.36)

    assert judge(evidence(paused)).findings == []


def test_one_slow_batch_in_a_thousand_is_no_verdict():
    """Two seconds once, in a minute of steady training."""
    steps = Steps(1000, 62.0, {"data.wait": 3.2, "forward": 28.0, "backward": 29.0, "optimizer": 1.8}, 1, 0.01, 0.07)

    assert judge(evidence(steps)).verdict == "compute_bound"


@pytest.mark.parametrize(
    ("wait", "other", "verdict"),
    [
        (0.15, 0.05, "data_loading_bound"),
        (0.15, 0.40, "balanced"),
        (0.25, 0.40, "data_loading_bound"),
        (0.09, 0.01, "compute_bound"),
    ],
)
def test_a_wait_of_a_tenth_counts_where_it_is_the_largest_loss(wait, other, verdict):
    """From a fifth of the step it counts by itself."""
    compute = 1.0 - other

    assert judge(evidence(training(wait, forward=compute / 2, backward=compute / 2, other=other))).verdict == verdict


@pytest.mark.parametrize(
    ("run_s", "severity"),
    [(61.0, "critical"), (200.0, "critical"), (250.0, "warning"), (400.0, "warning"), (900.0, "info")],
)
def test_severity_goes_by_the_share_of_the_run_that_was_lost(run_s, severity):
    """41 seconds are much of a minute, and little of a quarter of an hour."""
    assert judge(evidence(run_s=run_s)).findings[0].severity == severity


def test_first_batches_are_judged_apart():
    """A steady training with a long start of each epoch computes; the starts are a finding of their own."""
    steps = training(0.03, first_wait_s=8.0, epochs=4)
    judgement = judge(evidence(steps))

    assert judgement.verdict == "compute_bound"
    assert rules(judgement) == ["FirstBatchSlow"]
    assert judgement.findings[0].severity == "warning"
    assert "persistent_workers=True" in judgement.findings[0].advice[0]


def test_epochs_that_mostly_start_workers_are_bound_by_it():
    """Spawned workers and short epochs: more than half of all waits is for first batches."""
    judgement = judge(evidence(training(0.1, first_wait_s=40.0, epochs=20)))

    assert judgement.verdict == "data_loading_bound"
    assert {finding.rule: finding.cause for finding in judgement.findings} == {
        "DataLoadingBound": "worker_startup",
        "FirstBatchSlow": None,
    }


def test_a_sleeping_compute_phase_is_not_compute():
    """Without a GPU the trainer's CPU time must agree."""
    assert judge(evidence(training(0.03), machine=Machine(trainer_cpu_s=3.0))).verdict == "balanced"


@pytest.mark.parametrize(("busy", "verdict"), [(0.97, "compute_bound"), (0.6, "balanced"), (0.3, "overhead_bound")])
def test_a_gpu_says_itself_whether_it_computes(busy, verdict):
    """97 % busy is no finding; 30 % without waits is overhead."""
    judgement = judge(evidence(training(0.03), gpu_busy=busy))

    assert judgement.verdict == verdict
    assert rules(judgement) == (["OverheadBound"] if verdict == "overhead_bound" else [])


def test_the_verdict_is_the_loss_that_cost_most():
    """Waits and copies are both findings; the larger one names the verdict."""
    judgement = judge(evidence(training(0.25, transfer=0.6, forward=0.4), gpu_busy=0.3))

    assert judgement.verdict == "transfer_bound"
    assert set(rules(judgement)) == {"TransferBound", "DataLoadingBound"}


def test_what_a_cause_would_have_needed_and_nobody_could_read_is_said():
    """An unknown cause with a blind disk collector: that is why."""
    judgement = judge(evidence(disks={}, blind={"disk": "/proc/diskstats: Permission denied"}))

    assert judgement.findings[0].cause == "unknown"
    assert rules(judgement) == ["DataLoadingBound", "CollectorBlind"]
    assert "Permission denied" in judgement.findings[1].summary
    assert judgement.findings[1].severity == "info"


def test_a_blind_collector_that_nothing_needed_is_no_finding():
    """No GPU library on a machine that trains on its CPU."""
    assert judge(evidence(training(0.03), blind={"gpu": "NVML: library not found"})).findings == []


def test_storage_advice_states_the_throughput_that_is_needed():
    """Bytes per step by compute time per step: 100 kB in 29 ms is 3.4 MB/s."""
    advice = judge(evidence()).findings[0].advice

    assert any("3.4 MB/s" in line for line in advice)
    assert len(advice) <= 3


def test_more_workers_are_advised_from_and_to_a_number():
    """The disk answers in parallel, and the CPUs allow it."""
    advice = judge(evidence()).findings[0].advice

    assert any(line.startswith("num_workers 2 → ") for line in advice)


def test_no_more_workers_are_advised_than_cpus_can_feed():
    """Two decoders on two CPUs take both."""
    decoding = Fetches(600, [Account("cpu", 100.0)], 0.99)
    advice = judge(evidence(fetches=decoding)).findings[0].advice

    assert not any(line.startswith("num_workers") for line in advice)
    assert any("more CPUs" in line for line in advice)


def test_a_quota_is_named_with_its_value_and_its_place():
    """Where the limit can be read, the sentence and the advice say it."""
    held = replace(SLOW, await_s=0.0007, read_time_s=0.9, limits=[("{operation}/s", 40.0, "/sys/fs/cgroup/job/io.max")])
    finding = judge(evidence(disks={"loop0": held})).findings[0]

    assert finding.cause == "disk_quota"
    assert "40 operations/s" in finding.summary and "/sys/fs/cgroup/job/io.max" in finding.summary
    assert "/sys/fs/cgroup/job/io.max" in finding.advice[0]


def test_own_checkpoints_are_named_as_the_contender():
    """Not others: the run's own writes take the disk."""
    busy = replace(SLOW, unloaded_s=0.002, write_bytes=3e8, own_write_bytes=3e8)
    finding = judge(evidence(disks={"loop0": busy})).findings[0]

    assert finding.cause == "disk_contended"
    assert "own writes (checkpoints)" in finding.summary
    assert "checkpoints" in finding.advice[0]


@pytest.mark.parametrize("workers", [0, 1, 2, None])
def test_every_cause_reads_as_a_sentence(workers):
    """Whatever is not known is left out, not printed as None."""
    accounts = (
        "cpu",
        "runnable",
        "blocked.disk",
        "blocked.network_fs",
        "blocked.socket",
        "blocked.sleep",
        "blocked.other",
    )
    for account in accounts:
        for disks in ({}, {"loop0": Disk("loop0", await_s=0.05)}, {"loop0": SLOW}):
            fetches = Fetches(600, [Account(account, 90.0, "loop0" if account == "blocked.disk" else "")])
            for finding in judge(
                evidence(fetches=fetches, disks=disks, loader=Loader(workers), machine=Machine())
            ).findings:
                for text in (finding.summary, *finding.advice):
                    assert "None" not in text and "  " not in text and " ," not in text, text
