"""Work that may hang on dead storage, in threads that nobody has to wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

_LOOK_S: Final = 0.05


class Aside:
    """Runs each task in a thread of its own. One that hangs in the kernel is left behind and ends with the process."""

    def __init__(self, tasks: Iterable[Callable[[], None]]) -> None:
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(task,), name="gpumon-bench", daemon=True) for task in tasks
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._errors.append(error)

    def wait(self, until: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Wait until all have ended (True), it is *until* (monotonic) or there is *enough*. Ctrl-C ends it at once.

        Raises what a task raised.
        """
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            left_s = until - time.monotonic()
            if left_s <= 0 or enough():
                return False
            alive[0].join(min(_LOOK_S, left_s))
        if self._errors:
            raise self._errors[0]
        return True
