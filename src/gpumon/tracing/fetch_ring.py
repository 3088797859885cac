"""One file of shared memory per DataLoader worker: what each of its fetches cost.

The worker writes a record when a fetch ends, and in the header when one begins; the trainer reads. Neither
waits for the other: a record that is overwritten before it was read is counted as lost.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CAPACITY = 1024  # records; four reads a second make 4000 fetches a second and worker
SUFFIX = ".fetches"

_MAGIC = 0x67706D6F6E000001  # "gpmon", format 1
# magic, pid, start time of the process, thread id, worker id, iterator's serial
_IDENTITY = struct.Struct("=Qqqqqq")
_WRITTEN = 48  # records written so far
_BEGIN = 56  # perf_counter_ns at which the fetch in progress began; 0: none
_CLOSED = 64  # 1 when the worker ended in order
_HEADER_BYTES = 128
# 1-based number, begin, end, cpu, runnable, read bytes, idx, generation, number again
_RECORD = struct.Struct("=qqqqqqqqq")
_LONG = struct.Struct("=q")
SIZE = _HEADER_BYTES + CAPACITY * _RECORD.size


class Fetch(NamedTuple):
    """One fetch. Times are `time.perf_counter_ns()`, which all processes of a machine share on Linux."""

    begin_ns: int
    end_ns: int
    cpu_ns: int  # of the fetching thread
    runnable_ns: int  # it wanted a CPU and had none
    read_bytes: int  # what the fetch made a device read
    idx: int  # the DataLoader's number of the batch in the epoch
    generation: int  # how often a persistent iterator began anew


class ThreadClock:
    """CPU time, run-queue delay and read bytes of the thread that makes it, and that must be the one to ask.

    Source: CLOCK_THREAD_CPUTIME_ID; /proc/thread-self/schedstat, 2nd field [ns]; /proc/thread-self/io.
    The run queue's delay covers a cgroup's CPU quota too, a parent's included. What the kernel does not offer
    reads as 0.
    """

    def __init__(self) -> None:
        self._schedstat = _open("/proc/thread-self/schedstat")
        self._io = _open("/proc/thread-self/io")
        try:
            self.runnable_ns()
        except (OSError, ValueError, IndexError):
            os.close(self._schedstat)
            self._schedstat = -1
        try:
            self.read_bytes()
        except (OSError, ValueError):
            os.close(self._io)
            self._io = -1

    def runnable_ns(self) -> int:
        if self._schedstat < 0:
            return 0
        return int(os.pread(self._schedstat, 80, 0).split()[1])

    def read_bytes(self) -> int:
        if self._io < 0:
            return 0
        text = os.pread(self._io, 200, 0)
        at = text.index(b"\nread_bytes: ") + 13
        return int(text[at : text.index(b"\n", at)])

    def close(self) -> None:
        for descriptor in (self._schedstat, self._io):
            if descriptor >= 0:
                os.close(descriptor)
        self._schedstat = self._io = -1


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where it has ended.

    Source: /proc/PID/stat, 22nd field. With the pid, it names a process for ever.
    """
    descriptor = _open(f"/proc/{pid}/stat")
    if descriptor < 0:
        return None
    try:
        text = os.read(descriptor, 1024)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    fields = text[text.rfind(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


class RingWriter:
    """The worker's side; made and used in the thread that fetches.

    Raises:
        OSError: no room or no right to make the file in *folder*.
    """

    def __init__(self, folder: str, worker_id: int, serial: int) -> None:
        pid = os.getpid()
        self._clock = ThreadClock()
        self._map = _create(folder, pid, worker_id, serial)
        self._number = 0
        self._generation = 0
        self._idx = -1
        self._begin = self._cpu = self._runnable = 0
        self._read = self._clock.read_bytes()

    def begin(self, idx: int) -> None:
        """A fetch begins."""
        self._idx = idx
        self._runnable = self._clock.runnable_ns()
        self._cpu = time.thread_time_ns()
        self._begin = time.perf_counter_ns()
        _LONG.pack_into(self._map, _BEGIN, self._begin)

    def end(self) -> None:
        """The fetch has ended: write its record."""
        if not self._begin:
            return
        end = time.perf_counter_ns()
        cpu = time.thread_time_ns()
        clock = self._clock
        runnable = clock.runnable_ns()
        # Between two fetches a worker reads nothing, so one look per fetch is enough.
        read = clock.read_bytes()
        number = self._number + 1
        _RECORD.pack_into(
            self._map,
            _HEADER_BYTES + number % CAPACITY * _RECORD.size,
            number,
            self._begin,
            end,
            cpu - self._cpu,
            runnable - self._runnable,
            read - self._read,
            self._idx,
            self._generation,
            number,
        )
        self._number = number
        self._read = read
        self._begin = 0
        _LONG.pack_into(self._map, _WRITTEN, number)
        _LONG.pack_into(self._map, _BEGIN, 0)

    def drop(self) -> None:
        """What began was no fetch of a batch, or did not come to its end."""
        if self._begin:
            self._begin = 0
            _LONG.pack_into(self._map, _BEGIN, 0)

    def next_generation(self) -> None:
        """The iterator begins anew with this worker."""
        self._generation += 1

    def close(self) -> None:
        """Nothing more will come; the trainer removes the file when it has read it."""
        self.drop()
        _LONG.pack_into(self._map, _CLOSED, 1)
        self._map.close()
        self._clock.close()


def _create(folder: str, pid: int, worker_id: int, serial: int) -> mmap.mmap:
    name = os.path.join(folder, f"{pid}-{worker_id}-{serial}")  # noqa: PTH118 - runs in every worker
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # A sparse file in a full /dev/shm would end the worker with SIGBUS at its first record.
        os.posix_fallocate(descriptor, 0, SIZE)
        shared = mmap.mmap(descriptor, SIZE)
    except OSError:
        os.unlink(name)  # noqa: PTH108
        raise
    finally:
        os.close(descriptor)
    _IDENTITY.pack_into(shared, 0, _MAGIC, pid, start_time(pid) or 0, threading.get_native_id(), worker_id, serial)
    os.rename(name, name + SUFFIX)  # noqa: PTH104 - the reader sees whole headers only
    return shared


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose ring it is."""

    pid: int
    started: int  # clock ticks since boot
    thread: int
    worker_id: int
    serial: int


class RingReader:
    """The trainer's side of one worker's file.

    Raises:
        OSError, ValueError: the file is not (any more) a ring of this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
        magic, *rest = _IDENTITY.unpack_from(self._map, 0)
        if magic != _MAGIC:
            raise ValueError(f"{path} is not a ring of fetches")
        self.identity = Identity(*rest)
        self.lost = 0
        self._next = 1

    def fetch_begin_ns(self) -> int:
        """When the fetch in progress began (`perf_counter_ns`); 0 when there is none."""
        return int(_LONG.unpack_from(self._map, _BEGIN)[0])

    def read(self) -> list[Fetch]:
        """The records written since the last call, oldest first."""
        written = int(_LONG.unpack_from(self._map, _WRITTEN)[0])
        first = max(self._next, written - CAPACITY + 1)
        self.lost += first - self._next
        self._next = first
        fetches = []
        while self._next <= written:
            number = self._next
            head, *values, tail = _RECORD.unpack_from(self._map, _HEADER_BYTES + number % CAPACITY * _RECORD.size)
            if head > number or tail > number:
                self.lost += 1  # the writer came round while we read
            elif head == number == tail:
                fetches.append(Fetch(*values))
            else:
                break  # not yet visible to this CPU: next time
            self._next = number + 1
        return fetches

    def is_closed(self) -> bool:
        """The worker ended in order: nothing more will be written."""
        return bool(_LONG.unpack_from(self._map, _CLOSED)[0])

    def has_ended(self) -> bool:
        """Nothing more will be written: the worker closed its ring, or is gone."""
        return self.is_closed() or start_time(self.identity.pid) != self.identity.started

    def close(self, *, remove: bool) -> None:
        self._map.close()
        if remove:
            self.path.unlink(missing_ok=True)
