"""The unit under the real systemd, in a guest: as the user that sysusers.d makes, with an NVMe disk of root's."""

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path

import pytest

import gpumon
from deploy.deployments import CAPABILITIES, SYSUSERS, UNIT
from qemu import guest as qemu

pytestmark = [pytest.mark.qemu, pytest.mark.scenario]
SOURCE = Path(gpumon.__file__).parents[1]
NUMBERS = {"dac_read_search": 2, "sys_rawio": 17, "sys_ptrace": 19, "sys_admin": 21, "syslog": 34}
MASKED = (
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
    *("systemd-udevd.service", "systemd-tmpfiles-setup.service", "network-online.target"),
)
INSTALL = f"""set -e
    systemd-sysusers /exchange/gpumon.conf
    mkdir -p /opt/gpumon/bin /etc/gpumon /etc/systemd/system/gpumon-agent.service.d /var/lib /var/log /var/tmp
    ln -s {sys.prefix}/bin/gpumon /opt/gpumon/bin/gpumon
    cp /exchange/gpumon-agent.service /etc/systemd/system/
    install --group gpumon --mode 0640 /exchange/agent.conf /etc/gpumon/agent.conf
    echo GPUMON_INTERVALS=holder=1,smart=5,kernel=1 >>/etc/gpumon/agent.conf
    echo 0123456789abcdef0123456789abcdef >/etc/machine-id
    for unit in {" ".join(MASKED)}; do ln -sf /dev/null /etc/systemd/system/$unit; done
    # The interpreter and gpumon may lie in a home or in /tmp, which the service does not see.
    printf '[Service]\\nProtectHome=tmpfs\\nBindReadOnlyPaths={sys.prefix} {sys.base_prefix} {SOURCE}\\n' \\
        >/etc/systemd/system/gpumon-agent.service.d/interpreter.conf
    echo 1 >/proc/sys/kernel/dmesg_restrict
"""
SYSTEMD = """mount -t tmpfs -o mode=755 run /run
    exec /lib/systemd/systemd --system --unit=gpumon-agent.service --log-target=console --show-status=no
"""
JOB = """set -e
    group=/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_batch/user/task_0
    mkdir -p $group && echo $$ >$group/cgroup.procs
    export SLURM_JOB_ID=7 SLURM_JOB_USER=ada
    exec setpriv --reuid=65534 --regid=65534 --clear-groups sleep 600 </data/set.tar
"""


@pytest.fixture
def machine(booted):
    """The guest, with the service running."""
    if booted.run("systemctl is-active gpumon-agent") != "active\n":
        booted.run("systemctl start gpumon-agent")
    return booted


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """A guest in which systemd has started the agent."""
    if missing := qemu.available():
        pytest.skip(missing)
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("needs apt-get install systemd")
    data = tmp_path_factory.mktemp("data")
    (data / "set.tar").write_bytes(bytes(5000))
    with qemu.boot(qemu.Nvme("data", serial="GPUMON0", folder=data)) as guest:
        shutil.copy(UNIT, guest.exchange / "gpumon-agent.service")
        shutil.copy(SYSUSERS, guest.exchange / "gpumon.conf")
        shutil.copy(UNIT.with_name("agent.conf"), guest.exchange / "agent.conf")
        done = guest.run(["sh", "-c", INSTALL])
        assert done.returncode == 0, done.stderr
        guest.mount("GPUMON0", "/data")
        namespaces = ["unshare", "--fork", "--pid", "--mount", "--mount-proc", "--kill-child"]
        systemd = guest.start([*namespaces, "sh", "-c", SYSTEMD], environment={"container": "guest"})
        machine = Machine(guest, systemd)
        machine.wait_for("systemctl is-active gpumon-agent", lambda text: text == "active\n")
        yield machine


class Machine:
    def __init__(self, guest, systemd) -> None:
        self._guest, self._systemd = guest, systemd

    def run(self, script, *, start=False):
        """Run a shell script among the processes of systemd."""
        inside = 'exec nsenter --target $(pgrep -x systemd | head -n 1) --mount --pid sh -c "$0"'
        if start:
            return self._guest.start(["sh", "-c", inside, script])
        return self._guest.run(["sh", "-c", inside, script]).stdout

    def wait_for(self, script, condition):
        """What a script prints, once that fits."""
        until = time.monotonic() + 90
        while True:
            found = self.run(script)
            with contextlib.suppress(ValueError, LookupError):
                if condition(found):
                    return found
            if time.monotonic() > until:
                status = self.run("systemctl status gpumon-agent --no-pager --full")
                raise AssertionError(f"{script}: {found[-1500:]}\n{status}\n{self._systemd.stderr[-1500:]}")
            time.sleep(0.5)

    def ask(self, path, condition):
        """What the agent answers, once *condition* holds for it."""
        asked = f"curl --silent --unix-socket /run/gpumon/agent.sock 'http://agent{path}'"
        return json.loads(self.wait_for(asked, lambda text: condition(json.loads(text))))


def property_of(machine, name):
    return machine.run(f"systemctl show gpumon-agent --property={name} --value").strip()


def test_it_runs_as_its_user_with_no_other_right(machine):
    """Ready was said, the watchdog watches; the five capabilities, no new privileges, system calls filtered."""
    status = machine.run("cat /proc/$(systemctl show gpumon-agent --property=MainPID --value)/status")
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    user = machine.run("id --user gpumon").strip()
    wanted = sum(1 << NUMBERS[name] for name in CAPABILITIES)

    assert told["Uid"].split() == [user] * 4 and user != "0"
    assert {int(told[kind], 16) for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")} == {wanted}
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    assert property_of(machine, "NRestarts") == "0"
    assert property_of(machine, "StatusText").startswith("at /run/gpumon/agent.sock (group gpumon)")


def test_it_reads_the_health_of_a_disk_of_roots(machine):
    """/dev/nvme0 has mode 0600: the capabilities are enough, with the real smartctl under the unit's filters."""
    mode = machine.run("stat --format='%a %U' /dev/nvme0")
    answer = machine.ask("/v1/devices", lambda told: told["smart"][0]["state"])
    drive = answer["smart"][0]

    assert mode == "600 root\n"
    assert (drive["id"], drive["type"], drive["state"]) == ("GPUMON0", "NVMe", "ok")


def test_it_reads_the_kernels_log(machine):
    """Which is restricted, and whose file a unit can lose by a setting too many."""
    answer = machine.ask("/v1/health", lambda told: any(one["name"] == "kernel" for one in told["collectors"]))

    assert {one["name"]: one["up"] for one in answer["collectors"]}["kernel"] is True


def test_it_finds_another_users_job_and_its_disk(machine):
    """By control group, environment and open file of a process of nobody's."""
    job = machine.run(JOB, start=True)
    path = "/v1/readings?collector=holder"
    try:
        answer = machine.ask(path, lambda told: told["readings"])
    finally:
        machine.run("pkill -x sleep")
        job.wait()
    found = [one["attributes"] for one in answer["readings"]]

    assert found == [{"system.device": "nvme0n1", "gpumon.job.id": "7", "gpumon.job.user": "ada"}]


@pytest.fixture
def kept_settings(machine):
    """Of the tests that come after."""
    machine.run("cp --preserve=all /etc/gpumon/agent.conf /etc/gpumon/agent.conf.kept")
    yield
    machine.run("mv /etc/gpumon/agent.conf.kept /etc/gpumon/agent.conf; systemctl stop gpumon-agent")


@pytest.mark.usefixtures("kept_settings")
def test_a_reload_takes_other_settings_and_a_stop_leaves_nothing(machine):
    before = property_of(machine, "MainPID")
    machine.run("echo GPUMON_COLLECTORS=disk,smart >>/etc/gpumon/agent.conf && systemctl reload gpumon-agent")
    machine.ask("/v1/health", lambda told: {one["name"] for one in told["collectors"]} == {"disk", "smart"})
    assert (property_of(machine, "ActiveState"), property_of(machine, "MainPID")) == ("active", before)

    machine.run("systemctl stop gpumon-agent")
    assert (property_of(machine, "ActiveState"), property_of(machine, "Result")) == ("inactive", "success")
    assert machine.run("ls /run/gpumon 2>&1 || true").endswith("No such file or directory\n")
    assert machine.run("ls /var/lib/gpumon") == "smart.json\n"
