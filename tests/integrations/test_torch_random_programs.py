"""Random training programs, each with its own book-keeping of what it did; ours must agree with it exactly.

`GPUMON_PROGRAMS=400 pytest tests/integrations/test_torch_random_programs.py` tries more of them.
"""

import contextlib
import os
import random

import pytest
import torch
from torch.utils.data import DataLoader

from gpumon.integrations import torch as integration
from gpumon.tracing.steps import StepTracer
from integrations.loop_shapes import Rows, build, loss_of, out_of_memory

PROGRAMS = int(os.environ.get("GPUMON_PROGRAMS", "60"))


class Book:
    steps = failed = skipped = evaluation = epochs = samples = 0


def program(seed):
    """Train as a random choice of habits says; returns what was done."""
    pick = random.Random(seed)
    every = pick.choice([1, 1, 1, 2, 3, 4])
    up_front = every > 1 and pick.random() < 0.3
    zipped = not up_front and pick.random() < 0.15
    evaluates = pick.choice(["no", "no", "loader", "body", "same", "break"])
    evaluates_inside = evaluates == "loader" and every == 1 and pick.random() < 0.4
    two_optimizers = pick.random() < 0.25
    scaled = not two_optimizers and pick.random() < 0.2
    fails = every == 1 and not scaled and pick.random() < 0.3
    scheduled = pick.random() < 0.3
    leaves_early = pick.random() < 0.2
    epochs, length, batch_size = pick.randint(1, 3), pick.randint(12, 40), pick.choice([2, 4])

    book = Book()
    model, optimizer = build()
    other, other_optimizer = build(torch.optim.Adam)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2) if scheduled else None
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loader = DataLoader(Rows(length, 0), batch_size=batch_size)
    second = DataLoader(Rows(length, 0), batch_size=batch_size)
    held_out = DataLoader(Rows(12, 0), batch_size=4)

    def evaluate(loader=held_out, most=None):
        for count, batch in enumerate(loader, 1):
            with torch.no_grad():
                loss_of(model, batch)
            book.evaluation += 1
            if count == most:
                break

    def finish_step():
        if scaled:
            updates = optimizer.param_groups[0]["params"][0].grad.isfinite().all()
            scaler.step(optimizer)
            scaler.update()
            book.steps += int(updates)
            book.skipped += int(not updates)
        else:
            optimizer.step()
            if two_optimizers:
                loss_of(other, batch).backward()
                other_optimizer.step()
                other_optimizer.zero_grad()
            book.steps += 1
        optimizer.zero_grad()
        if scheduler:
            scheduler.step()

    for _ in range(epochs):
        batches = list_of(loader, every) if up_front else zip(loader, second, strict=True) if zipped else loader
        micro = 0
        held_samples = 0
        for number, item in enumerate(batches, 1):
            group = item if up_front else [item]
            for one in group:
                batch = one[0] if zipped else one
                held_samples += len(batch[0]) * (2 if zipped else 1)
                loss = loss_of(model, batch)
                if scaled and pick.random() < 0.2:
                    loss = loss * float("inf")
                micro += 1
                if fails and pick.random() < 0.15:
                    loss.register_hook(out_of_memory)
                    with contextlib.suppress(RuntimeError):
                        loss.backward()
                    optimizer.zero_grad()
                    book.failed += 1
                    micro = held_samples = 0
                    continue
                (scaler.scale(loss) if scaled else loss).backward()
            if micro and micro % every == 0:
                finish_step()
                book.samples += held_samples
                micro = held_samples = 0
            if evaluates_inside and number % 3 == 0:
                with torch.no_grad():
                    evaluate()
            if leaves_early and number == 5:
                break
        if micro:  # the last, partial accumulation
            finish_step()
            book.samples += held_samples
        book.epochs += 2 if zipped else 1
        if evaluates == "loader":
            with torch.no_grad():
                evaluate()
        elif evaluates == "body":
            evaluate()
        elif evaluates == "same":
            with torch.no_grad():
                evaluate(loader)
        elif evaluates == "break":
            with torch.no_grad():
                evaluate(most=2)
    return book


def list_of(loader, count):
    """Batches in groups of *count*, each fetched up front; the last may be smaller."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_program(seed):
    """Steps, failed and skipped steps, epochs, samples and evaluation batches are as in the program's book."""
    tracer = StepTracer()
    integration.instrument(tracer)
    try:
        book = program(seed)
    finally:
        integration.uninstrument()
        tracer.finish()
    train, validation = tracer.totals.stage("train"), tracer.totals.stage("validation")

    given = {
        "steps": train.steps,
        "failed": train.failures,
        "skipped": train.skipped,
        "evaluation": validation.steps,
        "epochs": train.epochs,
        "samples": train.samples,
    }
    expected = {key: getattr(book, key) for key in given}
    assert sum(train.phase_ns.values()) == train.step_ns
    if book.skipped:  # samples of skipped updates count as used
        given.pop("samples")
    assert given == {key: expected[key] for key in given}
