"""The answer of a smartctl without JSON (before 7.0): pySMART reads its text, and the result has the JSON's shape."""

from __future__ import annotations

from typing import Any, Final

from gpumon.errors import CollectorError, GpumonError
from gpumon.system.smartctl import Target

_KINDS: Final = ("ata", "nvme", "sas", "sat", "sata", "scsi", "sntasmedia")
_NVME: Final = {
    "critical_warning": "criticalWarning",
    "available_spare": "availableSpare",
    "available_spare_threshold": "availableSpareThreshold",
    "percentage_used": "percentageUsed",
    "media_errors": "integrityErrors",
    "num_err_log_entries": "errorEntries",
    "power_on_hours": "powerOnHours",
    "power_cycles": "powerCycles",
    "unsafe_shutdowns": "unsafeShutdowns",
}


def document_of(target: Target, runner: Any) -> dict[str, Any]:
    """One disk by pySMART's parser. *runner*: its runner of smartctl, which prints text.

    It asks several times; of a disk that may not be read the document holds the text that says so.

    Raises:
        CollectorError: it cannot read the text.
    """
    from pySMART import Device
    from pySMART.interface.nvme import NvmeAttributes

    # pySMART would take the kinds it does not know for an error; those it finds out by itself.
    known = target.type if target.type in _KINDS or "megaraid," in target.type else None
    try:
        device = Device(target.path, interface=known, smartctl=runner)
    except GpumonError:
        raise
    except Exception as error:
        raise CollectorError(f"pySMART cannot read what smartctl says: {type(error).__name__}: {error}") from error
    interface, attributes = str(device.interface or ""), device.if_attributes
    is_nvme = interface == "nvme" or isinstance(attributes, NvmeAttributes)
    is_scsi = interface in ("scsi", "sas") or device.diagnostics is not None
    document: dict[str, Any] = {
        "smartctl": {"exit_status": 0, "output": runner.lines},
        "device": {
            "name": target.path,
            "type": target.type if known else interface,
            "protocol": "NVMe" if is_nvme else "SCSI" if is_scsi else "ATA" if interface else "",
        },
        "model_name": device.model,
        "serial_number": device.serial,
        "firmware_version": device.firmware,
        "user_capacity": {"bytes": device.size},
        "rotation_rate": 0 if device.is_ssd else device.rotation_rate,
        "temperature": {"current": device.temperature},
    }
    if device.assessment in ("PASS", "FAIL", "WARN"):
        document["smart_status"] = {"passed": device.assessment != "FAIL"}
    if is_nvme and document.get("smart_status"):
        document["nvme_smart_health_information_log"] = {
            ours: getattr(attributes, theirs, None) for ours, theirs in _NVME.items()
        }
    elif rows := [each for each in getattr(attributes, "legacyAttributes", None) or () if each is not None]:
        document["ata_smart_attributes"] = {"table": [_row(each) for each in rows]}
    elif (told := device.diagnostics) is not None:
        document["scsi_grown_defect_list"] = told.Reallocated_Sector_Ct
        document["power_on_time"] = {"hours": told.Power_On_Hours}
        uncorrected = {"read": told.Uncorrected_Reads, "write": told.Uncorrected_Writes}
        document["scsi_error_counter_log"] = {
            direction: {"total_uncorrected_errors": count}
            for direction, count in uncorrected.items()
            if count is not None
        }
    return document


def _row(attribute: Any) -> dict[str, Any]:
    failed = {"FAILING_NOW": "now", "In_the_past": "past"}
    return {
        "id": attribute.num,
        "name": attribute.name,
        "value": attribute.value,
        "when_failed": failed.get(str(attribute.when_failed), ""),
        "flags": {"prefailure": attribute.type == "Pre-fail"},
        "raw": {"value": attribute.raw_int, "string": str(attribute.raw)},
    }
