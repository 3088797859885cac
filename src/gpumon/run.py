"""`gpumon run`: records a command into a run directory, prints the report, and ends as the command ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpumon._hook import sitecustomize as hook
from gpumon.errors import RunError
from gpumon.system.command import NOT_EXECUTABLE, NOT_FOUND, execute, exit_code_of
from gpumon.telemetry.run_json import describe_run, edit_run, new_run_directory, new_run_id, now, read_run

ROOT = Path("gpumon-runs")
NOT_RECORDED = "not-recorded.txt"
"""Where the hook leaves the reason why an interpreter could not be recorded."""

_PYTHON = re.compile(r"(python|pypy)[\d.]*$")
_SETTINGS = {
    "GPUMON_EXPORT": ("otlp", "none"),
    "OTEL_SDK_DISABLED": ("true",),
    "OTEL_METRICS_EXPORTER": ("none",),
}
"""Variables of the user's that keep everything out of a run directory."""
_OPTION = re.compile(r"-([bBdEhiIOPqRsSuvVx]*)([cmWX].*)?", re.DOTALL)


def run(command: Sequence[str], *, out: Path | None = None, report: bool = True) -> int:
    """Run the command, recorded into *out* (default: `GPUMON_RUN_DIR`, else a new folder under `gpumon-runs/`).

    Returns what to exit with: the command's exit code, 128+n where signal n ended it, 127 where there is no
    such command, 126 where it cannot be executed. stdout is the command's own; ours is stderr.

    Raises:
        gpumon.errors.RunError: there is no place for the recording; the command was not run.
    """
    if (code := _missing(command[0])) is not None:
        return code
    directory, run_id = _make_directory(command, out)
    obstacle = _obstacle(command)
    _say(f"recording to {_shown(directory)} ({_devices()})")
    if obstacle:
        _say(f"not recorded: {obstacle}")
    try:
        ended = execute(command, _environment(directory, run_id))
    except OSError as error:
        for name in ("run.json", ".lock"):
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder that held something before stays
            directory.rmdir()
        return _cannot_start(command[0], error)
    with contextlib.suppress(OSError), edit_run(directory) as content:
        content.update(ended=now(), exit_code=ended.exit_code, signal=ended.signal)
        if reasons := _reasons(directory):
            content["not_recorded"] = [*content.get("not_recorded", []), *reasons]
    with contextlib.suppress(KeyboardInterrupt):  # the command has ended: only the report is cut short
        if not any(directory.glob("*.jsonl*")):
            _say(f"nothing was recorded: {_why_nothing(directory, obstacle)}")
        elif report:
            _print_report(directory)
    return ended.exit_code


def _missing(name: str) -> int | None:
    """What a shell would exit with, having said why, where the command cannot be found or executed."""
    if shutil.which(name):
        return None
    if os.sep in name and Path(name).exists():
        reason = "it is a folder" if Path(name).is_dir() else "permission denied"
        _say(f"cannot execute {name}: {reason}")
        return NOT_EXECUTABLE
    _say(f"command not found: {name}")
    return NOT_FOUND


def _cannot_start(name: str, error: OSError) -> int:
    _say(f"cannot execute {name}: {error.strerror}")
    return exit_code_of(error)


def _make_directory(command: Sequence[str], out: Path | None) -> tuple[Path, str]:
    service = service_of(command)
    named = out or _named_directory()
    try:
        if named is None:
            made, run_id = new_run_directory(ROOT, service)
            folders = iter([made])
        else:
            run_id, folders = new_run_id(), iter([named]) if out else _numbered(named)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            directory = folder.resolve()
            if describe_run(directory, run_id, service, list(command)):
                return directory, run_id
        raise RunError(f"{out} holds a recorded run already: name another folder")
    except OSError as error:
        advice = "" if out else "; name a folder with --out"
        raise RunError(f"cannot record into {named or ROOT}: {error.strerror}{advice}") from error


def _named_directory() -> Path | None:
    """The folder of GPUMON_RUN_DIR; inside of another `gpumon run` the variable is that one's."""
    name = os.environ.get("GPUMON_RUN_DIR")
    return Path(name) if name and "GPUMON_RUN_ID" not in os.environ else None


def _numbered(directory: Path) -> Iterator[Path]:
    """It, `<directory>-2` and so on: a job may be started again, or several times at once."""
    yield directory
    for number in itertools.count(2):
        yield directory.with_name(f"{directory.name}-{number}")


def _environment(directory: Path, run_id: str) -> dict[str, str]:
    """The command's environment: ours, the hook in front of its `PYTHONPATH`, and where to record."""
    environment = dict(os.environ)
    here = str(Path(hook.__file__).resolve().parent)
    given = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != here]
    environment["PYTHONPATH"] = os.pathsep.join([here, *given])
    environment["GPUMON_RUN_DIR"] = str(directory)
    environment["GPUMON_RUN_ID"] = run_id
    environment.setdefault("GPUMON_EXPORT", "file")
    return environment


def service_of(command: Sequence[str]) -> str:
    """What the run is called: what the environment says, else the training script, else the command."""
    for variable in ("GPUMON_SERVICE_NAME", "OTEL_SERVICE_NAME"):
        if name := os.environ.get(variable):
            return name
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == "service.name" and value.strip():
            return value.strip()
    if _PYTHON.match(Path(command[0]).name):
        _, kind, target = hook.program(list(command))
        if kind != "m" or not target.startswith(hook.LAUNCHER_MODULES):
            name = target if kind == "m" else Path(target).stem if not kind else ""
            return name or Path(command[0]).name
    scripts = (Path(argument).stem for argument in command[1:] if argument.endswith(".py"))
    return next(scripts, Path(command[0]).stem)


def _obstacle(command: Sequence[str]) -> str | None:
    """Why the command's Python will not run the hook, with the command that repairs it; None: it will."""
    line = list(command)
    if not _PYTHON.match(Path(command[0]).name):
        path = shutil.which(command[0])
        line = [*_interpreter(Path(path)), *command] if path else []
        if not line or not _PYTHON.match(Path(line[0]).name):
            return None
    flags, _, _ = hook.program(line)
    keeping_out = [letter for letter in flags if letter in "IES"]
    if not keeping_out:
        return None
    options = ", ".join(f"-{letter}" for letter in keeping_out)
    repaired = shlex.join(_repaired(line))
    return f"{options} keeps gpumon out of this interpreter -> gpumon run -- {repaired}"


def _repaired(line: list[str]) -> list[str]:
    """A Python command line without the options that keep the hook out."""
    rest = line[1:]
    repaired = line[:1]
    while rest and (option := _OPTION.fullmatch(rest[0])):
        flags, tail = re.sub("[IES]", "", option[1]), option[2] or ""
        repaired += [f"-{flags}{tail}"] if flags or tail else []
        rest.pop(0)
        if tail[:1] in ("c", "m"):
            break
        if tail in ("W", "X"):
            repaired += rest[:1]
            rest = rest[1:]
    return [*repaired, *rest]


def _interpreter(script: Path) -> list[str]:
    """The interpreter of a console script and its options, from its `#!` line."""
    try:
        with open(script, "rb") as file:
            line = file.readline(1024)
    except OSError:
        return []
    words = line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if word != "-S"]
    return words


def _devices() -> str:
    """What there is to watch, counted without opening any device."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    disks = len(list(Path("/sys/block").glob("*/device")))
    return f"devices: {_count(gpus, 'GPU')}, {_count(disks, 'disk')}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what if number == 1 else what + 's'}"


def _reasons(directory: Path) -> list[str]:
    try:
        return (directory / NOT_RECORDED).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _why_nothing(directory: Path, obstacle: str | None) -> str:
    if reasons := _reasons(directory):
        return reasons[0]
    if obstacle:
        return obstacle.partition(" -> ")[0]
    for variable, values in _SETTINGS.items():
        if (value := os.environ.get(variable, "").lower()) in values:
            if value == "otlp":
                return "GPUMON_EXPORT=otlp sends and keeps nothing here -> GPUMON_EXPORT=otlp+file does both"
            return f"{variable}={value} -> unset {variable}"
    if read_run(directory).get("processes"):
        return "the command ended before its first reading"
    keeping_out = "sudo, containers and `python -I` keep gpumon out"
    return f"no Python process of the command imported torch or gpumon ({keeping_out})"


def _print_report(directory: Path) -> None:
    """The report on stderr; a failure of it must not change how the command ended."""
    try:
        from gpumon.analysis.render_text import write_report
        from gpumon.analysis.report import build_report

        write_report(build_report(directory), sys.stderr)
    except RunError as error:
        _say(str(error))
    except Exception as error:  # noqa: BLE001 - the command's exit code stands
        if os.environ.get("GPUMON_STRICT") == "1":
            traceback.print_exc()
        shown = f"{type(error).__name__}: {error}"
        _say(f"the report failed ({shown}) -> GPUMON_STRICT=1 gpumon report {_shown(directory)}")


def _shown(directory: Path) -> str:
    """The directory as the user would name it from here."""
    relative = os.path.relpath(directory)
    return str(directory) if relative.startswith("..") else relative


def _say(text: str) -> None:
    """One line on stderr; nobody may be there to read it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"gpumon: {text}\n")
        sys.stderr.flush()
