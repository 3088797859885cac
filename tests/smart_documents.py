"""smartctl's JSON documents of made-up disks, in the shapes that its releases 7.0 to 7.5 print.

Builders take what a test is about; `DOCUMENTS` has one of every kind. Documents are plain and may be changed.
`text_of_ata` and `text_of_nvme` are what a smartctl without JSON (6.6) prints.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable

GIB = 1 << 30


def header(release=(7, 3), exit_status=0, messages=(), output=(), arguments=("--json=co",)):
    """The first members of every document."""
    told = {
        "version": list(release),
        "svn_revision": "5338",
        "platform_info": "x86_64-linux-6.1.0",
        "build_info": "(local build)",
        "argv": ["smartctl", *arguments],
    }
    if output:
        told["output"] = list(output)
    if messages:
        told["messages"] = [{"string": text, "severity": severity} for text, severity in messages]
    told["exit_status"] = exit_status
    return {"json_format_version": [1, 0], "smartctl": told, "local_time": {"time_t": 1795442990}}


def device(name, kind, protocol, about=""):
    return {"name": name, "info_name": f"{name} [{about}]" if about else name, "type": kind, "protocol": protocol}


# -- ATA ------------------------------------------------------------------------------------------------


def attribute(number, name, raw=0, string=None, *, value=100, worst=None, thresh=0, prefail=False, when=""):
    """A row of the table; *value* None: the firmware has no normalized one."""
    row = {"id": number, "name": name}
    if value is not None:
        row |= {"value": value, "worst": value if worst is None else worst, "thresh": thresh, "when_failed": when}
    flags = {"value": 51 if prefail else 50, "string": "PO--CK " if prefail else "-O--CK ", "prefailure": prefail}
    row["flags"] = flags | {"updated_online": True, "event_count": True, "auto_keep": True}
    row["raw"] = {"value": raw, "string": str(raw) if string is None else string}
    return row


def words(high, middle, low):
    """Three counters of 16 bits in one raw value."""
    return high << 32 | middle << 16 | low


def ata(rows, *, serial, model, family="", wwn=None, rpm=None, size=4_000_787_030_016, celsius=31, hours=15823,
        passed=True, exit_status=0, kind="sat", name="/dev/sda", release=(7, 3), about="SAT", **more):  # fmt: skip
    """A SATA disk that answered; *more* are further members of the document."""
    document = header(release, exit_status)
    document["device"] = device(name, kind, "ATA", about)
    if family:
        document["model_family"] = family
    document |= {"model_name": model, "serial_number": serial}
    if wwn is not None:
        document["wwn"] = dict(zip(("naa", "oui", "id"), wwn, strict=True))
    document |= {
        "firmware_version": "TN05",
        "user_capacity": {"blocks": size // 512, "bytes": size},
        "logical_block_size": 512,
    }
    if rpm is not None:
        document["rotation_rate"] = rpm
    document |= {
        "in_smartctl_database": bool(family),
        "ata_version": {"string": "ACS-3 T13/2161-D revision 5", "major_value": 2040, "minor_value": 109},
        "smart_support": {"available": True, "enabled": True},
        "smart_status": {"passed": passed},
        "ata_smart_attributes": {"revision": 10, "table": list(rows)},
        "power_on_time": {"hours": hours},
        "power_cycle_count": 26,
    }
    if celsius is not None:
        document["temperature"] = {"current": celsius}
    document["ata_smart_error_log"] = {"summary": {"revision": 1, "count": 0}}
    document["ata_smart_self_test_log"] = {"standard": {"revision": 1, "count": 0}}
    return document | more


def hdd(serial="Z1F0TEST", *, reallocated=0, uncorrected=0, pending=0, offline=0, crc=0, timeouts=0, celsius=31,
        wwn=(5, 3152, 1_111_111_111), rows=(), **more):  # fmt: skip
    """A Seagate with all its packed raw values: error rates, timeouts, temperatures, hours with milliseconds."""
    table = [
        attribute(1, "Raw_Read_Error_Rate", 239_307_048, value=84, worst=64, thresh=44, prefail=True),
        attribute(3, "Spin_Up_Time", 0, value=91, prefail=True),
        attribute(5, "Reallocated_Sector_Ct", reallocated, value=99, thresh=10, prefail=True),
        attribute(7, "Seek_Error_Rate", 4 << 32 | 330_010_684, value=85, thresh=45, prefail=True),
        attribute(9, "Power_On_Hours", 37 << 32 | 15823, "15823 (0 0 37)", value=82),
        attribute(10, "Spin_Retry_Count", 0, thresh=97, prefail=True),
        attribute(187, "Reported_Uncorrect", uncorrected),
        attribute(188, "Command_Timeout", timeouts, value=97),
        attribute(
            190, "Airflow_Temperature_Cel", words(0, 6176, celsius), f"{celsius} (Min/Max 24/32)", value=69, thresh=40
        ),
        attribute(
            194, "Temperature_Celsius", words(23, 0, celsius), f"{celsius} (0 23 0 0 0)", value=celsius, worst=40
        ),
        attribute(197, "Current_Pending_Sector", pending),
        attribute(198, "Offline_Uncorrectable", offline),
        attribute(199, "UDMA_CRC_Error_Count", crc, value=200),
        attribute(240, "Head_Flying_Hours", 1_464_123 << 32 | 12523, "12523h+24m+24.123s", worst=253),
        attribute(241, "Total_LBAs_Written", 385_165_652_077, worst=253),
        *rows,
    ]
    given = {"model": "ST4000TEST-1V4107", "family": "Seagate Testing Capacity", "rpm": 7200, **more}
    return ata(table, serial=serial, wwn=wwn, celsius=celsius, **given)


def hdd_of_another_vendor(serial="WD-TEST1", **more):
    """Western Digital's ways: temperatures with their extremes, plain error rates."""
    celsius = more.pop("celsius", 36)
    table = [
        attribute(1, "Raw_Read_Error_Rate", 341, value=200, thresh=51, prefail=True),
        attribute(3, "Spin_Up_Time", words(4, 187, 180), "180 (Average 187)", value=174, thresh=21, prefail=True),
        attribute(5, "Reallocated_Sector_Ct", 0, value=200, thresh=140, prefail=True),
        attribute(9, "Power_On_Hours", 37788, value=49),
        attribute(194, "Temperature_Celsius", words(0, 51, celsius), f"{celsius} (Min/Max 0/51)", value=116, worst=101),
        attribute(197, "Current_Pending_Sector", 0, value=200),
        attribute(198, "Offline_Uncorrectable", 0, value=200),
        attribute(199, "UDMA_CRC_Error_Count", 12, value=200),
    ]
    return ata(table, serial=serial, model="WDC WD20TEST", wwn=(5, 5358, 22), rpm=5400, celsius=celsius, **more)


SSD_WEAR = {
    "samsung": [attribute(177, "Wear_Leveling_Count", 278, value=81, thresh=5, prefail=True)],
    "intel": [attribute(232, "Available_Reservd_Space", 0), attribute(233, "Media_Wearout_Indicator", 0, value=81)],
    "micron": [attribute(202, "Percent_Lifetime_Remain", 19, value=81)],
    "crucial": [attribute(202, "Percent_Lifetime_Used", 19, value=81, prefail=True)],
    "phison": [attribute(231, "SSD_Life_Left", 81, value=81), attribute(233, "Flash_Writes_GiB", 979)],
    "kingston": [attribute(231, "SSD_Life_Left", 81), attribute(177, "Wear_Leveling_Count", 9)],
    "silicon motion": [attribute(169, "Remaining_Lifetime_Perc", 81), attribute(177, "Wear_Leveling_Count", 401)],
    "indilinx": [attribute(209, "Remaining_Lifetime_Perc", 81, value=None)],
    "western digital": [
        attribute(230, "Media_Wearout_Indicator", words(0x1306, 0x0D28, 0x1306), "4870 3368 4870", value=1)
    ],
    "sandisk": [
        attribute(230, "Media_Wearout_Indicator", words(0x1306, 0x0D28, 0x1306), "0x13060d281306"),
        attribute(233, "NAND_GB_Written_TLC", 44318),
    ],
    "apacer": [attribute(173, "Drive_Life_Used", 0, value=81), attribute(9, "Power_On_Hours", 3)],
}
"""Of each vendor the attributes that tell of 19 % used: three say it in the raw value, under a normalized one."""


def ssd(vendor="samsung", serial="S3TEST", *, reallocated=0, crc=0, rows=(), wwn=(5, 9528, 2_222_222), **more):
    """A SATA SSD with the wear attributes of *vendor*."""
    table = [
        attribute(5, "Reallocated_Sector_Ct", reallocated, thresh=10, prefail=True),
        *copy.deepcopy(SSD_WEAR.get(vendor, [])),
        attribute(187, "Uncorrectable_Error_Cnt", 0),
        attribute(194, "Temperature_Celsius", 33),
        attribute(199, "CRC_Error_Count", crc),
        *rows,
    ]
    given = {"model": "SSD TEST 480GB", "rpm": 0, "size": 480_103_981_056, "celsius": 33, **more}
    return ata(table, serial=serial, wwn=wwn, **given)


def ssd_with_statistics(used=19, **more):
    """What `--log=ssd` adds: the device's own statistics, which are defined where attributes are not."""
    table = [
        {"offset": 0, "name": "", "size": 1, "value": 7},
        {"offset": 8, "name": "Percentage Used Endurance Indicator", "size": 1, "value": used},
    ]
    pages = [{"number": 7, "name": "Solid State Device Statistics", "revision": 1, "table": table}]
    return ssd("none", ata_device_statistics={"pages": pages}, **more)


def usb(serial="USBTEST1", **more):
    """A disk behind a USB bridge that passes ATA commands on."""
    return hdd(serial, kind="usbjmicron", about="USB JMicron", name="/dev/sdc", **more)


def megaraid(number=1, serial="MRTEST1", **more):
    """A SATA disk behind a RAID controller, with the warning that comes with every answer."""
    kind = f"sat+megaraid,{number}"
    document = hdd(
        serial, kind=kind, about=f"megaraid_disk_{number:02}] [SAT", name="/dev/bus/0", exit_status=4, **more
    )
    told = document["smartctl"]
    told["messages"] = [{"string": "Warning: This result is based on an Attribute check.", "severity": "warning"}]
    return document


# -- NVMe and SCSI --------------------------------------------------------------------------------------


def nvme(serial="NVTEST1", *, warning=0, media=0, used=16, spare=100, threshold=10, celsius=29, written=113_662_783,
         kind="nvme", name="/dev/nvme0", about="", size=1_024_209_543_168, release=(7, 3), **more):  # fmt: skip
    document = header(release, 8 if warning else 0)
    status = {"passed": not warning, "nvme": {"value": warning}}
    if warning:
        status["nvme"] |= {"spare_below_threshold": bool(warning & 1), "reliability_degraded": bool(warning & 4)}
    log = {
        "critical_warning": warning,
        "temperature": celsius,
        "available_spare": spare,
        "available_spare_threshold": threshold,
        "percentage_used": used,
        "data_units_read": 7_193_048,
        "data_units_written": written,
        "host_reads": 60_131_549,
        "controller_busy_time": 35_754,
        "power_cycles": 6,
        "power_on_hours": 10_423,
        "unsafe_shutdowns": 1,
        "media_errors": media,
        "num_err_log_entries": 62,
        "warning_temp_time": 0,
        "critical_comp_time": 0,
        "temperature_sensors": [celsius, celsius + 1],
    }
    if release >= (7, 5):
        log = {"nsid": -1, **log}
        document |= {"endurance_used": {"current_percent": used}, "spare_available": {"current_percent": spare}}
    if written >= 1 << 53:  # more than a reader of JSON must understand
        log |= {"data_units_written_s": str(written)}
    return document | {
        "device": device(name, kind, "NVMe", about),
        "model_name": "NVME TEST 1TB",
        "serial_number": serial,
        "firmware_version": "7F1",
        "nvme_pci_vendor": {"id": 5197, "subsystem_id": 5197},
        "nvme_total_capacity": size,
        "nvme_number_of_namespaces": 1,
        "nvme_namespaces": [{"id": 1, "eui64": {"oui": 9528, "ext_id": 769_096_114_121}, "formatted_lba_size": 512}],
        "user_capacity": {"blocks": size // 512, "bytes": size},
        "smart_support": {"available": True, "enabled": True},
        "smart_status": status,
        "nvme_smart_health_information_log": log,
        "temperature": {"current": celsius},
        "power_cycle_count": 6,
        "power_on_time": {"hours": 10_423},
        **more,
    }


def sas(serial="SASTEST1", *, defects=0, read=0, write=0, celsius=34, rpm=7200, used=None, passed=True, release=(7, 3),
        **more):  # fmt: skip
    def row(uncorrected):
        return {
            "errors_corrected_by_eccfast": 300_357_663,
            "errors_corrected_by_eccdelayed": 0,
            "errors_corrected_by_rereads_rewrites": 0,
            "total_errors_corrected": 300_357_663,
            "correction_algorithm_invocations": 0,
            "gigabytes_processed": "176987.332",
            "total_uncorrected_errors": uncorrected,
        }

    named = {
        "scsi_vendor": "TEST",
        "scsi_product": "SAS4000",
        "scsi_model_name": "TEST SAS4000",
        "scsi_revision": "0001",
    }
    if release < (7, 2):
        named = {"vendor": "TEST", "product": "SAS4000", "model_name": "TEST SAS4000", "revision": "0001"}
    document = header(release) | {"device": device("/dev/sdg", "scsi", "SCSI")} | named
    document |= {
        "user_capacity": {"blocks": 7_814_037_168, "bytes": 4_000_787_030_016},
        "logical_block_size": 512,
        "rotation_rate": rpm,
        "logical_unit_id": "0x5000c50056789abc",
        "serial_number": serial,
        "device_type": {"scsi_value": 0, "name": "disk"},
        "scsi_transport_protocol": {"name": "SAS (SPL-4)", "value": 6},
        "smart_support": {"available": True, "enabled": True},
        "temperature_warning": {"enabled": True},
        "smart_status": {"passed": passed},
        "temperature": {"current": celsius, "drive_trip": 68},
        "power_on_time": {"hours": 43549, "minutes": 33},
        "scsi_grown_defect_list": defects,
        "scsi_error_counter_log": {"read": row(read), "write": row(write)},
    }
    if used is not None:
        document["scsi_percentage_used_endurance_indicator"] = used
    return document | more


# -- Disks without health -------------------------------------------------------------------------------


def standby(mode="STANDBY", release=(7, 3), name="/dev/sda"):
    """A disk left asleep with `--nocheck=standby,3`; "SLEEP" is what those get that do not answer the question."""
    text = f"Device is in {mode} mode, exit(3)"
    document = header(release, 3, [(text, "information")], ["smartctl 7.3", "", text])
    if release >= (7, 5):
        document["power_mode"] = {"ata_value": -1 if mode == "SLEEP" else 0, "name": mode}
    return document | {"device": device(name, "sat", "ATA", "SAT")}


def denied_nvme():
    text = "Read NVMe Identify Controller failed: NVME_IOCTL_ADMIN_CMD: Permission denied"
    return header(exit_status=2, messages=[(text, "error")]) | {"device": device("/dev/nvme0", "nvme", "NVMe")}


def denied_open():
    text = "Smartctl open device: /dev/sda [SAT] failed: Permission denied"
    return header(exit_status=2, messages=[(text, "error")])


def denied_sata():
    """Without a right, without a word."""
    return header(exit_status=2) | {"device": device("/dev/sda", "sat", "ATA", "SAT")}


def denied_behind_sat():
    """Exit status 0: the kind of disk could not be found out."""
    output = ["smartctl 7.3", "", "", "Probable ATA device behind a SAT layer", "Try an additional '-d ata' argument."]
    return header(output=output) | {"device": device("/dev/sda", "scsi", "SCSI")}


def unanswered_sata(why="Operation not permitted"):
    """With `--tolerance=verypermissive` smartctl goes on after everything failed; only the text says why."""
    output = [f"Read Device Identity failed: {why}", "", f"Read SMART Data failed: {why}"]
    named = {"model_name": "", "serial_number": "", "firmware_version": "", "smart_support": {"available": False}}
    return header(exit_status=6, output=output) | {"device": device("/dev/sda", "sat", "ATA", "SAT")} | named


def gone():
    text = "Smartctl open device: /dev/sda failed: No such device"
    return header(exit_status=2, messages=[(text, "error")])


def raid_volume():
    document = header((7, 0), 4) | {"device": device("/dev/sdb", "scsi", "SCSI")}
    return document | {
        "vendor": "Test",
        "product": "Raid 1 Volume",
        "model_name": "Test Raid 1 Volume",
        "user_capacity": {"blocks": 1_953_519_616, "bytes": 1_000_202_043_392},
        "rotation_rate": 7200,
        "serial_number": "Volume1",
        "temperature": {"current": 0, "drive_trip": 0},
    }


def virtual_scsi():
    document = header(exit_status=4) | {"device": device("/dev/sdc", "scsi", "SCSI")}
    return document | {"scsi_model_name": "QEMU HARDDISK", "smart_support": {"available": False}}


def virtio():
    return header(exit_status=1, messages=[("/dev/vda: Unable to detect device type", "error")])


DOCUMENTS = {
    "hdd": hdd(),
    "hdd, failing": hdd(
        reallocated=22144, pending=2904, offline=2904, uncorrected=64138, timeouts=12_885_098_517, exit_status=64
    ),
    "hdd, another vendor": hdd_of_another_vendor(),
    "hdd, 7.0": hdd(release=(7, 0)),
    "hdd, its health check fails": hdd(
        passed=False,
        exit_status=216,
        rows=[attribute(184, "End-to-End_Error", 3, value=1, thresh=99, prefail=True, when="now")],
    ),
    **{f"ssd, {vendor}": ssd(vendor) for vendor in SSD_WEAR},
    "ssd, statistics": ssd_with_statistics(),
    "ssd, 7.5": ssd("none", release=(7, 5), endurance_used={"current_percent": 19}),
    "nvme": nvme(),
    "nvme, 7.5": nvme(release=(7, 5), written=10**22),
    "nvme, warning": nvme(warning=4),
    "nvme, media errors": nvme(media=7, used=104, spare=5),
    "nvme behind usb": nvme(kind="sntasmedia", about="USB NVMe ASMedia", name="/dev/sdd"),
    "sas hdd": sas(defects=56),
    "sas hdd, 7.0": sas(release=(7, 0), read=1, write=535),
    "sas ssd": sas(rpm=0, used=19),
    "usb": usb(),
    "megaraid": megaraid(reallocated=387),
    "standby": standby(),
    "sleep, 7.5": standby("SLEEP", (7, 5)),
    "nvme, denied": denied_nvme(),
    "open, denied": denied_open(),
    "sata, denied": denied_sata(),
    "sata, denied behind sat": denied_behind_sat(),
    "sata, unanswered": unanswered_sata(),
    "gone": gone(),
    "raid volume": raid_volume(),
    "virtual scsi": virtual_scsi(),
    "virtio": virtio(),
}


def document(name):
    """One of `DOCUMENTS`, to be changed at will."""
    return copy.deepcopy(DOCUMENTS[name])


def leaves(value, path=()) -> Iterable[tuple]:
    """The path of everything in a document that is no container, and of what is empty."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = False
    for key, member in members:
        found = True
        yield from leaves(member, (*path, key))
    if not found:
        yield path


@contextlib.contextmanager
def changed(document, path, value):
    """The document with another value at *path*, or without it where *value* is `...`, for a while."""
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    before = holder[path[-1]]
    if value is not ...:
        holder[path[-1]] = value
    elif isinstance(holder, dict):
        del holder[path[-1]]
    else:
        holder[path[-1]] = None  # a list has no gaps
    try:
        yield document
    finally:
        holder[path[-1]] = before


# -- Releases without JSON ------------------------------------------------------------------------------

TEXT_HEADER = "smartctl 6.6 2017-11-05 r4594 [x86_64-linux-4.15.0] (local build)\nCopyright (C) 2002-17, Bruce Allen\n"


def text_of_ata(serial="OLDTEST1", reallocated=0, celsius=31, failed=False):
    rows = [
        (5, "Reallocated_Sector_Ct", "0x0033", 99, 10, "Pre-fail", reallocated),
        (9, "Power_On_Hours", "0x0032", 82, 0, "Old_age", 15823),
        (188, "Command_Timeout", "0x0032", 97, 0, "Old_age", 12_885_098_517),
        (194, "Temperature_Celsius", "0x0022", 31, 0, "Old_age", f"{celsius} (Min/Max 24/32)"),
        (197, "Current_Pending_Sector", "0x0032", 100, 0, "Old_age", 0),
        (199, "UDMA_CRC_Error_Count", "0x003e", 200, 0, "Old_age", 3),
    ]
    table = "\n".join(
        f"{number:3} {name:24}{flags}   {value:03}   {value:03}   {thresh:03}    {kind:10}Always       -       {raw}"
        for number, name, flags, value, thresh, kind, raw in rows
    )
    return f"""{TEXT_HEADER}
=== START OF INFORMATION SECTION ===
Device Model:     ST4000TEST-1V4107
Serial Number:    {serial}
LU WWN Device Id: 5 000c50 0423a35c7
Firmware Version: TN05
User Capacity:    4,000,787,030,016 bytes [4.00 TB]
Sector Size:      512 bytes logical/physical
Rotation Rate:    7200 rpm
Device is:        Not in smartctl database [for details use: -P showall]
ATA Version is:   ACS-3 T13/2161-D revision 5
Local Time is:    Mon Nov 23 14:09:50 2026 UTC
SMART support is: Available - device has SMART capability.
SMART support is: Enabled

=== START OF READ SMART DATA SECTION ===
SMART overall-health self-assessment test result: {"FAILED!" if failed else "PASSED"}

SMART Attributes Data Structure revision number: 10
Vendor Specific SMART Attributes with Thresholds:
ID# ATTRIBUTE_NAME          FLAG     VALUE WORST THRESH TYPE      UPDATED  WHEN_FAILED RAW_VALUE
{table}

SMART Error Log Version: 1
No Errors Logged
"""


def text_of_nvme(serial="OLDTEST2", warning=0, used=16, celsius=29):
    return f"""{TEXT_HEADER}
=== START OF INFORMATION SECTION ===
Model Number:                       NVME TEST 1TB
Serial Number:                      {serial}
Firmware Version:                   7F1
PCI Vendor/Subsystem ID:            0x144d
IEEE OUI Identifier:                0x002538
Total NVM Capacity:                 1,024,209,543,168 [1.02 TB]
Unallocated NVM Capacity:           0
Controller ID:                      6
NVMe Version:                       1.3
Number of Namespaces:               1
Namespace 1 Size/Capacity:          1,024,209,543,168 [1.02 TB]
Local Time is:                      Mon Nov 23 14:09:50 2026 UTC

=== START OF SMART DATA SECTION ===
SMART overall-health self-assessment test result: {"FAILED!" if warning else "PASSED"}

SMART/Health Information (NVMe Log 0x02, NSID 0xffffffff)
Critical Warning:                   0x{warning:02x}
Temperature:                        {celsius} Celsius
Available Spare:                    100%
Available Spare Threshold:          10%
Percentage Used:                    {used}%
Data Units Read:                    7,193,048 [3.68 TB]
Data Units Written:                 113,662,783 [58.1 TB]
Host Read Commands:                 60,131,549
Host Write Commands:                2,219,922,465
Controller Busy Time:               35,754
Power Cycles:                       6
Power On Hours:                     10,423
Unsafe Shutdowns:                   1
Media and Data Integrity Errors:    7
Error Information Log Entries:      62
Warning  Comp. Temperature Time:    0
Critical Comp. Temperature Time:    0

Error Information (NVMe Log 0x01, max 64 entries)
No Errors Logged
"""


def text_of_sas(serial="OLDTEST3", defects=56, read=0, write=0, celsius=34):
    return f"""{TEXT_HEADER}
=== START OF INFORMATION SECTION ===
Vendor:               TEST
Product:              SAS4000
Revision:             0001
Compliance:           SPC-4
User Capacity:        4,000,787,030,016 bytes [4.00 TB]
Logical block size:   512 bytes
Rotation Rate:        7200 rpm
Form Factor:          3.5 inches
Logical Unit id:      0x5000c50056789abc
Serial number:        {serial}
Device type:          disk
Transport protocol:   SAS (SPL-3)
Local Time is:        Mon Nov 23 14:09:50 2026 UTC
SMART support is:     Available - device has SMART capability.
SMART support is:     Enabled
Temperature Warning:  Enabled

=== START OF READ SMART DATA SECTION ===
SMART Health Status: OK

Current Drive Temperature:     {celsius} C
Drive Trip Temperature:        68 C

Elements in grown defect list: {defects}

Error counter log:
           Errors Corrected by           Total   Correction     Gigabytes    Total
               ECC          rereads/    errors   algorithm      processed    uncorrected
           fast | delayed   rewrites  corrected  invocations   [10^9 bytes]  errors
read:   300357663        0         0  300357663          0     176987.332     {read:6}
write:         0        0         0         0          0      11151.772     {write:6}

Non-medium error count:        9
"""
