"""A `gpumon agent` of a test's own, as a process: its socket, what it holds, what it says.

with agent_process(folder, "--prometheus", "0", GPUMON_INTERVALS="disk=0.2") as agent:
    agent.ask("/v1/health")
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpumon.errors import NoDataError
from gpumon.system.agent_socket import ask
from otlp_receiver import eventually


class AgentProcess:
    def __init__(self, process: subprocess.Popen[str], socket: Path, log: Path) -> None:
        self.process, self.socket, self._log = process, socket, log

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self, path: str, /, **parameters: Any) -> dict[str, Any]:
        """The answer; a parameter's value may be a list."""
        pairs = [
            (key, each) for key, value in parameters.items() for each in ([value] if isinstance(value, str) else value)
        ]
        return ask(path, self.socket, parameters=pairs, timeout_s=10)

    def values(self, metric: str, /, **parameters: Any) -> list[dict[str, Any]]:
        return [each for each in self.ask("/v1/readings", **parameters)["readings"] if each["metric"] == metric]

    def up(self, collector: str) -> bool | None:
        return {each["name"]: each["up"] for each in self.ask("/v1/health")["collectors"]}[collector]

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            self.ask("/v1/health")
        except NoDataError:
            return False
        return True

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End it; returns the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(20) == 0, self.log
        return time.monotonic() - began

    def rss_kb(self) -> int:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_s(self) -> float:
        """Its own and that of the commands that it ran."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's name: they have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="gpumon-agent-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def agent_process(
    folder: Path, *options: str, socket: Path | None = None, within: Sequence[str] = (), **variables: str
) -> Iterator[AgentProcess]:
    """An agent that is ready; *variables* replace all of gpumon's and OpenTelemetry's. *within*: what runs it."""
    socket = socket or folder / "agent.sock"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
    environment = {**kept, "GPUMON_STRICT": "1", "GPUMON_STATE_DIR": str(folder / "state"), **variables}
    log = folder / f"agent-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "gpumon", "agent", "--socket", str(socket), *options],
            env=environment,
            stdout=out,
            stderr=out,
            cwd=folder,
            text=True,
        )
    agent = AgentProcess(process, socket, log)
    try:
        eventually(agent.is_ready, timeout_s=30)
        yield agent
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
