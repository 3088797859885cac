"""The report as text: first the sentence, then the evidence, then what to do, then what was not seen.

`render` makes a string of a given width; `write_report` fits it to a stream: its width, colours only on a
terminal that wants them, ASCII stand-ins where its encoding has no better.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.text import Text

from gpumon import units
from gpumon.analysis.render_devices import account_name, device_rows, metric_name

PIPE_WIDTH, WIDEST, NARROWEST = 100, 120, 24
BAR_WIDTH = 48
NO_BREAK = "\u00a0"

_GLUE = "\ue000"
"""Stands for a space at which no line may end; rich would break at a no-break space."""
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:%|[mµu]?s|min|h|[kKMGTP]?i?B(?:/s)?|W|J|°?C|MHz)(?!\w))")

_SYMBOLS = {"critical": "✖", "warning": "▲", "info": "●"}
_STYLES = {"critical": "bold red", "warning": "bold yellow", "info": "cyan"}
_PHASE_STYLES = {
    "data.wait": "red",
    "transfer": "magenta",
    "communication": "magenta",
    "other": "bright_black",
}
_STAND_INS = {
    "✖": "x",
    "▲": "!",
    "●": "*",
    "→": "->",
    "·": "|",
    "×": "x",
    "÷": "/",
    "±": "+-",
    "–": "-",
    "—": "-",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
    "µ": "u",
    "°C": "C",
    "Δ": "d",
    "Σ": "sum ",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}


class HasDict(Protocol):
    """A report: its content as the JSON of `gpumon report --json`."""

    def as_dict(self) -> dict[str, Any]: ...


def write_report(report: HasDict | Mapping[str, Any], stream: TextIO) -> None:
    """Print the report, fitted to the stream."""
    ascii_only = not _can_encode(stream)
    text = render(report, width=_width(stream), color=_wants_color(stream), ascii_only=ascii_only)
    stream.write(text)
    stream.flush()


def render(
    report: HasDict | Mapping[str, Any],
    *,
    width: int = PIPE_WIDTH,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """The report as text of at most *width* columns, with a newline at its end."""
    content = report if isinstance(report, Mapping) else report.as_dict()
    page = _Page(max(width, NARROWEST), ascii_only)
    _header(page, content, _shown_path(content["run"].get("path")))
    _headline(page, content)
    _steps(page, content["steps"])
    _fetches(page, content.get("fetches"))
    _devices(page, content["devices"])
    _findings(page, content)
    _missing(page, content["missing"])
    return page.text(color)


class _Page:
    """Lines of text, one column in from the left edge, wrapped so that none is wider than the page."""

    def __init__(self, width: int, ascii_only: bool) -> None:
        self.width = width
        self._ascii = ascii_only
        self._console = Console(width=width, file=StringIO(), color_system=None)
        self._lines: list[Text] = []

    def add(self, *parts: str | tuple[str, str], indent: int = 1, hanging: int = 0) -> None:
        """One paragraph of styled parts; its later lines stand *hanging* columns further in."""
        text = Text.assemble(*(self._plain(part) for part in parts))
        room = self.width - indent
        hanging = hanging if hanging < room // 2 else 0
        first, rest = text, None
        # rich wraps to one width only: the first line is wrapped wide, what is left of it narrower.
        wrapped = text.wrap(self._console, room)
        if hanging and len(wrapped) > 1:
            first = wrapped[0]
            rest = text[len(wrapped[0]) :]
            rest = _without_leading_space(rest)
        for number, line in enumerate([first, *rest.wrap(self._console, room - hanging)] if rest else wrapped):
            line.rstrip()
            self._lines.append(Text(" " * (indent + (hanging if number else 0))) + line)

    def items(self, items: Sequence[str], *, separator: str = " · ", style: str = "", indent: int = 1) -> None:
        """Items beside each other; an item is broken only where it alone is wider than the page."""
        separator = str(self._plain(separator))
        line = ""
        for item in (str(self._plain(item)) for item in items):
            joined = line + separator + item if line else item
            if line and len(joined) > self.width - indent:
                self.add((line, style), indent=indent)
                joined = item
            line = joined
        if line:
            self.add((line, style), indent=indent)

    def blank(self) -> None:
        if self._lines and self._lines[-1].plain:
            self._lines.append(Text())

    def title(self, title: str, items: Sequence[str] = (), column: int = 40) -> None:
        """A section's heading, with its main figures to the right where there is room."""
        self.blank()
        figures = str(self._plain(" · ".join(items)))
        if not items:
            self.add((title, "bold"))
        elif max(column, len(title) + 2) + len(figures) < self.width:
            self.add((title.ljust(column - 2), "bold"), "  ", (figures, "dim"))
        else:
            self.add((title, "bold"))
            self.items(items, style="dim", indent=3)

    def bar(self, fraction: float, width: int) -> str:
        """A bar of eighths of a column, padded to *width*."""
        fraction = min(max(fraction, 0.0), 1.0)
        if self._ascii:
            return ("#" * round(fraction * width)).ljust(width)
        eighths = round(fraction * width * 8)
        return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(width)

    def text(self, color: bool) -> str:
        out = StringIO()
        console = Console(
            file=out,
            width=self.width,
            force_terminal=color,
            color_system="standard" if color else None,
            no_color=not color,
            highlight=False,
            legacy_windows=False,
        )
        for line in self._lines:
            console.print(line, soft_wrap=True)
        return out.getvalue().replace(_GLUE, " ")

    def _plain(self, part: str | tuple[str, str]) -> Any:
        if isinstance(part, tuple):
            return (self._plain(part[0]), part[1])
        # Names come from the run: whatever a terminal would obey is shown, not sent.
        pieces = part.split(NO_BREAK)
        pieces = ["".join(letter if letter.isprintable() else " " for letter in piece) for piece in pieces]
        if self._ascii:
            pieces = [stand_ins(piece) for piece in pieces]
        return _BEFORE_UNIT.sub(_GLUE, _GLUE.join(pieces))


def stand_ins(text: str) -> str:
    """The text in ASCII."""
    for symbol, stand_in in _STAND_INS.items():
        text = text.replace(symbol, stand_in)
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text)
    kept = (letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else "?" for letter in kept)


def _without_leading_space(text: Text) -> Text:
    return text[len(text.plain) - len(text.plain.lstrip()) :]


# -- Sections -----------------------------------------------------------------------------------------


def _header(page: _Page, content: Mapping[str, Any], path: str) -> None:
    run, steps = content["run"], content["steps"]
    ranks, hosts = len(run["ranks"]), run["hosts"]
    on = f"on {hosts[0]}" if len(hosts) == 1 else f"on {len(hosts)} hosts" if hosts else ""
    items = [
        run["service"],
        units.duration(run["duration_s"], 3),
        _count(steps["count"], "step"),
        f"{_count(ranks, 'rank')} {on}".strip() if ranks else on,
        path,
    ]
    page.items([item for item in items if item], style="bold")
    if reason := cut_short(run):
        page.add((reason, "yellow"))


def _shown_path(path: str | None) -> str:
    """The run as the user would name it from here."""
    if not path or not Path(path).is_absolute():
        return path or ""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def cut_short(run: Mapping[str, Any]) -> str | None:
    """How the run ended, where it did not end by itself."""
    code, number, after = run.get("exit_code"), run.get("signal"), units.duration(run["duration_s"])
    if number is None and code is not None and 128 < code <= 128 + 64:
        number = code - 128
    rest = "everything until then is here."
    if number is not None:
        try:
            named = f" ({signal.Signals(number).name})"
        except ValueError:
            named = ""
        return f"The run did not end by itself (killed by signal {number}{named} after {after}); {rest}"
    if code:
        return f"The command failed with exit code {code} after {after}; {rest}"
    if not run["complete"]:
        return f"The run has not ended, or was cut off after {after}; {rest}"
    return None


def _headline(page: _Page, content: Mapping[str, Any]) -> None:
    page.blank()
    style = _STYLES.get(_worst(content["findings"]), "bold")
    page.add((content["headline"], style if style.startswith("bold") else "bold"))


def _worst(findings: Iterable[Mapping[str, Any]]) -> str:
    severities = {finding["severity"] for finding in findings}
    return next((severity for severity in ("critical", "warning") if severity in severities), "")


def _steps(page: _Page, steps: Mapping[str, Any]) -> None:
    if not steps["count"]:
        return
    lengths = steps["duration_s"]
    figures = [f"{name} {units.duration(lengths[name])}" for name in ("mean", "p50", "p95") if lengths.get(name)]
    column = 38 if page.width >= 80 else 0
    page.title("Where a step's time went", figures, column)
    phases = sorted(((name, share) for name, share in steps["phases"].items() if share > 0), key=lambda item: -item[1])
    label_width = max((len(_phase(name)) for name, _ in phases), default=0)
    bar_width = min(BAR_WIDTH, page.width - label_width - 22)
    for name, share in phases:
        bar = page.bar(share, bar_width) + " " if bar_width >= 8 else ""
        page.add(
            _phase(name).ljust(label_width) + "  ",
            (bar, _PHASE_STYLES.get(name, "green")),
            f"{units.percent(share):>6}  {units.duration(share * (lengths.get('mean') or 0)):>7}",
            indent=3,
        )
    for note in _step_notes(steps):
        page.add((note, "dim"), indent=3)


def _phase(name: str) -> str:
    return name.replace(".", " ")


def _step_notes(steps: Mapping[str, Any]) -> Iterable[str]:
    first = steps.get("first_of_epoch") or {}
    if first.get("count") and first.get("wait_s"):
        share = f", {units.percent(first['fraction'])} of all step time" if first.get("fraction") else ""
        epochs = _count(first["count"], "epoch")
        yield f"first batches of epochs: {units.duration(first['wait_s'])} in {epochs}{share}"
    odd = [
        (steps.get("failed"), "failed"),
        (steps.get("skipped"), "skipped by the gradient scaler"),
        (steps.get("assumed"), "with an assumed boundary (the optimizer's update was not seen)"),
    ]
    if notes := [f"{count} {what}" for count, what in odd if count]:
        begun = steps["count"] + (steps.get("failed") or 0) + (steps.get("skipped") or 0)  # those ended otherwise
        yield f"of {_count(begun, 'step')}: {', '.join(notes)}"


def _fetches(page: _Page, fetches: Mapping[str, Any] | None) -> None:
    if not fetches or not fetches.get("count"):
        return
    workers = fetches.get("workers") or 0
    who = _count(workers, "worker") if workers else "in the training thread"
    figures = [who, _count(fetches["count"], "fetch", "fetches")]
    if fetches.get("mean_s"):
        figures.append(f"mean {units.duration(fetches['mean_s'])}")
    page.title("Where a fetch's time went", figures, 38 if page.width >= 80 else 0)
    shares: dict[str, float] = {}
    for item in fetches["accounts"]:
        name = account_name(item) if item["fraction"] >= 0.005 else "other"
        shares[name] = shares.get(name, 0.0) + item["fraction"]
    ordered = sorted(shares.items(), key=lambda item: (item[0] == "other", -item[1]))
    page.items([f"{name} {units.percent(share)}" for name, share in ordered if share > 0], separator="    ", indent=3)


def _devices(page: _Page, devices: Sequence[Mapping[str, Any]]) -> None:
    if not devices:
        return
    rows = [device_rows(device) for device in devices]
    wide = page.width >= 80
    names = max(len(row.name) for row in rows)
    abouts = max(len(row.about) for row in rows)
    means = max((len(row.main) for row in rows), default=0)
    peaks = max((len(row.peak) for row in rows), default=0)
    if wide and names + abouts + means + peaks + 12 <= page.width:
        page.title("Devices", ["mean".ljust(means + 2) + "peak"] if peaks else ["mean"], names + abouts + 6)
        for row in rows:
            head = f"{row.name:<{names}}  {row.about:<{abouts}}  {row.main:<{means}}  {row.peak:<{peaks}}   "
            page.add(head + "   ".join(_unbroken(item) for item in row.rest), indent=3, hanging=names + abouts + 4)
    else:
        page.title("Devices")
        for row in rows:
            about = f" ({row.about})" if row.about else ""
            main = f"{row.main}, peak {row.peak}" if row.peak else row.main
            readings = ", ".join(_unbroken(item) for item in (main, *row.rest) if item)
            page.add(f"{row.name}{about}: {readings}", indent=3, hanging=2)


def _unbroken(item: str) -> str:
    """A figure stays with its unit where a line ends."""
    return item.replace(" ", NO_BREAK)


def _findings(page: _Page, content: Mapping[str, Any]) -> None:
    if not content["findings"]:
        return
    page.title("Findings")
    for finding in content["findings"]:
        severity = finding["severity"]
        rank = finding.get("rank")
        lost = finding.get("seconds_lost")
        head = [
            finding["rule"],
            finding.get("cause"),
            finding.get("device"),
            None if rank is None else f"rank {rank}",
            f"{units.duration(lost)} lost" if lost else None,
        ]
        page.add(
            (f"{_SYMBOLS.get(severity, '●')} ", _STYLES.get(severity, "")),
            (" · ".join(str(item) for item in head if item), _STYLES.get(severity, "")),
            hanging=2,
        )
        if (summary := finding["summary"]) and summary.rstrip(".") not in content["headline"]:
            page.add(summary, indent=5)
        if evidence := [_evidence(item) for item in finding["evidence"]]:
            page.add(("; ".join(evidence), "dim"), indent=5)
        if candidates := finding.get("candidates"):
            page.add(f"could be: {' or '.join(candidates)}", indent=5)
        for advice in finding["advice"]:
            page.add(("→ ", "bold"), advice, indent=5, hanging=2)


def _evidence(item: Mapping[str, Any]) -> str:
    # 0 and 1 of `collector.up` are no shares.
    unit = "" if item["metric"].endswith(".up") else item.get("unit") or ""
    text = f"{metric_name(item['metric'])} {_value(item['value'], unit)}"
    source = item.get("source") or ""
    if item.get("reference") is None:
        return f"{text} ({source})" if source else text
    against = f" ({source})" if source else ""
    return f"{text} against {_value(item['reference'], unit)}{against}"


def _value(value: Any, unit: str) -> str:
    return units.quantity(value, unit) if isinstance(value, int | float) else str(value)


def _missing(page: _Page, missing: Sequence[Mapping[str, Any]]) -> None:
    if not missing:
        return
    page.title("Not seen")
    for item in missing:
        page.add(f"{item['what']}: {item['reason']}", indent=3, hanging=2)


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


# -- The stream ---------------------------------------------------------------------------------------


def _width(stream: TextIO) -> int:
    """The terminal's width; `COLUMNS` where it is set; 100 in a pipe."""
    if os.environ.get("COLUMNS", "").isdigit():
        width = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    else:
        try:
            width = os.get_terminal_size(stream.fileno()).columns or PIPE_WIDTH
        except (OSError, ValueError):
            width = PIPE_WIDTH
    return min(width, WIDEST)


def _wants_color(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("dumb", "")


def _can_encode(stream: TextIO) -> bool:
    try:
        "✖▲●→·×█▏µ°".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
