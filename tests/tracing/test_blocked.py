"""What blocked threads wait on, asked of real processes that are blocked in every way."""

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from gpumon.system.datasets import Datasets
from gpumon.system.storage import StorageMap
from gpumon.tracing import syscalls
from gpumon.tracing.blocked import WaitPoint, WaitPoints

LOOKS = 12


@pytest.fixture
def points():
    looked = WaitPoints(StorageMap(), Datasets())
    yield looked
    looked.close()


@contextlib.contextmanager
def blocked_in(code, *arguments):
    """A Python process that runs *code*; yields its pid once it has printed a line."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    try:
        assert child.stdout.readline() == b"ready\n"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stdin.close()


def looks(points, pid, thread=None, seconds=15.0):
    """What a number of telling looks at a thread said, by weight."""
    said = Counter()
    end = time.monotonic() + seconds
    telling = 0
    while telling < LOOKS:
        assert time.monotonic() < end, f"only {telling} telling looks: {said}"
        shares = points.look(pid, thread or pid)
        telling += bool(shares)
        for point, share in shares:
            said[point] += share / LOOKS
        time.sleep(0.01)
    return said


def mostly(said):
    point, share = said.most_common(1)[0]
    assert share >= 0.6, said  # a busy machine lets a thread wait for a CPU now and then
    return point


READY = "print('ready', flush=True)\n"


def test_sleep(points):
    """A thread in time.sleep sleeps."""
    with blocked_in(f"import time\n{READY}while True: time.sleep(1)") as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.sleep")


def test_lock(points):
    """A thread that waits for a lock nobody works under is blocked in a futex."""
    code = f"import threading\nlock = threading.Lock()\nlock.acquire()\n{READY}lock.acquire()"
    with blocked_in(code) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.other", call="futex")


@pytest.mark.parametrize("timeout", [None, 60], ids=["recv", "poll"])
def test_socket(points, timeout):
    """A thread that waits for data from a TCP socket, with or without a timeout, waits for the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""
            import socket, sys
            connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
            connection.settimeout({timeout})
            print("ready", flush=True)
            connection.recv(1)
        """
        with blocked_in(code, server.getsockname()[1]) as pid:
            assert mostly(looks(points, pid)) == WaitPoint("blocked.socket")


def test_select_on_socket(points):
    """A thread in select on a TCP socket waits for the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = """
            import select, socket, sys
            connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
            print("ready", flush=True)
            select.select([connection], [], [])
        """
        with blocked_in(code, server.getsockname()[1]) as pid:
            assert mostly(looks(points, pid)) == WaitPoint("blocked.socket")


def test_event_loop_with_connection(points):
    """asyncio that waits for a TCP connection waits for the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = """
            import asyncio, sys
            async def main():
                reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
                print("ready", flush=True)
                await reader.read(1)
            asyncio.run(main())
        """
        with blocked_in(code, server.getsockname()[1]) as pid:
            assert mostly(looks(points, pid)) == WaitPoint("blocked.socket")


def test_event_loop_without_connection(points):
    """asyncio without a connection is not mistaken for the network: its own wake-up socket says nothing."""
    code = f"import asyncio\n{READY}asyncio.run(asyncio.sleep(60))"
    with blocked_in(code) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.other", call="epoll")


def test_pipe(points):
    """A thread that reads an empty pipe is blocked on a pipe."""
    with blocked_in(f"import sys\n{READY}sys.stdin.buffer.raw.read(1)") as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.other", call="pipe")


def test_unix_socket(points):
    """A local socket is not the network."""
    code = f"import socket\na, b = socket.socketpair()\n{READY}a.recv(1)"
    with blocked_in(code) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.other", call="unix_socket")


def test_file_lock(points, tmp_path):
    """A thread that waits for a file lock is blocked in one, and not on the disk."""
    import fcntl

    with open(tmp_path / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code = """
            import fcntl, sys
            file = open(sys.argv[1])
            print("ready", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        """
        with blocked_in(code, tmp_path / "lock") as pid:
            assert mostly(looks(points, pid)) == WaitPoint("blocked.other", call="file_lock")


def test_child(points):
    """A thread that waits for a process that does nothing telling waits for a child."""
    code = f"import subprocess\n{READY}subprocess.run(['sleep', '60'])"
    with blocked_in(code) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.other", call="child")


def test_child_that_computes(points):
    """A decoder in a process of its own, its output read through a pipe, is CPU time."""
    code = """
        import subprocess, sys
        child = subprocess.Popen(["sh", "-c", "while :; do :; done"], stdout=subprocess.PIPE)
        print("ready", flush=True)
        try:
            child.stdout.read(1)
        finally:
            child.kill()
    """
    with blocked_in(code) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("cpu")
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            os.kill(child, 9)


def test_helper_thread_that_computes(points):
    """A thread that waits for a helper thread which computes without the GIL is CPU time."""
    code = """
        import hashlib, threading
        def compute():
            while True:
                hashlib.sha256(bytes(50_000_000))
        helper = threading.Thread(target=compute, daemon=True)
        helper.start()
        print("ready", flush=True)
        helper.join()
    """
    with blocked_in(code) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("cpu")


def test_running_thread_says_nothing(points):
    """What a running thread does is in the exact accounts; a look adds nothing."""
    with blocked_in(f"{READY}while True: pass") as pid:
        assert [points.look(pid, pid) for _look in range(20)].count([]) >= 19


def test_process_that_ended(points):
    """A look at a process that is gone says nothing and keeps no file open."""
    with blocked_in(f"import time\n{READY}time.sleep(60)") as pid:
        looks(points, pid)
    before = len(os.listdir("/proc/self/fd"))
    assert points.look(pid, pid) == []
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_own_thread_in_a_futex_says_nothing(points):
    """A thread of our own that seems to wait for a lock may only wait for the GIL that we hold."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert all(points.look(os.getpid(), thread.native_id) == [] for _look in range(20))
    finally:
        release.set()
        thread.join()


def test_own_thread_that_sleeps(points):
    """Other waits of our own threads are seen."""
    release = threading.Event()

    def sleep():
        while not release.is_set():
            time.sleep(0.2)

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        assert mostly(looks(points, os.getpid(), thread.native_id)) == WaitPoint("blocked.sleep")
    finally:
        release.set()
        thread.join()


READ_COLD = """
    import os, random, sys
    file = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(file).st_size
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    print("ready", flush=True)
    while True:
        os.pread(file, 4096, random.randrange(size // 4096) * 4096)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
"""
READ_MAPPED = """
    import mmap, os, random, sys
    file = open(sys.argv[1], "rb")
    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    data.madvise(mmap.MADV_RANDOM)
    print("ready", flush=True)
    while True:
        data[random.randrange(len(data))]
        data.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
"""
READ_IN_A_POOL = """
    import concurrent.futures, os, random, sys
    file = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(file).st_size
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    def read(_):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file, 4096, random.randrange(size // 4096) * 4096)
    print("ready", flush=True)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        while True:
            list(pool.map(read, range(3)))
"""
STAT_COLD = """
    import os, sys
    print("ready", flush=True)
    for number in range(1000):
        os.stat(f"{sys.argv[1]}/{number:04}/file")
"""


@pytest.mark.disk
def test_disk(points, slow_disk):
    """Reads, page faults and helper threads' reads of a slow disk's file are on that disk, by its name."""
    (slow_disk.path / "data").write_bytes(os.urandom(8 << 20))
    slow_disk.drop_caches()
    slow_disk.set_delay(0.03)
    for code in (READ_COLD, READ_MAPPED, READ_IN_A_POOL):
        with blocked_in(code, slow_disk.path / "data") as pid:
            assert mostly(looks(points, pid)) == WaitPoint("blocked.disk", device=slow_disk.device), code
    assert slow_disk.device in {storage.device for storage in points.seen}


@pytest.mark.disk
def test_cold_directories(points, slow_disk):
    """A path that is looked up on a slow disk is on that disk, though no file is open yet."""
    for number in range(1000):
        folder = slow_disk.path / f"{number:04}"
        folder.mkdir()
        (folder / "file").touch()
    for command in (["umount", slow_disk.path], ["mount", f"/dev/{slow_disk.device}", slow_disk.path]):
        subprocess.run(command, check=True)
    slow_disk.set_delay(0.03)
    with blocked_in(STAT_COLD, slow_disk.path) as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.disk", device=slow_disk.device)
    slow_disk.set_delay(0.0)


@pytest.mark.disk
def test_page_faults_elsewhere_than_the_data_set(slow_disk, quick_disk):
    """A page fault is put on the device of the mapped file, whatever data sets are known."""
    datasets = Datasets()
    datasets.add_storage(StorageMap().of_path(quick_disk.path))
    points = WaitPoints(StorageMap(), datasets)
    (slow_disk.path / "data").write_bytes(os.urandom(8 << 20))
    slow_disk.drop_caches()
    slow_disk.set_delay(0.03)
    with blocked_in(READ_MAPPED, slow_disk.path / "data") as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.disk", device=slow_disk.device)
    points.close()


@pytest.mark.disk
def test_network_file_system(points, slow_mount):
    """Reads of a file system without a block device are on it, by its type; also of our own threads."""
    (slow_mount.path / "data").write_bytes(os.urandom(1 << 20))
    slow_mount.set_delay(0.03)
    with blocked_in(READ_COLD, slow_mount.path / "data") as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.network_fs", file_system="fuse.gpumon")
    slow_mount.set_delay(0.0)


def test_kernel_functions_where_calls_are_refused():
    """On a machine whose system calls we do not know, the kernel function tells the kind of wait."""
    points = WaitPoints(StorageMap(), Datasets(), machine="s390x")
    with blocked_in(f"import time\n{READY}time.sleep(60)") as pid:
        assert mostly(looks(points, pid)) == WaitPoint("blocked.sleep")
    points.close()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_are_unique(machine):
    """No two calls of an architecture share a number."""
    names = [name for name, _waits in syscalls.table(machine).values()]
    assert len(names) == len(set(names)) > 60


def test_numbers_of_this_machine():
    """The numbers are the kernel's own, as far as its headers are installed."""
    headers = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    if not os.path.exists(headers):
        pytest.skip("no kernel headers")
    defined = {}
    for line in Path(headers).read_text().splitlines():
        if line.startswith("#define __NR_"):
            _define, name, number = line.split()
            defined[int(number)] = name.removeprefix("__NR_")
    ours = {number: name for number, (name, _waits) in syscalls.table("x86_64").items() if number in defined}
    assert ours == {number: defined[number] for number in ours}
    assert len(ours) > 60
