"""The kernel of the guest: one that is installed on this machine, else Debian's package, kept in the user's cache.

Kept are the kernel and the few modules that the guest loads, in a folder named after the package's version.
`initramfs` packs modules, busybox and files for one boot.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

NEEDED = ("virtio_pci", "9pnet_virtio", "9p", "nvme", "ext4", "crc32c_generic")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpumon-tests")
KEPT = CACHE / f"linux-{zlib.crc32(' '.join(NEEDED).encode()):08x}"
PACKAGE = "linux-image-amd64"
HOW_TO_GET = f"a kernel for QEMU: {PACKAGE} installed, or apt-get to download it with"


class NoKernel(Exception):
    """There is no kernel for the guest here; the text says how to get one."""


def find_or_fetch() -> tuple[Path, list[Path]]:
    """The kernel's image and its modules, uncompressed, in the order in which they load.

    Raises:
        NoKernel: none is installed and none can be downloaded.
    """
    folder = next(KEPT.glob("linux-*"), None) or _fetch()
    return folder / "vmlinuz", [folder / name for name in (folder / "order").read_text().split()]


def initramfs(modules: Sequence[Path], busybox: Path, files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A root file system in memory (cpio): *files* by path with mode (type included), busybox and the modules."""
    everything = dict(files)
    everything["busybox"] = (stat.S_IFREG | 0o755, busybox.read_bytes())
    for number, module in enumerate(modules):
        everything[f"modules/{number:02}-{module.name}"] = (stat.S_IFREG | 0o644, module.read_bytes())
    for path in list(everything):
        for folder in Path(path).parents:
            everything.setdefault(str(folder), (stat.S_IFDIR | 0o755, b""))
    archive = b"".join(
        _entry(number, path, *everything[path]) for number, path in enumerate(sorted(everything)) if path != "."
    )
    return archive + _entry(0, "TRAILER!!!", 0, b"")


def _entry(number: int, path: str, mode: int, content: bytes) -> bytes:
    """An entry of a cpio archive in the format `newc`, header and content padded to four bytes."""
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _fetch() -> Path:
    """The folder of a kernel that was not kept yet."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="partial-") as scratch:
        if release := _installed(Path("/")):
            name, root = f"linux-installed-{release}", Path("/")
        else:
            name, root = _download(Path(scratch))
            if not (release := _installed(root)):
                raise NoKernel(f"needs {HOW_TO_GET}: {name} lacks one of {', '.join(NEEDED)}")
        made = _keep(root, release, Path(scratch, "kept"))
        with contextlib.suppress(OSError):  # another process was quicker
            made.rename(KEPT / name)
    return KEPT / name


def _installed(root: Path) -> str | None:
    """The newest release below *root* whose image can be read and that has all modules."""
    releases = [
        image.name.removeprefix("vmlinuz-")
        for image in root.glob("boot/vmlinuz-*")
        if os.access(image, os.R_OK) and image.is_file()
    ]
    complete = [release for release in releases if set(NEEDED) <= set(_modules(root, release))]
    return max(complete, key=lambda release: [int(number) for number in re.findall(r"\d+", release)], default=None)


def _modules(root: Path, release: str) -> dict[str, Path]:
    """Modules by name, `-` and `_` being the same; those built into the kernel have an empty path."""
    folder = root / "lib/modules" / release
    built_in = folder / "modules.builtin"
    paths = [Path(line) for line in built_in.read_text().split()] if built_in.exists() else []
    named = {_name(path): Path() for path in paths}
    return named | {_name(path): path for path in folder.glob("kernel/**/*.ko*")}


def _name(module: Path) -> str:
    return module.name.partition(".")[0].replace("-", "_")


def _keep(root: Path, release: str, to: Path) -> Path:
    """Copy the kernel and the modules that the guest needs, dependencies first, their order into `order`."""
    to.mkdir()
    shutil.copy(root / "boot" / f"vmlinuz-{release}", to / "vmlinuz")
    modules = _modules(root, release)
    order: list[str] = []

    def add(name: str) -> None:
        path = modules.get(name, Path())
        if path == Path() or f"{name}.ko" in order:
            return
        content = _uncompressed(path)
        (to / f"{name}.ko").write_bytes(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in depends[1].decode().split(",") if depends else ():
            add(other.replace("-", "_"))
        order.append(f"{name}.ko")

    for name in NEEDED:
        add(name)
    (to / "order").write_text("\n".join(order))
    return to


def _uncompressed(module: Path) -> bytes:
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", str(module)], capture_output=True, check=True).stdout
    return module.read_bytes()


def _download(scratch: Path) -> tuple[str, Path]:
    """Debian's newest kernel, unpacked below *scratch*: the package's file name and the root of its files."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoKernel(f"needs {HOW_TO_GET}")
    depends = rf"Depends: ({PACKAGE.removesuffix('amd64')}\d\S*)"
    if not (found := re.search(depends, _apt("apt-cache", "depends", PACKAGE, cwd=scratch))) and os.geteuid() == 0:
        _apt("apt-get", "update", "-qq", cwd=scratch)
        found = re.search(depends, _apt("apt-cache", "depends", PACKAGE, cwd=scratch))
    said = _apt("apt-get", "download", "-q", found[1], cwd=scratch) if found else f"apt-cache knows no {PACKAGE}"
    package = next(scratch.glob("*.deb"), None)
    if package is None:
        raise NoKernel(f"needs {HOW_TO_GET}: {said.strip().splitlines()[-1]}")
    root = scratch / "package"
    subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True, timeout=120)
    return package.stem, root


def _apt(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr
