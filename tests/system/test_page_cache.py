"""How much of a file is in the page cache: what fincore says."""

import os

import pytest

import fincore
from gpumon.system.page_cache import cached_bytes

pytestmark = pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5), reason="needs cachestat(2): Linux 6.5"
)


@pytest.mark.disk
def test_it_is_what_fincore_says(quick_disk):
    """Of the whole file, and of a range of it; asking changes nothing."""
    file = quick_disk.path / "file"
    file.write_bytes(os.urandom(1 << 20))
    fincore.put_out(quick_disk.path)
    fincore.put_in(file, 300_000)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        told = fincore.cached_bytes(quick_disk.path)[str(file)]
        assert cached_bytes(descriptor, 0, 1 << 20) == told == 303_104
        assert cached_bytes(descriptor, 1 << 19, 1 << 19) == 0
        assert cached_bytes(descriptor, 0, 4096) == 4096
        assert cached_bytes(descriptor, 0, 0) == 0
        assert fincore.cached_bytes(quick_disk.path)[str(file)] == told
    finally:
        os.close(descriptor)


def test_what_cannot_be_told_is_none():
    """A descriptor that is none."""
    assert cached_bytes(-1, 0, 4096) is None
