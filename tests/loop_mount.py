"""File systems in a file, mounted: for what only one of them does."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path


@contextlib.contextmanager
def loop_mount(*mkfs, size_mb=320, options=(), kind=None):
    """Make a file system with *mkfs* (the image is the last argument) and mount it: (folder, device)."""
    with tempfile.TemporaryDirectory(prefix="gpumon-image-") as name:
        image, folder = Path(name, "image"), Path(name, "mounted")
        folder.mkdir()
        if size_mb:
            with image.open("wb") as file:
                file.truncate(size_mb << 20)
        subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
        with loop_device(image) as device:
            given = ["-o", ",".join(options)] if options else []
            subprocess.run(["mount", *given, *(["-t", kind] if kind else []), device, str(folder)], check=True)
            try:
                yield folder, Path(device).name
            finally:
                _umount(folder)


@contextlib.contextmanager
def loop_device(image):
    """A loop device on a file: its path."""
    done = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", str(image)], check=True, capture_output=True, text=True
    )
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def mounted(*arguments):
    """`mount` with these arguments, the last one the folder."""
    subprocess.run(["mount", *map(str, arguments)], check=True)
    try:
        yield Path(arguments[-1])
    finally:
        _umount(arguments[-1])


def _umount(folder):
    for _attempt in range(50):
        if subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def kernel_has(file_system):
    """Whether this kernel mounts such file systems, or may load what does."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", file_system], capture_output=True)
    return f"\t{file_system}\n" in Path("/proc/filesystems").read_text() and os.geteuid() == 0
