"""Results as lines of text or as JSON (schema gpumon.doctor/1, doctor.schema.json)."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TextIO

import click

from gpumon.doctor.check import Check, Repair, Result, Status
from gpumon.doctor.runner import Done

SCHEMA: Final = "gpumon.doctor/1"
_SYMBOLS: Final[dict[Status, str]] = {"ok": "ok", "failed": "✖", "warning": "▲", "absent": "–"}
_COLORS: Final = {"failed": "red", "warning": "yellow", "ok": "green"}
_STAND_INS: Final = {"✖": "x", "▲": "!", "–": "-", "→": "->", "…": "...", "µ": "u", "×": "x"}
_WHERE: Final = {"here": "", "host": "on the host: ", "receiver": "at the receiver: "}
_TICK_S: Final = 0.1
_ERASE: Final = "\r\x1b[K"


def show(done: Iterator[Done], checks: Sequence[Check], stream: TextIO, *, as_json: bool) -> bool:
    """Print everything; returns whether no check failed."""
    if as_json:
        ended = sorted(done, key=lambda each: each.number)
        document = json.dumps(as_dict(ended), indent=1, ensure_ascii=False)
        stream.write((document if _fits(document, stream) else json.dumps(as_dict(ended), indent=1)) + "\n")
    else:
        ended = _lines(done, checks, stream)
        results = [result for each in ended for result in each.results]
        stream.write(_plain(_last_line(results), stream) + "\n")
    stream.flush()
    return all(result.status != "failed" for each in ended for result in each.results)


def as_dict(ended: Iterable[Done]) -> dict[str, Any]:
    """The JSON document."""
    checks = [_entry(each.check.name, result) for each in ended for result in each.results]
    return {
        "schema": SCHEMA,
        "ok": all(check["status"] != "failed" for check in checks),
        "total": len(checks),
        "need_attention": sum(check["status"] in ("failed", "warning") for check in checks),
        "checks": checks,
    }


def _entry(name: str, result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "status": result.status, "summary": result.summary}
    if result.repair is not None:
        entry["repair"] = {"command": result.repair.command, "where": result.repair.where}
    return entry


# -- text ------------------------------------------------------------------------------------------------


def _lines(done: Iterator[Done], checks: Sequence[Check], stream: TextIO) -> list[Done]:
    """Print in reading order; on a terminal what is late does not hold up the rest, and is named meanwhile."""
    ended: list[Done] = []
    width = max((len(check.name) for check in checks), default=0)
    is_terminal = stream.isatty()
    color = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("dumb", "")
    erase = _ERASE if is_terminal and os.environ.get("TERM", "") not in ("dumb", "") else ""
    batches = _batches(done) if is_terminal else iter([sorted(done, key=lambda each: each.number)])
    began = time.monotonic()
    for batch in batches:
        stream.write(erase)
        for each in sorted(batch, key=lambda each: each.number):
            for result in each.results:
                stream.write(_plain(_line(each.check.name, result, width, color), stream) + "\n")
        ended += batch
        missing = [check.name for number, check in enumerate(checks) if number not in {each.number for each in ended}]
        if missing and erase:
            waited = f" {time.monotonic() - began:.0f} s" if time.monotonic() - began > 1 else ""
            stream.write(_plain(f" ...    waiting for {', '.join(missing)}{waited}", stream)[: _columns(stream) - 1])
        stream.flush()
    stream.write(erase)
    return sorted(ended, key=lambda each: each.number)


def _batches(done: Iterator[Done]) -> Iterator[list[Done]]:
    """What came within a moment, together: quick checks then stand in their order."""
    came: queue.SimpleQueue[Done | None] = queue.SimpleQueue()

    def pull() -> None:
        try:
            for each in done:
                came.put(each)
        finally:
            came.put(None)

    threading.Thread(target=pull, name="gpumon-doctor-results", daemon=True).start()
    until = time.monotonic() + 4 * _TICK_S
    while True:
        batch: list[Done] = []
        while (left := until - time.monotonic()) > 0:
            try:
                each = came.get(timeout=left)
            except queue.Empty:
                break
            if each is None:
                yield batch
                return
            batch.append(each)
        yield batch
        until = time.monotonic() + _TICK_S


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _line(name: str, result: Result, width: int, color: bool) -> str:
    symbol = f"{_SYMBOLS[result.status]:<5}"
    if color and result.status in _COLORS:
        symbol = click.style(symbol, fg=_COLORS[result.status], bold=result.status != "ok")
    repair = f"  → {_shown(result.repair, color)}" if result.repair is not None else ""
    return f" {symbol} {name:<{width}}  {result.summary}{repair}"


def _shown(repair: Repair, color: bool) -> str:
    command = click.style(repair.command, bold=True) if color else repair.command
    return f"{_WHERE[repair.where]}{command}"


def _last_line(results: Sequence[Result]) -> str:
    count = sum(result.status in ("failed", "warning") for result in results)
    verb = "needs" if count == 1 else "need"
    return f" {count} of {len(results)} checks {verb} attention."


def _plain(text: str, stream: TextIO) -> str:
    """The text as far as the stream's encoding goes: symbols have stand-ins, what else is unknown is escaped."""
    if _fits(text, stream):
        return text
    for symbol, other in _STAND_INS.items():
        text = text.replace(symbol, other)
    return text if _fits(text, stream) else text.encode("ascii", "backslashreplace").decode()


def _fits(text: str, stream: TextIO) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True
