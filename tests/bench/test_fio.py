"""The figures are fio's: the same patterns on the same files, in turn, within 15 %."""

import json
import random
import shutil
import statistics
import subprocess

import pytest

from fincore import cached_bytes, put_out, unchanged
from gpumon.bench.access import find_access
from gpumon.bench.files import Sample
from gpumon.bench.measure import measure
from gpumon.bench.plan import sequential, whole_files

pytestmark = [
    pytest.mark.alone,
    pytest.mark.disk,
    pytest.mark.skipif(not shutil.which("fio"), reason="needs fio: apt-get install fio"),
]
MIB = 1 << 20
PATTERNS = {
    ("sequential", 1): ("--rw=read", "--file_service_type=sequential", "--ioengine=psync"),
    ("sequential", 8): ("--rw=read", "--file_service_type=sequential", "--ioengine=libaio", "--iodepth=8"),
    ("random", 1): ("--rw=randread", "--file_service_type=random", "--ioengine=psync"),
    ("random", 8): ("--rw=randread", "--file_service_type=random", "--ioengine=psync", "--numjobs=8", "--thread"),
}


def fio(files, size, pattern, seconds, folder):
    """Bytes per second that fio reads directly from files of *size* bytes each."""
    out = folder / "fio.json"
    what = ("--name=read", f"--bs={size}", f"--filename={':'.join(file.name for file in files)}", *PATTERNS[pattern])
    how = ("--readonly", "--direct=1", "--time_based", f"--runtime={round(seconds * 1000)}ms", "--group_reporting")
    told = ("--output-format=json", f"--output={out}")
    subprocess.run(["fio", *what, *how, *told], check=True, capture_output=True, cwd=files[0].parent)
    [job] = json.loads(out.read_text())["jobs"]
    return job["read"]["bw_bytes"]


def ours(files, pattern, seconds):
    """Bytes per second that we read by the same pattern."""
    name, parallel = pattern
    plan = sequential if name == "sequential" else whole_files
    [pieces] = plan(files, 1, random.Random())
    figures = measure(pieces, find_access(files, 512), parallel, seconds=seconds, most=1 << 40)
    assert not figures.problems
    return figures.bytes_per_s


def compare(files, size, pattern, folder, seconds=0.4, least=3, most=15):
    """Median of our rate by fio's, of rounds in turn; more rounds while others use the machine."""
    samples = [Sample(str(file), size) for file in files]
    fio(files, size, pattern, 0.3, folder)  # whatever caches there are below are warm for both
    ratios = []
    for number in range(most):
        rates = {}
        for who in ("we", "fio") if number % 2 else ("fio", "we"):
            rates[who] = ours(samples, pattern, seconds) if who == "we" else fio(files, size, pattern, seconds, folder)
        ratios.append(rates["we"] / rates["fio"])
        if number + 1 >= least and abs(statistics.median(ratios) - 1) <= 0.10:
            break
    return statistics.median(ratios)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: f"{pattern[0]} {pattern[1]}")
def test_on_a_slow_disk(slow_disk, fill, tmp_path, pattern):
    """10 ms a read, whole files of 256 KiB."""
    folder = fill(slow_disk.path / "set", {f"{number:02}": MIB // 4 for number in range(64)})
    put_out(folder)
    before = cached_bytes(folder)
    slow_disk.set_delay(0.01)

    assert compare(sorted(folder.iterdir()), MIB // 4, pattern, tmp_path) == pytest.approx(1, abs=0.15)
    assert unchanged(before, cached_bytes(folder))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: f"{pattern[0]} {pattern[1]}")
def test_on_this_disk(folder, fill, tmp_path, pattern):
    """Files of 1 MiB, read whole."""
    fill(folder, {f"set/{number:03}": MIB for number in range(96)})
    put_out(folder / "set")
    before = cached_bytes(folder / "set")

    assert compare(sorted((folder / "set").iterdir()), MIB, pattern, tmp_path) == pytest.approx(1, abs=0.15)
    assert unchanged(before, cached_bytes(folder / "set"))
