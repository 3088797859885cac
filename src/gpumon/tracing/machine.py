"""The boundary rules: from a training thread's events to steps.

A step is one optimizer update. It tiles time: from its first training fetch (else from the end of what was
before it) to the first fetch, or the first new iterator, after its last update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpumon.tracing import stamps as s
from gpumon.tracing.records import Step, Totals

ASSUME_AFTER, ASSUME_AT_END = 64, 8
"""Rounds of fetch and backward without any update ever: from then on, or at the end, each is taken for a step.

Before that they may be the micro-batches of the first step.
"""
BACKGROUND_AFTER = 32  # undecided fetches of a thread that trains nothing, while another one trains


@dataclass(slots=True)
class Iterator:
    """One iteration over a loader; numbered, for `id()` is reused."""

    number: int
    loader: int
    made: tuple[int, int] | None = None  # begin and end of `__iter__`
    fetches: int = 0
    fed: bool = False  # a step used a batch of it
    counted: bool = False  # as an epoch
    made_before: int = 0  # number of steps closed when it was made


@dataclass(slots=True)
class Fetch:
    begin: int
    end: int
    it: int
    samples: int
    first: bool
    key: tuple[int, int, int] | None = None


@dataclass(slots=True)
class Pending:
    fetches: list[Fetch] = field(default_factory=list)
    stopped: bool = False


@dataclass(slots=True)
class Open:
    """The step in progress."""

    begin: int
    fetches: list[Fetch] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    mark: int = 0  # end of the last fetch, backward or update: where "forward" begins
    backwards: int = 0
    updates: int = 0
    since_update: int = 0  # backwards since the last update ended
    has_closure: bool = False  # the last update ran backwards of its own
    update_end: int = 0
    opts: set[int] = field(default_factory=set)
    tail: list[tuple[Any, ...]] = field(default_factory=list)  # events since the last update ended
    failed: str | None = None
    retried: bool = False
    skipped: bool = False


class Machine:
    """Feeds on one thread's events in time order; `on_step` gets each closed step."""

    def __init__(self, totals: Totals, on_step: Callable[[Step], None], trains_elsewhere: Callable[[], bool]) -> None:
        self.totals = totals
        self._on_step = on_step
        self._trains_elsewhere = trains_elsewhere
        self.iterators: dict[int, Iterator] = {}
        self.cur: Open | None = None
        self.pend: dict[int, Pending] = {}
        self.last_it = 0
        self.bound = 0
        self.previous: set[int] = set()  # loaders that fed the previous step
        self.ever: set[int] = set()  # loaders that ever fed a step
        self.newcomers: dict[int, int] = {}  # loader -> step at which it was taken for a newcomer
        self.steps = 0
        self.epoch = 0
        self.trains = False  # had a backward or an update
        self.backward_ever = self.update_ever = False
        self.assumes = False
        self.rounds: list[Open] = []
        self.open_updates: list[tuple[int, int]] = []
        self.inner_end = 0
        self.scaler: int | None = None
        self.scaler_updates = 0
        self.backward_begin: int | None = None
        self.phases: list[tuple[str, int, int]] = []
        self.evaluating: Fetch | None = None
        self.manual: tuple[Open, str, int | None, bool] | None = None  # a step that the training marks itself
        self.manual_mark = 0

    @property
    def is_clean(self) -> bool:
        """Nothing is undecided: a row of a regular step may be summed as it is."""
        return (
            self.cur is None and not self.pend and self.evaluating is None and not self.open_updates
            and not self.phases and self.scaler is None and not self.rounds and self.manual is None
        )  # fmt: skip

    def feed(self, event: tuple[Any, ...]) -> None:
        if self.manual is not None and event[0] < s.PHASE:
            self._manual_event(*event)
            return
        if len(event) == s.ROW:
            f0, f1, b0, b1, o0, o1, it, samples, _end = event
            self.fetch(f0, f1, None, it, True, samples)
            self.backward(b0)
            self.backward_end(b1, None)
            self.update(o0, -1)
            self.update_end(o1, -1)
            return
        self._handlers[event[0]](self, *event[1:])

    # -- events -------------------------------------------------------------------------------------

    def iterator(self, begin: int, end: int, number: int, loader: int) -> None:
        self._end_evaluation(begin)
        self._close_at_fetch(begin)
        for other, pending in list(self.pend.items()):
            known = self.iterators.get(other)
            if known is not None and known.loader == loader:
                if pending.stopped:
                    self._evaluate(pending)
                del self.pend[other]
            elif pending.stopped:
                self._evaluate(pending)
                del self.pend[other]
        self.iterators[number] = Iterator(number, loader, (begin, end), made_before=self.steps)
        if len(self.iterators) > 4096:
            self.iterators = dict(list(self.iterators.items())[-1024:])

    def fetch(self, begin: int, end: int, outcome: str | None, it: int, grad: bool, samples: int) -> None:
        self._end_evaluation(begin)
        if not self.open_updates or not self._closure_runs():
            self._close_at_fetch(begin)
        for other in [key for key, pending in self.pend.items() if pending.stopped and key != it]:
            self._evaluate(self.pend.pop(other))
        known = self.iterators.setdefault(it, Iterator(it, -it))
        made, known_first = known.made, known.fetches == 0
        if outcome == "stop":
            self._stop(it, known, end)
            return
        if made is not None and known_first:
            if begin - made[1] < 1_000_000:
                begin = made[0]  # the workers' start is part of the wait for the first batch
            else:
                self.totals.loader_startup_ns += made[1] - made[0]
        known.made = None
        known.fetches += 1
        if outcome is not None:
            self._fail_fetch(begin, end, outcome)
            return
        fetch = Fetch(begin, end, it, samples, known_first)
        if not grad and not self.open_updates:
            self._evaluate_one(fetch)
            return
        self.last_it = it
        self.pend.setdefault(it, Pending()).fetches.append(fetch)
        if not self.trains and len(self.pend[it].fetches) >= BACKGROUND_AFTER and self._trains_elsewhere():
            self._fetched_for_others()

    def backward(self, begin: int) -> None:
        self._end_evaluation(begin)
        self.trains = self.backward_ever = True
        self.backward_begin = begin
        cur = self._current(begin)
        if cur.updates and not self.open_updates:
            cur.tail.append((s.BACKWARD, begin))
        mark = max(cur.mark, self.open_updates[-1][0] if self.open_updates else 0)
        if begin > mark:
            cur.spans.append(("forward", mark, begin))
        cur.mark = begin

    def backward_end(self, end: int, error: str | None) -> None:
        cur, begin = self.cur, self.backward_begin
        self.backward_begin = None
        if cur is None or begin is None:
            return
        if cur.updates and not self.open_updates:
            cur.tail.append((s.BACKWARD_END, end, error))
        cur.spans.append(("backward", begin, end))
        cur.mark = end
        if error is not None:
            cur.failed = error
            return
        if cur.failed is not None:
            cur.failed, cur.retried = None, True
        cur.backwards += 1
        cur.since_update += 1

    def update(self, begin: int, opt: int) -> None:
        self._end_evaluation(begin)
        self.trains = self.update_ever = True
        cur = self._current(begin)
        self._join_rounds(cur)
        again = opt in cur.opts or (opt == -1 and bool(cur.opts))
        if not self.open_updates and cur.updates and again and not self.pend:
            if cur.since_update or cur.has_closure or not self.backward_ever:
                cur = self._split(cur)
        cur.opts.add(opt)
        if not self.open_updates:
            cur.mark = max(cur.mark, begin)
        self.open_updates.append((begin, opt))

    def update_end(self, end: int, opt: int) -> None:
        while self.open_updates:
            begin, opened = self.open_updates.pop()
            if opened == opt or opt == -1:
                break
        else:
            return
        self.inner_end = end
        if not self.open_updates:
            self._updated(begin, end)

    def scaler_begin(self, begin: int) -> None:
        self._end_evaluation(begin)
        self.update_ever = True  # or one that is skipped, which is as good for telling where steps end
        if self.cur is not None:
            self._join_rounds(self.cur)
        self.scaler, self.scaler_updates = begin, self.cur.updates if self.cur else 0

    def scaler_end(self, end: int) -> None:
        begin, self.scaler = self.scaler, None
        cur = self.cur
        if begin is None or cur is None:
            return
        if cur.updates == self.scaler_updates:
            cur.skipped = True
            cur.spans.append(("optimizer", begin, end))
            cur.updates += 1
            cur.since_update = 0
            cur.update_end = cur.mark = end
            cur.tail = []

    def uncaught(self, at: int, kind: str) -> None:
        if self.cur is None and any(pending.fetches for pending in self.pend.values()):
            self._current(at)
        if self.cur is not None and not (self.cur.updates and not self.cur.tail and not self.open_updates and not self.pend):
            self.cur.failed = kind
            self.open_updates.clear()
            self._close(at)

    def phase(self, name: str, begin: int, end: int) -> None:
        self.phases.append((name, begin, end))

    def begin_step(self, at: int, stage: str, epoch: int | None, first: bool) -> None:
        self._end_evaluation(at)
        self._close_at_fetch(at)
        self.trains = self.trains or stage == "train"
        self.manual = (Open(at), stage, epoch, first)

    def end_step(self, at: int, failed: str | None, samples: int) -> None:
        if self.manual is None:
            return
        (cur, stage, epoch, first), self.manual = self.manual, None
        phases, self.phases = self.phases, []
        spans = tile(cur.begin, at, cur.spans, phases)
        totals = self.totals.stage(stage)
        if first:
            totals.epochs += 1
            self.epoch += stage == "train"
        self.bound = at
        self.open_updates.clear()
        self._on_step(
            Step(
                number=totals.steps + 1, stage=stage, epoch=self.epoch if epoch is None else epoch,
                begin_ns=cur.begin, end_ns=at, spans=spans, phase_ns=sums(cur.begin, at, spans), samples=samples,
                first_of_epoch=first, failed=failed,
            )  # fmt: skip
        )

    def _manual_event(self, kind: int, at: int, *rest: Any) -> None:
        """A patched call within a step that the training marks itself: a part of that step."""
        assert self.manual is not None
        spans = self.manual[0].spans
        if kind in (s.BACKWARD, s.UPDATE):
            self.open_updates.append((at, kind))
        elif kind in (s.BACKWARD_END, s.UPDATE_END) and self.open_updates:
            begin, _ = self.open_updates.pop()
            spans.append(("backward" if kind == s.BACKWARD_END else "optimizer", begin, at))

    _handlers: dict[int, Callable[..., None]] = {
        s.ITERATOR: iterator,
        s.FETCH: fetch,
        s.BACKWARD: backward,
        s.BACKWARD_END: backward_end,
        s.UPDATE: update,
        s.UPDATE_END: update_end,
        s.SCALER: scaler_begin,
        s.SCALER_END: scaler_end,
        s.UNCAUGHT: uncaught,
        s.PHASE: phase,
        s.BEGIN: begin_step,
        s.END: end_step,
    }

    def finish(self, at: int) -> None:
        """The end of the training, or of our watching it: a step ends at its last update."""
        self._end_evaluation(at)
        if self.cur is not None and self.cur.updates:
            self._close(self.cur.update_end)
        elif self.cur is not None and self.cur.failed:
            self._close(self.cur.mark)
        elif self.cur is not None and self.cur.backwards and not self.update_ever:
            self.cur.update_end = self.cur.mark
            self.rounds.append(self.cur)
        self.cur = None
        if len(self.rounds) >= ASSUME_AT_END:
            self._take_rounds()
        if not self.trains and self._trains_elsewhere():
            self._fetched_for_others()
        for pending in self.pend.values():
            if pending.stopped or not self.trains:
                self._evaluate(pending)
        self.pend.clear()

    def _fetched_for_others(self) -> None:
        """A thread that trains nothing fetched for one that does: no evaluation, and nobody's wait."""
        self.totals.background_fetches += sum(len(pending.fetches) for pending in self.pend.values())
        self.pend.clear()

    # -- rules --------------------------------------------------------------------------------------

    def _closure_runs(self) -> bool:
        return bool(self.open_updates) and self.inner_end < self.open_updates[0][0] and self.backward_begin is not None

    def _current(self, at: int) -> Open:
        cur = self.cur
        if cur is None:
            fetches = self._decide()
            begin = min((fetch.begin for fetch in fetches), default=self.bound or at)
            cur = self.cur = Open(begin, fetches, mark=begin)
            for fetch in fetches:
                cur.spans.append(("data.wait", fetch.begin, fetch.end))
                cur.mark = max(cur.mark, fetch.end)
        elif self.pend and not self.open_updates:
            for fetch in self._decide():
                cur.fetches.append(fetch)
                cur.spans.append(("data.wait", fetch.begin, fetch.end))
                cur.mark = max(cur.mark, fetch.end)
        return cur

    def _decide(self) -> list[Fetch]:
        """Which undecided fetches were training (returned); the others were evaluation, or are dropped."""
        if not self.pend:
            return []
        last = self.last_it
        if last not in self.pend or (self.pend[last].stopped and any(not item.stopped for item in self.pend.values())):
            last = max(
                (key for key, item in self.pend.items() if not item.stopped or not item.fetches),
                key=lambda key: self.pend[key].fetches[-1].end if self.pend[key].fetches else 0,
                default=last,
            )
        training: list[Fetch] = []
        count_last = len(self.pend[last].fetches) if last in self.pend else 0
        loader_last = self._loader(last)
        for it, pending in self.pend.items():
            loader = self._loader(it)
            if it == last:
                verdict = "train"
            elif pending.stopped and loader not in self.previous:
                verdict = "evaluation"
            elif len(pending.fetches) > 4 * max(1, count_last):
                verdict = "evaluation"
            elif loader_last in self.previous and loader not in self.ever:
                verdict = "train" if self.newcomers.get(loader) == self.steps else "evaluation"
                self.newcomers[loader] = self.steps + 1
            elif self.previous and loader_last not in self.previous and self._made_before(it) < self.steps:
                verdict = "drop"
            else:
                verdict = "train"
            if verdict == "train":
                training += pending.fetches
            elif verdict == "evaluation":
                self._evaluate(pending)
        self.pend.clear()
        training.sort(key=lambda fetch: fetch.begin)
        for fetch in training:
            self._feeds(fetch)
        return training

    def _feeds(self, fetch: Fetch) -> None:
        known = self.iterators.get(fetch.it)
        if known is not None and not known.fed:
            known.fed = True
            if not known.counted:
                known.counted = True
                self.epoch += 1
                self.totals.stage("train").epochs += 1

    def _loader(self, it: int) -> int:
        known = self.iterators.get(it)
        return known.loader if known else -it

    def _made_before(self, it: int) -> int:
        known = self.iterators.get(it)
        return known.made_before if known else 0

    def _stop(self, it: int, known: Iterator, end: int) -> None:
        if it in self.pend:
            self.pend[it].stopped = True
        if self.cur is None:
            self.bound = max(self.bound, end)

    def _fail_fetch(self, begin: int, end: int, kind: str) -> None:
        cur = self.cur
        if cur is None:
            cur = self.cur = Open(begin, mark=end)
        cur.spans.append(("data.wait", begin, end))
        cur.failed = kind
        self._close(end)

    def _close_at_fetch(self, at: int) -> None:
        cur = self.cur
        if cur is None:
            return
        if self.open_updates:
            if self.inner_end >= self.open_updates[0][0]:  # raised once, then repeated with success
                begin = self.open_updates[0][0]
                self.open_updates.clear()
                self._updated(begin, self.inner_end)
            else:
                self.open_updates.clear()
                cur.failed = cur.failed or "unknown"
        if cur.updates or cur.failed:
            self._close(at)
        elif cur.backwards and not self.update_ever:
            if self.assumes:
                self._close(at, assumed=True)
            else:
                self._assume(at)

    def _assume(self, at: int) -> None:
        """Updates cannot be seen (compiled, or of the user's own making): after some rounds, rounds are steps."""
        assert self.cur is not None
        self.cur.update_end = at
        self.rounds.append(self.cur)
        self.cur = None
        self.bound = at
        if len(self.rounds) >= ASSUME_AFTER:
            self.assumes = True
            self._take_rounds()

    def _join_rounds(self, cur: Open) -> None:
        """An update after all: the rounds before it were the micro-batches of the first step."""
        rounds, self.rounds = self.rounds, []
        for earlier in reversed(rounds):
            cur.begin = earlier.begin
            cur.fetches[:0] = earlier.fetches
            cur.spans[:0] = earlier.spans

    def _take_rounds(self) -> None:
        rounds, self.rounds = self.rounds, []
        for cur in rounds:
            self.cur = cur
            self._close(cur.update_end, assumed=True)

    def _updated(self, begin: int, end: int) -> None:
        cur = self.cur
        if cur is None:
            return
        inside = [span for span in cur.spans if span[1] >= begin]
        if self.scaler is not None:
            begin = min(begin, self.scaler)
        at = begin
        for _, from_, to in inside:
            if from_ > at:
                cur.spans.append(("optimizer", at, from_))
            at = max(at, to)
        if end > at:
            cur.spans.append(("optimizer", at, end))
        cur.updates += 1
        cur.since_update = 0
        cur.has_closure = any(span[0] == "backward" for span in inside)
        cur.update_end = cur.mark = end
        cur.tail = []

    def _split(self, cur: Open) -> Open:
        """The same optimizer again, after a backward and no fetch: the next step began after its last update."""
        tail, end = cur.tail, cur.update_end
        cur.spans = [span for span in cur.spans if span[2] <= end]
        self._close(end)
        new = self.cur = Open(end, mark=end)
        for event in tail:
            (self.backward if event[0] == s.BACKWARD else self.backward_end)(*event[1:])
        return new

    def _close(self, end: int, *, assumed: bool = False) -> None:
        cur, self.cur = self.cur, None
        assert cur is not None
        self.bound = end
        self.inner_end = 0
        stage = self.totals.stage("train")
        phases = [item for item in self.phases if item[2] > cur.begin and item[1] < end]
        self.phases = [item for item in self.phases if item[1] >= end]
        spans = tile(cur.begin, end, cur.spans, phases)
        phase_ns = sums(cur.begin, end, spans)
        loaders = {self._loader(fetch.it) for fetch in cur.fetches}
        self.previous = loaders or self.previous
        self.ever |= loaders
        first = any(fetch.first for fetch in cur.fetches)
        step = Step(
            number=stage.steps + 1,
            stage="train",
            epoch=self.epoch,
            begin_ns=cur.begin,
            end_ns=end,
            spans=spans,
            phase_ns=phase_ns,
            samples=sum(fetch.samples for fetch in cur.fetches),
            first_of_epoch=first,
            failed=cur.failed,
            skipped=cur.skipped,
            assumed=assumed,
        )
        self.steps += 1
        self._on_step(step)

    def _evaluate(self, pending: Pending) -> None:
        for fetch in pending.fetches:
            self._evaluate_one(fetch, ended=True)

    def _evaluate_one(self, fetch: Fetch, *, ended: bool = False) -> None:
        self.evaluating = fetch
        if ended:
            self._end_evaluation(fetch.end)

    def _end_evaluation(self, at: int) -> None:
        fetch, self.evaluating = self.evaluating, None
        if fetch is None:
            return
        at = max(at, fetch.end)
        self.bound = at
        self._on_step(
            Step(
                number=self.totals.stage("validation").steps + 1,
                stage="validation",
                epoch=self.epoch,
                begin_ns=fetch.begin,
                end_ns=at,
                spans=[("data.wait", fetch.begin, fetch.end), ("forward", fetch.end, at)],
                phase_ns={"data.wait": fetch.end - fetch.begin, "forward": at - fetch.end},
                samples=fetch.samples,
                first_of_epoch=fetch.first,
            )
        )


def sums(begin: int, end: int, spans: list[tuple[str, int, int]]) -> dict[str, int]:
    """Time per phase; what no span covers is "other", so that all of it adds up to the step."""
    phase_ns: dict[str, int] = {}
    for name, from_, to in spans:
        phase_ns[name] = phase_ns.get(name, 0) + to - from_
    phase_ns["other"] = phase_ns.get("other", 0) + (end - begin) - sum(phase_ns.values())
    return phase_ns


def tile(
    begin: int, end: int, spans: list[tuple[str, int, int]], phases: list[tuple[str, int, int]]
) -> list[tuple[str, int, int]]:
    """Spans that do not overlap, within the step: the user's phases (inner ones come first), then the measured parts."""
    result: list[tuple[str, int, int]] = []
    for name, from_, to in [*phases, *sorted(spans, key=lambda span: (span[0] == "forward", span[1]))]:
        pieces = [(max(from_, begin), min(to, end))]
        for _, taken_from, taken_to in result:
            pieces = [
                piece
                for low, high in pieces
                for piece in ((low, min(high, taken_from)), (max(low, taken_to), high))
                if piece[1] > piece[0]
            ]
        result += [(name, low, high) for low, high in pieces if high > low]
    return sorted(result, key=lambda span: span[1])
