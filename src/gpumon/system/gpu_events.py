"""XID errors of GPUs, as the driver reports them: with their time, and what they say of a GPU's state."""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from gpumon import metrics as m
from gpumon.metrics import Attributes
from gpumon.system.nvml import Call, NvmlError, ask
from gpumon.system.xids import FATAL, MEANINGS

Event = tuple[int, str, str, Attributes]
"""(time in ns since 1970, name, body, attributes)"""

EVENT_NAME: Final = "gpumon.gpu.xid"
DEGRADED_S: Final = 300.0  # for how long any other XID shows in the state
_KEPT: Final = 256
_WAIT_MS: Final = 500
_TIMEOUT: Final = 10
_XID: Final = 8  # nvmlEventTypeXidCriticalError


class _Data(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_void_p),
        ("type", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class GpuEvents:
    """Listens on one daemon thread, from the first GPU whose driver reports XIDs until this object is dropped."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=_KEPT)
        self._last: dict[str, dict[bool, float]] = {}  # UUID -> is fatal -> when, by time.monotonic()
        self._stop = threading.Event()
        self.restart()

    def restart(self) -> None:
        """NVML is started again: what was registered before is void. What happened is kept."""
        self._stop.set()
        self._stop = threading.Event()
        weakref.finalize(self, self._stop.set).atexit = False  # a fork may exit with a copy of a held lock
        self._names: dict[int, Attributes] = {}  # device -> its attributes
        self._set: Any = None

    def listen(self, pynvml: Any, handle: Any, at: Attributes) -> None:
        """Register a GPU.

        Raises:
            NvmlError: this GPU reports no events, or not to us.
        """
        if not ask(pynvml.nvmlDeviceGetSupportedEventTypes, handle) & _XID:
            return
        if self._set is None:
            self._set = ask(pynvml.nvmlEventSetCreate)
        ask(pynvml.nvmlDeviceRegisterEvents, handle, _XID, self._set)
        is_first = not self._names
        self._names[ctypes.cast(handle, ctypes.c_void_p).value or 0] = at
        if is_first:
            arguments = (self._set, self._names, self.events, self._last, self._stop)
            threading.Thread(target=_listen, args=arguments, name="gpumon-gpu-events", daemon=True).start()

    def state(self, uuid: str, now: float) -> str:
        """ok, degraded or failed, as far as XIDs tell."""
        last = self._last.get(uuid)
        if not last:
            return "ok"
        if True in last:
            return "failed"
        return "degraded" if now - last[False] < DEGRADED_S else "ok"

    def take(self) -> list[Event]:
        """What happened since the last call, oldest first; of very many only the newest."""
        taken = []
        while self.events:
            taken.append(self.events.popleft())
        return taken


def _listen(
    event_set: Any,
    names: dict[int, Attributes],
    events: deque[Event],
    last: dict[str, dict[bool, float]],
    stop: threading.Event,
) -> None:
    data = _Data()
    wait = Call("nvmlEventSetWait_v2", event_set, ctypes.byref(data), ctypes.c_uint(_WAIT_MS))
    pause_s = 1.0
    while not stop.is_set():
        try:
            wait()
        except NvmlError as error:
            if error.code != _TIMEOUT:  # a lost GPU answers at once, again and again
                stop.wait(pause_s)
                pause_s = min(60.0, 2 * pause_s)
            continue
        pause_s = 1.0
        at = names.get(data.device or 0)
        if data.type & _XID and at is not None:
            xid = int(data.data)
            last.setdefault(str(at[m.HW_ID]), {})[xid in FATAL] = time.monotonic()
            body = f"XID {xid}: {MEANINGS[xid]}" if xid in MEANINGS else f"XID {xid}"
            events.append((time.time_ns(), EVENT_NAME, body, {**at, m.GPU_XID: xid}))


def worst(states: Iterable[str]) -> str:
    """The worst of ok, degraded and failed."""
    return max(states, key=("ok", "degraded", "failed").index)
