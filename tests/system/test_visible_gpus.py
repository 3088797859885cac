"""Which of a machine's GPUs a process in a container may use."""

import pytest

from gpumon.system.visible_gpus import Listed, visible_in_container

GPUS = [Listed(0, "GPU-aa"), Listed(1, "GPU-bb", ("MIG-1", "MIG-2")), Listed(2, "GPU-cc"), Listed(3, "GPU-dd")]


def found(**environment):
    return [
        each.gpu.uuid if each.instances is None else (each.gpu.uuid, *each.instances)
        for each in visible_in_container(GPUS, environment)
    ]


EVERYTHING = ["GPU-aa", "GPU-bb", "GPU-cc", "GPU-dd"]


@pytest.mark.parametrize(
    ("given", "cuda", "gpus"),
    [
        (None, None, EVERYTHING),
        ("", None, EVERYTHING),
        ("all", None, EVERYTHING),
        ("nvidia.com/gpu=all", None, EVERYTHING),
        (None, "2", ["GPU-cc"]),
        ("3,0", None, ["GPU-aa", "GPU-dd"]),
        ("0,0,3", None, ["GPU-aa", "GPU-dd"]),
        ("GPU-cc,GPU-dd", "1", ["GPU-dd"]),
        ("2,3", "0", ["GPU-cc"]),
        ("2,3", "GPU-dd", ["GPU-dd"]),
        ("2,3", "2", []),
        ("all", "3", ["GPU-dd"]),
        ("void", None, []),
        ("none", None, []),
        ("7", None, []),
        ("nvidia.com/gpu=2", None, ["GPU-cc"]),
        ("nvidia.com/gpu=GPU-dd", None, ["GPU-dd"]),
        ("1:1", None, ["GPU-bb"]),
        ("1:1", "MIG-2", [("GPU-bb", "MIG-2")]),
        ("1:1", "MIG-1", []),
        ("1:9", None, []),
        ("MIG-1", "0", ["GPU-bb"]),
    ],
)
def test_what_the_runtime_gives_and_cuda_chooses(given, cuda, gpus):
    """NVIDIA_VISIBLE_DEVICES by the machine's numbers, CUDA_VISIBLE_DEVICES by the container's."""
    environment = {"NVIDIA_VISIBLE_DEVICES": given, "CUDA_VISIBLE_DEVICES": cuda}

    assert found(**{key: value for key, value in environment.items() if value is not None}) == gpus


def test_a_folder_of_devices(tmp_path):
    """Kubernetes' device plugin may name them by files that it mounts there."""
    (tmp_path / "GPU-cc").touch()

    assert found(NVIDIA_VISIBLE_DEVICES=str(tmp_path)) == ["GPU-cc"]
    assert found(NVIDIA_VISIBLE_DEVICES=str(tmp_path / "none")) == []


def test_an_instance_that_was_given_is_the_only_one():
    """Of a GPU's instances the container sees those that its runtime gave it."""
    (gpu,) = visible_in_container(GPUS, {"NVIDIA_VISIBLE_DEVICES": "1:1"})

    assert gpu.gpu.instances == ("MIG-2",)
