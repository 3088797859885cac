"""Runs a command as a shell would: same terminal, same process group, same signals, same exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

NOT_FOUND, NOT_EXECUTABLE = 127, 126

_STOP_AND_GO = {
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCONT,
    signal.SIGKILL,
}
_OF_THIS_PROCESS = {
    signal.SIGABRT,
    signal.SIGALRM,
    signal.SIGBUS,
    signal.SIGCHLD,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGPIPE,
    signal.SIGPROF,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
    signal.SIGURG,
    signal.SIGVTALRM,
    signal.SIGXFSZ,
}
PASSED_ON = signal.valid_signals() - _STOP_AND_GO - _OF_THIS_PROCESS
"""The signals that somebody may send to us and means for the command: INT, TERM, HUP, USR1, RTMIN, …"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: `exit_code` is 128 + n where signal n ended it."""

    exit_code: int
    signal: int | None = None


def execute(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run the command until it ends. Call it from the main thread, while there is no other.

    Raises:
        OSError: it could not be started (`exit_code_of` says what a shell would exit with).
    """
    watched = PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        with _Bystander() as bystander:
            pid = _spawn(command, environment, before)
            status = _wait(pid, watched, bystander)
        while signal.sigtimedwait(watched, 0) is not None:
            pass  # came while the command ended: meant for it, too late
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.WIFSIGNALED(status):
        return Ended(128 + os.WTERMSIG(status), os.WTERMSIG(status))
    return Ended(os.WEXITSTATUS(status))


def exit_code_of(error: OSError) -> int:
    """127 where there is no such command, 126 where there is one that cannot be executed."""
    return NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE


def _spawn(command: Sequence[str], environment: Mapping[str, str], mask: set[signal.Signals] | set[int]) -> int:
    # Python ignores these two; a command expects to be killed by them.
    defaults = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        return os.posix_spawnp(command[0], list(command), environment, setsigmask=mask, setsigdef=defaults)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without a #! line: every shell runs it by itself.
    shell = ["/bin/sh", *command]
    return os.posix_spawn(shell[0], shell, environment, setsigmask=mask, setsigdef=defaults)


def _wait(pid: int, watched: set[signal.Signals], bystander: _Bystander) -> int:
    while True:
        number = signal.sigwaitinfo(watched).si_signo
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
        elif not (_same_group(pid) and bystander.got(number)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _same_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except ProcessLookupError:
        return False


class _Bystander:
    """A process of our group that does nothing but hold the signals it was sent.

    Ctrl-C, `kill -TERM -GROUP` and schedulers signal the whole group: the command has such a signal
    already, and one passed on again would make a handler of its own (a checkpoint on SIGUSR1) run twice.
    What this process got, the command got.
    """

    def __enter__(self) -> _Bystander:
        # The pipe ends it should we be killed: only we hold its writing end.
        self._alive_in, self._alive = os.pipe()
        self._start()
        return self

    def got(self, number: int) -> bool:
        """Whether the signal went to the whole group."""
        time.sleep(0.005)  # the kernel may still be on its way through the group
        if not self._pending() >> (number - 1) & 1:
            return False
        # What is pending stays pending: the next signal needs one with a clean slate.
        self._end()
        self._start()
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        os.close(self._alive)
        os.close(self._alive_in)

    def _start(self) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._alive)
                os.read(self._alive_in, 1)
            finally:
                os._exit(0)

    def _end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _pending(self) -> int:
        with contextlib.suppress(OSError), open(f"/proc/{self._pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"ShdPnd:"):
                    return int(line.split()[1], 16)
        return 0
