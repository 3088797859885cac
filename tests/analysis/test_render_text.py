"""The report as text: whole pages compared, wide and narrow, in ASCII, and without colour in a pipe."""

import io
import os
import pty
import textwrap

import pytest

import sample_reports
from gpumon.analysis.render_html import render_html
from gpumon.analysis.render_text import cut_short, render, stand_ins, write_report

WIDE = """\
 train · 61.2 s · 512 steps · 1 rank on node17 · gpumon-runs/20261124T140211-train-7f3a91

 71 % of each training step waits for data: loop0, the disk under /data/imagenet, answers a read in
 87 ms, 41× its quiet baseline (2.1 ms), and the 2 workers spend 94 % of their time blocked on it.

 Where a step's time went              mean 110 ms · p50 101 ms · p95 310 ms
   data wait  ██████████████████████████████████▏                71 %    78 ms
   backward   █████▊                                             12 %    13 ms
   forward    ████▍                                               9 %   9.9 ms
   other      ██▍                                                 5 %   5.5 ms
   optimizer  █▌                                                  3 %   3.3 ms
   first batches of epochs: 1.9 s in 2 epochs, 6 % of all step time

 Where a fetch's time went             2 workers · 1024 fetches · mean 170 ms
   blocked on reads of loop0 94 %    cpu 4 %    waiting for a cpu 1 %    other 0.7 %

 Devices                             mean         peak
   loop0  ext4, on nvme1n1, dataset  await 87 ms  93 ms   reads 46 MB/s   queue 4.0   busy 100 %
   gpu 0  H200                       busy 19 %    31 %    memory 41 GiB of 139 GiB   180 W
   cpu                               busy 33 %    71 %    usable 2

 Findings
 ✖ DataLoadingBound · disk_slow · loop0 · 43 s lost
     A read takes 87 ms although nobody else uses the disk; all of its reads are this run's.
     disk await 88 ms against 2.1 ms (measured before the loader started); disk queue length 4.0
     → copy the dataset to faster storage: at this batch rate it needs 160 MB/s
     → num_workers 2 → 8: the disk answers in parallel (queue 4 of 32 used), 2 CPUs allow it
 ▲ DiskWearing · nvme0n1
     93 % of its rated writes are used.

 Not seen
   gpu throttle reasons: not supported by this driver
   SMART of loop0: not a physical disk
"""

NARROW = """\
 train · 61.2 s · 512 steps · 1 rank on node17
 gpumon-runs/20261124T140211-train-7f3a91

 71 % of each training step waits for data: loop0, the disk
 under /data/imagenet, answers a read in 87 ms, 41× its
 quiet baseline (2.1 ms), and the 2 workers spend 94 % of
 their time blocked on it.

 Where a step's time went
   mean 110 ms · p50 101 ms · p95 310 ms
   data wait  ████████████████████▋           71 %    78 ms
   backward   ███▌                            12 %    13 ms
   forward    ██▋                              9 %   9.9 ms
   other      █▌                               5 %   5.5 ms
   optimizer  ▉                                3 %   3.3 ms
   first batches of epochs: 1.9 s in 2 epochs, 6 % of all
   step time

 Where a fetch's time went
   2 workers · 1024 fetches · mean 170 ms
   blocked on reads of loop0 94 %    cpu 4 %
   waiting for a cpu 1 %    other 0.7 %

 Devices
   loop0 (ext4, on nvme1n1, dataset):
     await 87 ms, peak 93 ms, reads 46 MB/s, queue 4.0,
     busy 100 %
   gpu 0 (H200): busy 19 %, peak 31 %,
     memory 41 GiB of 139 GiB, 180 W
   cpu: busy 33 %, peak 71 %, usable 2

 Findings
 ✖ DataLoadingBound · disk_slow · loop0 · 43 s lost
     A read takes 87 ms although nobody else uses the disk;
     all of its reads are this run's.
     disk await 88 ms against 2.1 ms (measured before the
     loader started); disk queue length 4.0
     → copy the dataset to faster storage: at this batch
       rate it needs 160 MB/s
     → num_workers 2 → 8: the disk answers in parallel
       (queue 4 of 32 used), 2 CPUs allow it
 ▲ DiskWearing · nvme0n1
     93 % of its rated writes are used.

 Not seen
   gpu throttle reasons: not supported by this driver
   SMART of loop0: not a physical disk
"""

QUIET = """\
 train · 61.2 s · 512 steps · 1 rank on node17 · gpumon-runs/20261124T140211-train-7f3a91

 Nothing stands out: compute 86 % of the step, data wait 3 %.

 Where a step's time went              mean 110 ms · p50 101 ms · p95 310 ms
   backward   ████████████████████████                           50 %    55 ms
   forward    █████████████████▎                                 36 %    40 ms
   other      █████▎                                             11 %    12 ms
   data wait  █▌                                                  3 %   3.3 ms
   first batches of epochs: 1.9 s in 2 epochs, 6 % of all step time

 Where a fetch's time went             in the training thread · 1024 fetches · mean 1.1 ms
   cpu 100 %
"""

SHORT = """\
 train · 41.3 s · 4 steps · 1 rank on node17 · gpumon-runs/20261124T140211-train-7f3a91
 The run did not end by itself (killed by signal 15 (SIGTERM) after 41 s); everything until then is
 here.

 Too few steps to judge: 4 of 20.

 Where a step's time went              mean 110 ms · p50 101 ms · p95 310 ms
   data wait  ██████████████████████████████████▏                71 %    78 ms
   backward   █████▊                                             12 %    13 ms
   forward    ████▍                                               9 %   9.9 ms
   other      ██▍                                                 5 %   5.5 ms
   optimizer  █▌                                                  3 %   3.3 ms
   first batches of epochs: 900 ms in 1 epoch, 40 % of all step time
   of 5 steps: 1 failed
"""


@pytest.mark.parametrize(
    ("report", "width", "text"),
    [
        (sample_reports.slow_disk(), 100, WIDE),
        (sample_reports.slow_disk(), 60, NARROW),
        (sample_reports.nothing_stands_out(), 100, QUIET),
        (sample_reports.too_short(), 100, SHORT),
    ],
    ids=["slow disk", "slow disk, narrow", "nothing stands out", "too short, killed"],
)
def test_whole_report(report, width, text):
    """What people see, character by character."""
    assert render(report, width=width) == text


@pytest.mark.parametrize("width", [20, 24, 31, 40, 57, 80, 120])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_line_is_wider_and_no_word_is_lost(width, ascii_only):
    """At any width the same words come in the same order; long ones are broken, never cut."""

    def words(text):
        return "".join(letter for letter in text if not letter.isspace() and letter not in "█▏▎▍▌▋▊▉#·|:,()")

    report = sample_reports.slow_disk()
    text = render(report, width=width, ascii_only=ascii_only)

    assert max(len(line) for line in text.splitlines()) <= max(width, 24)
    shown = words(text)
    for whole in (
        report["headline"],
        *report["findings"][0]["advice"],
        report["run"]["path"],
        "SMART of loop0",
    ):
        assert words(stand_ins(whole) if ascii_only else whole) in shown


def test_ascii_has_stand_ins_for_every_symbol():
    """Where the encoding has no better: #, x, !, ->, and nothing is a question mark."""
    text = render(sample_reports.slow_disk(), width=100, ascii_only=True)

    assert text.isascii()
    assert "?" not in text
    assert " x DataLoadingBound | disk_slow | loop0 | 43 s lost\n" in text
    assert "     -> num_workers 2 -> 8: " in text
    assert "   data wait  ###" in text


def test_names_of_the_run_cannot_command_the_terminal():
    """Escape sequences in a service's or a file's name are not sent to the terminal."""
    report = sample_reports.slow_disk(run={"service": "\x1b[2Jtrain\r\nx", "hosts": ["a", "b"], "ranks": [0, 1]})

    first = render(report, width=100).splitlines()[0]

    assert "\x1b" not in first and "\r" not in first
    assert "2 ranks on 2 hosts" in first


@pytest.mark.parametrize(
    ("encoding", "is_ascii"), [("utf-8", False), ("ascii", True), ("latin-1", True), ("cp1252", True)]
)
def test_encoding_of_the_stream_decides(encoding, is_ascii):
    """A stream that cannot carry the symbols gets ASCII, all of it encodable."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")

    write_report(sample_reports.slow_disk(), stream)

    assert raw.getvalue().isascii() is is_ascii


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 72 columns; gives its stream and a function that reads what came out."""
    for variable in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LANG", "C.UTF-8")
    import fcntl
    import struct
    import termios

    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 72, 0, 0))
    stream = os.fdopen(writer, "w", encoding="utf-8")

    def read():
        seen = b""
        while b"not a physical disk" not in seen:
            seen += os.read(reader, 65536)
        return seen.decode()

    yield stream, read
    stream.close()
    os.close(reader)


def show(terminal, report):
    """Print to the terminal and read it, at once: a terminal's buffer is smaller than a report."""
    import threading

    stream, read = terminal
    thread = threading.Thread(target=write_report, args=(report, stream))
    thread.start()
    text = read()
    thread.join()
    return text


def test_terminal_has_colours_and_its_own_width(terminal):
    """On a terminal: colours, lines as wide as it is."""
    text = show(terminal, sample_reports.slow_disk())

    assert "\x1b[1;31m" in text
    assert text.splitlines()[:20] == render(sample_reports.slow_disk(), width=72, color=True).splitlines()[:20]


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_it_is_not_wanted(terminal, monkeypatch, variable, value):
    """NO_COLOR and TERM=dumb: the plain page."""
    monkeypatch.setenv(variable, value)

    text = show(terminal, sample_reports.slow_disk())

    assert "\x1b" not in text
    assert text.splitlines()[:20] == render(sample_reports.slow_disk(), width=72).splitlines()[:20]


def test_pipe_has_no_colour(monkeypatch, tmp_path):
    """Into a file or a pipe: the plain page, 100 columns wide."""
    monkeypatch.delenv("COLUMNS", raising=False)
    with open(tmp_path / "report.txt", "w+", encoding="utf-8") as stream:
        write_report(sample_reports.slow_disk(), stream)
        stream.seek(0)

        assert stream.read() == WIDE


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"exit_code": 0}, None),
        ({"exit_code": None}, None),
        ({"exit_code": 1}, "The command failed with exit code 1 after 61 s; everything until then is here."),
        (
            {"exit_code": 137, "signal": 9, "complete": False},
            "The run did not end by itself (killed by signal 9 (SIGKILL) after 61 s); everything until then is here.",
        ),
        (
            {"exit_code": None, "complete": False},
            "The run has not ended, or was cut off after 61 s; everything until then is here.",
        ),
    ],
)
def test_how_the_run_ended(run, said):
    """A run that ended by itself needs no word; every other end is said."""
    assert cut_short(sample_reports.slow_disk(run=run)["run"]) == said


def test_no_steps_leaves_the_table_out():
    """Without a single step there is nothing to divide: the sentence, the devices, what was not seen."""
    report = sample_reports.slow_disk(
        steps={"count": 0, "phases": {}, "duration_s": dict.fromkeys(("mean", "p50", "p95", "max"))},
        headline="No training step was seen.",
        findings=[],
        fetches=None,
    )

    text = render(report, width=80)

    assert "Where a" not in text
    assert textwrap.dedent(text).startswith("train · 61.2 s · 0 steps")


def test_finding_without_a_cause_names_the_candidates():
    """An abstaining finding says between what it could not decide."""
    finding = {
        **sample_reports.SLOW_DISK["findings"][0],
        "cause": "unknown",
        "candidates": ["disk_slow", "cpu_limit"],
        "rank": 3,
    }

    text = render(sample_reports.slow_disk(findings=[finding]), width=100)

    assert "✖ DataLoadingBound · unknown · loop0 · rank 3 · 43 s lost\n" in text
    assert "     could be: disk_slow or cpu_limit\n" in text


def test_notebook_shows_the_same_text_with_what_the_run_named_escaped():
    """The HTML holds the text report; a name with markup in it stays a name."""
    import html
    import re

    report = sample_reports.slow_disk(run={"service": "<script>train"})
    page = render_html(report)

    assert "<script>" not in page
    assert "color: #800000" in page
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert text.strip() == render(report, width=100).strip()


def test_reports_match_their_schema():
    """The samples, and so the tests above, speak the JSON that the schema allows."""
    import json
    from importlib import resources

    import jsonschema

    schema = json.loads(resources.files("gpumon.analysis").joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(sample_reports.slow_disk(), schema, cls=jsonschema.Draft202012Validator)
    wrong = sample_reports.slow_disk(verdict="slow")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema, cls=jsonschema.Draft202012Validator)
