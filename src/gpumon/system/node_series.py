"""Which series are the machine's, the same whoever reads them, and which are a process', a cgroup's or a run's.

The node's agent tells the former only; the export of a process leaves them out where an agent exports them.
"""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.metrics import Attributes

_HOST: Final = frozenset(
    metric.name for metric in (m.CPU_UTILIZATION, m.CPU_BUSIEST, m.MEMORY_USAGE, m.MEMORY_AVAILABLE)
)
_PRESSURE: Final = frozenset(metric.name for metric in (m.PRESSURE_STALL_TIME, m.PRESSURE_STALL_RATIO))
# Of a device, but not the same for all: limits of a cgroup, what a process measured, which devices it uses.
_OWN: Final = frozenset(
    metric.name
    for metric in (
        *(m.DISK_LIMIT_IO, m.DISK_LIMIT_OPERATIONS, m.DISK_UNLOADED_AWAIT, m.DISK_UNLOADED_QUEUE),
        *(m.GPU_PROCESS_MEMORY_USAGE, m.GPU_INFO),
    )
)


def device_of(name: str, attributes: Attributes) -> tuple[str, str] | None:
    """(family, device) of a machine's series by its metric's name; None for any other.

    Families: gpu, disk, smart, kernel, host, pressure, network. A MIG instance and a sensor are their GPU.
    """
    if name in _OWN:
        return None
    if m.HW_ID in attributes and name != m.COLLECTOR_UP.name:
        family = "gpu" if m.GPU_INDEX in attributes else "smart"
        return family, str(attributes.get(m.HW_PARENT) or attributes[m.HW_ID])
    if name.startswith(("system.disk.", "gpumon.disk.")):
        if attributes.get(m.DISK_HOLDS_DATASET) or attributes.get(m.DISK_HOLDS_CHECKPOINTS):
            return None  # what a run does with it is the run's to say
        return "kernel" if name == m.DISK_ERRORS.name else "disk", str(attributes.get(m.SYSTEM_DEVICE, ""))
    if name in _HOST:
        return "host", ""
    if name in _PRESSURE and attributes.get(m.PRESSURE_SCOPE) == "system":
        return "pressure", ""
    if name == m.NETWORK_IO.name:
        return "network", str(attributes.get(m.NETWORK_INTERFACE_NAME, ""))
    return None
