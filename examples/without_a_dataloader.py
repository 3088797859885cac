"""A loop that has no DataLoader: `gpumon.steps` marks the waits, `gpumon.phase` the parts of a step.

python examples/without_a_dataloader.py && gpumon report
"""

import random
import time

import gpumon


def batches(count):
    """Any iterable will do; this one is slow at times."""
    for number in range(count):
        time.sleep(0.02 if number % 10 else 0.2)
        yield [random.random() for _ in range(32)]


def main():
    gpumon.instrument("no-loader")
    weight = 0.0
    for epoch in range(2):
        for batch in gpumon.steps(batches(100), epoch=epoch):
            with gpumon.phase("forward"):
                error = sum(weight * x - 2 * x for x in batch) / len(batch)
                time.sleep(0.005)
            with gpumon.phase("optimizer"):
                weight -= 0.1 * error
    print(f"weight {weight:.3f}")


if __name__ == "__main__":
    main()
