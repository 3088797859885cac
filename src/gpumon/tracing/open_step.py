"""What the boundary rules work on: iterations over loaders, their fetches, and the step in progress."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Part = tuple[str, int, int]
"""(phase, begin, end) of a piece of a step."""


@dataclass(slots=True)
class Iteration:
    """One iteration over a loader; numbered, for `id()` is used again as soon as an iterator is freed."""

    number: int
    loader: int
    made_at: int = 0
    made: tuple[int, int] | None = None  # begin and end of `__iter__`, until its first fetch
    idle_ns: int = 0  # the machine's `idle_ns` then
    after_step: int = 0  # steps closed before it was made
    fetches: int = 0
    fed: bool = False  # a step used a batch of it


@dataclass(slots=True)
class Fetch:
    begin: int
    end: int
    it: int
    samples: int
    first: bool  # of its iteration
    grad: bool
    startup: tuple[int, int] | None = None  # of the workers, where it is part of this wait
    until: int = 0  # begin of what came next
    evaluates: bool = False

    @property
    def from_(self) -> int:
        return self.startup[0] if self.startup else self.begin

    def waits(self) -> list[Part]:
        own = ("data.wait", self.begin, self.end)
        return [("data.wait", *self.startup), own] if self.startup else [own]


@dataclass(slots=True)
class Pending:
    """Fetches of one iteration of which it is not known yet what they are for."""

    fetches: list[Fetch] = field(default_factory=list)
    stopped: bool = False


@dataclass(slots=True)
class Open:
    """The step in progress. `parts` do not overlap, and are in time order."""

    begin: int
    mark: int = 0  # end of the last fetch, backward or update: where "forward" begins
    cursor: int = 0  # end of the last part
    parts: list[Part] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    begins: int = 0  # backwards begun
    since_update: int = 0  # backwards begun since the last update ended
    backwards: int = 0  # backwards that went well
    updates: int = 0
    real_updates: int = 0  # without those that a gradient scaler skipped
    update_end: int = 0
    parts_at_update: int = 0
    opts: dict[int, int] = field(default_factory=dict)  # optimizer -> backwards begun before its last update
    failed: str | None = None

    def add(self, phase: str, begin: int, end: int) -> None:
        begin = max(begin, self.cursor)
        if end > begin:
            self.parts.append((phase, begin, end))
            self.cursor = end

    def take(self, fetches: Iterable[Fetch]) -> None:
        for fetch in fetches:
            self.fetches.append(fetch)
            for phase, begin, end in fetch.waits():
                self.add(phase, begin, end)
            self.mark = max(self.mark, fetch.end)

    def updated(self, end: int) -> None:
        self.updates += 1
        self.since_update = 0
        self.update_end = self.mark = end
        self.parts_at_update = len(self.parts)


def sums(begin: int, end: int, parts: Iterable[Part], rest: str = "other") -> dict[str, int]:
    """Time per phase; what no part covers is *rest*, so that all of it adds up to the step."""
    phase_ns: dict[str, int] = {}
    for name, from_, to in parts:
        phase_ns[name] = phase_ns.get(name, 0) + to - from_
    phase_ns[rest] = phase_ns.get(rest, 0) + (end - begin) - sum(phase_ns.values())
    return phase_ns


def overlay(parts: list[Part], phases: list[Part], begin: int, end: int) -> list[Part]:
    """*parts* of the step between *begin* and *end*, and in them the user's *phases*.

    A phase takes its time out of what it lies in, an inner one out of the outer one; but waits for data stay
    what they are: a share that rests on them must not depend on names.
    """
    parts = _within(parts, begin, end)
    phases = _within(phases, begin, end)
    if not phases:
        return parts
    waits = [part for part in parts if part[0] == "data.wait"]
    named = _without(_flat(phases), waits)
    rest = _without([part for part in parts if part[0] != "data.wait"], named)
    return sorted([*waits, *named, *rest], key=lambda part: part[1])


def _within(parts: list[Part], begin: int, end: int) -> list[Part]:
    return [(name, max(from_, begin), min(to, end)) for name, from_, to in parts if to > begin and from_ < end]


def _flat(phases: list[Part]) -> list[Part]:
    """Nested phases, side by side: the time of an inner one is not the outer one's."""
    flat: list[Part] = []
    around: list[tuple[str, int]] = []
    at = 0

    def until(to: int) -> None:
        nonlocal at
        if around and to > at:
            flat.append((around[-1][0], at, to))
        at = max(at, to)

    for name, from_, to in sorted(phases, key=lambda phase: (phase[1], -phase[2])):
        while around and around[-1][1] <= from_:
            until(around[-1][1])
            around.pop()
        until(from_)
        around.append((name, to))
    while around:
        until(around[-1][1])
        around.pop()
    return flat


def _without(parts: list[Part], taken: list[Part]) -> list[Part]:
    """What *taken* leaves of *parts*; each of the two is in time order and free of overlaps."""
    left: list[Part] = []
    index = 0
    for name, from_, to in parts:
        while index < len(taken) and taken[index][2] <= from_:
            index += 1
        at = from_
        for _, taken_from, taken_to in taken[index:]:
            if taken_from >= to:
                break
            if taken_from > at:
                left.append((name, at, taken_from))
            at = max(at, taken_to)
        if to > at:
            left.append((name, at, to))
    return left
