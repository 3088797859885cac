"""What gpumon adds to a training step: fresh processes, one mode after the other, round by round.

    python benchmarks/step_cost.py [--check] [--rounds 9]

The loop is small on purpose (an MLP, batch 32, no workers: 370 µs a step), so that microseconds show.
Modes: bare; gpumon (the whole automatic set, recorded to files); one OpenTelemetry span per step; and, where
they are installed, traceml-ai (as `traceml run` with `init(mode="auto")`) and torchtel (spans that go
nowhere). Figures are of the steady state, after a warm-up, and the
differences are taken within a round, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from cpu_speed import slowness
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gpumon

WARM_UP, STEPS = 8000, 12000  # 3 s, in which collectors begin; and 4.5 s
PEERS_EVERY = 3  # rounds
LIMITS = {"p50": 10.0, "mean": 15.0, "hot": 4.0, "cpu": 4.0}  # on the core that `cpu_speed` is about


class Training:
    """The bare loop; `around_step` is what a peer wants around each step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.data = TensorDataset(torch.randn(32 * 500, 64), torch.randint(0, 10, (32 * 500,)))
        self.around_step: Callable[[nn.Module], AbstractContextManager[object]] | None = None

    def run(self, steps: int) -> tuple[list[float], float]:
        """(µs of each step, CPU µs per step, all threads)."""
        model, optimizer, loss_of, around_step = self.model, self.optimizer, nn.CrossEntropyLoss(), self.around_step
        times: list[float] = []
        cpu = time.process_time()
        before = time.perf_counter()
        while len(times) < steps:
            for inputs, targets in DataLoader(self.data, batch_size=32):
                if around_step is None:
                    optimizer.zero_grad()
                    loss = loss_of(model(inputs), targets)
                    loss.backward()
                    optimizer.step()
                else:
                    with around_step(model):
                        optimizer.zero_grad()
                        loss = loss_of(model(inputs), targets)
                        loss.backward()
                        optimizer.step()
                now = time.perf_counter()
                times.append((now - before) * 1e6)
                before = now
        return times, (time.process_time() - cpu) / len(times) * 1e6


@contextmanager
def bare(training: Training) -> Iterator[None]:
    yield


@contextmanager
def automatic(training: Training) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        gpumon.instrument("bench", run_dir=f"{folder}/run")
        try:
            yield
        finally:
            gpumon.uninstrument()


@contextmanager
def spans_to_nowhere() -> Iterator[TracerProvider]:
    """A tracer provider with the usual batch processor, but without a receiver to wait for."""

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    try:
        yield provider
    finally:
        provider.shutdown()


@contextmanager
def one_span(training: Training) -> Iterator[None]:
    original = torch.optim.SGD.step
    with spans_to_nowhere() as provider:
        tracer = provider.get_tracer("bench")
        torch.optim.SGD.step = lambda *args, **kwargs: (tracer.start_span("step").end(), original(*args, **kwargs))[1]
        try:
            yield
        finally:
            torch.optim.SGD.step = original


@contextmanager
def torchtel(training: Training) -> Iterator[None]:
    from torchtel import PyTorchInstrumentor

    with spans_to_nowhere() as provider:
        trace.set_tracer_provider(provider)
        instrumentor = PyTorchInstrumentor()
        instrumentor.instrument(model=training.model)
        try:
            yield
        finally:
            instrumentor.uninstrument()


@contextmanager
def traceml(training: Training) -> Iterator[None]:
    import traceml_ai

    traceml_ai.init(mode="auto")
    training.around_step = traceml_ai.trace_step
    yield


Mode = Callable[[Training], AbstractContextManager[None]]
MODES: dict[str, Mode] = {"bare": bare, "gpumon": automatic, "one span a step": one_span}
if importlib.util.find_spec("torchtel"):
    MODES["torchtel"] = torchtel
if importlib.util.find_spec("traceml_ai"):
    MODES["traceml (auto)"] = traceml


def hot_cost() -> float:
    """µs of all stamps of a regular step, called alone: no kernels between them, caches warm."""
    batch = [torch.zeros(4, 4), torch.zeros(4)]
    iterator_class = torch.utils.data.dataloader._BaseDataLoaderIter

    class Iterator(iterator_class):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self._num_workers = 0

    class Optimizer(torch.optim.Optimizer):
        def step(self, closure: object = None) -> None:
            return None

    optimizer = Optimizer([nn.Parameter(torch.zeros(1))], {})

    def backward(  # the signature of PyTorch's
        tensors: object,
        grad_tensors: object = None,
        retain_graph: object = None,
        create_graph: bool = False,
        grad_variables: object = None,
        inputs: object = None,
    ) -> None:
        return None

    kept = iterator_class.__next__, torch.autograd.backward
    iterator_class.__next__ = lambda self: batch
    torch.autograd.backward = backward

    def microseconds() -> float:
        iterator = Iterator()
        best = float("inf")
        for _ in range(30):
            began = time.perf_counter()
            for _ in range(1000):
                iterator.__next__()
                torch.autograd.backward(())
                optimizer.step()
            best = min(best, time.perf_counter() - began)
        return best * 1e3

    try:
        without = microseconds()
        with automatic(Training()):
            return microseconds() - without
    finally:
        iterator_class.__next__, torch.autograd.backward = kept


def measure(mode: str) -> dict[str, float]:
    """The figures of one mode, in this process."""
    torch.set_num_threads(1)
    training = Training()
    with MODES[mode](training):
        training.run(WARM_UP)
        times, cpu = training.run(STEPS)
    times.sort()
    return {
        "p50": times[len(times) // 2],
        "mean": statistics.fmean(times),
        "p99": times[int(len(times) * 0.99)],
        "cpu": cpu,
        "hot": hot_cost() if mode == "gpumon" else 0.0,
        "slowness": statistics.median(slowness() for _ in range(9)),
    }


def measured_in_a_process(mode: str, logs: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--mode", mode]
    if mode.startswith("traceml"):
        traceml_run = [str(Path(sys.executable).with_name("traceml")), "run", "--logs-dir", logs]
        command = [*traceml_run, __file__, "--args", "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    figures = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not figures:
        raise SystemExit(f"{mode} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(figures[-1])
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 past the limits")
    parser.add_argument("--rounds", type=int, default=9, help="processes of each mode; a third of it for peers")
    parser.add_argument("--mode", choices=list(MODES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode)))
        return 0
    results: dict[str, dict[int, dict[str, float]]] = {mode: {} for mode in MODES}
    for number in range(options.rounds):
        # In turn from both ends: a mode is not always the one that follows another.
        modes = list(MODES)[: None if number % PEERS_EVERY == 0 else 2]
        for mode in modes[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as logs:
                results[mode][number] = measured_in_a_process(mode, logs)
        if sys.stderr.isatty():
            print(
                f"\rround {number + 1} of {options.rounds}", end="\n" * (number + 1 == options.rounds), file=sys.stderr
            )
    columns = ("p50", "mean", "p99", "cpu")
    print(
        f"{'µs per step':18}"
        + "".join(f"{name:>9}" for name in columns)
        + f"   more than bare, median of {options.rounds}"
    )
    over: dict[str, dict[str, float]] = {}
    for mode, rows in results.items():
        over[mode] = {
            name: statistics.median(row[name] - results["bare"][number][name] for number, row in rows.items())
            for name in columns
        }
        added = "".join(f"{over[mode][name]:+8.1f}" for name in columns) if mode != "bare" else ""
        print(
            f"{mode:18}"
            + "".join(f"{statistics.median(row[name] for row in rows.values()):9.1f}" for name in columns)
            + f"   {added}"
        )
    hot = statistics.median(row["hot"] for row in results["gpumon"].values())
    cpu = over["gpumon"]["cpu"] / statistics.median(row["cpu"] for row in results["bare"].values()) * 100
    print(f"stamps of a regular step, called alone: {hot:.2f} µs; process CPU {cpu:+.1f} %")
    measured = {"p50": over["gpumon"]["p50"], "mean": over["gpumon"]["mean"], "hot": hot, "cpu": cpu}
    slow = statistics.median(row["slowness"] for rows in results.values() for row in rows.values())
    if slow > 1:
        print(f"this core takes {slow:.1f} times as long as one undisturbed: so much more is allowed")
    limits = {name: limit * slow for name, limit in LIMITS.items()}
    failed = [f"{name} {measured[name]:.1f} > {limit:.1f}" for name, limit in limits.items() if measured[name] > limit]
    if failed:
        print("past the limit: " + ", ".join(failed))
    return int(bool(failed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
