"""SMART: whether smartctl is there and new enough, and which disks it may read; or the node agent reads for us."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

from gpumon.doctor.agent import agent_serves, start_agent
from gpumon.doctor.check import Repair, Result, absent, failed, ok, warning
from gpumon.doctor.disks import physical_disks
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import as_root, install, start_container
from gpumon.doctor.runner import at_once
from gpumon.errors import CollectorError, NoDataError
from gpumon.system import smart as answers
from gpumon.system import smartctl
from gpumon.system.block import BlockDevices
from gpumon.system.smartctl import Target

ANSWER_S: Final = 6.0  # of one disk
_WITH_JSON: Final = (7, 0)
_NVME: Final = "CAP_SYS_ADMIN"
_OTHERS: Final = "CAP_SYS_RAWIO"


def smart(place: Place) -> Iterator[Result]:
    """Each disk's own health: can it be read from here?"""
    disks = physical_disks(place)
    try:
        version = smartctl.version()
    except (NoDataError, CollectorError) as error:
        yield _without_smartctl(place, disks, str(error))
        return
    if version < _WITH_JSON:
        text = f"smartctl {version[0]}.{version[1]} prints no JSON (7.0 does): less is known of each disk"
        yield warning(text, install(place, "smartmontools"))
    try:
        targets = smartctl.scan(ANSWER_S)
    except (NoDataError, CollectorError) as error:
        yield failed(f"smartctl --scan: {error}", as_root(place, "smartctl --scan"))
        return
    yield from _disks(place, targets, disks, f"smartctl {version[0]}.{version[1]}")


def _without_smartctl(place: Place, disks: list[str], reason: str) -> Result:
    if place.environment.get("GPUMON_SMARTCTL"):
        return failed(reason, "unset GPUMON_SMARTCTL")
    if not disks:
        return absent("no disk with SMART here")
    if agent_serves(place):
        return ok(f"{', '.join(disks)}: read by the node agent")
    return failed(f"{', '.join(disks)}: smartctl is not installed", install(place, "smartmontools"))


def _disks(place: Place, targets: list[Target], disks: list[str], tool: str) -> Iterator[Result]:
    """One line for the disks that answer, one for each reason why others do not."""
    if not targets:
        if disks and place.container:
            controllers = dict.fromkeys(re.sub(r"(nvme\d+)n\d+$", r"\1", name) for name in disks)
            options = " ".join(f"--device /dev/{name}" for name in controllers)
            yield _unreadable(place, f"{', '.join(disks)}: not in this container's /dev", options, _needed(disks))
        else:
            yield absent(f"no disk with SMART here ({tool})")
        return
    virtual = [target for target in targets if _is_virtual(place, target)]
    if virtual:
        yield absent(f"{_names(virtual)}: no SMART (virtual)")
    targets = [target for target in targets if target not in virtual]
    problems = at_once(_problem, targets, ANSWER_S + 2.0, f"no answer within {ANSWER_S:g} s")
    by_problem: dict[str, list[Target]] = {}
    for target, problem in zip(targets, problems, strict=True):
        by_problem.setdefault(problem, []).append(target)
    readable = by_problem.pop("", [])
    asleep = by_problem.pop("asleep (standby)", [])
    if readable or asleep:
        sleeping = f", {len(asleep)} asleep" if asleep else ""
        yield ok(f"{tool} reads {_names(readable + asleep)}{sleeping}")
    without = [target for problem, each in by_problem.items() if _has_none(problem) for target in each]
    if without:
        yield absent(f"{_names(without)}: no SMART (a RAID volume, or what it is connected to does not pass it on)")
    for problem, each in by_problem.items():
        if not _has_none(problem):
            yield _denied(place, problem, each)


def _is_virtual(place: Place, target: Target) -> bool:
    devices = BlockDevices(place.root)
    names = smartctl.disks_of(target, place.root)
    return bool(names) and all(devices.facts(name).type == "virtual" for name in names)


def _problem(target: Target) -> str:
    try:
        return answers.problem_of(smartctl.read(target, timeout_s=ANSWER_S))
    except (NoDataError, CollectorError) as error:
        return str(error)


def _has_none(problem: str) -> bool:
    return "has no SMART" in problem or "does not know this kind" in problem


def _denied(place: Place, problem: str, targets: list[Target]) -> Result:
    names = _names(targets)
    paths = list(dict.fromkeys(target.path for target in targets))
    if "ermission denied" in problem or "not permitted" in problem:
        if agent_serves(place):
            return ok(f"{names}: read by the node agent")
        needs = _needed([path.rpartition("/")[2] for path in paths])
        options = " ".join(f"--device {path}" for path in paths)
        return _unreadable(place, f"{names}: permission denied, needs {' and '.join(needs)}", options, needs)
    if "no answer" in problem or "did not end" in problem:
        return failed(f"{names}: {problem}", as_root(place, f"smartctl -x {shlex.quote(paths[0])}"))
    if "No such" in problem and place.container:
        options = " ".join(f"--device {path}" for path in paths)
        return _unreadable(place, f"{names}: {problem}", options, _needed(paths))
    return warning(f"{names}: {problem}", as_root(place, f"smartctl -x -d {targets[0].type} {shlex.quote(paths[0])}"))


def _unreadable(place: Place, text: str, devices: str, needs: list[str]) -> Result:
    """Rights that are missing: a container is started with them; on a machine the agent has them, nobody else."""
    if place.container and place.container != "kubernetes":
        capabilities = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in needs)
        return failed(text, start_container(place, f"{capabilities} {devices}"))
    if place.container:
        return failed(text, Repair("sudo gpumon agent", "host"))
    return failed(text, start_agent(place))


def _needed(disks: list[str]) -> list[str]:
    """The capabilities that reading these disks takes."""
    are_nvme = {"nvme" in disk for disk in disks}
    return [name for name, is_needed in ((_NVME, True in are_nvme), (_OTHERS, False in are_nvme)) if is_needed]


def _names(targets: list[Target]) -> str:
    names = [target.name for target in targets]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
