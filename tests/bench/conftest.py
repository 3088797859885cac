import os
import tempfile
from pathlib import Path

import pytest

from gpumon.system.storage import STORAGE


@pytest.fixture
def folder(tmp_path):
    """A folder on a disk, wherever temporary files are."""
    if STORAGE.of_path(tmp_path).kind != "memory":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="gpumon-bench-", dir=Path(__file__).parents[2]) as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch):
    """Where results are kept meanwhile."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("GPUMON_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def fill():
    """Write files of random bytes, and on the disk: `fill(folder, {"name": size})`."""

    def write(folder, sizes):
        for name, size in sizes.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(size))
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return folder

    return write
