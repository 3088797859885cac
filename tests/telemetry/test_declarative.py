"""OpenTelemetry's declarative configuration, where `opentelemetry-configuration` is installed."""

import json
import os
import subprocess
import sys

import pytest

from run_lines import points, resource

pytest.importorskip("opentelemetry.configuration", reason="pip install opentelemetry-configuration")

INSTRUMENT = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"  # opentelemetry-instrument

TRAINING = """
import json, gpumon
from gpumon.instrumentor import GpumonInstrumentor
for batch in gpumon.steps([[0] * 4] * 5):
    pass
recording = GpumonInstrumentor()._recording
config = recording._config if recording else None
found = {"spans": config.spans, "intervals": config.intervals} if config else {}
print(json.dumps({"on": recording is not None, **found}))
gpumon.uninstrument()
"""

CONFIG = """
file_format: "1.0"
instrumentation/development:
  python:
    gpumon: {block}
"""


@pytest.fixture
def train(tmp_path):
    """Trains with a `gpumon` block under `opentelemetry-instrument`; returns what the process told, and its stderr."""

    def run(block, **environment):
        (tmp_path / "otel.yaml").write_text(CONFIG.format(block=block))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
        done = subprocess.run(
            [sys.executable, "-c", INSTRUMENT, sys.executable, "-c", TRAINING],
            cwd=tmp_path,
            env={**kept, "OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml"), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return run


def test_the_block_s_options_are_taken(train, tmp_path):
    """Each field of `gpumon.instrument()` may be set there; the types are those of YAML."""
    block = "{service_name: vision, export: file, run_dir: here, collectors: [cpu], intervals: {cpu: 0.5}, spans: all}"
    told, _ = train(block)

    assert told == {"on": True, "spans": "all", "intervals": {"cpu": 0.5}}
    assert points(tmp_path / "here", "gpumon.step.count")[-1]["asInt"] == "5"
    assert resource(tmp_path / "here")["service.name"] == "vision"


def test_what_the_block_leaves_out_comes_from_the_environment(train, tmp_path):
    """No default of ours goes before a variable."""
    told, _ = train("{service_name: vision}", GPUMON_SPANS="none", GPUMON_EXPORT="file", GPUMON_RUN_DIR="there")

    assert told["spans"] == "none"
    assert points(tmp_path / "there", "gpumon.step.count")


def test_an_option_that_does_not_exist_is_said(train):
    """And the training goes on."""
    told, errors = train("{colour: red, export: file}")

    assert "colour" in errors
    assert told["on"]  # the entry point instruments it all the same
