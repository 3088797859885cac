"""A process of its own for what can happen once per process: global providers, exits, forks."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PREAMBLE = "from toy_training import Training\n"


class Program:
    """Runs Python text in a fresh process, in an empty folder; `environment` replaces OTel's variables."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, text, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "GPUMON_"))}
        path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(text)],
            cwd=self.folder,
            env={
                **kept,
                "PYTHONPATH": path,
                "GPUMON_STRICT": "1",
                "OTEL_METRIC_EXPORT_INTERVAL": "200",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, text, *, status=0, **environment):
        """Returns (stdout, stderr); the process must end with *status*."""
        process = self.start(text, **environment)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        return output, errors

    def kill(self, process):
        process.send_signal(signal.SIGKILL)
        process.communicate()

    @property
    def runs(self):
        return sorted((self.folder / "gpumon-runs").glob("*"))


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)
