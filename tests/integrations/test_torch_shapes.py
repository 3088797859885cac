"""Every loop shape: counts exact, waits as the loop's own clock has them, weights bit for bit as without us."""

import pytest
import torch

from gpumon.integrations import torch as integration
from gpumon.tracing.steps import StepTracer
from integrations import loop_shapes
from integrations.framework_shapes import FRAMEWORKS

ROWS = []


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def state(model):
    return [value.clone() for value in model.state_dict().values()]


def watched(function):
    tracer = StepTracer()
    integration.instrument(tracer)
    try:
        clock = loop_shapes.Clock()
        weights = state(function(clock))
    finally:
        integration.uninstrument()
    tracer.finish()
    return tracer.totals, clock, weights


@pytest.mark.parametrize("name", loop_shapes.SHAPES)
def test_shape(name):
    """Steps, samples, epochs, evaluation, failed, skipped and assumed steps are what the loop did."""
    check(name, *loop_shapes.SHAPES[name])


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_framework(name):
    """The same for loops that a framework writes."""
    function, expected, missing = FRAMEWORKS[name]
    if missing:
        pytest.skip(f"pip install {missing}")
    check(name, function, expected)


def check(name, function, expected):
    expected = dict(expected)
    compare_share, bitwise = expected.pop("share", True), expected.pop("bitwise", True)
    without = state(function(loop_shapes.Clock()))

    totals, clock, weights = watched(function)

    train, validation = totals.stage("train"), totals.stage("validation")
    given = {
        "steps": train.steps,
        "epochs": train.epochs,
        "samples": train.samples,
        "failed": train.failures + validation.failures,
        "skipped": train.skipped,
        "assumed": train.assumed,
        "evaluation": validation.steps,
        "background": totals.background_fetches,
    }
    share = train.phase_ns.get("data.wait", 0) / train.step_ns if train.step_ns else 0.0
    own = clock.wait / clock.total if clock.total else None
    ROWS.append((name, dict(expected), {key: given[key] for key in expected}, share, own))
    for key in ("failed", "skipped", "assumed", "evaluation", "background"):
        expected.setdefault(key, 0)
    assert {key: given[key] for key in expected} == expected
    assert sum(train.phase_ns.values()) == train.step_ns
    assert sum(train.durations.counts) == train.steps + train.skipped
    if compare_share:
        assert share == pytest.approx(own, abs=0.05)
    if bitwise:
        assert all(torch.equal(one, two) for one, two in zip(without, weights, strict=True))


def test_table(capsys):
    """Prints what was expected and given, by shape."""
    with capsys.disabled():
        print(f"\n{'shape':53}{'expected → given':62}share machine / loop")
        for name, expected, given, share, own in ROWS:
            both = ", ".join(f"{key} {expected[key]} → {given[key]}" for key in expected)
            print(f"{name:53}{both:62}{share:.3f} / {'–' if own is None else f'{own:.3f}'}")
