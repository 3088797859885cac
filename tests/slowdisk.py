"""Real slow storage for tests: slow disks, slow mounts and cgroup limits, made on this machine.

A slow disk is a file system that a process of ours serves (FUSE) with a delay per read, a loop device on
a file in it, and ext4 on that device: the kernel accounts it as it accounts any disk, so that await is
the delay plus about a millisecond. Needs root, loop devices and FUSE (`apt-get install fuse3`,
`pip install mfusepy`); `available()` says what is missing.

    with slow_disk(delay=0.087) as disk:
        (disk.path / "file").write_bytes(data)
        disk.drop_caches()
"""

from __future__ import annotations

import contextlib
import ctypes.util
import errno
import fcntl
import importlib.util
import itertools
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

BLKFLSBUF = 0x1261  # linux/fs.h: drop the page cache of a block device
CGROUP = Path("/sys/fs/cgroup")
_numbers = itertools.count()


def available() -> str | None:
    """None where slow disks can be made, else what is missing and how to get it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    if not Path("/dev/loop-control").exists() or not shutil.which("losetup") or not shutil.which("mkfs.ext4"):
        return "needs loop devices (modprobe loop) and the packages mount and e2fsprogs"
    if not Path("/dev/fuse").exists():
        return "needs /dev/fuse (modprobe fuse)"
    if not (ctypes.util.find_library("fuse3") or ctypes.util.find_library("fuse")):
        return "needs libfuse: apt-get install fuse3"
    if importlib.util.find_spec("mfusepy") is None:
        return "needs mfusepy: pip install mfusepy"
    return None


class Delay:
    """Seconds that every read and every write takes; shared with the process that serves the file system.

    A negative delay of reads: they fail with EIO.
    """

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(16))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), 16)

    def set(self, read: float, write: float = 0.0) -> None:
        self._shared[:] = struct.pack("dd", read, write)

    def get(self) -> tuple[float, float]:
        read, write = struct.unpack("dd", self._shared[:])
        return read, write


class Disk:
    """A mounted ext4 file system on a loop device of its own."""

    def __init__(self, path: Path, device: str, delay: Delay | None) -> None:
        self.path = path
        self.device = device  # "loop0"
        self._delay = delay

    def set_delay(self, seconds: float, write: float = 0.0) -> None:
        """Let every read (and write) take *seconds* from now on."""
        if self._delay is None:
            raise ValueError("a quick disk has no delay")
        self._delay.set(seconds, write)

    def drop_caches(self) -> None:
        """Drop this disk's files and metadata from the page cache, and nothing else of the machine."""
        _drop_files(self.path)
        descriptor = os.open(f"/dev/{self.device}", os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, BLKFLSBUF)
        finally:
            os.close(descriptor)


class Share:
    """A mounted FUSE file system with latency: like a network file system, it has no block device."""

    def __init__(self, path: Path, delay: Delay) -> None:
        self.path = path
        self._delay = delay

    def set_delay(self, seconds: float, write: float = 0.0) -> None:
        self._delay.set(seconds, write)

    def drop_caches(self) -> None:
        _drop_files(self.path)


@contextlib.contextmanager
def slow_disk(delay: float = 0.0, size_mb: int = 512) -> Iterator[Disk]:
    """An ext4 disk whose reads take *delay* seconds each, in parallel like an SSD's."""
    with slow_mount() as share:
        image = share.path / "disk.img"
        with _loop_disk(image, size_mb, direct_io=True) as (path, device):
            disk = Disk(path, device, share._delay)
            disk.set_delay(delay)
            try:
                yield disk
            finally:
                disk.set_delay(0.0)  # or unmounting waits for every write-back


@contextlib.contextmanager
def quick_disk(size_mb: int = 512) -> Iterator[Disk]:
    """An ext4 disk on a loop device over a file of this machine's own disk."""
    with (
        tempfile.TemporaryDirectory(prefix="gpumon-quick-") as folder,
        _loop_disk(Path(folder, "disk.img"), size_mb, direct_io=False) as (path, device),
    ):
        yield Disk(path, device, None)


@contextlib.contextmanager
def slow_mount(delay: float = 0.0) -> Iterator[Share]:
    """A FUSE file system over a temporary folder, with *delay* seconds per read request."""
    root = Path(tempfile.mkdtemp(prefix="gpumon-slow-"))
    backing, mounted, control = root / "backing", root / "mounted", root / "delay"
    backing.mkdir()
    mounted.mkdir()
    shared = Delay(control)
    with (root / "log").open("w") as log:  # some versions of libfuse always warn
        server = subprocess.Popen(
            [sys.executable, __file__, str(backing), str(mounted), str(control)],
            stdin=subprocess.PIPE,  # its end tells the server that we died
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_until_mounted(mounted, server, root / "log")
        _allow_many_requests(mounted)
        shared.set(delay)
        yield Share(mounted, shared)
    finally:
        shared.set(0.0)
        _run("umount", str(mounted)) or _run("umount", "-l", str(mounted))
        assert server.stdin is not None
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGKILL)
            server.wait()
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _loop_disk(image: Path, size_mb: int, *, direct_io: bool) -> Iterator[tuple[Path, str]]:
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    folder = Path(tempfile.mkdtemp(prefix="gpumon-disk-"))
    device = ""
    try:
        options = ["--direct-io=on"] if direct_io else []
        device = _output("losetup", *options, "--find", "--show", str(image))
        _output("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
        _output("mount", "-o", "noatime", device, str(folder))
        yield folder, Path(device).name
    finally:
        if os.path.ismount(folder):
            _umount(folder)
        if device:
            _run("losetup", "-d", device)
        with contextlib.suppress(OSError):
            folder.rmdir()
        image.unlink(missing_ok=True)


class Cgroup:
    """A cgroup of its own in which to run commands under limits."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.limit_file: Path | None = None

    def add(self, pid: int) -> None:
        """Move a process, with all its threads, into the group."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs *arguments* inside the group from its first instruction on."""
        joins = "".join(f"echo $$ > '{folder}/cgroup.procs' && " for folder in self._folders)
        return ["sh", "-c", f'{joins}exec "$@"', "sh", *map(str, arguments)]


@contextlib.contextmanager
def read_quota(
    device: str,
    *,
    bytes_per_s: int | None = None,
    operations_per_s: int | None = None,
    pids: Sequence[int] = (),
) -> Iterator[Cgroup]:
    """A cgroup (v1 blkio or v2 io) that may read only so much from *device* ("loop0")."""
    number = Path(f"/sys/class/block/{device}/dev").read_text().strip()
    with _cgroup("blkio", "io") as (group, folder, version):
        if version == 1:
            for limit, name in ((bytes_per_s, "bps"), (operations_per_s, "iops")):
                if limit is not None:
                    group.limit_file = folder / f"blkio.throttle.read_{name}_device"
                    group.limit_file.write_text(f"{number} {limit}")
        else:
            limits = [f"rbps={bytes_per_s}"] if bytes_per_s is not None else []
            limits += [f"riops={operations_per_s}"] if operations_per_s is not None else []
            group.limit_file = folder / "io.max"
            group.limit_file.write_text(" ".join((number, *limits)))
        for pid in pids:
            group.add(pid)
        yield group


@contextlib.contextmanager
def cpu_quota(cores: float, *, pids: Sequence[int] = ()) -> Iterator[Cgroup]:
    """A cgroup (v1 or v2) that may use *cores* CPUs."""
    with _cgroup("cpu", "cpu") as (group, folder, version):
        if version == 1:
            group.limit_file = folder / "cpu.cfs_quota_us"
            group.limit_file.write_text(str(int(cores * 100_000)))
        else:
            group.limit_file = folder / "cpu.max"
            group.limit_file.write_text(f"{int(cores * 100_000)} 100000")
        for pid in pids:
            group.add(pid)
        yield group


@contextlib.contextmanager
def memory_limit(limit_bytes: int, *, pids: Sequence[int] = ()) -> Iterator[Cgroup]:
    """A cgroup (v1 or v2) that may hold *limit_bytes* of memory, page cache included."""
    with _cgroup("memory", "memory") as (group, folder, version):
        group.limit_file = folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")
        group.limit_file.write_text(str(limit_bytes))
        for pid in pids:
            group.add(pid)
        yield group


def cgroup_unavailable(v1: str, v2: str) -> str | None:
    """None where limits of this controller can be set here, else the reason."""
    try:
        _controller(v1, v2)
    except OSError as error:
        return str(error)
    return None


def _controller(v1: str, v2: str) -> tuple[Path, int]:
    if os.geteuid() == 0 and (CGROUP / v1 / "cgroup.procs").exists():
        return CGROUP / v1, 1
    if os.geteuid() == 0 and v2 in _read(CGROUP / "cgroup.controllers").split():
        if v2 not in _read(CGROUP / "cgroup.subtree_control").split():
            (CGROUP / "cgroup.subtree_control").write_text(f"+{v2}")
        return CGROUP, 2
    raise OSError(f"no cgroup controller {v1} (v1) or {v2} (v2) that we may use")


@contextlib.contextmanager
def _cgroup(v1: str, v2: str) -> Iterator[tuple[Cgroup, Path, int]]:
    parent, version = _controller(v1, v2)
    folder = parent / f"gpumon-test-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        yield Cgroup([folder]), folder, version
    finally:
        for pid in _read(folder / "cgroup.procs").split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        for _attempt in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _drop_files(path: Path) -> None:
    # Write back first: the kernel drops clean pages only.
    descriptor = os.open(path, os.O_RDONLY)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).syncfs(descriptor)
    os.close(descriptor)
    for folder, _folders, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if os.path.isfile(file) and not os.path.islink(file):
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def _wait_until_mounted(folder: Path, server: subprocess.Popen[bytes], log: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not os.path.ismount(folder):
        if server.poll() is not None or time.monotonic() > end:
            raise OSError(f"the FUSE server did not mount (exit code {server.poll()}): {log.read_text()}")
        time.sleep(0.02)


def _allow_many_requests(mounted: Path) -> None:
    """Lift FUSE's limit of 12 requests in the background, which would hide a disk's parallelism."""
    minor = os.minor(os.stat(mounted).st_dev)
    connections = Path("/sys/fs/fuse/connections")
    if not (connections / str(minor)).exists():
        _run("mount", "-t", "fusectl", "none", str(connections))
    for name in ("max_background", "congestion_threshold"):
        with contextlib.suppress(OSError):
            (connections / str(minor) / name).write_text("256")


def _umount(folder: Path) -> None:
    for _attempt in range(20):
        if _run("umount", str(folder)):
            return
        time.sleep(0.1)
    _run("umount", "-l", str(folder))


def _run(*arguments: str) -> bool:
    return subprocess.run(arguments, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def _output(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _serve(backing: str, mounted: str, control: str) -> None:
    """Serve *backing* at *mounted* until unmounted; undo everything when the parent is gone."""
    import threading

    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3" if ctypes.util.find_library("fuse3") else "fuse")
    import mfusepy

    delay = Delay(Path(control))

    class Slow(mfusepy.Operations):
        use_ns = True

        def _at(self, path: str) -> str:
            return backing + path

        def getattr(self, path, fh=None):
            info = os.lstat(self._at(path))
            names = ["mode", "nlink", "uid", "gid", "size"]
            attributes = {f"st_{name}": getattr(info, f"st_{name}") for name in names}
            return attributes | {f"st_{name}time": getattr(info, f"st_{name}time_ns") for name in ("a", "m", "c")}

        def readdir(self, path, fh):
            return [".", "..", *os.listdir(self._at(path))]

        def open(self, path, flags):
            # The kernel has applied O_APPEND already, and pwrite would append again.
            return os.open(self._at(path), flags & ~(os.O_APPEND | os.O_DIRECT))

        def create(self, path, mode, fi=None):
            return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

        def read(self, path, size, offset, fh):
            data = os.pread(fh, size, offset)
            seconds = delay.get()[0]
            if seconds < 0:
                raise OSError(errno.EIO, "a bad sector")
            time.sleep(seconds)
            return data

        def write(self, path, data, offset, fh):
            time.sleep(delay.get()[1])
            return os.pwrite(fh, data, offset)

        def truncate(self, path, length, fh=None):
            os.truncate(self._at(path), length)

        def release(self, path, fh):
            os.close(fh)

        def fsync(self, path, datasync, fh):
            return 0

        def flush(self, path, fh):
            return 0

        def unlink(self, path):
            os.unlink(self._at(path))

        def mkdir(self, path, mode):
            os.mkdir(self._at(path), mode)

        def rmdir(self, path):
            os.rmdir(self._at(path))

        def rename(self, old, new):
            os.rename(self._at(old), self._at(new))

        def chmod(self, path, mode):
            os.chmod(self._at(path), mode)

        def chown(self, path, uid, gid):
            os.chown(self._at(path), uid, gid)

        def utimens(self, path, times=None):
            os.utime(self._at(path), ns=times)

        def symlink(self, target, source):
            os.symlink(source, self._at(target))

        def readlink(self, path):
            return os.readlink(self._at(path))

        def statfs(self, path):
            info = os.statvfs(self._at(path))
            names = ["bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "frsize", "namemax"]
            return {f"f_{name}": getattr(info, f"f_{name}") for name in names}

    def undo_when_orphaned() -> None:
        while os.read(0, 1):
            pass
        delay.set(0.0)
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        for line in _output("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
            device, _, file = line.partition(" ")
            if file.strip().startswith(mounted + "/"):
                for mount in mounts:
                    if mount.split()[0] == device:
                        _run("umount", mount.split()[1]) or _run("umount", "-l", mount.split()[1])
                _run("losetup", "-d", device)
        _run("umount", "-l", mounted)

    threading.Thread(target=undo_when_orphaned, daemon=True).start()
    options: dict[str, object] = {
        "foreground": True,
        "nothreads": False,
        "fsname": "slow",
        "subtype": "gpumon",
    }
    if os.geteuid() == 0:
        options["allow_other"] = True
    version = (mfusepy.fuse_version_major, mfusepy.fuse_version_minor)
    if version >= (3, 12):
        options["max_threads"] = 128  # the default of 10 would serialize deeper queues
    mfusepy.FUSE(Slow(), mounted, **options)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
