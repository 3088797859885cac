"""NVIDIA GPUs through NVML."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import AttributeValue, Reading

_RETRY_S = 60.0  # where there is no GPU


@register("gpu")
class GpuCollector:
    """How busy each GPU is and how much of its memory is used.

    Source: nvmlDeviceGetUtilizationRates, nvmlDeviceGetMemoryInfo.
    Units: percent -> 1.
    Shape: one lost GPU does not hide the others.
    """

    interval_s = 1.0
    may_block = True

    def __init__(self, config: Config | None = None) -> None:
        self._nvml: Any = None
        self._pid = 0
        self._missing: tuple[float, NoDataError] | None = None

    def collect(self) -> Iterable[Reading]:
        self._open()
        failed = []
        for index in range(self._ask(self._nvml.nvmlDeviceGetCount) or 0):
            try:
                yield from self._device(index)
            except CollectorError as error:
                failed.append(f"GPU {index}: {error}")
        if failed:
            raise CollectorError("; ".join(failed))

    def _open(self) -> None:
        """Load NVML, and again in a forked child: handles of the parent are none of its business."""
        if self._nvml is not None and self._pid == os.getpid():
            return
        if self._missing is not None and time.monotonic() - self._missing[0] < _RETRY_S:
            raise self._missing[1].with_traceback(None)
        try:
            self._nvml, self._pid = _initialized(), os.getpid()
        except NoDataError as error:
            self._missing = (time.monotonic(), error)
            raise

    def _device(self, index: int) -> Iterator[Reading]:
        handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
        at: dict[str, AttributeValue] = {
            m.HW_ID: str(self._ask(self._nvml.nvmlDeviceGetUUID, handle)),
            m.GPU_INDEX: index,
        }
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        if rates is not None:
            yield Reading(m.GPU_UTILIZATION, rates.gpu / 100, {**at, "hw.gpu.task": "general"})
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is not None:
            yield Reading(m.GPU_MEMORY_USAGE, memory.used, at)
            yield Reading(m.GPU_MEMORY_LIMIT, memory.total, at)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call NVML; None where this GPU does not support the question."""
        import pynvml

        try:
            return function(*arguments)
        except pynvml.NVMLError_NotSupported:
            return None
        except pynvml.NVMLError as error:
            raise CollectorError(f"{function.__name__}: {error}") from error


def _initialized() -> Any:
    """NVML, ready to be asked.

    Raises:
        NoDataError: no library, no driver, no GPU.
        CollectorError: NVML is there and does not start.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        if not pynvml.nvmlDeviceGetCount():
            raise NoDataError("NVML: no GPU")
    except pynvml.NVMLError_LibraryNotFound:
        raise NoDataError("NVML: library not found") from None
    except pynvml.NVMLError_DriverNotLoaded:
        raise NoDataError("NVML: driver not loaded") from None
    except pynvml.NVMLError as error:
        raise CollectorError(f"NVML: {error}") from error
    return pynvml
