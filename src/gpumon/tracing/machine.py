"""The boundary rules: from a training thread's events to steps.

A step is one optimizer update. It tiles time: from its first training fetch (else from the end of what was
before it) to the first fetch, or the first new iterator, after its last update. What a fetch was for shows
only later, so fetches are pending until a backward or an update comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from gpumon.tracing import stamps as s
from gpumon.tracing.closing import Closer
from gpumon.tracing.deciding import Decider
from gpumon.tracing.open_step import Fetch, Iteration, Open, Pending, Update
from gpumon.tracing.records import Step, Totals

ASSUME_AFTER, ASSUME_AT_END = 64, 8
"""Rounds of fetch and backward without any update ever: from then on, or at the end, each is taken for a step.

Before that they may be the micro-batches of the first step.
"""
BACKGROUND_AFTER = 32  # undecided fetches of a thread that trains nothing, while another one trains
UNDECIDED = 1024  # fetches of one iteration; beyond, the older ones cannot be for a step
STARTUP_GAP_NS = 50_000_000  # between a loader's `__iter__` and its first fetch, when both are one wait
ITERATIONS = 4096
UNKNOWN = "unknown"  # type of an exception that was caught out of our sight


class Machine:
    """Feeds on one thread's events in time order; *on_step* gets each closed step."""

    def __init__(self, totals: Totals, on_step: Callable[[Step], None], trains_elsewhere: Callable[[], bool]) -> None:
        self.totals = totals
        self.iterations: dict[int, Iteration] = {}
        self.trains = False  # had a backward or an update
        self.decider = Decider(self.iterations)
        self._closer = Closer(totals, on_step)
        self._trains_elsewhere = trains_elsewhere
        self._cur: Open | None = None
        self._pend: dict[int, Pending] = {}
        self._last: Fetch | None = None  # the fetch of which it is not known yet what follows it
        self._last_it = 0
        self._bound = 0  # end of the last closed thing
        self._backward_ever = self._update_ever = self._assumes = False
        self._rounds: list[Open] = []
        self._updates: list[Update] = []  # open ones, the outermost first
        self._suspect = 0  # begin of a fetch while an update was open: did that raise?
        self._previous_event = s.FETCH
        self._backward_begin = 0
        self._manual: tuple[str, int | None, bool] | None = None  # the training marks this step itself
        self._idle_ns = self._idle_from = 0  # time between events

    def feed(self, event: tuple[Any, ...]) -> None:
        if len(event) == s.ROW:
            f0, f1, b0, b1, o0, o1, it, samples, _ = event
            for part in (
                (s.FETCH, f0, f1, None, it, True, samples),
                (s.BACKWARD, b0),
                (s.BACKWARD_END, b1, None),
                (s.UPDATE, o0, 0),
                (s.UPDATE_END, o1, 0),
            ):
                self.feed(part)
            return
        kind = event[0]
        if kind != s.PHASE:
            self._follow(event[1])
        self._handlers[kind](self, *event[1:])
        if kind not in (s.ITERATOR, s.FETCH, s.PHASE):
            self._previous_event = kind

    @property
    def epoch(self) -> int:
        """Of training, 1-based; 0 before the first."""
        return self._closer.epoch

    # -- regular steps ------------------------------------------------------------------------------

    def accepts(self, begin: int, it: int) -> bool:
        """Whether the regular step that *begin*s now may be summed as it is; closes what it ends."""
        known = self.iterations.get(it)
        if known is None or not known.fed or self._pend or self._updates or self._rounds or self._manual:
            return False
        cur = self._cur
        if cur is not None:
            if not cur.updates and cur.failed is None:
                return False
            self._close(begin)
        self._follow(begin)
        return self._closer.has_no_phases(begin)

    def sum(self, its: tuple[int, ...], end: int) -> None:
        """Regular steps were summed, with a batch of each of *its*."""
        self.trains = self._backward_ever = self._update_ever = True
        self._assumes = False
        self._bound = self._idle_from = end
        self.decider.fed({self.iterations[its[-1]].loader}, len(its))

    # -- events -------------------------------------------------------------------------------------

    def _iterator(self, begin: int, end: int, number: int, loader: int) -> None:
        self._boundary(begin)
        for it, pending in list(self._pend.items()):
            if pending.stopped:
                self._evaluate(self._pend.pop(it).fetches)
            elif self.decider.loader(it) == loader:
                del self._pend[it]  # left by `break`
        self.iterations[number] = Iteration(number, loader, begin, (begin, end), self._idle_ns, self.decider.steps)
        if len(self.iterations) > ITERATIONS:
            for old in list(self.iterations)[: ITERATIONS // 2]:
                del self.iterations[old]
        self._idle_from = end

    def _fetch(self, begin: int, end: int, outcome: str | None, it: int, grad: bool, samples: int) -> None:
        self._idle_from = end
        if not self._manual:
            self._boundary(begin)
        for other in [key for key, pending in self._pend.items() if pending.stopped and key != it]:
            self._evaluate(self._pend.pop(other).fetches)
        known = self.iterations.setdefault(it, Iteration(it, -it, fetches=1))
        fetch = Fetch(begin, end, it, samples, known.fetches == 0, grad, self._startup(known))
        if outcome == "stop":
            if it in self._pend:
                self._pend[it].stopped = True
            if self._cur is None:
                self._bound = max(self._bound, end)
            return
        known.fetches += 1
        self._last = fetch
        if outcome is not None:
            self._fail(fetch, outcome)
        elif self._manual and (grad or self._manual[0] != "train"):
            if self._cur is not None:
                self._take([fetch])
        elif not grad and not self._updates:
            if self._manual:
                self._boundary(begin)
            fetch.evaluates = True
        else:
            self._last_it = it
            pending = self._pend.setdefault(it, Pending())
            pending.fetches.append(fetch)
            if not self.trains and len(pending.fetches) >= BACKGROUND_AFTER and self._trains_elsewhere():
                self._fetched_for_others()
            elif len(pending.fetches) > UNDECIDED:
                self._evaluate(pending.fetches[: UNDECIDED // 2])
                del pending.fetches[: UNDECIDED // 2]

    def _backward(self, begin: int) -> None:
        self.trains = self._backward_ever = True
        if self._suspect:
            if self._updates and self._updates[0].has_backward:
                self._update_raised()
            self._suspect = 0
        self._backward_begin = begin
        cur = self._current(begin)
        if cur is not None:
            cur.add("forward", cur.mark, begin)
            cur.mark = begin
            cur.begins += 1
            cur.since_update += 1

    def _backward_end(self, end: int, error: str | None) -> None:
        begin, self._backward_begin = self._backward_begin, 0
        cur = self._cur
        if cur is None or not begin:
            return
        cur.add("backward", begin, end)
        cur.mark = end
        cur.failed = error  # a good one makes up for one that raised
        cur.backwards += error is None

    def _update(self, begin: int, opt: int) -> None:
        self._open_update(begin, opt, by_scaler=False)

    def _update_end(self, end: int, opt: int) -> None:
        if not any(update.opt == opt and not update.by_scaler for update in self._updates):
            return
        self._suspect = 0
        while (update := self._updates.pop()).opt != opt or update.by_scaler:
            pass
        cur = self._cur
        if cur is not None:
            cur.real_updates += 1
            cur.add("optimizer", update.begin, end)
            if not self._updates:
                cur.updated(end)

    def _scaler(self, begin: int, opt: int) -> None:
        self._open_update(begin, opt, by_scaler=True)

    def _scaler_end(self, end: int, opt: int, error: str | None) -> None:
        if not any(update.by_scaler for update in self._updates):
            return
        self._suspect = 0
        while not (update := self._updates.pop()).by_scaler:
            pass
        cur = self._cur
        if cur is not None:
            cur.add("optimizer", update.begin, end)
            cur.failed = error or cur.failed
            if not self._updates and error is None:
                cur.updated(end)  # or skipped, which is as good for telling where steps end

    def _uncaught(self, at: int, kind: str) -> None:
        cur = self._cur
        if cur is None and not any(pending.fetches for pending in self._pend.values()):
            return
        if cur is not None and cur.updates and not self._updates and not cur.since_update:
            return  # that step was done
        self._suspect = 0
        self._updates.clear()
        if (cur := self._current(at)) is not None:
            cur.failed = kind
            self._close(at)

    def _phase(self, name: str, begin: int, end: int) -> None:
        self._closer.phase(name, begin, end)

    def _begin_step(self, at: int, got: int, stage: str, epoch: int | None, first: bool, it: int) -> None:
        self._end_step(at, None, 0)  # the loop around this one
        self._suspect = 0
        self._updates.clear()
        self._boundary(at)
        self._join_rounds()
        self._cur, fetches = None, []
        if not got:
            fetches = self._decide()
        self._pend.clear()
        cur = self._cur = Open(min([at, *(fetch.from_ for fetch in fetches)]))
        cur.mark = cur.cursor = cur.begin
        self._take(fetches)
        if got:
            cur.add("data.wait", at, got)
            cur.mark = got
        if it in self.iterations:
            self.decider.previous = {self.iterations[it].loader}
        self._manual = (stage, epoch, first)
        if stage == "train":
            self.trains = self._update_ever = True
        if first:
            self._closer.begin_epoch(stage)

    def _end_step(self, at: int, failed: str | None, samples: int) -> None:
        manual, cur = self._manual, self._cur
        if manual is None:
            return
        if cur is not None:
            cur.failed = failed or cur.failed
            self._close(at, samples=samples)
        self._manual = None
        self._updates.clear()

    _handlers: ClassVar[dict[int, Callable[..., None]]] = {
        s.ITERATOR: _iterator,
        s.FETCH: _fetch,
        s.BACKWARD: _backward,
        s.BACKWARD_END: _backward_end,
        s.UPDATE: _update,
        s.UPDATE_END: _update_end,
        s.SCALER: _scaler,
        s.SCALER_END: _scaler_end,
        s.UNCAUGHT: _uncaught,
        s.PHASE: _phase,
        s.BEGIN: _begin_step,
        s.END: _end_step,
    }

    def finish(self, at: int) -> None:
        """The end of the training, or of our watching it: a step ends at its last update."""
        self._follow(at)
        cur = self._cur
        if self._manual:
            self._end_step(at, None, 0)
        elif cur is not None and self._updates and self._previous_event == s.UPDATE_END:
            self._updated_at_last()
            self._close(cur.update_end)
        elif cur is not None and cur.updates:
            self._close(cur.update_end)
        elif cur is not None and cur.failed:
            self._close(cur.mark)
        elif cur is not None and cur.backwards and not self._update_ever:
            cur.update_end = cur.mark
            self._rounds.append(cur)
        self._cur = None
        if len(self._rounds) >= ASSUME_AT_END or self._assumes:
            self._take_rounds()
        if not self.trains and self._trains_elsewhere():
            self._fetched_for_others()
        for it, pending in self._pend.items():
            if pending.stopped or self.decider.loader(it) not in self.decider.ever:
                self._evaluate(pending.fetches)
        self._pend.clear()
        self._updates.clear()

    # -- boundaries ---------------------------------------------------------------------------------

    def _follow(self, at: int) -> None:
        """Something begins: what came before it ends here."""
        if self._idle_from:
            self._idle_ns += max(0, at - self._idle_from)
        self._idle_from = at
        fetch, self._last = self._last, None
        if fetch is not None:
            fetch.until = at
            if fetch.evaluates:
                self._evaluate([fetch])

    def _boundary(self, at: int) -> None:
        """A fetch or a new iterator: closes the step whose update is done."""
        cur = self._cur
        if self._updates:
            if self._previous_event != s.UPDATE_END:  # it raised, or this is a fetch of its closure
                self._suspect = self._suspect or at
                return
            self._updated_at_last()
        if cur is None:
            return
        if cur.updates or cur.failed:
            self._close(at)
        elif cur.backwards and not self._update_ever and not self._manual:
            # Updates cannot be seen (compiled, or of the user's own making), or this is accumulation.
            if self._assumes:
                self._close(at, assumed=True)
                return
            cur.update_end = self._bound = at
            self._rounds.append(cur)
            self._cur = None
            if len(self._rounds) >= ASSUME_AFTER:
                self._assumes = True
                self._take_rounds()

    def _current(self, at: int) -> Open | None:
        """The step in progress; begun now where there is none."""
        cur = self._cur
        if self._manual:
            return cur
        if cur is None:
            fetches = self._decide()
            begin = min((fetch.from_ for fetch in fetches), default=self._bound or at)
            cur = self._cur = Open(begin, mark=begin, cursor=begin)
            self._take(fetches)
        elif self._pend:
            self._take(self._decide())
        return cur

    def _open_update(self, begin: int, opt: int, *, by_scaler: bool) -> None:
        self.trains = self._update_ever = True
        self._assumes = False
        if self._suspect and not (self._updates and self._updates[-1].by_scaler):
            self._update_raised()
        self._suspect = 0
        cur = self._current(begin)
        if cur is None:
            return
        self._join_rounds()
        last = self._updates[-1] if self._updates else None
        if last and last.opt == opt and last.has_backward and cur.begins > last.begins and not last.by_scaler:
            self._updates.clear()  # raised, and tried again after another backward
        if self._backward_begin:
            cur.add("backward", self._backward_begin, begin)
        if not self._updates:
            again = opt in cur.opts and (cur.begins > cur.opts[opt] or not self._backward_ever)
            if cur.updates and again and not self._manual:
                cur = self._split(cur)
            cur.mark = max(cur.mark, begin)
        has_backward = cur.since_update > 0 and not self._backward_begin
        self._updates.append(Update(begin, opt, by_scaler, cur.begins, has_backward))
        cur.opts[opt] = cur.begins

    def _updated_at_last(self) -> None:
        """An update raised and was repeated with success."""
        self._updates.clear()
        if self._cur is not None:
            self._cur.updated(self._cur.cursor)

    def _update_raised(self) -> None:
        """An update has no end, and a fetch and then training followed: it raised, and the step ended there."""
        at, self._suspect = self._suspect, 0
        self._updates.clear()
        if self._cur is not None and not self._manual:
            self._cur.failed = self._cur.failed or UNKNOWN
            self._close(at)
        for pending in self._pend.values():
            self._evaluate([fetch for fetch in pending.fetches if not fetch.grad])
            pending.fetches = [fetch for fetch in pending.fetches if fetch.grad]

    def _split(self, cur: Open) -> Open:
        """The same optimizer again, after a backward and no fetch: the next step began after its last update."""
        end, parts, begins, mark = cur.update_end, cur.parts[cur.parts_at_update :], cur.since_update, cur.mark
        del cur.parts[cur.parts_at_update :]
        self._close(end)
        self._cur = Open(end, mark=mark, cursor=cur.cursor, parts=parts, begins=begins, since_update=begins)
        return self._cur

    def _join_rounds(self) -> None:
        """An update after all: the rounds before it were the micro-batches of the first step."""
        rounds, self._rounds = self._rounds, []
        cur = self._cur
        if cur is not None and rounds:
            cur.begin = rounds[0].begin
            cur.fetches[:0] = [fetch for earlier in rounds for fetch in earlier.fetches]
            cur.parts[:0] = [part for earlier in rounds for part in earlier.parts]

    def _take_rounds(self) -> None:
        rounds, self._rounds = self._rounds, []
        for self._cur in rounds:
            self._close(self._cur.update_end, assumed=True)

    # -- fetches ------------------------------------------------------------------------------------

    def _startup(self, known: Iteration) -> tuple[int, int] | None:
        """The start of a loader's workers, where the first fetch followed; that is one wait."""
        made, known.made = known.made, None
        if made is None:
            return None
        if self._idle_ns - known.idle_ns < STARTUP_GAP_NS and known.after_step == self.decider.steps:
            return made
        self.totals.loader_startup_ns += made[1] - made[0]
        return None

    def _fail(self, fetch: Fetch, kind: str) -> None:
        if self._manual:
            if self._cur is not None:
                self._cur.take([fetch])
                self._cur.failed = kind
            return
        self._pend.pop(fetch.it, None)
        stage = "train"
        if self._cur is None:
            self._cur = Open(fetch.from_, cursor=fetch.from_)
            stage = "train" if fetch.grad else "validation"
        self._cur.take([fetch])
        self._cur.failed = kind
        self._suspect = 0
        self._updates.clear()
        self._close(fetch.end, stage=stage)

    def _take(self, fetches: list[Fetch]) -> None:
        assert self._cur is not None
        self._cur.take(fetches)
        if self._manual and self._manual[0] != "train":
            return
        for fetch in fetches:
            known = self.iterations.get(fetch.it)
            if known is not None and not known.fed:
                known.fed = True
                self._closer.begin_epoch("train")

    def _decide(self) -> list[Fetch]:
        """Which of the pending fetches were training (returned), now that a step uses them."""
        if not self._pend:
            return []
        training, evaluation = self.decider.decide(self._pend, self._last_it, self._rounds)
        self._pend.clear()
        self._evaluate(evaluation)
        return training

    def _fetched_for_others(self) -> None:
        """A thread that trains nothing fetched for one that does: no evaluation, and nobody's wait."""
        self.totals.background_fetches += sum(len(pending.fetches) for pending in self._pend.values())
        self._pend.clear()

    # -- closing ------------------------------------------------------------------------------------

    def _close(self, end: int, *, assumed: bool = False, stage: str = "train", samples: int = 0) -> None:
        cur, self._cur = self._cur, None
        assert cur is not None
        epoch, begins_epoch = None, False
        if self._manual:
            stage, epoch, begins_epoch = self._manual
            cur.real_updates = cur.updates
        if stage == "train":
            self.decider.fed({self.decider.loader(fetch.it) for fetch in cur.fetches}, 1)
        self._closer.step(cur, end, stage, epoch=epoch, first=begins_epoch, samples=samples, assumed=assumed)
        self._bound = end

    def _evaluate(self, fetches: list[Fetch]) -> None:
        for fetch in fetches:
            self._bound = max(self._bound, self._closer.evaluation(fetch))
