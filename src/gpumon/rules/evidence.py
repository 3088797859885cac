"""What rules judge: plain values over one stretch of training, from rows of views or from live counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpumon.rules import thresholds as limit
from gpumon.rules.ceilings import SOURCE, Ceiling
from gpumon.rules.disk_health import Vitals, conditions


@dataclass(frozen=True)
class Steps:
    """Sums over all training steps. The parts that began an epoch are counted in the sums, and apart."""

    count: int = 0
    time_s: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds; they add up to time_s
    first_count: int = 0
    first_wait_s: float = 0.0
    first_time_s: float = 0.0

    @property
    def wait_s(self) -> float:
        return self.phases.get("data.wait", 0.0)

    @property
    def wait_fraction(self) -> float:
        return share(self.wait_s, self.time_s)

    @property
    def first_fraction(self) -> float:
        """Share of all waits that were for the first batch of an epoch."""
        return share(self.first_wait_s, self.wait_s)

    @property
    def steady(self) -> Steps:
        """The same without the steps that began an epoch; itself where there are no others."""
        if not self.first_count or self.first_count >= self.count:
            return self
        rest = max(self.time_s - self.first_time_s, 0.0)
        wait = min(max(self.wait_s - self.first_wait_s, 0.0), rest)
        # Of an epoch's first step only the wait is known apart; its other phases are as in any step.
        others = {name: seconds for name, seconds in self.phases.items() if name != "data.wait"}
        scale = share(rest - wait, sum(others.values()))
        phases = {name: seconds * scale for name, seconds in others.items()}
        return Steps(self.count - self.first_count, rest, {"data.wait": wait, **phases})

    def fraction(self, *phases: str) -> float:
        return share(sum(self.phases.get(phase, 0.0) for phase in phases), self.time_s)


@dataclass(frozen=True)
class Account:
    """Seconds of fetches on one account (`gpumon.fetch.account`); "" where a field says nothing."""

    account: str
    seconds: float
    device: str = ""
    call: str = ""
    file_system: str = ""


@dataclass(frozen=True)
class Fetches:
    """What fetching batches cost while the training waited for data."""

    count: float = 0.0
    accounts: Sequence[Account] = ()
    duty: float | None = None  # wall time of fetches ÷ (workers × time); the training thread alone is one worker
    handover_fraction: float = 0.0  # of the waits that were for no first batch: after the batch was ready

    @property
    def wall_s(self) -> float:
        return sum(item.seconds for item in self.accounts)

    @property
    def mean_s(self) -> float:
        return share(self.wall_s, self.count)

    def fraction(self, *accounts: str, device: str | None = None) -> float:
        seconds = sum(
            item.seconds
            for item in self.accounts
            if item.account in accounts and (device is None or item.device == device)
        )
        return share(seconds, self.wall_s)


@dataclass(frozen=True)
class Disk:
    """A block device while the training waited for data. None: not known."""

    name: str
    type: str | None = None  # NVMe, SSD, HDD, virtual
    holds_dataset: bool = True
    mount_point: str | None = None
    file_system: str | None = None
    seconds: float = 0.0  # the time that the sums below are over
    await_s: float | None = None  # of reads
    queue: float | None = None
    read_time_s: float | None = None  # Σ time of reads
    blocked_s: float | None = None  # fetches, on its files, over the same time; None: as the accounts say
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    own_read_bytes: float | None = None
    own_write_bytes: float | None = None
    best_read_bytes_per_s: float | None = None  # best window of the run
    unloaded_s: float | None = None  # measured before the loader started
    unloaded_queue: float = 0.0
    quiet_s: float | None = None  # mean await of its own windows with an almost empty queue
    limits: Sequence[tuple[str, float, str]] = ()  # (unit, value, the file that sets it)
    ceiling: Ceiling | None = None  # by `gpumon bench`, of the pattern that fits
    benched_s: float | None = None  # a request of the bench's single reader

    @property
    def floor_s(self) -> float:
        return limit.LATENCY_FLOOR_S.get(self.type or "", limit.LATENCY_FLOOR_S["SSD"])

    @property
    def read_bytes_per_s(self) -> float:
        return share(self.read_bytes, self.seconds)

    @property
    def bytes_per_s(self) -> float:
        return share(self.read_bytes + self.write_bytes, self.seconds)

    @property
    def baseline(self) -> tuple[float, str] | None:
        """Its latency when nobody queues, and where that comes from."""
        if self.unloaded_s is not None and self.unloaded_queue <= limit.QUIET_PROBE * (self.queue or 0.0):
            return self.unloaded_s, "measured before the loader started"
        if self.quiet_s is not None:
            return self.quiet_s, "own quiet baseline"
        if self.benched_s is not None:
            return self.benched_s, SOURCE
        return None

    @property
    def ceiling_fraction(self) -> float | None:
        """Its throughput by what it gave `gpumon bench`."""
        return share(self.read_bytes_per_s, self.ceiling.bytes_per_s) if self.ceiling else None

    @property
    def not_ours_fraction(self) -> float | None:
        """Share of its bytes that are not this run's reads."""
        total = self.read_bytes + self.write_bytes
        if self.own_read_bytes is None or not total:
            return None
        return max(0.0, 1.0 - self.own_read_bytes / total)

    @property
    def own_writes_fraction(self) -> float:
        """Share of the bytes that are not this run's reads which this run wrote."""
        others = self.read_bytes + self.write_bytes - (self.own_read_bytes or 0.0)
        return min(1.0, share(min(self.own_write_bytes or 0.0, self.write_bytes), others))


@dataclass(frozen=True)
class Gpu:
    """A GPU over the training. None: not known."""

    id: str  # UUID
    index: int | None = None
    model: str = ""
    busy: float | None = None  # mean share of time a kernel ran
    busy_s: float = 0.0  # length of the windows in which it was used
    throttled_s: Mapping[str, float] = field(default_factory=dict)  # by reason, in those windows
    temperature_c: float | None = None  # mean while it was used
    hottest_c: float | None = None
    hot_s: float = 0.0  # at `HOT_C` and above, with hysteresis
    slowdown_c: float | None = None  # where the device slows itself down
    clock_hz: float | None = None  # mean while it was slowed down; while it was used, where it never was
    best_clock_hz: float | None = None  # best window in which it worked and nothing slowed it down
    power_w: float | None = None
    power_limit_w: float | None = None
    link_width: tuple[float, float] | None = None  # lanes under load, and the most that device and slot have
    link_generation: tuple[float, float] | None = None
    memory_peak: float | None = None  # of its memory
    memory_limit_bytes: float | None = None
    memory_grew: tuple[float, float] | None = None  # bytes, over so many steps, block by block
    uncorrected_errors: float = 0.0
    xids: Sequence[int] = ()
    remap: Sequence[str] = ()  # pending, failed: remapped rows
    is_failed: bool = False  # as its `hw.status` says: lost, or in error

    @property
    def name(self) -> str:
        number = self.id if self.index is None else f"GPU {self.index}"
        return f"{number} ({self.model})" if self.model else number

    def slowed_s(self, *parts: str) -> float:
        """Seconds in which a reason with one of *parts* in its name was active; reasons overlap."""
        return max((s for reason, s in self.throttled_s.items() if any(part in reason for part in parts)), default=0.0)

    @property
    def lost_fraction(self) -> float | None:
        """Share of its clock that is missing while it is slowed down."""
        if not self.clock_hz or not self.best_clock_hz:
            return None
        return max(0.0, 1.0 - self.clock_hz / self.best_clock_hz)


@dataclass(frozen=True)
class Drive:
    """A physical disk that told its health; times are those of its readings in the run."""

    id: str  # serial number or WWN
    model: str = ""
    devices: Sequence[str] = ()  # the block devices on it
    holds_dataset: bool = False
    holds_checkpoints: bool = False
    state: str = ""  # as whoever read it judged last; empty where it told none
    vitals: Vitals = field(default_factory=Vitals)
    grown: Mapping[str, float] = field(default_factory=dict)  # counters, since the run began
    grown_over_s: float = 0.0  # from its first reading in the run to its last

    @property
    def name(self) -> str:
        """As lsblk calls it; its serial number where it has no block device of its own."""
        return ", ".join(self.devices) or self.id

    @property
    def is_well(self) -> bool:
        return self.state == "ok" and not conditions(self.vitals)


@dataclass(frozen=True)
class Machine:
    """The host and the process tree. None: not known."""

    cpus: float | None = None  # usable: affinity and quota
    quota_cpus: float | None = None
    quota_source: str = ""
    throttled_fraction: float | None = None  # of quota periods
    trainer_cpu_s: float | None = None  # over all steps' time
    read_bytes: float = 0.0  # that fetches made devices read
    refaulted_bytes: float = 0.0
    memory_limit_hits: float = 0.0
    memory_limit_bytes: float | None = None


@dataclass(frozen=True)
class Loader:
    """Settings of the loader that feeds the steps. None: not seen."""

    workers: int | None = None
    prefetch: int | None = None
    batch_size: int | None = None
    persistent: bool | None = None


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on. Times of the stretch are seconds since the run's start."""

    run_s: float = 0.0
    steps: Steps = Steps()
    fetches: Fetches = Fetches()
    disks: Mapping[str, Disk] = field(default_factory=dict)
    machine: Machine = Machine()
    loader: Loader = Loader()
    gpus: Sequence[Gpu] = ()
    drives: Sequence[Drive] = ()
    gpu_busy: float | None = None  # mean over the GPUs that the run used; None: not known
    read_bytes_per_step: float = 0.0  # that really came from storage
    blind: Mapping[str, str] = field(default_factory=dict)  # collector -> why it saw nothing
    from_s: float | None = None
    to_s: float | None = None

    @property
    def compute_s_per_step(self) -> float:
        """What a step takes when no data is waited for."""
        steady = self.steps.steady
        return share(steady.time_s - steady.wait_s, steady.count)


def share(part: float, whole: float) -> float:
    """*part* ÷ *whole*; 0 of nothing."""
    return part / whole if whole > 0 else 0.0
