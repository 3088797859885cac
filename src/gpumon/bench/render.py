"""The result of a bench as text: the sentence first, then the figures, then what has to be known beside them."""

from __future__ import annotations

import contextlib
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from gpumon import units
from gpumon.analysis.render_text import stand_ins
from gpumon.bench.result import Bench, Measured, Pattern

PIPE_WIDTH: Final = 100
WIDEST: Final = 120
_NARROWEST: Final = 24
_HEADER: Final = ("pattern", "at a time", "throughput", "lowest", "highest", "p50", "p99", "reads")


def write_bench(result: Bench, stream: TextIO) -> None:
    """Print the result, fitted to the stream."""
    text = render(result, _width(stream))
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        text = stand_ins(text)
    stream.write(text)
    stream.flush()


def render(result: Bench, width: int = PIPE_WIDTH) -> str:
    """The result as text of at most *width* columns, but for the table, with a newline at its end."""
    lines: list[str] = []
    for storage in result.storages:
        lines += ["", *_wrapped(storage.sentence, width)]
        if storage.patterns:
            lines += ["", *_table(storage, result.cached_bytes_per_s, width)]
        if about := _about(storage, result):
            lines += ["", *about]
        for note in storage.notes:
            lines += _wrapped(note, width, "- ", "  ")
    return "\n".join(lines[1:]) + "\n"


@contextlib.contextmanager
def progress(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """One line that says what is going on, redrawn in place and gone at the end; nothing where nobody watches."""
    is_shown = stream.isatty()
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if is_shown and text != last:
            stream.write(f"\r\x1b[2K{text[: _width(stream) - 1]}")
            stream.flush()
            last = text

    try:
        yield show
    finally:
        show("")


def _table(storage: Measured, cached_bytes_per_s: float | None, width: int) -> Iterator[str]:
    rows = [_row(pattern) for pattern in storage.patterns]
    if cached_bytes_per_s is not None:
        rows.append(("one block again, cached", "1", units.rate(cached_bytes_per_s), "", "", "", "", ""))
    table = [_HEADER, *rows]
    spans = [max(len(row[column]) for row in table) for column, _ in enumerate(_HEADER)]
    if sum(spans) + 2 * len(spans) > width:
        for row in rows:
            told = (f"{name} {text}" for name, text in zip(_HEADER[3:], row[3:], strict=True) if text)
            yield from _wrapped(f"{row[0]}, {row[1]} at a time: {', '.join((row[2], *told))}", width, " ", "   ")
        return
    for row in table:
        cells = [text.ljust(span) if column == 0 else text.rjust(span) for column, (text, span) in
                 enumerate(zip(row, spans, strict=True))]  # fmt: skip
        yield f" {'  '.join(cells)}".rstrip()


def _row(pattern: Pattern) -> tuple[str, ...]:
    figures = pattern.figures
    name = f"{'in order' if pattern.name == 'sequential' else 'random order'}, {pattern.unit.partition(' (')[0]}"
    if not figures.reads:
        return (name, str(pattern.parallel), "-", "", "", "", "", "0")
    latency = figures.latency_s or (None, None)
    rates = (figures.bytes_per_s, figures.lowest_bytes_per_s, figures.highest_bytes_per_s)
    return (
        name,
        str(pattern.parallel),
        *("" if rate is None else units.rate(rate) for rate in rates),
        *("" if seconds is None else units.duration(seconds) for seconds in latency),
        str(figures.reads),
    )


def _about(storage: Measured, result: Bench) -> list[str]:
    if not storage.patterns:
        return []
    what = " ".join(filter(None, (storage.facts.model, storage.facts.type)))
    count = f"{storage.files} file{'' if storage.files == 1 else 's'} of {units.size(storage.size)}"
    seen = "" if result.is_whole else ", a sample"
    lines = [f"- {count}{seen}{f'; {what}' if what else ''}."]
    if storage.stored:
        lines.append(f"- Kept for the reports of runs: {storage.stored}")
    return lines


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, max(width, _NARROWEST), initial_indent=first, subsequent_indent=rest, break_long_words=False
    )


def _width(stream: TextIO) -> int:
    if os.environ.get("COLUMNS", "").isdigit():
        return min(shutil.get_terminal_size((PIPE_WIDTH, 24)).columns, WIDEST)
    try:
        return min(os.get_terminal_size(stream.fileno()).columns or PIPE_WIDTH, WIDEST)
    except (OSError, ValueError):
        return PIPE_WIDTH
