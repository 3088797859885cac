"""What became of an export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SIGNALS = ("traces", "metrics", "logs")
_ITEMS = {"traces": ("span", "spans"), "metrics": ("point", "points"), "logs": ("event", "events")}


@dataclass
class Outcome:
    """Counts by signal: spans, points, events."""

    run: Path | str
    """Which, for people."""
    target: str = ""
    """Where to, for people; without a password."""
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIGNALS, 0))
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIGNALS, 0))
    reasons: list[str] = field(default_factory=list)
    """Why something was refused, or does not add up; each once."""
    damaged: dict[str, int] = field(default_factory=dict)
    """Lines that are no OTLP, by file."""
    has_event: bool = False
    """One event is ours: what `run.json` says."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the run was taken; that nobody wants our own event is no loss."""
        return not self.reasons or (self._is_event_alone and all(why.startswith("logs: ") for why in self.reasons))

    @property
    def _is_event_alone(self) -> bool:
        refused = {signal: count for signal, count in self.refused.items() if count}
        return self.has_event and refused == {"logs": 1}

    def lines(self) -> Iterator[str]:
        """The outcome for people."""
        yield f"exported {self.counted(self.sent)} of {self.run} to {self.target}"
        if any(self.refused.values()):
            yield f"refused: {self.counted(self.refused)}"
        yield from (f"  {why}" for why in self.reasons)
        for file, count in self.damaged.items():
            yield f"{file}: {count} damaged {'line' if count == 1 else 'lines'} skipped"

    def refuse(self, signal: str, items: int, why: str) -> None:
        self.refused[signal] += items
        self.doubt(f"{signal}: {why}")

    def doubt(self, why: str) -> None:
        if why not in self.reasons:
            self.reasons.append(why)

    def damage(self, file: str) -> None:
        self.damaged[file] = self.damaged.get(file, 0) + 1

    @staticmethod
    def counted(items: Mapping[str, int]) -> str:
        """In words: "1,200 spans, 3 events"."""
        named = (f"{items[signal]:,} {_ITEMS[signal][items[signal] != 1]}" for signal in SIGNALS if items[signal])
        return ", ".join(named) or "nothing"


class Target(AbstractContextManager["Target"], Protocol):
    """Takes OTLP lines; what was taken and what not it counts in the outcome."""

    def add(self, signal: str, line: dict[str, Any]) -> None:
        """One line, as a dictionary that may be changed.

        Raises:
            ValueError: it is no OTLP.
        """

    def finish(self) -> None:
        """Send what is left, and make sure of all of it."""
