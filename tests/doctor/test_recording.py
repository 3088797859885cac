"""What keeps a recording out: no room, another Python, two gpumons, a /proc that hides the workers, a deaf agent."""

import grp
import os
import socket
import subprocess
import sys
import tempfile
import threading
import venv
from pathlib import Path

import pytest

from doctor.examined import Agent, Somewhere, examine, unprivileged
from gpumon.doctor import Place
from gpumon.doctor.check import Repair
from gpumon.doctor.recording import blind
from gpumon.version import __version__

PIP = f"{sys.executable} -m pip"
OURS = "opentelemetry-instrumentation-gpumon"


# -- the folder ----------------------------------------------------------------------------------------------


def test_folder_with_room(somewhere, tmp_path, monkeypatch):
    """gpumon-runs/ need not exist yet, and is not made."""
    monkeypatch.chdir(tmp_path)

    examine(somewhere.place(), "runs").is_fine()

    assert not (tmp_path / "gpumon-runs").exists()


def test_folder_that_may_not_be_written():
    """The training is started in somebody else's folder."""
    with tempfile.TemporaryDirectory(prefix="gpumon-doctor-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        theirs = folder / "theirs"
        theirs.mkdir(mode=0o555)
        place = Somewhere(folder).place()
        before = Path.cwd()
        os.chdir(theirs)
        examine(place, "runs")
        try:
            with unprivileged():
                examined = examine(place, "runs")
        finally:
            os.chdir(before)

    command = "gpumon run --out /path/with/room/run-1 -- python train.py"
    examined.names("failed", f"gpumon-runs/: no permission to write in {theirs}", command)


@pytest.mark.disk
@pytest.mark.parametrize(
    ("size", "status", "cause"), [("16m", "failed", "the disk is full"), ("1g", "warning", "free")]
)
def test_folder_without_room(somewhere, tmp_path, size, status, cause):
    """A run keeps up to 2 GiB; the folder that a variable names is the one that counts."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        examined = examine(somewhere.place(GPUMON_RUN_DIR=str(folder / "run-1")), "runs")
    finally:
        subprocess.run(["umount", folder], check=True)

    examined.names(status, cause, "export GPUMON_RUN_DIR=/path/with/room/run-1")


def test_folder_that_is_a_file(somewhere, tmp_path):
    """Not a folder at all."""
    (tmp_path / "file").write_text("")

    examined = examine(somewhere.place(GPUMON_RUN_DIR=str(tmp_path / "file/run")), "runs")

    examined.names("failed", "file is no folder", "export GPUMON_RUN_DIR=/path/with/room/run-1")


# -- the hook ------------------------------------------------------------------------------------------------


@pytest.fixture
def python(somewhere):
    """What `python` is on the PATH."""

    def make(script):
        return somewhere.command("python", script)

    return make


def test_hook_gets_in(somewhere, python):
    """The interpreter that tests run on has gpumon."""
    file = python(f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    examined = examine(somewhere.place(), "hook")

    examined.is_fine()
    assert f"`gpumon run` gets into {file}" in examined.text


def test_python_without_gpumon(somewhere, tmp_path):
    """gpumon was installed into another environment than the one that trains."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    folder = tmp_path / "bare" / "bin"

    examined = examine(somewhere.place(PATH=str(folder)), "hook")

    cause = f"{folder}/python: gpumon is not installed there (this one is {sys.executable})"
    (entry,) = examined.of("hook")
    assert (entry["status"], entry["summary"]) == ("warning", cause)
    # That environment has no pip of its own.
    uv, pip = "uv pip install --python", "-m ensurepip && "
    command = entry["repair"]["command"]
    assert command in (f"{uv} {folder}/python {OURS}", f"{folder}/python {pip}{folder}/python -m pip install {OURS}")


def test_python_without_gpumon_that_trains(somewhere, tmp_path):
    """With torch in it, it is where the training runs."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    folder = tmp_path / "bare" / "bin"
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "torch.py").write_text("")

    examined = examine(somewhere.place(PATH=str(folder), PYTHONPATH=str(packages)), "hook")

    assert examined.code == 1
    assert "gpumon is not installed there" in examined.text


def test_python_of_the_distribution(somewhere, python):
    """PEP 668: pip has to be told twice."""
    python("""#!/bin/sh\necho '[[3, 11], "/usr/bin/python3", true, true, [false, true, true, false, false]]'\n""")

    examined = examine(somewhere.place(), "hook")

    command = f"/usr/bin/python3 -m pip install --break-system-packages {OURS}"
    examined.names("failed", "gpumon is not installed there", command)


def test_python_that_lets_nobody_in(somewhere, python):
    """A wrapper that starts it isolated."""
    python(f'#!/bin/sh\nexec {sys.executable} -E "$@"\n')

    examined = examine(somewhere.place(), "hook")

    examined.names("failed", "ignores PYTHONPATH", f"gpumon run -- {sys.executable} train.py")


def test_python_that_does_not_run(somewhere, python):
    """A broken installation: its own last line says why."""
    python("#!/bin/sh\necho 'python: error while loading shared libraries: libpython3.so' >&2\nexit 127\n")

    examined = examine(somewhere.place(), "hook")

    examined.names("failed", "error while loading shared libraries", f"gpumon run -- {sys.executable} train.py")


def test_python_that_is_too_old(somewhere, python):
    """3.8 reads the hook, and cannot run gpumon."""
    python("#!/bin/sh\necho '[[3, 8], \"/usr/bin/python3.8\", true, false, [false, true, false, false, false]]'\n")

    examined = examine(somewhere.place(), "hook")

    examined.names("failed", "is Python 3.8, gpumon needs 3.10", f"gpumon run -- {sys.executable} train.py")


def test_nothing_is_recorded_by_asking(somewhere, python, tmp_path, monkeypatch):
    """No run directory is left behind."""
    monkeypatch.chdir(tmp_path)
    python(f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    examine(somewhere.place(), "hook")

    assert not (tmp_path / "gpumon-runs").exists()


# -- distributions -------------------------------------------------------------------------------------------


def test_no_other_gpumon(somewhere):
    """As it should be."""
    examine(somewhere.place(), "packages").is_fine()


@pytest.mark.parametrize("how", ["top_level.txt", "RECORD"])
def test_another_distribution_installs_gpumon(somewhere, tmp_path, monkeypatch, how):
    """The one that has the name on PyPI: files of both lie in one folder."""
    info = tmp_path / "site" / "gpumon-0.3.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpumon\nVersion: 0.3.1\n")
    if how == "top_level.txt":
        (info / "top_level.txt").write_text("gpumon\n")
    else:
        (info / "RECORD").write_text("gpumon/__init__.py,,\ngpumon-0.3.1.dist-info/RECORD,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    examined = examine(somewhere.place(), "packages")

    command = f"{PIP} uninstall -y gpumon && {PIP} install --force-reinstall --no-deps {OURS}"
    examined.names("failed", "the distribution gpumon 0.3.1 installs a package gpumon too", command)


# -- /proc of the workers -------------------------------------------------------------------------------------


def test_workers_can_be_seen(somewhere):
    """Yama's usual setting: descendants may be looked at."""
    somewhere.write("proc/sys/kernel/yama/ptrace_scope", "1\n")

    examine(somewhere.place(), "fetches").is_fine()


@pytest.mark.parametrize(
    ("scope", "container", "command", "where"),
    [
        ("2", False, "sudo sysctl -w kernel.yama.ptrace_scope=1", "here"),
        ("2", True, "sudo sysctl -w kernel.yama.ptrace_scope=1", "host"),
        (
            "3",
            False,
            "sudo sh -c 'echo kernel.yama.ptrace_scope=1 > /etc/sysctl.d/99-gpumon.conf && reboot'",
            "here",
        ),
    ],
)
def test_yama_hides_the_workers(somewhere, scope, container, command, where):
    """What workers are blocked on cannot be read; scope 3 stays until the next boot."""
    somewhere.write("proc/sys/kernel/yama/ptrace_scope", f"{scope}\n")
    if container:
        somewhere.docker()

    examined = examine(somewhere.place(), "fetches")

    examined.names("warning", f"kernel.yama.ptrace_scope={scope}: what workers are blocked on", command, where)


def test_yama_lets_the_capable_through(somewhere):
    """Scope 2 asks for CAP_SYS_PTRACE, which root has."""
    somewhere.write("proc/sys/kernel/yama/ptrace_scope", "2\n")
    somewhere.write("proc/self/status", f"Name:\tpython\nCapEff:\t{1 << 19:016x}\n")

    examine(somewhere.place(), "fetches").is_fine()


def test_proc_that_hides_processes(somewhere):
    """hidepid hides other users' processes; a training's workers are its own."""
    somewhere.machine.mount("/proc", "0:20", "proc", "proc", options="rw,hidepid=invisible")

    examined = examine(somewhere.place(), "fetches")

    examined.is_fine()
    assert "hidepid=invisible hides only other users' processes" in examined.text


def test_workers_of_this_machine():
    """The real /proc: a child of ours is looked at, as workers are."""
    examine(Place(), "fetches").is_fine()


@pytest.mark.parametrize(
    ("prepare", "hidden", "command", "where"),
    [
        (lambda here: None, "4", "sudo mount -o remount,hidepid=0 /proc", "here"),
        (lambda here: here.write("proc/version", "gVisor"), "0", "docker run --runtime=runc …", "host"),
        (
            lambda here: here.write("sys/fs/selinux/booleans/deny_ptrace", "1 1"),
            "0",
            "sudo setsebool -P deny_ptrace off",
            "here",
        ),
        (lambda here: here.docker(), "0", "docker run --cap-add SYS_PTRACE …", "host"),
        (lambda here: None, "0", "sudo apt-get install -y linux-image-amd64", "here"),
    ],
    ids=["hidepid", "gvisor", "selinux", "container", "kernel"],
)
def test_what_hides_the_workers(somewhere, prepare, hidden, command, where):
    """What was refused is named; the repair is for what refuses it here."""
    prepare(somewhere)

    result = blind(somewhere.place(), {"syscall": "permission denied"}, hidden)

    assert "syscall (permission denied)" in result.summary
    assert (result.status, result.repair) == ("warning", Repair(command, where))


# -- the agent -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder():
    """A short path that everybody may enter, for sockets."""
    with tempfile.TemporaryDirectory(prefix="gpumon-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_no_agent_is_no_failure(somewhere):
    """A machine of one's own needs none."""
    examined = examine(somewhere.place(), "agent")

    examined.is_fine()
    assert examined.only("agent")["status"] == "absent"


def test_agent_that_answers(somewhere, folder):
    """Its version is told."""
    with Agent(folder / "agent.sock", {"version": __version__}):
        examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=str(folder / "agent.sock")), "agent")

    examined.is_fine()
    assert f"{folder}/agent.sock answers (gpumon {__version__})" in examined.text


def test_agent_that_was_promised(somewhere, folder):
    """The variable names a socket that is not there: in a container, it was not mounted."""
    somewhere.docker()

    examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=str(folder / "agent.sock")), "agent")

    examined.names(
        "failed", f"there is no socket {folder}/agent.sock", "docker run -v /run/gpumon:/run/gpumon …", "host"
    )


def test_agent_that_has_ended(somewhere, folder):
    """Its socket is left; systemd starts it again."""
    somewhere.write("etc/systemd/system/gpumon-agent.service", "")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "agent.sock"))

    examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=str(folder / "agent.sock")), "agent")

    examined.names("failed", "it has ended", "sudo systemctl restart gpumon-agent")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a socket of a group that one is not in")
def test_agent_of_a_group(folder, monkeypatch):
    """0660 root:video: this user is not in the group."""
    somewhere = Somewhere(folder)
    monkeypatch.setattr("gpumon.doctor.repairs.user", lambda: "ada")
    path = folder / "agent.sock"
    with Agent(path, {"version": __version__}):
        os.chown(path, 0, grp.getgrnam("video").gr_gid)
        path.chmod(0o660)
        place = somewhere.place(GPUMON_AGENT_SOCKET=str(path))
        examine(place, "agent")
        with unprivileged():
            examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=str(path)), "agent")

    examined.names("failed", "permission denied: this user is not in group video", "sudo usermod -aG video ada")


@pytest.mark.parametrize(
    ("version", "command"),
    [("99.0", f"{PIP} install {OURS}==99.0"), ("0.0.1", "sudo systemctl restart gpumon-agent")],
)
def test_agent_of_another_version(somewhere, folder, version, command):
    """The newer one of both is what the other has to become."""
    somewhere.write("etc/systemd/system/gpumon-agent.service", "")
    with Agent(folder / "agent.sock", {"version": version}):
        examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=str(folder / "agent.sock")), "agent")

    examined.names("warning", f"is gpumon {version}, this is {__version__}", command)


def test_something_else_at_the_socket(somewhere, folder):
    """Another program's socket."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(folder / "agent.sock"))
        theirs.listen()
        threading.Thread(target=lambda: theirs.accept()[0].sendall(b"hello\n"), daemon=True).start()
        examined = examine(somewhere.place(GPUMON_AGENT_SOCKET=str(folder / "agent.sock")), "agent")

    assert examined.only("agent")["status"] == "failed"
    assert examined.only("agent")["repair"]["command"]
