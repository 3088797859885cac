"""Who is speaking: the resource of our own providers, and the same facts as point attributes elsewhere."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

JOB_ID_VARIABLES = (
    "GPUMON_JOB_ID",
    "RAY_JOB_ID",
    "TORCHELASTIC_RUN_ID",
    "KUBEFLOW_TRAINING_JOB_ID",
    "SLURM_JOB_ID",
)
_HOST_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"  # the kernel's, so the same in all of a machine's containers
_RANK_VARIABLES = {
    "gpumon.rank": ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "gpumon.local_rank": ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "gpumon.world_size": ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
}


def ranks(environment: Mapping[str, str] | None = None) -> dict[str, int]:
    """`gpumon.rank`, `gpumon.local_rank` and `gpumon.world_size`; 0, 0 and 1 outside of a distributed job."""
    environment = os.environ if environment is None else environment
    values = {"gpumon.rank": 0, "gpumon.local_rank": 0, "gpumon.world_size": 1}
    # Not SLURM_NTASKS: it stands in every shell of an allocation, also around one plain `python train.py`.
    for name, variables in _RANK_VARIABLES.items():
        for variable in variables:
            if (text := environment.get(variable, "")).isdigit():
                values[name] = int(text)
                break
    return values


def job_id(environment: Mapping[str, str] | None = None) -> str | None:
    """The scheduler's name of this job, from the first of `JOB_ID_VARIABLES` that is set.

    torchrun says "none" where it was given none.
    """
    environment = os.environ if environment is None else environment
    found = (environment.get(name) for name in JOB_ID_VARIABLES)
    return next((job for job in found if job and job != "none"), None)


def service_name(given: str | None = None) -> str:
    """The argument, else `OTEL_SERVICE_NAME`, else the training script's name."""
    if given or (given := os.environ.get("OTEL_SERVICE_NAME")):
        return given
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == "service.name" and value.strip():
            return value.strip()
    return script_name(list(getattr(sys, "orig_argv", sys.argv))) or "training"


def script_name(argv: list[str]) -> str | None:
    """What a command runs: `train` of `python -u train.py`, `pkg.train` of `python -m pkg.train`."""
    rest = iter(argv[1:])
    for argument in rest:
        if argument == "-m":
            return next(rest, None)
        if argument in ("-X", "-W", "-c"):
            if argument == "-c":
                return None
            next(rest, None)
        elif not argument.startswith("-"):
            return Path(argument).stem or None
    return None


def identity(run_id: str) -> dict[str, Any]:
    """What tells one process of one run from others, and where it runs, for points and spans in providers not ours."""
    attributes: dict[str, Any] = {"gpumon.run.id": run_id, "gpumon.rank": ranks()["gpumon.rank"], **_place()}
    if job := job_id():
        attributes["gpumon.job.id"] = job
    return attributes


def resource(service: str, run_id: str) -> Resource:
    """The resource of our own providers; `OTEL_RESOURCE_ATTRIBUTES` adds to it."""
    attributes: dict[str, Any] = {
        "service.name": service,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
        **host_attributes(),
        **ranks(),
        **identity(run_id),
    }
    try:
        return Resource.create(attributes)
    except RuntimeError:  # a process shorter than a second: at its exit the detectors' threads cannot start
        return OTELResourceDetector().detect().merge(Resource(attributes))


def host_attributes() -> dict[str, Any]:
    """`host.*`, and `gpumon.node.id`, which a process in a container shares with the machine that it is on."""
    attributes = _place()
    if host_id := _first_line(*_HOST_IDS):
        attributes["host.id"] = host_id
    return attributes


def _place() -> dict[str, str]:
    attributes = {"host.name": os.uname().nodename}
    if node_id := os.environ.get("GPUMON_NODE_ID") or _first_line(_BOOT_ID):
        attributes["gpumon.node.id"] = node_id
    return attributes


def _first_line(*files: str) -> str | None:
    for path in files:
        try:
            if text := Path(path).read_text().strip():
                return text
        except OSError:
            continue
    return None
