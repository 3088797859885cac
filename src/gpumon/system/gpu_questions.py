"""What a GPU may be asked, and the readings that the answers become: the parts that `gpu.py` is put together of."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from gpumon.metrics import Attributes, Metric, Reading
from gpumon.system import nvml
from gpumon.system.nvml import NvmlError, Samples

_NO_SAMPLE_S: Final = 0.5  # the driver samples every 20 to 170 ms, while the GPU is awake


class Series:
    """One series of readings: the same object again while the value stays, as most of them do."""

    __slots__ = ("_attributes", "_factor", "_metric", "_reading", "_value")

    def __init__(self, metric: Metric, attributes: Attributes, factor: float = 1.0) -> None:
        self._metric, self._attributes, self._factor = metric, attributes, factor
        self._value: float | None = None

    def at(self, value: float) -> Reading:
        if value != self._value:
            self._value = value
            self._reading = Reading(self._metric, value * self._factor, self._attributes)
        return self._reading


class Question:
    """A question to one GPU, and when it may be asked next; `kept` are its last readings."""

    __slots__ = ("due", "every_s", "kept", "name", "read")

    def __init__(self, name: str, read: Callable[[], Iterable[Reading]], every_s: float = 0.0) -> None:
        self.name, self.read, self.every_s = name, read, every_s
        self.due = 0.0
        self.kept: list[Reading] = []


class Rates:
    """nvmlDeviceGetUtilizationRates, in percent: the driver's own mean over the last 1/6 to 1 s."""

    def __init__(self, handle: Any) -> None:
        self._pair = (ctypes.c_uint * 2)()
        self._call = nvml.Call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(self._pair))

    def of_gpu(self) -> float:
        self._call()
        return float(self._pair[0])

    def of_memory(self) -> float:
        self._call()
        return float(self._pair[1])


class Engine:
    """nvmlDeviceGet{Encoder,Decoder}Utilization, in percent."""

    def __init__(self, name: str, handle: Any) -> None:
        self._percent, self._period_us = ctypes.c_uint(), ctypes.c_uint()
        self._call = nvml.Call(name, handle, ctypes.byref(self._percent), ctypes.byref(self._period_us))

    def __call__(self) -> float:
        self._call()
        return float(self._percent.value)


class Sampled:
    """A share of time from the driver's samples; by *older* where it keeps none.

    The driver samples an idle GPU no more, and its buffer is empty then: that reads 0. But not where `older`
    (or, of an engine, the GPU as a whole) says otherwise: a driver that lost its samples is not idle.
    """

    def __init__(
        self,
        handle: Any,
        kind: int,
        metric: Metric,
        at: Attributes,
        older: Callable[[], float],
        *,
        part_of: Sampled | None = None,
    ) -> None:
        self._samples: Samples | None = Samples(handle, kind)
        self._series, self._older, self._whole = Series(metric, at, 0.01), older, part_of
        self._last, self._seen = 0.0, 0.0
        self.is_idle = False

    def read(self) -> Iterable[Reading]:
        self.is_idle = False
        percent = self._percent()
        self.is_idle = not percent
        return (self._series.at(percent),)

    def _percent(self) -> float:
        if self._samples is None:
            return self._older()
        try:
            percent = self._samples()
        except NvmlError as error:
            if error.code not in nvml.UNSUPPORTED:
                raise
            self._samples = None
            return self._older()
        now = time.monotonic()
        if percent is not None:
            self._last, self._seen = percent, now
            return percent
        if now - self._seen < _NO_SAMPLE_S:
            return self._last  # the next sample has not come yet
        return self._without_samples()

    def _without_samples(self) -> float:
        if self._whole is not None and self._whole.is_idle:
            return 0.0
        try:
            return self._older()
        except NvmlError as error:
            if self._whole is None and error.code in nvml.UNSUPPORTED:
                return 0.0
            raise
