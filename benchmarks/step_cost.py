"""What gpumon adds to a training step: fresh processes, one mode after the other, round by round.

    python benchmarks/step_cost.py [--check] [--rounds 9]

The loop is small on purpose (an MLP, batch 32, no workers: 370 µs a step), so that microseconds show.
Modes: bare; gpumon (the whole automatic set, recorded to files); one OpenTelemetry span per step; and
traceml-ai and torchtel where they are installed. Figures are of the steady state, after a warm-up, and the
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

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gpumon

WARM_UP, STEPS = 1500, 8000
LIMITS = {"p50": 10.0, "mean": 15.0, "hot": 4.0, "cpu": 4.0}


def train(steps: int) -> tuple[list[float], float]:
    """(µs of each step, CPU µs per step, all threads) of the bare loop."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of = nn.CrossEntropyLoss()
    data = TensorDataset(torch.randn(32 * 500, 64), torch.randint(0, 10, (32 * 500,)))
    times: list[float] = []
    cpu = time.process_time()
    before = time.perf_counter()
    while len(times) < steps:
        for inputs, targets in DataLoader(data, batch_size=32):
            optimizer.zero_grad()
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
            now = time.perf_counter()
            times.append((now - before) * 1e6)
            before = now
    return times, (time.process_time() - cpu) / len(times) * 1e6


@contextmanager
def bare() -> Iterator[None]:
    yield


@contextmanager
def automatic() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        gpumon.instrument("bench", run_dir=f"{folder}/run")
        try:
            yield
        finally:
            gpumon.uninstrument()


@contextmanager
def one_span() -> Iterator[None]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracer = provider.get_tracer("bench")
    original = torch.optim.SGD.step
    torch.optim.SGD.step = lambda *args, **kwargs: (tracer.start_span("step").end(), original(*args, **kwargs))[1]
    try:
        yield
    finally:
        torch.optim.SGD.step = original
        provider.shutdown()


@contextmanager
def torchtel() -> Iterator[None]:
    from torchtel import PyTorchInstrumentor

    instrumentor = PyTorchInstrumentor()
    instrumentor.instrument()
    try:
        yield
    finally:
        instrumentor.uninstrument()


@contextmanager
def traceml() -> Iterator[None]:
    import traceml_ai

    traceml_ai.init(mode="auto")
    yield


MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bare": bare,
    "gpumon": automatic,
    "one span a step": one_span,
}
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
    nothing = lambda *args, **kwargs: None  # noqa: E731
    kept = iterator_class.__next__, torch.autograd.backward
    iterator_class.__next__ = lambda self: batch
    torch.autograd.backward = nothing

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
        with automatic():
            return microseconds() - without
    finally:
        iterator_class.__next__, torch.autograd.backward = kept


def measure(mode: str) -> dict[str, float]:
    """The figures of one mode, in this process."""
    torch.set_num_threads(1)
    with MODES[mode]():
        train(WARM_UP)
        times, cpu = train(STEPS)
    times.sort()
    return {
        "p50": times[len(times) // 2],
        "mean": statistics.fmean(times),
        "p99": times[int(len(times) * 0.99)],
        "cpu": cpu,
        "hot": hot_cost() if mode == "gpumon" else 0.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 past the limits")
    parser.add_argument("--rounds", type=int, default=9, help="processes of each mode")
    parser.add_argument("--mode", choices=list(MODES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode)))
        return 0
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for number in range(options.rounds):
        # In turn from both ends: a mode is not always the one that follows another.
        for mode in list(MODES)[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, "--mode", mode]
            results[mode].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
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
            name: statistics.median(row[name] - bare[name] for row, bare in zip(rows, results["bare"], strict=True))
            for name in columns
        }
        added = "".join(f"{over[mode][name]:+8.1f}" for name in columns) if mode != "bare" else ""
        print(
            f"{mode:18}"
            + "".join(f"{statistics.median(row[name] for row in rows):9.1f}" for name in columns)
            + f"   {added}"
        )
    hot = statistics.median(row["hot"] for row in results["gpumon"])
    cpu = over["gpumon"]["cpu"] / statistics.median(row["cpu"] for row in results["bare"]) * 100
    print(f"stamps of a regular step, called alone: {hot:.2f} µs; process CPU {cpu:+.1f} %")
    measured = {"p50": over["gpumon"]["p50"], "mean": over["gpumon"]["mean"], "hot": hot, "cpu": cpu}
    failed = [f"{name} {measured[name]:.1f} > {limit}" for name, limit in LIMITS.items() if measured[name] > limit]
    if failed:
        print("past the limit: " + ", ".join(failed))
    return int(bool(failed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
