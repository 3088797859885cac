"""Where fetches of batches spend their time, summed over all of them.

Exact, from the fetching thread itself: wall, CPU and run-queue time, bytes read. Sampled: what the rest of
the wall time, when the thread was blocked, waits on. `FetchAccounts` puts both together, so that each
second of a fetch is on exactly one account.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gpumon.system.datasets import DATASETS
from gpumon.system.processes import WORKERS
from gpumon.system.storage import Storage, StorageMap
from gpumon.tracing.blocked import WaitPoint, WaitPoints, other
from gpumon.tracing.fetch_folder import FetchFolder
from gpumon.tracing.fetch_ring import SUFFIX, Fetch, RingReader
from gpumon.tracing.fetch_sampler import Fetching, FetchSampler
from gpumon.tracing.inline_fetches import InlineFetches
from gpumon.tracing.records import FetchTotals

TRAINER = -1
"""The worker id of the training thread."""

ENOUGH_SAMPLES = 4  # of a worker, to split its blocked time
PATIENCE_NS = 2_000_000_000  # after which it is split by what is known
LOOK_NS = 1_000_000_000  # how often is it seen whether workers were killed
_MIN_SEEN = 3  # looks that found threads blocked on a file system, before that is where a data set is
_LINKED = 8192  # records remembered until the trainer has taken their batches
_FORGET = 0.98  # per second: how fast what was seen formerly loses weight
_COARSE_NS = 50_000_000  # more than the resolution of a file's times
_NOTHING = WaitPoint("")
_UNKNOWN = other("unknown")

TakenFetch = tuple[int, int, int, int, int]
"""A batch that the trainer took: iterator's serial, generation, idx, begin and end of its wait [ns]."""


class _Tracer(Protocol):
    @property
    def waiting(self) -> bool: ...
    @property
    def inline_fetches(self) -> tuple[int, int]: ...


@dataclass(slots=True)
class _Source:
    """One worker, or the training thread: what it recorded and what was seen of it, not yet summed."""

    worker_id: int
    fetches: list[Fetch] = field(default_factory=list)
    count: int = 0  # fetches that `fetches` stand for
    wall_ns: int = 0
    since_ns: int = 0  # when the oldest of `fetches` was read
    samples: list[tuple[int, WaitPoint, float]] = field(default_factory=list)
    history: dict[WaitPoint, float] = field(default_factory=lambda: defaultdict(float))

    def split(self, pool: dict[WaitPoint, float], *, everything: bool) -> dict[WaitPoint, float]:
        """What the blocked time of `fetches` went to, in any unit; takes the samples it rests on."""
        last = self.fetches[-1].begin_ns
        mine: dict[WaitPoint, float] = defaultdict(float)
        for begin, point, weight in self.samples:
            if everything or begin <= last:
                mine[point] += weight
        self.samples = [] if everything else [sample for sample in self.samples if sample[0] > last]
        return mine or self.history or pool


class FetchAccounts:
    """Sums of all fetches: `totals`. One per `instrument()`.

    `poll` is called from one background thread; `start` begins the sampling thread, `stop` ends it, takes
    what is left and removes the shared files. `inline` is what a tracer calls around fetches in the training
    thread. `folder` is where workers write; None where that is not possible, with the reason in `missing`.
    """

    def __init__(self, tracer: _Tracer, storage_map: StorageMap) -> None:
        self.tracer = tracer
        self.totals = FetchTotals()
        self.inline = InlineFetches()
        self.missing: str | None = None
        self._pid = os.getpid()
        self._points = WaitPoints(storage_map)
        self._sampler = FetchSampler(self._points, self._fetching, lambda: self.tracer.waiting, self._keep)
        self._lock = threading.Lock()
        self._rings: dict[str, RingReader] = {}
        self._sources: dict[int, _Source] = {self._pid: _Source(TRAINER)}
        self._pool: dict[WaitPoint, float] = defaultdict(float)
        self._looked_ns = 0  # when workers were last looked after
        self._faded_ns = time.perf_counter_ns()
        self._records: OrderedDict[tuple[int, int, int], tuple[int, Fetch]] = OrderedDict()
        self._used: OrderedDict[int, tuple[int, Fetch]] = OrderedDict()  # by the end of the wait for the batch
        self._folder: FetchFolder | None = None
        self._listed = 0  # st_mtime_ns of the folder when it was listed last
        self._added: set[Storage] = set()
        self._gone: deque[int] = deque()  # ended workers that the sampling thread still has files of

    @property
    def folder(self) -> str | None:
        return str(self._folder.path) if self._folder is not None else None

    @property
    def cpu_ns(self) -> int:
        """CPU time of the sampling thread."""
        return self._sampler.cpu_ns

    @property
    def refused(self) -> str | None:
        """Why it could not be seen what threads wait on."""
        return self._points.refused

    def start(self) -> None:
        """Make the folder and begin to sample."""
        if self._folder is None:
            try:
                self._folder = FetchFolder()
            except OSError as error:
                self.missing = f"no folder for fetch records: {error}"
            else:
                weakref.finalize(self, self._folder.remove)  # at exit too
        self._sampler.start()

    def expect(self) -> None:
        """An iterator is about to be made: look out for its workers at once."""
        self._sampler.wake()

    def stop(self) -> None:
        """End the thread, sum what is left, remove the files."""
        if os.getpid() != self._pid:
            return
        self._sampler.stop()
        self.poll((), everything=True)
        with self._lock:
            for name in list(self._rings):
                self._drop(name)
            if self._sampler.has_ended:
                self._points.close()
            if self._folder is not None:
                self._folder.remove()
                self._folder = None

    def fetch_of(self, wait_end_ns: int) -> tuple[int, Fetch] | None:
        """(worker id, fetch) of the batch that a wait of the training thread ended with; None: not known (any more)."""
        return self._used.get(wait_end_ns)

    # -- background thread --------------------------------------------------------------------------

    def poll(self, fetches: Iterable[TakenFetch] = (), *, everything: bool = False) -> None:
        """Add what workers recorded since the last call; *fetches* are the batches taken since then.

        With *everything* nothing is held back for more samples.
        """
        now = time.perf_counter_ns()
        look = everything or now - self._looked_ns > LOOK_NS
        if look:
            self._looked_ns = now
        with self._lock:
            if self._find_rings():
                self._sampler.wake()
            for name, ring in list(self._rings.items()):
                # Asked before the last read, so that nothing comes after it.
                ended = ring.has_ended() if look else ring.is_closed()
                self._read(ring, now)
                if ended:
                    self._flush(self._sources[ring.identity.pid], everything=True)
                    self._drop(name)
            self._read_inline(now)
            self._fade(now)
            for source in self._sources.values():
                if not source.fetches:
                    continue
                last = source.fetches[-1].begin_ns
                samples = sum(begin <= last for begin, _point, _weight in source.samples)
                if everything or samples >= ENOUGH_SAMPLES or now - source.since_ns > PATIENCE_NS:
                    self._flush(source)
            seen = [storage for storage, looks in dict(self._points.seen).items() if looks >= _MIN_SEEN]
        for storage in seen:
            if storage not in self._added:
                self._added.add(storage)
                file = self._points.files.get(storage)
                if file:
                    DATASETS.add_file(file, storage)
                else:
                    DATASETS.add_storage(storage)
        for taken in fetches:
            self._link(*taken)

    def _find_rings(self) -> bool:
        """Open the files that came since the last call; whether there were any."""
        if self._folder is None:
            return False
        try:
            changed = self._folder.path.stat().st_mtime_ns
            if changed == self._listed:
                return False
            names = os.listdir(self._folder.path)  # noqa: PTH208
        except OSError:
            return False
        # A file that comes within the same tick of the kernel's clock would be missed: look again later.
        self._listed = changed if time.time_ns() - changed > _COARSE_NS else 0
        found = False
        for name in names:
            if name.endswith(SUFFIX) and name not in self._rings:
                try:
                    ring = RingReader(Path(self._folder.path, name))
                except (OSError, ValueError):
                    continue
                self._rings[name] = ring
                found = True
                identity = ring.identity
                self._sources[identity.pid] = _Source(identity.worker_id)
                WORKERS[identity.pid] = identity.worker_id
        return found

    def _drop(self, name: str) -> None:
        ring = self._rings.pop(name)
        pid = ring.identity.pid
        ring.close(remove=True)
        self._gone.append(pid)
        self._sources.pop(pid, None)
        WORKERS.pop(pid, None)

    def _read(self, ring: RingReader, now: int) -> None:
        lost = ring.lost
        fetches = ring.read()
        self.totals.lost += ring.lost - lost
        if not fetches:
            return
        source = self._sources[ring.identity.pid]
        if not source.fetches:
            source.since_ns = now
        source.fetches += fetches
        source.count += len(fetches)
        source.wall_ns += sum(fetch.end_ns - fetch.begin_ns for fetch in fetches)
        serial = ring.identity.serial
        for fetch in fetches:
            self._records[serial, fetch.generation, fetch.idx] = (source.worker_id, fetch)
        while len(self._records) > _LINKED:
            self._records.popitem(last=False)

    def _read_inline(self, now: int) -> None:
        fetches, count, wall_ns = self.inline.take(*self.tracer.inline_fetches)
        source = self._sources[self._pid]
        if fetches and not source.fetches:
            source.since_ns = now
        source.fetches += fetches
        source.count += count
        source.wall_ns += wall_ns

    def _link(self, serial: int, generation: int, idx: int, begin_ns: int, end_ns: int) -> None:
        record = self._records.pop((serial, generation, idx), None)
        if record is None:
            return
        ready_ns = record[1].end_ns
        self._used[end_ns] = record
        while len(self._used) > _LINKED:
            self._used.popitem(last=False)
        self.totals.ready_age.add(max(0, begin_ns - ready_ns) / 1e9)
        if idx > 0:
            self.totals.handover_s += max(0, end_ns - max(begin_ns, ready_ns)) / 1e9

    def _fade(self, now: int) -> None:
        factor = _FORGET ** ((now - self._faded_ns) / 1e9)
        self._faded_ns = now
        for seen in (self._pool, *(source.history for source in self._sources.values())):
            for point in list(seen):
                seen[point] *= factor
                if seen[point] < 1e-4:
                    del seen[point]

    # -- summing ------------------------------------------------------------------------------------

    def _flush(self, source: _Source, *, everything: bool = False) -> None:
        """Put the fetches of *source* on the accounts."""
        if not source.fetches:
            return
        inline = source.worker_id == TRAINER
        cpu = runnable = blocked = read = 0
        for fetch in source.fetches:
            wall = fetch.end_ns - fetch.begin_ns
            on_cpu = min(fetch.cpu_ns, wall)  # clocks differ by microseconds
            waiting = min(max(fetch.runnable_ns, 0), wall - on_cpu)
            cpu += on_cpu
            runnable += waiting
            blocked += wall - on_cpu - waiting
            read += max(fetch.read_bytes, 0)
        # Short fetches in the training thread: the accounts taken stand for all of them.
        recorded = cpu + runnable + blocked
        scale = source.wall_ns / recorded if recorded else 1.0

        points = source.split(self._pool, everything=everything or inline)
        if not points:
            points = {self._guess(read): 1.0}
        weight = sum(points.values())
        self._add("cpu", source, cpu * scale)
        self._add("runnable", source, runnable * scale)
        by_device: dict[str, float] = defaultdict(float)
        for point, share in points.items():
            self._add(point.account, source, blocked * scale * share / weight, point)
            if point.account == "blocked.disk":
                by_device[point.device] += share
        self._add_read(by_device, int(read * scale))
        count = self.totals.count
        count[source.worker_id] = count.get(source.worker_id, 0) + source.count
        source.fetches = []
        source.count = source.wall_ns = 0

    def _add(self, account: str, source: _Source, ns: float, point: WaitPoint = _NOTHING) -> None:
        if ns > 0:
            key = (account, point.device, source.worker_id, point.call, point.file_system)
            self.totals.time_s[key] = self.totals.time_s.get(key, 0.0) + ns / 1e9

    def _add_read(self, by_device: dict[str, float], read: int) -> None:
        if not read:
            return
        if not by_device:
            for point, weight in self._pool.items():
                if point.account == "blocked.disk":
                    by_device[point.device] += weight
        if not by_device:
            by_device[self._dataset_device()] = 1
        weight = sum(by_device.values())
        for device, share in by_device.items():
            add = int(read * share / weight)
            self.totals.read_bytes[device] = self.totals.read_bytes.get(device, 0) + add

    def _guess(self, read: int) -> WaitPoint:
        """What blocked time is put on that nobody saw: bytes that came from a device tell something."""
        if read:
            return WaitPoint("blocked.disk", device=self._dataset_device())
        return _UNKNOWN

    @staticmethod
    def _dataset_device() -> str:
        devices = {storage.device for storage in DATASETS.storages() if storage.device}
        return devices.pop() if len(devices) == 1 else ""

    # -- sampling thread ----------------------------------------------------------------------------

    def _fetching(self) -> list[Fetching] | None:
        while self._gone:
            self._points.forget(self._gone.popleft())
        fetching = []
        with self._lock:
            self._find_rings()
            for ring in self._rings.values():
                begin = ring.fetch_begin_ns()
                if begin:
                    fetching.append((ring.identity.pid, ring.identity.thread, begin))
            nobody = not self._rings
        begin = self.inline.begin_ns
        if begin:
            fetching.append((self._pid, self.inline.thread, begin))
        return None if nobody and not self.inline.thread else fetching

    def _keep(self, pid: int, begin_ns: int, point: WaitPoint, weight: float) -> None:
        with self._lock:
            source = self._sources.get(pid)
            if source is not None:
                source.samples.append((begin_ns, point, weight))
                source.history[point] += weight
            self._pool[point] += weight
