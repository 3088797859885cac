"""`gpumon doctor`: what can be read here, and the one command that repairs each thing that cannot.

To add a check: a function `(place) -> Result | Iterable[Result]` in the file of its subject, made of `ok`, `absent`,
`warning` and `failed`; a line in `CHECKS`; a broken set-up in tests/doctor/.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, TextIO

from gpumon.doctor import agent, disks, frameworks, gpu, host, otlp, recording, settings, smart
from gpumon.doctor.check import Check
from gpumon.doctor.place import Place
from gpumon.doctor.render import show
from gpumon.doctor.repairs import on_machine
from gpumon.doctor.runner import run
from gpumon.system import smartctl

__all__ = ["CHECKS", "Place", "doctor"]

CHECKS: Final = (  # in reading order
    Check("nvml", gpu.nvml_check, 20.0, stuck=partial(on_machine, command="reboot")),
    *(
        Check(each.name, partial(frameworks.framework, wanted=each), frameworks.IMPORT_S + 22.0)
        for each in frameworks.FRAMEWORKS
    ),
    Check("data", disks.data),
    Check("smart", smart.smart, 20.0),
    Check("agent", agent.agent),
    Check("disks", disks.kernel_files),
    Check("pressure", disks.pressure),
    Check("otlp", otlp.otlp, 16.0),
    Check("settings", settings.settings),
    Check("clock", host.clock, 16.0),
    Check("loader", host.cpus),
    Check("shm", host.shared_memory),
    Check("files", host.open_files),
    Check("fetches", recording.workers_seen),
    Check("runs", recording.run_directory),
    Check("hook", recording.hook_check, 10.0),
    Check("packages", recording.distributions, 10.0),
)


def doctor(place: Place, stream: TextIO, *, as_json: bool = False, checks: Sequence[Check] = CHECKS) -> bool:
    """Run the checks and print what they say, as it comes on a terminal; returns whether none failed."""
    try:
        return show(run(checks, place), checks, stream, as_json=as_json)
    finally:
        smartctl.stop_all()  # one that hangs must not outlive us
