"""Where a training saves to: the health of that disk matters as much as that of the data's.

What writes checkpoints is wrapped, and the folder of each path that it is given is noted; what it writes, returns and
raises stays its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from gpumon.system.datasets import CHECKPOINTS
from gpumon.tracing.guard import guard


class Writer(NamedTuple):
    """A function or method that is told where to write."""

    name: str
    place: int  # of the path, among the arguments
    argument: str  # its name
    of: str = ""  # the class, of a method
    takes_folder: bool = False


# It hands torch.save a buffer in memory.
_LIGHTNING: Final = Writer("save_checkpoint", 2, "path", of="TorchCheckpointIO")
WRITERS: Final = {
    "torch": Writer("save", 1, "f"),
    "torch.distributed.checkpoint.filesystem": Writer("mkdir", 1, "path", of="FileSystem", takes_folder=True),
    "safetensors.torch": Writer("serialize_file", 1, "filename"),  # below save_file and save_model
    "lightning.fabric.plugins.io.torch_io": _LIGHTNING,
    "lightning_fabric.plugins.io.torch_io": _LIGHTNING,
}
"""Module -> what writes there."""


def watch(module: Any, replace: Callable[[Any, str, Any], None]) -> None:
    """Note where the writer of *module* writes to; *replace* (owner, name, new) puts the wrapper there."""
    writer = WRITERS[module.__name__]
    owner = getattr(module, writer.of, None) if writer.of else module
    original = getattr(owner, writer.name, None)
    if original is None or hasattr(original, "notes_checkpoints"):
        return
    known: set[str] = set()

    @functools.wraps(original)
    def write(*args: Any, **kwargs: Any) -> Any:
        with guard("checkpoint"):
            target = args[writer.place] if len(args) > writer.place else kwargs.get(writer.argument)
            path = _path(target)
            if path is not None:
                folder = path if writer.takes_folder else os.path.dirname(path)  # noqa: PTH120
                if folder not in known:
                    known.add(folder)
                    CHECKPOINTS.add_path(folder, named=False)
        return original(*args, **kwargs)

    write.notes_checkpoints = True  # type: ignore[attr-defined]
    replace(owner, writer.name, write)


def _path(target: Any) -> str | None:
    """The path of what is written to; None where it is memory, or an object store's."""
    is_path = isinstance(target, str | os.PathLike)
    name: Any = target if is_path else getattr(target, "name", None)
    # An open file may have a name that is no path of this machine's: a number, or a URL.
    if not is_path and not (isinstance(name, str | bytes | os.PathLike) and os.path.exists(name)):  # noqa: PTH110
        return None
    text = os.fsdecode(name).removeprefix("file://")
    return None if "://" in text else os.path.abspath(text)  # noqa: PTH100
