"""What the kubelet says of devices: which container holds which, idle ones too (PodResources v1, gRPC on a socket)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from gpumon.errors import CollectorError, NoDataError

SOCKET: Final = "/var/lib/kubelet/pod-resources/kubelet.sock"
_METHOD: Final = "/v1.PodResourcesLister/List"
_TIMEOUT_S: Final = 3.0
_DENIED: Final = "permission denied (its socket is root's)"
_MAX_BYTES: Final = 16 << 20  # a node with hundreds of pods
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
# Of the answer only what is needed here: message -> field -> (number, type); types of one letter are scalars.
_MESSAGES: Final[Mapping[str, Mapping[str, tuple[int, str]]]] = {
    "ListPodResourcesRequest": {},
    "ListPodResourcesResponse": {"pod_resources": (1, "PodResources*")},
    "PodResources": {"name": (1, "s"), "namespace": (2, "s"), "containers": (3, "ContainerResources*")},
    "ContainerResources": {
        "name": (1, "s"),
        "devices": (2, "ContainerDevices*"),
        "dynamic_resources": (5, "DynamicResource*"),
    },
    "ContainerDevices": {"resource_name": (1, "s"), "device_ids": (2, "s*")},
    "DynamicResource": {"claim_resources": (4, "ClaimResource*")},
    "ClaimResource": {"cdi_devices": (1, "CDIDevice*"), "driver_name": (2, "s"), "device_name": (4, "s")},
    "CDIDevice": {"name": (1, "s")},
}


@dataclass(frozen=True, slots=True)
class Claimed:
    """A device that a resource claim gave to a container."""

    driver: str
    device: str
    cdi_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerDevices:
    """What a container holds."""

    namespace: str
    pod: str
    container: str
    devices: tuple[tuple[str, str], ...] = ()  # (resource, id): ("nvidia.com/gpu", "GPU-…")
    claimed: tuple[Claimed, ...] = ()


def list_containers(socket: str = SOCKET, timeout_s: float = _TIMEOUT_S) -> list[ContainerDevices]:
    """Every container with devices of its own.

    Raises:
        NoDataError: no kubelet here.
        CollectorError: it does not answer in time, refuses, or its socket may not be opened.
    """
    try:
        os.stat(socket)  # noqa: PTH116
    except PermissionError:
        raise CollectorError(f"kubelet: {_DENIED}") from None
    except OSError:
        raise NoDataError("Kubernetes: no kubelet here") from None
    import grpc

    # A channel for each question: a kubelet that was started again has a new socket, and nothing stays open.
    with grpc.insecure_channel(f"unix://{socket}", options=_OPTIONS) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=_class("ListPodResourcesRequest").SerializeToString,
            response_deserializer=_class("ListPodResourcesResponse").FromString,
        )
        try:
            answer = call(_class("ListPodResourcesRequest")(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise CollectorError(f"kubelet: {_reason(error, timeout_s)}") from None
    return [
        ContainerDevices(
            pod.namespace,
            pod.name,
            container.name,
            tuple((held.resource_name, name) for held in container.devices for name in held.device_ids),
            tuple(
                Claimed(item.driver_name, item.device_name, tuple(device.name for device in item.cdi_devices))
                for claim in container.dynamic_resources
                for item in claim.claim_resources
            ),
        )
        for pod in answer.pod_resources
        for container in pod.containers
        if container.devices or container.dynamic_resources
    ]


def _reason(error: Any, timeout_s: float) -> str:
    code, detail = error.code().name, " ".join(str(error.details()).split())
    if code == "DEADLINE_EXCEEDED":
        return f"no answer within {timeout_s:g} s"
    if "Permission denied" in detail:
        return _DENIED
    if code == "UNAVAILABLE":
        return "not running"
    return f"{code.lower().replace('_', ' ')}: {detail[:200]}"


@cache
def _class(name: str) -> Any:
    """A message's class, from a description of our own: generated code is tied to versions of protobuf."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"v1.{name}"))


@cache
def _pool() -> Any:
    """A pool of our own: the kubelet's package is called just `v1`."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            one = message.field.add(name=field, number=number, label=label)
            if (kind := kind.rstrip("*")) == "s":
                one.type = kinds.TYPE_STRING
            else:
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".v1.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
