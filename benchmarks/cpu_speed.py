"""How slow this CPU is just now, so that a budget of CPU time means the same work on every machine.

A virtual machine's core takes 1.7 times as long for the same work while its neighbours are busy, by its own
accounts. A budget is stated for the core that `NOMINAL_S` was measured on, undisturbed (AMD EPYC, Python 3.11).
"""

import time

NOMINAL_S = 0.0031


def slowness() -> float:
    """CPU time of some work of Python's, divided by what it nominally takes; one at least."""
    began = time.thread_time()
    counts: dict[tuple[int, str], int] = {}
    for number in range(20_000):
        key = (number & 1023, "x")
        counts[key] = counts.get(key, 0) + 1
    sorted(counts.items())
    return max(1.0, (time.thread_time() - began) / NOMINAL_S)
