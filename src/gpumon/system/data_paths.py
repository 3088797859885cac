"""Finds the files and folders that a data set object reads from, without calling any of its code."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final

from gpumon.system.storage import STORAGE, StorageMap

_MAX_OBJECTS = 2000
_MAX_DEPTH = 6
_PATIENCE_S = 0.05
_SAMPLE = 8  # items looked at in a long list
_SCALARS = (
    int,
    float,
    complex,
    bool,
    type(None),
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
    type,
)
_CODE_FOLDERS: Final = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/etc",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/boot",
)
_CODE_PARTS: Final = (
    "site-packages",
    "dist-packages",
    "__pycache__",
    "gpumon-runs",
    ".git",
    "fontconfig",
    ".nv",
)
_CODE_PREFIXES: Final = ("torchinductor_", ".triton", "pymp-", "torch_extensions")
_CODE_ENDINGS: Final = (
    ".so",
    ".py",
    ".pyc",
    ".pyd",
    ".pyi",
    ".pth",
    ".ckpt",
    ".safetensors",
    ".gguf",
    ".ttf",
    ".egg",
    ".whl",
    ".log",
    ".lock",
    ".sock",
    " (deleted)",
)


def is_data(path: str, excluded: tuple[str, ...] = ()) -> bool:
    """Whether an absolute path may be training data: no code, no library, no device, no system file."""
    if path.endswith(_CODE_ENDINGS) or ".so." in path:
        return False
    if path.startswith(tuple(folder + "/" for folder in (*_CODE_FOLDERS, *_prefixes(), *excluded))):
        return False
    parts = path.split("/")
    return not any(part in _CODE_PARTS or part.startswith(_CODE_PREFIXES) for part in parts)


@functools.cache
def _prefixes() -> set[str]:
    """The folders of this interpreter and its libraries."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    return {os.path.realpath(prefix) for prefix in prefixes if prefix not in ("", "/")} | (prefixes - {"", "/"})


def paths_of(dataset: object, limit: int = 16, *, storage_map: StorageMap = STORAGE) -> list[str]:
    """Existing files and folders that *dataset* refers to, at most *limit*, folders before their files.

    Looks at attributes (strings, paths, containers, arrays of them, memory maps, wrapped data sets) through
    `vars()`; neither properties nor methods of the data set are called. Paths on network mounts count without
    asking the server. Bounded in objects and time (50 ms).
    """
    found: dict[str, None] = {}
    until = time.monotonic() + _PATIENCE_S
    for name, text in _strings(dataset, until):
        path = _existing(name, text, storage_map)
        if path is not None:
            found[path] = None
            if len(found) >= 8 * limit:
                break
    kept: list[str] = []
    for path in sorted(found, key=len):
        if not any(path.startswith(folder.rstrip("/") + "/") for folder in kept):
            kept.append(path)
    return kept[:limit]


def _strings(dataset: object, until: float) -> Iterator[tuple[str, str | PurePath]]:
    """Yield (attribute, text) of all that could be a path."""
    queue: deque[tuple[str, Any, int]] = deque([("", dataset, 0)])
    seen: set[int] = set()
    keep: list[object] = []  # ids stay unique only while the objects live
    while queue and len(seen) < _MAX_OBJECTS and time.monotonic() < until:
        name, item, depth = queue.popleft()
        if isinstance(item, str | PurePath):
            yield name, item
            continue
        if isinstance(item, bytes):
            if 0 < len(item) < 1024:
                yield name, os.fsdecode(item)
            continue
        if isinstance(item, _SCALARS) or id(item) in seen or depth > _MAX_DEPTH:
            continue
        seen.add(id(item))
        keep.append(item)
        queue.extend((inner or name, value, depth + 1) for inner, value in _inside(item))


def _inside(item: Any) -> list[tuple[str, Any]]:
    kind = type(item)
    if kind in (list, tuple, deque):
        return [("", value) for value in _sample(item)]
    if kind in (set, frozenset):
        return [("", value) for value in _sample(tuple(item) if len(item) <= 1000 else ())]
    if isinstance(item, dict):
        try:
            pairs = list(dict.items(item)) if len(item) <= 1000 else []
        except RuntimeError:  # changed meanwhile
            return []
        texts = [("", key) for key, _value in pairs[:_SAMPLE] if isinstance(key, str | PurePath)]
        return [(key if isinstance(key, str) else "", value) for key, value in pairs[:64]] + texts
    module = kind.__module__.partition(".")[0]
    if module == "numpy":
        return _of_array(item)
    if module == "torch" and kind.__name__ in ("Tensor", "Parameter", "Generator"):
        return []
    values = list(_attributes(item).items())
    if isinstance(item, tuple | list):  # named tuples and lists with a name
        values += [("", value) for value in _sample(list.__iter__(item) if isinstance(item, list) else item)]
    if module in (
        "h5py",
        "lmdb",
        "netCDF4",
        "tables",
        "rasterio",
        "cv2",
        "zipfile",
        "tarfile",
        "_io",
        "io",
        "datasets",
    ):
        values += _of_file(item)
    return values


def _attributes(item: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for kind in reversed(type(item).__mro__):
        # `root = "/data"` in the body of a class.
        attributes.update(
            (name, value)
            for name, value in kind.__dict__.items()
            if isinstance(value, str | PurePath | list | tuple | dict) and not name.startswith("__")
        )
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            member = kind.__dict__.get(slot)
            if isinstance(member, MemberDescriptorType):
                try:
                    attributes[slot] = member.__get__(item)
                except AttributeError:
                    continue
    try:
        attributes.update(object.__getattribute__(item, "__dict__"))
    except (AttributeError, RuntimeError):
        pass
    return attributes


def _sample(items: Any) -> list[Any]:
    if not hasattr(items, "__len__"):
        items = list(items)
    if len(items) <= _SAMPLE:
        return list(items)
    step = len(items) // _SAMPLE
    return [items[index * step] for index in range(_SAMPLE)]


def _of_array(item: Any) -> list[tuple[str, Any]]:
    """Strings in an array, the file behind a memory map."""
    file = getattr(item, "filename", None)
    if file is not None:
        return [("filename", file)]
    base = getattr(item, "base", None)
    if base is not None and type(base).__module__.startswith("numpy"):
        return [("", base)]
    dtype = getattr(item, "dtype", None)
    if dtype is not None and getattr(dtype, "kind", "") in "USO" and item.size:
        flat = item.flat
        step = max(1, item.size // _SAMPLE)
        return [("", value) for value in (flat[index * step] for index in range(min(_SAMPLE, item.size)))]
    return []


def _of_file(item: Any) -> list[tuple[str, Any]]:
    """The path of an open file of a known library, whose attributes do not show it."""
    values: list[tuple[str, Any]] = []
    for name in ("filename", "path", "name", "cache_files", "_filename"):
        try:
            value: Any = getattr(item, name, None)
            value = value() if callable(value) and name == "path" else value
        except Exception:  # noqa: BLE001 - somebody else's object; it has no path then
            continue
        if isinstance(value, str | PurePath | list):
            values.append((name, value))
    return values


_PATH_WORDS = ("root", "path", "dir", "folder", "file", "source", "location", "cache", "url")


def _existing(name: str, text: str | PurePath, storage_map: StorageMap) -> str | None:
    raw = os.fspath(text) if isinstance(text, PurePath) else text
    if not raw or len(raw) > 1024 or "\0" in raw or "\n" in raw:
        return None
    if raw.startswith("file://"):
        raw = raw.removeprefix("file://")
    elif "://" in raw:
        scheme = raw.partition("://")[0]
        return raw if scheme in ("s3", "gs", "gcs", "az", "abfs", "hdfs") and len(raw) > len(scheme) + 3 else None
    hinted = isinstance(text, PurePath) or any(word in name.lower() for word in _PATH_WORDS)
    if not raw.startswith(("/", "~")) and not (hinted or "/" in raw):
        return None
    try:
        path = os.path.abspath(os.path.expanduser(raw))  # noqa: PTH100, PTH111
        if path in ("/", os.path.expanduser("~"), str(Path.cwd())):  # noqa: PTH111
            return None
        if not is_data(path) and not path.startswith("/dev/shm/"):
            return None
        if storage_map.of_path(path).kind == "network":
            return path
        return path if os.path.exists(path) else None  # noqa: PTH110
    except (OSError, ValueError):
        return None
