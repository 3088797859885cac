"""The one door to NVML (nvidia-ml-py): it is started once, and its errors are told in few words.

What is asked on every tick goes to the C function directly, with arguments made once: pynvml's wrappers
allocate on every call, and its structures look up every field in Python. All other questions go through pynvml.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Container, Iterable
from typing import Any, Final, TypeVar

from gpumon.errors import CollectorError, NoDataError

T = TypeVar("T")

NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
INSUFFICIENT_SIZE: Final = 7
FUNCTION_NOT_FOUND: Final = 13
UNSUPPORTED: Final = frozenset((3, FUNCTION_NOT_FOUND, 22, 24, 25, 26))
"""This GPU or this driver does not know the question: absent, no failure."""
NOTHING_NOW: Final = frozenset((NOT_FOUND, 21, 27))
"""There is nothing to tell at this moment: absent, no failure."""
GONE: Final = frozenset((15, 16, 28))
"""This GPU answers no more, until it is reset or comes back."""
CLOSED: Final = frozenset((1, 9, 18))
"""NVML has to be started again: somebody shut it down, or the driver was exchanged."""

_REASONS: Final = {
    1: "not initialized",
    2: "invalid argument",
    3: "not supported",
    4: "no permission",
    5: "already initialized",
    6: "not found",
    7: "insufficient size",
    8: "insufficient external power",
    9: "driver not loaded",
    10: "timeout",
    11: "interrupt problem",
    12: "library not found",
    13: "function not found",
    14: "corrupted infoROM",
    15: "lost",
    16: "reset required",
    17: "blocked by the operating system",
    18: "driver and library differ in version",
    19: "in use",
    20: "out of memory",
    21: "no data",
    22: "no ECC on a virtual GPU",
    23: "insufficient resources",
    24: "frequency not supported",
    25: "version of the question not supported",
    26: "deprecated",
    27: "not ready",
    28: "GPU not found",
    29: "invalid state",
    30: "reset not supported",
    999: "unknown error",
}
_NO_DATA: Final = frozenset((9, 12))
ALL_LINKS: Final = 0xFFFFFFFF  # scope of a field: the sum over all NVLinks

_started_in = 0  # the process in which NVML was started
_starting = threading.Lock()


class NvmlError(Exception):
    """NVML answered with an error; the text is the short reason."""

    def __init__(self, code: int) -> None:
        super().__init__(reason(code))
        self.code = code


def reason(code: int) -> str:
    """An NVML return code in few words."""
    return _REASONS.get(code, f"error {code}")


def start() -> Any:
    """Start NVML and return pynvml; blocks for seconds where no process keeps the driver awake.

    It is never shut down: a call that hangs would then hang the exit as well.

    Raises:
        NoDataError: no library, no driver, or this is a fork of a process that uses NVML: its handles are
            the parent's, and starting the same library again would touch them.
        CollectorError: NVML is there and does not start.
    """
    global _started_in
    try:
        import pynvml
    except ImportError:
        raise NoDataError("NVML: nvidia-ml-py is not installed") from None

    if _started_in not in (0, os.getpid()):  # before the lock: a fork may have copied it locked
        raise NoDataError("NVML: in use by the parent of this process")
    with _starting:
        _started_in = os.getpid()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value not in _NO_DATA:
                raise CollectorError(f"NVML: {reason(error.value)}") from None
            _started_in = 0
            raise NoDataError(f"NVML: {reason(error.value)}") from None
    return pynvml


def ask(function: Callable[..., T], *arguments: Any) -> T:
    """Ask through pynvml.

    Raises:
        NvmlError: NVML's error; also where pynvml or the driver is too old for the function.
    """
    import pynvml

    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise NvmlError(error.value) from None
    except UnicodeDecodeError:
        raise NvmlError(999) from None


class Call:
    """A C function of NVML with its arguments; calling it asks, and raises `NvmlError`."""

    __slots__ = ("_arguments", "_function")

    def __init__(self, name: str, *arguments: Any) -> None:
        import pynvml

        self._arguments = arguments
        try:
            self._function: Any = pynvml.nvmlLib[name]
        except (AttributeError, TypeError):  # a driver older than the function
            self._function = _is_unknown

    def __call__(self) -> None:
        if code := self._function(*self._arguments):
            raise NvmlError(code)


class Number(Call):
    """A question that answers with one integer."""

    __slots__ = ("_value",)

    def __init__(self, name: str, *arguments: Any, value: Any = None) -> None:
        self._value = ctypes.c_uint() if value is None else value
        super().__init__(name, *arguments, ctypes.byref(self._value))

    def __call__(self) -> int:  # type: ignore[override]
        if code := self._function(*self._arguments):
            raise NvmlError(code)
        return self._value.value


def _is_unknown(*_arguments: Any) -> int:
    return FUNCTION_NOT_FOUND


class _TemperatureV1(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("sensor", ctypes.c_uint), ("celsius", ctypes.c_int))


class Temperature:
    """The temperature of the core in Cel; by nvmlDeviceGetTemperature where the driver has no …V."""

    def __init__(self, handle: Any) -> None:
        self._struct = _TemperatureV1(0x100000C, 0, 0)
        self._call = Call("nvmlDeviceGetTemperatureV", handle, ctypes.byref(self._struct))
        self._older = Number("nvmlDeviceGetTemperature", handle, ctypes.c_uint(0))
        self._is_old = False

    def __call__(self) -> int:
        if not self._is_old:
            try:
                self._call()
                return int(self._struct.celsius)
            except NvmlError as error:
                if error.code not in UNSUPPORTED:
                    raise
                self._is_old = True
        return self._older()


class _MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _MemoryV1(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Memory:
    """(used, total) in bytes. The driver's reserve is not in `used`, but where only version 1 is known."""

    def __init__(self, handle: Any) -> None:
        self._v2 = _MemoryV2(0x2000028)
        self._v1 = _MemoryV1()
        self._call = Call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(self._v2))
        self._older = Call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(self._v1))
        self._is_old = False

    def __call__(self) -> tuple[int, int]:
        if not self._is_old:
            try:
                self._call()
                return self._v2.used, self._v2.total
            except NvmlError as error:
                if error.code not in UNSUPPORTED:
                    raise
                self._is_old = True
        self._older()
        return self._v1.used, self._v1.total


class Samples:
    """The mean of what the driver sampled since the last look, from its own buffer (nvmlDeviceGetSamples).

    At the first look: over the last second that is in the buffer.
    """

    _FORMATS: Final = {
        0: ("d", 1, 2),
        1: ("I", 2, 4),
        2: ("Q", 1, 2),
        3: ("Q", 1, 2),
        4: ("q", 1, 2),
        5: ("i", 2, 4),
    }  # value type -> format, place
    _FIRST_US: Final = 1_000_000

    def __init__(self, handle: Any, kind: int) -> None:
        self._head = (handle, ctypes.c_uint(kind))
        self._seen = ctypes.c_ulonglong(0)  # µs
        self._type, self._count = ctypes.c_uint(), ctypes.c_uint()
        self._size = 0
        self._form = ""

    def __call__(self) -> float | None:
        """None where there was no sample since the last look.

        Raises:
            NvmlError: NVML's error.
        """
        try:
            self._fetch()
        except NvmlError as error:
            if error.code == NOT_FOUND:
                return None
            raise
        count = self._count.value
        if not count:
            return None
        times = self._words[0 : 2 * count : 2]
        form, start, step = self._FORMATS.get(self._type.value) or self._FORMATS[3]
        if form != self._form:
            self._form, self._values = form, self._bytes.cast(form)  # type: ignore[call-overload]
        values = self._values[start : step * count : step]
        newest, first = max(times), self._seen.value == 0
        self._seen.value = newest
        if first:
            values = [value for at, value in zip(times, values, strict=True) if at > newest - self._FIRST_US]
        return float(sum(values)) / len(values)

    def _fetch(self) -> None:
        if not self._size:
            self._resize()
        self._count.value = self._size
        try:
            self._call()
        except NvmlError as error:
            if error.code != INSUFFICIENT_SIZE:
                raise
            self._resize()
            self._call()

    def _resize(self) -> None:
        """Ask for the size of the driver's buffer and make one that holds it."""
        by = ctypes.byref
        Call("nvmlDeviceGetSamples", *self._head, self._seen, by(self._type), by(self._count), None)()
        if not self._count.value:
            raise NvmlError(NOT_FOUND)
        self._size = self._count.value
        buffer = (ctypes.c_uint64 * (2 * self._size))()
        self._bytes = memoryview(buffer).cast("B")
        self._words = self._bytes.cast("Q")
        self._form = ""
        self._call = Call("nvmlDeviceGetSamples", *self._head, self._seen, by(self._type), by(self._count), by(buffer))


class Fields:
    """Many values by one call (nvmlDeviceGetFieldValues): field -> value, without those that have none."""

    _ONE: Final = struct.Struct("=IIqqII8s")
    _MANY: Final = struct.Struct("=I20xIIQ")
    _FORMATS: Final = {0: "d", 1: "I4x", 2: "Q", 3: "Q", 4: "q", 5: "i4x", 6: "H6x"}

    def __init__(self, handle: Any, fields: Iterable[int], *, all_links: Iterable[int] = ()) -> None:
        self._handle, self._fields, self._all_links = handle, tuple(fields), frozenset(all_links)
        self.failed: dict[int, int] = {}
        """field -> NVML's code, of those without a value"""
        self.narrow: set[int] = set()
        """fields of 32 bit: these run over"""
        self._make()

    def keep(self, fields: Container[int]) -> None:
        """Ask only those of *fields* from now on."""
        self._fields = tuple(field for field in self._fields if field in fields)
        self.failed = {field: code for field, code in self.failed.items() if field in fields}
        self._make()

    def _make(self) -> None:
        self._template = b"".join(
            self._ONE.pack(field, ALL_LINKS if field in self._all_links else 0, 0, 0, 0, 999, b"")
            for field in self._fields
        )
        self._buffer = (ctypes.c_char * len(self._template))()
        self._view = memoryview(self._buffer).cast("B")
        count = ctypes.c_int(len(self._fields))
        self._call = Call("nvmlDeviceGetFieldValues", self._handle, count, ctypes.byref(self._buffer))

    def __call__(self) -> dict[int, float]:
        if not self._fields:
            return {}
        self._view[:] = self._template
        self._call()
        found: dict[int, float] = {}
        self.failed = {}
        for field, kind, code, bits in self._MANY.iter_unpack(self._view):
            if code:
                self.failed[field] = code
            elif kind == 3 or kind == 2:
                found[field] = bits
            elif kind == 1:
                found[field] = bits & 0xFFFFFFFF
                self.narrow.add(field)
            elif kind in self._FORMATS:
                found[field] = struct.unpack("=" + self._FORMATS[kind], struct.pack("=Q", bits))[0]
        return found


class Gpm:
    """Performance counters of Hopper and later: metric -> mean since the last look (nvmlGpm…).

    A sample is of a moment; a metric lies between two of them. The first look has none.
    """

    _METRICS_AT: Final = 24
    _ONE: Final = struct.Struct("=IId24x")

    def __init__(self, pynvml: Any, handle: Any, metrics: Iterable[int]) -> None:
        self._metrics = tuple(metrics)
        size = pynvml.c_nvmlGpmMetricsGet_t
        self._samples = [ask(pynvml.nvmlGpmSampleAlloc) for _ in range(2)]
        self._take = [Call("nvmlGpmSampleGet", handle, sample) for sample in self._samples]
        self._questions = []
        for older, newer in ((0, 1), (1, 0)):
            question = size()
            question.version, question.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(self._metrics)
            question.sample1, question.sample2 = self._samples[older], self._samples[newer]
            for place, metric in enumerate(self._metrics):
                question.metrics[place].metricId = metric
            view = memoryview(question).cast("B")
            self._questions.append(
                (
                    Call("nvmlGpmMetricsGet", ctypes.byref(question)),
                    view[self._METRICS_AT : self._METRICS_AT + self._ONE.size * len(self._metrics)],
                )
            )
        self._newest: int | None = None

    def __call__(self) -> dict[int, float]:
        older = self._newest
        newer = 1 - older if older is not None else 0
        self._newest = None  # where one of both calls fails, the next look is the first again
        self._take[newer]()
        self._newest = newer
        if older is None:
            return {}
        call, view = self._questions[older]
        call()
        return {metric: value for metric, code, value in self._ONE.iter_unpack(view) if not code}


class ProcessMemory:
    """pid -> bytes, of processes that compute on the GPU (nvmlDeviceGetComputeRunningProcesses)."""

    _ONE: Final = struct.Struct("=I4xQII")
    _NOT_AVAILABLE: Final = (1 << 64) - 1

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._count = ctypes.c_uint()
        self._resize(32)

    def _resize(self, size: int) -> None:
        self._size = size
        self._buffer = (ctypes.c_char * (self._ONE.size * size))()
        self._call = Call(
            "nvmlDeviceGetComputeRunningProcesses_v3",
            self._handle,
            ctypes.byref(self._count),
            ctypes.byref(self._buffer),
        )

    def __call__(self) -> dict[int, int]:
        self._count.value = self._size
        try:
            self._call()
        except NvmlError as error:
            if error.code != INSUFFICIENT_SIZE or self._size > 4096:
                raise
            self._resize(2 * max(self._size, self._count.value))
            self._count.value = self._size
            self._call()
        found: dict[int, int] = {}
        used = memoryview(self._buffer)[: self._ONE.size * self._count.value]
        for pid, size, _instance, _compute in self._ONE.iter_unpack(used):
            if size != self._NOT_AVAILABLE:
                found[pid] = found.get(pid, 0) + size
        return found
