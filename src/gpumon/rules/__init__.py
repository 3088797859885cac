"""Judgements over rows of views: pure functions, no clock, no I/O. The names that they may give:"""

from typing import Final

VERDICTS: Final = (
    "insufficient_data",
    "data_loading_bound",
    "transfer_bound",
    "communication_bound",
    "throttled",
    "compute_bound",
    "overhead_bound",
    "balanced",
)
CAUSES: Final = (
    "disk_slow",
    "disk_quota",
    "disk_contended",
    "disk_saturated",
    "memory_pressure",
    "network_filesystem",
    "network",
    "loader_cpu",
    "cpu_limit",
    "too_few_workers",
    "handover",
    "worker_startup",
    "unknown",
)
RULES: Final = (
    "DataLoadingBound",
    "FirstBatchSlow",
    "TransferBound",
    "CommunicationBound",
    "OverheadBound",
    "GpuThermalThrottling",
    "GpuPowerCapped",
    "GpuOverheating",
    "PcieLinkDegraded",
    "GpuMemoryGrowth",
    "GpuMemoryPressure",
    "GpuError",
    "DiskFailing",
    "DiskWearing",
    "DiskCableErrors",
    "CollectorBlind",
)
