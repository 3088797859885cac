"""Reading past the page cache where the file system does that, and the next best thing where it does not."""

import os
import shutil
import subprocess

import pytest

from fincore import cached_bytes, put_in, put_out, unchanged
from gpumon.bench.access import BLOCK, find_access, page_aligned
from gpumon.bench.files import Sample
from loop_mount import kernel_has, loop_mount

pytestmark = pytest.mark.disk
needs_squashfs = pytest.mark.skipif(
    not (shutil.which("mksquashfs") and kernel_has("squashfs")),
    reason="needs mksquashfs: apt-get install squashfs-tools",
)
needs_btrfs = pytest.mark.skipif(
    not (shutil.which("mkfs.btrfs") and kernel_has("btrfs")), reason="needs mkfs.btrfs: apt-get install btrfs-progs"
)


def samples(folder):
    return [Sample(str(file), file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file()]


def read_all(access, files, step=1):
    """Bytes read, of every block or of every other one."""
    view, size = page_aligned(), 0
    for file in files:
        descriptor = access.open(file.path)
        for offset in range(0, file.size, step * BLOCK):
            size += access.read(descriptor, view, offset, min(BLOCK, file.size - offset))
        os.close(descriptor)
    return size


def some_of_it_cached(folder):
    """Two files are in the page cache, one in part; the others, which are read first, are not."""
    put_out(folder)
    *_, first, second, third = sorted(file for file in folder.iterdir() if file.is_file())
    put_in(first, 1 << 30)
    put_in(second, 1 << 30)
    put_in(third, 65536)
    return cached_bytes(folder)


def check(folder, mode):
    """Read by the way that is found: the mode, every byte, and the page cache as it was, between the reads too."""
    before = some_of_it_cached(folder)
    assert sum(before.values()) > 0
    files = samples(folder)

    access = find_access(files, 512)

    assert access.mode == mode
    assert read_all(access, files, 2) == sum(file.size - BLOCK - 77 for file in files)
    assert unchanged(before, cached_bytes(folder))
    assert read_all(access, files) == sum(file.size for file in files)
    assert unchanged(before, cached_bytes(folder))
    return access


def test_direct_reads_leave_the_page_cache_as_it_was(quick_disk, fill):
    """ext4: read directly, with the alignment that it asks for; cached pages stay, no other comes."""
    access = check(fill(quick_disk.path / "set", {f"{number}": 3 * BLOCK + 77 for number in range(6)}), "direct")

    assert access.alignment in (512, 4096)


def test_all_of_it_cached_is_still_read_directly(quick_disk, fill):
    """Nothing shows then whether direct reads go past the page cache: they are believed to."""
    folder = fill(quick_disk.path / "set", {"a": BLOCK, "b": BLOCK})
    put_in(folder / "a", BLOCK)
    put_in(folder / "b", BLOCK)

    assert find_access(samples(folder), 512).mode == "direct"


def test_a_file_system_that_takes_direct_reads_and_does_not_do_them(fill):
    """ext4 with data=journal opens with O_DIRECT and fills the page cache: nothing is left there all the same."""
    with loop_mount("mkfs.ext4", "-q", "-F", options=["data=journal"]) as (folder, _device):
        fill(folder / "set", {f"{number}": 3 * BLOCK + 77 for number in range(6)})
        check(folder / "set", "uncached")


@needs_btrfs
def test_btrfs_is_read_directly(fill):
    """It reads directly into memory that is there already only."""
    with loop_mount("mkfs.btrfs", "-q", kind="btrfs") as (folder, _device):
        access = check(fill(folder / "set", {f"{number}": 3 * BLOCK + 77 for number in range(6)}), "direct")

        assert access.alignment == 4096


@needs_squashfs
def test_where_direct_reads_are_refused_nothing_is_dropped(tmp_path, fill):
    """squashfs refuses O_DIRECT: read as any program does; what was in the page cache stays."""
    fill(tmp_path / "set", {f"{number}": 3 * BLOCK + 77 for number in range(6)})
    make = ["sh", "-c", 'mksquashfs "$0" "$1" -no-progress', str(tmp_path / "set")]
    with loop_mount(*make, size_mb=0, kind="squashfs") as (folder, _device):
        before = some_of_it_cached(folder)
        files = samples(folder)

        access = find_access(files, 512)

        assert access.mode == "buffered"
        assert read_all(access, files) == sum(file.size for file in files)
        after = cached_bytes(folder)
        assert all(after[name] >= 0.9 * size for name, size in before.items())


def test_a_file_system_that_a_program_serves(slow_mount, fill):
    """FUSE: direct reads go to the server. (Whoever opens such a file drops its pages; none come in.)"""
    folder = fill(slow_mount.path / "set", {f"{number}": 3 * BLOCK + 77 for number in range(6)})
    files = samples(folder)

    access = find_access(files, 512)

    assert access.mode == "direct"
    assert read_all(access, files) == sum(file.size for file in files)
    assert set(cached_bytes(folder).values()) == {0}


def test_no_file_that_can_be_read_is_no_access(tmp_path):
    """They are gone meanwhile."""
    with pytest.raises(FileNotFoundError):
        find_access([Sample(str(tmp_path / "gone"), 5000)], 512)


def test_a_disk_with_errors_is_not_taken_for_one_without_direct_reads(slow_disk, fill):
    """The page cache would still answer for it."""
    folder = fill(slow_disk.path / "set", {"a": BLOCK, "b": BLOCK})
    slow_disk.set_delay(-1)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            find_access(samples(folder), 512)
    finally:
        slow_disk.set_delay(0)


def test_its_access_time_stays(quick_disk, fill):
    """Measuring is not using: of the own files not even the time of access changes."""
    subprocess.run(["mount", "-o", "remount,strictatime", str(quick_disk.path)], check=True)
    folder = fill(quick_disk.path / "set", {"a": BLOCK})
    os.utime(folder / "a", (1000, 1000))
    files = samples(folder)

    read_all(find_access(files, 512), files)

    assert (folder / "a").stat().st_atime == 1000
