"""What smartctl's JSON document says of a disk: identity, health, wear, temperature and counters.

Each field is taken by itself: one that is missing or damaged is absent, the others stand. The exit status is
no judge (a disk that answers everything may have 4 or 64): health is known when it is in the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gpumon.system.smartctl import STANDBY, errors, printable

Document = Mapping[str, Any]

SELF_TEST_FAILED: Final = 128  # bit of the exit status
# The counters that tell the future of a disk, whatever their protocol calls them.
COUNTERS: Final = {5: "reallocated", 187: "uncorrected", 197: "pending", 198: "offline_uncorrectable", 199: "link"}
_MEANT: Final = {  # vendors give some numbers other meanings
    5: re.compile(r"realloc|retire|reassign|remap|bad_?bl", re.IGNORECASE),
    187: re.compile(r"uncorr|report", re.IGNORECASE),
    197: re.compile(r"pend", re.IGNORECASE),
    198: re.compile(r"uncor|offl", re.IGNORECASE),
    199: re.compile(r"crc|udma", re.IGNORECASE),
}
# SSDs: attributes whose normalized value is the share of the rated writes that is left, most telling first.
_LIFE_LEFT: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(perc|lifetime|life|endurance)\w*_(remain|left)|remain\w*_life|(ssd|drive)_life(?!\w*used)",
        r"perc_rated_life|(percent|drive|ssd)_life\w*_used",
        r"media_wearout_indicator",
        r"wear_?leveling_count",
    )
)
_WD_WEAR: Final = 230
_MAX_COUNT: Final = 1 << 63
_MAX_TEXT: Final = 200
_TEMPERATURES: Final = (194, 190, 231)
# "Smartctl open device: /dev/sda [SAT] failed: Permission denied": who asked knows the device.
_PLACE: Final = re.compile(r"^(Smartctl open device: )?/\S+?( \[[^\]]*\])?(: | failed: )")
# How smartctl prints several numbers: "36 (Min/Max 0/51)", "15823h+31m", "2/239307048"; "0 0 21" is in no such order.
_LEADING: Final = re.compile(r"\s*(\d{1,20})(?=\s*\(|h|/\d+$|\s*$)")
_HOURS: Final = (9, 240)
_SEAGATE_ERRORS: Final = (1, 7, 195)
_PLACEHOLDER: Final = re.compile(r"[0\s.-]*|0?123456789\w*|DISK\d+|(none|unknown|n/?a)", re.IGNORECASE)


@dataclass(frozen=True)
class Value:
    """One row of a SMART table."""

    name: str  # smartctl's: "Reallocated_Sector_Ct", "media_errors", "read_total_uncorrected_errors"
    value: float
    number: int | None = None  # ATA's attribute number


@dataclass
class Drive:
    """A disk as its document describes it; None or empty where that says nothing."""

    serial_number: str = ""
    wwn: str = ""  # or EUI-64 or logical unit, hexadecimal
    model: str = ""
    firmware: str = ""
    protocol: str = ""  # ATA, NVMe, SCSI
    type: str = ""  # smartctl's -d: sat, nvme, scsi, "sat+megaraid,1", usbjmicron, …
    size_bytes: int | None = None
    is_rotating: bool | None = None
    passed: bool | None = None
    critical_warning: int = 0  # NVMe's bits
    temperature_c: float | None = None
    used: float | None = None  # share of the rated writes; may pass 1
    spare: float | None = None
    spare_threshold: float | None = None
    failing: tuple[str, ...] = ()  # attributes that foretell failure and are below their threshold now
    failed_before: tuple[str, ...] = ()
    self_test_failed: bool = False
    counters: dict[str, int] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The serial number, or what else no other disk has; empty where it has nothing of the kind."""
        return self.wwn if self.wwn and _PLACEHOLDER.fullmatch(self.serial_number) else self.serial_number


def is_asleep(document: Document) -> bool:
    """Whether the disk was left in standby."""
    if has_health(document):
        return False
    said = [*_lines(document), *(_text(row, "string") for row in _rows(document, "smartctl", "messages"))]
    return _exit_status(document) == STANDBY or any("Device is in STANDBY" in text for text in said)


def has_health(document: Document) -> bool:
    """Whether it holds a judgement or the counters that make one possible."""
    if isinstance(_at(document, "smart_status", "passed"), bool):
        return True
    counters = ("ata_smart_attributes", "table"), ("nvme_smart_health_information_log",), ("scsi_error_counter_log",)
    return any(_at(document, *path) for path in counters)


def problem_of(document: Document) -> str:
    """Why there is no health in it, in smartctl's words where it says one; empty where there is."""
    if has_health(document):
        return ""
    if is_asleep(document):
        return "asleep (standby)"
    if said := errors(document):
        return _PLACE.sub("", said[0])
    if any("behind a SAT layer" in line for line in _lines(document)) or _exit_status(document) & 2:
        return "Permission denied (ATA commands need CAP_SYS_RAWIO)"  # smartctl says no word of it
    if _at(document, "smart_support", "available") is False:
        return "the disk has no SMART"
    if _exit_status(document) & 1:
        return "smartctl does not know this kind of disk"
    return "the disk has no SMART, or what it is connected to does not pass it on (RAID volume, USB bridge)"


def parse(document: Document) -> Drive:
    """Everything that the document says; never raises, whatever is in it."""
    drive = Drive(
        serial_number=_text(document, "serial_number"),
        wwn=_wwn(document),
        model=_text(document, "model_name") or _text(document, "scsi_model_name") or _text(document, "product"),
        firmware=_text(document, "firmware_version") or _text(document, "revision"),
        protocol=_text(document, "device", "protocol"),
        type=_text(document, "device", "type"),
        size_bytes=_whole(document, "user_capacity", "bytes") or _whole(document, "nvme_total_capacity"),
        self_test_failed=bool(_exit_status(document) & SELF_TEST_FAILED),
    )
    passed = _at(document, "smart_status", "passed")
    drive.passed = passed if isinstance(passed, bool) else None
    rotation = _whole(document, "rotation_rate")
    drive.is_rotating = False if drive.protocol == "NVMe" else None if rotation is None else rotation > 0
    drive.temperature_c = _temperature(document, drive)
    for part in (_ata, _nvme, _scsi):
        part(document, drive)
    return drive


# -- ATA ------------------------------------------------------------------------------------------------


def _ata(document: Document, drive: Drive) -> None:
    is_seagate = _text(document, "model_family").startswith("Seagate") or re.match(r"ST\d{3}", drive.model) is not None
    left: dict[int, float] = {}
    taken: set[str] = set()
    failing, before = [], []
    for row in _rows(document, "ata_smart_attributes", "table"):
        number, name = _whole(row, "id"), _text(row, "name")
        if number is None or number > 255:
            continue
        name = name or "Unknown_Attribute"
        if name in taken:  # several that the drive database does not know
            name = f"{name}_{number}"
        taken.add(name)
        is_prefail = _at(row, "flags", "prefailure") is True
        when = _text(row, "when_failed").lower()
        if is_prefail and "now" in when:
            failing.append(name)
        elif is_prefail and "past" in when:
            before.append(name)
        raw = _raw(row, number, is_seagate)
        if drive.is_rotating is not True and (found := _life_left(number, name, _number(row, "value"), raw)):
            left.setdefault(*found)
        if raw is None:
            continue
        drive.values.append(Value(name, raw, number))
        if number in COUNTERS and raw < _MAX_COUNT and _counts(number, name, drive.is_rotating):
            drive.counters[COUNTERS[number]] = int(raw)
        if number in _TEMPERATURES and drive.temperature_c is None and "emp" in name and 0 < raw < 150:
            drive.temperature_c = raw
    drive.failing, drive.failed_before = tuple(failing), tuple(before)
    used = [
        _percent(row, "value")
        for page in _rows(document, "ata_device_statistics", "pages")
        for row in _rows(page, "table")
        if _text(row, "name").startswith("Percentage Used Endurance")
    ]
    used += [100 - left[min(left)]] if left else []
    used += [_percent(document, "endurance_used", "current_percent")]  # smartctl's guess, from one of the attributes
    drive.used = next((percent / 100 for percent in used if percent is not None), None)


def _life_left(number: int, name: str, normalized: float | None, raw: float | None) -> tuple[int, float] | None:
    """How telling an attribute is of what is left of the rated writes (0: most), and the percentage that it tells."""
    rank = next((rank for rank, pattern in enumerate(_LIFE_LEFT) if pattern.search(name)), None)
    if rank is None:
        return None
    if number == _WD_WEAR and "Wearout" in name:  # normalized it counts up or down; raw: thrice 0x2506 is 37.06 % used
        words = [int(raw or 0) >> shift & 0xFFFF for shift in (0, 32)]
        return (rank, 100 - (words[0] >> 8)) if words[0] == words[1] != 0 else None
    if rank <= 1 and raw is not None and 2 <= raw < 100 and normalized in (None, 100):
        # Firmware whose normalized value stays where it is, or is none.
        return rank, 100 - raw if "used" in name.lower() else raw
    return (rank, normalized) if normalized is not None and 0 <= normalized <= 100 else None


def _counts(number: int, name: str, is_rotating: bool | None) -> bool:
    """Whether the attribute is the counter that its number stands for."""
    if name.startswith("Unknown"):
        return is_rotating is not False
    return _MEANT[number].search(name) is not None


def _raw(row: Document, number: int, is_seagate: bool) -> float | None:
    """The raw value as one number.

    48 bits often hold several: smartctl prints the first and the others behind it ("36 (Min/Max 0/51)",
    "15823h+31m+24.123s"), except where its drive database does not know that they are several.
    """
    value, printed = _whole(row, "raw", "value", below=1 << 64), _LEADING.match(_text(row, "raw", "string"))
    if number == 188 and value is not None:  # three counters of 16 bits; the lowest is all timeouts
        return float(value & 0xFFFF)
    if printed and (value is None or int(printed[1]) != value):
        return float(printed[1])
    if value is None:
        return None
    if number in _HOURS and value >= 1 << 32:  # milliseconds or minutes above
        return float(value & 0xFFFFFFFF)
    if is_seagate and number in _SEAGATE_ERRORS:  # 16 bits of errors above 32 of operations
        return float(value >> 32)
    return float(value)


# -- NVMe and SCSI --------------------------------------------------------------------------------------


def _nvme(document: Document, drive: Drive) -> None:
    log = _at(document, "nvme_smart_health_information_log")
    bits = _whole(log, "critical_warning")
    if bits is None:
        bits = _whole(document, "smart_status", "nvme", "value")
    drive.critical_warning = bits if bits is not None and 0 < bits < 256 else 0
    if not isinstance(log, dict):
        return
    for name in log:
        # "…_s" is the text of a number that is too large for some readers of JSON.
        value = None if str(name).endswith("_s") and name[:-2] in log else _number(log, name)
        if value is not None and value >= 0 and name not in ("temperature", "nsid"):
            drive.values.append(Value(printable(str(name), _MAX_TEXT), float(value)))
    if (media := _whole(log, "media_errors")) is not None:
        drive.counters["media"] = media
    used, spare, threshold = (
        _percent(log, name) for name in ("percentage_used", "available_spare", "available_spare_threshold")
    )
    drive.used = drive.used if used is None else used / 100
    drive.spare = None if spare is None else spare / 100
    drive.spare_threshold = None if threshold is None else threshold / 100


def _scsi(document: Document, drive: Drive) -> None:
    if (defects := _whole(document, "scsi_grown_defect_list")) is not None:
        drive.values.append(Value("grown_defects", defects))
        drive.counters["reallocated"] = defects
    log = _at(document, "scsi_error_counter_log")
    uncorrected = None
    for direction in ("read", "write", "verify"):
        for name in ("total_errors_corrected", "total_uncorrected_errors"):
            if isinstance(log, dict) and (value := _whole(log, direction, name)) is not None:
                drive.values.append(Value(f"{direction}_{name}", value))
                if name == "total_uncorrected_errors":
                    uncorrected = (uncorrected or 0) + value
    if uncorrected is not None:
        drive.counters["uncorrected"] = uncorrected
    if drive.protocol == "SCSI" and (hours := _whole(document, "power_on_time", "hours")) is not None:
        drive.values.append(Value("power_on_hours", hours))
    if (used := _percent(document, "scsi_percentage_used_endurance_indicator")) is not None:
        drive.used = used / 100


def _temperature(document: Document, drive: Drive) -> float | None:
    value = _number(document, "temperature", "current")
    if value is None:
        value = _number(document, "nvme_smart_health_information_log", "temperature")
    # 0 is what SCSI disks without a sensor say; NVMe counts from 0 K.
    is_known = value is not None and -60 < value < 200 and (value != 0 or drive.protocol == "NVMe")
    return float(value) if is_known and value is not None else None


# -- taking fields --------------------------------------------------------------------------------------


def _at(document: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(key)
    return document


def _rows(document: Document, *path: str) -> Iterator[Document]:
    rows = _at(document, *path)
    yield from (row for row in rows if isinstance(row, Mapping)) if isinstance(rows, list) else ()


def _number(document: Document, *path: str) -> int | float | None:
    value = _at(document, *path)
    if isinstance(value, str) and re.fullmatch(r"\d{1,39}", value):  # numbers beyond 2^53 are text in some releases
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e39 < value < 1e39:
        return None
    return value


def _percent(document: Document, *path: str) -> float | None:
    value = _number(document, *path)
    return value if value is not None and 0 <= value <= 255 else None  # a byte; past 100 where more was written


def _whole(document: Document, *path: str, below: int = _MAX_COUNT) -> int | None:
    value = _number(document, *path)
    return int(value) if value is not None and 0 <= value < below else None


def _text(document: Any, *path: str) -> str:
    value = _at(document, *path)
    return printable(value, _MAX_TEXT) if isinstance(value, str) else ""


def _lines(document: Document) -> list[str]:
    lines = _at(document, "smartctl", "output")
    return [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else []


def _exit_status(document: Document) -> int:
    return _whole(document, "smartctl", "exit_status") or 0


def _wwn(document: Document) -> str:
    naa, oui, number = (_whole(document, "wwn", part) for part in ("naa", "oui", "id"))
    if naa is not None and oui is not None and number is not None:
        return f"{naa:x}{oui:06x}{number:09x}" if oui or number else ""  # cheap disks have zeros, all the same ones
    for row in _rows(document, "nvme_namespaces"):
        oui, number = (_whole(row, "eui64", part) for part in ("oui", "ext_id"))
        if oui is not None and number is not None and (oui or number):
            return f"{oui:06x}{number:010x}"
    return _text(document, "logical_unit_id").removeprefix("0x")
