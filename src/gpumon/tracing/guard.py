"""The boundary between our code and the training's: what fails on our side never crosses it."""

from __future__ import annotations

import logging
import os
from types import TracebackType

logger = logging.getLogger(__name__)
_said: set[str] = set()


class guard:
    """Swallow and log (once per place, then at debug level) what our own code raises.

    `GPUMON_STRICT=1` lets it through: our tests must see our own bugs.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if os.environ.get("GPUMON_STRICT") == "1":
            return False
        log = logger.debug if self._what in _said else logger.warning
        _said.add(self._what)
        log("gpumon: %s failed: %s: %s", self._what, type(error).__name__, error, exc_info=logger.isEnabledFor(10))
        return True
