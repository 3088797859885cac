"""The command `gpumon bench`: what it prints, its exit codes, and that Ctrl-C ends it at once."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from otlp_receiver import eventually


def command(*arguments):
    return [sys.executable, "-m", "gpumon", "bench", *map(str, arguments)]


def environment(**changes):
    return {**os.environ, "GPUMON_STRICT": "", **changes}


def gpumon_bench(*arguments, **changes):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, env=environment(**changes))


def test_text_says_the_sentence_first_and_fits_the_width(folder, fill):
    """Then the figures, then what they mean; nothing on stderr, no colour, no progress in a pipe."""
    fill(folder, {f"{number:02}": 30_000 for number in range(20)})

    done = gpumon_bench(folder, "--parallel", "2", COLUMNS="60")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    sentence = " ".join(done.stdout.split("\n\n")[0].split())
    assert "read in order" in sentence and "in random order, as a loader reads:" in sentence
    assert "random order, whole files, 2 at a time:" in " ".join(done.stdout.split("\n\n")[1].split())
    assert max(len(line) for line in done.stdout.splitlines() if "/" not in line) <= 60


def test_ram_in_text_and_json():
    """Nothing to measure is an answer: exit code 0, at once."""
    began = time.monotonic()
    text, as_json = gpumon_bench("/dev/shm"), gpumon_bench("/dev/shm", "--json")

    assert time.monotonic() - began < 20
    assert (text.returncode, as_json.returncode) == (0, 0)
    assert "is RAM" in text.stdout
    content = json.loads(as_json.stdout)
    assert content["schema"] == "gpumon.bench/1"
    assert {storage["kind"] for storage in content["storages"]} == {"memory"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{folder}/nowhere"], "gpumon: cannot read {folder}/nowhere: No such file or directory\n"),
        (["{folder}"], "gpumon: {folder} holds no file that could be measured\n"),
        (["/dev/null"], "gpumon: /dev/null is neither a file nor a folder"),
        ([], "gpumon: missing argument 'PATH'"),
        (["{folder}", "--parallel", "0"], "gpumon: invalid value for '--parallel'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(folder, arguments, line):
    """Said on stderr; nothing on stdout."""
    done = gpumon_bench(*(argument.format(folder=folder) for argument in arguments))

    assert done.returncode == 2
    assert done.stderr.startswith(line.format(folder=folder))
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.disk
def test_a_disk_that_fails_is_exit_code_1(slow_disk, fill):
    """The result is printed all the same."""
    fill(slow_disk.path / "set", {"file": 65_536})
    slow_disk.set_delay(-1)
    try:
        done = gpumon_bench(slow_disk.path / "set")
    finally:
        slow_disk.set_delay(0)

    assert done.returncode == 1
    assert "none of its files could be read: Input/output error" in " ".join(done.stdout.split())


def is_reading(pid):
    """Whether a fork of it has threads that wait for a disk."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        for stat in Path("/proc", child, "task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
                if stat.read_text().rpartition(") ")[2].startswith("D"):
                    return True
    return False


@pytest.mark.disk
@pytest.mark.parametrize("delay", [0.2, 4.0])
def test_ctrl_c_ends_it_at_once(slow_disk, fill, delay):
    """In the middle of reads, however long the disk takes for them: exit code 130, no traceback, no result."""
    fill(slow_disk.path / "set", {f"{number}": 1 << 20 for number in range(8)})
    slow_disk.drop_caches()
    slow_disk.set_delay(0.1)
    process = subprocess.Popen(
        command(slow_disk.path / "set"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell ignores Ctrl-C in what it starts in the background, and so does all that comes of that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    eventually(lambda: is_reading(process.pid), timeout_s=20)
    slow_disk.set_delay(delay)
    time.sleep(0.3)  # now every reader waits for the disk
    assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)

    assert time.monotonic() - asked < 2
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def test_progress_is_shown_on_a_terminal_and_gone_at_the_end(folder, fill):
    """One line, redrawn: which pattern, how far."""
    fill(folder, {"file": 300_000})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(folder, "--parallel", "1"), stdout=subprocess.PIPE, stderr=theirs, env=environment()
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's other end is gone
            break
        if not part:
            break
        shown += part
    os.close(ours)
    process.communicate(timeout=60)

    assert process.returncode == 0
    lines = shown.decode().split("\r\x1b[2K")
    assert any("in order, one at a time (1 of 3)" in line for line in lines)
    assert any("%" in line for line in lines)
    assert "\n" not in shown.decode()
    assert lines[-1] == ""
