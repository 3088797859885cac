"""What a bench says in words: the sentence, and what has to be known beside the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from gpumon import units
from gpumon.bench.result import Measured, Pattern

_AGAIN: Final = 1.5
"""Data that is read again so much faster comes from a cache below this machine."""
_WORTH_A_WORD: Final = 0.05
_FEW_READS: Final = 10
_LITTLE: Final = 64 << 20
_COMPRESSED: Final = frozenset(("squashfs", "erofs", "cramfs", "zfs"))
_LEFT_OUT: Final = {
    "sparse": "sparse or compressed",
    "compressed": "compressed",
    "preallocated": "preallocated and never written",
    "inline": "so small that they lie in metadata",
    "empty": "empty",
    "unreadable": "unreadable",
    "vanished": "vanished",
}


def place(found: Measured) -> str:
    """`loop0 (ext4 under /data)`."""
    storage = found.storage
    under = f"{storage.file_system} under {storage.mount_point}" if storage.mount_point else storage.file_system
    if found.name == storage.mount_point:
        return f"{storage.mount_point} ({storage.file_system})"
    return f"{found.name} ({under})" if under else found.name


def unit(whole: int, large: int) -> str:
    """What is read in one go, of so many files that are read whole and so many large ones."""
    if not large:
        return "whole files"
    return "files (blocks of 1 MiB of large ones)" if whole else "blocks of 1 MiB"


def pattern(name: str, parallel: int) -> str:
    """`in order, 8 at a time`."""
    order = "in order" if name == "sequential" else "in random order"
    return f"{order}, {'one' if parallel == 1 else parallel} at a time"


def in_memory(found: Measured) -> str:
    return f"{place(found)} is RAM: there is nothing to measure."


def no_files(found: Measured) -> str:
    return f"{place(found)} holds no file that reading would say something of{left_out(found.left_out)}."


def unreadable(found: Measured, reason: str) -> str:
    return f"{place(found)}: none of its files could be read: {reason}."


def no_room(found: Measured, room: int) -> str:
    return (
        f"{place(found)} refuses direct reads, and reading through the page cache could drive other pages out: "
        f"only {units.size(8 * room)} of memory are free. Nothing was measured."
    )


def sentence(found: Measured) -> str:
    """What this storage gives, for a person."""
    by_name: dict[str, list[Pattern]] = {"sequential": [], "random": []}
    for item in found.patterns:
        if item.figures.reads:
            by_name[item.name].append(item)
    if not by_name["sequential"] and not by_name["random"]:
        problems = {reason for item in found.patterns for reason in item.figures.problems}
        if problems:
            return f"{place(found)} could not be read: {', '.join(sorted(problems))}."
        if any(item.figures.is_cut for item in found.patterns):
            return f"{place(found)} does not answer: not one read came back in time."
        return f"{place(found)}: all of its files that were looked at are in the page cache; nothing was measured."
    said = []
    if first := by_name["sequential"]:
        one, *more = _given(first)
        said.append(f"gives {one} read in order{''.join(f', {text} at a time' for text in more)}")
    if last := by_name["random"]:
        one, *more = _given(last)
        said.append(
            f"{last[0].unit} in random order, as a loader reads: {one} by one reader"
            f"{''.join(f', {text} at a time' for text in more)}"
        )
    cached = " Most of that came from a cache of this system, not from the disk." if _cached(found) >= 0.5 else ""
    return f"{place(found)} {'; '.join(said)}.{cached}"


def _cached(found: Measured) -> float:
    """Share of all that was read."""
    size = sum(item.figures.size for item in found.patterns)
    return sum((item.cached_fraction or 0.0) * item.figures.size for item in found.patterns) / size if size else 0.0


def _given(patterns: list[Pattern]) -> list[str]:
    """`89 MB/s`, `710 MB/s 8`."""
    return [
        units.rate(item.figures.bytes_per_s) + ("" if item.parallel == 1 else f" with {item.parallel}")
        for item in patterns
    ]


def notes(found: Measured, *, is_told: bool = True) -> Iterator[str]:
    """What the figures mean here. *is_told*: the kernel said what was in the page cache."""
    yield _how(found, is_told)
    if text := _where(found):
        yield text
    for value, what, source in found.limits:
        shown = units.rate(value) if what == "bytes" else f"{units.number(value)} reads/s"
        yield f"A limit of {shown} holds for this process ({source}): the figures are its, not the disk's."
    yield from _of_patterns(found)
    if found.size < _LITTLE:
        yield (
            f"Only {units.size(found.size)} of data, read over and over: a cache in the disk or below this system "
            "may have answered."
        )
    if (cached := _cached(found)) >= _WORTH_A_WORD:
        yield f"{units.percent(cached)} of what was read came from a cache of this system, not from the disk."
    if found.left_out:
        yield f"Files left out{left_out(found.left_out)}."


def _how(found: Measured, is_told: bool) -> str:
    if found.access == "direct":
        return "Read past the page cache (O_DIRECT): nothing was taken from it, nothing added."
    if found.access == "uncached":
        text = "Direct reads are refused here: read through the page cache, which kept nothing of it"
    else:
        size = sum(item.figures.size for item in found.patterns)
        text = (
            f"Direct reads are refused here: read through the page cache, with its readahead, and once; "
            f"{units.size(size)} of the data are in it now"
        )
    if is_told:
        return f"{text}. Only what was not in it yet was read."
    return f"{text}. What had been in it already is not told to this user: the figures may be those of memory."


def _where(found: Measured) -> str | None:
    storage = found.storage
    if storage.kind == "network":
        return (
            "A network file system, or one served by a program: the figures are those of the way to its server and "
            "of the server's cache too."
        )
    if storage.kind == "container":
        return "A container's layers: which disk is below cannot be seen from here; measured through them."
    if storage.file_system in _COMPRESSED:
        return f"{storage.file_system} may compress: the figures are of data as programs get it."
    if storage.device is None:
        return "No device could be found below: measured through the file system."
    return None


def _of_patterns(found: Measured) -> Iterator[str]:
    for item in found.patterns:
        figures, name = item.figures, pattern(item.name, item.parallel)
        if figures.problems:
            told = ", ".join(f"{reason} ({count} times)" for reason, count in figures.problems.most_common(3))
            yield f"{name}: files that could not be read to their end: {told}."
        if not figures.reads:
            continue
        first, highest = figures.first_bytes_per_s, figures.highest_bytes_per_s
        if first and highest and highest >= _AGAIN * first:
            yield (
                f"{name}: {units.rate(first)} at first, {units.rate(highest)} when read again: "
                "a cache below this system answers."
            )
        if figures.is_cut or figures.reads < _FEW_READS:
            yield f"{name}: only {figures.reads} read{'' if figures.reads == 1 else 's'} came back in time."
        if figures.is_own_limit:
            yield f"{name}: the disk gives at least this; reads so small were not asked for any faster."
        if (item.others_bytes_per_s or 0.0) >= _WORTH_A_WORD * figures.bytes_per_s:
            yield f"{name}: {units.rate(item.others_bytes_per_s or 0.0)} were others' meanwhile, or metadata."


def left_out(counts: Mapping[str, int]) -> str:
    """`: 2 empty, 1 sparse or compressed`; nothing where nothing was."""
    parts = [f"{count} {_LEFT_OUT.get(reason, reason)}" for reason, count in sorted(counts.items())]
    return f": {', '.join(parts)}" if parts else ""
