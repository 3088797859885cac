"""The health of physical disks, as their own firmware tells it."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, GpumonError, NoDataError
from gpumon.metrics import AttributeValue, Reading
from gpumon.rules import thresholds as limit
from gpumon.rules.disk_health import STATES, Vitals, state_of
from gpumon.system import smart, smartctl
from gpumon.system.block import BlockDevices
from gpumon.system.smart_memory import FILE, Growth, SmartMemory
from gpumon.system.smartctl import Hung, Target
from gpumon.system.state import state_dir

_INTERVAL_S: Final = 300.0
_TICK_S: Final = 30.0  # between polls: ages grow, late answers come in, new disks are seen
_SOON_S: Final = 1.0
_RESCAN_S: Final = 600.0
_WAIT_S: Final = 3.0  # for the answers of one round; a slower disk's comes with a later one
_LAST_WAIT_S: Final = 0.7  # the same at the end of a run, which waits no longer than a second
_FRESH_S: Final = 15.0
_SILENT_POLLS: Final = 2  # without an answer: a disk that answered before has failed
_NO_DISK: Final = "smartctl lists no physical disk"


class _Disk:
    """One disk that smartctl lists, with its last answer and the question in progress."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.drive: smart.Drive | None = None
        self.id = ""
        self.growth: dict[str, Growth] = {}
        self.read_at = 0.0  # monotonic, of the last good answer
        self.due = 0.0
        self.problem = ""  # why there is no answer
        self.is_asleep = False
        self.silent_polls = 0
        self.stuck: subprocess.Popen[bytes] | None = None
        self.asked: threading.Thread | None = None
        self.answer: Any = None  # a document, or why there is none
        self.devices: tuple[str, ...] = ()
        self.turns = True  # as far as the kernel knows

    @property
    def name(self) -> str:
        return self.target.name

    def ask(self, timeout_s: float) -> threading.Thread:
        """Question the disk in a thread of its own: a dying one may take its time and delays no other."""
        drive = self.drive
        # Firmware of many SSDs says "asleep" for ever: only what turns can be left asleep.
        leave_asleep = drive.is_rotating is not False if drive else self.turns
        ssd_log = drive is not None and drive.is_rotating is False and drive.used is None
        target = self.target
        if drive and drive.type and target.type == "auto" and not self.problem:
            # The kind that answered last spares the disk a detection that might wake it.
            target = dataclasses.replace(target, type=drive.type)

        def run() -> None:
            try:
                self.answer = smartctl.read(target, leave_asleep=leave_asleep, ssd_log=ssd_log, timeout_s=timeout_s)
            except GpumonError as error:
                self.answer = error
            except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to
                self.answer = CollectorError(f"{type(error).__name__}: {error}")

        self.answer = None
        self.asked = threading.Thread(target=run, name="gpumon-smartctl", daemon=True)
        self.asked.start()
        return self.asked

    def may_be_asked(self) -> bool:
        """Never two questions at once; none while one hangs in the kernel."""
        if self.stuck is not None and self.stuck.poll() is not None:
            self.stuck = None
        return self.asked is None and self.stuck is None


@register("smart")
class SmartCollector:
    """Every physical disk's SMART data, each by one run of smartctl.

    Source: `smartctl --json=co` (smartmontools), through pySMART; a state file for growth across restarts.
    Units: °C, bytes; percentages -> shares; raw values as they are.
    Shape: per disk its attributes, counters and their growth, wear, size, temperature, status, age, facts;
    `gpumon.collector.up` with the reason for each that cannot be read. hw.id is the serial number, the WWN
    where that tells more, smartctl's name of the disk where there is neither.
    """

    interval_s = _INTERVAL_S
    may_block = True
    per_host = True  # every rank would run a smartctl per disk

    def __init__(
        self,
        config: Config | None = None,
        *,
        state: Path | None = None,
        timeout_s: float = smartctl.TIMEOUT_S,
        root: str | Path = "/",
    ) -> None:
        intervals = config.intervals if config else {}
        self._interval_s = float(intervals.get("smart", _INTERVAL_S))
        self._timeout_s = timeout_s
        self._memory = SmartMemory(state or state_dir() / FILE)
        self._disks: dict[str, _Disk] = {}
        self._scanned_at = 0.0
        self._stuck_scan: subprocess.Popen[bytes] | None = None
        self._wait_s = _WAIT_S
        self._seen_blocks: frozenset[str] = frozenset()
        self._root = Path(root)
        self._blocks = BlockDevices(root)
        self.again_s = _SOON_S

    def collect(self) -> Iterable[Reading]:
        self.again_s = min(_TICK_S, self._interval_s)
        self._rescan(time.monotonic())
        now = time.monotonic()
        until, self._wait_s = now + self._wait_s, _WAIT_S
        asked = [thread for disk in self._disks.values() if (thread := self._ask(disk, now)) is not None]
        for thread in asked:  # those of earlier rounds had their time
            thread.join(max(0.0, until - time.monotonic()))
        fresh = [disk for disk in self._disks.values() if disk.asked is not None and not disk.asked.is_alive()]
        answered = [disk for disk in fresh if self._take(disk, time.monotonic())]
        # Those no longer listed go with their answer; a new dictionary, as `before_last` comes from another thread.
        self._disks = {
            name: disk for name, disk in self._disks.items() if disk.due < math.inf or not disk.may_be_asked()
        }
        self._name_all()
        for disk in answered:
            if disk.drive is not None:
                disk.growth = self._memory.update(disk.id, disk.drive.counters, within_s=limit.HEALTH_MEMORY_S)
        self._memory.save()
        if any(disk.asked is not None for disk in self._disks.values()):
            self.again_s = min(_SOON_S, self._interval_s)
        yield from self._readings(time.monotonic())

    def before_last(self) -> bool:
        """A run ends with a reading, so that it is known what grew since it began; whether one is worth it."""
        now = time.monotonic()
        answering = [disk for disk in self._disks.values() if disk.drive and disk.due < math.inf and not disk.problem]
        old = [disk for disk in answering if now - disk.read_at > _FRESH_S]
        for disk in old:
            disk.due = 0.0
        self._wait_s = _LAST_WAIT_S
        return bool(old)

    def close(self) -> None:
        """Leave no smartctl behind."""
        smartctl.stop_all()

    # -- which disks --------------------------------------------------------------------------------

    def _rescan(self, now: float) -> None:
        """List the disks anew: now and then, and at once when a block device came or went."""
        blocks = frozenset(name for name in self._blocks.names() if not name.startswith(("loop", "ram", "dm-")))
        if self._scanned_at and now - self._scanned_at < _RESCAN_S and blocks == self._seen_blocks:
            if not self._disks:
                raise NoDataError(_NO_DISK)
            return
        try:
            if self._stuck_scan is not None and self._stuck_scan.poll() is None:
                raise CollectorError("smartctl --scan hangs in the kernel")
            targets = smartctl.scan(min(self._timeout_s, 2 * _WAIT_S))
        except CollectorError as error:
            self._stuck_scan = getattr(error, "process", self._stuck_scan)
            if not self._disks:
                raise
            return  # the disks that were there are asked all the same
        self._scanned_at, self._seen_blocks = now, blocks
        listed = {target.name: self._disks.get(target.name) or _Disk(target) for target in targets}
        for name, disk in self._disks.items():
            if name not in listed and not disk.may_be_asked():  # until then nobody else asks under its name
                disk.due = math.inf
                listed[name] = disk
        self._disks = listed
        for target in targets:
            disk = listed[target.name]
            disk.devices = smartctl.disks_of(target, self._root)
            disk.turns = _turns(disk.devices, self._root)
            disk.due = 0.0 if disk.due == math.inf else disk.due
        if not listed:
            raise NoDataError(_NO_DISK)

    def _ask(self, disk: _Disk, now: float) -> threading.Thread | None:
        """Question a disk whose time has come; one that cannot be questioned is silent once more."""
        if disk.due > now or disk.asked is not None:
            return None
        disk.due = now + self._interval_s * 0.95  # the next tick is rarely late by less than a hair
        if disk.may_be_asked():
            return disk.ask(self._timeout_s)
        disk.silent_polls += 1
        return None

    # -- answers ------------------------------------------------------------------------------------

    def _take(self, disk: _Disk, now: float) -> bool:
        """Take an answer that came in; whether it holds the disk's health."""
        answer, disk.asked, disk.answer = disk.answer, None, None
        if isinstance(answer, GpumonError):
            disk.is_asleep, disk.problem = False, str(answer)
            if isinstance(answer, Hung):  # else the fault is smartctl's, not the disk's
                disk.stuck = answer.process
                disk.silent_polls += 1
            return False
        disk.is_asleep = smart.is_asleep(answer)
        disk.problem = "" if disk.is_asleep else smart.problem_of(answer)
        if disk.problem:
            # A refusal is ours to repair; only a disk that is asked and says nothing may have failed.
            is_refused = "ermission" in disk.problem or "not permitted" in disk.problem
            disk.silent_polls = 0 if is_refused else disk.silent_polls + 1
            return False
        disk.silent_polls = 0
        if disk.is_asleep:
            return False
        disk.drive, disk.read_at = smart.parse(answer), now
        return True

    def _name_all(self) -> None:
        """Tell the disks apart: by serial number, by WWN where two have the same one, else by place too."""
        by_serial: dict[str, list[_Disk]] = defaultdict(list)
        for disk in self._disks.values():
            if disk.drive is not None:
                by_serial[disk.drive.id].append(disk)
        for name, disks in by_serial.items():
            kinds = {(each.drive.wwn, each.drive.model, each.drive.size_bytes) for each in disks if each.drive}
            worldwide = {each.drive.wwn for each in disks if each.drive}
            for each in disks:
                assert each.drive is not None
                if not name:
                    each.id = each.name
                elif len(disks) == 1 or (len(kinds) == 1 and each.drive.wwn):  # one disk, over several paths
                    each.id = name
                elif len(worldwide) == len(kinds) and "" not in worldwide:
                    each.id = each.drive.wwn
                else:
                    each.id = f"{name} {each.name}"

    # -- readings -----------------------------------------------------------------------------------

    def _readings(self, now: float) -> Iterator[Reading]:
        seen: set[str] = set()
        for disk in self._disks.values():
            if disk.drive is not None and disk.id in seen:
                continue  # a second path to the same disk
            seen.add(disk.id)
            yield from self._one(disk, now)
        reasons = {disk.problem for disk in self._disks.values() if disk.drive is None and disk.problem}
        if self._disks and all(disk.drive is None and disk.problem for disk in self._disks.values()):
            raise CollectorError("; ".join(sorted(reasons)) + _repair(reasons))

    def _one(self, disk: _Disk, now: float) -> Iterator[Reading]:
        drive = disk.drive
        if reason := self._reason(disk):
            up = 1.0 if disk.is_asleep else 0.0
            at: dict[str, AttributeValue] = {m.HW_ID: disk.id or disk.name, m.REASON: f"SMART: {reason}"}
            yield Reading(m.COLLECTOR_UP, up, at)
        if drive is None:
            return
        at = {m.HW_ID: disk.id}
        has_answered = not disk.problem and disk.stuck is None
        if has_answered or disk.silent_polls >= _SILENT_POLLS:
            state = state_of(vitals_of(drive, disk.growth)) if has_answered else "failed"
            for each in STATES:
                yield Reading(m.STATUS, float(each == state), {**at, m.HW_TYPE: "physical_disk", m.HW_STATE: each})
        yield Reading(m.SMART_AGE, now - disk.read_at, at)
        yield self._info(disk, drive)
        if not has_answered or disk.is_asleep:
            return
        yield from _values(drive, at)
        for counter, count in drive.counters.items():
            yield Reading(m.SMART_COUNT, count, {**at, m.SMART_COUNTER: counter})
            if counter in disk.growth:
                yield Reading(m.SMART_GROWTH, disk.growth[counter].recent, {**at, m.SMART_COUNTER: counter})

    def _reason(self, disk: _Disk) -> str:
        """Why there is no fresh answer of this disk, or why one is not kept; empty where all is well."""
        if disk.is_asleep:
            return "asleep (standby), left alone"
        if disk.stuck is not None:
            return "smartctl hangs in the kernel; the disk is not asked until it ends"
        if disk.problem:
            return disk.problem
        if disk.asked is not None and disk.drive is None:
            return "no answer yet"
        return ""

    def _info(self, disk: _Disk, drive: smart.Drive) -> Reading:
        kind = "NVMe" if drive.protocol == "NVMe" else {True: "HDD", False: "SSD", None: ""}[drive.is_rotating]
        told: dict[str, str] = {
            m.HW_MODEL: drive.model,
            m.HW_SERIAL_NUMBER: drive.serial_number,
            m.HW_FIRMWARE_VERSION: drive.firmware,
            m.PHYSICAL_DISK_TYPE: kind,
            m.SYSTEM_DEVICE: ",".join(disk.devices),
            m.SMART_PROTOCOL: drive.protocol,
            m.SMART_TARGET: disk.name,
        }
        return Reading(m.SMART_INFO, 1.0, {m.HW_ID: disk.id, **{key: value for key, value in told.items() if value}})


def vitals_of(drive: smart.Drive, growth: dict[str, Growth]) -> Vitals:
    """What the rules judge."""
    return Vitals(
        # NVMe's own judgement is nothing but its critical warning, whose bits (as far as they are known) say more.
        has_failed=drive.passed is False and not drive.critical_warning & 0x3F,
        critical_warning=drive.critical_warning,
        spare=drive.spare,
        spare_threshold=drive.spare_threshold,
        used=drive.used,
        failing=drive.failing,
        failed_before=drive.failed_before,
        self_test_failed=drive.self_test_failed,
        counters=drive.counters,
        growth={name: each.recent for name, each in growth.items()},
    )


def _values(drive: smart.Drive, at: dict[str, AttributeValue]) -> Iterator[Reading]:
    for value in drive.values:
        named: dict[str, AttributeValue] = {**at, m.SMART_ATTRIBUTE: value.name}
        if value.number is not None:
            named[m.SMART_NUMBER] = value.number
        yield Reading(m.PHYSICAL_DISK_SMART, value.value, named)
    for when, names in (("now", drive.failing), ("before", drive.failed_before)):
        for name in names:
            yield Reading(m.SMART_FAILED, 1.0, {**at, m.SMART_ATTRIBUTE: name, m.SMART_WHEN: when})
    if drive.self_test_failed:
        yield Reading(m.SMART_FAILED, 1.0, {**at, m.SMART_ATTRIBUTE: "self_test", m.SMART_WHEN: "before"})
    if drive.used is not None:
        yield Reading(m.PHYSICAL_DISK_ENDURANCE, 1.0 - drive.used, {**at, m.PHYSICAL_DISK_STATE: "remaining"})
    if drive.size_bytes:
        yield Reading(m.PHYSICAL_DISK_SIZE, drive.size_bytes, at)
    if drive.temperature_c is not None:
        yield Reading(m.TEMPERATURE, drive.temperature_c, at)
    for kind, counters in (("media", ("media", "uncorrected")), ("link", ("link",))):
        known = [drive.counters[name] for name in counters if name in drive.counters]
        if known:
            yield Reading(m.ERRORS, sum(known), {**at, m.HW_TYPE: "physical_disk", m.ERROR_TYPE: kind})


def _repair(reasons: set[str]) -> str:
    if os.geteuid() != 0 and any("ermission" in reason for reason in reasons):
        return " (run `gpumon agent` as root on this host; `gpumon doctor` says more)"
    return ""


def _turns(devices: tuple[str, ...], root: Path) -> bool:
    """Whether the kernel says so of a disk that has not answered yet; of one it does not know: maybe."""
    for name in devices:
        try:
            return (root / f"sys/class/block/{name}/queue/rotational").read_text().strip() != "0"
        except OSError:
            continue
    return True
