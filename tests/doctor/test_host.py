"""CPUs against workers, shared memory, open files: what a training runs into in its first minute."""

import contextlib
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from doctor.examined import examine
from recorded import Training, record, write_run


def quota(somewhere, text="200000 100000\n"):
    """A cgroup of version 2 with this cpu.max."""
    somewhere.machine.mount("/sys/fs/cgroup", "0:28", "cgroup2", "cgroup2")
    somewhere.write("proc/self/cgroup", "0::/job\n")
    somewhere.write("sys/fs/cgroup/job/cpu.max", text)


# -- workers and CPUs ----------------------------------------------------------------------------------------


def test_more_workers_than_cpus(somewhere, tmp_path):
    """The newest recorded run had 16 workers; the quota is two CPUs."""
    quota(somewhere, "100000 100000\n")
    run = record(tmp_path / "run", Training(workers=16), seconds=3)

    examined = examine(somewhere.place(run=run), "loader")

    cause = "num_workers=16 but 1 CPU usable (quota in /sys/fs/cgroup/job/cpu.max)"
    examined.names("warning", cause, "num_workers=1, or raise the limit")


def test_the_workers_of_a_run_elsewhere(somewhere, tmp_path):
    """A run that was archived is named by its URL."""
    import fsspec

    quota(somewhere, "100000 100000\n")
    run = record(tmp_path / "run", Training(workers=16), seconds=3)
    fsspec.filesystem("memory").put(str(run), "/archive/run", recursive=True)

    assert "num_workers=16" in examine(somewhere.place(run="memory://archive/run"), "loader").text


def test_workers_that_fit(somewhere, tmp_path):
    """One worker on one CPU."""
    quota(somewhere, "100000 100000\n")
    run = record(tmp_path / "run", Training(workers=1), seconds=3)

    examined = examine(somewhere.place(run=run), "loader")

    examined.is_fine()
    assert "num_workers=1" in examined.text


def test_the_newest_run_is_looked_at(somewhere, tmp_path, monkeypatch):
    """Under gpumon-runs/, where `gpumon run` puts them."""
    monkeypatch.chdir(tmp_path)
    quota(somewhere, "100000 100000\n")
    for name, started, workers in (("a", "2026-11-24T10:00:00Z", 1), ("b", "2026-11-24T09:00:00Z", 16)):
        run = record(tmp_path / "gpumon-runs" / name, Training(workers=workers), seconds=2)
        write_run(run, started=started)

    examine(somewhere.place(), "loader").is_fine()
    write_run(tmp_path / "gpumon-runs" / "b", started="2026-11-24T11:00:00Z")
    examined = examine(somewhere.place(), "loader")

    assert "num_workers=16 but 1 CPU usable" in examined.text


def test_without_a_run_there_is_nothing_to_compare(somewhere, tmp_path, monkeypatch):
    """The CPUs alone; a run that was named and is not there is a failure."""
    monkeypatch.chdir(tmp_path)

    examine(somewhere.place(), "loader").is_fine()
    examined = examine(somewhere.place(run=tmp_path / "nowhere"), "loader")

    assert examined.only("loader")["summary"].startswith(f"no run at '{tmp_path}/nowhere'")
    assert examined.code == 1


def test_torn_last_line_of_a_live_run(somewhere, tmp_path):
    """The line before it is read."""
    quota(somewhere, "100000 100000\n")
    run = record(tmp_path / "run", Training(workers=16), seconds=2)
    (file,) = run.glob("metrics.*.jsonl")
    with open(file, "a") as opened:
        opened.write('{"resourceMetrics": [{"gpumon.loader.workers')

    assert "num_workers=16" in examine(somewhere.place(run=run), "loader").text


# -- shared memory -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shm_of(somewhere, size):
    folder = somewhere.root / "dev/shm"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.disk
@pytest.mark.parametrize(
    ("container", "size", "status", "command", "where"),
    [
        ("docker", "64m", "failed", "docker run --shm-size=8g …", "host"),
        ("podman", "64m", "failed", "podman run --shm-size=8g …", "host"),
        ("", "64m", "failed", "sudo mount -o remount,size=8G /dev/shm", "here"),
        ("docker", "512m", "warning", "docker run --shm-size=8g …", "host"),
    ],
)
def test_small_shared_memory(somewhere, container, size, status, command, where):
    """Docker's 64 MiB: workers die of a bus error."""
    if container:
        somewhere.write({"docker": ".dockerenv", "podman": "run/.containerenv"}[container], "")
    with shm_of(somewhere, size):
        examined = examine(somewhere.place(), "shm")

    examined.names(status, f"/dev/shm has {size[:-1]} MiB", command, where)


@pytest.mark.disk
def test_small_shared_memory_in_a_pod(somewhere):
    """A volume in memory is mounted there; the patch is valid JSON."""
    with shm_of(somewhere, "64m"):
        examined = examine(somewhere.place(KUBERNETES_SERVICE_HOST="10.0.0.1"), "shm")

    words = shlex.split(examined.only("shm")["repair"]["command"])
    assert words[:4] == ["kubectl", "patch", "deployment", "NAME"]
    pod = json.loads(words[5])["spec"]["template"]["spec"]
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory"}
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/dev/shm"


@pytest.mark.disk
def test_shared_memory_full_of_leftovers(somewhere):
    """What killed workers left behind."""
    with shm_of(somewhere, "1100m") as folder:
        with open(folder / "torch_4711_x", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1090 << 20)
        examined = examine(somewhere.place(), "shm")

    examined.names("warning", "what workers that were killed left behind fills it", "rm /dev/shm/torch_*")


def test_no_shared_memory(somewhere):
    """A chroot without /dev/shm."""
    examined = examine(somewhere.place(uid=0), "shm")

    command = "mkdir -p /dev/shm && mount -t tmpfs -o mode=1777,size=8G shm /dev/shm"
    examined.names("failed", "/dev/shm: no such file or directory", command)


# -- open files ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_files(soft):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_few_open_files(somewhere, tmp_path, monkeypatch):
    """`ulimit -n` of 256: torch's workers pass a descriptor per tensor."""
    monkeypatch.chdir(tmp_path)
    with open_files(256) as hard:
        examined = examine(somewhere.place(), "files")

    command = f"ulimit -n {65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)}"
    examined.names("failed", "ulimit -n is 256: too few", command)


def test_open_files_grow_with_the_workers(somewhere, tmp_path):
    """1024 are enough for 16 workers, and not for 64."""
    with open_files(1024):
        run = record(tmp_path / "some", Training(workers=16), seconds=2)
        examine(somewhere.place(run=run), "files").is_fine()
        run = record(tmp_path / "many", Training(workers=64), seconds=2)
        examined = examine(somewhere.place(run=run), "files")

    (entry,) = examined.of("files")
    assert (entry["status"], entry["summary"].partition(",")[0]) == (
        "warning",
        "ulimit -n is 1024: too few for 64 workers",
    )
    assert entry["repair"]["command"].startswith("ulimit -n ")


def test_hard_limit_of_a_container():
    """Where the hard limit is low too, only who starts the container can raise it."""
    code = (
        f"import resource, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from pathlib import Path; import tempfile\n"
        "from doctor.examined import Somewhere, examine\n"
        "here = Somewhere(Path(tempfile.mkdtemp())); here.docker()\n"
        "examine(here.place(), 'files').names('failed', 'ulimit -n is 256', "
        "'docker run --ulimit nofile=65536:65536 …', 'host')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
