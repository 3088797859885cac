"""Device time of steps, on a stand-in for torch.cuda whose device lags behind the host; and on a GPU."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gpumon.integrations import torch as integration
from gpumon.tracing import stamps as s
from gpumon.tracing.device_time import PATIENCE, PENDING, DeviceTimer
from gpumon.tracing.steps import StepTracer

STEP = (s.FETCH, s.BACKWARD, s.BACKWARD_END, s.UPDATE, s.UPDATE_END)


class Device:
    """A device with its own clock: what is recorded takes effect `lag` seconds later."""

    def __init__(self):
        self.now = 0.0  # of the host
        self.lag = 1.0
        self.device = 0
        self.captures = False
        self.memory = {}
        self.made, self.queries = [], 0

    def current_device(self):
        return self.device

    def memory_stats_as_nested_dict(self):
        return {f"{state}_bytes": {"all": {"current": size}} for state, size in self.memory.items()}

    def is_current_stream_capturing(self):
        return self.captures

    def Event(self, enable_timing):
        assert enable_timing
        event = Event(self)
        self.made.append(event)
        return event


class Event:
    def __init__(self, device):
        self.device, self.at = device, None

    def record(self):
        assert not self.device.captures, "recorded into a graph"
        self.at = self.device.now + self.device.lag

    def query(self):
        assert not self.device.captures, "the capture is invalid now"
        self.device.queries += 1
        return self.at <= self.device.now

    def elapsed_time(self, other):
        if max(self.at, other.at) > self.device.now:
            raise RuntimeError("device not ready")
        return (other.at - self.at) * 1e3


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def timer(device):
    return DeviceTimer(device, lambda: False)


def step(timer, device, begin_ns=1, kinds=STEP, seconds=0.1, **mark):
    """One step: *seconds* from each mark to the next."""
    wanted = timer.begins(begin_ns)
    for kind in kinds:
        if wanted:
            timer.mark(kind, **mark)
        device.now += seconds
    return wanted


def test_phases_of_the_device_not_of_the_host(timer, device):
    """Each interval is the phase that its first mark begins; they add up to the step."""
    assert step(timer, device, begin_ns=7)
    device.now += 10
    assert not step(timer, device)

    (timed,) = timer.done
    assert timed.begin_ns == 7
    assert timed.phases == pytest.approx({"forward": 0.1, "backward": 0.1, "other": 0.1, "optimizer": 0.1})
    assert timed.seconds == pytest.approx(0.4)


def test_the_device_is_never_waited_for(timer, device):
    """While it is behind nothing is known; one query a boundary."""
    device.lag = 100.0
    step(timer, device)
    for number in range(3):
        step(timer, device, seconds=0.0)
        assert device.queries == number + 1
    assert not timer.done

    device.now += 200
    step(timer, device)
    assert len(timer.done) == 1


def test_only_what_was_asked_for(timer, device):
    """One step, until another is wanted; all of them where all are."""
    assert [step(timer, device) for _ in range(3)] == [True, False, False]
    timer.wanted = True
    assert step(timer, device)
    timer.every = True
    assert [step(timer, device) for _ in range(3)] == [True] * 3


def test_events_are_used_again(timer, device):
    """However many steps, there are no more events than steps in flight have."""
    timer.every = True
    for _ in range(500):
        step(timer, device, seconds=0.1)

    assert len(device.made) <= 5 * 6
    assert len(timer.done) > 480


def test_a_device_that_never_answers_holds_little(timer, device):
    """What it does not finish is given up."""
    timer.every = True
    device.lag = 1e9
    for _ in range(PATIENCE + 200):
        step(timer, device)

    assert len(timer._pending) <= PENDING
    assert len(device.made) <= 5 * (PENDING + 2)
    assert not timer.done


def test_failed_steps_drop_their_events(timer, device):
    """Their state is not known; the next step is timed as ever."""
    timer.every = True
    timer.begins(1)
    timer.mark(s.FETCH)
    timer.mark(s.BACKWARD_END, failed=True)
    step(timer, device)
    device.now += 10
    step(timer, device)

    assert [timed.seconds for timed in timer.done] == pytest.approx([0.4])


@pytest.mark.parametrize("how", ["this stream", "another stream"])
def test_nothing_touches_a_capture(device, how):
    """Neither a record nor a query while a graph is captured (the stand-in would fail)."""
    elsewhere = [False]
    timer = DeviceTimer(device, lambda: elsewhere[0])
    step(timer, device)
    queries = device.queries
    device.captures, elsewhere[0] = how == "this stream", True
    timer.wanted = True

    assert not step(timer, device)
    assert device.queries == queries
    device.captures, elsewhere[0] = False, False
    device.now += 10
    assert step(timer, device)


def test_a_step_on_two_devices_is_dropped(timer, device):
    """Events of two devices have no time between them."""
    timer.begins(1)
    timer.mark(s.FETCH)
    device.device = 1
    timer.mark(s.BACKWARD)
    device.now += 10
    step(timer, device)

    assert not timer.done


def test_an_error_of_the_device_is_not_the_training_s(timer, device, monkeypatch):
    """A device that failed raises at every call; the training hears of it from its own calls."""
    monkeypatch.delenv("GPUMON_STRICT")

    def fails(event):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Event, "record", fails)
    assert timer.begins(1)
    timer.mark(s.FETCH)

    monkeypatch.undo()
    timer.wanted = True
    assert step(timer, device)


def test_memory_of_the_allocator_with_each_step_that_is_wanted(timer, device):
    """Nothing before anything was allocated; then of the device in use."""
    step(timer, device)
    assert timer.memory == {}
    device.memory = {"allocated": 5, "reserved": 8}
    device.device = 1
    step(timer, device)
    assert timer.memory == {}
    timer.wanted = True
    step(timer, device)
    assert timer.memory == {1: {"allocated": 5, "reserved": 8}}


def train(device, steps, accumulate=1, seconds=0.0):
    """(totals, tracer) of a plain loop, *seconds* of each batch between backward and update; drained after each."""
    model, loss_of = nn.Linear(8, 2), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(4 * steps * accumulate, 8), torch.randn(4 * steps * accumulate, 2))
    tracer = StepTracer(keep="all")
    integration.instrument(tracer)
    try:
        tracer.device_timer = lambda: DeviceTimer(device, lambda: False)
        tracer.stamps()
        tracer.drain()
        for number, (inputs, targets) in enumerate(DataLoader(data, 4)):
            loss_of(model(inputs), targets).backward()
            device.now += seconds
            if number % accumulate == accumulate - 1:
                optimizer.step()
                optimizer.zero_grad()
            tracer._timed_at = 0.0
            tracer.drain()
    finally:
        integration.uninstrument()
    tracer.finish()
    return tracer.totals.stage("train"), tracer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_of_a_loop(accumulate):
    """Timed steps are counted as ever; device time is known of most, though the device is nearly a batch behind."""
    device = Device()
    device.lag, device.memory = 0.005, {"allocated": 5, "reserved": 8}
    totals, tracer = train(device, 12, accumulate, seconds=0.006)

    assert (totals.steps, totals.samples) == (12, 48 * accumulate)
    assert 8 <= totals.gpu_steps <= 12
    assert sum(totals.gpu_phase_s.values()) == pytest.approx(totals.gpu_s)
    assert totals.gpu_s / totals.gpu_steps == pytest.approx(0.006 * accumulate)
    assert {"forward", "backward", "optimizer"} <= set(totals.gpu_phase_s)
    assert len(tracer.device_times) == totals.gpu_steps
    assert tracer.device_memory == {0: {"allocated": 5, "reserved": 8}}
    kept = {step.begin_ns for step in tracer.take_kept()}
    assert kept & set(tracer.device_times)


def test_without_a_device_nothing_is_timed():
    """This machine's torch has no CUDA, or the training does not use it."""
    tracer = StepTracer()
    integration.instrument(tracer)
    try:
        tracer.stamps()
        tracer.drain()
        assert (tracer.stamps().gpu is None) == (not torch.cuda.is_initialized())
    finally:
        integration.uninstrument()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu():
    """Of a long matrix product the device's time is that of a synchronized clock."""
    weight = torch.randn(4096, 4096, device="cuda", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1e-9)
    tracer = StepTracer()
    integration.instrument(tracer)
    try:
        for _ in range(3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for (inputs,) in DataLoader(TensorDataset(torch.randn(40, 4096)), 1):
                product = weight @ weight
                for _ in range(20):
                    product = product @ weight
                (product.sum() * inputs.sum().item()).backward()
                optimizer.step()
                tracer.drain()
            torch.cuda.synchronize()
            took = time.perf_counter() - began
    finally:
        integration.uninstrument()
    tracer.finish()

    totals = tracer.totals.stage("train")
    assert totals.gpu_steps > 20
    assert totals.gpu_s / totals.gpu_steps == pytest.approx(took / 40, rel=0.1)
