"""What can be asked for: metrics by our names, readings by the names of nvidia-smi and iostat.

A field in the name of another tool has that tool's unit and formula; a metric has the catalogue's.
What is in no metric is no field: nothing is computed that a collector did not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from gpumon import metrics as m
from gpumon.metrics import Metric
from gpumon.sample.window import Look, Window

Value = float | str | None

DEFAULT: Final = (
    "utilization.gpu", "memory.used", "memory.total", "temperature.gpu", "power.draw", "clocks.sm",
    "r/s", "rkB/s", "r_await", "w/s", "wkB/s", "w_await", "aqu-sz", "%util",
)  # fmt: skip
"""What most people ask nvidia-smi and iostat for."""

_ALWAYS: Final = ("time", "device", "type")  # columns of every row
_GPU_METRICS: Final = (
    "hw.gpu.",
    "gpumon.gpu.",
    "hw.temperature",
    "hw.power",
    "hw.energy",
    "hw.errors",
    "hw.status",
    "hw.fan.",
)
_DISK_METRICS: Final = ("system.disk.", "gpumon.disk.")
_ELSEWHERE: Final = (
    ".info",
    "gpumon.disk.unloaded.await",
    "gpumon.disk.unloaded.queue",
    "gpumon.gpu.process.memory.usage",
)
_METRIC: Final = re.compile(r"(?P<name>[a-z_0-9.]+)(?:\[(?P<parts>[^\]]+)\])?(?P<rate>/s)?")
_DIRECTIONS: Final = ("read", "write")


@dataclass(frozen=True, slots=True)
class Field:
    """One column. `digits` behind the point; None: as many as the value has."""

    name: str
    tool: str  # gpumon, nvidia-smi, iostat
    type: str  # gpu, disk; any: of all rows
    unit: str
    meaning: str
    value: Callable[[Window], Value]
    digits: int | None = None
    metric: str = ""  # a field by our name: the metric, whose series become columns where none was chosen
    parts: tuple[str, ...] = ()

    def of(self, window: Window) -> Value:
        """The value to print; None where this device has none."""
        if self.type not in (window.type, "any"):
            return None
        value = self.value(window)
        if isinstance(value, str) or value is None:
            return value
        if self.digits is None:
            return int(value) if value == int(value) else float(f"{value:.9g}")
        return round(value, self.digits) if self.digits else round(value)

    def text(self, value: Value) -> str:
        """A cell of a table; empty where there is no value."""
        if isinstance(value, float) and self.digits is not None:
            return f"{value:.{self.digits}f}"
        return "" if value is None else str(value)


def parse(names: Iterable[str]) -> list[Field]:
    """The fields of these names, once each; commas separate names too.

    Raises:
        ValueError: no field has that name; the text has the nearest ones.
    """
    single = [name.strip() for text in names for name in _split(text)]
    wanted = [name for name in dict.fromkeys(single) if name and name not in _ALWAYS]
    return [_field(name) for name in wanted]


def _split(text: str) -> list[str]:
    """At commas, but not at those inside brackets."""
    return re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", text)


def _field(name: str) -> Field:
    if name in TOOLS:
        return TOOLS[name]
    match = _METRIC.fullmatch(name)
    metric = _metrics().get(match["name"]) if match else None
    if match is None or metric is None:
        raise ValueError(f"unknown field {name!r}{_nearest(name)} (`gpumon sample --list` has all)")
    parts = tuple(part.strip() for part in (match["parts"] or "").split(",") if part.strip())
    keys = _keys(metric)
    if parts and not keys:
        raise ValueError(f"{name!r}: {metric.name} has one value per device, nothing to choose by [{match['parts']}]")
    if keys == [m.DISK_IO_DIRECTION] and not set(parts) <= set(_DIRECTIONS):
        raise ValueError(f"{name!r}: expected [read] or [write]")
    if match["rate"] and metric.kind != "counter":
        raise ValueError(f"{name!r}: {metric.name} is a {metric.kind}, only counters have a rate per second")
    return _of_metric(metric, parts, is_rate=bool(match["rate"]))


def _nearest(name: str) -> str:
    import difflib

    known = [*TOOLS, *_metrics()]
    near = difflib.get_close_matches(name.partition("[")[0], known, 3, 0.6)
    return f": did you mean {', '.join(near)}?" if near else ""


def expand(fields: Iterable[Field], looks: Iterable[tuple[str, Look]]) -> list[Field]:
    """One column per series where a metric has several and none was chosen: `gpumon.disk.await[read]`, `…[write]`.

    *looks*: (type of device, what it said), of all devices.
    """
    seen = list(looks)
    columns = []
    for field in fields:
        found: set[tuple[str, ...]] = set()
        if field.metric:
            found = {
                tuple(sorted(parts))
                for type, look in seen
                if type == field.type
                for parts in look.series.get(field.metric, {})
                if set(field.parts) <= parts
            }
        if len(found) > 1 or (found and not field.parts and next(iter(found))):
            columns += [_chosen(field, parts) for parts in sorted(found)]
        else:
            columns.append(field)
    return columns


def _chosen(field: Field, parts: tuple[str, ...]) -> Field:
    return _of_metric(m.BY_NAME[field.metric], parts, is_rate=field.name.endswith("/s"))


def known() -> Iterator[Field]:
    """Every field there is, other spellings of one left out, for `--list`."""
    yield from (field for field in TOOLS.values() if field.meaning)
    for metric in _metrics().values():
        keys = _keys(metric)
        choice = f"[{'|'.join(_DIRECTIONS) if keys == [m.DISK_IO_DIRECTION] else ','.join(keys)}]" if keys else ""
        field = _of_metric(metric, (), is_rate=False)
        yield replace(field, name=f"{metric.name}{choice}")


# -- ours -----------------------------------------------------------------------------------------------


def _metrics() -> dict[str, Metric]:
    """The metrics of GPUs and disks that are numbers."""
    wanted = _GPU_METRICS + _DISK_METRICS
    return {
        metric.name: metric
        for metric in m.CATALOGUE
        if metric.name.startswith(wanted) and not metric.name.endswith(_ELSEWHERE) and metric.kind != "histogram"
    }


def _keys(metric: Metric) -> list[str]:
    """The attributes that tell a device's series apart."""
    parts = [name for name in metric.attributes if name not in (m.SYSTEM_DEVICE, m.HW_ID, m.HW_TYPE, m.GPU_INDEX)]
    if metric.name in ("hw.temperature", "hw.temperature.limit"):
        return ["core|memory", *(name for name in parts if name != m.HW_PARENT)]
    return [name for name in parts if name != m.HW_PARENT]


def _of_metric(metric: Metric, parts: tuple[str, ...], *, is_rate: bool) -> Field:
    name = f"{metric.name}[{','.join(parts)}]" if parts else metric.name
    type = "disk" if metric.name.startswith(_DISK_METRICS) else "gpu"

    def value(window: Window) -> Value:
        if is_rate:
            return window.rate(metric.name, *parts)
        return (window.mean if metric.kind == "gauge" else window.latest)(metric.name, *parts)

    meaning = (
        f"{metric.description} A counter; with /s: per second." if metric.kind == "counter" else metric.description
    )
    unit = f"{metric.unit}/s" if is_rate else metric.unit
    return Field(f"{name}/s" if is_rate else name, "gpumon", type, unit, meaning, value, None, metric.name, parts)


# -- iostat's -------------------------------------------------------------------------------------------


def _ratio(above: float | None, below: float | None, factor: float = 1.0) -> float | None:
    """A mean over requests; absent where there were none, where iostat prints 0.00."""
    return None if above is None or not below else factor * above / below


@dataclass(frozen=True, slots=True)
class _Requests:
    """The counters of one kind of requests, and iostat's letter for it."""

    letter: str
    word: str
    operations: Metric
    time: Metric
    merged: Metric | None
    size: Metric | None
    parts: tuple[str, ...] = ()

    def fields(self) -> Iterator[Field]:
        """sysstat's formulas (rd_stats.c, iostat.c): Δcounter ÷ Δtime, or Δcounter ÷ Δoperations."""
        letter, word, parts = self.letter, self.word, self.parts
        words = "flushes" if word == "flush" else f"{word}s"
        operations, time = self.operations.name, self.time.name
        yield _io(f"{letter}/s", "1/s", f"{words} per second, after merging", lambda w: w.rate(operations, *parts))
        if self.size is not None and self.merged is not None:
            size, merged = self.size.name, self.merged.name
            verb = "discarded" if letter == "d" else f"{'written' if letter == 'w' else 'read'}"
            yield _io(
                f"{letter}kB/s", "kB/s", f"kB (1024 bytes) {verb} per second", lambda w: _kb(w.rate(size, *parts))
            )
            yield _io(f"{letter}rqm/s", "1/s", f"{words} merged per second", lambda w: w.rate(merged, *parts))

            def merged_percent(window: Window) -> float | None:
                queued, done = window.growth(merged, *parts), window.growth(operations, *parts)
                return None if queued is None or done is None else _ratio(queued, queued + done, 100)

            yield _io(f"%{letter}rqm", "%", f"{words} that were merged, of all", merged_percent)
        yield _io(
            f"{letter}_await",
            "ms",
            f"mean time of a {word}, queue included; empty without any",
            lambda w: _ratio(w.growth(time, *parts), w.growth(operations, *parts), 1e3),
        )
        if self.size is not None:
            yield _io(
                f"{letter}areq-sz",
                "kB",
                f"mean size of a {word} in kB (1024 bytes); empty without any",
                lambda w: _ratio(w.growth(size, *parts), w.growth(operations, *parts), 1 / 1024),
            )


def _io(name: str, unit: str, meaning: str, value: Callable[[Window], Value]) -> Field:
    return Field(name, "iostat", "disk", unit, meaning, value, digits=2)


def _kb(bytes_: float | None) -> float | None:
    return None if bytes_ is None else bytes_ / 1024


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio


def _iostat() -> Iterator[Field]:
    kinds = [
        _Requests(
            direction[0], direction, m.DISK_OPERATIONS, m.DISK_OPERATION_TIME, m.DISK_MERGED, m.DISK_IO, (direction,)
        )
        for direction in _DIRECTIONS
    ]
    discards = (m.DISK_DISCARD_OPERATIONS, m.DISK_DISCARD_TIME, m.DISK_DISCARD_MERGED, m.DISK_DISCARD_IO)
    kinds.append(_Requests("d", "discard", *discards))
    kinds.append(_Requests("f", "flush", m.DISK_FLUSH_OPERATIONS, m.DISK_FLUSH_TIME, None, None))
    for kind in kinds:
        yield from kind.fields()
    yield _io("aqu-sz", "1", "mean number of requests in flight", lambda w: w.mean(m.DISK_QUEUE_LENGTH.name))
    yield _io("%util", "%", "share of time with requests in flight", lambda w: _percent(w.rate(m.DISK_IO_TIME.name)))


# -- nvidia-smi's ---------------------------------------------------------------------------------------


def _smi(names: str, unit: str, meaning: str, value: Callable[[Window], Value], digits: int = 0) -> Iterator[Field]:
    """A field under each of nvidia-smi's *names* for it; whole numbers but for power, as nvidia-smi prints them."""
    first, *others = names.split()
    also = f" (also {', '.join(others)})" if others else ""
    yield Field(first, "nvidia-smi", "gpu", unit, meaning + also, value, digits)
    for name in others:
        yield Field(name, "nvidia-smi", "gpu", unit, "", value, digits)


def _scaled(
    names: str, unit: str, meaning: str, metric: Metric, *parts: str, factor: float = 1.0, digits: int = 0
) -> Iterator[Field]:
    def value(window: Window) -> Value:
        found = (window.mean if metric.kind == "gauge" else window.latest)(metric.name, *parts)
        return None if found is None else found * factor

    yield from _smi(names, unit, meaning, value, digits)


def _told(names: str, meaning: str, key: str) -> Iterator[Field]:
    def value(window: Window) -> Value:
        told = window.attribute(m.GPU_INFO.name, key)
        return None if told is None else str(told)

    yield from _smi(names, "", meaning, value)


def _throttled(reason: str, name: str, meaning: str) -> Iterator[Field]:
    def value(window: Window) -> Value:
        share = window.mean(m.GPU_THROTTLE_ACTIVE.name, reason)
        return None if share is None else "Active" if share > 0 else "Not Active"

    yield from _smi(f"clocks_event_reasons.{name} clocks_throttle_reasons.{name}", "", meaning, value)


def _local_time(window: Window) -> Value:
    return datetime.fromtimestamp(window.at_s).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]


def _nvidia_smi() -> Iterator[Field]:
    percent, mib, mhz = 100.0, 2.0**-20, 1e-6
    yield Field("timestamp", "nvidia-smi", "any", "", "the row's time as nvidia-smi writes it: local", _local_time)
    yield from _smi("index", "", "number of the GPU, in the order of the PCI bus", lambda w: w.looks[-1].index)
    yield from _smi("uuid gpu_uuid", "", "UUID of the GPU", lambda w: w.looks[-1].uuid)
    yield from _told("name gpu_name", "product name", m.HW_MODEL)
    yield from _told("serial gpu_serial", "serial number of the board", m.HW_SERIAL_NUMBER)
    yield from _told("driver_version", "version of the driver", m.HW_DRIVER_VERSION)
    yield from _told("pci.bus_id gpu_bus_id", "address on the PCI bus", m.GPU_PCI_BUS_ID)
    busy = m.GPU_UTILIZATION
    yield from _scaled(
        "utilization.gpu", "%", "share of time a kernel ran, mean of the interval", busy, "general", factor=percent
    )
    yield from _scaled(
        "utilization.memory", "%", "share of time the memory controller was busy", m.GPU_MEMORY_ACTIVITY, factor=percent
    )
    yield from _scaled(
        "utilization.encoder", "%", "share of time the video encoder was busy", busy, "encoder", factor=percent
    )
    yield from _scaled(
        "utilization.decoder", "%", "share of time the video decoder was busy", busy, "decoder", factor=percent
    )
    yield from _scaled("memory.used", "MiB", "memory in use, the driver's own left out", m.GPU_MEMORY_USAGE, factor=mib)
    yield from _scaled("memory.total", "MiB", "size of the memory", m.GPU_MEMORY_LIMIT, factor=mib)
    yield from _scaled("temperature.gpu", "C", "temperature of the GPU", m.TEMPERATURE, "core")
    yield from _scaled("temperature.memory", "C", "temperature of the memory", m.TEMPERATURE, "memory")
    yield from _scaled("power.draw", "W", "power drawn, mean of the interval", m.POWER, digits=2)
    yield from _scaled("power.limit enforced.power.limit", "W", "power limit in force", m.GPU_POWER_LIMIT, digits=2)
    clock = m.GPU_CLOCK_FREQUENCY
    yield from _scaled("clocks.sm clocks.current.sm", "MHz", "clock of the multiprocessors", clock, "sm", factor=mhz)
    yield from _scaled("clocks.mem clocks.current.memory", "MHz", "clock of the memory", clock, "memory", factor=mhz)
    generation, width = m.GPU_PCIE_GENERATION, m.GPU_PCIE_WIDTH
    yield from _scaled("pcie.link.gen.current pcie.link.gen.gpucurrent", "", "PCIe generation in use", generation)
    yield from _scaled("pcie.link.gen.max", "", "PCIe generation that is possible", m.GPU_PCIE_GENERATION_LIMIT)
    yield from _scaled("pcie.link.width.current", "", "PCIe lanes in use", width)
    yield from _scaled("pcie.link.width.max", "", "PCIe lanes that are possible", m.GPU_PCIE_WIDTH_LIMIT)
    yield from _scaled("fan.speed", "%", "fan speed, of its maximum", m.FAN_SPEED_RATIO, factor=percent)
    for kind in ("corrected", "uncorrected"):
        yield from _scaled(f"ecc.errors.{kind}.volatile.total", "", f"{kind} memory errors", m.ERRORS, kind)
    for reason, name, meaning in (
        ("sw_power_cap", "sw_power_cap", "Active where the power limit held clocks down in the interval"),
        ("hw_slowdown", "hw_slowdown", "the hardware held clocks down"),
        ("hw_thermal_slowdown", "hw_thermal_slowdown", "heat made the hardware hold clocks down"),
        ("hw_power_brake", "hw_power_brake_slowdown", "the power supply's brake held clocks down"),
        ("sw_thermal_slowdown", "sw_thermal_slowdown", "heat made the driver hold clocks down"),
        ("sync_boost", "sync_boost", "a slower GPU of the group held clocks down"),
    ):
        yield from _throttled(reason, name, meaning)


TOOLS: Final[dict[str, Field]] = {field.name: field for field in (*_nvidia_smi(), *_iostat())}
"""The fields in the names of nvidia-smi and iostat."""
