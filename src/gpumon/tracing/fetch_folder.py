"""The folder of shared memory in which this process' loader workers leave their fetch records.

It is in /dev/shm (else the temporary folder) and is removed at the end of the run. A lock file, held while
the process or a worker of it lives, tells the folders that killed runs left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "gpumon-fetches-"
_LOCK = "lock"
_YOUNG_S = 10.0  # a folder this young may be about to be locked


class FetchFolder:
    """A locked folder of this process; a forked child's copy does nothing.

    Raises:
        OSError: there is no place for it.
    """

    def __init__(self, bases: tuple[str | Path, ...] | None = None) -> None:
        self._pid = os.getpid()
        failure: OSError | None = None
        for base in bases or ("/dev/shm", tempfile.gettempdir()):
            try:
                _remove_stale(Path(base))
                self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{self._pid}-", dir=base))
            except OSError as error:
                failure = error
                continue
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        raise failure or OSError("no folder for fetch records")

    def remove(self) -> None:
        if self._lock < 0 or os.getpid() != self._pid:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def _remove_stale(base: Path) -> None:
    """Remove folders of ours whose process is gone; never looks at pids, which containers do not share."""
    for folder in base.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            state = folder.stat()
            if state.st_uid != os.geteuid() or time.time() - state.st_mtime < _YOUNG_S:
                continue
            descriptor = -1
            try:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
