"""Settings of every test: our own bugs are raised, never swallowed."""

import os

import pytest
import slowdisk

os.environ["GPUMON_STRICT"] = "1"


def pytest_collection_modifyitems(items):
    """Tests marked `disk` are skipped, with what to install, where slow disks cannot be made."""
    if missing := slowdisk.available():
        for item in items:
            if item.get_closest_marker("disk"):
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture
def slow_disk():
    """A real disk (loop device, ext4) whose delay per read `set_delay` changes; 0 at first."""
    with slowdisk.slow_disk() as disk:
        yield disk


@pytest.fixture
def quick_disk():
    """A real disk (loop device, ext4) without delay."""
    with slowdisk.quick_disk() as disk:
        yield disk


@pytest.fixture
def slow_mount():
    """A FUSE file system with latency and no block device; `set_delay` changes it."""
    with slowdisk.slow_mount() as share:
        yield share
