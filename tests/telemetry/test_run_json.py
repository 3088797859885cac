"""run.json and the directory that it describes, shared by processes that know nothing of each other."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpumon.telemetry.run_json import (
    describe_run,
    edit_run,
    join_run,
    leave_run,
    new_run_directory,
    read_run,
    shared_run_name,
)


def in_processes(count, target, *arguments):
    """Run *target* in *count* forks at once; returns what they put into the queue."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=target, args=(queue, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return answers


def make_directories(queue, root):
    queue.put([str(new_run_directory(root, "demo")[0]) for _ in range(50)])


def test_runs_that_begin_in_the_same_second_get_directories_of_their_own(tmp_path):
    """Many runs at once never share a directory."""
    made = [path for paths in in_processes(3, make_directories, tmp_path) for path in paths]

    assert len(set(made)) == len(made) == 150
    assert all(Path(path).is_dir() for path in made)


def test_names_say_when_and_what(tmp_path):
    """`<start>-<service>-<short id>`, whatever characters the service has."""
    path, run_id = new_run_directory(tmp_path / "deep" / "root", "my/räre service!")
    start, service, short = path.name.split("-")

    assert time.strptime(start, "%Y%m%dT%H%M%S")
    assert service == "my_r_re_service"
    assert run_id.startswith(short)


def count_up(queue, directory):
    for _ in range(30):
        with edit_run(directory) as run:
            run["counter"] = run.get("counter", 0) + 1
    queue.put(True)


def test_edits_by_several_processes_are_all_kept(tmp_path):
    """Every edit sees the one before it, and a reader never sees half a file."""
    in_processes(4, count_up, tmp_path)

    assert read_run(tmp_path) == {"counter": 120}


def test_readers_never_see_half_a_file(tmp_path):
    """While one process edits, every read of another is a whole document."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with edit_run(tmp_path) as run:
        run["text"] = "x" * 100_000
    writer = context.Process(target=count_up, args=(queue, tmp_path))
    writer.start()
    reads = 0
    while writer.is_alive():
        assert len(json.loads((tmp_path / "run.json").read_text())["text"]) == 100_000
        reads += 1
    writer.join()

    assert reads


def test_a_lock_that_is_never_given_up_is_not_waited_for(tmp_path):
    """A stopped process that holds the lock delays an edit by two seconds, not for ever."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys\nfile = open(sys.argv[1], 'w')\n"
            "fcntl.flock(file, fcntl.LOCK_EX)\nprint(flush=True)\ninput()",
            tmp_path / ".lock",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    began = time.monotonic()
    with edit_run(tmp_path) as run:
        run["edited"] = True
    took = time.monotonic() - began
    holder.communicate(b"\n")

    assert read_run(tmp_path)["edited"]
    assert took < 3


@pytest.mark.parametrize("content", [None, "", "{", "[]", '"text"'])
def test_a_missing_or_damaged_file_reads_as_empty(tmp_path, content):
    """Whatever stands in run.json, reading it raises nothing."""
    if content is not None:
        (tmp_path / "run.json").write_text(content)

    assert read_run(tmp_path) == {}


def test_a_directory_without_a_run_becomes_one(tmp_path):
    """A named directory is used itself; it may exist, with other files in it."""
    (tmp_path / "notes.txt").write_text("mine")
    directory, run_id = join_run(tmp_path, "abc", "demo", 3, started=0.25)
    run = read_run(directory)

    assert directory == tmp_path
    assert run["id"] == run_id == "abc"
    assert run["processes"][0]["pid"] == os.getpid()
    assert run["processes"][0]["rank"] == 3
    assert run["started"] == run["processes"][0]["started"] == "1970-01-01T00:00:00.250Z"
    assert run["ended"] is None


def join(queue, directory, stay):
    queue.put(join_run(directory, f"id-{os.getpid()}", "demo", 0))
    time.sleep(stay)


def test_processes_of_one_run_agree_on_its_id(tmp_path):
    """Ranks that are told the same directory enter the same run, whoever comes first."""
    answers = in_processes(4, join, tmp_path / "run", 1.0)

    assert len(set(answers)) == 1
    assert len(read_run(tmp_path / "run")["processes"]) == 4


def test_a_run_that_is_over_is_not_continued(tmp_path):
    """The same directory named again: the second run gets a directory of its own beside it."""
    first, first_id = join_run(tmp_path / "run", "a", "demo", 0)
    leave_run(first)
    second, second_id = join_run(tmp_path / "run", "b", "demo", 0)

    assert second == tmp_path / "run-2"
    assert second_id != first_id
    assert read_run(first)["ended"]


def test_a_run_whose_processes_were_killed_is_over(tmp_path):
    """A killed run has no end in its run.json; that its processes are gone is enough."""
    in_processes(1, join, tmp_path / "run", 0)

    assert join_run(tmp_path / "run", "b", "demo", 0)[0].name == "run-2"
    assert read_run(tmp_path / "run")["ended"] is None


def test_commands_of_one_launcher_share_its_run(tmp_path):
    """A script under `gpumon run` trains twice: both trainings are in the run, and neither ends it."""
    directory, run_id = new_run_directory(tmp_path, "demo")
    describe_run(directory, run_id, "demo", ["bash", "train_twice.sh"])
    for _ in range(2):
        assert in_processes(1, join, directory, 0) == [(directory, run_id)]
    joined, _ = join_run(directory, "other", "demo", 0)
    leave_run(joined)
    run = read_run(directory)

    assert len(run["processes"]) == 3
    assert run["ended"] is None
    assert run["command"] == ["bash", "train_twice.sh"]


def test_ranks_of_one_launcher_agree_without_talking(tmp_path):
    """All ranks below one parent compute the same directory; another launcher's differs."""
    text = "from gpumon.telemetry.run_json import shared_run_name; print(*shared_run_name('demo', 'job'))"
    loop = f'for i in 1 2 3; do {sys.executable} -c "{text}"; done'
    launchers = [subprocess.run(["sh", "-c", loop], capture_output=True, text=True, check=True) for _ in range(2)]
    first, second = (set(launcher.stdout.splitlines()) for launcher in launchers)

    assert len(first) == len(second) == 1
    assert first != second
    assert shared_run_name("demo", "job") not in first | second
