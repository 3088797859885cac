"""How fast one block is read again that is in memory: what a data set in the page cache is read at, at most."""

from __future__ import annotations

import os
import time
from typing import Final

from gpumon.bench.access import page_aligned

_SECONDS: Final = 0.3


def cached_reads(seconds: float = _SECONDS) -> float | None:
    """Bytes per second of re-reading a block from the page cache; None where there are no files in memory.

    Of a file in memory that is this process's own: no page of any other file comes or goes.
    """
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("gpumon-bench", os.MFD_CLOEXEC)
    except OSError:
        return None
    view, size = page_aligned(), 0
    try:
        os.pwrite(descriptor, view, 0)
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds or not size:
            size += os.preadv(descriptor, [view], 0)
        return size / took
    except OSError:
        return None
    finally:
        os.close(descriptor)
