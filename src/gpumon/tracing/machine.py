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
from gpumon.tracing.iterations import Iterations
from gpumon.tracing.open_step import Fetch, Open, Pending
from gpumon.tracing.records import Step, Totals
from gpumon.tracing.updates import Update, Updates

ASSUME_AFTER, ASSUME_AT_END = 64, 8
"""Rounds of fetch and backward without any update ever: from then on, or at the end, each is taken for a step.

Before that they may be the micro-batches of the first step.
"""
BACKGROUND_AFTER = 32  # undecided fetches of a thread that trains nothing, while another one trains
UNDECIDED = 1024  # fetches of one iteration; beyond, the older ones cannot be for a step
UNKNOWN = "unknown"  # type of an exception that was caught out of our sight


class Machine:
    """Feeds on one thread's events in time order; *on_step* gets each closed step."""

    def __init__(self, totals: Totals, on_step: Callable[[Step], None], trains_elsewhere: Callable[[], bool]) -> None:
        self.totals = totals
        self.iterations = Iterations()
        self.trains = False  # had a backward or an update
        self.decider = Decider(self.iterations)
        self._closer = Closer(totals, on_step)
        self._trains_elsewhere = trains_elsewhere
        self._cur: Open | None = None
        self._pend: dict[int, Pending] = {}
        self._last: Fetch | None = None  # the fetch of which it is not known yet what follows it
        self._last_it = 0
        self._evaluated = False  # since the last step
        self._bound = 0  # end of the last closed thing
        self._closed = 0  # end of the last step
        self._backward_ever = self._update_ever = self._assumes = False
        self._rounds: list[Open] = []
        self._updates = Updates()
        self._previous_event = s.FETCH
        self._backward_begin = 0
        self._manual: tuple[str, int | None, bool, int] | None = None  # the training marks this step itself

    def feed(self, event: tuple[Any, ...]) -> None:
        if len(event) == s.ROW:
            for part in s.events_of(event):
                self.feed(part)
            return
        kind = event[0]
        if kind != s.PHASE:
            if kind == s.BACKWARD:
                self._reconsider()
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
        if self._pend or self._updates or self._rounds or self._manual or not self.iterations.fed(it):
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
        self._bound = self._closed = end
        self._evaluated = False
        self.iterations.ends(end)
        self.decider.fed({self.iterations.loader(its[-1])}, len(its))

    # -- events -------------------------------------------------------------------------------------

    def _iterator(self, begin: int, end: int, number: int, loader: int) -> None:
        self._boundary(begin)
        for it, pending in list(self._pend.items()):
            if pending.stopped:
                self._evaluate(self._pend.pop(it).fetches)
            elif self.iterations.loader(it) == loader:
                del self._pend[it]  # left by `break`
        self.iterations.make(number, loader, begin, end, self.decider.steps)
        self.iterations.ends(end)

    def _fetch(self, begin: int, end: int, outcome: str | None, it: int, grad: bool, samples: int) -> None:
        self.iterations.ends(end)
        if not self._manual:
            self._boundary(begin)
        for other in [key for key, pending in self._pend.items() if pending.stopped and key != it]:
            self._evaluate(self._pend.pop(other).fetches)
        if outcome == "stop":
            if it in self._pend:
                self._pend[it].stopped = True
            if self._cur is None:
                self._bound = max(self._bound, end)
            return
        fetch = self._last = self.iterations.fetch(it, begin, end, grad, samples, self.decider.steps)
        self.totals.loader_startup_ns += self.iterations.outside_ns
        self.iterations.outside_ns = 0
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
        if self._updates.suspect_at and self._updates.is_no_closure():
            self._update_raised()
        self._updates.suspect_at = 0
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
        update, cur = self._updates.end(opt), self._cur
        if update is not None and cur is not None:
            cur.real_updates += 1
            cur.add("optimizer", update.begin, end)
            if not self._updates:
                cur.updated(end)

    def _scaler(self, begin: int, opt: int) -> None:
        self._open_update(begin, opt, by_scaler=True)

    def _scaler_end(self, end: int, opt: int, error: str | None) -> None:
        update, cur = self._updates.end_scaler(), self._cur
        if update is not None and cur is not None:
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
        self._updates.clear()
        if (cur := self._current(at)) is not None:
            cur.failed = kind
            self._close(at)

    def _phase(self, name: str, begin: int, end: int) -> None:
        self._closer.phase(name, begin, end)

    def _begin_step(self, at: int, got: int, stage: str, epoch: int | None, first: bool, it: int, samples: int) -> None:
        self._end_step(at, None)  # the loop around this one
        self._updates.clear()
        self._boundary(at)
        self._rounds.clear()  # micro-batches of no step
        self._cur = None
        for it in [it for it, pending in self._pend.items() if pending.stopped]:
            self._evaluate(self._pend.pop(it).fetches)
        fetches = [] if got else self._decide()
        self._pend.clear()
        cur = self._open(min([at, *(fetch.from_ for fetch in fetches)]))
        self._take(fetches)
        if got:
            cur.add("data.wait", at, got)
            cur.mark = got
        if it:
            self.decider.previous = {self.iterations.loader(it)}
        self._manual = (stage, epoch, first, samples)
        if stage == "train":
            self.trains = self._update_ever = True
        if first:
            self._closer.begin_epoch(stage)

    def _end_step(self, at: int, failed: str | None) -> None:
        manual, cur = self._manual, self._cur
        if manual is None:
            return
        if cur is not None:
            cur.failed = failed or cur.failed
            self._close(at)
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
            self._end_step(at, None)
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
            if pending.stopped or self.iterations.loader(it) not in self.decider.ever:
                self._evaluate(pending.fetches)
        self._pend.clear()
        self._updates.clear()

    # -- boundaries ---------------------------------------------------------------------------------

    def _follow(self, at: int) -> None:
        """Something begins: what came before it ends here."""
        self.iterations.begins(at)
        fetch, self._last = self._last, None
        if fetch is not None:
            fetch.until = at
            if fetch.evaluates:
                self._evaluate([fetch])

    def _reconsider(self) -> None:
        """A backward with no other batch than one fetched with gradients off: that one was for training."""
        fetch = self._last
        if fetch is None or not fetch.evaluates or self._cur or self._pend or self._manual or self._evaluated:
            return
        fetch.evaluates = False
        self._last_it = fetch.it
        self._pend[fetch.it] = Pending([fetch])

    def _boundary(self, at: int) -> None:
        """A fetch or a new iterator: closes the step whose update is done."""
        cur = self._cur
        if self._updates:
            if self._previous_event != s.UPDATE_END:  # it raised, or this is a fetch of its closure
                self._updates.suspect_at = self._updates.suspect_at or at
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
            cur.update_end = self._bound = self._closed = at
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
            cur = self._open(begin)
            self._take(fetches)
        elif self._pend:
            self._take(self._decide())
        return cur

    def _open(self, begin: int) -> Open:
        begin = max(begin, self._closed)
        self._cur = Open(begin, mark=begin, cursor=begin)
        return self._cur

    def _open_update(self, begin: int, opt: int, *, by_scaler: bool) -> None:
        self.trains = self._update_ever = True
        self._assumes = False
        if self._updates.suspect_at and not self._updates.is_within_scaler():
            self._update_raised()
        self._updates.suspect_at = 0
        cur = self._current(begin)
        if cur is None:
            return
        self._join_rounds()
        if self._updates.is_tried_again(opt, cur.begins):
            self._updates.clear()
        if self._backward_begin:
            cur.add("backward", self._backward_begin, begin)
        if not self._updates:
            again = opt in cur.opts and (cur.begins > cur.opts[opt] or not self._backward_ever)
            if cur.updates and again and not self._manual:
                cur = self._split(cur)
            cur.mark = max(cur.mark, begin)
        has_backward = cur.since_update > 0 and not self._backward_begin
        self._updates.begin(Update(begin, opt, by_scaler, cur.begins, has_backward))
        cur.opts[opt] = cur.begins

    def _updated_at_last(self) -> None:
        """An update raised and was repeated with success."""
        self._updates.clear()
        if self._cur is not None:
            self._cur.updated(self._cur.cursor)

    def _update_raised(self) -> None:
        """An update has no end, and a fetch and then training followed: it raised, and the step ended there."""
        at = self._updates.suspect_at
        self._updates.clear()
        if self._cur is not None and not self._manual:
            self._cur.failed = self._cur.failed or UNKNOWN
            self._close(at)
        for pending in self._pend.values():
            self._evaluate([fetch for fetch in pending.fetches if not fetch.grad])
            pending.fetches = [fetch for fetch in pending.fetches if fetch.grad]
        self._pend = {it: pending for it, pending in self._pend.items() if pending.fetches}

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

    def _settle_rounds(self) -> None:
        """What ends now failed before any update was seen: micro-batches of it, or steps before it."""
        if len(self._rounds) < ASSUME_AT_END:
            self._join_rounds()
        else:
            cur = self._cur
            self._take_rounds()
            self._cur = cur

    def _take_rounds(self) -> None:
        rounds, self._rounds = self._rounds, []
        for self._cur in rounds:
            self._close(self._cur.update_end, assumed=True)

    # -- fetches ------------------------------------------------------------------------------------

    def _fail(self, fetch: Fetch, kind: str) -> None:
        if self._manual:
            if self._cur is not None:
                self._cur.take([fetch])
                self._cur.failed = kind
            return
        self._pend.pop(fetch.it, None)
        stage = "train"
        if self._cur is None:
            self._open(fetch.from_)
            stage = "train" if fetch.grad else "validation"
        assert self._cur is not None
        self._cur.take([fetch])
        self._cur.failed = kind
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

    def _close(self, end: int, *, assumed: bool = False, stage: str = "train") -> None:
        if self._rounds and not assumed:
            self._settle_rounds()
        cur, self._cur = self._cur, None
        assert cur is not None
        epoch, begins_epoch, samples = None, False, 0
        if self._manual:
            stage, epoch, begins_epoch, samples = self._manual
            cur.real_updates = cur.updates
        if stage == "train":
            self.decider.fed({self.iterations.loader(fetch.it) for fetch in cur.fetches}, 1)
        self._closer.step(cur, end, stage, epoch=epoch, first=begins_epoch, samples=samples, assumed=assumed)
        self._bound = self._closed = end
        self._evaluated = False

    def _evaluate(self, fetches: list[Fetch]) -> None:
        for fetch in fetches:
            self._bound = max(self._bound, self._closer.evaluation(fetch))
            self._evaluated = True
