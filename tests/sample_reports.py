"""Reports as `gpumon report --json` prints them, for tests of what is made from one."""

import copy

SLOW_DISK = {
    "schema": "gpumon.report/1",
    "run": {
        "id": "7f3a91c0ffee7f3a91c0ffee7f3a91c0",
        "service": "train",
        "started": "2026-11-24T14:02:11.000Z",
        "duration_s": 61.23,
        "ranks": [0],
        "hosts": ["node17"],
        "complete": True,
        "exit_code": 0,
        "signal": None,
        "path": "gpumon-runs/20261124T140211-train-7f3a91",
    },
    "steps": {
        "count": 512,
        "samples": 16384,
        "epochs": 2,
        "failed": 0,
        "skipped": 0,
        "assumed": 0,
        "duration_s": {"mean": 0.1102, "p50": 0.101, "p95": 0.31, "max": 2.1},
        "data_wait_fraction": 0.71,
        "first_of_epoch": {"count": 2, "wait_s": 1.9, "fraction": 0.06},
        "phases": {"data.wait": 0.71, "forward": 0.09, "backward": 0.12, "optimizer": 0.03, "other": 0.05},
    },
    "verdict": "data_loading_bound",
    "headline": (
        "71 % of each training step waits for data: loop0, the disk under /data/imagenet, answers a read in "
        "87 ms, 41× its quiet baseline (2.1 ms), and the 2 workers spend 94 % of their time blocked on it."
    ),
    "findings": [
        {
            "rule": "DataLoadingBound",
            "cause": "disk_slow",
            "severity": "critical",
            "device": "loop0",
            "rank": None,
            "seconds_lost": 43.1,
            "from_s": 0.0,
            "to_s": 61.2,
            "confidence": 0.9,
            "candidates": [],
            "summary": "A read takes 87 ms although nobody else uses the disk; all of its reads are this run's.",
            "evidence": [
                {
                    "metric": "gpumon.disk.await",
                    "value": 0.0879,
                    "unit": "s",
                    "reference": 0.0021,
                    "source": "measured before the loader started",
                },
                {
                    "metric": "gpumon.disk.queue.length",
                    "value": 4.0,
                    "unit": "{request}",
                    "reference": None,
                    "source": "",
                },
            ],
            "advice": [
                "copy the dataset to faster storage: at this batch rate it needs 160 MB/s",
                "num_workers 2 → 8: the disk answers in parallel (queue 4 of 32 used), 2 CPUs allow it",
            ],
        },
        {
            "rule": "DiskWearing",
            "cause": None,
            "severity": "warning",
            "device": "nvme0n1",
            "rank": None,
            "seconds_lost": None,
            "from_s": None,
            "to_s": None,
            "confidence": 1.0,
            "candidates": [],
            "summary": "93 % of its rated writes are used.",
            "evidence": [],
            "advice": [],
        },
    ],
    "devices": [
        {
            "type": "disk",
            "id": "loop0",
            "holds_dataset": True,
            "file_system": "ext4",
            "disks": ["nvme1n1"],
            "await_s": {"mean": 0.0872, "peak": 0.0931},
            "read_bytes_per_s": {"mean": 46.2e6, "peak": 48.1e6},
            "queue_length": {"mean": 4.02, "peak": 5.1},
            "utilization": {"mean": 0.998, "peak": 1.0},
        },
        {
            "type": "gpu",
            "id": "GPU-0a1b2c3d-0000-1111-2222-333344445555",
            "index": 0,
            "model": "H200",
            "utilization": {"mean": 0.19, "peak": 0.31},
            "memory_bytes": {"mean": 41 * 2**30, "peak": 41.5 * 2**30},
            "memory_limit_bytes": 139 * 2**30,
            "power_w": {"mean": 180.2, "peak": 240.0},
        },
        {"type": "cpu", "id": "cpu", "usable": 2, "utilization": {"mean": 0.33, "peak": 0.71}},
    ],
    "missing": [
        {"what": "gpu throttle reasons", "reason": "not supported by this driver"},
        {"what": "SMART of loop0", "reason": "not a physical disk"},
    ],
    "fetches": {
        "workers": 2,
        "count": 1024,
        "mean_s": 0.17,
        "wall_s": 174.1,
        "accounts": [
            {
                "account": "blocked.disk",
                "device": "loop0",
                "call": None,
                "file_system": None,
                "fraction": 0.94,
                "seconds": 163.6,
            },
            {
                "account": "cpu",
                "device": None,
                "call": None,
                "file_system": None,
                "fraction": 0.041,
                "seconds": 7.1,
            },
            {
                "account": "runnable",
                "device": None,
                "call": None,
                "file_system": None,
                "fraction": 0.012,
                "seconds": 2.1,
            },
            {
                "account": "blocked.other",
                "device": None,
                "call": "futex",
                "file_system": None,
                "fraction": 0.004,
                "seconds": 0.7,
            },
            {
                "account": "blocked.network_fs",
                "device": None,
                "call": None,
                "file_system": "nfs4",
                "fraction": 0.003,
                "seconds": 0.6,
            },
        ],
    },
}


def slow_disk(**changes):
    """The run of design and docs: two workers blocked on a slow disk."""
    report = copy.deepcopy(SLOW_DISK)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(report[key], dict):
            report[key].update(value)
        else:
            report[key] = value
    return report


def nothing_stands_out():
    """A healthy run on a computer without a GPU."""
    return slow_disk(
        verdict="compute_bound",
        headline="Nothing stands out: compute 86 % of the step, data wait 3 %.",
        findings=[],
        steps={
            "data_wait_fraction": 0.03,
            "phases": {"data.wait": 0.03, "forward": 0.36, "backward": 0.5, "other": 0.11},
        },
        devices=[],
        missing=[],
        fetches={
            "workers": 0,
            "accounts": [{"account": "cpu", "fraction": 1.0, "seconds": 1.0}],
            "mean_s": 0.0011,
        },
    )


def too_short():
    """A run that ended after four steps, by a signal."""
    return slow_disk(
        run={"duration_s": 41.3, "complete": False, "exit_code": 143, "signal": 15},
        verdict="insufficient_data",
        headline="Too few steps to judge: 4 of 20.",
        findings=[],
        steps={
            "count": 4,
            "failed": 1,
            "first_of_epoch": {"count": 1, "wait_s": 0.9, "fraction": 0.4},
        },
        devices=[],
        missing=[],
        fetches=None,
    )
