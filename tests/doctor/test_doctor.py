"""`gpumon doctor` as a whole: a healthy set-up, exit codes, text and JSON, a check that crashes, hangs or is late."""

import inspect
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
import time
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from doctor.examined import examine
from gpumon.doctor import CHECKS, Place, doctor
from gpumon.doctor.check import Check, Repair, absent, failed, ok, warning
from gpumon.rules import verdict
from nvml.standin import HEALTHY, built
from otlp_receiver import eventually, receiver

SMARTCTL = """#!/bin/sh
case "$*" in
    *--version*) echo "smartctl 7.4 2023-08-01 r5530" ;;
    *--scan*) echo '{"devices": [{"name": "/dev/nvme9", "type": "nvme"}]}' ;;
    *) echo '{"smartctl": {"exit_status": 0}, "smart_status": {"passed": true}}' ;;
esac
"""
DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads(resources.files("gpumon.doctor").joinpath("doctor.schema.json").read_text())


def gpumon(*arguments, cwd, **environment):
    """The command line, in an environment in which `python` is this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_", "CUDA_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-m", "gpumon", "doctor", *map(str, arguments)],
        cwd=cwd,
        env={**kept, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def said(checks, *, as_json=False, stream=None):
    stream = stream or io.StringIO()
    is_well = doctor(Place(), stream, checks=checks, as_json=as_json)
    return is_well, stream.getvalue() if isinstance(stream, io.StringIO) else None


def statuses(document):
    return {entry["name"]: entry["status"] for entry in document["checks"]}


# -- a real machine -----------------------------------------------------------------------------------------


def test_a_healthy_set_up(tmp_path):
    """This machine, with a GPU and a receiver that work: nothing failed, within a few seconds, and nothing changed."""
    state = tmp_path / "nvml.state"
    state.write_text("".join(f"{key}={value}\n" for key, value in {**HEALTHY, "gpus": 1}.items()))
    (tmp_path / "data").mkdir()
    smartctl = tmp_path / "smartctl"
    smartctl.write_text(SMARTCTL)
    smartctl.chmod(0o755)
    with receiver() as otlp:
        environment = {
            "GPUMON_SMARTCTL": str(smartctl),
            "LD_LIBRARY_PATH": str(built()),
            "NVML_STANDIN": str(state),
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
        }
        began = time.monotonic()
        # --quick: the torch of the tests is for the CPU, and does not see the stand-in's GPU.
        done = gpumon("--json", "--quick", tmp_path / "data", cwd=tmp_path, **environment)
        took_s = time.monotonic() - began

    document = json.loads(done.stdout)
    small_shm = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize < 256 << 20  # in a container for CI
    assert done.returncode == small_shm, [entry for entry in document["checks"] if entry["status"] == "failed"]
    assert done.stderr == ""
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert document["ok"] == (not small_shm)
    found = statuses(document)
    assert set(found) >= {check.name for check in CHECKS} - {"lightning", "transformers", "accelerate"}
    for name in ("nvml", "torch", "smart", "otlp", "settings", "clock", "hook", "runs", "packages"):
        assert found[name] == "ok", document
    assert took_s < 15
    assert not any(request for _, _, request in otlp.requests if request.ByteSize())  # nothing is stored by asking
    assert not (tmp_path / "gpumon-runs").exists()


def test_a_broken_set_up(tmp_path):
    """Text and exit code of the command line: a hidden GPU, a receiver that is down, a data set that is not there."""
    state = tmp_path / "nvml.state"
    state.write_text("gpus=2\n")
    environment = {
        "LD_LIBRARY_PATH": str(built()),
        "NVML_STANDIN": str(state),
        "CUDA_VISIBLE_DEVICES": "5",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    }

    done = gpumon("--quick", tmp_path / "nowhere", cwd=tmp_path, **environment)

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    bad = [line for line in lines if line.startswith(" ✖")]
    assert [line.split()[1] for line in bad] == ["nvml", "data", "otlp"]
    assert all("  → " in line for line in bad)
    assert "\x1b" not in done.stdout
    assert re.fullmatch(r" \d+ of \d+ checks need attention\.", lines[-1])


def test_wrong_usage(tmp_path):
    """An option that is not there is one line, and exit code 2."""
    done = gpumon("--jsno", cwd=tmp_path, GPUMON_STRICT="")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gpumon: no such option")


def test_every_check_is_documented():
    """docs/doctor.md says what each looks at."""
    text = (DOCS / "doctor.md").read_text(encoding="utf-8")
    for check in CHECKS:
        assert f"`{check.name}`" in text.partition("| check |")[2], check.name


# -- lines ------------------------------------------------------------------------------------------------------


MIXED = [
    Check("first", lambda place: ok("all is well")),
    Check("second", lambda place: [failed("it is broken", "repair it"), warning("it is\nslow", Repair("a", "host"))]),
    Check("third", lambda place: absent("not here")),
]


def test_text():
    """One line each, in order, with cause and repair; the count comes last."""
    is_well, text = said(MIXED)

    assert not is_well
    assert text.splitlines() == [
        " ok    first   all is well",
        " ✖     second  it is broken  → repair it",
        " ▲     second  it is slow  → on the host: a",
        " –     third   not here",
        " 2 of 4 checks need attention.",
    ]


def test_names_of_several_lines():
    """A file's name may have a newline: the line stays one, and a shell still reads the name."""
    name = "/x\ny"
    _, text = said([Check("one", lambda place: failed(f"{name}: not there", f"echo {shlex.quote(name)}"))])

    line, _ = text.splitlines()
    command = line.partition("→ ")[2]
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout == f"{name}\n"


def test_json_has_the_same():
    """As objects, with the counts."""
    is_well, text = said(MIXED, as_json=True)

    document = json.loads(text)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert (is_well, document["ok"], document["total"], document["need_attention"]) == (False, False, 4, 2)
    assert document["checks"][1] == {
        "name": "second",
        "status": "failed",
        "summary": "it is broken",
        "repair": {"command": "repair it", "where": "here"},
    }


def test_warnings_alone_do_not_fail():
    """Exit code 1 is for ✖ alone."""
    assert said([Check("one", lambda place: warning("slow", "hurry"))])[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_symbols_have_stand_ins(encoding):
    """Where the encoding has no ✖ or →; other characters are escaped, never an error."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    checks = [*MIXED, Check("fourth", lambda place: failed("/データ: not there", "docker run …"))]
    doctor(Place(), stream, checks=checks)
    doctor(Place(), stream, checks=checks, as_json=True)
    stream.flush()

    text = raw.getvalue().decode(encoding)
    assert " x     second  it is broken  -> repair it\n" in text
    assert " !     second" in text and " -     third" in text
    assert "\\u30c7\\u30fc\\u30bf: not there  -> docker run ..." in text


# -- a check that is late, hangs or crashes ------------------------------------------------------------------------


def test_a_check_that_crashes_stops_no_other(capfd):
    """It is reported as what it is: a bug of ours."""

    def crash(place):
        raise RuntimeError("went\nwrong")

    def later(place):
        yield ok("one thing")
        raise SystemExit(3)

    is_well, text = said([Check("first", crash), Check("second", later), Check("third", lambda place: ok("fine"))])

    assert not is_well
    assert "✖     first   the check itself failed: RuntimeError: went wrong  → GPUMON_STRICT=1 gpumon doctor" in text
    assert "✖     second  the check itself failed: SystemExit: 3" in text
    assert "ok    third   fine" in text


def test_a_check_that_hangs_is_given_up():
    """Each has its own limit; what comes too late is not printed."""
    forever = threading.Event()

    def hang(place):
        return forever.wait(60) and ok("late")

    began = time.monotonic()

    is_well, text = said(
        [
            Check(
                "first",
                lambda place: forever.wait(60) and ok("late"),
                limit_s=0.3,
                stuck=lambda place: Repair("reboot"),
            ),
            Check("second", lambda place: ok("fine")),
            Check("third", lambda place: time.sleep(0.6) or ok("slow"), limit_s=30),
        ]
    )
    forever.set()

    assert time.monotonic() - began < 10
    assert text.splitlines()[:3] == [
        " ✖     first   no answer within 0.3 s  → reboot",
        " ok    second  fine",
        " ok    third   slow",
    ]
    assert not is_well


def test_checks_wait_beside_each_other():
    """Ten that take a while take that while once."""
    began = time.monotonic()

    is_well, _ = said([Check(str(number), lambda place: time.sleep(0.5) or ok("done")) for number in range(10)])

    assert is_well
    assert time.monotonic() - began < 4


class Terminal:
    """A terminal with `doctor` on it; `seen` is what it shows so far."""

    def __init__(self, checks, monkeypatch, **environment):
        for name, value in {"TERM": "xterm", "NO_COLOR": "", **environment}.items():
            monkeypatch.setenv(name, value)
        self._master, slave = pty.openpty()
        self._stream = os.fdopen(slave, "w", encoding="utf-8")
        self.seen = ""
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._run, args=(checks,), daemon=True).start()

    def _run(self, checks):
        doctor(Place(), self._stream, checks=checks)
        self.ended.set()

    def _read(self):
        while True:
            try:
                self.seen += os.read(self._master, 4096).decode("utf-8", "replace")
            except OSError:
                return


def test_results_appear_as_they_come_on_a_terminal(monkeypatch):
    """One that is late holds up no other, and is named meanwhile."""
    late = threading.Event()
    checks = [Check("first", lambda place: late.wait(60) and ok("late"), limit_s=60), *MIXED[1:]]

    terminal = Terminal(checks, monkeypatch)
    eventually(lambda: "third" in terminal.seen and "waiting for first" in terminal.seen)
    assert "late" not in terminal.seen
    late.set()
    assert terminal.ended.wait(10)
    eventually(lambda: "2 of 4 checks need attention." in terminal.seen)

    assert terminal.seen.index("third") < terminal.seen.index("late")
    assert "\x1b[31m" in terminal.seen  # red
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.seen)
    last = [line.rpartition("\x1b[K")[2] for line in shown.replace("\r\n", "\n").split("\n")]
    assert last[:3] == [
        " ✖     second  it is broken  → repair it",
        " ▲     second  it is slow  → on the host: a",
        " –     third   not here",
    ]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_they_are_not_wanted(monkeypatch, environment):
    """NO_COLOR, or a terminal that has none."""
    terminal = Terminal(MIXED, monkeypatch, **environment)
    assert terminal.ended.wait(10)
    eventually(lambda: "need attention." in terminal.seen)

    assert not re.search(r"\x1b\[[0-9;]*m", terminal.seen)


# -- the list -----------------------------------------------------------------------------------------------------


def test_nothing_needs_root_or_changes_anything(somewhere, tmp_path):
    """Every check on a machine with nothing at all: all end, none crashes, not a file is made."""
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in str(path))

    examined = examine(somewhere.place(), *(check.name for check in CHECKS))

    assert not [entry for entry in examined.entries if "check itself failed" in entry["summary"]]
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)) == before


def test_what_the_report_cannot_see_has_a_check():
    """CollectorBlind sends people here: what it may name stands in the list, with cause and repair."""
    named = re.findall(r'needed\["(\w+)"\]', inspect.getsource(verdict.collector_blind))
    assert len(named) >= 3
    for what in named:
        assert {"disk": "disks", "gpu": "nvml"}.get(what, what) in {check.name for check in CHECKS}
