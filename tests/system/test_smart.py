"""What a document says of a disk: the right values of every kind of disk, and of damaged ones what is left."""

import copy
import json
import math
import random

import pytest

import smart_documents as documents
from gpumon.collectors.smart import vitals_of
from gpumon.rules.disk_health import state_of
from gpumon.system import smart
from smart_documents import DOCUMENTS, attribute, changed, document, leaves, words


def values(drive):
    return {value.name: value.value for value in drive.values}


def state(of):
    return state_of(vitals_of(smart.parse(of), {}))


NO_ERRORS = {"reallocated": 0, "uncorrected": 0, "pending": 0, "offline_uncorrectable": 0, "link": 0}
SSD_ERRORS = {"reallocated": 0, "uncorrected": 0, "link": 0}


@pytest.mark.parametrize(
    ("name", "health", "celsius", "used", "counters"),
    [
        ("hdd", "ok", 31.0, None, NO_ERRORS),
        (
            "hdd, failing",
            "predicted_failure",
            31.0,
            None,
            {"reallocated": 22144, "uncorrected": 64138, "pending": 2904, "offline_uncorrectable": 2904, "link": 0},
        ),
        (
            "hdd, another vendor",
            "ok",
            36.0,
            None,
            {"reallocated": 0, "pending": 0, "offline_uncorrectable": 0, "link": 12},
        ),
        ("hdd, 7.0", "ok", 31.0, None, NO_ERRORS),
        ("hdd, its health check fails", "failed", 31.0, None, NO_ERRORS),
        *((f"ssd, {vendor}", "ok", 33.0, 0.19, SSD_ERRORS) for vendor in documents.SSD_WEAR),
        ("ssd, statistics", "ok", 33.0, 0.19, SSD_ERRORS),
        ("ssd, 7.5", "ok", 33.0, 0.19, SSD_ERRORS),
        ("nvme", "ok", 29.0, 0.16, {"media": 0}),
        ("nvme, 7.5", "ok", 29.0, 0.16, {"media": 0}),
        ("nvme, warning", "predicted_failure", 29.0, 0.16, {"media": 0}),
        ("nvme, media errors", "predicted_failure", 29.0, 1.04, {"media": 7}),
        ("nvme behind usb", "ok", 29.0, 0.16, {"media": 0}),
        ("sas hdd", "degraded", 34.0, None, {"reallocated": 56, "uncorrected": 0}),
        ("sas hdd, 7.0", "predicted_failure", 34.0, None, {"reallocated": 0, "uncorrected": 536}),
        ("sas ssd", "ok", 34.0, 0.19, {"reallocated": 0, "uncorrected": 0}),
        ("usb", "ok", 31.0, None, NO_ERRORS),
        ("megaraid", "predicted_failure", 31.0, None, {**NO_ERRORS, "reallocated": 387}),
    ],
)
def test_every_kind_of_disk(name, health, celsius, used, counters):
    """State, temperature, wear and counters, whatever the exit status and the release."""
    drive = smart.parse(document(name))

    assert smart.problem_of(document(name)) == ""
    assert (state(document(name)), drive.temperature_c, drive.counters) == (health, celsius, counters)
    assert drive.used == (None if used is None else pytest.approx(used))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("standby", "asleep (standby)"),
        ("nvme, denied", "Read NVMe Identify Controller failed: NVME_IOCTL_ADMIN_CMD: Permission denied"),
        ("open, denied", "Permission denied"),
        ("sata, denied", "Permission denied (ATA commands need CAP_SYS_RAWIO)"),
        ("sata, denied behind sat", "Permission denied (ATA commands need CAP_SYS_RAWIO)"),
        ("sata, unanswered", "Read Device Identity failed: Operation not permitted"),
        ("gone", "No such device"),
        ("raid volume", "the disk has no SMART, or what it is connected to does not pass it on"),
        ("virtual scsi", "the disk has no SMART"),
        ("virtio", "Unable to detect device type"),
    ],
)
def test_disks_without_health_say_why(name, said):
    """In smartctl's words where it has some; success is health in the document, not the exit status."""
    assert smart.problem_of(document(name)).startswith(said)
    assert not smart.has_health(document(name))


def test_an_error_tells_more_than_what_came_before_it():
    """Messages have a severity."""
    said = [("CHECK POWER MODE not implemented, ignoring -n option", "information"), ("no device", "error")]

    assert smart.problem_of(documents.header(exit_status=2, messages=said)) == "no device"


def test_only_standby_is_sleep():
    """The exit status that we ask for, or smartctl's word, and no health; data of a disk just awake count."""
    assert smart.is_asleep(document("standby"))
    assert smart.is_asleep(
        documents.header(exit_status=2, messages=[("Device is in STANDBY BY TIMER mode, exit(2)", "information")])
    )
    assert smart.is_asleep(documents.header(exit_status=2, output=["", "Device is in STANDBY (OS) mode, exit(2)"]))
    assert not smart.is_asleep(documents.hdd(exit_status=3))
    assert not smart.is_asleep(document("sata, denied"))


def test_a_kind_without_a_judgement_has_health_by_its_counters():
    """Some SAS disks give no status, only their error counters."""
    sas = documents.sas(read=12)
    del sas["smart_status"]

    assert smart.problem_of(sas) == ""
    assert state(sas) == "predicted_failure"


# -- Identity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "wwn", "model", "protocol", "kind", "is_rotating"),
    [
        (documents.hdd(), "5000c500423a35c7", "ST4000TEST-1V4107", "ATA", "sat", True),
        (documents.ssd(), "500253800021e88e", "SSD TEST 480GB", "ATA", "sat", False),
        (documents.usb(), "5000c500423a35c7", "ST4000TEST-1V4107", "ATA", "usbjmicron", True),
        (documents.megaraid(3), "5000c500423a35c7", "ST4000TEST-1V4107", "ATA", "sat+megaraid,3", True),
        (documents.nvme(), "002538b311b35fc9", "NVME TEST 1TB", "NVMe", "nvme", False),
        (documents.sas(), "5000c50056789abc", "TEST SAS4000", "SCSI", "scsi", True),
        (documents.sas(release=(7, 0)), "5000c50056789abc", "TEST SAS4000", "SCSI", "scsi", True),
        (document("sas ssd"), "5000c50056789abc", "TEST SAS4000", "SCSI", "scsi", False),
    ],
)
def test_identity(of, wwn, model, protocol, kind, is_rotating):
    """In one shape for every protocol and release."""
    drive = smart.parse(of)

    assert (drive.wwn, drive.model, drive.protocol, drive.type) == (wwn, model, protocol, kind)
    assert drive.is_rotating is is_rotating
    assert drive.id == drive.serial_number == of["serial_number"]
    assert drive.size_bytes == of["user_capacity"]["bytes"]


@pytest.mark.parametrize(
    ("serial", "identity"),
    [
        ("  S3 TEST 1 ", "S3 TEST 1"),
        ("", "5000c500423a35c7"),
        ("0000-0000", "5000c500423a35c7"),
        ("0123456789ABCDEF", "5000c500423a35c7"),
        ("Unknown", "5000c500423a35c7"),
        (None, "5000c500423a35c7"),
    ],
)
def test_a_placeholder_is_no_serial_number(serial, identity):
    """Cheap bridges print one; the WWN is the next best."""
    assert smart.parse(documents.hdd(serial)).id == identity


def test_without_any_number_a_disk_has_no_identity():
    """The caller names it by its place."""
    assert smart.parse(documents.hdd("", wwn=None)).id == ""


# -- Raw values -----------------------------------------------------------------------------------------


def test_packed_raw_values_are_taken_apart():
    """Timeouts of three kinds, temperatures with extremes, hours with milliseconds, errors above operations."""
    found = values(smart.parse(documents.hdd(timeouts=12_885_098_517)))

    assert found["Command_Timeout"] == 21
    assert found["Airflow_Temperature_Cel"] == found["Temperature_Celsius"] == 31
    assert found["Power_On_Hours"] == 15823
    assert found["Head_Flying_Hours"] == 12523
    assert found["Raw_Read_Error_Rate"] == 0
    assert found["Seek_Error_Rate"] == 4
    assert found["Total_LBAs_Written"] == 385_165_652_077
    assert values(smart.parse(documents.hdd_of_another_vendor()))["Spin_Up_Time"] == 180


@pytest.mark.parametrize(
    ("row", "number"),
    [
        (attribute(9, "Power_On_Hours", 56_962_800, "15823h+00m"), 15823),
        (attribute(9, "Power_On_Hours_and_Msec", 1_464_123 << 32 | 15823, "15823h+24m+24.123s"), 15823),
        (attribute(9, "Power_On_Hours", 37 << 32 | 15823), 15823),
        (attribute(188, "Command_Timeout", words(3, 3, 21), "3 3 21"), 21),
        (attribute(1, "Raw_Read_Error_Rate", 2 << 32 | 239_307_048, "2/239307048"), 2),
        (attribute(198, "Uncorrectable_Sector_Ct", 1 << 32 | 218_571, "1/218571"), 1),
        (attribute(5, "Reallocated_Sector_Ct", words(0, 8, 304), "304 (0 8)"), 304),
        (attribute(5, "Reallocated_Sector_Ct", "304"), 304),
        (attribute(5, "Reallocated_Sector_Ct", None, "304"), 304),
        (attribute(195, "Hardware_ECC_Recovered", 35, "0 0 0 0 0 35"), 35),
        (attribute(194, "Temperature_Celsius", 35, "0x000000000023"), 35),
        (attribute(190, "Drive_Temperature", words(2689, 14635, 45), "45 (Min/Max 43/57 #2689)"), 45),
        (attribute(170, "Available_Reservd_Space", (1 << 53) + 1), (1 << 53) + 1),
    ],
)
def test_every_format_that_smartctl_prints(row, number):
    """The first number, where others stand behind it; the whole value where the order is another one."""
    drive = smart.parse(documents.ata([row], serial="S", model="M", celsius=None, rpm=7200))

    assert values(drive) == {row["name"]: pytest.approx(number)}


def test_seagates_error_rates_are_seagates():
    """The same number of another vendor's counts errors."""
    row = attribute(1, "Raw_Read_Error_Rate", 341)

    assert values(smart.parse(documents.ata([row], serial="S", model="WDC WD20", rpm=5400)))[row["name"]] == 341
    assert values(smart.parse(documents.ata([row], serial="S", model="ST4000", rpm=5400)))[row["name"]] == 0


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        (attribute(5, "Retired_Block_Count", 3), {"reallocated": 3}),
        (attribute(5, "Reallocate_NAND_Blk_Cnt", 3), {"reallocated": 3}),
        (attribute(5, "New_Bad_Blk_Count", 3), {"reallocated": 3}),
        (attribute(5, "Erase_Time", 3), {}),
        (attribute(187, "Total_Unc_NAND_Reads", 3), {}),
        (attribute(187, "Reported_UE_Counts", 3), {"uncorrected": 3}),
        (attribute(197, "ECC_Error_Count", 3), {}),
        (attribute(198, "Host_Reads_GiB", 3), {}),
        (attribute(199, "Host_Writes_GiB", 3), {}),
        (attribute(199, "SATA_CRC_Error_Count", 3), {"link": 3}),
        (attribute(197, "Unknown_SSD_Attribute", 3), {}),
        (attribute(188, "Command_Timeout", 3), {}),
    ],
)
def test_numbers_mean_what_their_name_says(row, counted):
    """Vendors of SSDs give some numbers other meanings: no alarm about gigabytes."""
    assert smart.parse(documents.ata([row], serial="S", model="M", rpm=0)).counters == counted


def test_attributes_that_are_not_in_the_database_are_told_apart():
    """Of a turning disk their numbers are known all the same."""
    rows = [attribute(number, "Unknown_Attribute", number) for number in (5, 197, 250)]
    drive = smart.parse(documents.ata(rows, serial="S", model="M", rpm=7200))

    assert values(drive) == {"Unknown_Attribute": 5, "Unknown_Attribute_197": 197, "Unknown_Attribute_250": 250}
    assert drive.counters == {"reallocated": 5, "pending": 197}


def test_attributes_below_their_threshold():
    """Those that foretell failure; an age that has passed is none, and no heat of last summer."""
    rows = [
        attribute(5, "Reallocated_Sector_Ct", 1975, value=1, thresh=5, prefail=True, when="now"),
        attribute(10, "Spin_Retry_Count", 0, thresh=97, prefail=True, when="past"),
        attribute(190, "Airflow_Temperature_Cel", 61, value=39, thresh=40, when="now"),
        attribute(193, "Load_Cycle_Count", 900_000, value=1, when="past"),
    ]
    drive = smart.parse(documents.ata(rows, serial="S", model="M", rpm=7200))

    assert (drive.failing, drive.failed_before) == (("Reallocated_Sector_Ct",), ("Spin_Retry_Count",))


def test_the_log_of_self_tests_counts():
    """A bit of the exit status; that of the error log says nothing."""
    assert smart.parse(documents.hdd(exit_status=128)).self_test_failed
    assert not smart.parse(documents.hdd(exit_status=64)).self_test_failed


# -- Wear -----------------------------------------------------------------------------------------------


def test_the_device_statistics_are_the_first_to_tell():
    """Before the attributes, and those before smartctl's guess from one of them."""
    rows = documents.SSD_WEAR["silicon motion"]

    assert smart.parse(documents.ssd_with_statistics(42, rows=rows)).used == 0.42
    assert smart.parse(documents.ssd("silicon motion", endurance_used={"current_percent": 0})).used == 0.19


@pytest.mark.parametrize(
    ("row", "used"),
    [
        (attribute(202, "Percent_Lifetime_Remain", 0, value=100), 0.0),
        (attribute(202, "Percent_Lifetime_Remain", 1, value=99), 0.01),
        (attribute(202, "Percent_Lifetime_Remain", 100, value=0), 1.0),
        (attribute(231, "SSD_Life_Left", 0, value=100), 0.0),
        (attribute(231, "SSD_Life_Left", 7, value=93), 0.07),
        (attribute(245, "Percent_Life_Remaining", 100, value=100), 0.0),
        (attribute(173, "Wear_Leveling_Count", 1758, value=1, thresh=5), 0.99),
        (attribute(173, "Wear_Leveling_Count", 957_808_640_337, value=185, thresh=100), None),
        (attribute(230, "Media_Wearout_Indicator", 0, value=1), None),
        (attribute(232, "Available_Reservd_Space", 0, value=5), None),
        (attribute(241, "Lifetime_Writes_GiB", 42, value=5), None),
        (attribute(161, "Spare_Blocks_Remaining", 42, value=5), None),
    ],
)
def test_wear_by_vendor(row, used):
    """Normalized or raw, as the vendor has it; nothing where nobody knows what it means."""
    drive = smart.parse(documents.ata([row], serial="S", model="M", rpm=0))

    assert drive.used == (None if used is None else pytest.approx(used))


def test_turning_disks_do_not_wear():
    """Whatever an attribute of the same name says."""
    assert smart.parse(documents.hdd(rows=documents.SSD_WEAR["samsung"])).used is None


# -- NVMe and SCSI --------------------------------------------------------------------------------------


def test_numbers_that_json_cannot_hold():
    """They come with their text, which is no second attribute."""
    found = values(smart.parse(documents.nvme(written=10**22)))

    assert found["data_units_written"] == pytest.approx(1e22)
    assert "data_units_written_s" not in found
    assert {"temperature", "nsid", "temperature_sensors"}.isdisjoint(found)


def test_the_warning_is_known_without_the_log():
    """`--health` alone, or a log that could not be read."""
    nvme = documents.nvme(warning=4)
    del nvme["nvme_smart_health_information_log"]

    assert smart.parse(nvme).critical_warning == 4
    assert state(nvme) == "predicted_failure"


@pytest.mark.parametrize(
    ("bits", "health"),
    [
        *((bits, "predicted_failure") for bits in (1, 4, 8, 16, 32, 6)),
        (0, "ok"),
        (2, "degraded"),
        (64, "failed"),
    ],
)
def test_every_bit_of_the_warning(bits, health):
    """Heat is no failure; a bit that nobody knows yet is what the disk itself says of it."""
    assert state(documents.nvme(warning=bits)) == health


@pytest.mark.parametrize(("celsius", "found"), [(0, 0.0), (-5, -5.0), (-273, None), (250, None), ("40", 40.0)])
def test_temperatures_that_can_be(celsius, found):
    """NVMe has 0 °C; a sensor that is not there says -273."""
    assert smart.parse(documents.nvme(celsius=20) | {"temperature": {"current": celsius}}).temperature_c == found


def test_a_sas_disk_without_a_sensor():
    """It says 0."""
    assert smart.parse(documents.sas(celsius=0)).temperature_c is None


def test_sas_counts_what_ata_counts():
    """Grown defects are reallocated; uncorrected errors of all directions."""
    drive = smart.parse(documents.sas(defects=8, read=3, write=4))

    assert drive.counters == {"reallocated": 8, "uncorrected": 7}
    assert values(drive)["read_total_uncorrected_errors"] == 3
    assert values(drive)["power_on_hours"] == 43549


# -- Damaged documents ----------------------------------------------------------------------------------

DAMAGE = (None, "damaged", "", -1, 10**30, 1e300, math.nan, True, [], {}, [None], "9" * 5000, ...)
MAY_CHANGE = {
    "serial_number": ("serial_number",),
    "wwn": ("wwn", "nvme_namespaces", "logical_unit_id"),
    "firmware": ("firmware_version", "revision"),
    "size_bytes": ("user_capacity", "nvme_total_capacity"),
    "passed": ("smart_status",),
    "critical_warning": ("nvme_smart_health_information_log", "smart_status"),
    "spare": ("nvme_smart_health_information_log",),
    "self_test_failed": ("smartctl",),
    "failing": ("ata_smart_attributes",),
    "temperature_c": ("temperature", "nvme_smart_health_information_log", "ata_smart_attributes", "device"),
}
"""The fields of a disk, and the members of a document that they come from."""


SAME_MEMBERS = {f"ssd, {vendor}" for vendor in documents.SSD_WEAR if vendor != "samsung"} | {"hdd", "hdd, 7.0", "usb"}
"""Documents that have no member which others do not have."""


def of_all(of):
    """Everything that is made of a document; nothing of it raises."""
    drive = smart.parse(of)
    assert isinstance(smart.problem_of(of), str)
    texts = [smart.problem_of(of), drive.id, drive.model, drive.firmware, drive.type, *drive.failing]
    texts += [value.name for value in drive.values]
    assert all(len(text) <= 220 and text.isprintable() for text in texts)
    smart.is_asleep(of)
    assert all(math.isfinite(value.value) for value in drive.values)
    assert all(0 <= count < 1 << 63 for count in drive.counters.values())
    assert drive.used is None or 0 <= drive.used <= 2.55
    assert 0 <= drive.critical_warning < 256
    assert state_of(vitals_of(drive, {})) in ("ok", "degraded", "predicted_failure", "failed")
    return drive


def counter_of(of, path):
    """The counter that this leaf is a part of."""
    if path[:2] == ("ata_smart_attributes", "table") and len(path) > 2:
        return smart.COUNTERS.get(of["ata_smart_attributes"]["table"][path[2]]["id"])
    ends = {
        "media_errors": "media",
        "scsi_grown_defect_list": "reallocated",
        "total_uncorrected_errors": "uncorrected",
    }
    return ends.get(path[-1])


@pytest.mark.parametrize("name", sorted(set(DOCUMENTS) - SAME_MEMBERS))
def test_a_damaged_field_harms_no_other(name):
    """Each in turn is gone, or of a wrong type, or far too large: what comes from others stays."""
    of = document(name)
    whole = of_all(of)
    for path in list(leaves(of)):
        mine = counter_of(of, path)
        others = {counter: count for counter, count in whole.counters.items() if counter != mine}
        for damage in DAMAGE:
            with changed(of, path, damage) as damaged:
                drive = of_all(damaged)
            where = (path, damage)
            assert {counter: drive.counters.get(counter) for counter in others} == others, where
            assert set(drive.counters) - {mine} == set(others), where
            for field, members in MAY_CHANGE.items():
                if path[0] not in members:
                    assert getattr(drive, field) == getattr(whole, field), (field, where)
    assert of == document(name)


def test_a_damaged_row_is_left_out_and_the_others_stand():
    """As the name says."""
    hdd = documents.hdd(reallocated=304, pending=8)
    hdd["ata_smart_attributes"]["table"][2:2] = [None, "row", {}, {"id": "x"}, {"id": 5.5}, {"id": 900, "raw": {}}]

    assert of_all(hdd).counters == {**NO_ERRORS, "reallocated": 304, "pending": 8}


@pytest.mark.parametrize("raw", [-5, -1.0, 1e30, 1 << 63, None, "many", math.nan])
def test_a_count_that_cannot_be_is_absent(raw):
    """Never 0, and never a false alarm."""
    hdd = documents.hdd(pending=8)
    hdd["ata_smart_attributes"]["table"][2]["raw"] = {"value": raw, "string": "?"}

    drive = of_all(hdd)
    assert "reallocated" not in drive.counters
    assert drive.counters["pending"] == 8


@pytest.mark.parametrize("percent", [-1, 256, 1e30, "x", None])
def test_a_percentage_that_cannot_be_is_absent(percent):
    nvme = documents.nvme()
    nvme["nvme_smart_health_information_log"] |= {"percentage_used": percent, "available_spare": percent}

    drive = of_all(nvme)
    assert (drive.used, drive.spare) == (None, None)
    assert state_of(vitals_of(drive, {})) == "ok"


KEYS = sorted({key for of in DOCUMENTS.values() for path in leaves(of) for key in path if isinstance(key, str)})


def anything(chance, depth=0):
    """Random JSON out of the words that documents have."""
    kind = chance.randrange(6 if depth < 5 else 4)
    if kind == 0:
        return chance.choice([None, True, False, -1, 0, 3, 255, 1 << 47, 10**40, 1e9, math.nan, math.inf])
    if kind == 1:
        return chance.choice(
            ["", "now", "past", "5", "x" * 300, "ST4000", "Seagate", "304 (0 8)", "1h", "NVMe", "\ud800"]
        )
    if kind == 2:
        return chance.choice([5, 9, 187, 188, 194, 197, 230, 231])
    if kind == 3:
        return chance.choice(KEYS)
    if kind == 4:
        return [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): anything(chance, depth + 1) for _ in range(chance.randrange(6))}


@pytest.mark.parametrize("seed", range(4))
def test_no_document_at_all_raises(seed):
    """Random ones, and real ones with random parts."""
    chance = random.Random(seed)
    names = list(DOCUMENTS)
    for _ in range(800):
        of_all({chance.choice(KEYS): anything(chance, 1) for _ in range(8)})
        of = copy.deepcopy(DOCUMENTS[chance.choice(names)])
        paths = list(leaves(of))
        for _ in range(3):
            path = chance.choice(paths)
            holder = of
            try:
                for key in path[: chance.randrange(len(path))]:
                    holder = holder[key]
                holder[chance.choice(list(holder))] = anything(chance)
            except (KeyError, IndexError, TypeError):
                continue
        of_all(of)


def test_all_documents_are_what_json_can_hold():
    """The builders make no Python of their own."""
    for of in DOCUMENTS.values():
        assert json.loads(json.dumps(of)) == of


@pytest.mark.parametrize(
    ("name", "raw", "value", "used"),
    [("Drive_Life_Used%", 19, 100, 0.19), ("Drive_Life_Used", 0, 81, 0.19), ("SSD_Life_Left", 81, 100, 0.19)],
)
def test_what_is_used_is_not_what_is_left(name, raw, value, used):
    """Where the normalized value stays at 100, the raw one says it, in the words of its name."""
    drive = smart.parse(documents.ssd("none", rows=[documents.attribute(169, name, raw, value=value)]))

    assert drive.used == pytest.approx(used)
