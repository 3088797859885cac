"""A client's paths: on which device they are, as the client sees them, and nothing else of the machine."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from agent.namespaces import contained, python
from agent.serving import serving
from agent_process import agent_process, short_folder
from faketree import Machine
from gpumon.agent.paths import ClientPaths
from gpumon.system.agent_socket import ask
from otlp_receiver import eventually

ASK = """
import json, sys
from gpumon.system.agent_socket import ask
from pathlib import Path
pairs = [("path", path) for path in sys.argv[2:]]
print(json.dumps(ask("/v1/devices", Path(sys.argv[1]), parameters=pairs, timeout_s=10)["paths"]))
"""


@pytest.fixture
def machine(tmp_path):
    """sda1 is the root, sdb a data disk, dm-0 a volume on it; process 77 sees other mounts."""
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0", {"sda1": "8:1"})
    machine.disk("sdb", "8:16")
    machine.disk("dm-0", "253:0", below=["sdb"])
    machine.mount("/", "8:1", "ext4", "/dev/sda1")
    return machine


def other_process(machine, *lines):
    machine.write("proc/77/mountinfo", "".join(f"{line}\n" for line in lines))


def device(machine, path, pid=77):
    return ClientPaths(str(machine.root)).device_of(path, pid)


def test_the_clients_mounts_count_not_ours(machine):
    """The same path is on another device there; a bind mount's own root does not matter."""
    other_process(
        machine,
        "500 400 8:1 / / rw - ext4 /dev/sda1 rw",
        "501 500 253:0 /sets/imagenet /data rw - xfs /dev/mapper/vg-data rw",
    )

    assert device(machine, "/data/train/1.jpg") == {
        "path": "/data/train/1.jpg",
        "kind": "block",
        "device": "dm-0",
        "layers": ["dm-0", "sdb"],
        "disks": ["sdb"],
        "mount_point": "/data",
        "file_system": "xfs",
    }
    assert device(machine, "/database")["device"] == "sda"
    assert device(machine, "/data/../etc")["device"] == "sda"
    assert device(machine, "//data//./train/")["device"] == "dm-0"


def test_a_containers_layers_lie_on_the_machines_disks(machine, tmp_path):
    """An overlay's folders are the machine's, although the container sees none of them."""
    (tmp_path / "var/lib/docker/l1").mkdir(parents=True)
    (tmp_path / "var/lib/docker/up").mkdir()
    machine.mount("/var/lib/docker", "8:16", "ext4", "/dev/sdb")
    layers = "lowerdir=/var/lib/docker/l1,upperdir=/var/lib/docker/up,workdir=/var/lib/docker/w"
    other_process(
        machine, f"600 400 0:55 / / rw - overlay overlay rw,{layers}", "601 600 0:56 / /tmp rw - tmpfs tmpfs rw"
    )

    assert device(machine, "/root/data")["device"] == "sdb"
    assert device(machine, "/root/data")["mount_point"] == "/"
    assert device(machine, "/tmp/x")["kind"] == "memory"


def test_a_root_that_is_no_mount_point(machine):
    """After a plain chroot only the mounts below it are known, the last of two at one point."""
    other_process(
        machine,
        "501 30 8:1 /jail/data /data rw - ext4 /dev/sda1 rw",
        "502 501 253:0 / /data rw - xfs /dev/mapper/x rw",
        "503 502 0:50 / /data/tmp rw - tmpfs tmpfs rw",
    )

    assert device(machine, "/data/x")["device"] == "dm-0"
    assert device(machine, "/data/tmp/x")["kind"] == "memory"
    assert device(machine, "/home")["kind"] == "unknown"


def test_what_cannot_be_found_out_has_a_reason(machine):
    """Layers that are not here, a file system without a device, a process that is gone or not to be seen."""
    other_process(
        machine,
        "600 400 0:55 / / rw - overlay overlay rw,lowerdir=/elsewhere/a:/elsewhere/b",
        "601 600 0:56 / /odd rw - oddfs odd rw",
        "602 600 0:57 / /share rw - nfs4 server:/x rw",
    )

    assert device(machine, "/x")["kind"] == "container" and "does not see" in device(machine, "/x")["reason"]
    assert device(machine, "/odd")["kind"] == "unknown" and "no block device" in device(machine, "/odd")["reason"]
    assert device(machine, "/share/x")["kind"] == "network" and "reason" not in device(machine, "/share/x")
    assert "No such file" in device(machine, "/x", pid=78)["reason"]
    assert "pid namespace" in device(machine, "/x", pid=0)["reason"]


def test_links_of_a_client_lead_nowhere(machine, tmp_path):
    """Only mount tables are read: a link that the client made tells nothing of the files behind it."""
    other_process(machine, "500 400 253:0 / / rw - xfs /dev/mapper/x rw")
    (tmp_path / "trap").symlink_to("/etc/shadow")

    assert device(machine, "/trap")["device"] == "dm-0"
    assert set(device(machine, "/trap")) == {"path", "kind", "device", "layers", "disks", "mount_point", "file_system"}


def test_zfs_pools_are_known_beforehand(machine, tmp_path, monkeypatch):
    """No request runs a command: the pools' devices are looked up by the agent, in its own time."""
    calls = tmp_path / "calls"
    command = tmp_path / "bin/zpool"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho $* >>{calls}\nprintf 'tank\\t1\\n/dev/sdb\\t1\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    machine.mount("/tank", "0:60", "zfs", "tank/sets")
    other_process(machine, "500 400 0:60 / /data rw - zfs tank/sets rw")
    paths = ClientPaths(str(machine.root))
    assert "device" not in paths.device_of("/data", 77) and not calls.exists()
    paths.refresh()

    assert paths.device_of("/data", 77)["device"] == "sdb"
    assert calls.read_text().count("tank") == 1


def test_the_kernel_says_who_asks():
    """The process that connected, whatever the request says."""
    with short_folder() as folder, serving(folder / "agent.sock", {}):
        answer = ask("/v1/devices", folder / "agent.sock", parameters=[("path", "/"), ("path", "/proc")])
        found = subprocess.run(
            python(ASK, folder / "agent.sock", "/"), capture_output=True, text=True, check=True, timeout=30
        )

    assert [each["path"] for each in answer["paths"]] == ["/", "/proc"]
    assert json.loads(found.stdout)[0]["mount_point"] == "/"


# -- real namespaces ------------------------------------------------------------------------------------


def asked(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.disk
def test_a_bind_mount_of_a_loop_device_in_a_namespace_of_its_own(quick_disk):
    """What is mounted only there, over a folder that is here on another disk."""
    (quick_disk.path / "sets").mkdir()
    with short_folder() as folder, agent_process(folder, GPUMON_COLLECTORS="host") as agent:
        (folder / "data").mkdir()
        client = contained(
            python(ASK, agent.socket, folder / "data/train", folder),
            mounts=[f"mount --bind {quick_disk.path}/sets {folder}/data"],
            is_root=True,
        )
        inside = asked(client)
        outside = agent.ask("/v1/devices", path=[f"{folder}/data/train"])["paths"]

    assert inside[0]["device"] == quick_disk.device and inside[0]["mount_point"] == f"{folder}/data"
    assert quick_disk.device in inside[0]["layers"] and inside[0]["layers"][-1] in inside[0]["disks"]
    assert inside[1]["device"] != quick_disk.device
    assert outside[0]["device"] == inside[1]["device"]


HARDENED = 'mount -t tmpfs none /var/tmp && mkdir -p "$0"/up "$0"/work && exec "$@"'


@pytest.mark.disk
@pytest.mark.parametrize("within", [[], ["unshare", "--mount", "sh", "-c", HARDENED]], ids=["plain", "hardened"])
def test_a_root_of_layers_as_a_containers(within):
    """The process' root is an overlay of the machine's folders, which it does not see itself: the agent does.

    So does an agent with mounts of its own, as a hardened service or in a container: it looks at the machine's.
    """
    with (
        short_folder() as folder,
        tempfile.TemporaryDirectory(dir="/var/tmp") as layers,
        agent_process(folder, within=within and [*within, layers], GPUMON_COLLECTORS="host") as agent,
    ):
        for place in (folder / "root", Path(layers, "up"), Path(layers, "work")):
            place.mkdir()
        client = contained(
            python(ASK, agent.socket, "/root/data", "/run/x", "/proc"),
            mounts=[
                f"mount -t overlay overlay -o lowerdir=/,upperdir={layers}/up,workdir={layers}/work {folder}/root",
                f"mkdir -p {folder}/root{folder}",
                f"mount --bind {folder} {folder}/root{folder}",
                f"mount -t tmpfs none {folder}/root/run",
                f"mount -t proc none {folder}/root/proc",
            ],
            root=folder / "root",
            is_root=True,
        )
        root, run, _proc = asked(client)
        here = agent.ask("/v1/devices", path="/")["paths"][0]

    assert (root["mount_point"], root["file_system"]) == ("/", "overlay")
    assert here["kind"] == root["kind"] == "block"
    assert root["device"] == here["device"]
    assert run["kind"] == "memory"


@pytest.mark.disk
def test_a_file_system_that_hangs_hangs_nobody(slow_mount):
    """A client's path on a file system of its own that takes 30 s for every answer: it is not asked."""
    slow_mount.set_delay(30.0)
    with short_folder() as folder, agent_process(folder, GPUMON_COLLECTORS="host") as agent:
        began = time.monotonic()
        (found,) = agent.ask("/v1/devices", path=f"{slow_mount.path}/a/b/c")["paths"]

        assert found["kind"] == "network"
        assert time.monotonic() - began < 2
    slow_mount.set_delay(0.0)


@pytest.mark.disk
def test_a_process_that_is_gone_by_then():
    """It asks and ends at once: no answer, and no harm."""
    code = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b"GET /v1/devices?path=/ HTTP/1.1\\r\\n\\r\\n")
"""
    with short_folder() as folder, agent_process(folder, GPUMON_COLLECTORS="host") as agent:
        for _ in range(20):
            subprocess.run([sys.executable, "-c", code, str(agent.socket)], check=True, timeout=30)

        assert eventually(agent.is_ready)
        assert "Traceback" not in agent.log


def test_one_that_does_not_say_who_it_is():
    """Over TCP nobody is known."""
    from agent.serving import Api, Node, Server
    from gpumon.agent.collect import Demand
    from gpumon.agent.socket import listen
    from gpumon.sampler import Sampler

    with short_folder() as folder:
        api = Api(Node(Sampler({}), ClientPaths(), Demand(), lambda: False))
        listener = listen(folder / "agent.sock", None, {})
        server = Server(listener, api)
        port = server.add_tcp("127.0.0.1", 0, api)
        server.start()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(b"GET /v1/devices?path=/ HTTP/1.1\r\n\r\n")
                received = b"".join(iter(lambda: client.recv(65536), b""))
        finally:
            server.stop()
            listener.close()

    assert b"pid namespace" in received
