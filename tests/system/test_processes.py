"""The process tree and what /proc says of its members, on real processes."""

import os
import subprocess
import sys

from gpumon.system import processes


def test_the_tree_has_children_and_grandchildren_parents_first():
    """A shell that waits for a sleeping child."""
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    try:
        grandchild = int(shell.stdout.readline())

        pids = processes.tree(os.getpid())

        assert pids[0] == os.getpid()
        assert pids.index(shell.pid) < pids.index(grandchild)
        assert processes.read_stat(grandchild).parent == shell.pid
        assert processes._tree_by_parents(shell.pid, "/proc") == [shell.pid, grandchild]
    finally:
        os.kill(grandchild, 9)
        shell.wait()
        shell.stdout.close()

    assert shell.pid not in processes.tree(os.getpid())


def test_a_processes_name_may_hold_anything(tmp_path):
    """Brackets and blanks in the command's name do not shift the fields."""
    fields = [
        "S",
        "7",
        *["0"] * 5,
        "11",
        "12",
        "13",
        "14",
        "200",
        "100",
        "50",
        "25",
        "20",
        "0",
        "3",
        "0",
        "99",
        "0",
        "5",
    ]
    (tmp_path / "42").mkdir()
    (tmp_path / "42/stat").write_text(f"42 (a) b (c) {' '.join(fields)}\n")

    stat = processes.read_stat(42, str(tmp_path))

    assert (stat.parent, stat.threads, stat.started) == (7, 3, 99)
    assert stat.user_s == 200 / processes.CLOCK_TICKS
    assert (stat.minor_faults, stat.major_faults, stat.children_major_faults) == (11, 13, 14)
    assert stat.resident_bytes == 5 * processes.PAGE_SIZE


def test_accounts_agree_with_what_a_process_did():
    """CPU by the process's own clock, bytes read by what it read."""
    code = (
        "import time, sys\n"
        "while time.process_time() < 0.3: pass\n"
        "open('/dev/zero', 'rb', 0).read(1 << 20)\n"
        "print(time.process_time(), flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        used = float(child.stdout.readline())
        stat, io = processes.read_stat(child.pid), processes.read_io(child.pid)
        waited = sum(processes.read_runqueue_s(child.pid, thread) for thread in processes.threads(child.pid))
    finally:
        child.kill()
        child.communicate()

    assert abs(stat.user_s + stat.system_s - used) < 0.05
    assert io["rchar"] >= 1 << 20
    assert waited >= 0
