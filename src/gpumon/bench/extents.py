"""Whether reading a file reads the disk: files with holes, compressed or never written give figures of fantasy."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FIEMAP: Final = 0xC020660B  # FS_IOC_FIEMAP, see fiemap.h
_HEADER, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x")
_EXTENTS: Final = 128  # of a file that are looked at
_LAST, _UNALLOCATED, _ENCODED, _INLINE, _UNWRITTEN = 0x1, 0x4, 0x8, 0x200, 0x800
_ON_DISK: Final = 0.9
"""Share of its bytes that a file must have on the disk as they are."""


def is_sparse(info: os.stat_result) -> bool:
    """Whether it has fewer blocks than its size needs: holes, or compressed by a file system that says so."""
    return info.st_blocks * 512 < _ON_DISK * info.st_size


def unlike_data(descriptor: int, size: int) -> str | None:
    """Why reading this file would not read as much from the disk: compressed, preallocated, inline; None: it would.

    What still waits to be written for the first time is written. File systems that do not tell are believed.
    """
    extents = _extents(descriptor, size)
    total = sum(length for length, _ in extents)
    if not total:
        return None
    if any(flags & _UNALLOCATED for _, flags in extents):
        os.fdatasync(descriptor)
    for reason, flag in (("compressed", _ENCODED), ("preallocated", _UNWRITTEN), ("inline", _INLINE)):
        if sum(length for length, flags in extents if flags & flag) > (1 - _ON_DISK) * total:
            return reason
    return None


def _extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """(bytes, flags) of the first extents below *size*; empty where the file system has no such list."""
    buffer = bytearray(_HEADER.size + _EXTENTS * _EXTENT.size)
    _HEADER.pack_into(buffer, 0, 0, size, 0, 0, _EXTENTS, 0)
    try:
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
    except OSError:
        return []
    count = _HEADER.unpack_from(buffer)[3]
    found = []
    for number in range(count):
        at, _physical, length, flags = _EXTENT.unpack_from(buffer, _HEADER.size + number * _EXTENT.size)
        if at < size:
            found.append((min(length, size - at), flags))
    return found
