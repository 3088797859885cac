"""The boundary rules on sequences of events, written as one letter per event."""

import itertools
import random

import pytest

from gpumon.tracing import stamps as s
from gpumon.tracing.machine import Machine
from gpumon.tracing.records import Totals

MS = 1_000_000


class Thread:
    """Feeds a machine with events that are 1 ms apart; fetches, backwards and updates take 1 ms each.

    `Ia` makes an iterator of loader a, `Fa` fetches from it, `Na` does so with gradients off, `Sa` is its end, `Ea` a
    fetch that raises; `b` and `B` begin and end a backward, `!` is one that raised; `o1` and `O1` begin and end an
    update of optimizer 1; `g1`, `G1` a scaler's step; `X` an exception that nobody caught; `.` passes 10 ms.
    """

    def __init__(self, elsewhere=False):
        self.totals, self.steps, self.now, self.numbers = Totals(), [], 0, {}
        self.machine = Machine(self.totals, self._take, lambda: elsewhere)

    def _take(self, step):
        assert sum(step.phase_ns.values()) == step.end_ns - step.begin_ns
        assert all(ns >= 0 for ns in step.phase_ns.values())
        ends = [step.begin_ns, *(end for _, _, end in step.spans)]
        assert all(begin >= end for (_, begin, _), end in zip(step.spans, ends, strict=False))
        assert ends[-1] <= step.end_ns
        self.steps.append(step)

    def run(self, text, finish=True):
        for word in text.split():
            self._event(word[0], word[1:])
        if finish:
            self.machine.finish(self.now)
        return [self._show(step) for step in self.steps]

    @staticmethod
    def _show(step):
        name = "eval" if step.stage == "validation" else "step"
        marks = "!" * bool(step.failed) + "~" * step.skipped + "?" * step.assumed
        return f"{name}{marks} {step.begin_ns // MS}-{step.end_ns // MS}"

    def _event(self, kind, name):
        begin = self.now
        self.now += 10 * MS if kind == "." else MS
        feed = self.machine.feed
        loader = ord(name) if name else 0
        if kind == "I":
            self.numbers[name] = len(self.numbers) + 1 + 100 * self.numbers.get(name, 0)
            feed((s.ITERATOR, begin, self.now, self.numbers[name], loader))
        elif kind in "FNSE":
            outcome = {"S": "stop", "E": "ValueError"}.get(kind)
            feed((s.FETCH, begin, self.now, outcome, self.numbers.get(name, -loader), kind != "N", 4))
        elif kind == "b":
            feed((s.BACKWARD, begin))
        elif kind in "B!":
            feed((s.BACKWARD_END, begin, None if kind == "B" else "RuntimeError"))
        elif kind in "oOg":
            feed(({"o": s.UPDATE, "O": s.UPDATE_END, "g": s.SCALER}[kind], begin, int(name)))
        elif kind == "G":
            feed((s.SCALER_END, begin, int(name), None))
        elif kind == "X":
            feed((s.UNCAUGHT, begin, "KeyError"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ia Fa b B o1 O1 Fa b B o1 O1 Sa", ["step 0-6", "step 6-11"]),
        ("Ia . . . . . . Fa b B o1 O1 Sa", ["step 61-66"]),  # work between iter() and the first fetch
        ("Ia Fa b B Fa b B o1 O1 Sa", ["step 0-9"]),  # accumulation
        ("Ia Fa Fa b B b B o1 O1 Sa", ["step 0-9"]),  # fetched up front
        ("Ia Fa b B Fa Sa b B o1 O1", ["step 0-9"]),  # the last, partial accumulation comes after the end
        ("b B o1 O1 b B o1 O1 b B o1 O1", ["step 0-3", "step 3-7", "step 7-11"]),  # no loader
        ("o1 O1 o1 O1", ["step 0-1", "step 1-3"]),  # no backward ever
        ("Ia Fa b B o1 O1 b B o2 O2 Fa b B o1 O1 b B o2 O2", ["step 0-10", "step 10-18"]),  # two optimizers
        ("Ia Fa b B o1 O1 o1 O1 o1 O1 Sa", ["step 0-10"]),  # the same one again without a backward between
        ("Ia Fa b B o1 o1 O1 O1 Fa b B o1 o1 O1 O1 Sa", ["step 0-8", "step 8-15"]),  # super().step()
        ("Ia Fa o1 b B b B O1 Fa o1 b B O1 Sa", ["step 0-8", "step 8-13"]),  # closures
        ("Ia o1 Fa b B O1 o1 Fa b B O1", ["step 1-5", "step 5-10"]),  # a fetch in the closure
        ("Ia Fa b B g1 o1 O1 G1 Fa b B g1 G1 Fa", ["step 0-8", "step~ 8-13"]),  # a scaler's skipped update
        ("Ia Fa b B g1 G1 g2 o2 O2 G2 Sa", ["step 0-10"]),  # skipped of one optimizer only
        ("Ia Fa b ! Fa b B o1 O1 Sa", ["step! 0-4", "step 4-9"]),  # a backward that raised, its batch dropped
        ("Ia Fa b ! b B o1 O1 Sa", ["step 0-8"]),  # and retried
        ("Ia Fa b B o1 Fa b B o1 O1 Sa", ["step! 0-5", "step 5-10"]),  # an update that raised
        ("Ia Fa b B o1 o1 O1 Fa b B o1 O1 Sa", ["step 0-7", "step 7-12"]),  # and was repeated
        ("Ia Fa b B o1 O1 Ea Ia Fa b B o1 O1", ["step 0-6", "step! 6-7", "step 7-12"]),  # a fetch that raised
        ("Ia Fa b X", ["step! 0-3"]),
        ("Ia Fa X", ["step! 0-2"]),
        ("Ia Fa b B o1 O1 X", ["step 0-5"]),  # the step was done
        ("Ia Fa b B o1 O1 Sa Ic Nc Nc Sc Ia Fa b B o1 O1", ["step 0-6", "eval 7-9", "eval 9-10", "step 11-16"]),
        ("Ia Fa b B o1 O1 Ic Fc Fc Sc Fa b B o1 O1", ["step 0-6", "eval 6-8", "eval 8-9", "step 10-14"]),
        ("Ia Na b B o1 O1 Na b B o1 O1 Sa", ["step 0-6", "step 6-11"]),  # training batches fetched under no_grad
        ("Ia Na Na Na Sa", ["eval 0-2", "eval 2-3", "eval 3-4"]),  # inference only
        ("Ia Fa Fa Sa", ["eval 0-2", "eval 2-3"]),
        ("Ia Fa b B o1 O1 . Fa b B o1 O1 .", ["step 0-16", "step 16-20"]),  # logging is the step's, but for the last
    ],
)
def test_rules(text, expected):
    """Where steps begin and end, and which of them are failed, skipped or evaluation."""
    assert Thread().run(text) == expected


def test_phases_of_a_step():
    """Wait with the workers' start, forward, backward, update, and the rest."""
    thread = Thread()
    thread.run("Ia Fa . b . B . o1 . O1 . Fa")
    assert {name: ns // MS for name, ns in thread.steps[0].phase_ns.items()} == {
        "data.wait": 2,
        "forward": 10,
        "backward": 11,
        "optimizer": 11,
        "other": 22,
    }


def test_a_closure_has_forward_and_backward_inside_the_update():
    """The update keeps what is left of its time."""
    thread = Thread()
    thread.run("Ia Fa o1 . b . B . O1 Fa")
    phase_ms = {name: ns // MS for name, ns in thread.steps[0].phase_ns.items()}
    assert phase_ms == {"data.wait": 2, "forward": 11, "backward": 11, "optimizer": 11, "other": 1}


def test_first_of_epoch_and_epochs():
    """An epoch is an iteration that fed a step; its first step is marked."""
    thread = Thread()
    thread.run("Ia Fa b B o1 O1 Fa b B o1 O1 Sa Ia Fa b B o1 O1 Sa Ic Nc Sc")
    assert [step.first_of_epoch for step in thread.steps if step.stage == "train"] == [True, False, True]
    assert [step.epoch for step in thread.steps] == [1, 1, 2, 2]
    assert thread.totals.stage("train").epochs == 2


def test_rounds_without_any_update_are_assumed_steps():
    """Eight at the end, or more in between; fewer may be micro-batches."""
    assert Thread().run("Ia " + "Fa b B " * 7) == []
    assert len([step for step in Thread().run("Ia " + "Fa b B " * 8) if step.startswith("step?")]) == 8
    assert len(Thread().run("Ia " + "Fa b B " * 70, finish=False)) == 69
    assert len(Thread().run("Ia " + "Fa b B " * 60 + "o1 O1")) == 1


def test_a_thread_that_only_fetches_beside_one_that_trains():
    """Its fetches are neither evaluation nor waits."""
    thread = Thread(elsewhere=True)
    assert thread.run("Ia " + "Fa " * 40 + "Sa") == []
    assert thread.totals.background_fetches == 40


def test_named_phases_take_their_time_out_of_what_they_lie_in():
    """Inner ones out of outer ones; waits for data stay waits."""
    thread = Thread()
    for word, phase in (("Ia", ""), ("Fa", ""), (".", "augment"), ("b", ""), ("B", ""), ("Fa", "")):
        begin = thread.now
        thread.run(word, finish=False)
        if phase:
            thread.machine.feed((s.PHASE, phase, begin, thread.now))
    thread.machine.feed((s.PHASE, "all", 0, thread.now))
    thread.run("b B o1 O1 Fa", finish=False)
    phase_ms = {name: ns // MS for name, ns in thread.steps[0].phase_ns.items()}
    assert phase_ms == {"data.wait": 3, "augment": 10, "all": 2, "backward": 1, "optimizer": 1, "other": 2}


def test_steps_that_the_training_marks():
    """Backward and update are parts of such a step; an evaluation after the update ends it."""
    thread = Thread()
    thread.machine.feed((s.BEGIN, 0, 2 * MS, "train", None, True, 0, 7))
    thread.now = 3 * MS
    thread.run("b B o1 O1", finish=False)
    thread.run("Ic Nc Nc Sc", finish=False)
    thread.machine.feed((s.END, 20 * MS, None))
    assert [Thread._show(step) for step in thread.steps] == ["step 0-7", "eval 7-9", "eval 9-10"]
    assert thread.steps[0].phase_ns["backward"] == MS
    assert thread.steps[0].samples == 7


@pytest.mark.parametrize("seed", range(300))
def test_whatever_comes_is_survived(seed):
    """Events in any order: no error, phases add up, spans lie in their step, steps do not overlap."""
    pick = random.Random(seed)
    words = [
        "Ia",
        "Fa",
        "Na",
        "Sa",
        "Ea",
        "Ic",
        "Fc",
        "Nc",
        "Sc",
        "b",
        "B",
        "!",
        "o1",
        "O1",
        "o2",
        "O2",
        "g1",
        "G1",
        "X",
        ".",
    ]
    thread = Thread()
    thread.run(" ".join(pick.choice(words) for _ in range(200)))
    train = [step for step in thread.steps if step.stage == "train"]
    assert all(one.end_ns <= two.begin_ns for one, two in itertools.pairwise(train))
