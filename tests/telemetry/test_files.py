"""The files of a run directory: whole lines, bounded segments, and a disk that may be full."""

import gzip
import json
import multiprocessing
import os
import subprocess

import pytest

from gpumon.telemetry.files import RunFiles, enforce_bound
from gpumon.telemetry.run_json import join_run, read_run
from run_lines import lines

LINE = json.dumps({"resourceMetrics": [], "text": "x" * 1000})
SPAN = json.dumps({"resourceSpans": [], "text": os.urandom(750).hex()})  # hardly compresses


@pytest.fixture
def run(tmp_path):
    return join_run(tmp_path / "run", "id", "demo", 0)[0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_lines_are_readable_while_they_are_written(run):
    """The live file is plain lines that a reader can follow."""
    files = RunFiles(run, rank=2)
    files.write("metrics", LINE)
    live = run / f"metrics.2.{os.getpid()}.jsonl"

    assert live.read_text() == LINE + "\n"
    files.write("metrics", LINE)
    assert live.read_text() == (LINE + "\n") * 2
    files.close()


def test_full_segments_are_compressed(run):
    """At the segment size a file is closed and gzip'ed, and the next begins; no line is lost or cut."""
    files = RunFiles(run, 0, segment_bytes=5000)
    for number in range(23):
        assert files.write("metrics", json.dumps({"n": number, "text": "x" * 1000}))
    files.close()
    names = sorted(path.name.split(".", 3)[3] for path in run.glob("metrics.*"))

    assert names == ["000.jsonl.gz", "001.jsonl.gz", "002.jsonl.gz", "003.jsonl.gz", "004.jsonl.gz", "jsonl"]
    assert [line["n"] for line in lines(run, "metrics")] == list(range(23))


def test_a_line_longer_than_a_segment(run):
    """One batch larger than a whole segment is kept, in a segment of its own."""
    files = RunFiles(run, 0, segment_bytes=100)
    for _ in range(3):
        assert files.write("metrics", LINE)
    files.close()

    assert len(list(lines(run, "metrics"))) == 3


def test_segments_of_a_process_with_the_same_pid_are_kept(run):
    """Containers number their processes alike: a second process of the same pid overwrites nothing."""
    for _ in range(2):
        files = RunFiles(run, 0, segment_bytes=1500)
        for _ in range(4):
            files.write("metrics", LINE)
        files.close()

    assert len(list(lines(run, "metrics"))) == 8


def test_the_oldest_traces_go_first_then_the_oldest_metrics(run):
    """Past its bound a run gives up closed trace segments, oldest first, then metrics, and counts them."""
    files = RunFiles(run, 0, segment_bytes=4000, run_bytes=25_000)
    for number in range(60):
        files.write("traces", json.dumps({"n": number, "text": os.urandom(500).hex()}))
        files.write("metrics", json.dumps({"n": number, "text": os.urandom(500).hex()}))
    files.close()
    traces = [line["n"] for line in lines(run, "traces")]
    metrics = [line["n"] for line in lines(run, "metrics")]

    assert sum(path.stat().st_size for path in run.iterdir()) <= 25_000 + 2 * 4000
    assert metrics[-1] == traces[-1] == 59
    assert traces == list(range(traces[0], 60))
    assert len(traces) < len(metrics) / 2
    assert metrics == list(range(metrics[0], 60))
    assert metrics[0] > 0
    assert read_run(run)["dropped"]["traces"] > read_run(run)["dropped"]["metrics"] > 0


def test_metrics_stay_whole_while_traces_suffice(run):
    """A flood of spans costs no metrics."""
    files = RunFiles(run, 0, segment_bytes=4000, run_bytes=30_000)
    for number in range(100):
        files.write("traces", SPAN)
        if number % 10 == 0:
            files.write("metrics", json.dumps({"n": number}))
    files.close()

    assert len(list(lines(run, "metrics"))) == 10
    assert read_run(run)["dropped"] == {"traces": read_run(run)["dropped"]["traces"], "metrics": 0, "logs": 0}


def write_many(run, rank):
    files = RunFiles(run, rank, segment_bytes=3000, run_bytes=60_000)
    for number in range(60):
        files.write("traces", json.dumps({"rank": rank, "n": number, "text": os.urandom(300).hex()}))
    files.close()


def test_several_processes_share_the_bound(run):
    """Ranks that close segments at once keep the bound together; each deleted segment is counted once."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(run, rank)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    kept = list(lines(run, "traces"))
    segments = len(list(run.glob("*.gz")))

    assert sum(path.stat().st_size for path in run.iterdir()) <= 60_000 + 4 * 3000
    assert {line["rank"] for line in kept} == {0, 1, 2, 3}
    closed = 4 * (60 // 4 - 1)  # four lines fill a segment, and the last four of each are in its live file
    assert read_run(run)["dropped"]["traces"] + segments == closed


def test_files_of_ended_processes_count_as_closed(run):
    """A launcher of many short commands leaves many live files: of processes long gone they may go too."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    abandoned, live = run / f"traces.0.{gone.pid}.jsonl", run / f"traces.0.{os.getpid()}.jsonl"
    for path in (abandoned, live):
        path.write_text(SPAN)
        os.utime(path, (0, 0))
    enforce_bound(run, run_bytes=1000)

    assert not abandoned.exists()
    assert live.exists()


def test_a_torn_last_line_is_one_line(run):
    """What a killed process leaves is whole lines and at most one torn one, which readers skip."""
    files = RunFiles(run, 0)
    files.write("metrics", LINE)
    with open(run / f"metrics.0.{os.getpid()}.jsonl", "a") as file:
        file.write(LINE[:50])

    assert len(list(lines(run, "metrics"))) == 1


def test_a_full_disk_is_answered_not_raised(small_disk):
    """Lines that do not fit are refused whole; with room again, writing goes on behind whole lines."""
    run = join_run(small_disk / "run", "id", "demo", 0)[0]
    files = RunFiles(run, 0)
    answers = [files.write("traces", SPAN) for _ in range(300)]
    kept = sum(answers)

    assert 0 < kept < 300
    assert len(list(lines(run, "traces"))) == kept
    assert (run / f"traces.0.{os.getpid()}.jsonl").read_bytes().endswith(b"\n")

    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert files.write("traces", SPAN)
    assert len(list(lines(run, "traces"))) == kept + 1
    files.close()


def test_a_full_disk_while_a_segment_is_compressed(small_disk):
    """Without room for the compressed copy the plain segment stays: nothing is lost, nothing left over."""
    run = join_run(small_disk / "run", "id", "demo", 0)[0]
    files = RunFiles(run, 0, segment_bytes=140_000)
    answers = [files.write("traces", json.dumps({"text": os.urandom(750).hex()})) for _ in range(300)]
    files.close()

    assert 0 < sum(answers) < 300
    assert len(list(lines(run, "traces"))) == sum(answers)
    assert not list(run.glob("*.partial"))


def test_a_compressed_segment_is_plain_gzip(run):
    """`zcat` reads a segment."""
    files = RunFiles(run, 0, segment_bytes=1500)
    files.write("logs", LINE)
    files.write("logs", LINE)
    (segment,) = run.glob("logs.*.gz")

    assert gzip.decompress(segment.read_bytes()).decode() == LINE + "\n"
    files.close()
