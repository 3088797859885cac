"""The script that sudo may run: smartctl's questions pass, whatever else is asked is refused before smartctl starts."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from deploy.deployments import SUDOERS, SYSUSERS, WRAPPER
from gpumon.system import smartctl

QUESTIONS = ["--json=co", "--info", "--health", "--attributes", "--tolerance=verypermissive", "--log=error"]
REFUSED = 64


@pytest.fixture
def run(tmp_path):
    """Runs the script on a machine with the disks nvme0 and sdb; a stand-in for smartctl tells its arguments.

    /dev is one of the test's own: sda a link, sdc a file.
    """
    real = shutil.which("smartctl", path="/usr/sbin:/usr/bin") or pytest.skip("needs apt-get install smartmontools")
    if os.geteuid() != 0:
        pytest.skip("needs root: a mount namespace with another /dev")
    fake = tmp_path / "smartctl"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(0o755)
    machine = f"""set -eu
        mount --make-rprivate /
        mount --bind {fake} {real}
        mount -t tmpfs tmpfs /dev
        mknod -m 666 /dev/null c 1 3
        mknod /dev/nvme0 c 246 0
        mknod /dev/nvme0n1 b 259 0
        mknod /dev/sdb b 8 16
        ln -s sdb /dev/sda
        touch /dev/sdc
        exec {WRAPPER} "$@"
    """

    def call(*arguments):
        command = ["unshare", "--mount", "sh", "-c", machine, "sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    return call


def passed_on(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--scan"],
        ["--json=co", "--scan"],
        ["--scan", "--json=c"],
        [*QUESTIONS, "-d", "nvme", "/dev/nvme0"],
        [*QUESTIONS, "--log=selftest", "--nocheck=standby,3", "-d", "sat", "/dev/sdb"],
        ["-d", "auto", "/dev/nvme0n1", *reversed(QUESTIONS)],
        ["--log=ssd", "-d", "megaraid,12", "/dev/bus/0", "--json=co"],
        *(
            ["--info", "-d", kind, "/dev/sdb"]
            for kind in (
                *("ata", "scsi", "sat,auto", "sat,12", "nvme,0xffffffff", "sntjmicron", "usbjmicron,x", "usbsunplus"),
                *("sat+megaraid,3", "aacraid,0,0,1", "cciss,4", "sntasmedia", "sntrealtek", "usbcypress"),
            )
        ),
    ],
    ids=" ".join,
)
def test_what_gpumon_asks_reaches_smartctl_unchanged(run, arguments):
    assert passed_on(run(*arguments)) == arguments


def test_it_takes_whatever_gpumon_really_asks(run, tmp_path, monkeypatch):
    """The calls of `system.smartctl` itself, seen by a command in smartctl's place."""
    log, recorder = tmp_path / "asked", tmp_path / "recorder"
    answer = {"smartctl": {"version": [7, 3], "exit_status": 0, "output": ["smartctl 7.3"]}}
    recorder.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(log)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"print('smartctl 7.3' if '--version' in sys.argv else json.dumps({answer!r}))\n"
    )
    recorder.chmod(0o755)
    monkeypatch.setenv("GPUMON_SMARTCTL", str(recorder))
    smartctl.version()
    smartctl.scan()
    for target in (
        smartctl.Target("/dev/nvme0", "nvme"),
        smartctl.Target("/dev/sdb"),
        smartctl.Target("/dev/sdb", "sat"),
    ):
        for options in ({}, {"leave_asleep": False}, {"ssd_log": True}):
            smartctl.read(target, **options)
    asked = [json.loads(line) for line in log.read_text().splitlines()]

    assert len(asked) >= 11
    for arguments in asked:
        assert passed_on(run(*arguments)) == arguments


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--json=co"],
        # what changes a disk, or starts something on it
        ["-t", "short", "-d", "sat", "/dev/sdb"],
        ["--test=long", "-d", "sat", "/dev/sdb"],
        ["--info", "-s", "off", "-d", "sat", "/dev/sdb"],
        ["--info", "--smart=off", "-d", "sat", "/dev/sdb"],
        ["--info", "--set=standby,now", "-d", "sat", "/dev/sdb"],
        ["--info", "-X", "-d", "sat", "/dev/sdb"],
        ["--info", "--log=scttempint,10,p", "-d", "sat", "/dev/sdb"],
        ["--info", "--log=gplog,0x30", "-d", "sat", "/dev/sdb"],
        ["--info", "-d", "jmb39x,0", "/dev/sdb"],
        ["--info", "-d", "jmb39x,0,force+sat", "/dev/sdb"],
        ["--info", "-d", "jms56x,0", "/dev/sdb"],
        # what reads or writes other files
        ["--info", "-B", "/etc/shadow", "-d", "sat", "/dev/sdb"],
        ["--info", "--drivedb=/etc/shadow", "-d", "sat", "/dev/sdb"],
        ["--info", "-d", "sat", "/etc/shadow"],
        ["--info", "-d", "sat", "/dev/../etc/shadow"],
        ["--info", "-d", "sat", "/dev/disk/by-id/x"],
        ["--info", "-d", "sat", "/dev/mem"],
        ["--info", "-d", "sat", "/dev/sda1"],
        ["--info", "-d", "sat", "/dev/sd"],
        ["--info", "-d", "sat", "sda"],
        ["--info", "-d", "sat", "/dev/sda"],  # a symbolic link
        ["--info", "-d", "sat", "/dev/sdc"],  # a file
        ["--info", "-d", "sat", "/dev/sdz"],  # nothing
        ["--info", "-d", "sat", "/dev/sdb/../sdc"],
        # one thing too many, or too few
        ["--info", "-d", "sat", "/dev/sdb", "/dev/nvme0"],
        ["--info", "-d", "sat", "/dev/sdb", "extra"],
        ["--info", "-d", "sat", "-d", "nvme", "/dev/sdb"],
        ["--info", "-d", "sat"],
        ["--info", "/dev/sdb", "-d"],
        ["--info", "/dev/sdb"],
        ["-d", "sat", "/dev/sdb"],
        ["--scan", "/dev/sdb"],
        ["--scan", "--info"],
        ["--info", "--scan"],
        ["--version", "--scan"],
        ["--scan-open"],
        ["--scan", "-d", "sat"],
        # what a shell or a careless comparison takes for something else
        ["--info", "-d", "sat;id", "/dev/sdb"],
        ["--info", "-d", "sat\nnvme", "/dev/sdb"],
        ["--info", "-d", "nvme\n", "/dev/nvme0"],
        ["--info", "-d", "sat", "/dev/sdb\n"],
        ["--info", "-d", "sat", "/dev/sdb\n/etc/shadow"],
        ["--info", "-d", "$(id)", "/dev/sdb"],
        ["--info", "-d", "sat", "/dev/sd?"],
        ["--info", "-d", "", "/dev/sdb"],
        ["", "--info", "-d", "sat", "/dev/sdb"],
        ["--info ", "-d", "sat", "/dev/sdb"],
        ["--info", "--", "-d", "sat", "/dev/sdb"],
        ["-a", "-d", "sat", "/dev/sdb"],
        ["--all", "-d", "sat", "/dev/sdb"],
        ["--info", "--quietmode=silent", "-d", "sat", "/dev/sdb"],
        ["--info", "-dsat", "/dev/sdb"],
        ["--info", "--json=v", "-d", "sat", "/dev/sdb"],
        ["--info", "-d", "sät", "/dev/sdb"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_everything_else_is_refused(run, arguments):
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert done.stderr.startswith("gpumon-smartctl: refused: ")


def test_the_environment_leads_to_no_other_smartctl(tmp_path):
    """A smartctl on the caller's PATH, a variable that a shell reads: none of that is used."""
    fake = tmp_path / "smartctl"
    fake.write_text("#!/bin/sh\necho fooled\n")
    fake.chmod(0o755)
    (tmp_path / "env.sh").write_text("echo fooled; exit 0\n")
    environment = {"PATH": str(tmp_path), "ENV": str(tmp_path / "env.sh"), "BASH_ENV": str(tmp_path / "env.sh")}
    done = subprocess.run(
        ["/bin/sh", WRAPPER, "--version"], capture_output=True, text=True, env=environment, timeout=30
    )

    assert "fooled" not in done.stdout
    if shutil.which("smartctl", path="/usr/sbin:/usr/bin"):
        assert done.stdout.startswith("smartctl ")


def test_it_needs_no_more_than_a_plain_shell():
    """Debian's dash, and bash where /bin/sh is that."""
    for shell in filter(None, map(shutil.which, ("dash", "bash"))):
        assert subprocess.run([shell, "-n", WRAPPER], capture_output=True).returncode == 0
        done = subprocess.run([shell, WRAPPER, "-t", "short"], capture_output=True, text=True)
        assert done.returncode == REFUSED


def visudo():
    return shutil.which("visudo", path=f"{os.environ['PATH']}:/usr/sbin") or pytest.skip("needs apt-get install sudo")


def test_visudo_takes_the_file():
    done = subprocess.run([visudo(), "--check", "--strict", "--file", SUDOERS], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "parsed OK" in done.stdout


def test_sudo_runs_this_script_and_nothing_else():
    """The real sudo with this file and user, in a mount namespace of its own: /etc is a copy."""
    visudo()
    if os.geteuid() != 0:
        pytest.skip("needs root: a mount namespace with another /etc")
    script = f"""set -eu
        mount --make-rprivate /
        mkdir -p /run && mount -t tmpfs tmpfs /run
        cp -a /etc /run/etc && mount --bind /run/etc /etc
        systemd-sysusers {SYSUSERS}
        rm -f /etc/sudoers.d/*
        printf 'root ALL=(ALL) ALL\\n@includedir /etc/sudoers.d\\n' >/etc/sudoers
        install -o root -g root -m 0440 {SUDOERS} /etc/sudoers.d/gpumon
        mkdir -p /run/sbin && mount --bind /run/sbin /usr/local/sbin
        install -o root -g root -m 0755 {WRAPPER} /usr/local/sbin/gpumon-smartctl
        as() {{ setpriv --reuid gpumon --regid gpumon --init-groups "$@" </dev/null; }}
        try() {{ if as sudo -n "$@" >/run/out 2>&1; then echo "yes: $*"; else echo "no: $*"; fi; }}
        try /usr/local/sbin/gpumon-smartctl --version
        try /usr/local/sbin/gpumon-smartctl -t short /dev/sda
        grep -h refused /run/out
        try /usr/sbin/smartctl --version
        try /bin/sh -c id
        try -u nobody /usr/local/sbin/gpumon-smartctl --version
        try PATH=/tmp /usr/local/sbin/gpumon-smartctl --version
        try -E /usr/local/sbin/gpumon-smartctl --version
        try /usr/local/sbin/../sbin/gpumon-smartctl-x --version
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, cwd="/"
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "yes: /usr/local/sbin/gpumon-smartctl --version",
        "no: /usr/local/sbin/gpumon-smartctl -t short /dev/sda",
        "gpumon-smartctl: refused: -t",
        "no: /usr/sbin/smartctl --version",
        "no: /bin/sh -c id",
        "no: -u nobody /usr/local/sbin/gpumon-smartctl --version",
        "no: PATH=/tmp /usr/local/sbin/gpumon-smartctl --version",
        "no: -E /usr/local/sbin/gpumon-smartctl --version",
        "no: /usr/local/sbin/../sbin/gpumon-smartctl-x --version",
    ]
