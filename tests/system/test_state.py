"""State files: in the right folder, whole or not at all, and never worth a failure."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from gpumon.system.state import read_state, state_dir, write_state


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"GPUMON_STATE_DIR": "/a", "STATE_DIRECTORY": "/b", "XDG_STATE_HOME": "/c"}, "/a"),
        ({"STATE_DIRECTORY": "/b:/other", "XDG_STATE_HOME": "/c"}, "/b"),
    ],
)
def test_the_folder_that_was_named(environment, folder):
    """By the user, or by systemd (the first of several)."""
    assert state_dir(environment) == Path(folder)


@pytest.mark.parametrize(
    ("user", "environment", "folder"),
    [
        (0, {"XDG_STATE_HOME": "/c"}, "/var/lib/gpumon"),
        (1000, {"XDG_STATE_HOME": "/c", "HOME": "/home/u"}, "/c/gpumon"),
        (1000, {"HOME": "/home/u"}, "/home/u/.local/state/gpumon"),
        (1000, {}, "/nonexistent/.local/state/gpumon"),
    ],
)
def test_the_usual_folder(monkeypatch, user, environment, folder):
    """root's, or the user's own."""
    monkeypatch.setattr(os, "geteuid", lambda: user)

    assert state_dir(environment) == Path(folder)


def test_what_was_written_is_read(tmp_path):
    """The folder is made; everybody may read it; nothing else is left behind."""
    file = tmp_path / "a/b/state.json"
    write_state(file, {"disk": {"ä": [1, 2.5]}})
    write_state(file, {"disk": {"ä": [2, 2.5]}})

    assert read_state(file) == {"disk": {"ä": [2, 2.5]}}
    assert os.listdir(file.parent) == ["state.json"]
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"a": ', b"[1]", b"3", b"null", b"\xff\xfe{}", b"\0" * 100, b"[" * 99999]
)
def test_a_damaged_file_is_forgotten(tmp_path, damage):
    file = tmp_path / "state.json"
    file.write_bytes(damage)

    assert read_state(file) == {}
    write_state(file, {"a": 1})
    assert read_state(file) == {"a": 1}


def test_no_file_and_no_right_are_nothing(tmp_path):
    """A folder in its place, too."""
    (tmp_path / "folder").mkdir()

    assert read_state(tmp_path / "none") == read_state(tmp_path / "folder") == {}


def test_a_folder_that_cannot_be_written_is_an_error_of_the_caller(tmp_path):
    """A file is in the way."""
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError):
        write_state(tmp_path / "file/state.json", {})


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    """A value that is no JSON, and a disk that is full."""
    file = tmp_path / "state.json"
    write_state(file, {"a": 1})
    with pytest.raises(TypeError):
        write_state(file, {"a": object()})

    assert read_state(file) == {"a": 1}
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """The kernel's own ENOSPC."""
    file = tmp_path / "state.json"
    write_state(file, {"a": 1})
    opened = os.open

    def on_a_full_disk(path, flags, *mode, **how):
        is_temporary = ".state.json." in os.fspath(path)
        return opened("/dev/full", os.O_WRONLY) if is_temporary else opened(path, flags, *mode, **how)

    monkeypatch.setattr(os, "open", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_state(file, {"a": "x" * 100_000})
    assert read_state(file) == {"a": 1}


def _write(file, number):
    for _ in range(40):
        write_state(file, {str(number): "x" * 50_000})


def test_writers_at_once_leave_one_of_their_files(tmp_path):
    """A reader never sees a part of one."""
    file = tmp_path / "state.json"
    write_state(file, {"0": "x" * 50_000})
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(file, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        ((_, value),) = json.loads(file.read_bytes()).items()
        assert len(value) == 50_000
        seen += 1
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen
    assert os.listdir(tmp_path) == ["state.json"]
