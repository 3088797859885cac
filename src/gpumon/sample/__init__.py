"""`gpumon sample`: GPU and disk readings as rows on one time line, for scripts."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from gpumon.collectors.base import Collector, registered
from gpumon.collectors.disk import DiskCollector
from gpumon.config import Config
from gpumon.errors import NoDataError
from gpumon.sample.fields import DEFAULT, expand, known, parse
from gpumon.sample.output import Format, Output, RotatedFile, Stdout
from gpumon.sample.waiting import Interruptible, Wait, grid
from gpumon.sample.window import PATIENCE_S, Look, Source

LOOK_S: Final = 1.0  # gauges are means over looks this far apart, as in a recorded run
MAX_LOOKS: Final = 60  # per tick
_CALLED: Final = {"gpu": "GPU", "disk": "disk"}
OPENING_S: Final = 15.0  # a driver that nobody has open takes its time at first


def sample(
    names: Sequence[str] = (),
    *,
    every_s: float = 5.0,
    form: str = "csv",
    count: int | None = None,
    out: Path | None = None,
    rotate_mb: float = 64.0,
    devices: Sequence[str] = (),
    collectors: Mapping[str, Collector] | None = None,
) -> None:
    """Write one row per device and tick, until *count* ticks, SIGINT or SIGTERM.

    Args:
        names: fields; the default is what most people ask nvidia-smi and iostat for.
        form: `csv` or `json`.
        out: append to this file, rotated at *rotate_mb* (MiB; 0: never), instead of writing to stdout.
        devices: patterns of the devices to show (`nvme*`, `gpu0`, a UUID); default all GPUs and whole disks.
        collectors: what to read, by type of device (gpu, disk).
    Raises:
        ValueError: an unknown field.
        NoDataError: there is no such device here.
    """
    fields = parse(names or DEFAULT)
    types = {field.type for field in fields}
    wanted = [type for type in ("gpu", "disk") if type in types] or ["gpu", "disk"]
    sources = [Source(type, collector, devices) for type, collector in _collectors(wanted, devices, collectors).items()]
    output: Output = RotatedFile(out, int(rotate_mb * 2**20)) if out else Stdout()
    with Interruptible(output.descriptor) as wait:
        _open(sources, devices, is_gpu_named=bool(names))
        _write(sources, Format(form, expand(fields, _seen(sources))), output, wait, every_s, count)


def describe() -> Iterator[str]:
    """The lines of `--list`: every field with its unit, the tool that the name is from, and what it means."""
    fields = list(known())
    width = max(len(field.name) for field in fields)
    yield f"{'field':{width}}  {'unit':13}  {'name from':10}  meaning"
    for field in fields:
        yield f"{field.name:{width}}  {field.unit:13}  {field.tool:10}  {field.meaning}"


def _collectors(
    wanted: Sequence[str], devices: Sequence[str], given: Mapping[str, Collector] | None
) -> dict[str, Collector]:
    if given is not None:
        return {type: given[type] for type in wanted if type in given}
    config = Config()
    made: dict[str, Collector] = {}
    for type in wanted:
        if type == "disk":
            made[type] = DiskCollector(config, only=devices, discards_and_flushes=True)
        else:
            made[type] = registered()[type](config)
    return made


def _open(sources: list[Source], devices: Sequence[str], *, is_gpu_named: bool) -> None:
    """Look for the first time: what has no device here is left out, with one line where somebody would miss it."""
    for source in list(sources):
        source.look(OPENING_S)
        if source.reason and not source.devices():
            sources.remove(source)
            if not sources:
                raise NoDataError(f"no {_CALLED[source.type]}: {source.reason}")
            if source.type == "gpu" and (is_gpu_named or sys.stderr.isatty()):
                print(f"gpumon: no GPU ({source.reason}); disks alone", file=sys.stderr)  # noqa: T201
    if not any(source.devices() for source in sources):
        chosen = f"no device is called {' or '.join(devices)}" if devices else "no device to read"
        raise NoDataError(chosen)


def _seen(sources: Sequence[Source]) -> Iterator[tuple[str, Look]]:
    for source in sources:
        for device in source.devices():
            yield source.type, source.last(device)


def _write(
    sources: Sequence[Source], form: Format, output: Output, wait: Wait, every_s: float, count: int | None
) -> None:
    looks = min(MAX_LOOKS, math.ceil(every_s / LOOK_S))
    written = 0
    output.begin(form.header)
    for is_tick in grid(every_s, looks, wait):
        at_s = time.time()
        for source in reversed(sources):  # disks first: they never wait
            source.look(min(PATIENCE_S, every_s / 2))
        if not is_tick:
            continue
        output.write(form.rows([window for source in sources for window in source.windows(at_s)]))
        written += 1
        if written == count:
            return


__all__ = ["describe", "sample"]
