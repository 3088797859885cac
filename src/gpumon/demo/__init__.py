"""`gpumon demo`: writes a data set on this disk, trains a small real model on it, prints the report."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpumon import run

FILES, FILE_BYTES = 1600, 224 * 224 * 3
TRAIN = Path(__file__).with_name("train.py")


def main(out: Path | None = None) -> int:
    """Train and report; the exit code of the training, 1 where something it needs is missing.

    *out* is the run directory to make; the data set is a temporary folder beside it (or in the current
    directory), so that it lies on a real disk, and is removed at the end.
    """
    if importlib.util.find_spec("torch") is None:
        return _give_up("the demo trains a PyTorch model, and PyTorch is not installed", "pip install torch numpy")
    place = out.resolve().parent if out else Path.cwd()
    needed = FILES * FILE_BYTES * 1.2
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
        if free < needed:
            return _give_up(
                f"{place} has {free >> 20} MB free; the demo needs {int(needed) >> 20} MB", "gpumon demo --out DIR"
            )
        with tempfile.TemporaryDirectory(prefix="gpumon-demo-", dir=place) as name:
            folder = Path(name)
            for done in _write(folder):
                _progress(f"writing {FILES} files, {FILES * FILE_BYTES >> 20} MB: {done / FILES:.0%}")
            _progress("")
            before = set(run.ROOT.glob("*")) if out is None else set()
            code = run.run([sys.executable, str(TRAIN), str(folder)], out=out)
            recorded = out or max(set(run.ROOT.glob("*")) - before, default=None, key=lambda path: path.name)
            if code == 0 and recorded is not None:
                _say_cache_share(recorded)
            return code
    except OSError as error:
        return _give_up(f"cannot write the data set: {error}", "gpumon demo --out DIR")


def _say_cache_share(directory: Path) -> None:
    """Say how much of the data came from the page cache: what the loop read, less what the disk gave."""
    from gpumon.analysis.load import load

    recorded = load(directory)
    sums = dict(
        recorded.connection.execute(
            'select "MetricName", sum(most) from (select "MetricName", max("Value") as most from otel_metrics_sum'
            " where \"MetricName\" in ('gpumon.sample.count', 'gpumon.fetch.read')"
            ' group by "MetricName", cast("Attributes" as varchar)) as series group by "MetricName"'
        ).fetchall()
    )
    read = sums.get("gpumon.sample.count", 0) * FILE_BYTES
    if read:
        cached = max(0.0, 1 - sums.get("gpumon.fetch.read", 0) / read)
        sys.stderr.write(
            f"\nOf the {read / 2**20:.0f} MiB that the training read, {cached * 100:.0f} % came from the page cache.\n"
        )


def _write(folder: Path) -> Iterator[int]:
    """Write the data set, on the disk and out of the page cache; yields the number of files done."""
    for number in range(FILES):
        descriptor = os.open(folder / f"{number:05d}-{number % 10}.img", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(descriptor, os.urandom(FILE_BYTES))
        finally:
            os.close(descriptor)
        yield number + 1
    os.sync()
    # Only clean pages are dropped, hence after the sync.
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()


def _give_up(reason: str, repair: str) -> int:
    sys.stderr.write(f"gpumon: {reason} → {repair}\n")
    return 1
