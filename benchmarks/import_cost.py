"""What `import gpumon` costs beyond OpenTelemetry's own imports: fresh interpreters, interleaved.

python benchmarks/import_cost.py [--check]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS, LIMIT_MS = 11, 60.0
OTEL = "import opentelemetry.metrics, opentelemetry.trace, opentelemetry.sdk.metrics, opentelemetry.sdk.trace"
TIMED = "import time; began = time.perf_counter(); import gpumon; print((time.perf_counter() - began) * 1e3)"
HEAVY = "torch tensorflow duckdb rich click chdb matplotlib"


def milliseconds() -> float:
    return float(
        subprocess.run([sys.executable, "-c", f"{OTEL}; {TIMED}"], capture_output=True, text=True, check=True).stdout
    )


def main() -> int:
    median = statistics.median(milliseconds() for _ in range(ROUNDS))
    print(f"import gpumon, beyond OpenTelemetry's own: {median:.1f} ms (median of {ROUNDS}; limit {LIMIT_MS:.0f} ms)")
    loaded = f"import sys, gpumon; print([name for name in {HEAVY.split()} if name in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.strip()
    print(f"heavy libraries that it imports: {heavy}")
    return int("--check" in sys.argv and (median > LIMIT_MS or heavy != "[]"))


if __name__ == "__main__":
    sys.exit(main())
