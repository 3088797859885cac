"""Reads by one pattern for some seconds: how many bytes a second, how evenly, how long each read took."""

from __future__ import annotations

import itertools
import os
import resource
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gpumon.bench.access import BLOCK, COARSE_ALIGNMENT, Access, page_aligned
from gpumon.bench.aside import Aside
from gpumon.bench.plan import Piece

SECONDS: Final = 3.0
MOST: Final = 1 << 30
"""Bytes of a pattern at most."""
_PATIENCE_S: Final = 10.0
"""Of reads that were under way when the time was up."""
_SHORTEST_S: Final = 0.1  # a stretch whose rate counts
_OWN_LIMIT: Final = 0.7
_MAX_OPEN: Final = 128
_PAGE: Final = 4096


@dataclass(frozen=True)
class Figures:
    """What reading gave. None: not known, or nothing to say."""

    size: int = 0  # bytes
    pages_size: int = 0  # bytes of the pages that hold them: what a device reads for them at most
    seconds: float = 0.0
    reads: int = 0
    lowest_bytes_per_s: float | None = None  # of the rounds, where the same data was read again
    highest_bytes_per_s: float | None = None
    first_bytes_per_s: float | None = None
    latency_s: tuple[float, float] | None = None  # median, 99th percentile of single reads
    problems: Counter[str] = field(default_factory=Counter)  # reads that failed, by reason
    is_cut: bool = False  # reads were still under way when patience ended
    is_own_limit: bool = False  # this program could not ask faster

    @property
    def bytes_per_s(self) -> float:
        return self.size / self.seconds if self.seconds > 0 else 0.0


def measure(
    pieces: Sequence[Piece],
    access: Access,
    parallel: int,
    *,
    seconds: float = SECONDS,
    most: int = MOST,
    progress: Callable[[float], None] = lambda _share: None,
) -> Figures:
    """Read *pieces*, round after round, by *parallel* readers until *seconds* or *most* bytes are over.

    Buffered reads end after the first round: the second would come from the page cache.
    """
    reading = _Reading(pieces, access, seconds, most)
    before_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    readers = Aside([reading.read] * parallel)
    began = reading.start()

    def report() -> bool:
        progress(min(1.0, (time.perf_counter() - began) / seconds))
        return False

    try:
        is_done = readers.wait(time.monotonic() + seconds + _PATIENCE_S, report)
    finally:
        reading.stop()
    used_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before_s
    return reading.figures(is_cut=not is_done, used_s=used_s, with_latency=parallel == 1)


class _Reading:
    def __init__(self, pieces: Sequence[Piece], access: Access, seconds: float, most: int) -> None:
        self._pieces, self._access, self._seconds = pieces, access, seconds
        self.round_bytes = sum(piece.length for piece in pieces)
        self._limit = len(pieces) if access.mode == "buffered" else _number(pieces, self.round_bytes, most)
        longest = min(BLOCK, max((piece.length for piece in pieces), default=0))
        self._buffer_bytes = -(-max(1, longest) // COARSE_ALIGNMENT) * COARSE_ALIGNMENT
        self._numbers = itertools.count()
        self._go = threading.Event()
        self._until = 0.0
        self._logs: list[array[float]] = []  # began, ended, bytes; began, ended, bytes; …
        self._problems: list[str] = []

    def start(self) -> float:
        began = time.perf_counter()
        self._until = began + self._seconds
        self._go.set()
        return began

    def stop(self) -> None:
        self._until = 0.0

    def read(self) -> None:
        """One reader: the next piece, until the time or the bytes are over."""
        log: array[float] = array("d")
        self._logs.append(log)
        view, opened = page_aligned(self._buffer_bytes), dict[str, int]()
        self._go.wait()
        try:
            for number in self._numbers:
                if number >= self._limit or time.perf_counter() >= self._until:
                    return
                if number >= 2 * len(self._pieces) and not any(self._logs):
                    return  # nothing of it can be read
                self._read(self._pieces[number % len(self._pieces)], view, opened, log)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    def _read(self, piece: Piece, view: memoryview, opened: dict[str, int], log: array[float]) -> None:
        clock, path = time.perf_counter, piece.file.path
        try:
            descriptor = opened.get(path)
            if descriptor is None:
                if len(opened) >= _MAX_OPEN:
                    os.close(opened.pop(next(iter(opened))))
                descriptor = opened[path] = self._access.open(path)
            at, end = piece.offset, piece.offset + piece.length
            while at < end and clock() < self._until:
                asked = min(BLOCK, end - at)
                began = clock()
                got = self._access.read(descriptor, view, at, asked)
                ended = clock()
                if got > 0:
                    log.extend((began, ended, got))
                if got < asked:
                    self._problems.append("became shorter")
                    break
                at += got
        except FileNotFoundError:
            self._problems.append("vanished")
        except OSError as error:
            self._problems.append(error.strerror or type(error).__name__)
        finally:
            # A loader opens each file; parts of large files are taken from open ones.
            if piece.length == piece.file.size and path in opened:
                os.close(opened.pop(path))

    def figures(self, *, is_cut: bool, used_s: float, with_latency: bool) -> Figures:
        reads = [tuple(log[at : at + 3]) for log in list(self._logs) for at in range(0, len(log) // 3 * 3, 3)]
        problems = Counter(self._problems)
        if not reads:
            return Figures(problems=problems, is_cut=is_cut)
        reads.sort(key=lambda read: read[1])
        begin = min(began for began, _, _ in reads)
        seconds = max(reads[-1][1] - begin, 1e-9)
        rates = _rates(reads, begin, self.round_bytes)
        took = sorted(ended - began for began, ended, _ in reads)
        return Figures(
            size=int(sum(size for _, _, size in reads)),
            pages_size=int(sum(-(-size // _PAGE) * _PAGE for _, _, size in reads)),
            seconds=seconds,
            reads=len(reads),
            lowest_bytes_per_s=min(rates) if len(rates) > 1 else None,
            highest_bytes_per_s=max(rates) if len(rates) > 1 else None,
            first_bytes_per_s=rates[0] if len(rates) > 1 else None,
            latency_s=(_quantile(took, 0.5), _quantile(took, 0.99)) if with_latency else None,
            problems=problems,
            is_cut=is_cut,
            is_own_limit=used_s >= _OWN_LIMIT * seconds,
        )


def _number(pieces: Sequence[Piece], round_bytes: int, most: int) -> int:
    """How many pieces, round after round, are read until *most* bytes; one at least."""
    if not round_bytes:
        return 0
    left, number = most % round_bytes, most // round_bytes * len(pieces)
    for piece in pieces:
        left -= piece.length
        if left < 0:
            break
        number += 1
    return max(1, number)


def _rates(reads: Sequence[tuple[float, ...]], begin: float, round_bytes: int) -> list[float]:
    """Bytes per second of each round, in order; short ones, and what the end left of one, are taken together."""
    ends, size = [(begin, 0.0)], 0.0
    next_end = float(round_bytes)
    for _, ended, length in reads:
        size += length
        if size >= next_end:
            next_end += round_bytes
            if ended - ends[-1][0] >= _SHORTEST_S:
                ends.append((ended, size))
    if len(ends) > 1:
        ends[-1] = (reads[-1][1], size)  # the mean of all is between the lowest and the highest then
    return [(size - before) / (end - begin) for (begin, before), (end, size) in itertools.pairwise(ends)]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
