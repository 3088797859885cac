"""The catalogue: every metric that gpumon emits, once.

Instruments are created from it; docs, views and rules are checked against it. Names that OpenTelemetry
defines (semantic conventions 1.44) are used exactly as defined; everything else is `gpumon.*`.
Units are UCUM base units, utilization is 0..1, points carry identity only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Kind = Literal["gauge", "counter", "updowncounter", "histogram"]
AttributeValue = str | bool | int | float
Attributes = Mapping[str, AttributeValue]

_NOTHING: Attributes = {}
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
SCOPE: Final = "gpumon"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the catalogue. `attributes` are the attributes that its points may carry."""

    name: str
    kind: Kind
    unit: str  # UCUM: "1", "By", "s", "{error}"
    description: str
    attributes: tuple[str, ...] = ()
    is_state: bool = False
    """A gauge whose latest value counts: a mean over a window would be a number that never was (304.5 sectors)."""

    def __hash__(self) -> int:
        return hash(self.name)


class Reading(NamedTuple):
    """One value of one series, as a collector yields it.

    A counter's `value` is cumulative. A gauge's is the momentary value, and the export reports the mean
    over its window; or, with `per`, `value` and `per` are both cumulative and the export reports
    Δvalue ÷ Δper over its window, and nothing where Δper is 0 (a disk's await: read time per read).
    """

    metric: Metric
    value: float
    attributes: Attributes = _NOTHING
    per: float | None = None


# Attributes. The first block is OpenTelemetry's, the rest is ours.
HW_ID = "hw.id"
HW_TYPE = "hw.type"
HW_MODEL = "hw.model"
HW_SERIAL_NUMBER = "hw.serial_number"
SYSTEM_DEVICE = "system.device"
DISK_IO_DIRECTION = "disk.io.direction"  # read, write
NETWORK_IO_DIRECTION = "network.io.direction"  # receive, transmit
NETWORK_INTERFACE_NAME = "network.interface.name"
CPU_MODE = "cpu.mode"  # user, system, nice, idle, iowait, interrupt, steal
SYSTEM_MEMORY_STATE = "system.memory.state"  # used, free, cached, buffers
SYSTEM_PAGING_FAULT_TYPE = "system.paging.fault.type"  # major, minor
SYSTEM_FILESYSTEM_MOUNTPOINT = "system.filesystem.mountpoint"
SYSTEM_FILESYSTEM_TYPE = "system.filesystem.type"
ERROR_TYPE = "error.type"

COLLECTOR = "gpumon.collector"
REASON = "gpumon.reason"
STAGE = "gpumon.stage"  # train, validation, test, predict
PHASE = "gpumon.phase"  # PHASES, or a name of the user's
PROCESS_ROLE = "gpumon.process.role"  # trainer, loader_worker
FETCH_ACCOUNT = "gpumon.fetch.account"  # FETCH_ACCOUNTS
FETCH_CALL = "gpumon.fetch.call"  # what `blocked.other` blocks in: futex, pipe, child, …
FETCH_FILE_SYSTEM = "gpumon.fetch.file_system"  # of `blocked.network_fs`: nfs4, fuse.sshfs, …
WORKER_ID = "gpumon.worker.id"  # the DataLoader's number of the worker; -1: the training thread itself
PRESSURE_RESOURCE = "gpumon.pressure.resource"  # io, cpu, memory
PRESSURE_KIND = "gpumon.pressure.kind"  # some, full
PRESSURE_SCOPE = "gpumon.pressure.scope"  # system, cgroup
DISK_TYPE = "gpumon.disk.type"  # HDD, SSD, NVMe, virtual
DISK_HOLDS_DATASET = "gpumon.disk.holds_dataset"
DISK_HOLDS_CHECKPOINTS = "gpumon.disk.holds_checkpoints"
K8S_NAMESPACE_NAME = "k8s.namespace.name"
K8S_POD_NAME = "k8s.pod.name"
K8S_POD_UID = "k8s.pod.uid"
K8S_CONTAINER_NAME = "k8s.container.name"
JOB_ID = "gpumon.job.id"  # SLURM_JOB_ID, as the job itself has it
JOB_ARRAY = "gpumon.job.array"  # of a task of an array: 1234_7
JOB_STEP = "gpumon.job.step"  # 0, 1, …, batch, interactive
JOB_USER = "gpumon.job.user"
DISK_PARENTS = "gpumon.disk.parents"  # devices below this one: "sda,sdb"
DATA_PATH = "gpumon.data.path"
STORAGE_KIND = "gpumon.storage.kind"  # block, network, memory, container, unknown
LIMIT_SOURCE = "gpumon.limit.source"  # the file that sets a limit
BENCH_PATTERN = "gpumon.bench.pattern"  # sequential, random: how `gpumon bench` read
BENCH_PARALLEL = "gpumon.bench.parallel"  # how many reads at a time
OVERHEAD = "gpumon.overhead"  # hot_path, background
SIGNAL = "gpumon.signal"  # traces, metrics, logs
HW_PARENT = "hw.parent"
HW_STATE = "hw.state"  # ok, degraded, predicted_failure, failed
HW_LIMIT_TYPE = "hw.limit_type"  # high.degraded: it slows down, high.critical: it shuts down
HW_VENDOR = "hw.vendor"
HW_DRIVER_VERSION = "hw.driver_version"
HW_GPU_TASK = "hw.gpu.task"  # general, encoder, decoder
PROCESS_PID = "process.pid"
GPU_INDEX = "gpumon.gpu.index"  # NVML's number: the order on the PCI bus
DEVICE_INDEX = "gpumon.device.index"  # as the framework counts the devices that it may use
ALLOCATOR_STATE = "gpumon.allocator.state"  # allocated, reserved
GPU_CLOCK = "gpumon.gpu.clock"  # sm, memory
GPU_THROTTLE_REASON = "gpumon.gpu.throttle.reason"  # sw_power_cap, hw_thermal_slowdown, …
GPU_REMAP = "gpumon.gpu.remap"  # correctable, uncorrectable, pending, failed
GPU_PCI_BUS_ID = "gpumon.gpu.pci.bus_id"
GPU_MIG = "gpumon.gpu.mig"  # off, on; instance for a part of a GPU
GPU_XID = "gpumon.gpu.xid"
HW_FIRMWARE_VERSION = "hw.firmware_version"
PHYSICAL_DISK_TYPE = "hw.physical_disk.type"  # HDD, SSD, NVMe
PHYSICAL_DISK_STATE = "hw.physical_disk.state"  # remaining
SMART_ATTRIBUTE = "hw.physical_disk.smart_attribute"  # as smartctl names it
SMART_NUMBER = "gpumon.smart.attribute.number"  # of an ATA attribute: 5, 187, …
SMART_COUNTER = "gpumon.smart.counter"  # reallocated, uncorrected, pending, offline_uncorrectable, media, link
SMART_WHEN = "gpumon.smart.when"  # now, before
SMART_PROTOCOL = "gpumon.smart.protocol"  # ATA, NVMe, SCSI
SMART_TARGET = "gpumon.smart.target"  # how smartctl addresses it: /dev/sda, /dev/bus/0 (megaraid,1)

PHASES: Final = (
    "data.wait",
    "transfer",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "checkpoint",
    "other",
)
STAGES: Final = ("train", "validation", "test", "predict")
FETCH_ACCOUNTS: Final = (
    "cpu",
    "runnable",
    "blocked.disk",
    "blocked.network_fs",
    "blocked.socket",
    "blocked.memory",
    "blocked.sleep",
    "blocked.other",
)

CATALOGUE: list[Metric] = []


def _metric(name: str, kind: Kind, unit: str, description: str, *attributes: str, is_state: bool = False) -> Metric:
    metric = Metric(name, kind, unit, description, attributes, is_state)
    CATALOGUE.append(metric)
    return metric


# -- Training (tracing) -------------------------------------------------------------------------------
STEP_COUNT = _metric("gpumon.step.count", "counter", "{step}", "Steps: optimizer updates.", STAGE)
SAMPLE_COUNT = _metric("gpumon.sample.count", "counter", "{sample}", "Samples that steps used.", STAGE)
EPOCH_COUNT = _metric("gpumon.epoch.count", "counter", "{epoch}", "Iterations over a loader that fed a step.", STAGE)
STEP_FAILURES = _metric("gpumon.step.failures", "counter", "{step}", "Steps that raised.", STAGE)
STEP_SKIPPED = _metric(
    "gpumon.step.skipped", "counter", "{step}", "Updates that a gradient scaler skipped (inf or NaN gradients).", STAGE
)
STEP_ASSUMED = _metric(
    "gpumon.step.assumed",
    "counter",
    "{step}",
    "Steps whose boundary was assumed, because the optimizer's update could not be seen.",
    STAGE,
)
STEP_TIME = _metric("gpumon.step.time", "counter", "s", "Time spent in steps.", STAGE)
PHASE_TIME = _metric(
    "gpumon.phase.time", "counter", "s", "Time spent per phase of a step; phases add up to the step.", STAGE, PHASE
)
ALLOCATOR_MEMORY_USAGE = _metric(
    "gpumon.allocator.memory.usage",
    "updowncounter",
    "By",
    "Device memory that the framework's allocator gave out (allocated) and holds (reserved).",
    DEVICE_INDEX,
    ALLOCATOR_STATE,
)
STEP_GPU_COUNT = _metric("gpumon.step.gpu.count", "counter", "{step}", "Steps whose device time was measured.", STAGE)
STEP_GPU_TIME = _metric(
    "gpumon.step.gpu.time",
    "counter",
    "s",
    "Time of those steps on the device's compute stream, its idle included.",
    STAGE,
)
PHASE_GPU_TIME = _metric(
    "gpumon.phase.gpu.time",
    "counter",
    "s",
    "Device time of those steps per phase; adds up to their time.",
    STAGE,
    PHASE,
)
FIRST_OF_EPOCH_COUNT = _metric(
    "gpumon.first_of_epoch.count", "counter", "{step}", "Steps that began with the first batch of an epoch.", STAGE
)
FIRST_OF_EPOCH_WAIT_TIME = _metric(
    "gpumon.first_of_epoch.wait.time",
    "counter",
    "s",
    "Wait for the first batch of each epoch, part of data.wait.",
    STAGE,
)
FIRST_OF_EPOCH_STEP_TIME = _metric(
    "gpumon.first_of_epoch.step.time", "counter", "s", "Time of the steps that began an epoch.", STAGE
)
STEP_DURATION = _metric("gpumon.step.duration", "histogram", "s", "Duration of a step.", STAGE)
DATA_WAIT_DURATION = _metric("gpumon.data.wait.duration", "histogram", "s", "Wait for data in a step.", STAGE)
DATA_WAIT_UTILIZATION = _metric(
    "gpumon.data.wait.utilization", "gauge", "1", "Share of the window's step time spent waiting for data.", STAGE
)
BACKGROUND_FETCH_COUNT = _metric(
    "gpumon.fetch.background.count",
    "counter",
    "{batch}",
    "Batches fetched by a thread that trains nothing; their waits are in no step.",
)
LOADER_STARTUP_TIME = _metric(
    "gpumon.loader.startup.time", "counter", "s", "Time to make a loader's iterator: workers starting."
)

# -- Fetch accounts -----------------------------------------------------------------------------------
FETCH_COUNT = _metric("gpumon.fetch.count", "counter", "{batch}", "Batches that workers fetched.", WORKER_ID)
FETCH_TIME = _metric(
    "gpumon.fetch.time",
    "counter",
    "s",
    "Where fetches spent their time; the accounts add up to the wall time of all fetches.",
    FETCH_ACCOUNT,
    SYSTEM_DEVICE,
    WORKER_ID,
    FETCH_CALL,
    FETCH_FILE_SYSTEM,
)
FETCH_READ = _metric(
    "gpumon.fetch.read",
    "counter",
    "By",
    "Bytes that fetches really read from a device, page cache left out.",
    SYSTEM_DEVICE,
)
FETCH_READY_AGE = _metric(
    "gpumon.fetch.ready_age",
    "histogram",
    "s",
    "How long a batch lay ready before it was asked for; 0 when the trainer waited.",
)
FETCH_LOST = _metric(
    "gpumon.fetch.lost", "counter", "{batch}", "Fetch records overwritten before they were read; in no account."
)
HANDOVER_TIME = _metric(
    "gpumon.fetch.handover.time",
    "counter",
    "s",
    "Part of data waits, other than for an epoch's first batch, after the batch was ready in its worker: "
    "unpickling, shared memory, the GIL.",
)
LOADER_WORKERS = _metric("gpumon.loader.workers", "gauge", "{worker}", "Workers of the loader that feeds the steps.")
LOADER_PREFETCH = _metric("gpumon.loader.prefetch", "gauge", "{batch}", "Batches prefetched per worker, as set.")
LOADER_BATCH_SIZE = _metric("gpumon.loader.batch_size", "gauge", "{sample}", "Samples per batch, as set.")
LOADER_PERSISTENT = _metric(
    "gpumon.loader.persistent", "gauge", "1", "1 where the loader keeps its workers between epochs, else 0."
)
DATASET_INFO = _metric(
    "gpumon.dataset.info",
    "gauge",
    "1",
    "One series per place that data is read from.",
    DATA_PATH,
    STORAGE_KIND,
    SYSTEM_DEVICE,
    SYSTEM_FILESYSTEM_MOUNTPOINT,
    SYSTEM_FILESYSTEM_TYPE,
)

# -- Disk ---------------------------------------------------------------------------------------------
DISK_IO = _metric("system.disk.io", "counter", "By", "Disk bytes transferred.", SYSTEM_DEVICE, DISK_IO_DIRECTION)
DISK_OPERATIONS = _metric(
    "system.disk.operations", "counter", "{operation}", "Disk operations.", SYSTEM_DEVICE, DISK_IO_DIRECTION
)
DISK_OPERATION_TIME = _metric(
    "system.disk.operation_time",
    "counter",
    "s",
    "Sum of the time each operation took to complete.",
    SYSTEM_DEVICE,
    DISK_IO_DIRECTION,
)
DISK_IO_TIME = _metric("system.disk.io_time", "counter", "s", "Time the disk spent activated.", SYSTEM_DEVICE)
DISK_MERGED = _metric(
    "system.disk.merged", "counter", "{operation}", "Operations merged into one.", SYSTEM_DEVICE, DISK_IO_DIRECTION
)
DISK_AWAIT = _metric(
    "gpumon.disk.await",
    "gauge",
    "s",
    "Mean time of an operation over the window (iostat's r_await, w_await); absent without I/O.",
    SYSTEM_DEVICE,
    DISK_IO_DIRECTION,
)
DISK_UTILIZATION = _metric(
    "gpumon.disk.utilization", "gauge", "1", "Share of time with requests in flight (iostat's %util).", SYSTEM_DEVICE
)
DISK_QUEUE_LENGTH = _metric(
    "gpumon.disk.queue.length",
    "gauge",
    "{request}",
    "Mean number of requests in flight (iostat's aqu-sz).",
    SYSTEM_DEVICE,
)
DISK_REQUEST_SIZE = _metric(
    "gpumon.disk.request.size",
    "gauge",
    "By",
    "Mean size of a request (iostat's rareq-sz, wareq-sz); absent without I/O.",
    SYSTEM_DEVICE,
    DISK_IO_DIRECTION,
)
DISK_IN_FLIGHT = _metric("gpumon.disk.in_flight", "gauge", "{request}", "Requests in flight.", SYSTEM_DEVICE)
DISK_UNLOADED_AWAIT = _metric(
    "gpumon.disk.unloaded.await",
    "gauge",
    "s",
    "Latency of a small direct read while nobody else queued: median of three.",
    SYSTEM_DEVICE,
)
DISK_UNLOADED_QUEUE = _metric(
    "gpumon.disk.unloaded.queue",
    "gauge",
    "{request}",
    "Requests of others in flight while the unloaded latency was measured.",
    SYSTEM_DEVICE,
)
DISK_LIMIT_IO = _metric(
    "gpumon.disk.limit.io",
    "gauge",
    "By/s",
    "Bytes per second that this cgroup may transfer.",
    SYSTEM_DEVICE,
    DISK_IO_DIRECTION,
    LIMIT_SOURCE,
)
DISK_LIMIT_OPERATIONS = _metric(
    "gpumon.disk.limit.operations",
    "gauge",
    "{operation}/s",
    "Operations per second that this cgroup may do.",
    SYSTEM_DEVICE,
    DISK_IO_DIRECTION,
    LIMIT_SOURCE,
)
DISK_CEILING_IO = _metric(
    "gpumon.disk.ceiling.io",
    "gauge",
    "By/s",
    "Bytes per second that `gpumon bench` read from this disk.",
    SYSTEM_DEVICE,
    BENCH_PATTERN,
    BENCH_PARALLEL,
    is_state=True,
)
DISK_CEILING_OPERATIONS = _metric(
    "gpumon.disk.ceiling.operations",
    "gauge",
    "{operation}/s",
    "Requests per second that this disk answered meanwhile.",
    SYSTEM_DEVICE,
    BENCH_PATTERN,
    BENCH_PARALLEL,
    is_state=True,
)
_SAMPLED = " Only `gpumon sample` reads it."
DISK_DISCARD_OPERATIONS = _metric(
    "gpumon.disk.discard.operations", "counter", "{operation}", f"Discards (trim).{_SAMPLED}", SYSTEM_DEVICE
)
DISK_DISCARD_MERGED = _metric(
    "gpumon.disk.discard.merged", "counter", "{operation}", f"Discards merged into one.{_SAMPLED}", SYSTEM_DEVICE
)
DISK_DISCARD_IO = _metric("gpumon.disk.discard.io", "counter", "By", f"Bytes discarded.{_SAMPLED}", SYSTEM_DEVICE)
DISK_DISCARD_TIME = _metric(
    "gpumon.disk.discard.time", "counter", "s", f"Sum of the time each discard took.{_SAMPLED}", SYSTEM_DEVICE
)
DISK_FLUSH_OPERATIONS = _metric(
    "gpumon.disk.flush.operations", "counter", "{operation}", f"Flushes of the disk's cache.{_SAMPLED}", SYSTEM_DEVICE
)
DISK_FLUSH_TIME = _metric(
    "gpumon.disk.flush.time", "counter", "s", f"Sum of the time each flush took.{_SAMPLED}", SYSTEM_DEVICE
)
DISK_ERRORS = _metric(
    "gpumon.disk.errors",
    "counter",
    "{error}",
    "Reads and writes that the kernel gave up, since gpumon began to look.",
    SYSTEM_DEVICE,
    ERROR_TYPE,
)
DISK_INFO = _metric(
    "gpumon.disk.info",
    "gauge",
    "1",
    "What is known of a disk.",
    SYSTEM_DEVICE,
    HW_MODEL,
    HW_SERIAL_NUMBER,
    DISK_TYPE,
    DISK_HOLDS_DATASET,
    DISK_HOLDS_CHECKPOINTS,
    DISK_PARENTS,
    SYSTEM_FILESYSTEM_MOUNTPOINT,
    SYSTEM_FILESYSTEM_TYPE,
)
PRESSURE_STALL_TIME = _metric(
    "gpumon.pressure.stall.time",
    "counter",
    "s",
    "Time in which tasks stalled for a resource (PSI).",
    PRESSURE_RESOURCE,
    PRESSURE_KIND,
    PRESSURE_SCOPE,
)
PRESSURE_STALL_RATIO = _metric(
    "gpumon.pressure.stall.ratio",
    "gauge",
    "1",
    "Share of the last 10 s in which tasks stalled for a resource (PSI avg10).",
    PRESSURE_RESOURCE,
    PRESSURE_KIND,
    PRESSURE_SCOPE,
)

# -- Host and process tree ----------------------------------------------------------------------------
CPU_UTILIZATION = _metric("system.cpu.utilization", "gauge", "1", "Share of CPU time per mode, all cores.", CPU_MODE)
CPU_BUSIEST = _metric("gpumon.cpu.busiest.utilization", "gauge", "1", "Utilization of the busiest single core.")
CPU_USABLE = _metric(
    "gpumon.cpu.usable", "gauge", "{cpu}", "CPUs that this process may use: affinity and cgroup quota."
)
CPU_QUOTA = _metric(
    "gpumon.cpu.quota", "gauge", "{cpu}", "CPUs that the cgroup's quota allows; absent without one.", LIMIT_SOURCE
)
CPU_THROTTLED_TIME = _metric(
    "gpumon.cpu.throttled.time", "counter", "s", "Time in which the cgroup's CPU quota held threads back."
)
CPU_THROTTLED_PERIODS = _metric(
    "gpumon.cpu.throttled.periods", "counter", "{period}", "Quota periods in which the cgroup was held back."
)
CPU_PERIODS = _metric("gpumon.cpu.periods", "counter", "{period}", "Quota periods in which the cgroup ran.")
MEMORY_USAGE = _metric("system.memory.usage", "updowncounter", "By", "Memory in use by state.", SYSTEM_MEMORY_STATE)
MEMORY_AVAILABLE = _metric(
    "system.memory.linux.available", "updowncounter", "By", "Memory available without swapping (MemAvailable)."
)
MEMORY_REFAULTS = _metric(
    "gpumon.memory.refaults", "counter", "{page}", "File pages of this cgroup read again after they were evicted."
)
MEMORY_LIMIT = _metric("gpumon.memory.limit", "gauge", "By", "Memory limit of this cgroup; absent without one.")
MEMORY_LIMIT_HITS = _metric(
    "gpumon.memory.limit_hits", "counter", "{event}", "How often this cgroup reached its memory limit."
)
NETWORK_IO = _metric(
    "system.network.io", "counter", "By", "Bytes over the network.", NETWORK_INTERFACE_NAME, NETWORK_IO_DIRECTION
)
PROCESS_CPU_TIME = _metric(
    "process.cpu.time", "counter", "s", "CPU time of the processes of a role.", PROCESS_ROLE, CPU_MODE
)
PROCESS_RUNQUEUE_TIME = _metric(
    "gpumon.process.runqueue.time", "counter", "s", "Time runnable but not running.", PROCESS_ROLE
)
PROCESS_MEMORY_USAGE = _metric("process.memory.usage", "updowncounter", "By", "Resident memory.", PROCESS_ROLE)
PROCESS_DISK_IO = _metric(
    "process.disk.io",
    "counter",
    "By",
    "Bytes that reached disks, page cache left out.",
    PROCESS_ROLE,
    DISK_IO_DIRECTION,
)
PROCESS_READ = _metric("gpumon.process.read", "counter", "By", "Bytes read, page cache included.", PROCESS_ROLE)
PROCESS_PAGING_FAULTS = _metric(
    "process.paging.faults", "counter", "{fault}", "Page faults.", PROCESS_ROLE, SYSTEM_PAGING_FAULT_TYPE
)
PROCESS_THREAD_COUNT = _metric("process.thread.count", "updowncounter", "{thread}", "Threads.", PROCESS_ROLE)
PROCESS_COUNT = _metric("gpumon.process.count", "gauge", "{process}", "Processes of a role.", PROCESS_ROLE)

# -- GPU ----------------------------------------------------------------------------------------------
_GPU: Final = (HW_ID, GPU_INDEX)
GPU_UTILIZATION = _metric(
    "hw.gpu.utilization", "gauge", "1", "Share of time a kernel ran, or a video engine was busy.", *_GPU, HW_GPU_TASK
)
GPU_MEMORY_USAGE = _metric(
    "hw.gpu.memory.usage", "updowncounter", "By", "GPU memory used, the driver's own left out.", *_GPU, HW_PARENT
)
GPU_MEMORY_LIMIT = _metric("hw.gpu.memory.limit", "updowncounter", "By", "GPU memory size.", *_GPU, HW_PARENT)
GPU_MEMORY_UTILIZATION = _metric(
    "hw.gpu.memory.utilization", "gauge", "1", "Share of the GPU memory that is used.", *_GPU, HW_PARENT
)
GPU_MEMORY_ACTIVITY = _metric(
    "gpumon.gpu.memory.activity", "gauge", "1", "Share of time the memory controller was busy.", *_GPU
)
GPU_PROCESS_MEMORY_USAGE = _metric(
    "gpumon.gpu.process.memory.usage",
    "updowncounter",
    "By",
    "GPU memory of a process of this tree.",
    *_GPU,
    PROCESS_PID,
)
TEMPERATURE = _metric("hw.temperature", "gauge", "Cel", "Temperature.", *_GPU, HW_PARENT)
TEMPERATURE_LIMIT = _metric(
    "hw.temperature.limit",
    "gauge",
    "Cel",
    "Temperature from which the device slows down (high.degraded) or shuts down (high.critical).",
    *_GPU,
    HW_PARENT,
    HW_LIMIT_TYPE,
)
POWER = _metric("hw.power", "gauge", "W", "Power drawn.", *_GPU, HW_TYPE)
ENERGY = _metric("hw.energy", "counter", "J", "Energy taken.", *_GPU, HW_TYPE)
GPU_POWER_LIMIT = _metric("gpumon.gpu.power.limit", "gauge", "W", "Power limit in force.", *_GPU, HW_TYPE)
GPU_CLOCK_FREQUENCY = _metric("gpumon.gpu.clock.frequency", "gauge", "Hz", "Clock frequency.", *_GPU, GPU_CLOCK)
GPU_THROTTLE_ACTIVE = _metric(
    "gpumon.gpu.throttle.active",
    "gauge",
    "1",
    "1 while something holds the clocks down, else 0; idling does not count.",
    *_GPU,
    GPU_THROTTLE_REASON,
)
GPU_THROTTLE_TIME = _metric(
    "gpumon.gpu.throttle.time", "counter", "s", "Time in which clocks were held down.", *_GPU, GPU_THROTTLE_REASON
)
GPU_PCIE_WIDTH = _metric("gpumon.gpu.pcie.link.width", "gauge", "{lane}", "PCIe lanes in use.", *_GPU)
GPU_PCIE_WIDTH_LIMIT = _metric(
    "gpumon.gpu.pcie.link.width.limit", "gauge", "{lane}", "PCIe lanes that GPU and slot both have.", *_GPU
)
GPU_PCIE_GENERATION = _metric("gpumon.gpu.pcie.link.generation", "gauge", "1", "PCIe generation in use.", *_GPU)
GPU_PCIE_GENERATION_LIMIT = _metric(
    "gpumon.gpu.pcie.link.generation.limit", "gauge", "1", "PCIe generation that GPU and slot both have.", *_GPU
)
GPU_PCIE_REPLAYS = _metric(
    "gpumon.gpu.pcie.replays", "counter", "{replay}", "PCIe packets that were sent again after an error.", *_GPU
)
GPU_IO = _metric("hw.gpu.io", "counter", "By", "Bytes over PCIe.", *_GPU, NETWORK_IO_DIRECTION)
GPU_NVLINK_IO = _metric("gpumon.gpu.nvlink.io", "counter", "By", "Bytes over NVLink.", *_GPU, NETWORK_IO_DIRECTION)
ERRORS = _metric("hw.errors", "counter", "{error}", "Errors of the hardware.", *_GPU, HW_TYPE, ERROR_TYPE)
STATUS = _metric("hw.status", "updowncounter", "1", "1 for the state that it is in, else 0.", *_GPU, HW_TYPE, HW_STATE)
GPU_REMAPPED_ROWS = _metric(
    "gpumon.gpu.remapped_rows",
    "gauge",
    "{row}",
    "Rows of memory replaced by spare ones; pending and failed: 1 where one waits for a reset or found none.",
    *_GPU,
    GPU_REMAP,
)
FAN_SPEED_RATIO = _metric("hw.fan.speed_ratio", "gauge", "1", "Fan speed as a share of its maximum.", *_GPU)
GPU_SM_ACTIVITY = _metric("gpumon.gpu.sm.activity", "gauge", "1", "Share of multiprocessors that were busy.", *_GPU)
GPU_SM_OCCUPANCY = _metric(
    "gpumon.gpu.sm.occupancy", "gauge", "1", "Warps in flight as a share of what multiprocessors hold.", *_GPU
)
GPU_TENSOR_ACTIVITY = _metric("gpumon.gpu.tensor.activity", "gauge", "1", "Share of time tensor cores ran.", *_GPU)
GPU_DRAM_ACTIVITY = _metric(
    "gpumon.gpu.dram.activity", "gauge", "1", "Memory bandwidth used as a share of the possible.", *_GPU
)
GPU_INFO = _metric(
    "gpumon.gpu.info",
    "gauge",
    "1",
    "What is known of a GPU.",
    *_GPU,
    HW_PARENT,
    HW_MODEL,
    HW_SERIAL_NUMBER,
    HW_DRIVER_VERSION,
    HW_VENDOR,
    GPU_PCI_BUS_ID,
    GPU_MIG,
)

# -- SMART --------------------------------------------------------------------------------------------
PHYSICAL_DISK_SMART = _metric(
    "hw.physical_disk.smart",
    "gauge",
    "1",
    "Raw value of a SMART attribute; packed ones unpacked.",
    HW_ID,
    SMART_ATTRIBUTE,
    SMART_NUMBER,
    is_state=True,
)
PHYSICAL_DISK_ENDURANCE = _metric(
    "hw.physical_disk.endurance_utilization",
    "gauge",
    "1",
    "Share of the rated writes that is left; below 0 past them.",
    HW_ID,
    PHYSICAL_DISK_STATE,
    is_state=True,
)
PHYSICAL_DISK_SIZE = _metric("hw.physical_disk.size", "updowncounter", "By", "Size of a physical disk.", HW_ID)
SMART_COUNT = _metric(
    "gpumon.smart.count",
    "gauge",
    "{error}",
    "An error counter that foretells failures, the same for every protocol.",
    HW_ID,
    SMART_COUNTER,
    is_state=True,
)
SMART_GROWTH = _metric(
    "gpumon.smart.growth",
    "gauge",
    "{error}",
    "Growth of such a counter within the last seven days, as far as they are known.",
    HW_ID,
    SMART_COUNTER,
    is_state=True,
)
SMART_FAILED = _metric(
    "gpumon.smart.failed",
    "gauge",
    "1",
    "1: an attribute that foretells failure is or was below its threshold, or the log holds a failed self-test.",
    HW_ID,
    SMART_ATTRIBUTE,
    SMART_WHEN,
    is_state=True,
)
SMART_AGE = _metric("gpumon.smart.age", "gauge", "s", "Age of the last good SMART reading.", HW_ID, is_state=True)
SMART_INFO = _metric(
    "gpumon.smart.info",
    "gauge",
    "1",
    "What is known of a physical disk; system.device: the block devices on it.",
    HW_ID,
    HW_MODEL,
    HW_SERIAL_NUMBER,
    HW_FIRMWARE_VERSION,
    PHYSICAL_DISK_TYPE,
    SYSTEM_DEVICE,
    SMART_PROTOCOL,
    SMART_TARGET,
)

# -- Who holds what (the node agent) --------------------------------------------------------------------
DEVICE_HOLDER_INFO = _metric(
    "gpumon.device.holder.info",
    "gauge",
    "1",
    "A Slurm job or a Kubernetes container that holds a GPU (hw.id), idle or not, or uses a disk (system.device).",
    HW_ID,
    HW_PARENT,
    SYSTEM_DEVICE,
    JOB_ID,
    JOB_ARRAY,
    JOB_STEP,
    JOB_USER,
    K8S_NAMESPACE_NAME,
    K8S_POD_NAME,
    K8S_POD_UID,
    K8S_CONTAINER_NAME,
)

# -- About itself -------------------------------------------------------------------------------------
COLLECTOR_UP = _metric(
    "gpumon.collector.up",
    "gauge",
    "1",
    "1 while a collector reads its source, else 0 and the reason; with hw.id: one of its devices.",
    COLLECTOR,
    REASON,
    HW_ID,
)
COLLECTOR_DURATION = _metric("gpumon.collector.duration", "histogram", "s", "Duration of one collection.", COLLECTOR)
SPANS_DROPPED = _metric("gpumon.spans.dropped", "counter", "{span}", "Spans that were to be kept and were not.", REASON)
OVERHEAD_TIME = _metric("gpumon.overhead.time", "counter", "s", "CPU time that gpumon itself took.", OVERHEAD)
EXPORT_DROPPED = _metric(
    "gpumon.export.dropped", "counter", "{item}", "Items that could not be delivered or stored.", SIGNAL
)

BY_NAME: Final = {metric.name: metric for metric in CATALOGUE}

DURATION_BOUNDS: Final = (
    0.0001, 0.00016, 0.00025, 0.0004, 0.00063, 0.001, 0.0016, 0.0025, 0.004, 0.0063, 0.01, 0.016, 0.025, 0.04, 0.063,
    0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0, 16.0, 25.0, 40.0, 63.0, 100.0, 300.0,
)  # fmt: skip
"""Bucket bounds of every duration histogram, in seconds: five per decade. A percentile read on a straight line through
its bucket may be half a bucket off, 30 %; reports know the sum as well and come closer."""
