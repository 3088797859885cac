"""The agent's socket: for whom it is, and what is there already."""

import grp
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent_process import agent_process, short_folder
from gpumon.agent.socket import chosen_path, listen
from gpumon.errors import GpumonError, NoDataError
from gpumon.system.agent_socket import NoAgentError, ask, default_socket, health
from otlp_receiver import eventually


@pytest.fixture
def folder():
    with short_folder() as found:
        yield found


def mode_and_group(path):
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_gid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to a group")
def test_only_root_and_the_group_may_connect(folder, request):
    """Mode 0660, the group by name or number; its folder is made, and open to pass, whatever the umask."""
    name = grp.getgrgid(os.getgroups()[0] if os.getgroups() else 0).gr_name
    before = os.umask(0o077)
    request.addfinalizer(lambda: os.umask(before))
    for path, group, number in (
        (folder / "a/agent.sock", "45678", 45678),
        (folder / "b.sock", name, grp.getgrnam(name).gr_gid),
    ):
        listener = listen(path, group, {})
        assert mode_and_group(path) == (0o660, number)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        listener.close()


def test_a_group_that_is_not_there(folder):
    """Asked for by name: an error with the command; the default one: nobody but root."""
    with pytest.raises(GpumonError, match=r"no group 'nonesuch' on this machine \(groupadd --system nonesuch\)"):
        listen(folder / "agent.sock", "nonesuch", {})
    assert list(folder.iterdir()) == []


def test_what_a_dead_agent_left_is_replaced(folder):
    """A socket file that nobody listens at, and the lock of an agent that was killed."""
    with agent_process(folder) as agent:
        agent.process.kill()
        agent.process.wait()
        assert agent.socket.exists()
        with pytest.raises(NoDataError, match="it has ended"):
            health(agent.socket)
        with agent_process(folder) as another:
            assert another.ask("/v1/health")["instance"]


def test_a_living_agent_is_not_replaced(folder):
    """One clear line, exit 2; the one that was there goes on."""
    with agent_process(folder) as agent:
        instance = agent.ask("/v1/health")["instance"]
        command = [sys.executable, "-m", "gpumon", "agent", "--socket", str(agent.socket)]
        second = subprocess.run(
            command, capture_output=True, text=True, timeout=30, env={**os.environ, "GPUMON_STRICT": ""}
        )

        assert second.returncode == 2
        assert second.stderr == f"gpumon: an agent already listens at {agent.socket}\n"
        assert agent.ask("/v1/health")["instance"] == instance


def test_somebody_elses_socket_and_files_stay(folder):
    """A program that listens there without our lock, a file, a folder that may not be written."""
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(GpumonError, match="already listens"):
            listen(path, None, {})
        assert path.exists()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(GpumonError, match="no socket: remove it, or choose --socket"):
        listen(path, None, {})
    assert path.read_text() == "precious"
    with pytest.raises(
        GpumonError, match=r"cannot listen at /proc/gpumon/agent.sock: .* \(run as root, or choose --socket\)"
    ):
        listen(Path("/proc/gpumon/agent.sock"), None, {})
    with pytest.raises(GpumonError, match="too long"):
        listen(folder / ("x" * 120), None, {})


def test_the_end_removes_the_socket_but_no_other(folder):
    """What took its place meanwhile is another agent's."""
    path = folder / "agent.sock"
    listener = listen(path, None, {})
    listener.close()
    assert list(folder.iterdir()) == []
    listener = listen(path, None, {})
    path.unlink()
    path.write_text("another's")
    listener.close()

    assert path.read_text() == "another's"


def test_where_it_is(monkeypatch):
    """The option, the variable, systemd's folder, /run/gpumon; clients know the variable and the default."""
    assert chosen_path(Path("/x/y"), {"GPUMON_AGENT_SOCKET": "/z"}) == Path("/x/y")
    assert chosen_path(None, {"GPUMON_AGENT_SOCKET": "/z", "RUNTIME_DIRECTORY": "/run/a"}) == Path("/z")
    assert chosen_path(None, {"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == Path("/run/a/agent.sock")
    assert chosen_path(None, {}) == Path("/run/gpumon/agent.sock")
    monkeypatch.delenv("GPUMON_AGENT_SOCKET", raising=False)
    assert default_socket() == Path("/run/gpumon/agent.sock")
    monkeypatch.setenv("GPUMON_AGENT_SOCKET", "/z")
    assert default_socket() == Path("/z")


ACTIVATED = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "gpumon", "agent", "--socket", "/nowhere/agent.sock"])
"""


def test_a_socket_that_systemd_listens_at(folder):
    """Socket activation: the descriptor that was given is served, and its file left in place at the end."""
    path = folder / "given.sock"
    process = subprocess.Popen([sys.executable, "-c", ACTIVATED, str(path)], stderr=subprocess.PIPE, text=True)
    try:
        answer = eventually(lambda: _health(path), timeout_s=20)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=20)

    assert answer["version"]
    assert process.returncode == 0, log
    assert "as systemd set it" in log
    assert path.exists()


def _health(path):
    try:
        return health(path)
    except NoDataError:
        return None


class Program:
    """Answers everything with the same bytes."""

    def __init__(self, path, says):
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._says = says
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            client.recv(65536)
            if self._says is not None:
                client.sendall(self._says)
                client.close()

    def close(self):
        self._listening.close()


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (b"", "no agent of gpumon"),
        (b"SSH-2.0-x\r\n", "no agent of gpumon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1234", "no agent of gpumon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{", "no agent of gpumon"),
        (b'HTTP/1.1 500 Oh\r\nContent-Length: 16\r\n\r\n{"detail": "oh"}', "refuses /v1/health: oh"),
        (None, r"no answer from the agent at .* within 0.3 s"),
    ],
)
def test_something_else_at_the_socket(folder, says, reason):
    """Whatever is there: a plain reason, in time."""
    path = folder / "agent.sock"
    program = Program(path, says)
    try:
        with pytest.raises(NoDataError, match=reason):
            ask("/v1/health", path, timeout_s=0.3)
    finally:
        program.close()


def test_no_agent(folder):
    """No socket: told apart from an agent that does not answer."""
    with pytest.raises(NoAgentError, match=r"no agent: there is no socket .*/none.sock"):
        health(folder / "none.sock")
