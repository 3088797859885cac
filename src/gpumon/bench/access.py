"""How files are read past the page cache, or what comes nearest to it where the file system refuses that."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from gpumon.bench.files import Sample, open_quietly
from gpumon.system.cgroup import Cgroup
from gpumon.system.page_cache import cached_bytes

BLOCK: Final = 1 << 20
"""Bytes of one read."""

Mode = Literal["direct", "uncached", "buffered"]
_USUAL_ALIGNMENT: Final = 4096
COARSE_ALIGNMENT: Final = 65536
_TRIED: Final = 8  # files
_MISTAKES: Final = 3  # pages that came meanwhile may have been read by somebody else
_STATX_DIOALIGN: Final = 0x2000
_RWF_DONTCACHE: Final = 0x80  # Linux 6.14: pages that a read brings in are dropped again
_EIGHTH: Final = 8
_libc: Any = None


@dataclass(frozen=True)
class Access:
    """A way of reading.

    direct: O_DIRECT. uncached: through the page cache, which keeps nothing. buffered: through it, and it keeps all.
    """

    mode: Mode
    alignment: int = 1

    def open(self, path: str) -> int:
        """Raises OSError."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME
        descriptor = open_quietly(path, flags | os.O_DIRECT if self.mode == "direct" else flags)
        if self.mode == "uncached":
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no pages but those that are read
        return descriptor

    def read(self, descriptor: int, view: memoryview, offset: int, length: int) -> int:
        """Read at most *length* bytes; fewer at the file's end. Raises OSError."""
        asked = -(-length // self.alignment) * self.alignment
        flags = _RWF_DONTCACHE if self.mode == "uncached" else 0
        return min(length, os.preadv(descriptor, [view[:asked]], offset, flags))


def page_aligned(size: int = BLOCK) -> memoryview:
    """A buffer for one read, as any program has it: private memory.

    Its pages are there already: some file systems read directly into such pages only.
    """
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer.write(bytes(size))
    return memoryview(buffer)


def find_access(files: Sequence[Sample], block_size: int) -> Access:
    """The first way of reading, best first, that these files can be read by.

    *block_size*: of the device, for kernels that do not say what a direct read has to be aligned to.

    Raises:
        OSError: not one of them could be read.
    """
    view = page_aligned()
    tried = files[:: max(1, len(files) // _TRIED)][:_TRIED]
    modes: tuple[Mode, ...] = ("direct", "uncached", "buffered")
    failure: OSError | None = None
    for mode in modes:
        believed, mistakes, refusals = None, 0, 0
        for file in tried:
            try:
                access, is_proven = _try(mode, file, view, block_size)
            except OSError as error:
                failure = error
                continue
            if access is None:
                refusals += 1
            elif is_proven:
                return access
            elif is_proven is None:
                believed = believed or access
            else:
                mistakes += 1
            if mistakes == _MISTAKES:
                break
        if believed and not mistakes:
            return believed
        if not mistakes and not refusals:
            break
    raise failure or OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _try(mode: Mode, file: Sample, view: memoryview, block_size: int) -> tuple[Access | None, bool | None]:
    """Read a little that is not in the page cache: (None where that is refused, whether the cache was left alone).

    None for the latter: nobody knows, for all of the file is in the page cache already. Raises OSError.
    """
    for alignment in _alignments(file.path, block_size) if mode == "direct" else (1,):
        access = Access(mode, alignment)
        try:
            descriptor = access.open(file.path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                break
            raise
        try:
            offset = _not_cached(descriptor, file.size)
            length = min(_USUAL_ALIGNMENT, file.size)
            access.read(descriptor, view, offset or 0, length)
            after = cached_bytes(descriptor, offset or 0, length)
            if mode == "buffered" or after is None:
                return access, True
            return access, None if offset is None else after == 0
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(descriptor)
    return None, None


def _not_cached(descriptor: int, size: int) -> int | None:
    """Where a block begins of which nothing is in the page cache; None where there is none, or nobody tells."""
    for offset in range(0, min(size, 64 * BLOCK), BLOCK):
        if cached_bytes(descriptor, offset, min(BLOCK, size - offset)) == 0:
            return offset
    return None


def _alignments(path: str, block_size: int) -> tuple[int, ...]:
    told = _told_alignment(path)
    if told is None:
        return max(_USUAL_ALIGNMENT, block_size), COARSE_ALIGNMENT
    return (told,) if told else ()


def _told_alignment(path: str) -> int | None:
    """Alignment of direct reads as statx tells it (Linux 6.1); 0: none are possible; None: it does not tell.

    Some file systems take O_DIRECT and then read through the page cache all the same; here they say so.
    """
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    try:
        failed = _libc.statx(-100, os.fsencode(path), 0, _STATX_DIOALIGN, buffer)
    except AttributeError:
        return None
    if failed or not struct.unpack_from("=I", buffer)[0] & _STATX_DIOALIGN:
        return None
    memory, offset = struct.unpack_from("=II", buffer, 0x98)
    return int(max(memory, offset))


def room_bytes() -> int:
    """Bytes that may enter the page cache and drive nothing out: an eighth of what is free, here and in the cgroup."""
    free = [_meminfo("MemFree")]
    for level in Cgroup().levels("memory"):
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if level.version == 1
            else ("memory.max", "memory.current")
        )
        limit, used = (level.read(name) for name in names)
        if limit.isdigit() and used.isdigit():
            free.append(int(limit) - int(used))
    return max(0, min(free) // _EIGHTH)


def _meminfo(name: str) -> int:
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0
