"""One GPU: what it is asked, how often, and what that reads as."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from gpumon import metrics as m
from gpumon.metrics import Attributes, AttributeValue, Metric, Reading
from gpumon.system import nvml
from gpumon.system.counters import Monotonic
from gpumon.system.gpu_events import GpuEvents, worst
from gpumon.system.gpu_questions import Engine, Question, Rates, Sampled, Series
from gpumon.system.nvml import Fields, Gpm, Memory, Number, NvmlError, ProcessMemory, Samples, Temperature
from gpumon.system.processes import OurProcesses

STATES: Final = ("ok", "degraded", "failed")
_AGAIN_S: Final = 60.0  # until a question that is not supported is asked again
_OFTEN_S: Final = 2.0  # what other processes do
_SELDOM_S: Final = 10.0  # what changes slowly: PCIe link, fan
_RARELY_S: Final = 60.0  # what somebody sets: the power limit
_HARDLY_S: Final = 3600.0  # what is built in
_MIB: Final = 1 << 20

# NVML_FI_DEV_…
_CORRECTED, _UNCORRECTED = 3, 4  # ECC_SBE_VOL_TOTAL, ECC_DBE_VOL_TOTAL
_MEMORY_CEL, _ENERGY_MJ, _REPLAYS = 82, 83, 94
_PCIE_SENT, _PCIE_RECEIVED = 197, 198  # By
_NVLINK_SENT, _NVLINK_RECEIVED = 138, 139  # KiBy, over all links
_REMAPPED: Final = {142: "correctable", 143: "uncorrectable", 144: "pending", 145: "failed"}
_PENDING, _FAILED = 144, 145
_NEVER_HEARD: Final = 2  # a field's code where it is newer than the driver: invalid argument
_WRAPPING: Final = frozenset((_PCIE_SENT, _PCIE_RECEIVED))  # the driver says that they may run over
# reason -> (bit of the clock event reasons, field that counts its ns); the idle GPU and clocks that were set
# (applications, display) hold the clocks down, but are what was asked for.
_REASONS: Final = {
    "sw_power_cap": (0x4, 74),
    "hw_slowdown": (0x8, None),
    "sync_boost": (0x10, 76),
    "sw_thermal_slowdown": (0x20, 269),
    "hw_thermal_slowdown": (0x40, 270),
    "hw_power_brake": (0x80, 271),
}
_FIELDS: Final = (
    *(_CORRECTED, _UNCORRECTED, _MEMORY_CEL, _ENERGY_MJ, _REPLAYS, _PCIE_SENT, _PCIE_RECEIVED),
    *(_NVLINK_SENT, _NVLINK_RECEIVED, *_REMAPPED),
    *(field for _, field in _REASONS.values() if field),
)
# NVML_GPM_METRIC_…, in percent or MiBy/s
_GPM_SHARES: Final = {
    2: m.GPU_SM_ACTIVITY,
    3: m.GPU_SM_OCCUPANCY,
    5: m.GPU_TENSOR_ACTIVITY,
    10: m.GPU_DRAM_ACTIVITY,
}
_GPM_RATES: Final = {
    20: (m.GPU_IO, "transmit", _PCIE_SENT),
    21: (m.GPU_IO, "receive", _PCIE_RECEIVED),
    60: (m.GPU_NVLINK_IO, "receive", _NVLINK_RECEIVED),
    61: (m.GPU_NVLINK_IO, "transmit", _NVLINK_SENT),
}  # (metric, direction, the field that counts the same)
# NVML_TEMPERATURE_THRESHOLD_…
_THRESHOLDS: Final = ((1, "core", "high.degraded"), (0, "core", "high.critical"), (2, "memory", "high.degraded"))
_PCIE_GENERATIONS: Final = {"2.5": 1, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}  # GT/s


class Gpu:
    """Asks one GPU; all its state belongs to the thread that asks it.

    Source: NVML, see telemetry's table of metrics. Units: percent -> 1, mW -> W, mJ -> J, MHz -> Hz, ns -> s,
    KiBy -> By.
    """

    def __init__(
        self,
        pynvml: Any,
        handle: Any,
        index: int,
        uuid: str,
        *,
        instances: Callable[[], Iterable[tuple[str, Any]]] = tuple,
        events: GpuEvents | None = None,
        ours: OurProcesses | None = None,
        sysfs: Path = Path("/sys"),
    ) -> None:
        """*instances* lists (UUID, handle) of the MIG instances: a GPU may be divided anew at any time."""
        self.index, self.uuid, self.handle = index, uuid, handle
        self.at: dict[str, AttributeValue] = {m.HW_ID: uuid, m.GPU_INDEX: index}
        self.asking = ""  # for a call that hangs
        self.failed: dict[str, str] = {}
        """question -> the reason why it failed at the last look"""
        self.absent: dict[str, str] = {}
        """question -> why this GPU has no answer, which is no failure"""
        self._pynvml, self._sysfs = pynvml, sysfs
        self._events, self._ours = events, ours or OurProcesses()
        self._of_hw: Attributes = {**self.at, m.HW_TYPE: "gpu"}
        self._now = self._before = 0.0
        self._last_code = 999
        self._partly: NvmlError | None = None  # what went wrong with a part of the question that is asked
        self._trouble = {"ecc": "ok", "rows": "ok"}
        self._status: dict[str, list[Reading]] = {}  # state -> its readings
        self._counters = Monotonic()
        self._bus_id = ""
        self._list_instances = instances
        self._instances: list[tuple[str, Any]] = []
        self._asked_of_instances: list[Question] = []
        self._prepare()
        self._asked_first = Question("instances", self._look_for_instances, _RARELY_S)
        self._asked_now = [Question(name, read) for name, read in self._readers()]
        width = Number("nvmlDeviceGetCurrPcieLinkWidth", handle)
        generation = Number("nvmlDeviceGetCurrPcieLinkGeneration", handle)
        self._information = Question("information", self._info, _HARDLY_S)
        self._asked_later = [
            self._information,
            Question("PCIe limits", self._pcie_limits, _HARDLY_S),
            Question("temperature limits", self._temperature_limits, _HARDLY_S),
            Question("power limit", self._power_limit, _RARELY_S),
            Question("process memory", self._processes, _OFTEN_S),
            Question("PCIe width", self._one(m.GPU_PCIE_WIDTH, width), _SELDOM_S),
            Question("PCIe generation", self._one(m.GPU_PCIE_GENERATION, generation), _SELDOM_S),
            Question("fan", self._one(m.FAN_SPEED_RATIO, Number("nvmlDeviceGetFanSpeed", handle), 0.01), _SELDOM_S),
        ]

    def read(self, now: float) -> list[Reading]:
        """Everything that this GPU tells.

        Raises:
            NvmlError: the GPU is gone, or NVML is closed: nothing was read.
        """
        self._before, self._now = self._now, now
        readings: list[Reading] = []
        if self._asked_first.due <= now:
            self._asked_first.due = now + self._asked_first.every_s
            self._ask(self._asked_first)
        for question in (*self._asked_now, *self._asked_of_instances):
            if question.due <= now:
                readings += self._ask(question)
        if not readings:  # what is kept of earlier looks does not make it readable
            raise NvmlError(self._last_code)
        later = [question for question in self._asked_later if question.due <= now]
        if self._before:  # at most one per look, the one that is overdue most
            later = [min(later, key=lambda question: question.due)] if later else []
        for question in later:
            question.due = now + question.every_s
            question.kept = self._ask(question)
        for question in self._asked_later:
            readings += question.kept
        self.asking = ""
        state = worst((*self._trouble.values(), self._xid_state()))
        if state not in self._status:
            self._status[state] = status(self.at, state)
        return readings + self._status[state]

    def _ask(self, question: Question) -> list[Reading]:
        self.asking = name = question.name
        self._partly = None
        try:
            readings = list(question.read())
        except NvmlError as failure:
            self._partly, readings = failure, []
        if self.absent or self.failed:
            self.absent.pop(name, None)
            self.failed.pop(name, None)
        if (error := self._partly) is not None:
            if error.code in nvml.GONE or error.code in nvml.CLOSED:
                raise error
            self._last_code = error.code
            if error.code in nvml.UNSUPPORTED or error.code in nvml.NOTHING_NOW:
                self.absent[name] = str(error)
            else:
                self.failed[name] = str(error)
            if not readings and error.code in nvml.UNSUPPORTED:
                question.due = self._now + _AGAIN_S
            elif question.every_s:
                question.due = self._now + min(question.every_s, _SELDOM_S)
        return readings

    def _look_for_instances(self) -> Iterable[Reading]:
        """Handles are taken anew as well: an instance that was made again has its old UUID."""
        found = list(self._list_instances())
        if {uuid for uuid, _ in found} != {uuid for uuid, _ in self._instances}:
            self._information.due = 0.0
            for question in self._asked_of_instances:
                self.absent.pop(question.name, None)
                self.failed.pop(question.name, None)
        self._instances = found
        self._asked_of_instances = [
            Question(f"memory of {uuid}", self._memory_reader(handle, uuid)) for uuid, handle in found
        ]
        return ()

    # -- on every tick ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the calls of every tick once, with their arguments."""
        handle = self.handle
        self._power_samples: Samples | None = Samples(handle, 0)
        self._power_series = Series(m.POWER, self._of_hw, 0.001)
        self._power_usage = Number("nvmlDeviceGetPowerUsage", handle)
        self._fields = Fields(handle, _FIELDS, all_links=(_NVLINK_SENT, _NVLINK_RECEIVED))
        self._by_field = self._series_of_fields()
        self._has_field: set[int] | None = None  # after the first look
        self._reasons = Number("nvmlDeviceGetCurrentClocksEventReasons", handle, value=ctypes.c_ulonglong())
        self._older_reasons = Number("nvmlDeviceGetCurrentClocksThrottleReasons", handle, value=ctypes.c_ulonglong())
        self._throttled_s = dict.fromkeys((bit for bit, _field in _REASONS.values()), 0.0)
        self._throttle = [
            (
                bit,
                field,
                Series(m.GPU_THROTTLE_ACTIVE, self._with(m.GPU_THROTTLE_REASON, reason)),
                Series(m.GPU_THROTTLE_TIME, self._with(m.GPU_THROTTLE_REASON, reason)),
            )
            for reason, (bit, field) in _REASONS.items()
        ]
        self._process_memory = ProcessMemory(handle)
        self._gpm: Gpm | None = None
        self._has_gpm: bool | None = None

    def _readers(self) -> Iterator[tuple[str, Callable[[], Iterable[Reading]]]]:
        handle, of = self.handle, self._with
        rates = Rates(handle)
        general = Sampled(handle, 1, m.GPU_UTILIZATION, of(m.HW_GPU_TASK, "general"), rates.of_gpu)
        yield "utilization", general.read
        activity = Sampled(handle, 2, m.GPU_MEMORY_ACTIVITY, self.at, rates.of_memory, part_of=general)
        yield "memory activity", activity.read
        for kind, task, name in ((3, "encoder", "Encoder"), (4, "decoder", "Decoder")):
            older = Engine(f"nvmlDeviceGet{name}Utilization", handle)
            sampled = Sampled(handle, kind, m.GPU_UTILIZATION, of(m.HW_GPU_TASK, task), older, part_of=general)
            yield f"{task} utilization", sampled.read
        yield "memory", self._memory_reader(handle, None)
        yield "temperature", self._temperature_reader()
        yield "power", self._power
        yield "fields", self._field_values
        for kind, clock in ((1, "sm"), (2, "memory")):
            question = Number("nvmlDeviceGetClockInfo", handle, ctypes.c_uint(kind))
            yield f"{clock} clock", self._one(m.GPU_CLOCK_FREQUENCY, question, 1e6, of(m.GPU_CLOCK, clock))
        yield "clock event reasons", self._throttling  # after the fields: these say which reasons they count
        yield "performance counters", self._performance

    def _one(
        self, metric: Metric, question: Callable[[], float], factor: float = 1.0, at: Attributes | None = None
    ) -> Callable[[], Iterable[Reading]]:
        series = Series(metric, self.at if at is None else at, factor)
        return lambda: (series.at(question()),)

    def _memory_reader(self, handle: Any, instance: str | None) -> Callable[[], Iterable[Reading]]:
        memory = Memory(handle)
        at = self.at
        if instance is not None:
            at = {m.HW_ID: instance, m.GPU_INDEX: self.index, m.HW_PARENT: self.uuid}

        usage, limit = Series(m.GPU_MEMORY_USAGE, at), Series(m.GPU_MEMORY_LIMIT, at)
        utilization = Series(m.GPU_MEMORY_UTILIZATION, at)

        def read() -> Iterable[Reading]:
            used, total = memory()
            if not total:  # memory is one with the host's
                return ()
            return usage.at(used), limit.at(total), utilization.at(used / total)

        return read

    def _temperature_reader(self) -> Callable[[], Iterable[Reading]]:
        return self._one(m.TEMPERATURE, Temperature(self.handle), 1.0, self._sensor("core"))

    def _power(self) -> Iterable[Reading]:
        """The mean of the driver's samples; the power of the last second where it has none."""
        milliwatts: float | None = None
        if self._power_samples is not None:
            try:
                milliwatts = self._power_samples()
            except NvmlError as error:
                if error.code not in nvml.UNSUPPORTED:
                    raise
                self._power_samples = None
        if milliwatts is None:
            milliwatts = self._power_usage()
        return (self._power_series.at(milliwatts),)

    def _field_values(self) -> Iterable[Reading]:
        try:
            values = self._fields()
        except NvmlError as error:
            if error.code in nvml.UNSUPPORTED:
                self._has_field = set()
            raise
        if self._has_field is None:
            self._drop_unsupported(set(values))
        for code in self._fields.failed.values():
            self._partly = NvmlError(code)
            if code in nvml.GONE or code in nvml.CLOSED:
                raise self._partly
        for field in _WRAPPING & self._fields.narrow & values.keys():
            values[field] = self._counters.update(field, values[field], wraps=True)
        if values.get(_MEMORY_CEL) == 0:  # the memory has no sensor
            del values[_MEMORY_CEL]
        if _UNCORRECTED in values:
            self._trouble["ecc"] = "degraded" if values[_UNCORRECTED] else "ok"
        if values.get(_FAILED):
            self._trouble["rows"] = "failed"
        elif _PENDING in values:
            self._trouble["rows"] = "degraded" if values[_PENDING] else "ok"
        by_field = self._by_field
        return [by_field[field].at(value) for field, value in values.items()]

    def _drop_unsupported(self, found: set[int]) -> None:
        """After the first look only what this GPU knows is asked."""
        for field, code in self._fields.failed.items():
            if code in nvml.UNSUPPORTED or code == _NEVER_HEARD:
                self.absent[f"field {field}"] = nvml.reason(code)
            else:
                found.add(field)
        self._has_field = found
        self._fields.keep(found)

    def _series_of_fields(self) -> dict[int, Series]:
        def errors(kind: str) -> Series:
            return Series(m.ERRORS, {**self._of_hw, m.ERROR_TYPE: kind})

        sent = self._with(m.NETWORK_IO_DIRECTION, "transmit")
        received = self._with(m.NETWORK_IO_DIRECTION, "receive")
        return {
            _CORRECTED: errors("corrected"),
            _UNCORRECTED: errors("uncorrected"),
            _MEMORY_CEL: Series(m.TEMPERATURE, self._sensor("memory")),
            _ENERGY_MJ: Series(m.ENERGY, self._of_hw, 1e-3),
            _REPLAYS: Series(m.GPU_PCIE_REPLAYS, self.at),
            _PCIE_SENT: Series(m.GPU_IO, sent),
            _PCIE_RECEIVED: Series(m.GPU_IO, received),
            _NVLINK_SENT: Series(m.GPU_NVLINK_IO, sent, 1024),
            _NVLINK_RECEIVED: Series(m.GPU_NVLINK_IO, received, 1024),
            **{field: Series(m.GPU_REMAPPED_ROWS, self._with(m.GPU_REMAP, kind)) for field, kind in _REMAPPED.items()},
            **{
                field: Series(m.GPU_THROTTLE_TIME, self._with(m.GPU_THROTTLE_REASON, reason), 1e-9)
                for reason, (_bit, field) in _REASONS.items()
                if field is not None
            },
        }

    def _throttling(self) -> Iterator[Reading]:
        """Which reasons hold the clocks down now; and for how long, of those that the driver does not count."""
        try:
            active = self._reasons()
        except NvmlError as error:
            if error.code not in nvml.UNSUPPORTED:
                raise
            active = self._older_reasons()
            self._reasons = self._older_reasons
        counted = self._has_field
        for bit, counter, is_active, time_active in self._throttle:
            yield is_active.at(1.0 if active & bit else 0.0)
            if counted is None or counter in counted:
                continue
            if active & bit and self._before:
                self._throttled_s[bit] += self._now - self._before
            yield time_active.at(self._throttled_s[bit])

    def _performance(self) -> Iterator[Reading]:
        if self._has_gpm is None:
            support = nvml.ask(self._pynvml.nvmlGpmQueryDeviceSupport, self.handle)
            self._has_gpm = bool(support.isSupportedDevice)
        if not self._has_gpm:
            raise NvmlError(3)
        if self._gpm is None:
            self._gpm = Gpm(self._pynvml, self.handle, (*_GPM_SHARES, *_GPM_RATES))
        values = self._gpm()
        for metric, value in values.items():
            if metric in _GPM_SHARES:
                yield Reading(_GPM_SHARES[metric], value / 100, self.at)
                continue
            counted, direction, field = _GPM_RATES[metric]
            if self._has_field is not None and field not in self._has_field:
                self._counters.add(counted.name + direction, value * _MIB * (self._now - self._before))
                total = self._counters.value(counted.name + direction) or 0.0
                yield Reading(counted, total, self._with(m.NETWORK_IO_DIRECTION, direction))

    def _processes(self) -> Iterator[Reading]:
        used = self._process_memory()
        for pid in self._ours.of(used, self._now):
            yield Reading(m.GPU_PROCESS_MEMORY_USAGE, used[pid], {**self.at, m.PROCESS_PID: pid})

    # -- now and then -------------------------------------------------------------------------------

    def _info(self) -> Iterator[Reading]:
        nv, handle = self._pynvml, self.handle
        texts = {
            m.HW_MODEL: self._told(nv.nvmlDeviceGetName, handle),
            m.HW_SERIAL_NUMBER: self._told(nv.nvmlDeviceGetSerial, handle),
            m.HW_DRIVER_VERSION: self._told(nv.nvmlSystemGetDriverVersion),
            m.HW_VENDOR: "NVIDIA",
        }
        pci = self._told(nv.nvmlDeviceGetPciInfo, handle)
        if pci is not None:
            texts[m.GPU_PCI_BUS_ID] = self._bus_id = str(pci.busId)
        mig = self._told(nv.nvmlDeviceGetMigMode, handle)
        if mig is not None:
            texts[m.GPU_MIG] = "on" if mig[0] else "off"
        known = {name: text for name, text in texts.items() if text}
        yield Reading(m.GPU_INFO, 1.0, {**self.at, **known})
        for instance, instance_handle in self._instances:
            name = self._told(nv.nvmlDeviceGetName, instance_handle)
            yield Reading(
                m.GPU_INFO,
                1.0,
                {
                    m.HW_ID: instance,
                    m.GPU_INDEX: self.index,
                    m.HW_PARENT: self.uuid,
                    m.HW_VENDOR: "NVIDIA",
                    m.GPU_MIG: "instance",
                    **({m.HW_MODEL: str(name)} if name else {}),
                },
            )

    def _pcie_limits(self) -> Iterator[Reading]:
        """The lower of what the GPU, the system and the slot above it have."""
        nv, handle = self._pynvml, self.handle
        widths = [self._told(nv.nvmlDeviceGetMaxPcieLinkWidth, handle), *self._slot("max_link_width")]
        generations = [
            self._told(nv.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            self._told(getattr(nv, "nvmlDeviceGetGpuMaxPcieLinkGeneration", None), handle),
            *(_PCIE_GENERATIONS.get(speed.split(" ")[0]) for speed in self._slot("max_link_speed")),
        ]
        for metric, limits in ((m.GPU_PCIE_WIDTH_LIMIT, widths), (m.GPU_PCIE_GENERATION_LIMIT, generations)):
            known = [int(limit) for limit in limits if limit]
            if known:
                yield Reading(metric, min(known), self.at)

    def _slot(self, name: str) -> list[str]:
        """A file of sysfs of the PCI device above the GPU."""
        domain, _, rest = self._bus_id.partition(":")
        try:
            above = (self._sysfs / f"bus/pci/devices/{domain[-4:]}:{rest}".lower()).resolve(strict=True).parent
            text = (above / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError, RuntimeError):
            return []
        return [text] if text[:1].isdigit() and text != "255" else []

    def _temperature_limits(self) -> Iterator[Reading]:
        for threshold, sensor, kind in _THRESHOLDS:
            limit = self._told(self._pynvml.nvmlDeviceGetTemperatureThreshold, self.handle, threshold)
            if limit:
                yield Reading(m.TEMPERATURE_LIMIT, limit, {**self._sensor(sensor), m.HW_LIMIT_TYPE: kind})

    def _power_limit(self) -> Iterable[Reading]:
        milliwatts = nvml.ask(self._pynvml.nvmlDeviceGetEnforcedPowerLimit, self.handle)
        return (Reading(m.GPU_POWER_LIMIT, milliwatts / 1000, self._of_hw),)

    def _told(self, function: Callable[..., Any] | None, *arguments: Any) -> Any:
        """An answer, None where there is none: one of several that a question needs."""
        if function is None:
            return None
        try:
            return nvml.ask(function, *arguments)
        except NvmlError as error:
            if error.code in nvml.GONE or error.code in nvml.CLOSED:
                raise
            self._partly = error
            return None

    # -- attributes ---------------------------------------------------------------------------------

    def _with(self, name: str, value: str) -> Attributes:
        return {**self.at, name: value}

    def _sensor(self, name: str) -> dict[str, AttributeValue]:
        return {m.HW_ID: f"{self.uuid}/{name}", m.HW_PARENT: self.uuid, m.GPU_INDEX: self.index}

    def _xid_state(self) -> str:
        return "ok" if self._events is None else self._events.state(self.uuid, self._now)


def status(at: Attributes, state: str) -> list[Reading]:
    """hw.status of a GPU: 1 for *state*, 0 for the others."""
    return [Reading(m.STATUS, float(state == name), {**at, m.HW_TYPE: "gpu", m.HW_STATE: name}) for name in STATES]
