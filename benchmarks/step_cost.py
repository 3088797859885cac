"""What gpumon adds to a training step, in one interleaved run of shuffled blocks.

    python benchmarks/step_cost.py [--check] [--blocks 24]

The loop is small on purpose (an MLP, batch 32, no workers: 370 µs a step), so that microseconds show.
Modes: bare; gpumon (the whole automatic set, recorded to files); one OpenTelemetry span per step; and
traceml-ai and torchtel where they are installed. Every block runs in the same process, so what a mode leaves
behind (threads) is ended before the next; figures are differences from the bare blocks beside them.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gpumon

STEPS = 2000
LIMITS = {"p50": 10.0, "mean": 15.0, "hot": 4.0, "cpu": 4.0}


def run_block() -> tuple[list[float], float]:
    """(µs of each step, CPU µs per step) of one block of the bare loop."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of = nn.CrossEntropyLoss()
    data = TensorDataset(torch.randn(32 * 500, 64), torch.randint(0, 10, (32 * 500,)))
    times: list[float] = []
    cpu = time.process_time()
    while len(times) < STEPS:
        before = time.perf_counter()
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


MODES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bare": bare,
    "gpumon": automatic,
    "one span a step": one_span,
}
if importlib.util.find_spec("torchtel"):
    MODES["torchtel"] = torchtel


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 past the limits")
    parser.add_argument("--blocks", type=int, default=16, help="blocks of each mode")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run_block()
    results: dict[str, list[tuple[float, float, float, float]]] = {mode: [] for mode in MODES}
    for block in range(options.blocks):
        order = list(MODES)
        random.Random(block).shuffle(order)
        for mode in order:
            with MODES[mode]():
                times, cpu = run_block()
            times.sort()
            results[mode].append((times[len(times) // 2], statistics.fmean(times), times[int(len(times) * 0.99)], cpu))
        print(f"\rblock {block + 1} of {options.blocks}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{'':18}{'p50 µs':>9}{'mean µs':>9}{'p99 µs':>9}{'CPU µs':>9}   differences from bare, median of {options.blocks} blocks")
    base = results["bare"]
    over: dict[str, tuple[float, ...]] = {}
    for mode, rows in results.items():
        medians = [statistics.median(row[i] for row in rows) for i in range(4)]
        over[mode] = tuple(statistics.median(a[i] - b[i] for a, b in zip(rows, base, strict=True)) for i in range(4))
        added = "  ".join(f"{value:+.1f}" for value in over[mode]) if mode != "bare" else ""
        print(f"{mode:18}" + "".join(f"{value:9.1f}" for value in medians) + f"   {added}")
    hot = hot_cost()
    bare_cpu = statistics.median(row[3] for row in base)
    measured = {"p50": over["gpumon"][0], "mean": over["gpumon"][1], "hot": hot, "cpu": over["gpumon"][3] / bare_cpu * 100}
    print(f"stamps of a regular step, called alone: {hot:.2f} µs; process CPU {measured['cpu']:+.1f} %")
    failed = [f"{name} {measured[name]:.1f} > {limit}" for name, limit in LIMITS.items() if measured[name] > limit]
    if failed:
        print("past the limit: " + ", ".join(failed))
    return int(bool(failed) and options.check)


if __name__ == "__main__":
    sys.exit(main())
