"""A smartctl of a test's own: a quick shell script that answers as files in a folder say, which change live.

    smartctl = FakeSmartctl(tmp_path)
    smartctl.answer("/dev/sda", smart_documents.hdd())
    monkeypatch.setenv("GPUMON_SMARTCTL", str(smartctl.command))
    smartctl.hang("/dev/sda")
    smartctl.calls("/dev/sda")[-1].arguments

A disk that no behaviour was given to does not exist. What it started is found by that variable of the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import smart_documents

SCRIPT = """#!/bin/sh
ulimit -c 0
here={here}
printf '%s %s\\n' "$$" "$*" >>"$here/calls"
kind=auto before=
for argument in "$@"; do
    [ "$before" = -d ] && kind=$argument
    before=$argument
done
case $* in
    *--version*) printf 'smartctl %s 2022-02-28 r5338 [x86_64-linux] (local build)\\n' {version}; exit 0;;
    *--scan*) disk=scan;;
    *)
        disk=${{before#/dev/}}
        disk=${{disk%%/*}}_${{disk##*/}}
        case $kind in *,*) disk=$disk.$kind;; esac;;
esac
case {version} in [1-6].*) case $* in *--json*)
    printf '%s\\n' {too_old}
    exit 1
esac esac
[ -f "$here/disks/$disk" ] || disk=none
. "$here/disks/$disk"
"""
TOO_OLD = """=======> UNRECOGNIZED OPTION: json=co

Use smartctl -h to get a usage summary"""


@dataclass(frozen=True)
class Call:
    pid: int
    arguments: tuple[str, ...]

    @property
    def path(self) -> str:
        return self.arguments[-1]


class FakeSmartctl:
    def __init__(self, folder: Path, version: str = "7.3") -> None:
        self._folder = folder / "fake-smartctl"
        self._version = version
        (self._folder / "disks").mkdir(parents=True)
        self._listed: dict[tuple[str, str], None] = {}
        self.command = self._folder / "smartctl"
        too_old = smart_documents.TEXT_HEADER + TOO_OLD
        text = SCRIPT.format(here=quote(str(self._folder)), version=version, too_old=quote(too_old))
        self.command.write_text(text)
        self.command.chmod(0o755)
        self._does("none", self._says(smart_documents.gone()))
        self._scan()

    # -- what disks there are, and what they do ---------------------------------------------------------

    def answer(self, path, document, kind="scsi", *, before="", after_s=0.0, status=None) -> None:
        """Answer with a document (or any text) and its exit status, after some lines or some time."""
        detected = ""
        if self._version.startswith("6"):  # pySMART asks for the kind of some
            opened = next((kind for kind in ("NVMe", "ATA") if f"{kind} Version" in document), "SCSI")
            found = {"ATA": "sat"}.get(opened, opened.lower())
            says = f"echo \"{path}: Device of type '{found}' [{opened}] opened\""
            detected = f"case $* in *'-d test'*) {says}; exit;; esac\n"
        waits = f"sleep {after_s}\n" * (after_s > 0)
        self._disk(path, kind, detected + waits + self._says(document, before, status))

    def asleep(self, path, document, kind="scsi", *, mode="STANDBY", wakes=True) -> None:
        """A disk in standby: asked with `--nocheck` it sleeps on, else it wakes up and answers (see `woken`)."""
        key = self._key(path, kind)
        awake = f": >>{quote(str(self._folder / 'woken'))}.{key}\n" * wakes + self._says(document)
        standby = self._says(smart_documents.standby(mode))
        self._disk(path, kind, f"case $* in *--nocheck*)\n{standby};; esac\n{awake}")

    def woken(self, path, kind="scsi") -> bool:
        return Path(f"{self._folder}/woken.{self._key(path, kind)}").exists()

    def hang(self, path, kind="scsi", *, stubborn=False) -> None:
        """Never end; *stubborn*: ignore SIGTERM, with a child that does too and holds the output open."""
        self._disk(path, kind, "trap '' TERM\nsleep 1000 &\nwait\nsleep 1000" if stubborn else "exec sleep 1000")

    def flood(self, path, kind="scsi") -> None:
        """Print without end."""
        self._disk(path, kind, "exec yes 'a line of a disk that does not stop'")

    def die(self, path, kind="scsi", *, by="SEGV") -> None:
        self._disk(path, kind, f"kill -{by} $$")

    def print_file(self, path, file, kind="scsi") -> None:
        self._disk(path, kind, f"exec cat {quote(str(file))}")

    def read_past_the_cache(self, path, file, kind="scsi") -> None:
        """Of a file on a slow FUSE mount: become a process that cannot be killed until the kernel has its answer."""
        self._disk(path, kind, f"exec dd iflag=direct bs=4096 count=1 status=none if={quote(str(file))}")

    def runs(self, path, script, kind="scsi") -> None:
        """Anything else, as a piece of shell script."""
        self._disk(path, kind, script)

    def remove(self, path, kind="scsi") -> None:
        """Unplug it."""
        del self._listed[path, kind]
        (self._folder / "disks" / self._key(path, kind)).unlink()
        self._scan()

    def scan(self, script: str | None = None, *, after_s: float = 0.0) -> None:
        """How disks are listed: slowly, by a script of one's own, or (None) as they are."""
        if script is None:
            self._scan(after_s)
        else:
            self._does("scan", script)

    def _disk(self, path, kind, script) -> None:
        self._does(self._key(path, kind), script)
        if (path, kind) not in self._listed:
            self._listed[path, kind] = None
            self._scan()

    def _scan(self, after_s=0.0) -> None:
        waits = f"sleep {after_s}\n" * (after_s > 0)
        if self._version.startswith("6"):
            lines = [f"{path} -d {kind} # {path}, a device" for path, kind in self._listed]
            return self._does("scan", waits + self._prints("\n".join(lines)))
        document = smart_documents.header()
        del document["local_time"]
        if self._listed:
            document["devices"] = [smart_documents.device(path, kind, "SCSI") for path, kind in self._listed]
        return self._does("scan", waits + self._says(document))

    @staticmethod
    def _key(path, kind) -> str:
        folder, _, name = path.removeprefix("/dev/").rpartition("/")
        return f"{folder or name}_{name}" + (f".{kind}" if "," in kind else "")

    def _says(self, document, before="", status=None) -> str:
        if isinstance(document, dict) and status is None:
            status = document["smartctl"]["exit_status"]
        text = document if isinstance(document, str) else json.dumps(document, separators=(",", ":"))
        return self._prints(before + text) + f"\nexit {status or 0}"

    @staticmethod
    def _prints(text) -> str:
        return f"printf '%s\\n' {quote(text)}"

    def _does(self, name, script) -> None:
        file = self._folder / "disks" / name
        partial = file.with_name(f".{name}")
        partial.write_text(script + "\n")
        partial.replace(file)

    # -- what was asked ---------------------------------------------------------------------------------

    def calls(self, path: str | None = None) -> list[Call]:
        """All calls so far, or those about one disk."""
        file = self._folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [Call(int(pid), tuple(rest)) for pid, *rest in (line.split(" ") for line in lines)]
        return [call for call in found if path is None or call.path == path]

    def forget_calls(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "calls").unlink()

    def processes(self) -> list[int]:
        """What it started and still runs, children included."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def _is_ours(self, pid) -> bool:
        try:
            given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"GPUMON_SMARTCTL={self.command}".encode() in given and pid != os.getpid()

    def kill_all(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
