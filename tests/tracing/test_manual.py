"""`gpumon.steps`, `gpumon.step` and `gpumon.phase`: steps that the training marks itself."""

import contextlib
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


class Stopwatch:
    """Seconds of what lies `within` it, however busy the machine: a phase takes at least that and at most `around`."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._began = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._began


@contextlib.contextmanager
def timed(within, around, phase):
    """A phase, with a stopwatch on either side of it."""
    with around, gpumon.phase(phase), within:
        yield


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
    within, around = ({"forward": Stopwatch(), "augment": Stopwatch()} for _ in range(2))
    for _batch in gpumon.steps(slow(3)):
        with timed(within["forward"], around["forward"], "forward"):
            time.sleep(0.01)
            with timed(within["augment"], around["augment"], "augment"):
                time.sleep(0.01)
        time.sleep(0.01)

    train = totals(tracer)
    assert sum(train.phase_ns.values()) == train.step_ns
    assert within["augment"].seconds <= train.phase_ns["augment"] / 1e9 <= around["augment"].seconds
    forward_s = train.phase_ns["forward"] / 1e9  # without what lies in it
    assert within["forward"].seconds - around["augment"].seconds <= forward_s
    assert forward_s <= around["forward"].seconds - within["augment"].seconds
    assert train.phase_ns["other"] / 1e9 >= 0.03


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


@pytest.fixture
def torch_tracer(tracer):
    from gpumon.integrations import torch as integration

    integration.instrument(tracer)
    yield tracer
    integration.uninstrument()


def loop_of(batch_size=4, count=32, **options):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(count, 4)), batch_size=batch_size, **options)

    def update(batch):
        model(batch[0]).sum().backward()
        optimizer.step()

    return loader, model, update


def test_batches_of_workers_are_known_under_steps(torch_tracer):
    """What `FetchAccounts` links: iterator, index and wait of each batch; and the loader's settings."""
    loader, _, update = loop_of(num_workers=1)
    for batch in gpumon.steps(loader):
        update(batch)

    taken = torch_tracer.take_fetches()
    assert [idx for _, _, idx, _, _ in taken] == list(range(8))
    assert totals(torch_tracer).steps == 8
    assert torch_tracer.loader.workers == 1


def test_an_evaluation_inside_the_body_is_not_the_step_s(torch_tracer):
    """A plain evaluation loop after the update ends the step; its batches are validation."""
    import torch

    loader, model, update = loop_of()
    held_out, _, _ = loop_of(count=16)
    within, around = Stopwatch(), Stopwatch()
    with around:
        for number, batch in enumerate(gpumon.steps(loader)):
            update(batch)
            if number % 4 == 3:
                with torch.no_grad():
                    for rows in held_out:
                        model(rows[0])
                        with within:
                            time.sleep(0.005)

    train = totals(torch_tracer)
    assert (train.steps, train.samples) == (8, 32)
    assert totals(torch_tracer, "validation").steps == 8
    assert train.step_ns / 1e9 <= around.seconds - within.seconds


def test_validation_steps_inside_training_steps(tracer):
    """Steps of another stage end the step around them."""
    within, around = Stopwatch(), Stopwatch()
    with around:
        for number, _batch in enumerate(gpumon.steps(slow(4, 0))):
            if number == 1:
                for _rows in gpumon.steps(slow(3), stage="validation"):
                    with within:
                        time.sleep(0.01)
            with gpumon.step():  # the same stage again says nothing new
                pass

    assert totals(tracer).steps == 4
    assert totals(tracer).step_ns / 1e9 <= around.seconds - within.seconds
    assert totals(tracer, "validation").steps == 3


def test_a_step_takes_the_batch_that_was_fetched_for_it(torch_tracer):
    """`gpumon.step` in a loop over a DataLoader: the wait before it is the step's."""
    loader, _, update = loop_of()
    for batch in loader:
        with gpumon.step():
            update(batch)

    train = totals(torch_tracer)
    assert (train.steps, train.samples, train.epochs, train.first_of_epoch) == (8, 32, 1, 1)
    assert train.phase_ns["data.wait"] > 0


def test_phases_inside_an_automatic_step(torch_tracer):
    """A named phase in a plain PyTorch loop: its time leaves the phase that it lies in."""
    loader, _, update = loop_of()
    within, around, between, whole = (Stopwatch() for _ in range(4))
    with whole:
        for batch in loader:
            with timed(within, around, "augment"):
                time.sleep(0.005)
            update(batch)
            with gpumon.phase("checkpoint"), between:
                time.sleep(0.002)

    train = totals(torch_tracer)
    assert train.steps == 8
    assert within.seconds <= train.phase_ns["augment"] / 1e9 <= around.seconds
    assert train.phase_ns["checkpoint"] / 1e9 > 0.014 - 0.002  # the last is after the last update
    assert train.phase_ns["forward"] / 1e9 <= whole.seconds - within.seconds - between.seconds
    assert sum(train.phase_ns.values()) == train.step_ns
