"""Runs smartctl, through pySMART: one process per question, bounded in time, output and number.

Source: smartctl of smartmontools. `GPUMON_SMARTCTL` names another path or a whole command line, such as
`sudo -n /usr/local/sbin/gpumon-smartctl`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpumon.errors import CollectorError, NoDataError

TIMEOUT_S: Final = 30.0
MAX_OUTPUT: Final = 4 << 20  # bytes; a full answer has some 30 kB
STANDBY: Final = 3  # the exit status that `--nocheck=standby,3` gives a sleeping disk
_KILL_S: Final = 1.0
_FIRST_WITH_JSON: Final = (7, 0)
_FOLDERS: Final = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # not on every user's PATH
_INSTALL: Final = "smartctl not found: install smartmontools"
_VERSION: Final = re.compile(r"smartctl (\d+)\.(\d+)")
_SCANNED: Final = re.compile(r"(/\S+) -d (\S+)")

_RUNNING: set[subprocess.Popen[bytes]] = set()
_IMPORTING = threading.Lock()


@dataclass(frozen=True)
class Target:
    """A disk as smartctl addresses it; several may share a path ("megaraid,0", "megaraid,1")."""

    path: str  # "/dev/sda", "/dev/nvme0", "/dev/bus/0"
    type: str = "auto"  # smartctl's -d

    @property
    def name(self) -> str:
        """For people: the path, and the type where the path alone does not tell."""
        return f"{self.path} ({self.type})" if "," in self.type else self.path


class Hung(CollectorError):
    """smartctl did not answer in time; `process` did not even end when it was killed, where there is one."""

    def __init__(self, reason: str, process: subprocess.Popen[bytes] | None = None) -> None:
        super().__init__(reason)
        self.process = process


def find(environment: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs smartctl.

    Raises:
        NoDataError: it is not installed.
    """
    environment = os.environ if environment is None else environment
    if chosen := environment.get("GPUMON_SMARTCTL"):
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            raise NoDataError(f"GPUMON_SMARTCTL: {error}") from None
        if command and shutil.which(command[0]):
            return command
        raise NoDataError(f"GPUMON_SMARTCTL: no command {chosen!r}")
    path = os.pathsep.join((environment.get("PATH", os.defpath), *_FOLDERS))
    if found := shutil.which("smartctl", path=path):
        return [found]
    raise NoDataError(_INSTALL)


def version(timeout_s: float = 5.0) -> tuple[int, int]:
    """Major and minor number.

    Raises:
        NoDataError: smartctl is not there.
        CollectorError: it does not say.
    """
    output, _status = run([*find(), "--version"], timeout_s)
    if found := _VERSION.search(output.decode(errors="replace")):
        return int(found[1]), int(found[2])
    raise CollectorError(f"{find()[-1]} is not smartctl: `--version` says no version")


def scan(timeout_s: float = TIMEOUT_S) -> list[Target]:
    """The disks, without opening them: none is woken.

    Raises:
        NoDataError: smartctl is not there.
        CollectorError: the list could not be had.
    """
    find()  # before pySMART is imported, which takes a while
    runner = _runner()(timeout_s)
    lines, status = runner.generic_call(["--scan"])
    document = runner.document
    if document is None and _is_too_old(lines):
        runner.as_json = False
        lines, status = runner.generic_call(["--scan"])
    elif document is None:
        raise _no_answer(lines, status)
    if document is not None:
        devices = document.get("devices")
        rows = devices if isinstance(devices, list) else []
        listed = [(each.get("name"), each.get("type")) for each in rows if isinstance(each, dict)]
    else:
        listed = [(found[1], found[2]) for line in lines if (found := _SCANNED.match(line))]
    if status and not listed:
        said = errors(document) if document is not None else lines[-1:]
        raise CollectorError(f"smartctl --scan: {printable(said[0]) if said else f'exit status {status}'}")
    # Linux lists every SATA disk as "scsi", which would leave its ATA attributes unread.
    kinds = ((name, "auto" if kind in ("scsi", "ata", None) else kind) for name, kind in listed)
    return list(dict.fromkeys(Target(name, kind) for name, kind in kinds if isinstance(name, str)))


def read(target: Target, *, leave_asleep: bool = True, ssd_log: bool = False, timeout_s: float = TIMEOUT_S) -> Any:
    """One disk's whole answer: smartctl's JSON document, whatever its exit status.

    *leave_asleep*: ask a disk in standby nothing; the answer then has exit status 3 and no health.

    Raises:
        NoDataError: smartctl is not there.
        Hung: it took longer than *timeout_s*.
        CollectorError: what it printed is no answer.
    """
    questions = ["--info", "--health", "--attributes", "--log=error", "--log=selftest", "--tolerance=verypermissive"]
    if ssd_log:
        questions.append("--log=ssd")
    where = ["-d", target.type, target.path]
    check = [f"--nocheck=standby,{STANDBY}"] if leave_asleep else []
    runner = _runner()(timeout_s)
    lines, status = runner.generic_call([*questions, *check, *where])
    if status == STANDBY and any("SLEEP mode" in line for line in lines):
        # Said of every disk that leaves open whether it sleeps: it is broken, behind a bridge, or a right is missing.
        # One that really sleeps deeper than standby was woken by being asked.
        lines, status = runner.generic_call([*questions, *where])
    if runner.document is not None:
        return runner.document
    if _is_too_old(lines):
        from gpumon.system.smart_text import document_of

        runner.as_json = False
        if leave_asleep:
            lines, _ = runner.generic_call(["--nocheck=standby", "--info", *where])
            if any("Device is in STANDBY" in line for line in lines):
                return {"smartctl": {"exit_status": STANDBY}}
        return document_of(target, runner)
    raise _no_answer(lines, status)


def errors(document: Mapping[str, Any]) -> list[str]:
    """What went wrong, in smartctl's words; some of it stands in the text only that comes with the document."""
    told = document.get("smartctl")
    messages, output = (told.get(key) for key in ("messages", "output")) if isinstance(told, dict) else (None, None)
    rows = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    said = [each.get("string") for each in rows if each.get("severity") not in ("information", "warning")]
    said += [line for line in output if "failed: " in str(line)] if isinstance(output, list) else []
    return [printable(each, 200) for each in said if isinstance(each, str) and each.strip()]


def printable(text: str, length: int = 80) -> str:
    """One line of it, without what no label or terminal takes."""
    text = " ".join(text.split())[:length]
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


def run(command: Sequence[str], timeout_s: float, *, began: float | None = None) -> tuple[bytes, int]:
    """Output (stdout and stderr) and exit status of a command that ends in time, at once where it prints too much.

    *began*: when the time began (`time.monotonic()`), where it is for several commands.

    Raises:
        Hung: it did not end; it and its children were killed.
        CollectorError: it could not be started, or printed more than `MAX_OUTPUT`.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(  # a session of its own: Ctrl-C is the training's, and the group can be killed
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CollectorError(f"{command[0]}: {error.strerror or error}") from None
    assert process.stdout is not None
    _RUNNING.add(process)
    until = (time.monotonic() if began is None else began) + timeout_s
    output = bytearray()
    try:
        with process.stdout as pipe, selectors.DefaultSelector() as selector:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
            while len(output) <= MAX_OUTPUT:
                if (left := until - time.monotonic()) <= 0:
                    raise _kill(process, f"smartctl: no answer within {timeout_s:g} s")
                if selector.select(left):
                    chunk = os.read(pipe.fileno(), 1 << 16)
                    if not chunk:
                        break
                    output += chunk
        if len(output) > MAX_OUTPUT:
            _kill(process, "")
            raise CollectorError(f"smartctl: more than {MAX_OUTPUT >> 20} MiB of output")
        try:
            status = process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _kill(process, f"smartctl: did not end within {timeout_s:g} s") from None
    finally:
        _RUNNING.discard(process)
    return bytes(output), status


def disks_of(target: Target, root: str | Path = "/") -> tuple[str, ...]:
    """The kernel's block devices that lie on this disk: nvme0 -> nvme0n1; of a RAID controller's bus its volumes.

    Source: /sys/class/block, /sys/class/nvme, /sys/class/scsi_host under *root*.
    """
    system = Path(root) / "sys"
    name = target.path.rpartition("/")[2]
    if target.path.startswith("/dev/bus/"):
        found = (system / "class/scsi_host" / f"host{name}").resolve().glob("../../target*/*/block/*")
        return tuple(sorted(path.name for path in found))
    if (system / "class/block" / name).exists():
        return (name,)
    if (controller := system / "class/nvme" / name).exists():
        spaces = {re.sub(r"c\d+n", "n", path.name) for path in controller.glob("nvme*n*")}
        return tuple(sorted(spaces))
    if name.startswith("sg"):
        return tuple(sorted(path.name for path in (system / "class/scsi_generic" / name / "device/block").glob("*")))
    return ()


def stop_all() -> None:
    """Kill what still runs, for the end of the process."""
    for process in list(_RUNNING):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes], reason: str) -> Hung:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_KILL_S)
    except subprocess.TimeoutExpired:  # in the kernel, waiting for the disk: it ends when the disk answers
        return Hung(f"{reason}, and it cannot be killed: the kernel waits for the disk", process)
    return Hung(reason)


@functools.cache
def _runner() -> Any:
    """A class over pySMART's runner of smartctl, with our process in it and the JSON document kept.

    All runs of one of its objects share its time.
    """
    with _IMPORTING, _process_unchanged():
        from pySMART.smartctl import Smartctl

    class Runner(Smartctl):  # type: ignore[misc, unused-ignore]
        def __init__(self, timeout_s: float) -> None:
            self._command = find()
            super().__init__(smartctl_path=self._command[-1], options=[])  # its default list is shared by all
            self._timeout_s, self._began = timeout_s, time.monotonic()
            self.as_json = True
            self.document: dict[str, Any] | None = None
            self.lines: list[str] = []  # of the last output that was no JSON

        def _exec(self, cmd: list[str]) -> tuple[list[str], int]:
            command = [*self._command, *(["--json=co"] if self.as_json else []), *cmd[1:]]
            output, status = run(command, self._timeout_s, began=self._began)
            text = output.decode(errors="replace")
            self.document = _document(text) if self.as_json else None
            if self.document is None:
                self.lines = text.splitlines()
                return self.lines, status
            told = self.document.get("smartctl")
            if not isinstance(told, dict):
                told = self.document["smartctl"] = {}
            if not isinstance(told.get("exit_status"), int):
                told["exit_status"] = status
            lines = told.get("output")
            return [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else [], status

    return Runner


@contextlib.contextmanager
def _process_unchanged() -> Iterator[None]:
    """Undo what pySMART's import does to the whole process: LANG, the class of loggers, the name of a log level."""
    logger_class, language = logging.getLoggerClass(), os.environ.get("LANG")
    levels: list[tuple[dict[Any, Any], Any]] = [(logging._levelToName, 5), (logging._nameToLevel, "TRACE")]
    named = [names.get(key) for names, key in levels]
    try:
        yield
    finally:
        logging.setLoggerClass(logger_class)
        for (names, key), value in [*zip(levels, named, strict=True), ((os.environ, "LANG"), language)]:
            if value is None:
                names.pop(key, None)
            else:
                names[key] = value


def _document(text: str) -> dict[str, Any] | None:
    """The JSON object in an output; releases up to 7.2 print lines of some SAS disks before it."""
    begin = text.find("{")
    if begin < 0:
        return None
    try:
        document, _end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _no_answer(lines: Sequence[str], status: int) -> CollectorError:
    said = next((line.strip() for line in lines if line.strip()), f"signal {-status}" if status < 0 else "nothing")
    return CollectorError(f"smartctl: no JSON: {printable(said)}")


def _is_too_old(lines: list[str]) -> bool:
    """Whether it is a smartctl that knows no JSON."""
    found = _VERSION.search("\n".join(lines[:5]))
    return found is not None and (int(found[1]), int(found[2])) < _FIRST_WITH_JSON
