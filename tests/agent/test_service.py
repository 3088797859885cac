"""The agent as a service: it starts, says so, exports, reloads and ends as a service manager expects."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from agent_process import agent_process, short_folder
from gpumon.errors import NoDataError
from nvml import standin
from otlp_receiver import eventually, receiver

QUICK = {"GPUMON_COLLECTORS": "disk,host,pressure", "GPUMON_INTERVALS": "disk=0.2,host=0.2,pressure=0.2"}
SOON = {"OTEL_METRIC_EXPORT_INTERVAL": "300"}


@pytest.fixture
def folder():
    with short_folder() as found:
        yield found


class ServiceManager:
    """Listens as systemd does: what it was told, in order."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.variables = {"NOTIFY_SOCKET": str(path)}
        self._told = []

    def told(self):
        """Each datagram, as a dictionary."""
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return self._told
            self._told.append(dict(line.split("=", 1) for line in text.splitlines()))

    def close(self):
        self._socket.close()


@pytest.fixture
def manager(folder):
    manager = ServiceManager(folder / "notify.sock")
    yield manager
    manager.close()


def test_systemd_is_told_of_every_change(folder, manager):
    """READY once it answers; RELOADING with the time, then READY; STOPPING."""
    with agent_process(folder, **QUICK, **manager.variables) as agent:
        eventually(lambda: any("READY" in each for each in manager.told()))
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(manager.told()) >= 3)
        took = agent.stop()

    first, reloading, again, stopping = manager.told()
    assert first["READY"] == "1" and str(agent.socket) in first["STATUS"]
    assert reloading["RELOADING"] == "1"
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert again["READY"] == "1"
    assert stopping == {"STOPPING": "1"}
    assert took < 3


def test_the_watchdog_is_fed(folder, manager):
    """In half the time that systemd allows; not where the watchdog is for another process."""
    with agent_process(folder, **QUICK, **manager.variables, WATCHDOG_USEC="400000"):
        eventually(lambda: sum("WATCHDOG" in each for each in manager.told()) >= 3, timeout_s=5)
    manager.told().clear()
    with agent_process(folder, **QUICK, **manager.variables, WATCHDOG_USEC="400000", WATCHDOG_PID="1"):
        time.sleep(1)

    assert not any("WATCHDOG" in each for each in manager.told())


@pytest.mark.parametrize(
    ("number", "receiver_is"),
    [(signal.SIGINT, "there"), (signal.SIGTERM, "there"), (signal.SIGTERM, "slow"), (signal.SIGTERM, "down")],
)
def test_it_ends_in_time(folder, number, receiver_is):
    """Below 3 s, exit 0, socket removed: with a receiver that takes all, that hangs, or that is not there."""
    with receiver() as otlp:
        otlp.delay_s = 10 if receiver_is == "slow" else 0
        endpoint = "http://127.0.0.1:9" if receiver_is == "down" else otlp.endpoint
        with agent_process(folder, **QUICK, **SOON, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as agent:
            eventually(lambda: agent.up("disk"))
            time.sleep(1)
            took = agent.stop(number)

            assert took < 3, agent.log
            assert not agent.socket.exists()
            assert "Traceback" not in agent.log
            assert bool(otlp.points("system.disk.io")) == (receiver_is == "there")


def test_otlp_has_the_machine_as_its_resource(folder):
    """host.name, host.id and the node's id, no run and no rank; no run directory is written."""
    with (
        receiver() as otlp,
        agent_process(
            folder, **QUICK, **SOON, OTEL_EXPORTER_OTLP_ENDPOINT=otlp.endpoint, OTEL_RESOURCE_ATTRIBUTES="rack=r7"
        ) as agent,
    ):
        eventually(lambda: agent.ask("/v1/health")["exports"])
        eventually(lambda: otlp.points("gpumon.disk.utilization") and otlp.points("gpumon.collector.duration"))
        exports = set(agent.ask("/v1/health")["exports"])
    request = otlp.requests[-1][2].resource_metrics[0]
    told = {each.key: each.value.string_value or each.value.int_value for each in request.resource.attributes}

    assert told["service.name"] == "gpumon-agent"
    assert told["host.name"] == os.uname().nodename
    assert told["process.pid"] == agent.pid
    assert told["rack"] == "r7"
    with open("/proc/sys/kernel/random/boot_id") as file:
        assert told["gpumon.node.id"] == file.read().strip()
    assert not any(key.startswith("gpumon.") for key in told.keys() - {"gpumon.node.id"})
    assert {"disk", "host"} <= exports
    assert not any(path.name.startswith("gpumon-runs") for path in folder.iterdir())


def test_what_nobody_receives_is_not_said_to_be_exported(folder):
    """A process may leave out only what does arrive: not with a receiver that is down, nor without one."""
    with (
        receiver() as otlp,
        agent_process(folder, **QUICK, **SOON, OTEL_EXPORTER_OTLP_ENDPOINT=otlp.endpoint) as agent,
    ):
        eventually(lambda: agent.ask("/v1/health")["exports"])
        otlp.status["/v1/metrics"] = 500
        eventually(lambda: not agent.ask("/v1/health")["exports"], timeout_s=20)
        otlp.status["/v1/metrics"] = 200
        eventually(lambda: agent.ask("/v1/health")["exports"], timeout_s=20)
    with agent_process(folder, **QUICK) as agent:
        eventually(lambda: agent.up("disk"))
        assert agent.ask("/v1/health")["exports"] == []


def test_prometheus_scrapes_it(folder):
    """/metrics in its format, on the loopback interface; nothing else is there, and nothing without the option."""
    with agent_process(folder, "--prometheus", "0", **QUICK) as agent:
        address = eventually(lambda: agent.log.partition("http://")[2].partition("/metrics")[0])
        eventually(lambda: "system_cpu_utilization" in scrape(address))  # a mean takes two looks
        pages = [scrape(address) for _ in range(3)]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(address, "/v1/readings")
    with agent_process(folder, **QUICK) as agent:
        listening = subprocess.check_output(["ss", "-tlnpH"], text=True) if _has_ss() else ""
        assert f"pid={agent.pid}," not in listening

    assert address.startswith("127.0.0.1:")
    for page in pages:
        lines = page.splitlines()
        assert any(line.startswith("system_disk_io_bytes_total{") for line in lines)
        assert any(line.startswith("system_cpu_utilization") for line in lines)
        assert any(line.startswith("target_info{") and "gpumon-agent" in line for line in lines)
        assert len([line for line in lines if not line.startswith("#")]) == len(
            {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}
        )
    assert counter(pages[2], "gpumon_overhead_time_seconds_total") > counter(
        pages[0], "gpumon_overhead_time_seconds_total"
    )


def scrape(address, path="/metrics"):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode()


def counter(page, name):
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


def _has_ss():
    import shutil

    return shutil.which("ss") is not None


def test_a_reload_takes_the_file_and_new_devices(folder):
    """SIGHUP: other collectors and intervals, more GPUs; counters go on, OTLP and the socket stay."""
    state, settings = folder / "nvml.state", folder / "agent.conf"
    gpus = standin.HEALTHY | {"reasons": 0x8}  # a slowdown, whose time the driver does not count

    def has(count):
        state.write_text("".join(f"{key}={value}\n" for key, value in {**gpus, "gpus": count}.items()))

    has(1)
    settings.write_text("# a comment\nGPUMON_COLLECTORS='gpu,host'\nGPUMON_INTERVALS=gpu=0.2,host=0.2\n")
    with (
        receiver() as otlp,
        agent_process(
            folder,
            *("--config", str(settings)),
            **SOON,
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp.endpoint,
            LD_LIBRARY_PATH=str(standin.built()),
            NVML_STANDIN=str(state),
        ) as agent,
    ):
        eventually(lambda: len(agent.ask("/v1/devices")["gpus"]) == 1)
        instance = agent.ask("/v1/health")["instance"]
        slowed_s = eventually(lambda: (found := slowed(agent)) > 1.0 and found)
        has(2)
        settings.write_text("GPUMON_COLLECTORS=gpu,pressure\nGPUMON_INTERVALS=gpu=0.2\n")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(agent.ask("/v1/devices")["gpus"]) == 2)
        health = agent.ask("/v1/health")
        count = len(otlp.requests)
        eventually(lambda: len(otlp.requests) > count)

        assert {each["name"] for each in health["collectors"]} == {"gpu", "pressure"}
        assert health["instance"] == instance
        assert slowed(agent) >= slowed_s
        settings.write_text("GPUMON_COLLECTORS=gpu\nnonsense\n")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: "line 2: expected" in agent.log)
        assert {each["name"] for each in agent.ask("/v1/health")["collectors"]} == {"gpu", "pressure"}
        settings.write_text("GPUMON_COLLECTORS=gpu,pressure\n")
        threads, descriptors = agent.threads(), agent.descriptors()
        for count in range(1, 11):  # what was before each is let go
            agent.process.send_signal(signal.SIGHUP)
            eventually(lambda count=count: agent.log.count(" reloaded: ") - agent.log.count("not reloaded: ") > count)
        eventually(lambda: agent.threads() <= threads)
        eventually(lambda: agent.descriptors() <= descriptors)


def slowed(agent):
    """Seconds of the first GPU, as the agent itself has counted them."""
    return max(
        each["value"]
        for each in agent.values("gpumon.gpu.throttle.time")
        if "hw_slowdown" in each["attributes"].values() and each["attributes"]["gpumon.gpu.index"] == 0
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (["--group", "nonesuch"], {}, "no group 'nonesuch'"),
        (["--prometheus", "x:y:z"], {}, "--prometheus: expected HOST:PORT, got 'x:y:z'"),
        (["--prometheus", "192.0.2.1:80"], {}, "cannot listen at 192.0.2.1:80"),
        (["--config", "/nonexistent"], {}, "/nonexistent: No such file or directory"),
        ([], {"GPUMON_INTERVALS": "disk"}, "GPUMON_INTERVALS: expected collector=seconds"),
    ],
)
def test_what_it_cannot_begin_with_is_one_line(folder, arguments, variables, says):
    """Exit 2, and nothing is left behind."""
    command = [sys.executable, "-m", "gpumon", "agent", "--socket", str(folder / "agent.sock"), *arguments]
    done = subprocess.run(
        command, env={**os.environ, "GPUMON_STRICT": "", **variables}, capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 2
    assert done.stderr.startswith("gpumon: ") and done.stderr.count("\n") == 1 and says in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("module", ["waitress", "prometheus_client"])
def test_a_package_that_is_missing_is_named(folder, module):
    """With the command that installs it."""
    code = (
        "import sys; sys.modules[sys.argv[1]] = None; from gpumon import cli; "
        "cli.main(['agent', '--prometheus', '0', '--socket', sys.argv[2]])"
    )
    command = [sys.executable, "-c", code, module, str(folder / "agent.sock")]
    done = subprocess.run(command, env={**os.environ, "GPUMON_STRICT": ""}, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert f"needs {module}: pip install 'opentelemetry-instrumentation-gpumon[agent]'" in done.stderr


def test_nobody_answers_after_the_end(folder):
    """The client's reason once the agent is gone."""
    with agent_process(folder, **QUICK) as agent:
        agent.stop()
        with pytest.raises(NoDataError, match="no agent: there is no socket"):
            agent.ask("/v1/health")


def test_a_signal_is_heard_whichever_thread_it_comes_to():
    """Then it does not interrupt what the main thread waits in; nor does one that came just before the wait."""
    script = """
import signal, threading, time
from gpumon.agent.service import Signals

signals = Signals(signal.SIGHUP, signal.SIGTERM)

def send():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)

threading.Thread(target=send).start()
assert signals.get(60.0) == signal.SIGHUP
signal.raise_signal(signal.SIGTERM)
signal.raise_signal(signal.SIGHUP)
assert [signals.get(60.0), signals.get(60.0), signals.get(0.1)] == [signal.SIGTERM, signal.SIGHUP, None]
"""
    subprocess.run([sys.executable, "-c", script], timeout=30, check=True)
