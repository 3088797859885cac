"""`gpumon export`: a recorded run, replayed into ClickHouse or to an OTLP receiver with its own times."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

from gpumon.analysis.load import newest_run, whole_lines
from gpumon.analysis.one_run import split
from gpumon.analysis.remote import is_url, local, shown
from gpumon.analysis.run_event import event_of
from gpumon.errors import RunError
from gpumon.export.outcome import SIGNALS, Outcome, Target
from gpumon.telemetry.otlp_requests import SIGNAL_OF
from gpumon.telemetry.run_json import read_run


def export(
    run: str | PathLike[str] | None,
    url: str,
    *,
    signals: Sequence[str] = (),
    replace: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Send a run, which may be at a URL itself, to *url*; None: the newest one under `gpumon-runs/`.

    *replace*: what ClickHouse has of the run's signals is deleted first. Lines are read one by one: a run may be of
    any size.

    Raises:
        RunError: no such run, or nothing can be sent there.
    """
    wanted = tuple(signals) or SIGNALS
    if run is not None and (name := split(str(run))[0]) != str(run):
        raise RunError(f"a file is exported with all of its runs, ?run= is for reports: gpumon export '{name}' {url}")
    with local(newest_run() if run is None else run, progress) as path:
        outcome = Outcome(shown(run) if isinstance(run, str) and is_url(run) else path)
        with _opened(url, outcome, wanted, replace) as target:
            for file, _, text in whole_lines(path):
                signal, line = _parsed(text)
                if signal in wanted:
                    try:
                        target.add(signal, line)
                    except ValueError:
                        outcome.damage(file)
                elif not signal and text.strip():
                    outcome.damage(file)
                progress(f"{outcome.target}: {outcome.counted(outcome.sent)}")
            if "logs" in wanted and path.is_dir() and (event := event_of(read_run(path))):
                outcome.has_event = True
                target.add("logs", event)
            target.finish()
    return outcome


def _opened(url: str, outcome: Outcome, signals: Sequence[str], replace: bool) -> AbstractContextManager[Target]:
    if url.startswith("clickhouse:"):
        from gpumon.export.to_clickhouse import ClickHouseTarget

        return ClickHouseTarget(url, outcome, signals=signals, replace=replace)
    if replace:
        raise RunError("--replace is for ClickHouse: an OTLP receiver takes nothing back")
    from gpumon.export.to_otlp import OtlpTarget

    return OtlpTarget(url, outcome)


def _parsed(text: bytes) -> tuple[str, dict[str, Any]]:
    """(signal, the line); no signal where it is none."""
    try:
        line = json.loads(text)
    except ValueError:
        return "", {}
    if not isinstance(line, Mapping):
        return "", {}
    found = next((signal for key, signal in SIGNAL_OF.items() if isinstance(line.get(key), list)), "")
    return found, dict(line)
