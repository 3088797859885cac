"""`gpumon archive`: a recorded run copied to a URL, verified by reading back what was written.

A run goes to `<url>/<its name>/` with its own file names; lines that are not yet gzip'ed are on the way, to the same
bytes each time. What is there and equal is not copied again, so that a copy which broke off goes on where it was.
`run.json` comes last.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from gpumon import units
from gpumon.analysis.load import check
from gpumon.analysis.remote import Place, is_url
from gpumon.errors import RunError
from gpumon.telemetry.run_json import read_run, writers

ABANDONED_S: Final = 600.0
"""A run that another host began and nobody has written to for so long is over: exports are seconds apart."""

_BLOCK = 2**20
_LIVE_ROUNDS = 5
_LINES = re.compile(r"(?P<stem>[^.].*?)(?P<segment>\.\d{3,})?\.jsonl(\.gz)?")
_LEFT_BEHIND = re.compile(r"\.lock|\.run\.json\.\d+|.+\.jsonl\.gz\.partial")
"""What a recording leaves beside its lines."""
_BUCKETS: Final = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"}
"""There folders come with their files; making one may make a bucket."""


@dataclass
class Archived:
    """What became of one run."""

    run: Path
    url: str
    """Where it is now, for people; without a password."""
    files: int = 0
    copied: int = 0
    size: int = 0
    """Bytes at the URL."""
    is_deleted: bool = False
    kept: list[str] = field(default_factory=list)
    """What stays in the run's directory, as it is no part of a run."""

    def lines(self) -> Iterator[str]:
        """The outcome for people."""
        what = f"{self.files} file{'' if self.files == 1 else 's'}, {units.size(self.size)}"
        already = f", {self.files - self.copied} of them there already" if self.copied < self.files else ""
        yield f"archived {self.run} to {self.url} ({what}{already}; verified)"
        if self.is_deleted:
            stays = f", but for what is no part of a run: {', '.join(self.kept)}" if self.kept else ""
            yield f"deleted {self.run}{stays}"


@dataclass(frozen=True)
class _Packed:
    """A file as it is to be at the URL."""

    name: str
    path: Path
    size: int
    digest: bytes


def archive(
    run: Path,
    url: str,
    *,
    live: bool = False,
    delete: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Archived:
    """Copy a run to *url*, below which it gets a folder of its own name, and verify the copy.

    *live*: one that is still being recorded too, as far as it is. *delete*: remove the run here after all of it was
    verified.

    Raises:
        RunError: no run, still being recorded, or something could not be copied; nothing is deleted then.
    """
    if live and delete:
        raise RunError("--delete is for runs that are over, --live for those that are not: choose one")
    if not is_url(url):
        raise RunError(f"'{url}' is no URL, such as s3://bucket/runs; a folder of this machine is file:///path")
    check(run)
    if not run.is_dir():
        raise RunError(f"'{run}' is a file; what is archived are run directories")
    if not live:
        _check_over(run)
    place = Place.of(url).child(run.resolve().name)
    _check_apart(run, place)
    _check_same_run(run, place)
    outcome = Archived(run, str(place))
    before = _stamps(run)
    for _ in range(_LIVE_ROUNDS):
        sources = _sources(run)
        outcome.files = outcome.copied = outcome.size = 0
        try:
            _copy_all(run, sources, place, outcome, progress)
        except _ChangedError:
            continue
        if _sources(run) == sources:
            break
    else:
        raise RunError(f"'{run}' changes faster than it is copied; try again")
    _remove_what_was_live(place, sources)
    if delete:
        _delete(run, before, outcome)
    return outcome


class _ChangedError(Exception):
    """A live file was closed as a segment, or a segment was packed or dropped, before it was read."""


def _check_over(run: Path) -> None:
    alive = writers(read_run(run))
    if alive and any(each["host"] != os.uname().nodename for each in alive):
        newest = max((path.stat().st_mtime for path in run.iterdir()), default=0.0)
        alive = [] if time.time() - newest > ABANDONED_S else alive
    if alive:
        who = f"process {alive[0]['pid']} on {alive[0]['host']}"
        raise RunError(f"'{run}' is still being recorded ({who}); --live copies what there is so far")


def _check_apart(run: Path, place: Place) -> None:
    """Make sure that the copy is not the run itself, nor in it: `--delete` would leave neither."""
    if place.scheme in ("file", "local") and run.resolve() in (
        there := Path(place.path).resolve(),
        *there.parents,
    ):
        raise RunError(f"'{place}' is in '{run}' itself; choose another URL")


def _check_same_run(run: Path, place: Place) -> None:
    there = place.child("run.json")
    with place.errors("cannot read"):
        place.fs.invalidate_cache()
        try:
            content = json.loads(place.fs.cat_file(there.path))
        except (FileNotFoundError, ValueError):
            return
    theirs = content.get("id") if isinstance(content, dict) else None
    if theirs and theirs != read_run(run).get("id"):
        raise RunError(f"'{place}' holds another run (id {theirs}); choose another URL")


def _sources(run: Path) -> dict[str, Path]:
    """The run's files by their name at the URL, `run.json` last; a segment that is being packed is the plain one."""
    found: dict[str, Path] = {}
    for path in sorted(run.iterdir()):  # `.jsonl` comes before `.jsonl.gz`
        if _LINES.fullmatch(path.name) and path.is_file():
            found.setdefault(path.name.removesuffix(".gz") + ".gz", path)
    if (described := run / "run.json").is_file():
        found[described.name] = described
    return found


def _copy_all(
    run: Path, sources: dict[str, Path], place: Place, outcome: Archived, progress: Callable[[str], None]
) -> None:
    if place.scheme not in _BUCKETS:
        with place.errors("cannot write"):
            place.fs.makedirs(place.path, exist_ok=True)
    with _temporary() as folder:
        for number, (name, path) in enumerate(sources.items(), 1):
            progress(f"{place}: file {number} of {len(sources)}, {units.size(outcome.size)} so far")
            packed = _pack(name, path, folder)
            if not _is_there(place, packed):
                with place.errors("cannot write"):
                    place.fs.put_file(str(packed.path), place.child(name).path)
                if not _is_there(place, packed):
                    raise RunError(f"'{place.child(name)}' is not what was written; nothing here was deleted")
                outcome.copied += 1
            outcome.files += 1
            outcome.size += packed.size
            if packed.path != path:
                packed.path.unlink()


class _temporary(tempfile.TemporaryDirectory[str]):
    """A temporary folder; none is a line for the user."""

    def __init__(self) -> None:
        try:
            super().__init__(prefix="gpumon-")
        except OSError as error:
            raise RunError(f"no room for temporary files: {error.strerror or error}") from error


def _pack(name: str, path: Path, folder: str) -> _Packed:
    """The file as it is to be stored: lines gzip'ed, up to the size that they have now; the rest as it is."""
    try:
        target = path
        if not path.name.endswith(".gz"):
            target = Path(folder, name)
            with open(path, "rb") as source, open(target, "wb") as file:
                if name.endswith(".gz"):
                    # Neither name nor time: the same lines are the same bytes.
                    with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                        shutil.copyfileobj(source, packed, _BLOCK)
                else:
                    shutil.copyfileobj(source, file, _BLOCK)
        with open(target, "rb") as file:
            digest = _digest(file)
        return _Packed(name, target, target.stat().st_size, digest)
    except FileNotFoundError as error:
        raise _ChangedError from error
    except OSError as error:
        raise RunError(f"cannot pack '{path}': {error.strerror or error}") from error


def _is_there(place: Place, packed: _Packed) -> bool:
    """Whether the URL has the file, byte by byte."""
    path = place.child(packed.name).path
    with place.errors("cannot read back"):
        place.fs.invalidate_cache()
        try:
            if place.fs.info(path)["size"] != packed.size:
                return False
            with place.fs.open(path, "rb") as file:
                return _digest(file) == packed.digest
        except FileNotFoundError:
            return False


def _digest(file: IO[bytes]) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.digest()


def _remove_what_was_live(place: Place, sources: dict[str, Path]) -> None:
    """Remove an earlier copy of a live file that is a segment by now: its lines would be there twice.

    Only where the segments are here: what was dropped or deleted here may be at the URL alone.
    """
    matches = [match for name in sources if (match := _LINES.fullmatch(name))]
    closed = {match["stem"] for match in matches if match["segment"]}
    with place.errors("cannot write"):
        for stem in closed:
            name = f"{stem}.jsonl.gz"
            if name not in sources and place.fs.exists(path := place.child(name).path):
                place.fs.rm_file(path)


def _stamps(run: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: ((status := path.stat()).st_size, status.st_mtime_ns)
        for path in run.iterdir()
        if _LINES.fullmatch(path.name)
    }


def _delete(run: Path, before: dict[str, tuple[int, int]], outcome: Archived) -> None:
    """Remove what was archived, segments first: a run whose deletion broke off can be archived again."""
    if _stamps(run) != before:
        raise RunError(f"'{run}' was written to meanwhile; it is archived as it was, and nothing was deleted")
    try:
        described = [path for path in run.iterdir() if path.name in ("run.json", ".lock")]
        lines = [path for path in run.iterdir() if _LINES.fullmatch(path.name) and path.is_file()]
        for path in [*sorted(lines, key=_is_live), *described]:
            path.unlink()
        for path in run.iterdir():
            if _LEFT_BEHIND.fullmatch(path.name):
                path.unlink()
            else:
                outcome.kept.append(path.name)
        if not outcome.kept:
            run.rmdir()
    except OSError as error:
        raise RunError(f"archived, but '{run}' cannot be deleted: {error.strerror or error}") from error
    outcome.is_deleted = True


def _is_live(path: Path) -> bool:
    match = _LINES.fullmatch(path.name)
    return match is not None and not match["segment"]
