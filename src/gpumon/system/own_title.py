"""This process' own command line, as `ps` shows it to everybody on the host."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path


def hide_in_title(secret: str) -> None:
    """Overwrite *secret* in it with asterisks, for good; does nothing where it cannot.

    Source: proc(5): arg_start and arg_end in /proc/self/stat, fields 48 and 49.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = int(fields[45]), int(fields[46])
        wanted = secret.encode()
        if not wanted or not 0 < begin < end:
            return
        line = ctypes.string_at(begin, end - begin)
        at = line.find(wanted)
        while at >= 0:
            ctypes.memset(begin + at, ord("*"), len(wanted))
            at = line.find(wanted, at + len(wanted))
