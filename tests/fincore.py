"""Which pages of files are in the page cache, as `fincore` of util-linux says; and putting them in or out for tests."""

import json
import os
import subprocess


def cached_bytes(folder):
    """Path -> bytes in the page cache, of every file below a folder."""
    files = sorted(str(file) for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    done = subprocess.run(
        ["fincore", "--json", "--bytes", "--output", "RES,FILE", *files], capture_output=True, text=True, check=True
    )
    return {item["file"]: int(item["res"]) for item in json.loads(done.stdout)["fincore"]}


def unchanged(before, after):
    """Whether no page came in, and none was driven out.

    Kernels of virtual machines take single pages from the page cache by themselves (ballooning), some in a minute:
    up to a twentieth may be missing.
    """
    entered = [name for name, size in after.items() if size > before[name]]
    lost = sum(before[name] - size for name, size in after.items())
    assert not entered, {name: (before[name], after[name]) for name in entered}
    assert lost <= sum(before.values()) / 20, f"{lost} of {sum(before.values())} bytes left the page cache"
    return before.keys() == after.keys()


def put_in(file, size):
    """Read the first bytes of a file as a program would, without readahead."""
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor, size, 0)
    os.close(descriptor)


def put_out(folder):
    """Write back and drop every file below a folder."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
