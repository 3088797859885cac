"""NVIDIA GPUs through NVML."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import AttributeValue, Reading
from gpumon.system import nvml
from gpumon.system.gpu import Gpu, status
from gpumon.system.gpu_events import Event, GpuEvents
from gpumon.system.hangs import Call, Caller, HangsError
from gpumon.system.nvml import NvmlError
from gpumon.system.processes import OurProcesses
from gpumon.system.visible_gpus import Listed, visible

_RETRY_S: Final = 60.0  # where there is no GPU
_GONE_RETRY_S: Final = 30.0  # a GPU that was lost may come back after a reset
_START_S: Final = 8.0  # the driver may have to wake up first
_HANG_S: Final = 5.0  # below the sampler's limit, so that it is one GPU that hangs and not the collector
_NEXT_HANG_S: Final = 0.5  # of further GPUs in the same look


@dataclass(slots=True, eq=False)
class _Place:
    """Where the driver lists a GPU. `gpu` is None while it cannot be asked, and `reason` says why."""

    index: int
    uuid: str
    handle: Any = None
    may_use: frozenset[str] | None = None  # of its MIG instances; None: all, also those to come
    gpu: Gpu | None = None
    reason: str = ""
    is_gone: bool = False
    is_forbidden: bool = False  # to this process; CUDA does not count it, NVML may (nvmlDeviceGetCount_v2)
    retry_at: float = 0.0
    hangs: bool = False

    @property
    def name(self) -> str:
        return self.uuid or f"GPU {self.index}"  # the UUID of one that was lost from the start is not known


@dataclass(slots=True, eq=False)
class _Look:
    """One round over GPUs, on a thread that may be left behind."""

    places: list[_Place]
    now: float
    readings: list[Reading] = field(default_factory=list)
    at: _Place | None = None  # the one that is asked now
    since: float = field(default_factory=time.monotonic)  # when that began
    is_abandoned: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `at`, `readings` and `is_abandoned`
    closed: str = ""  # why NVML has to be started again


@register("gpu")
class GpuCollector:
    """What NVML tells of each GPU that this process may use.

    Source: NVML (nvidia-ml-py): buffered samples for load and power, field values for counters, GPM for
        multiprocessors and tensor cores.
    Units: see `system.gpu.Gpu`.
    Shape: one GPU that is lost or hangs hides no other: its readings end, `gpumon.collector.up` with its
        `hw.id` is 0 and says why. XIDs come as events: `take_events`.
    """

    interval_s = 1.0
    may_block = True

    def __init__(
        self,
        config: Config | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
        hang_s: float = _HANG_S,
    ) -> None:
        self._environment = environment
        self._hang_s = hang_s
        self._nvml: Any = None
        self._caller = Caller("gpumon-gpu-nvml")
        self._starting: Call | None = None
        self._wanted = environment.get("CUDA_VISIBLE_DEVICES")
        self._places: list[_Place] = []
        self._xids = GpuEvents()
        self._ours = OurProcesses()
        self._pid = os.getpid()
        self._missing: tuple[float, NoDataError] | None = None

    @property
    def events(self) -> Iterable[Event]:
        """XIDs that nobody took yet."""
        return self._xids.events

    def take_events(self) -> list[Event]:
        """XIDs since the last call: (time in ns since 1970, "gpumon.gpu.xid", text, attributes)."""
        return self._xids.take()

    @property
    def cpu_ns(self) -> int:
        """CPU time of the thread that asks."""
        return self._caller.cpu_ns

    def missing(self) -> dict[str, dict[str, str]]:
        """GPU -> question -> why it has no answer."""
        found = {}
        for place in self._places:
            if place.gpu is None:
                found[place.name] = {"GPU": place.reason}
            else:
                found[place.name] = {**place.gpu.absent, **place.gpu.failed}
        return found

    def collect(self) -> Iterable[Reading]:
        self._start()
        waiting = [place for place in self._places if not place.hangs]
        limit_s = self._hang_s
        while waiting:
            look = _Look(waiting, time.monotonic())
            try:
                self._wait(look, limit_s)
                waiting = []
            except HangsError:
                waiting = self._abandon(look)
                limit_s = min(limit_s, _NEXT_HANG_S)
            yield from look.readings
            if look.closed:
                self._nvml = None
                self._xids.restart()
                raise CollectorError(f"NVML: {look.closed}")
        yield from self._states()

    # -- starting -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start NVML and list the GPUs, again where CUDA_VISIBLE_DEVICES changed: a program may set it late.

        Never in a fork, which would touch its parent's handles.
        """
        if self._pid != os.getpid():
            raise NoDataError("NVML: in use by the parent of this process")
        if (wanted := self._environment.get("CUDA_VISIBLE_DEVICES")) != self._wanted:
            self._wanted, self._nvml, self._missing = wanted, None, None
        if self._nvml is not None:
            return
        if self._missing is not None and time.monotonic() - self._missing[0] < _RETRY_S:
            raise self._missing[1].with_traceback(None)
        wait_s = 0.1
        if self._starting is None:
            self._starting, wait_s = self._caller.start(self._list), _START_S
        try:
            self._nvml, self._places = self._starting.result(wait_s)
        except HangsError:
            raise CollectorError("NVML: no answer: the call hangs") from None
        except NoDataError as error:
            self._missing, self._starting = (time.monotonic(), error), None
            self._caller.leave_behind()
            raise
        except NvmlError as error:
            self._starting = None
            raise CollectorError(f"NVML: {error}") from None
        except CollectorError:
            self._starting = None
            raise
        self._starting = None

    def _list(self) -> tuple[Any, list[_Place]]:
        """NVML and the GPUs that this process may use."""
        pynvml = nvml.start()
        count = nvml.ask(pynvml.nvmlDeviceGetCount)
        if not count:
            raise NoDataError("NVML: no GPU")
        places = [_place(pynvml, index) for index in range(count)]
        places = [place for place in places if not place.is_forbidden] or places
        listed = [
            Listed(number, place.uuid, tuple(uuid for uuid, _ in _instances(pynvml, place.handle)))
            for number, place in enumerate(places)
        ]
        found = []
        for seen in visible(listed, self._environment):
            place = places[seen.gpu.index]
            place.may_use = None if seen.instances is None else frozenset(seen.instances)
            self._open(pynvml, place)
            found.append(place)
        if not found:
            raise NoDataError("NVML: CUDA_VISIBLE_DEVICES leaves no GPU")
        return pynvml, found

    def _open(self, pynvml: Any, place: _Place) -> None:
        if place.handle is None:
            return
        place.gpu = Gpu(
            pynvml,
            place.handle,
            place.index,
            place.uuid,
            instances=partial(_instances, pynvml, place.handle, place.may_use),
            events=self._xids,
            ours=self._ours,
        )
        try:
            self._xids.listen(pynvml, place.handle, place.gpu.at)
        except NvmlError as error:
            place.gpu.absent["XIDs"] = str(error)

    # -- asking -------------------------------------------------------------------------------------

    def _ask(self, look: _Look) -> None:
        """Ask one GPU after the other; what an abandoned look still gets to hear is dropped."""
        for place in look.places:
            look.at, look.since = place, time.monotonic()
            try:
                readings = self._one(place, look.now)
            except NvmlError as error:
                readings = []
                place.reason = str(error)
                if error.code in nvml.CLOSED:
                    look.closed = str(error)
            with look.lock:
                if look.is_abandoned:
                    place.hangs = False
                    return
                look.readings += readings
                look.at = None
            if look.closed:
                return

    def _wait(self, look: _Look, limit_s: float) -> None:
        """Let another thread have the look.

        Raises:
            HangsError: one GPU alone took *limit_s*; that many are slow together is no hang.
        """
        call = self._caller.start(lambda: self._ask(look))
        while True:
            try:
                call.result(max(0.01, look.since + limit_s - time.monotonic()))
                return
            except HangsError:
                if time.monotonic() - look.since >= limit_s:
                    raise

    def _one(self, place: _Place, now: float) -> list[Reading]:
        """The readings of a GPU; of one that was lost, whether it is back.

        Raises:
            NvmlError: it tells nothing.
        """
        if place.gpu is None:
            if now < place.retry_at:
                return []
            place.retry_at = now + _GONE_RETRY_S
            again = _place(self._nvml, place.index)
            if again.handle is None:
                place.reason, place.is_gone = again.reason, again.is_gone
                return []
            place.handle, place.uuid = again.handle, again.uuid
            self._open(self._nvml, place)
        assert place.gpu is not None
        try:
            readings = place.gpu.read(now)
        except NvmlError as error:
            if error.code in nvml.GONE:
                place.gpu, place.is_gone, place.retry_at = None, True, now + _GONE_RETRY_S
            raise
        place.reason, place.is_gone = "", False
        return readings

    def _abandon(self, look: _Look) -> list[_Place]:
        """Leave a GPU that hangs to its thread; return those that come after it."""
        self._caller.leave_behind()
        with look.lock:
            look.is_abandoned = True
            place = look.at
            if place is None:  # between two GPUs: slow, but nothing hangs
                return []
            asking = place.gpu.asking if place.gpu is not None else ""
            place.hangs, place.reason = True, f"no answer: {asking or 'the call'} hangs"
        return look.places[look.places.index(place) + 1 :]

    def _states(self) -> Iterator[Reading]:
        """`gpumon.collector.up` of every GPU that is not well, and `hw.status` of one that is gone.

        Raises:
            CollectorError: not one GPU can be read.
        """
        for place in self._places:
            failed = place.gpu.failed if place.gpu is not None else {}
            if not place.reason and not failed:
                continue
            at: dict[str, AttributeValue] = {m.HW_ID: place.name}
            if place.is_gone:
                yield from status({**at, m.GPU_INDEX: place.index}, "failed")
            if place.reason:
                yield Reading(m.COLLECTOR_UP, 0.0, {**at, m.REASON: place.reason})
            else:
                told = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
                yield Reading(m.COLLECTOR_UP, 1.0, {**at, m.REASON: told})
        reasons = [f"{place.name}: {place.reason}" for place in self._places if place.reason]
        if len(reasons) == len(self._places):
            raise CollectorError("NVML: " + "; ".join(reasons))


def _place(pynvml: Any, index: int) -> _Place:
    """A GPU as the driver lists it; without handle and with a reason where it does not answer."""
    try:
        handle = nvml.ask(pynvml.nvmlDeviceGetHandleByIndex, index)
        uuid = nvml.ask(pynvml.nvmlDeviceGetUUID, handle)
        return _Place(index, uuid, handle)
    except NvmlError as error:
        if error.code in nvml.CLOSED:
            raise
        is_forbidden = error.code == nvml.NO_PERMISSION
        return _Place(index, "", reason=str(error), is_gone=error.code in nvml.GONE, is_forbidden=is_forbidden)


def _instances(pynvml: Any, handle: Any, may_use: frozenset[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(UUID, handle) of the MIG instances of a GPU, of those in *may_use* or of all.

    Raises:
        NvmlError: the GPU is gone, or NVML is closed.
    """
    if handle is None:
        return
    try:
        is_on = nvml.ask(pynvml.nvmlDeviceGetMigMode, handle)[0]
        count = nvml.ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) if is_on else 0
    except NvmlError as error:
        if error.code in nvml.GONE or error.code in nvml.CLOSED:
            raise
        return
    for place in range(count):
        try:
            instance = nvml.ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            uuid = nvml.ask(pynvml.nvmlDeviceGetUUID, instance)
        except NvmlError:
            continue  # a place that no instance takes
        if may_use is None or uuid in may_use:
            yield uuid, instance
