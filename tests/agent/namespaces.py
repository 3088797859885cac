"""Runs a program as a container's runtime would: other mounts, another root, no network, another user."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOBODY = 12345
"""A user and a group of that number, which no name belongs to."""


def contained(
    arguments: Sequence[Any],
    *,
    mounts: Sequence[str] = (),
    root: Path | None = None,
    groups: Sequence[int] = (),
    is_root: bool = False,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start it in mount and network namespaces of its own.

    *mounts*: commands for a shell, run there first. *root*: where it finds its `/`. *groups*: of the user that it
    is then, who is nobody.
    """
    user = [] if is_root else ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--inh-caps=-all"]
    if not is_root:
        user.append(f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups")
    if not is_root and root is None:
        mounts = [*_readable(Path(sys.executable), Path(sys.executable).resolve(), *map(Path, sys.path)), *mounts]
    command = [*(["chroot", str(root)] if root else []), *user, *map(str, arguments)]
    script = "\n".join(("set -e", *mounts, f"exec {shlex.join(command)}"))
    return subprocess.Popen(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _readable(*files: Path) -> list[str]:
    """Commands that let everybody pass the folders above our interpreter (root's home, say), in that namespace only."""
    closed = {above for file in files if file.is_absolute() for above in file.parents if not above.stat().st_mode & 1}
    commands = []
    for number, folder in enumerate(sorted(closed, key=lambda folder: len(folder.parts))):
        here = f"$layers/{number}"
        options = f"lowerdir={folder},upperdir={here}/upper,workdir={here}/work"
        commands.append(f"mkdir -p -m 755 {here}/upper {here}/work && mount -t overlay overlay -o {options} {folder}")
    return ["layers=$(mktemp -d)", "mount -t tmpfs none $layers", *commands] if closed else []


def python(code: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]
