"""Kubernetes' pods on this machine: their names, and the GPUs that the kubelet gave to their containers."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from gpumon.system.gpu_names import GpuNames, Part
from gpumon.system.pod_resources import ContainerDevices

_CONTAINER_FILES: Final = re.compile(r"/pods/[^/]+/containers/([^/]+)/")


class Pod(NamedTuple):
    """A pod or a container of it; what is not known is empty."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    container: str = ""


class PodNames:
    """Which UID has which name.

    Source: the names of the folders in /var/log/pods, which the kubelet makes for every pod (NAMESPACE_NAME_UID).
    The kubelet's list of devices knows names only, control groups UIDs only.
    """

    def __init__(self, folder: str | Path = "/var/log/pods") -> None:
        self._folder = folder
        self._by_uid: dict[str, Pod] = {}
        self._by_name: dict[tuple[str, str], list[str]] = {}

    def look(self) -> None:
        """Read them anew; where that is impossible, nothing has a name."""
        self._by_uid, self._by_name = {}, {}
        try:
            entries = os.listdir(self._folder)  # noqa: PTH208
        except OSError:
            return
        for entry in entries:
            parts = entry.split("_")  # none of them can have one
            if len(parts) == 3:
                namespace, name, uid = parts
                self._by_uid[uid] = Pod(namespace, name, uid)
                self._by_name.setdefault((namespace, name), []).append(uid)

    def of_uid(self, uid: str, container: str = "") -> Pod:
        return self._by_uid.get(uid, Pod(uid=uid))._replace(container=container)

    def uid_of(self, namespace: str, name: str, living: Collection[str]) -> str:
        """The UID of a pod; of several that had the name one after the other the one with processes."""
        known = self._by_name.get((namespace, name), [])
        chosen = [uid for uid in known if uid in living] or known
        return chosen[0] if len(chosen) == 1 else ""


def holders(
    listed: Iterable[ContainerDevices], pods: PodNames, living: Collection[str], names: GpuNames
) -> dict[Part, list[Pod]]:
    """GPU -> the containers that hold it, several where it is shared; *living*: UIDs of pods with processes."""
    found: dict[Part, list[Pod]] = {}
    for one in listed:
        pod = Pod(one.namespace, one.pod, pods.uid_of(one.namespace, one.pod, living), one.container)
        parts = [names.of_device_id(device) for _resource, device in one.devices]
        parts += [names.of_claim(claimed.driver, claimed.device, claimed.cdi_names) for claimed in one.claimed]
        for part in dict.fromkeys(parts):
            if part is not None:
                found.setdefault(part, []).append(pod)
    return found


def container_name(mount_roots: Iterable[str]) -> str:
    """A container's name: the kubelet mounts a file of its own into it, from …/pods/UID/containers/NAME/…"""
    for root in mount_roots:
        if named := _CONTAINER_FILES.search(root):
            return named[1]
    return ""
