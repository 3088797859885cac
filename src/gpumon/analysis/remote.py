"""Runs at URLs: `s3://`, `gs://`, `file://` and whatever else fsspec reaches (extra `remote`).

A run is fetched once, into a temporary folder that goes with it. fsspec is imported only for a URL. What a URL or an
error may hold of passwords, keys and signatures stays out of every message.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpumon.errors import RunError

LARGEST_RUN: Final = 16 * 2**30
"""Bytes; a run directory keeps 2 GiB. More than that is a folder of something else, or of many runs."""
SPARE_BYTES: Final = 2**28
"""Of the temporary folder's disk, which others write to as well."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_RUN_FILE = re.compile(r"run\.json|.+\.jsonl(\.gz)?")
_PACKAGES: Final = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    "smb": "smbprotocol",
    "oci": "ocifs",
}
"""What serves a kind of URL beside fsspec itself."""
_WHERE_CREDENTIALS_ARE: Final = {
    "s3fs": "AWS_PROFILE, AWS_ACCESS_KEY_ID …, or ~/.aws/credentials",
    "gcsfs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
    "adlfs": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY …",
}


def is_url(run: object) -> bool:
    """Whether a run is named by a URL, and not by a path."""
    return isinstance(run, str) and _URL.match(run) is not None


@contextlib.contextmanager
def local(run: str | os.PathLike[str], progress: Callable[[str], None] = lambda text: None) -> Iterator[Path]:
    """A run as files of this machine: where it is, or fetched from its URL for as long as the context lasts.

    Raises:
        RunError: nothing there, not allowed, too large, or no library for it; the text is one line for the user.
    """
    if not is_url(run):
        yield Path(run)
        return
    url = str(run)
    if url.lower().startswith("file://"):
        yield local_path(url)
        return
    place = Place.of(url)
    with place.errors("cannot read"):
        place.fs.invalidate_cache()
        files = _files(place)
        _check_size(place, sum(file.size for file in files))
        folder = tempfile.TemporaryDirectory(prefix="gpumon-")
    with folder as name:
        # The last part of the URL stays its name: exports and messages show it.
        single = len(files) == 1 and files[0].path.strip("/") == place.path.strip("/")
        target = Path(name) if single else Path(name, place.name)
        with place.errors("cannot read"):
            target.mkdir(exist_ok=True)
            for number, file in enumerate(files, 1):
                progress(f"{place}: {number} of {len(files)} files")
                place.fs.get_file(file.path, str(target / file.name))
        with _as_named(str(target / files[0].name if single else target), str(place)):
            yield target / files[0].name if single else target


def local_path(url: str) -> Path:
    """The path of a `file://` URL."""
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise RunError(f"'{shown(url)}' is on another machine: a file of this one is file:///path")
    return Path(urllib.request.url2pathname(parts.path))


@dataclass(frozen=True)
class File:
    """One file at a URL; `name` is its last part."""

    path: str
    size: int

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Place:
    """Where a URL leads: an fsspec file system, and a path in it. As text, for people: without credentials."""

    url: str
    fs: Any
    path: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Find what serves *url*.

        Raises:
            RunError: no such kind of URL, no library for it, or no credentials.
        """
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise RunError(
                f"'{shown(url)}' needs fsspec: pip install 'opentelemetry-instrumentation-gpumon[remote]'"
            ) from None
        with _errors(url, "cannot reach"):
            fs, path = url_to_fs(url)
            return cls(url, fs, str(path))

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2] or "run"

    @property
    def scheme(self) -> str:
        return _scheme(self.url)

    def child(self, name: str) -> Place:
        """What is called *name* below it."""
        return Place(f"{self.url.rstrip('/')}/{name}", self.fs, f"{self.path.rstrip('/')}/{name}")

    def files(self) -> list[File]:
        """The files right here, or below a folder; [] where there is nothing. Errors of fsspec pass."""
        try:
            found = self.fs.ls(self.path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            (File(str(each["name"]), int(each["size"] or 0)) for each in found if each["type"] == "file"),
            key=lambda file: file.name,
        )

    def folders(self) -> list[str]:
        """The names of the folders below it."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = self.fs.ls(self.path, detail=True)
            return sorted(
                str(each["name"]).rstrip("/").rpartition("/")[2] for each in found if each["type"] == "directory"
            )
        return []

    def errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Errors of whatever library serves the URL, as one line that begins with *what*."""
        return _errors(self.url, what)


def shown(url: str) -> str:
    """A URL without what is secret in it: passwords, and queries, which hold the signature of a signed URL."""
    without = re.sub(r"(://[^/@:]*):[^/]*@", r"\1:***@", url)
    return re.sub(r"[?#].*", "?…", without) if "?" in without else without


def _scheme(url: str) -> str:
    return url.partition("://")[0].rpartition("::")[2].lower()


def _files(place: Place) -> list[File]:
    found = place.files()
    is_one = len(found) == 1 and found[0].path.strip("/") == place.path.strip("/")
    wanted = found if is_one else [file for file in found if _RUN_FILE.fullmatch(file.name)]
    if not wanted:
        below = [name for name in place.folders() if name]
        near = f"Folders there: {', '.join(below[-3:])} ({len(below)})." if below else "Nothing is there."
        raise RunError(f"no run at '{place}' (looked for run.json or *.jsonl). {near}")
    return wanted


def _check_size(place: Place, size: int) -> None:
    room = shutil.disk_usage(tempfile.gettempdir()).free - SPARE_BYTES
    if size > LARGEST_RUN:
        raise RunError(f"'{place}' is {size / 2**30:.1f} GiB: at most {LARGEST_RUN / 2**30:.0f} GiB are fetched")
    if size > room:
        raise RunError(f"no room for '{place}' in '{tempfile.gettempdir()}': {size / 2**30:.1f} GiB (TMPDIR sets it)")


@contextlib.contextmanager
def _as_named(path: str, url: str) -> Iterator[None]:
    """Messages about the fetched files name the URL."""
    try:
        yield
    except RunError as error:
        raise RunError(str(error).replace(path, url)) from error


@contextlib.contextmanager
def _errors(url: str, what: str) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # noqa: BLE001 - each library behind a URL has errors of its own
        text = _without_secrets(str(error), url)
        # With a secret in it the cause would show it in a traceback.
        raise RunError(_message(error, text, url, what)) from (error if text == str(error) else None)


def _message(error: Exception, text: str, url: str, what: str) -> str:
    place, scheme = shown(url), _scheme(url)
    package = _PACKAGES.get(scheme, "")
    if isinstance(error, ImportError):
        return f"'{place}' needs {package}: pip install '{package}'" if package else f"{what} '{place}': {text}"
    if isinstance(error, ValueError) and "rotocol not known" in text:
        return f"'{place}': no such kind of URL: {scheme}://"
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f"{what} '{place}': nothing is there"
    if isinstance(error, PermissionError) or "Credential" in kind or "DefaultCredentials" in text:
        where = _WHERE_CREDENTIALS_ARE.get(package)
        return f"{what} '{place}': {text or 'not allowed'}" + (f" (credentials: {where})" if where else "")
    return f"{what} '{place}': {text or kind}"


def _without_secrets(text: str, url: str) -> str:
    """An error's text on one line, without what of the URL is secret."""
    text = " ".join(text.split()).replace(url, shown(url))
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    text = re.sub(r"(://[^/\s@:]*):[^/\s@]*@", r"\1:***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)


def _secrets(url: str) -> list[str]:
    passwords: list[str] = []
    others = [value for name, value in os.environ.items() if re.search(r"SECRET|TOKEN|PASSWORD|ACCOUNT_KEY", name)]
    for part in url.split("::"):
        with contextlib.suppress(ValueError):
            parts = urllib.parse.urlsplit(part)
            passwords += [parts.password or "", urllib.parse.unquote(parts.password or "")]
            others += [parts.query, *(value for _, value in urllib.parse.parse_qsl(parts.query))]
    # Short values are words ("true"), which a message may well hold.
    found = {*filter(None, passwords), *(value for value in others if len(value) >= 8)}
    return sorted(found, key=len, reverse=True)
