"""The GPU collector says why it has nothing, and with a GPU how busy it is."""

import time

import pytest

from gpumon import metrics as m
from gpumon.collectors.gpu import GpuCollector
from gpumon.errors import NoDataError
from readings import Readings


def has_gpu():
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError:
        return False


@pytest.mark.skipif(has_gpu(), reason="has a GPU")
def test_without_a_gpu_the_reason_is_told():
    """No data rather than a failure, at every collection."""
    collector = GpuCollector()
    for _look in range(2):
        with pytest.raises(NoDataError, match=r"NVML: (library not found|driver not loaded|no GPU)"):
            list(collector.collect())


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
def test_a_gpu_tells_its_load_and_memory():
    """By its UUID; shares between 0 and 1, bytes that fit, a temperature and a power that can be."""
    gpus = GpuCollector()
    list(gpus.collect())
    time.sleep(1)
    found = Readings(gpus.collect())

    [limit, *_others] = found.of(m.GPU_MEMORY_LIMIT)
    uuid = limit.attributes[m.HW_ID]
    assert uuid.startswith("GPU-")
    assert 0 <= found.value(m.GPU_UTILIZATION, uuid, "general") <= 1
    assert 0 <= found.value(m.GPU_MEMORY_USAGE, uuid) <= limit.value
    assert 10 < found.value(m.TEMPERATURE, f"{uuid}/core") < 100
    assert 1 < found.value(m.POWER, uuid) < 2000
    assert found.value(m.STATUS, uuid, "failed") == 0
    assert found.one(m.GPU_INFO, uuid).attributes[m.HW_VENDOR] == "NVIDIA"
    assert gpus.missing()[uuid].keys().isdisjoint({"memory", "temperature", "power", "utilization"})
