"""Causes of waits for data: recorded scenarios as plain values, in the order of the procedure."""

from dataclasses import replace

import pytest

from gpumon.rules.causes import cause_of_waits
from gpumon.rules.evidence import Account, Disk, Evidence, Fetches, Loader, Machine, Steps

FETCH_WALL_S = 100.0


def waits(
    ho=0.04, duty=0.98, cpu=0.01, rq=0.0, disk=0.0, net=0.0, netfs=0.0, sleep=0.0, other=0.0,
    await_ms=None, aqu=2.0, unl_ms=None, s_by_r=1.0, not_ours=0.0, best=1.0, own_writes=False,
    first=0.05, workers=2, refaults=0.0, limit_hits=0, throttled=None, type="virtual",
):  # fmt: skip
    """Evidence with the figures of one recorded scenario; shares are of fetch time."""
    accounts = [
        Account("cpu", cpu * FETCH_WALL_S),
        Account("runnable", rq * FETCH_WALL_S),
        Account("blocked.disk", disk * FETCH_WALL_S, device="loop0"),
        Account("blocked.socket", net * FETCH_WALL_S),
        Account("blocked.network_fs", netfs * FETCH_WALL_S, file_system="fuse.sshfs"),
        Account("blocked.sleep", sleep * FETCH_WALL_S),
        Account("blocked.other", other * FETCH_WALL_S, call="futex"),
    ]
    disks = {}
    if await_ms is not None:
        total = 1e9
        disks["loop0"] = Disk(
            "loop0",
            type=type,
            seconds=10.0,
            await_s=await_ms / 1e3,
            queue=aqu,
            read_time_s=disk * FETCH_WALL_S / s_by_r,
            read_bytes=total * (1 - not_ours) if own_writes else total,
            write_bytes=total * not_ours if own_writes else 0.0,
            own_read_bytes=total * (1 - not_ours),
            own_write_bytes=total * not_ours if own_writes else 0.0,
            best_read_bytes_per_s=(total * (1 - not_ours) if own_writes else total) / 10.0 / best,
            unloaded_s=None if unl_ms is None else unl_ms / 1e3,
        )
    return Evidence(
        run_s=60.0,
        steps=Steps(600, 60.0, {"data.wait": 50.0, "forward": 10.0}, 2, first * 50.0, first * 50.0 + 0.04),
        fetches=Fetches(600, accounts, duty, ho),
        disks=disks,
        machine=Machine(
            cpus=2.0,
            throttled_fraction=throttled,
            read_bytes=1e9,
            refaulted_bytes=refaults * 1e9,
            memory_limit_hits=limit_hits,
        ),
        loader=Loader(workers),
    )


def given(**figures):
    return figures


SCENARIOS = {
    "memmap, 50 ms, 3 workers": (
        given(disk=0.99, await_ms=51, aqu=3.6, unl_ms=53, s_by_r=0.79, not_ours=0.02),
        "disk_slow",
    ),
    "50 ms, another device hammered": (given(disk=0.98, await_ms=51, aqu=2.0, unl_ms=51), "disk_slow"),
    "70 ms, 3 workers": (given(disk=0.99, await_ms=71, aqu=3.0, unl_ms=71), "disk_slow"),
    "4-thread pool in the worker, 60 ms": (given(disk=0.99, await_ms=61, aqu=3.9, unl_ms=61, s_by_r=0.25), "disk_slow"),
    "4 KiB files cold, 30 ms": (
        given(disk=0.98, await_ms=31, aqu=4.0, unl_ms=31, s_by_r=0.97, not_ours=0.28),
        "disk_slow",
    ),
    "0.5 to 40 ms in mid-run": (
        given(duty=1.09, disk=0.98, await_ms=41, aqu=3.9, unl_ms=1, s_by_r=1.08, best=0.14),
        "disk_slow",
    ),
    "90 ms, decoding, 6 CPU hogs": (given(cpu=0.06, rq=0.17, disk=0.77, await_ms=91, aqu=2.3, unl_ms=91), "disk_slow"),
    "slow alone, and another reader": (
        given(disk=0.99, await_ms=91, aqu=6.3, unl_ms=91, s_by_r=0.47, not_ours=0.83),
        "disk_slow",
    ),
    "ceiling of 110 iops": (
        given(disk=0.98, await_ms=27, aqu=2.9, unl_ms=11, s_by_r=0.99, best=0.99),
        "disk_saturated",
    ),
    "another reader on the disk": (
        given(disk=1.0, cpu=0.0, await_ms=265, aqu=7.5, unl_ms=2, s_by_r=0.26, not_ours=0.93),
        "disk_contended",
    ),
    "own checkpoints on the disk": (
        given(disk=0.99, await_ms=80, aqu=6.1, unl_ms=2, s_by_r=0.99, not_ours=0.82, own_writes=True),
        "disk_contended",
    ),
    "quota of 40 iops": (given(disk=0.99, await_ms=0.7, aqu=0.0, unl_ms=0.4, s_by_r=111.1), "disk_quota"),
    "quota of 170 iops, 4 ms disk": (given(disk=0.97, await_ms=4.5, aqu=0.8, unl_ms=4, s_by_r=3.7), "disk_quota"),
    "memory limit, thrashing": (
        given(ho=0.12, duty=0.88, cpu=0.06, disk=0.93, await_ms=13, aqu=1.7, unl_ms=13, refaults=0.53, limit_hits=7),
        "memory_pressure",
    ),
    "FUSE mount, 40 ms": (given(cpu=0.02, netfs=0.97), "network_filesystem"),
    "HTTP, 50 ms": (given(net=0.98), "network"),
    "decoding 14 ms, 1 worker": (given(cpu=0.99, other=0.01, workers=1), "loader_cpu"),
    "24 batches of 1.5 MB, 3 workers": (given(ho=0.92, duty=0.90, cpu=0.56, rq=0.43, workers=3), "cpu_limit"),
    "CPU quota of 0.6 cores": (given(ho=0.26, duty=0.94, cpu=0.28, rq=0.72, throttled=0.9), "cpu_limit"),
    "5 decoders on 2 cores": (given(ho=0.28, duty=0.94, cpu=0.39, rq=0.61, workers=5), "cpu_limit"),
    "0.8 ms disk, read in the trainer": (
        given(duty=0.77, cpu=0.25, disk=0.74, await_ms=0.8, aqu=0.6, unl_ms=1, workers=0),
        "too_few_workers",
    ),
    "sleeps of 18 ms": (given(cpu=0.03, sleep=0.97), "too_few_workers"),
    "48 k Python objects a batch": (given(ho=1.0, duty=0.01, cpu=1.0), "handover"),
    "GIL hog in the trainer": (given(ho=1.0, duty=0.0, cpu=0.71, rq=0.29), "handover"),
    "spawn, short epochs": (given(ho=0.77, duty=0.01, cpu=0.98, first=0.88), "worker_startup"),
    "10 ms disk and decoding 10 ms": (
        given(cpu=0.50, disk=0.49, await_ms=11, aqu=0.5, unl_ms=11, workers=1),
        "unknown",
    ),
    "cached, decoding, disk hammered": (
        given(cpu=0.53, disk=0.46, await_ms=343, aqu=4.7, unl_ms=2, not_ours=1.0, s_by_r=0.1),
        "unknown",
    ),
    "one lock for 3 workers": (given(cpu=0.02, other=0.97, workers=3), "unknown"),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_recorded_scenario_has_its_cause(name):
    """Every scenario that was recorded on real devices is named as what it was made of."""
    figures, cause = SCENARIOS[name]

    assert cause_of_waits(waits(**figures)).name == cause


def test_an_unloaded_latency_counts_only_when_the_queue_was_short_then():
    """Measured amid others' requests it says nothing of the disk alone, so contention is named."""
    evidence = waits(disk=1.0, cpu=0.0, await_ms=265, aqu=7.5, unl_ms=197, not_ours=0.93)
    crowded = replace(evidence.disks["loop0"], unloaded_queue=5.0)

    assert cause_of_waits(evidence).name == "disk_slow"
    assert cause_of_waits(replace(evidence, disks={"loop0": crowded})).name == "disk_contended"


def test_saturated_or_slow_cannot_be_told_without_an_unloaded_latency():
    """Both look the same while the queue is full: abstain, with the candidates."""
    cause = cause_of_waits(waits(disk=0.98, await_ms=27, aqu=2.9))

    assert (cause.name, cause.device) == ("unknown", "loop0")
    assert set(cause.candidates) == {"disk_slow", "disk_saturated", "disk_contended"}


def test_own_quiet_windows_stand_in_for_the_unloaded_latency():
    """A disk that answered quickly while it was quiet, and is at its best now, is saturated."""
    evidence = waits(disk=0.98, await_ms=27, aqu=2.9, best=0.95)
    known = replace(evidence.disks["loop0"], quiet_s=0.004)

    assert cause_of_waits(replace(evidence, disks={"loop0": known})).name == "disk_saturated"


def test_no_queue_is_to_blame_so_the_disk_is_slow():
    """One request at a time, no baseline, 60 ms each: slow."""
    assert cause_of_waits(waits(disk=0.98, await_ms=60, aqu=1.0, workers=1)).name == "disk_slow"


@pytest.mark.parametrize(
    ("type", "await_ms", "cause"),
    [("NVMe", 3, "disk_slow"), ("SSD", 3, "too_few_workers"), ("HDD", 20, "too_few_workers"), ("HDD", 60, "disk_slow")],
)
def test_what_is_normal_depends_on_the_class_of_disk(type, await_ms, cause):
    """3 ms is slow for NVMe and normal for an SSD; a hard disk may take 30 ms."""
    assert cause_of_waits(waits(disk=0.98, await_ms=await_ms, aqu=1.0, unl_ms=await_ms, type=type)).name == cause


def test_a_tie_abstains_and_names_the_two_largest():
    """Half disk, half decoding: neither is the cause."""
    cause = cause_of_waits(waits(cpu=0.50, disk=0.49, await_ms=61, unl_ms=61))

    assert cause.name == "unknown"
    assert cause.candidates == ("loader_cpu", "disk_slow")


def test_half_of_the_time_with_a_clear_lead_is_enough():
    """0.5 against 0.25 leads by more than 20 points."""
    assert cause_of_waits(waits(cpu=0.25, disk=0.50, sleep=0.25, await_ms=61, unl_ms=61)).name == "disk_slow"


@pytest.mark.parametrize(
    ("rq", "cause", "candidates"),
    [
        (0.10, "loader_cpu", ()),
        (0.25, "loader_cpu", ("cpu_limit",)),
        (0.35, "cpu_limit", ("loader_cpu",)),
        (0.60, "cpu_limit", ()),
    ],
)
def test_between_starved_and_busy_both_are_named(rq, cause, candidates):
    """Waiting for a CPU 20-40 % of the time can be either."""
    found = cause_of_waits(waits(cpu=1 - rq, rq=rq))

    assert (found.name, found.candidates) == (cause, candidates)


def test_throttled_periods_alone_are_a_cpu_limit():
    """A quota that bites is named although the run queue looks short."""
    assert cause_of_waits(waits(cpu=0.95, rq=0.05, throttled=0.4)).name == "cpu_limit"


def test_refaults_without_a_limit_that_was_hit_are_not_memory_pressure():
    """The kernel also evicts on its own account."""
    evidence = waits(disk=0.93, await_ms=13, aqu=1.7, unl_ms=13, refaults=0.9)

    assert cause_of_waits(evidence).name == "disk_slow"


def test_late_delivery_by_busy_workers_is_no_handover():
    """CPU-starved workers deliver late too: they are the limit."""
    assert cause_of_waits(waits(ho=0.92, duty=0.88, cpu=0.5, rq=0.5)).name == "cpu_limit"


def test_a_device_that_cannot_be_read_leaves_the_cause_open():
    """Fetches are blocked on files, and no counter says why."""
    cause = cause_of_waits(waits(disk=0.98))

    assert (cause.name, cause.device) == ("unknown", "loop0")


def test_page_faults_without_a_device_are_the_only_dataset_disks():
    """A memory map's faults have no file descriptor; there is one data set and one disk."""
    evidence = waits(disk=0.98, await_ms=61, unl_ms=61)
    faults = [replace(item, device="") for item in evidence.fetches.accounts]
    cause = cause_of_waits(replace(evidence, fetches=replace(evidence.fetches, accounts=faults)))

    assert (cause.name, cause.device) == ("disk_slow", "loop0")


def test_without_accounts_nothing_is_blamed():
    """An iterable of the user's own has no fetches that could be followed."""
    evidence = waits(disk=0.98, await_ms=61, unl_ms=61)
    cause = cause_of_waits(replace(evidence, fetches=Fetches()))

    assert cause.name == "unknown"
    assert cause.candidates


def test_tiny_fetches_are_not_accounted():
    """Below 100 µs the accounting itself is a large part of what it measures."""
    evidence = waits(cpu=1.0)
    tiny = replace(evidence.fetches, count=FETCH_WALL_S / 50e-6)

    assert cause_of_waits(replace(evidence, fetches=tiny)).name == "unknown"
