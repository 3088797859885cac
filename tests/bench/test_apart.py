"""The process in which storage is read: what comes back from it, and that nothing else does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gpumon.bench.apart import apart
from gpumon.errors import GpumonError, NoDataError


def test_the_result_and_the_reports_come_back():
    """In order, whatever the size of the result."""
    told = []

    def work(report):
        for number in range(3):
            report(f"{number} of 3")
        return {"from": os.getpid(), "bytes": bytes(1 << 20)}

    result = apart(work, told.append)

    assert told == ["0 of 3", "1 of 3", "2 of 3"]
    assert result["from"] != os.getpid()
    assert len(result["bytes"]) == 1 << 20


def test_an_error_is_raised_here_as_what_it_is():
    """The user's errors with their text; a bug with its type."""

    def fail(error):
        def work(report):
            raise error

        return work

    with pytest.raises(NoDataError, match="no such reads"):
        apart(fail(NoDataError("no such reads")), print)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: by zero"):
        apart(fail(ZeroDivisionError("by zero")), print)


def test_without_a_result_it_says_so():
    """Killed from outside (by the kernel, for memory)."""
    with pytest.raises(GpumonError, match="ended from outside"):
        apart(lambda report: os.kill(os.getpid(), signal.SIGKILL), print)


def test_nothing_is_printed_twice():
    """What the parent had not written out yet, and what the work prints, stays unprinted there."""
    code = (
        "from gpumon.bench.apart import apart\n"
        "print('once', end='')\n"
        "apart(lambda report: print('never', flush=True), print)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("once", "")


def test_no_process_is_left():
    """Once the result is here the other one is gone, or going."""
    pid = apart(lambda report: os.getpid(), print)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            break
        time.sleep(0.02)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
