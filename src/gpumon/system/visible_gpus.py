"""Which GPUs this process may use: CUDA_VISIBLE_DEVICES, read as CUDA reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_INDEX = re.compile(r"\s*\+?(\d+)")  # CUDA reads what begins with a number as that number


@dataclass(frozen=True, slots=True)
class Listed:
    """A GPU as the driver lists it: in the order of the PCI bus, with its MIG instances."""

    index: int
    uuid: str
    instances: tuple[str, ...] = ()  # UUIDs: MIG-…


@dataclass(slots=True)
class Visible:
    """A GPU that may be used, and which of its instances: None is all of them."""

    gpu: Listed
    instances: list[str] | None = field(default=None)


def visible(gpus: Sequence[Listed], environment: Mapping[str, str]) -> list[Visible]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in the driver's order; all of them where it is not set.

    An entry is an index, a UUID or the UUID of a MIG instance; UUIDs may be cut short as long as they fit one
    only. The first entry that fits none ends the list, as in CUDA, so "" and "-1" leave nothing; an entry
    that is listed twice leaves nothing either.

    An index counts in the order of the PCI bus: that is what CUDA_DEVICE_ORDER=PCI_BUS_ID means. CUDA's own
    default (FASTEST_FIRST) is the same wherever all GPUs are of one model, and cannot be found out without
    CUDA where they are not.
    """
    value = environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return [Visible(gpu) for gpu in gpus]
    found: dict[int, Visible] = {}
    seen: set[str] = set()
    for entry in value.split(","):
        match = _match(entry.strip(), gpus)
        if match is None:
            break
        gpu, instance = match
        if (instance or gpu.uuid) in seen:
            return []
        seen.add(instance or gpu.uuid)
        known = found.setdefault(gpu.index, Visible(gpu, [] if instance else None))
        if instance is None:
            known.instances = None
        elif known.instances is not None:
            known.instances.append(instance)
    return [found[index] for index in sorted(found)]


def visible_in_container(gpus: Sequence[Listed], environment: Mapping[str, str]) -> list[Visible]:
    """The same from a list of the whole machine's GPUs, for a process that may be in a container.

    A container's runtime gives it those of NVIDIA_VISIBLE_DEVICES, by UUID or by the machine's numbers;
    CUDA_VISIBLE_DEVICES chooses among them, numbered anew. Outside of a container the former is not set.
    """
    given = environment.get("NVIDIA_VISIBLE_DEVICES", "")
    entries = _given(given, gpus)
    if not given or "all" in entries:
        return visible(gpus, environment)
    chosen = visible(gpus, {"CUDA_VISIBLE_DEVICES": ",".join(entries)})
    inside = [
        Listed(number, each.gpu.uuid, each.gpu.instances if each.instances is None else tuple(each.instances))
        for number, each in enumerate(chosen)
    ]
    return visible(inside, environment)


def _given(text: str, gpus: Sequence[Listed]) -> list[str]:
    """NVIDIA_VISIBLE_DEVICES in CUDA's words: `nvidia.com/gpu=0` is 0, `0:1` an instance, a folder's files UUIDs."""
    if text.startswith("/"):
        try:
            text = ",".join(os.listdir(text))  # noqa: PTH208
        except OSError:
            return ["none"]
    entries = []
    for entry in text.split(","):
        name = entry.strip().rpartition("=")[2]
        index, _, place = name.partition(":")
        if index.isdigit() and place.isdigit():
            instances = next((gpu.instances for gpu in gpus if gpu.index == int(index)), ())
            name = instances[int(place)] if int(place) < len(instances) else "none"
        entries.append(name)
    return list(dict.fromkeys(entries))


def _match(entry: str, gpus: Sequence[Listed]) -> tuple[Listed, str | None] | None:
    if number := _INDEX.match(entry):
        return next(((gpu, None) for gpu in gpus if gpu.index == int(number[1])), None)
    fits: list[tuple[Listed, str | None]] = []
    if entry.startswith("GPU-"):
        fits = [(gpu, None) for gpu in gpus if gpu.uuid.startswith(entry)]
    elif entry.startswith("MIG-"):
        fits = [(gpu, name) for gpu in gpus for name in gpu.instances if name.startswith(entry)]
        fits = [fit for fit in fits if fit[1] == entry] or fits  # MIG-GPU-…/1/1 begins …/1/10 as well
    return fits[0] if len(fits) == 1 else None
