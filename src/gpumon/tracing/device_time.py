"""Device time of some steps, by events on the compute stream; nothing here ever waits for the device.

Everything runs in the training thread, at the boundaries of its steps: a query from another thread would
invalidate a graph that this thread captures (pytorch#104487). Events are pooled per device and used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpumon.tracing import stamps as s
from gpumon.tracing.guard import guard

PENDING = 64  # timed steps that wait for the device
PATIENCE = 1000  # boundaries, after which a step that the device has not finished is given up
_PHASES = {s.FETCH: "forward", s.BACKWARD: "backward", s.UPDATE: "optimizer"}
"""By the mark that an interval begins with; what follows any other mark is "other"."""


class Device(Protocol):
    """What is used of `torch.cuda`."""

    def current_device(self) -> int: ...
    def memory_stats_as_nested_dict(self) -> dict[str, Any]: ...
    def is_current_stream_capturing(self) -> bool: ...
    def Event(self, enable_timing: bool) -> Any: ...


@dataclass(slots=True)
class DeviceTime:
    """Of one step: seconds between its marks on the compute stream, that stream's idle time included."""

    begin_ns: int  # `Step.begin_ns` of the step, `time.perf_counter_ns()`
    seconds: float
    phases: dict[str, float]


@dataclass(slots=True)
class _Timed:
    begin_ns: int
    device: int
    number: int  # of the boundary at which it began
    marks: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return bool(self.marks) and self.marks[-1][0] == s.UPDATE_END


class DeviceTimer:
    """Times steps of one training thread.

    `wanted` asks for the next step, `every` for all of them; both are set by another thread. *is_capturing* says
    whether a graph is captured in this process, on whatever stream. `done` holds what was measured.
    """

    def __init__(self, device: Device, is_capturing: Callable[[], bool]) -> None:
        self.wanted = True
        self.every = False
        self.done: deque[DeviceTime] = deque(maxlen=4096)
        self.memory: dict[int, dict[str, int]] = {}  # device -> bytes that the allocator gave out, and that it holds
        self._device = device
        self._is_capturing = is_capturing
        self._open: _Timed | None = None
        self._pending: deque[_Timed] = deque()
        self._pool: dict[int, list[Any]] = {}
        self._number = 0

    def begins(self, begin_ns: int) -> bool:
        """A batch was fetched, from *begin_ns* on; whether its step is timed and has to be marked."""
        self._number += 1
        if self._open is not None and not self._open.is_over:
            return True  # the next batch of an accumulating step
        is_wanted = self.wanted or self.every
        if not (is_wanted or self._open or self._pending) or self._capturing():
            return False
        if self._open is not None:
            self._pending.append(self._open)
            self._open = None
            if len(self._pending) > PENDING:
                self._give_up(self._pending.popleft())
        self._resolve()
        if not is_wanted:
            return False
        device = self._device.current_device()
        if self.wanted:
            self.wanted = False
            self._read_memory(device)
        self._open = _Timed(begin_ns, device, self._number)
        return True

    def mark(self, kind: int, failed: bool = False) -> None:
        """The step in progress comes to *kind*, one of the events of `stamps`. An error of the device stays here."""
        timed = self._open
        if timed is None:
            return
        self._open = None  # where it ends here its events are dropped: they may be in any state
        with guard("device time"):
            if not (failed or self._capturing() or self._device.current_device() != timed.device):
                self._record(timed, kind)
                self._open = timed

    def _record(self, timed: _Timed, kind: int) -> None:
        pool = self._pool.setdefault(timed.device, [])
        event = pool.pop() if pool else self._device.Event(enable_timing=True)
        event.record()
        timed.marks.append((kind, event))

    def _read_memory(self, device: int) -> None:
        """Here, because the allocator's counters take its lock: another thread would wait, and make this one wait."""
        stats = self._device.memory_stats_as_nested_dict()
        if stats:  # empty until something was allocated
            self.memory[device] = {
                state: int(stats[f"{state}_bytes"]["all"]["current"]) for state in ("allocated", "reserved")
            }

    def _capturing(self) -> bool:
        # A captured record would become a node of the graph; a query would invalidate it.
        return self._is_capturing() or self._device.is_current_stream_capturing()

    def _resolve(self) -> None:
        """The oldest step, where the device has finished it: one query."""
        if not self._pending:
            return
        timed = self._pending[0]
        if not timed.marks[-1][1].query():
            if self._number - timed.number > PATIENCE:
                self._give_up(self._pending.popleft())
            return
        self._pending.popleft()
        phases: dict[str, float] = {}
        try:
            for (kind, begin), (_, end) in zip(timed.marks, timed.marks[1:], strict=False):
                phase = _PHASES.get(kind, "other")
                phases[phase] = phases.get(phase, 0.0) + begin.elapsed_time(end) / 1e3
        except RuntimeError:  # marks on several streams: an earlier one is not done
            return
        self.done.append(DeviceTime(timed.begin_ns, sum(phases.values()), phases))
        self._give_up(timed)

    def _give_up(self, timed: _Timed) -> None:
        self._pool.setdefault(timed.device, []).extend(event for _, event in timed.marks)
