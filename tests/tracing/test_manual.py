"""`gpumon.steps`, `gpumon.step` and `gpumon.phase`: steps that the training marks itself."""

import time

import pytest

import gpumon
from gpumon.tracing import manual
from gpumon.tracing.steps import StepTracer


@pytest.fixture
def tracer():
    tracer = StepTracer()
    manual.use(tracer)
    yield tracer
    manual.use(None)


def slow(count, seconds=0.01):
    for number in range(count):
        time.sleep(seconds)
        yield [number] * 4


def totals(tracer, stage="train"):
    tracer.finish()
    return tracer.totals.stage(stage)


def test_each_item_is_a_step_and_the_wait_for_it_is_data_wait(tracer):
    """Steps, epochs, samples and waits of a loop without any loader."""
    for epoch in range(2):
        for _batch in gpumon.steps(slow(5), epoch=epoch):
            time.sleep(0.005)

    train = totals(tracer)
    assert (train.steps, train.epochs, train.samples) == (10, 2, 40)
    assert train.first_of_epoch == 2
    assert 0.55 < train.phase_ns["data.wait"] / train.step_ns < 0.8
    assert sum(train.phase_ns.values()) == train.step_ns


def test_phases_take_their_time_out_of_what_they_lie_in(tracer):
    """Named phases stand beside each other, the rest is other, and all add up."""
    for _batch in gpumon.steps(slow(3)):
        with gpumon.phase("forward"):
            time.sleep(0.01)
            with gpumon.phase("augment"):
                time.sleep(0.01)
        time.sleep(0.01)

    train = totals(tracer)
    assert sum(train.phase_ns.values()) == train.step_ns
    for name in ("forward", "augment", "other"):
        assert 0.029 < train.phase_ns[name] / 1e9 < 0.06


def test_a_step_fails_when_its_body_raises(tracer):
    """The exception passes through untouched, and the step counts as failed."""
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, gpumon.step():
        raise error
    with gpumon.step(samples=3):
        pass

    train = totals(tracer)
    assert caught.value is error
    assert (train.steps, train.failures, train.samples) == (1, 1, 3)


def test_an_iterable_that_raises_is_a_failed_step(tracer):
    """The wait for a batch that never came."""

    def broken():
        yield [1]
        raise KeyError("gone")

    with pytest.raises(KeyError):
        for _batch in gpumon.steps(broken()):
            pass

    train = totals(tracer)
    assert (train.steps, train.failures) == (1, 1)


def test_break_ends_the_step(tracer):
    """A loop left in the middle leaves no step open."""
    for number, _batch in enumerate(gpumon.steps(slow(9, 0)), 1):
        if number == 4:
            break
    with gpumon.step():
        pass

    assert totals(tracer).steps == 5


def test_stages_are_kept_apart(tracer):
    """Validation steps are no training steps; an unknown stage is an error at the call."""
    for _batch in gpumon.steps(slow(3, 0), stage="validation"):
        pass

    assert totals(tracer, "validation").steps == 3
    assert totals(tracer).steps == 0
    with pytest.raises(ValueError, match="stage"):
        gpumon.steps([], stage="training")


def test_without_instrument_nothing_happens():
    """All of it is as if it were not there."""
    with gpumon.step(), gpumon.phase("forward"):
        assert list(gpumon.steps([1, 2, 3])) == [1, 2, 3]


def test_a_dataloader_under_steps_is_counted_once(tracer):
    """gpumon.steps over a DataLoader: its batches are the steps, with backward and optimizer as phases."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from gpumon.integrations import torch as integration

    integration.instrument(tracer)
    try:
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(torch.randn(30, 4)), batch_size=4)
        for (inputs,) in gpumon.steps(loader):
            model(inputs).sum().backward()
            optimizer.step()
    finally:
        integration.uninstrument()

    train = totals(tracer)
    assert (train.steps, train.samples, train.epochs) == (8, 30, 1)
    assert train.phase_ns["backward"] > 0
    assert train.phase_ns["optimizer"] > 0
    assert train.phase_ns["data.wait"] > 0
    assert sum(train.phase_ns.values()) == train.step_ns
