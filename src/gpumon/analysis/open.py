"""Where a run that somebody names is, and how it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from gpumon.analysis.remote import is_url, local, shown
from gpumon.analysis.source import Execute, Source


@dataclass(frozen=True)
class _Opened:
    """A loaded run under the name that it was asked for by, with what is to be said of it."""

    path: Path | str
    info: Mapping[str, Any]
    damaged: Mapping[str, object]
    execute: Execute


@contextmanager
def opened(run: str | PathLike[str] | None = None) -> Iterator[Source]:
    """The run to ask; None: the newest under `gpumon-runs/`.

    A directory, a file of OTLP lines, `clickhouse://…`, or the URL of a directory or file (`s3://…`, see `remote`).

    Raises:
        RunError: there is none, or it cannot be read; the text is one line for the user.
    """
    if isinstance(run, str) and run.startswith("clickhouse:"):
        from gpumon.analysis.clickhouse.run import open_run

        with open_run(run) as server_run:
            yield server_run
        return
    from gpumon.analysis.load import Loader, newest_run

    with local(newest_run() if run is None else run) as path, Loader(path) as loader:
        loader.refresh()
        found = loader.run
        name = shown(str(run)) if run is not None and is_url(run) else found.path
        told = {found.path.name: found.note} if found.note else {}
        yield _Opened(name, found.info, {**found.damaged, **told}, found.execute)
