"""Every number that a verdict depends on, with what it rests on.

"Measured" means: between the lowest true positive and the highest true negative of the recorded scenarios
(58 runs on slow, saturated, contended and quota-limited disks, networks, decoders, locks).
"""

from typing import Final

# -- From steps to a verdict --------------------------------------------------------------------------
MIN_STEPS: Final = 20
MIN_STEP_TIME_S: Final = 5.0
"""Fewer steps, or less time in them: no judgement."""

NO_ALARM_WAIT: Final = 0.10
"""Measured: healthy loaders wait 0.07-0.10 of a step, the mildest real problem 0.38."""
LARGE_LOSS: Final = 0.20
"""A loss that is a verdict by itself; 0.10-0.20 counts only where it is the largest."""
BUSY: Final = 0.70
"""Compute-bound from here: GPU busy, or without a GPU forward, backward and optimizer by step time."""
IDLE_GPU: Final = 0.50
TRAINER_CPU: Final = 0.50
"""CPU seconds of the trainer per second of compute phases; a sleeping "compute" phase has none."""
TOLERATED_WAIT: Final = 0.02
"""Of step time; only waits beyond it are lost."""
FIRST_BATCHES: Final = 0.05
"""Of run time; waits for first batches of epochs beyond it are worth a finding."""

WARNING: Final = 0.10
CRITICAL: Final = 0.20
"""Of run time lost."""

# -- Causes of waits for data -------------------------------------------------------------------------
STARTUP: Final = 0.50
"""Of all waits: first batches of epochs. Measured: 0.88 with, 0.09 without."""
HANDOVER: Final = 0.50
"""Of the other waits: after the batch was ready in its worker."""
BUSY_WORKERS: Final = 0.75
"""Duty above which late delivery is the workers' hunger for CPU. Measured: 0.01 handover, 0.85-0.91 hunger."""
LEADING_SHARE: Final = 0.60
LEAD: Final = 0.20
"""An account names the cause with this share of fetch time, or this far ahead. Measured: 0.71, ties at 0.51."""
SHORTEST_FETCH_S: Final = 100e-6
"""Below it the accounting itself is a large part of a fetch."""
RUNNABLE: Final = 0.30
RUNNABLE_UNSURE: Final = (0.20, 0.40)
"""Of CPU and run-queue time. Measured: 0.33 starved, 0.24 not; between, both are named."""
THROTTLED: Final = 0.25
"""Of quota periods."""
HELD_ABOVE: Final = 2.0
HELD_ABOVE_UNSURE: Final = 1.3
"""Seconds blocked on a device by seconds that it spent reading (Little). Measured: 2.4-235 quota, 1.13 not."""
REFAULTS: Final = 0.50
"""Of bytes read: evicted before and read again. Measured: 0.53-0.67 thrashing, 0.02 not."""
LATENCY_FLOOR_S: Final = {"NVMe": 0.002, "SSD": 0.005, "HDD": 0.030, "virtual": 0.005}
"""A read that is answered sooner is normal for the class of disk."""
UNLOADED: Final = 0.60
"""Unloaded latency by await: slow also when nobody queues. Measured: 0.98-1.09 slow, 0.40 saturated."""
QUIET_PROBE: Final = 0.5
"""An unloaded latency counts when at most this share of today's queue was there then."""
NOT_OURS: Final = 0.50
"""Of a device's bytes. Measured: 0.81-0.95 with another reader, 0.28 alone with tiny files."""
QUEUE: Final = 1.5
"""Requests in flight; below it no queue is to blame."""
AT_ITS_BEST: Final = 0.60
"""Throughput by the best second of the run. Measured: 0.99 saturated, 0.14 became slow."""
AT_CEILING: Final = 0.85
"""Throughput by what `gpumon bench` got by the pattern that fits: the disk gives its most."""
SMALLER_REQUESTS: Final = 0.5
READAHEAD_BYTES: Final = 128 * 1024
"""A run whose requests are smaller than half of the bench's (or of the usual readahead) is limited by their number."""
QUIET_QUEUE: Final = 1.0
QUIET_WINDOWS: Final = 3
"""Windows with fewer requests in flight are a device's own baseline, from this many on."""
PAGE_BYTES: Final = 4096
"""Refaults are counted in pages; larger pages only make the share larger."""
# -- GPUs ---------------------------------------------------------------------------------------------
USED_GPU: Final = 0.05
"""A GPU that was never busier than this was not used."""
THROTTLED_GPU: Final = 0.20
"""Of the time in which the GPU is busy: thermal slowdown or power brake is the verdict, and critical."""
THERMAL: Final = 0.05
THERMAL_S: Final = 5.0
"""Thermal slowdown for this share of the training, or this long, is worth a finding."""
POWER_CAPPED: Final = 0.20
CLOCKS_FELL: Final = 0.10
"""A power cap is normal for a busy GPU; it is a warning where clocks fall by this much."""
HOT_C: Final = 85.0
HOT_S: Final = 10.0
COOLER_C: Final = 2.0
"""Hysteresis: a GPU is hot from HOT_C on, until it is this much cooler."""
LOADED_LINK: Final = 0.50
LOADED_WINDOWS: Final = 3
"""A PCIe link trains down while idle; it is judged in windows with a busier GPU, from so many on."""
MEMORY_GROWTH: Final = 0.05
MEMORY_GROWTH_BYTES: Final = float(1 << 30)
MEMORY_STEPS: Final = 50
MEMORY_BLOCKS: Final = 5
WARM_UP: Final = 0.20
"""Of the training: memory that grows then is no leak. After it, growth in every one of the blocks is."""
MEMORY_PRESSURE: Final = (0.92, 0.97)
"""Peak of used memory: warning, critical."""
WAITING_GPU: Final = 0.30
"""nvidia-smi's sign of a GPU that waits for data."""

# -- Physical disks -----------------------------------------------------------------------------------
REALLOCATED: Final = 100
UNREADABLE: Final = 10
"""Counts of reallocated, and of unreadable or pending sectors, that need no growth to foretell a failure."""
WORN: Final = (0.80, 1.00)
"""Of the rated writes: warning, critical."""
HEALTH_MEMORY_S: Final = 7 * 86400.0
"""Growth of an error counter counts for as long: after a first one, more follow within weeks (Google, FAST '07)."""

MOST_CONFIDENT: Final = 0.95
