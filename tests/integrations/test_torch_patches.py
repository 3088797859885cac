"""What is patched in PyTorch is put back, in mid-loop too; compiled code, pickles and exceptions do not notice."""

import contextlib
import copy
import pickle
import sys
import threading

import pytest
import torch
from torch.utils.data import DataLoader

from gpumon.integrations import torch as integration
from gpumon.tracing.steps import StepTracer
from integrations.loop_shapes import Rows, build, loss_of, update


def patched_objects():
    from torch.optim import optimizer

    base = torch.utils.data.dataloader._BaseDataLoaderIter
    return [
        base.__next__,
        DataLoader.__iter__,
        torch.autograd.backward,
        torch.amp.GradScaler.step,
        sys.excepthook,
        threading.excepthook,
        tuple(optimizer._global_optimizer_pre_hooks),
        tuple(optimizer._global_optimizer_post_hooks),
        torch.optim.SGD.step,
        torch.Tensor.backward,
    ]


@contextlib.contextmanager
def instrumented():
    tracer = StepTracer()
    integration.instrument(tracer)
    try:
        yield tracer
    finally:
        integration.uninstrument()
        tracer.finish()


def train_steps(tracer):
    tracer.finish()
    return tracer.totals.stage("train").steps


def test_everything_is_put_back():
    """After `uninstrument` each patched object is the very one that it was; three times over."""
    before = patched_objects()
    for _ in range(3):
        with instrumented():
            assert patched_objects()[0] is not before[0]

        after = patched_objects()
        assert all(one is two or one == two for one, two in zip(before, after, strict=True))
        assert all(one is two for one, two in zip(before[:6], after[:6], strict=True))


def test_uninstrument_in_mid_loop_with_a_scheduler_attached():
    """A scheduler that was made while instrumented goes on with the optimizer that it knows."""
    model, optimizer = build()
    loader = DataLoader(Rows(sleep_s=0), batch_size=4)
    tracer = StepTracer()
    integration.instrument(tracer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for number, batch in enumerate(loader, 1):
        update(model, optimizer, batch)
        scheduler.step()
        if number == 4:
            integration.uninstrument()

    assert number == 8
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**8)
    assert train_steps(tracer) == 4


def test_instrument_in_mid_loop():
    """An iterator that was made before is seen from its next batch on."""
    model, optimizer = build()
    with contextlib.ExitStack() as stack:
        for number, batch in enumerate(DataLoader(Rows(sleep_s=0), batch_size=4), 1):
            update(model, optimizer, batch)
            if number == 3:
                tracer = stack.enter_context(instrumented())

    assert train_steps(tracer) == 5


def test_twice_counts_once():
    """A second `instrument` replaces the first; nothing is counted twice."""
    model, optimizer = build()
    with instrumented():
        second = StepTracer()
        integration.uninstrument()
        integration.instrument(second)
        for batch in DataLoader(Rows(sleep_s=0), batch_size=4):
            update(model, optimizer, batch)

    assert train_steps(second) == 8


def test_others_who_wrapped_us_keep_their_wrapper():
    """A wrapper around ours stays; ours only passes through then."""
    base = torch.utils.data.dataloader._BaseDataLoaderIter
    original = base.__next__
    calls = []
    with instrumented():
        ours = base.__next__

        def theirs(self):
            calls.append(1)
            return ours(self)

        base.__next__ = theirs
    try:
        assert base.__next__ is theirs
        assert len(list(DataLoader(Rows(sleep_s=0), batch_size=4))) == 8
        assert len(calls) == 9
    finally:
        base.__next__ = original


def test_pickles_and_copies():
    """Loader, optimizer and patched functions pickle and copy as without us."""
    model, optimizer = build()
    with instrumented():
        for batch in DataLoader(Rows(sleep_s=0), batch_size=4):
            update(model, optimizer, batch)
        assert len(pickle.loads(pickle.dumps(DataLoader(Rows(8), batch_size=4)))) == 2
        assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["lr"] == 0.01
        copy.deepcopy(optimizer)


def test_the_native_iterator_is_what_a_loader_gives():
    """Neither a generator nor a proxy: the type is PyTorch's own."""
    with instrumented():
        iterator = iter(DataLoader(Rows(sleep_s=0), batch_size=4))
        assert type(iterator) is torch.utils.data.dataloader._SingleProcessDataLoaderIter


@pytest.mark.parametrize("where", ["data set", "backward", "update"])
def test_exceptions_pass_through_untouched(where):
    """The user's exception arrives as the object that was raised, and the step counts as failed."""
    error = KeyError("mine")

    class Raising(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if where == "data set" and index == 4:
                raise error
            return Rows(sleep_s=0)[index]

    class RaisingUpdate(torch.optim.SGD):
        def step(self, closure=None):
            if where == "update":
                raise error
            return super().step(closure)

    model, optimizer = build(RaisingUpdate)
    with instrumented() as tracer, pytest.raises(KeyError) as caught:
        for _ in range(2):
            for batch in DataLoader(Raising(), batch_size=4):
                loss = loss_of(model, batch)
                if where == "backward":
                    loss.register_hook(lambda gradient: (_ for _ in ()).throw(error))
                loss.backward()
                with contextlib.suppress(ZeroDivisionError):
                    optimizer.step()

    assert caught.value is error
    if where != "update":  # an update that raises is known only by what follows
        tracer.finish()
        assert tracer.totals.stage("train").failures == 1


def test_a_loop_that_ends_by_an_exception_has_a_failed_step():
    """What nobody catches goes through the (chained) exception hook: the open step failed."""
    seen = []
    kept, threading.excepthook = threading.excepthook, lambda arguments: seen.append(arguments.exc_type)
    try:
        with instrumented() as tracer:

            def train():
                model, optimizer = build()
                for number, batch in enumerate(DataLoader(Rows(sleep_s=0), batch_size=4)):
                    if number == 5:
                        raise RuntimeError("in forward")
                    update(model, optimizer, batch)

            thread = threading.Thread(target=train)
            thread.start()
            thread.join()
    finally:
        threading.excepthook = kept

    train = tracer.totals.stage("train")
    assert (train.steps, train.failures, seen) == (5, 1, [RuntimeError])


class Fullgraph(torch.optim.Optimizer):
    """An optimizer that compiles in one graph."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


def graphs(step_of):
    """(graphs, breaks) of three calls of what *step_of* makes, compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = step_of()
    for number in range(3):
        torch.manual_seed(number)
        step(torch.randn(4, 8), torch.randn(4, 1))
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def whole_step():
    model, optimizer = build()

    @torch.compile(backend="eager")
    def step(inputs, targets):
        optimizer.zero_grad()
        loss_of(model, (inputs, targets)).backward()
        optimizer.step()

    return step


def fullgraph_optimizer():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = Fullgraph(model.parameters())
    compiled = torch.compile(optimizer.step, backend="eager", fullgraph=True)

    def step(inputs, targets):
        optimizer.zero_grad()
        loss_of(model, (inputs, targets)).backward()
        compiled()

    return step


def fullgraph_model():
    model, optimizer = build()
    compiled = torch.compile(model, backend="eager", fullgraph=True)

    def step(inputs, targets):
        update(compiled, optimizer, (inputs, targets))

    return step


def forward_and_backward():
    model, optimizer = build()

    @torch.compile(backend="eager")
    def both(inputs, targets):
        loss_of(model, (inputs, targets)).backward()

    def step(inputs, targets):
        optimizer.zero_grad()
        both(inputs, targets)
        optimizer.step()

    return step


@pytest.mark.parametrize("step_of", [whole_step, fullgraph_optimizer, fullgraph_model, forward_and_backward])
def test_compiled_code_has_as_many_graphs_as_without_us(step_of):
    """No graph more, no break more, no recompilation."""
    without = graphs(step_of)
    with instrumented():
        given = graphs(step_of)
    torch._dynamo.reset()

    assert given == without
    assert given[0] >= 1


def test_a_scaler_that_raises():
    """The exception passes through, the step failed, and the next is a step again."""

    class Raising(torch.optim.SGD):
        raises = False

        def step(self, closure=None):
            if self.raises:
                raise KeyError("mine")
            return super().step(closure)

    model, optimizer = build(Raising)
    scaler = torch.amp.GradScaler("cpu")
    with instrumented() as tracer:
        for number, batch in enumerate(DataLoader(Rows(sleep_s=0), batch_size=4)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            optimizer.raises = number == 3
            with pytest.raises(KeyError) if optimizer.raises else contextlib.nullcontext():
                scaler.step(optimizer)
            scaler.update()

    train = tracer.totals.stage("train")
    assert (train.steps, train.failures) == (7, 1)


def test_an_iterator_s_numbers():
    """Persistent workers: one serial, a generation per epoch, and the index of each batch within it."""
    seen = []
    loader = DataLoader(Rows(8, 0), batch_size=4, num_workers=1, persistent_workers=True)
    with instrumented() as tracer:
        tracer.on_iterator.append(lambda loader, serial: seen.append(serial))
        for _ in range(3):
            list(loader)
        taken = tracer.take_fetches()

    assert len(set(seen)) == 1
    assert [(serial, generation, idx) for serial, generation, idx, _, _ in taken] == [
        (seen[0], generation, idx) for generation in range(3) for idx in range(2)
    ]
    assert all(begin < end for *_, begin, end in taken)


def test_what_fails_on_our_side_stays_there(monkeypatch):
    """Without the tests' switch a failure of ours costs a figure, never a batch."""

    def broken(*_arguments):
        raise ZeroDivisionError("ours")

    monkeypatch.delenv("GPUMON_STRICT")
    with instrumented() as tracer:
        tracer.on_iterator.append(broken)
        monkeypatch.setattr(integration, "size_of", broken)
        loader = DataLoader([{"text": "a"}, {"text": "b"}], batch_size=1)
        assert len(list(loader)) == 2


def test_torchdata_is_put_back_too():
    """Its loader makes iterators in a way of its own."""
    pytest.importorskip("torchdata", reason="pip install torchdata")
    from torchdata.stateful_dataloader import StatefulDataLoader

    before = StatefulDataLoader.__iter__
    with instrumented():
        assert StatefulDataLoader.__iter__ is not before
    assert StatefulDataLoader.__iter__ is before
