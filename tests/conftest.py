"""Settings of every test: our own bugs are raised, never swallowed."""

import os
import re
import tempfile

import pytest

import slowdisk

os.environ["GPUMON_STRICT"] = "1"
_state = tempfile.TemporaryDirectory(prefix="gpumon-state-")
os.environ["GPUMON_STATE_DIR"] = _state.name  # tests remember nothing of this machine's disks, and leave nothing
OPTIONAL = re.compile(r"pip install (accelerate|lightning|transformers|opentelemetry-configuration)\b")
"""Packages that a test may be skipped for; any other that is missing means that tests did not run."""
ROTATING = 3  # how many scenarios run where not all of them were asked for


@pytest.hookimpl(tryfirst=True)  # before `-m alone` chooses
def pytest_collection_modifyitems(config, items):
    """Skip what this machine cannot do, with what to install; of the long scenarios run a rotating few."""
    if missing := slowdisk.available():
        for item in items:
            if item.get_closest_marker("disk"):
                item.add_marker(pytest.mark.skip(reason=missing))
    # What else runs on this machine only ever makes a measured time longer: the best of three is the nearest to it.
    for item in items:
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.flaky(reruns=2))
    scenarios = [item for item in items if item.get_closest_marker("scenario")]
    for item in scenarios:
        item.add_marker(pytest.mark.alone)
    asked_for = (
        "scenario" in config.getoption("markexpr") or config.getoption("keyword") or config.args_source.name == "ARGS"
    )
    if scenarios and not asked_for:
        start = int(os.environ.get("GPUMON_SCENARIOS", "0")) * ROTATING
        chosen = {id(scenarios[(start + offset) % len(scenarios)]) for offset in range(ROTATING)}
        left_out = [item for item in scenarios if id(item) not in chosen]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session, exitstatus):
    """With GPUMON_TEST_NO_SKIP a skipped test is a failure, but for those of a GPU or of an `OPTIONAL` package."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("GPUMON_TEST_NO_SKIP"):
        return
    skipped = [
        report
        for report in reporter.stats.get("skipped", [])
        if "gpu" not in getattr(report, "keywords", ()) and not OPTIONAL.search(str(report.longrepr))
    ]
    if skipped and exitstatus == 0:
        for report in skipped:
            reporter.write_line(f"skipped, which is not allowed here: {report.nodeid}: {report.longrepr}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def slow_disk():
    """A real disk (loop device, ext4) whose delay per read `set_delay` changes; 0 at first."""
    with slowdisk.slow_disk() as disk:
        yield disk


@pytest.fixture
def quick_disk():
    """A real disk (loop device, ext4) without delay."""
    with slowdisk.quick_disk() as disk:
        yield disk


@pytest.fixture
def slow_mount():
    """A FUSE file system with latency and no block device; `set_delay` changes it."""
    with slowdisk.slow_mount() as share:
        yield share
