"""A guest machine in QEMU, with NVMe disks of its own that can be made to fail while it runs.

Its interpreter, packages and programs are the host's: their folders are mounted read-only under the same paths
(9p), so that nothing is built or installed. QEMU emulates the processor: no /dev/kvm and no root is needed.

    with boot(Nvme("data", serial="SN1", folder=files)) as guest:
        guest.run(["smartctl", "--json", "-a", "/dev/nvme0"])
        guest.set_critical_warning("data", 4)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu import kernel

QEMU = "qemu-system-x86_64"
PROGRAMS = {QEMU: "qemu-system-x86", "smartctl": "smartmontools", "busybox": "busybox-static", "mke2fs": "e2fsprogs"}
GROUPS = {"root": 0, "gpumon": 900, "nogroup": 65534}
USERS = {"root": 0, "nobody": 65534}
TOP = tuple(map(Path, ("/bin", "/sbin", "/lib", "/lib64")))  # links into /usr on most systems
BOOT_S = 120.0
"""Until the guest says that it is ready; takes about 8 s on an idle machine."""


def available() -> str | None:
    """None where a guest can be booted, else what is missing and how to get it."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "needs Linux on x86_64"
    missing = [package for program, package in PROGRAMS.items() if not _program(program)]
    if (busybox := _program("busybox")) and b"/ld-linux" in Path(busybox).read_bytes():
        missing.append("busybox-static")
    if missing:
        return f"needs apt-get install {' '.join(missing)}"
    try:
        kernel.find_or_fetch()
    except kernel.NoKernel as error:
        return str(error)
    return None


def _program(name: str) -> str:
    """Its path, also where a user's PATH leaves the system's programs out; "" where it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


@dataclass(frozen=True)
class Nvme:
    """An NVMe disk of the guest with an ext4 file system, which `mount` mounts; *folder* is what is on it."""

    name: str
    serial: str
    folder: Path | None = None
    size_mb: int = 64


class Job:
    """A command that runs in the guest."""

    def __init__(self, folder: Path, arguments: Sequence[str], guest: Guest) -> None:
        self.folder, self.arguments, self._guest = folder, arguments, guest

    @property
    def returncode(self) -> int | None:
        """None while it runs; as a shell says it, 128+n where signal n ended it."""
        ended = self.folder / "ended"
        return int(ended.read_text()) if ended.exists() else None

    @property
    def stdout(self) -> str:
        return (self.folder / "out").read_text() if (self.folder / "out").exists() else ""

    @property
    def stderr(self) -> str:
        return (self.folder / "err").read_text() if (self.folder / "err").exists() else ""

    def wait(self, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Until it has ended."""
        self._guest.wait_for(lambda: self.returncode is not None, timeout, "the end of", self)
        return subprocess.CompletedProcess(self.arguments, self.returncode or 0, self.stdout, self.stderr)

    def signal(self, name: str) -> None:
        """Send a signal (`TERM`) to it and to what it started."""
        self._guest.run(["kill", "-s", name, "--", "-" + (self.folder / "pid").read_text().strip()])

    def __repr__(self) -> str:
        return f"{shlex.join(self.arguments)}; it said: {(self.stdout + self.stderr)[-2000:]}"


class Guest:
    """A running guest. `exchange` is a folder that both sides write; the guest has it as /exchange."""

    def __init__(self, process: subprocess.Popen[bytes], jobs: socket.socket, exchange: Path, console: Path) -> None:
        self.exchange = exchange
        self._process, self._jobs, self._console = process, jobs, console
        self._numbers = itertools.count(1)

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        user: int = 0,
        groups: Sequence[int] = (),
        environment: Mapping[str, str | Path] | None = None,
    ) -> Job:
        """Start a command, as root or as *user* without any capability; the first group is its main one."""
        command = [str(argument) for argument in arguments]
        job = Job(self.exchange / f"job-{next(self._numbers)}", command, self)
        job.folder.mkdir()
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}
        variables |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        variables |= {key: str(value) for key, value in (environment or {}).items()}
        became: list[str] = []
        if user:
            main, more = (groups or (user,))[0], ",".join(str(group) for group in groups[1:])
            became = ["setpriv", f"--reuid={user}", f"--regid={main}", "--inh-caps=-all", "--bounding-set=-all"]
            became += [f"--groups={more}" if more else "--clear-groups"]
        given = [f"{key}={value}" for key, value in variables.items()]
        (job.folder / "command").write_text(f"exec {shlex.join(['env', '-i', *given, *became, *command])}\n")
        try:
            self._jobs.sendall(job.folder.name.encode() + b"\n")
        except OSError:
            raise RuntimeError(f"QEMU has ended: {self._ending()}") from None
        return job

    def run(
        self, arguments: Sequence[str | Path], *, timeout: float = 60.0, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; *how* is that of `start`."""
        return self.start(arguments, **how).wait(timeout)

    def mount(self, serial: str, path: str) -> str:
        """Mount the disk of that serial number; its name in the guest (`nvme0n1`)."""
        find = f'for disk in /sys/block/nvme*n*; do grep -q "^{serial} *$" $disk/device/serial && basename $disk; done'
        name = self.run(["sh", "-c", find]).stdout.strip()
        done = self.run(["sh", "-c", f"mkdir -p {path} && mount -t ext4 /dev/{name} {path}"])
        assert name and done.returncode == 0, (name, done.stderr)
        return name

    def copy_out(self, path: str, to: Path) -> Path:
        """Copy a folder of the guest's to the host."""
        copied = f"copied-{next(self._numbers)}"
        done = self.run(["cp", "-r", path, f"/exchange/{copied}"])
        assert done.returncode == 0, done.stderr
        return Path(shutil.copytree(self.exchange / copied, to))

    def set_critical_warning(self, disk: str, bits: int) -> None:
        """From now on the disk's SMART log has these bits of `critical_warning`; 4: reliability degraded."""
        self.qmp("qom-set", path=f"/machine/peripheral/{disk}", property="smart_critical_warning", value=bits)

    def qmp(self, command: str, **arguments: object) -> object:
        """Ask QEMU's monitor.

        Raises:
            RuntimeError: it refused; the text is its own.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"QEMU has ended: {self._ending()}")

    def wait_for(self, condition: Callable[[], object], timeout: float, *what: object) -> None:
        """Until *condition* holds.

        Raises:
            TimeoutError: it does not in time; the text says *what* was waited for, jobs with what they said.
            RuntimeError: QEMU has ended.
        """
        end = time.monotonic() + timeout
        while not condition():
            if self._process.poll() is not None:
                raise RuntimeError(f"QEMU has ended: {self._ending()}")
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout:.0f} s: {' '.join(map(str, what))}")
            time.sleep(0.1)

    def _ready(self) -> None:
        self.qmp("qmp_capabilities")
        self._jobs.settimeout(BOOT_S)
        said = b""
        try:
            while b"ready" not in said:
                said += (part := self._jobs.recv(100))
                if not part:
                    raise RuntimeError(f"QEMU has ended: {self._ending()}")
        except TimeoutError:
            raise RuntimeError(f"the guest did not boot in {BOOT_S:.0f} s: {self._ending()}") from None

    def _ending(self) -> str:
        return self._console.read_text(errors="replace")[-2000:] if self._console.exists() else ""


@contextlib.contextmanager
def boot(*disks: Nvme, memory_mb: int = 768, processors: int = 2) -> Iterator[Guest]:
    """Boot a guest with these disks, /dev/nvme0 first."""
    image, modules = kernel.find_or_fetch()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumon-guest-")))
        exchange, console, errors = scratch / "exchange", scratch / "console", scratch / "qemu.err"
        exchange.mkdir()
        exchange.chmod(0o777)  # for users of the guest too
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        with theirs, errors.open("w") as error_file:
            shares = {f"host{number}": path for number, path in enumerate(_folders())}
            mounts = [f"{tag} ro,cache=loose {path}" for tag, path in shares.items()]
            mounts.append("exchange rw,cache=none /exchange")
            (scratch / "initramfs").write_bytes(kernel.initramfs(modules, Path(_program("busybox")), _files(mounts)))
            command = [
                # Ends with the test's process, however that ends.
                "setpriv", "--pdeathsig", "KILL",
                QEMU, "-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", str(processors), "-m", str(memory_mb),
                "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-qmp", "stdio",
                "-chardev", f"file,id=console,path={_quoted(console)}", "-serial", "chardev:console",
                "-chardev", f"socket,id=jobs,fd={theirs.fileno()}", "-serial", "chardev:jobs",
                "-kernel", str(image), "-initrd", str(scratch / "initramfs"),
                "-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off random.trust_cpu=on psi=1",
            ]  # fmt: skip
            for tag, path in [*shares.items(), ("exchange", exchange)]:
                only = "on" if tag != "exchange" else "off"
                share = f"local,id={tag},path={_quoted(path)},security_model=none,readonly={only},multidevs=remap"
                command += ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
            for disk in disks:
                file = scratch / f"{disk.name}.img"
                _format(file, disk)
                command += ["-drive", f"file={_quoted(file)},if=none,id=drive-{disk.name},format=raw,cache=unsafe"]
                command += ["-device", f"nvme,id={disk.name},serial={disk.serial},drive=drive-{disk.name}"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=error_file, pass_fds=[theirs.fileno()]
            )
        try:
            guest = Guest(process, ours, exchange, console)
            try:
                guest._ready()
            except (RuntimeError, OSError) as error:
                raise RuntimeError(f"{error}\n{errors.read_text()}") from error
            yield guest
        finally:
            process.kill()
            process.communicate()


def _quoted(path: Path) -> str:
    """As a value among QEMU's options."""
    return str(path).replace(",", ",,")


def _folders() -> list[Path]:
    """What the guest needs of the host: the system's programs, this interpreter, its packages, our sources."""
    import gpumon

    wanted = {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent}
    wanted |= {Path(gpumon.__file__).parents[1], *(path for path in TOP if path.is_dir() and not path.is_symlink())}
    wanted = {path.resolve() for path in wanted} | {Path(sys.prefix).absolute()}
    return sorted(path for path in wanted if not any(other in wanted for other in path.parents))


def _files(mounts: Sequence[str]) -> dict[str, tuple[int, bytes]]:
    """The guest's own files, by path."""
    folder, text, link = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
    users = "".join(f"{name}:x:{number}:{number}::/tmp:/bin/sh\n" for name, number in USERS.items())
    groups = "".join(f"{name}:x:{number}:\n" for name, number in GROUPS.items())
    files = {
        "init": (text | 0o111, Path(__file__).with_name("init.sh").read_bytes()),
        "shares": (text, "".join(f"{line}\n" for line in mounts).encode()),
        "etc/passwd": (text, users.encode()),
        "etc/group": (text, groups.encode()),
        "etc/hosts": (text, b"127.0.0.1 localhost guest\n"),
        "dev": (folder, b""),
    }
    for path in TOP:
        if path.is_symlink():
            files[str(path)[1:]] = (link, os.readlink(path).encode())
    if (cache := Path("/etc/ld.so.cache")).exists():
        files["etc/ld.so.cache"] = (text, cache.read_bytes())
    return files


def _format(file: Path, disk: Nvme) -> None:
    with file.open("wb") as opened:
        opened.truncate(disk.size_mb << 20)
    content = ["-d", str(disk.folder)] if disk.folder else []
    subprocess.run([_program("mke2fs"), "-q", "-F", "-t", "ext4", *content, str(file)], check=True)
