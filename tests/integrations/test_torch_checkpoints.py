"""What writes checkpoints tells where they go, and writes as ever."""

import io
import os
import pathlib

import pytest
import safetensors.torch
import torch

from gpumon.integrations import torch as integration
from gpumon.system.datasets import CHECKPOINTS
from gpumon.tracing.steps import StepTracer

ORIGINAL = torch.save
SAVE_FILE = safetensors.torch.save_file


@pytest.fixture
def noted():
    """The folders that were noted, while instrumented."""
    CHECKPOINTS.clear()
    tracer = StepTracer()
    integration.instrument(tracer)
    yield CHECKPOINTS.paths
    integration.uninstrument()
    tracer.finish()
    CHECKPOINTS.clear()


def state():
    torch.manual_seed(0)
    return {"model": torch.nn.Linear(8, 8).state_dict(), "step": 3}


def test_the_folder_of_a_path_is_noted(noted, tmp_path):
    """As text or as a path, by position or by name; each folder once."""
    (tmp_path / "a").mkdir()
    torch.save(state(), str(tmp_path / "1.pt"))
    torch.save(state(), tmp_path / "a" / "2.pt")
    torch.save(obj=state(), f=tmp_path / "a/3.pt")
    version = CHECKPOINTS.version
    torch.save(state(), tmp_path / "a/4.pt")

    assert noted() == [str(tmp_path), str(tmp_path / "a")]
    assert CHECKPOINTS.version == version
    assert sorted(path.name for path in tmp_path.rglob("*.pt")) == ["1.pt", "2.pt", "3.pt", "4.pt"]
    assert torch.load(tmp_path / "a/3.pt")["step"] == 3


def test_a_relative_path_is_where_it_is_now(noted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "last.pt")

    assert noted() == [str(tmp_path)]
    assert os.path.exists("last.pt")


def test_the_folder_of_an_open_file_is_noted(noted, tmp_path):
    """Opened by a path of any kind."""
    for name in ("1.pt", pathlib.Path("2.pt"), b"3.pt"):
        with open(os.path.join(os.fsencode(tmp_path), os.fsencode(name)), "wb") as file:
            torch.save(state(), file)

    assert noted() == [str(tmp_path)]


class Remote(io.BytesIO):
    """A file of an object store, as fsspec gives it."""

    name = "s3://bucket/checkpoints/last.pt"


def test_what_has_no_folder_here_is_not_noted(noted, tmp_path):
    """Memory, a file without a name, an object store's."""
    buffer, remote = io.BytesIO(), Remote()
    torch.save(state(), buffer)
    torch.save(state(), remote)
    with open(os.open(tmp_path / "fd.pt", os.O_WRONLY | os.O_CREAT), "wb") as numbered:
        torch.save(state(), numbered)

    assert noted() == []
    assert torch.load(io.BytesIO(buffer.getvalue()))["step"] == 3
    assert buffer.getvalue() == remote.getvalue()


def test_safetensors_are_noted(noted, tmp_path):
    """Also by who took `save_file` before us, as transformers and accelerate do."""
    model = torch.nn.Linear(8, 8)
    SAVE_FILE(model.state_dict(), str(tmp_path / "1.safetensors"))
    (tmp_path / "a").mkdir()
    safetensors.torch.save_model(model, tmp_path / "a" / "2.safetensors")

    assert noted() == [str(tmp_path), str(tmp_path / "a")]
    assert torch.equal(safetensors.torch.load_file(tmp_path / "1.safetensors")["weight"], model.weight)


def test_lightnings_checkpoints_are_noted(noted, tmp_path):
    """It gives `torch.save` memory, and makes the folder itself; an object store is no folder."""
    torch_io = pytest.importorskip("lightning.fabric.plugins.io.torch_io", reason="pip install lightning")
    writer = torch_io.TorchCheckpointIO()
    writer.save_checkpoint(state(), tmp_path / "a" / "1.ckpt")
    writer.save_checkpoint(state(), path=f"file://{tmp_path}/b/2.ckpt")
    writer.save_checkpoint(state(), "memory://bucket/3.ckpt")

    assert noted() == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert torch.load(tmp_path / "b/2.ckpt")["step"] == 3


def test_distributed_checkpoints_are_noted(noted, tmp_path):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    checkpoint.save({"weight": torch.ones(64)}, checkpoint_id=tmp_path, no_dist=True)

    assert noted() == [str(tmp_path)]


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}])
def test_the_bytes_are_the_same(noted, options):
    given, plain, watched = state(), io.BytesIO(), io.BytesIO()
    ORIGINAL(given, plain, **options)
    torch.save(given, watched, **options)

    assert plain.getvalue() == watched.getvalue()


def test_its_errors_are_torchs_own(noted, tmp_path):
    """A folder that is not there, a target that is none, no arguments."""
    for arguments in ((state(), tmp_path / "none/last.pt"), (state(), 3), (state(), None), ()):
        with pytest.raises(Exception) as ours:
            torch.save(*arguments)
        with pytest.raises(Exception) as theirs:
            ORIGINAL(*arguments)
        assert type(ours.value) is type(theirs.value)
        assert str(ours.value).partition("save()")[2] == str(theirs.value).partition("save()")[2]


def test_a_failure_of_ours_does_not_lose_a_checkpoint(noted, tmp_path, monkeypatch):
    """Whatever goes wrong in noting the folder."""
    monkeypatch.setenv("GPUMON_STRICT", "0")

    def fails(*_, **__):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(CHECKPOINTS, "add_path", fails)
    torch.save(state(), tmp_path / "last.pt")

    assert torch.load(tmp_path / "last.pt")["step"] == 3


def test_it_is_put_back(noted):
    """And looks as before meanwhile."""
    assert torch.save is not ORIGINAL
    assert (torch.save.__name__, torch.save.__doc__) == (ORIGINAL.__name__, ORIGINAL.__doc__)
    integration.uninstrument()
    assert torch.save is ORIGINAL
    assert not hasattr(safetensors.torch.serialize_file, "notes_checkpoints")
    integration.instrument(StepTracer())
    integration.uninstrument()
    assert torch.save is ORIGINAL
