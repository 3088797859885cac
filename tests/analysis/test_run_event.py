"""What `run.json` says, found as an event where a run has none: in a Collector's file."""

import json

from gpumon.analysis.report import build_report
from gpumon.analysis.run_event import event_of
from recorded import RUN_ID, START_S, Recorder, Training, write_run

OTHER = "ff" * 16


def file_of(folder, *events):
    """A file of lines with one run, and with events of what `run.json` of some runs says."""
    run = Recorder(folder / "run").window(Training()).directory
    file = folder / "otlp.jsonl"
    lines = [*(path.read_text() for path in run.glob("*.jsonl")), *(json.dumps(event) + "\n" for event in events)]
    file.write_text("".join(lines))
    return file


def told(folder, **given):
    write_run(folder, **given)
    return event_of(json.loads((folder / "run.json").read_text()))


def test_a_file_with_the_event_of_its_run(tmp_path):
    """Start, end and exit are those of the run, the latest word counts."""
    early = told(tmp_path / "early", exit_code=None)
    event = told(tmp_path / "late", ended_s=START_S + 30, exit_code=5)
    run = build_report(file_of(tmp_path, early, event)).run

    assert (run["id"], run["exit_code"], run["duration_s"], run["complete"]) == (RUN_ID, 5, 30.0, True)


def test_events_of_other_runs_say_nothing(tmp_path):
    """Nor does one that is no JSON."""
    other = told(tmp_path / "other", id=OTHER, exit_code=5)
    odd = told(tmp_path / "odd")
    odd["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"] = {"stringValue": "{"}
    for event in (other, odd):
        run = build_report(file_of(tmp_path, event)).run
        assert (run["id"], run["exit_code"], run["duration_s"]) == (RUN_ID, None, 1.0)


def test_what_is_no_run(tmp_path):
    """A `run.json` that is missing, or of which nobody knows when it began."""
    assert event_of({}) == {}
    assert told(tmp_path, started=None) == {}
