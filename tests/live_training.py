"""A training without a framework, as a process of its own: it goes on until it is told to end, and says what it did.

Epochs of 60 steps, one step in 40 slow, one step that fails after each epoch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class LiveTraining:
    """Starts it in a folder; *variables* replace all of gpumon's and OpenTelemetry's."""

    def __init__(self, folder: Path, service: str = "training", **variables: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
        with open(folder / "log", "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, service],
                cwd=folder,
                env={**kept, "GPUMON_STRICT": "1", **variables},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def finish(self) -> dict[str, Any]:
        """End it. `steps`: (its end, seconds, whether slow); counts `failed`, `slow`, `epochs`; `exit_s`; `log`."""
        (self.folder / "stop").touch()
        output, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, self.log
        return {**json.loads(output), "log": self.log}

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def run(self) -> Path:
        """The run directory."""
        (run,) = (self.folder / "gpumon-runs").iterdir()
        return run


def _main() -> None:
    import gpumon

    gpumon.instrument(service_name=sys.argv[1], collectors=["host", "disk", "pressure"])
    steps: list[tuple[float, float, bool]] = []
    failed = epochs = 0
    is_over = Path("stop").exists

    def batches() -> Any:
        for _ in range(60):
            if is_over():
                return
            time.sleep(0.003)
            yield [0] * 4

    while not is_over():
        for _ in gpumon.steps(batches(), epoch=epochs):
            began = time.perf_counter()
            is_slow = len(steps) % 40 == 39
            with gpumon.phase("forward"):
                sum(range(20_000))
                time.sleep(0.3 if is_slow else 0.02)
            steps.append((time.time(), time.perf_counter() - began, is_slow))
        epochs += 1
        try:
            with gpumon.step():
                raise ValueError("a bad batch")
        except ValueError:
            failed += 1
    began = time.perf_counter()
    gpumon.uninstrument()
    exit_s = time.perf_counter() - began
    slow = sum(is_slow for _, _, is_slow in steps)
    print(json.dumps({"steps": steps, "failed": failed, "slow": slow, "epochs": epochs, "exit_s": exit_s}))


if __name__ == "__main__":
    _main()
