"""`run.json`: what a run directory says about its run, shared by all processes that write there.

Fields: `schema`, `id`, `service`, `started`, `ended` (null while it runs, or when it was killed), `host`,
`command`, `exit_code` and `signal` (of a command that `gpumon run` started, else null), `launcher` (the
process of `gpumon run`, or null), `processes` (each with `pid`, `start_ticks`, `host`, `rank`, `started`,
`ended`), `dropped` (closed segments deleted to keep the size bound, by signal), `not_recorded` (sentences).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SCHEMA = "gpumon.run/1"
LOCK_S = 2.0


def new_run_directory(root: Path, service: str) -> tuple[Path, str]:
    """Make `root/<start>-<service>-<short id>/`; returns it and the run's id."""
    while True:
        run_id = new_run_id()
        path = root / run_name(time.time(), service, run_id)
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path, run_id


def new_run_id() -> str:
    return uuid.uuid4().hex


def run_name(start: float, service: str, run_id: str) -> str:
    begun = datetime.fromtimestamp(start, timezone.utc).strftime("%Y%m%dT%H%M%S")
    slug = re.sub(r"[^A-Za-z0-9_.]+", "_", service).strip("_.")[:40] or "run"
    return f"{begun}-{slug}-{run_id[:6]}"


def shared_run_name(service: str, job: str) -> tuple[str, str]:
    """(directory name, run id) that all ranks which one launcher started on this host agree on."""
    parent = os.getppid()
    ticks = start_ticks(parent) or 0
    booted = _boot_time()
    run_id = _digest(f"{os.uname().nodename} {booted} {parent} {ticks} {job}")
    return run_name(booted + ticks / os.sysconf("SC_CLK_TCK"), service, run_id), run_id


def read_run(directory: Path) -> dict[str, Any]:
    """The content of `run.json`; empty when it is missing or damaged."""
    try:
        content = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def edit_run(directory: Path) -> Iterator[dict[str, Any]]:
    """Change `run.json`: read, edit, replace in one piece, one process at a time.

    Raises:
        OSError: it cannot be written; the old content stands.
    """
    with open(directory / ".lock", "a") as lock:
        _lock(lock.fileno())
        content = read_run(directory)
        yield content
        temporary = directory / f".run.json.{os.getpid()}"
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(directory / "run.json")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def describe_run(directory: Path, run_id: str, service: str, command: list[str]) -> bool:
    """Fill `run.json` at the start of a command that this process launches and outlives.

    False where a run is there already: it stays as it is.
    """
    if read_run(directory) or any(directory.glob("*.jsonl*")):
        return False
    with edit_run(directory) as run:
        if run:  # of a process that came first
            return False
        _describe(run, run_id, service, command)
        run["launcher"] = _this_process()
    return True


def join_run(directory: Path, run_id: str, service: str, rank: int, started: float | None = None) -> tuple[Path, str]:
    """Enter this process into the run in *directory*, made when missing; returns its directory and id.

    *started* is when the process began to record, in seconds since the epoch; default now.

    A run that is over is never continued: `<directory>-2` and so on is made instead.

    Raises:
        OSError: the directory cannot be made or written.
    """
    number = 1
    while True:
        path = directory if number == 1 else directory.with_name(f"{directory.name}-{number}")
        path.mkdir(parents=True, exist_ok=True)
        with edit_run(path) as run:
            if not _is_over(run):
                own_id = run_id if number == 1 else _digest(f"{run_id} {number}")
                begun = now() if started is None else _rfc3339(started)
                run.setdefault("started", begun)
                _describe(run, own_id, service, list(getattr(sys, "orig_argv", sys.argv)))
                run["processes"].append({**_this_process(), "rank": rank, "started": begun, "ended": None})
                return path, str(run["id"])
        number += 1


def leave_run(directory: Path, note: str | None = None) -> None:
    """Mark this process as ended; without a launcher the last one to leave ends the run.

    *note* is a sentence that says what is not recorded here.
    """
    with edit_run(directory) as run:
        if note:
            run.setdefault("not_recorded", []).append(note)
        processes = run.get("processes", [])
        for process in processes:
            if process["pid"] == os.getpid() and process["host"] == os.uname().nodename:
                process["ended"] = process["ended"] or now()
        if not run.get("launcher") and all(process["ended"] for process in processes):
            run["ended"] = now()


def writers(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The processes that may still write to the run of this `run.json`, as it names them; [] once it is over.

    One of another host, where nobody here can look, is among them until it says that it has ended.
    """
    if run.get("ended"):
        return []
    return [each for each in [*run.get("processes", []), *filter(None, [run.get("launcher")])] if _is_alive(each)]


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return _rfc3339(time.time())


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None when it does not run.

    Source: /proc/PID/stat, field 22. With the pid it tells a process from a later one of the same number.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else int(after_name[19])


def _describe(run: dict[str, Any], run_id: str, service: str, command: list[str]) -> None:
    for key, value in {
        "schema": SCHEMA,
        "id": run_id,
        "service": service,
        "started": now(),
        "ended": None,
        "host": os.uname().nodename,
        "command": command,
        "exit_code": None,
        "signal": None,
        "launcher": None,
        "processes": [],
        "dropped": {"traces": 0, "metrics": 0, "logs": 0},
        "not_recorded": [],
    }.items():
        run.setdefault(key, value)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "start_ticks": start_ticks(pid), "host": os.uname().nodename}


def _is_over(run: dict[str, Any]) -> bool:
    """Whether everyone who wrote here has ended, by their own word or by being gone."""
    if run.get("ended"):
        return True
    everyone = [*run.get("processes", []), *filter(None, [run.get("launcher")])]
    return bool(everyone) and not any(_is_alive(process) for process in everyone)


def _is_alive(process: Mapping[str, Any]) -> bool:
    if process.get("ended"):
        return False
    if process["host"] != os.uname().nodename:
        return True  # nobody here can tell
    return bool(start_ticks(process["pid"]) == process["start_ticks"])


def _lock(fd: int) -> None:
    """Take the lock; goes on without it where a stopped process or a network file system never gives it."""
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > deadline:
                return
            time.sleep(0.01)


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
