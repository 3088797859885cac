"""What a blocked thread waits on: a disk, a network file system, a socket, another thread, …

Source: /proc/PID/task/TID/syscall (number and arguments of the call that it is blocked in), then
/proc/PID/fd and fdinfo (the file, its mount, and by that the device). All of it is readable without root
for one's own processes. No file system is ever asked anything: one that hangs would hang us too.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gpumon.system.datasets import DATASETS, Datasets
from gpumon.system.storage import Storage, StorageMap
from gpumon.tracing import syscalls

_AT_FDCWD = (1 << 64) - 100
_AT_FDCWD_32 = (1 << 32) - 100
_POLLFD = struct.Struct("=ihh")
_MAX_DESCRIPTORS = 16  # looked at, of those that one poll, select or epoll waits for
_MAX_OPEN = 256
_LOW = 32  # descriptors of which fdinfo may stay open
_MAX_DEPTH = 3  # processes below a worker: a shell, its decoder
_WITHOUT_DATA = ("/usr/", "/lib", "/dev/", "/memfd:", "/SYSV", "/etc/", sys.prefix, sys.base_prefix)

# Where /proc/…/syscall is refused or absent: the kernel function that the thread sleeps in.
_KERNEL_FUNCTIONS = {
    "request_wait_answer": "network_fs",
    "rpc_wait_bit_killable": "network_fs",
    "wait_woken": "socket",
    "folio_wait_bit_common": "disk",
    "io_schedule": "disk",
    "futex_do_wait": "futex",
    "futex_wait_queue": "futex",
    "hrtimer_nanosleep": "sleep",
    "do_nanosleep": "sleep",
    "do_wait": "child",
    "pipe_read": "pipe",
}


class WaitPoint(NamedTuple):
    """The account that a blocked second belongs to."""

    account: str  # one of metrics.FETCH_ACCOUNTS
    device: str = ""  # kernel name, of blocked.disk
    call: str = ""  # of blocked.other
    file_system: str = ""  # of blocked.network_fs


Shares = list[tuple[WaitPoint, float]]
"""What one look at a thread says; the shares add up to one. Empty: nothing."""

CPU = WaitPoint("cpu")
SLEEP = WaitPoint("blocked.sleep")
SOCKET = WaitPoint("blocked.socket")
MEMORY = WaitPoint("blocked.memory")
_RUNNING = b"running"
_TELLING = ("blocked.disk", "blocked.network_fs", "blocked.socket", "cpu")
_ON_FILES = ("blocked.disk", "blocked.network_fs")


def other(call: str) -> WaitPoint:
    return WaitPoint("blocked.other", call=call)


class WaitPoints:
    """Looks at threads. Not thread-safe: one thread of ours uses it.

    `seen` counts the file systems on which threads were found blocked; `files` has a file of each, where it
    is known. `reads` counts threads looked at; no look at helper threads begins once it has reached `limit`.
    """

    def __init__(self, storage_map: StorageMap, datasets: Datasets = DATASETS, machine: str | None = None) -> None:
        self._storage_map = storage_map
        self._datasets = datasets
        self._calls = syscalls.table(machine)
        self._files: dict[tuple[int, str], int] = {}  # kept open
        self._mounts: dict[tuple[int, int], Storage] = {}
        self._mapped: dict[int, tuple[int, WaitPoint | None]] = {}
        self.seen: Counter[Storage] = Counter()
        self.files: dict[Storage, str] = {}
        self.reads = 0
        self.limit = 1 << 62
        self.refused: str | None = None  # why a look was not possible, for what the report says is missing

    def look(self, pid: int, thread: int) -> Shares:
        """What a thread that is inside a fetch waits on; empty when it runs, is gone or may not be seen.

        A thread of our own process in a futex most likely waits for the GIL that we hold while looking: that
        says nothing, unless another thread of ours is blocked on a file.
        """
        point = self._point(pid, thread, 0)
        if point is None or point == CPU:
            return []
        if point.call == "futex":
            helpers = self._helpers(pid, thread, 0)
            if pid == os.getpid():
                helpers = [helper for helper in helpers if helper.account in _ON_FILES]
                return _even(helpers)
            return _even(helpers) or [(point, 1.0)]
        if point.call in ("child", "pipe", "unix_socket"):
            return _even(self._children(pid, thread, 0)) or [(point, 1.0)]
        return [(point, 1.0)]

    def forget(self, pid: int) -> None:
        """A process has ended."""
        for key in [key for key in self._files if key[0] == pid]:
            os.close(self._files.pop(key))
        self._mapped.pop(pid, None)
        self._mounts.clear()

    def close(self) -> None:
        for pid in {pid for pid, _thread in self._files}:
            self.forget(pid)

    # -- one thread ---------------------------------------------------------------------------------

    def _point(self, pid: int, thread: int, depth: int) -> WaitPoint | None:
        self.reads += 1
        if not self._calls:
            return self._by_kernel_function(pid, thread)
        try:
            text = self._read(pid, f"task/{thread}/syscall", keep=depth == 0)
        except ProcessLookupError:
            return None
        except FileNotFoundError:
            if Path(f"/proc/{pid}/task/{thread}/stat").exists():
                self.refused = "/proc/PID/task/TID/syscall does not exist"
                return self._by_kernel_function(pid, thread)
            return None
        except OSError as error:
            self.refused = f"/proc/PID/task/TID/syscall: {error.strerror}"
            return self._by_kernel_function(pid, thread)
        if text.startswith(_RUNNING):
            return CPU
        fields = text.split()
        number = int(fields[0])
        if number < 0:
            return self._fault(pid)
        name, waits = self._calls.get(number, (f"syscall {number}", "other"))
        arguments = [int(field, 16) for field in fields[1:4]]
        try:
            return self._blocked_in(pid, name, waits, arguments)
        except (OSError, ValueError, struct.error):  # the process or its descriptor is gone meanwhile
            return other(name)

    def _read(self, pid: int, name: str, *, keep: bool) -> bytes:
        """What a file in /proc/PID says now; opening it costs more than reading it, so some stay open.

        Raises:
            OSError: it is gone, or not for us to read.
        """
        key = (pid, name)
        descriptor = self._files.get(key)
        if descriptor is None:
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            if not keep or len(self._files) >= _MAX_OPEN:
                try:
                    return os.pread(descriptor, 4096, 0)
                finally:
                    os.close(descriptor)
            self._files[key] = descriptor
        try:
            return os.pread(descriptor, 4096, 0)
        except OSError:
            os.close(self._files.pop(key))
            raise

    def _blocked_in(self, pid: int, name: str, waits: syscalls.Waits, arguments: list[int]) -> WaitPoint:
        if waits == "file":
            return self._descriptor(pid, arguments[0], name)
        if waits == "second":
            return self._descriptor(pid, arguments[1], name)
        if waits == "path":
            return self._path(pid, _AT_FDCWD, arguments[0], name)
        if waits == "path_at":
            return self._path(pid, arguments[0], arguments[1], name)
        if waits == "mapping":
            return self._fault(pid)
        if waits == "sleep":
            return SLEEP
        if waits == "poll":
            return self._poll(pid, arguments, name)
        if waits == "select":
            return self._select(pid, arguments, name)
        if waits == "epoll":
            return self._epoll(pid, arguments[0], name)
        if waits == "async_io":
            return self._of_datasets() or other(name)
        if waits == "lock":
            return other("file_lock")
        return other(waits if waits in ("futex", "child") else name)

    def _by_kernel_function(self, pid: int, thread: int) -> WaitPoint | None:
        try:
            name = Path(f"/proc/{pid}/task/{thread}/wchan").read_text()
        except OSError:
            return None
        what = _KERNEL_FUNCTIONS.get(name)
        if what is None:
            return None
        if what == "disk":
            return self._of_datasets() or WaitPoint("blocked.disk")
        if what == "network_fs":
            return self._of_datasets() or WaitPoint("blocked.network_fs")
        return {"socket": SOCKET, "sleep": SLEEP}.get(what) or other(what)

    # -- descriptors --------------------------------------------------------------------------------

    def _descriptor(self, pid: int, number: int, call: str) -> WaitPoint:
        number &= 0xFFFFFFFF
        mount = _mount_id(self._read(pid, f"fdinfo/{number}", keep=number < _LOW))
        storage = self._mounts.get((pid, mount))
        if storage is None:
            target = os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115 - must not touch the target
            if target.startswith("socket:"):
                return _socket(pid, number)
            if target.startswith("pipe:"):
                return other("pipe")
            if not target.startswith("/"):
                return other(target.removeprefix("anon_inode:").strip("[]") or call)
            if target.startswith("/dev/") and not target.startswith("/dev/shm/"):
                return other(call)
            if len(self._mounts) > 256:
                self._mounts.clear()
            storage = self._mounts[pid, mount] = self._storage_map.of_mount(mount, pid)
            self.files.setdefault(storage, target)
        return self._on(storage)

    def _any(self, pid: int, numbers: list[int], call: str) -> WaitPoint:
        """The most telling of the descriptors that one call waits for."""
        if not numbers:
            return SLEEP
        points = []
        for number in numbers[:_MAX_DESCRIPTORS]:
            try:
                points.append(self._descriptor(pid, number, call))
            except (OSError, ValueError):
                continue
        for point in points:
            if point.account != "blocked.other":
                return point
        return points[0] if points else other(call)

    def _poll(self, pid: int, arguments: list[int], call: str) -> WaitPoint:
        count = min(arguments[1], _MAX_DESCRIPTORS)
        memory = _memory(pid, arguments[0], count * _POLLFD.size) if count else b""
        numbers = [number for number, _wanted, _got in _POLLFD.iter_unpack(memory) if number >= 0]
        return self._any(pid, numbers, call)

    def _select(self, pid: int, arguments: list[int], call: str) -> WaitPoint:
        size = (min(arguments[0], 1024) + 63) // 64 * 8
        numbers: list[int] = []
        for pointer in arguments[1:3]:
            if pointer and size:
                bits = int.from_bytes(_memory(pid, pointer, size), "little")
                numbers += [number for number in range(size * 8) if bits >> number & 1]
        return self._any(pid, numbers, call)

    def _epoll(self, pid: int, number: int, call: str) -> WaitPoint:
        text = self._read(pid, f"fdinfo/{number & 0xFFFFFFFF}", keep=False)
        numbers = [int(line.split()[1]) for line in text.splitlines() if line.startswith(b"tfd:")]
        point = self._any(pid, numbers, call)
        # An event loop wakes itself through a socket or pipe of its own: alone, that says nothing.
        return other("epoll") if point.account == "blocked.other" or not numbers else point

    # -- paths and mapped files ---------------------------------------------------------------------

    def _path(self, pid: int, folder: int, pointer: int, call: str) -> WaitPoint:
        text = _memory(pid, pointer, 4096 - pointer % 4096)
        path = os.fsdecode(text.partition(b"\0")[0])
        if not path.startswith("/"):
            if folder not in (_AT_FDCWD, _AT_FDCWD_32):
                return self._descriptor(pid, folder, call)
            path = os.path.join(os.readlink(f"/proc/{pid}/cwd"), path)  # noqa: PTH115, PTH118
        return self._on_path(path)

    def _fault(self, pid: int) -> WaitPoint:
        """A page fault: the kernel does not tell of which mapping, so of the largest mapped data file."""
        looks, point = self._mapped.get(pid, (0, None))
        if looks % 32 == 0:  # a worker has a thousand mappings: about a millisecond
            point = self._of_mappings(pid)
        self._mapped[pid] = (looks + 1, point)
        # Without mapped data it is memory that was taken away: swapped out, or code that was evicted.
        return point or self._of_datasets() or MEMORY

    def _of_mappings(self, pid: int) -> WaitPoint | None:
        sizes: Counter[str] = Counter()
        code = set()
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            fields = line.split(None, 5)
            if len(fields) < 6 or not fields[5].startswith("/"):
                continue
            path = fields[5]
            if "x" in fields[1] or path.endswith((".so", "(deleted)")) or ".so." in path:
                code.add(path)
            elif not path.startswith(_WITHOUT_DATA):
                begin, _, end = fields[0].partition("-")
                sizes[path] += int(end, 16) - int(begin, 16)
        data = [(path, size) for path, size in sizes.most_common() if path not in code]
        return self._on_path(data[0][0]) if data else None

    def _of_datasets(self) -> WaitPoint | None:
        """Where the data sets are, if that is one place."""
        points = {_point_of(storage) for storage in self._datasets.storages()} - {MEMORY}
        if len(points) == 1:
            return points.pop()
        if points and all(point.account == "blocked.disk" for point in points):
            return WaitPoint("blocked.disk")
        return None

    def _on_path(self, path: str) -> WaitPoint:
        storage = self._storage_map.of_path(path)
        storage = replace(storage, path=storage.mount_point)
        self.files.setdefault(storage, path)
        return self._on(storage)

    def _on(self, storage: Storage) -> WaitPoint:
        self.seen[storage] += 1
        return _point_of(storage)

    # -- who is waited for --------------------------------------------------------------------------

    def _helpers(self, pid: int, thread: int, depth: int) -> list[WaitPoint]:
        """What the other threads of a process do, as far as it explains that one waits for them."""
        try:
            threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
        except OSError:
            return []
        found = []
        for helper in threads:
            if helper == thread:
                continue
            if self.reads >= self.limit:
                break
            point = self._point(pid, helper, depth + 1)
            if point is not None and point.account in _TELLING:
                found.append(point)
        return found

    def _children(self, pid: int, thread: int, depth: int) -> list[WaitPoint]:
        try:
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
        except OSError:
            return []
        found = []
        for child in map(int, text.split()):
            if self.reads >= self.limit:
                break
            point = self._point(child, child, depth + 1)
            if point is None:
                continue
            if point.account in _TELLING:
                found.append(point)
            elif point.call == "futex":
                found += self._helpers(child, child, depth + 1)
            elif depth + 1 < _MAX_DEPTH:
                found += self._children(child, child, depth + 1)
        return found


def _point_of(storage: Storage) -> WaitPoint:
    if storage.kind == "network":
        return WaitPoint("blocked.network_fs", file_system=storage.file_system)
    if storage.kind == "memory":
        return MEMORY
    return WaitPoint("blocked.disk", device=storage.device or "")


def _even(points: list[WaitPoint]) -> Shares:
    return [(point, count / len(points)) for point, count in Counter(points).items()]


def _socket(pid: int, number: int) -> WaitPoint:
    try:
        protocol = os.getxattr(f"/proc/{pid}/fd/{number}", "system.sockprotoname").rstrip(b"\0")
    except OSError:
        return SOCKET
    return other("unix_socket") if protocol.startswith(b"UNIX") else SOCKET


def _mount_id(text: bytes) -> int:
    at = text.index(b"mnt_id:")
    return int(text[at + 7 : text.index(b"\n", at)])


def _memory(pid: int, address: int, size: int) -> bytes:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)
