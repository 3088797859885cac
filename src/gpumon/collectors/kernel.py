"""What the kernel logs of disks: reads and writes that failed for good."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import Reading
from gpumon.system.block import BlockDevices
from gpumon.system.datasets import CHECKPOINTS, DATASETS

_RECORD: Final = 8192  # bytes; the kernel gives one record per read
_MAX_RECORDS: Final = 10_000  # per tick: a disk that dies floods the log
# "critical medium error, dev sda, sector 123 op 0x0:(READ) flags 0x80700"; before Linux 5.9 without the operation.
_FAILED: Final = re.compile(
    rb"(I/O|critical [\w ]+|[\w ]*timeout|protection) error, dev ([\w-]+), sector \d+(?: op \S+)?"
)
_HARMLESS: Final = (b"DISCARD", b"WRITE_ZEROES", b"SECURE_ERASE")  # what a disk may refuse without being ill


@register("kernel")
class KernelCollector:
    """I/O errors by device since the start.

    Source: /dev/kmsg from now on (CAP_SYSLOG where kernel.dmesg_restrict is 1). The kernel limits how often it
    says so: many errors at once are counted as some.
    Shape: per device with data of the training, and per device with errors, one counter per kind of error.
    """

    interval_s = 5.0
    may_block = False

    def __init__(self, config: Config | None = None, *, log: str = "/dev/kmsg") -> None:
        self._log = log
        self._file: int | None = None
        self._pid = os.getpid()
        self._devices = BlockDevices()
        self._errors: Counter[tuple[str, str]] = Counter()

    def collect(self) -> Iterable[Reading]:
        if self._file is None:
            self._file = self._open()
        for record in self._records(self._file):
            if (found := _FAILED.search(record)) and not any(each in found[0] for each in _HARMLESS):
                kind = found[1].decode().removeprefix("critical ").strip().lower().replace("i/o", "io")
                self._errors[self._devices.whole(found[2].decode()), kind.replace(" ", "_")] += 1
        for device in DATASETS.devices() | CHECKPOINTS.devices():
            self._errors.setdefault((device, "io"), 0)
        for (device, kind), count in self._errors.items():
            yield Reading(m.DISK_ERRORS, count, {m.SYSTEM_DEVICE: device, m.ERROR_TYPE: kind})

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _open(self) -> int:
        try:
            file = os.open(self._log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoDataError(f"kernel log: no {self._log}") from None
        except OSError as error:
            raise NoDataError(f"kernel log: {error.strerror}: I/O errors of disks are not seen") from None
        os.lseek(file, 0, os.SEEK_END)
        return file

    def _records(self, file: int) -> Iterator[bytes]:
        for _ in range(_MAX_RECORDS):
            try:
                record = os.read(file, _RECORD)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before they were read
                    continue
                raise CollectorError(f"kernel log: {error.strerror}") from None
            if not record:
                return
            yield from record.split(b"\n")  # the message, then its tags
