"""A kubelet's PodResources service: a real gRPC server on a Unix socket.

Its messages are put together by field numbers, as Kubernetes' api.proto (podresources/v1) has them.
"""

import contextlib
import time
from concurrent import futures
from pathlib import Path

import grpc


def message(*fields):
    """(number, text or message) pairs as protobuf's wire format has them."""
    encoded = b""
    for number, value in fields:
        content = value.encode() if isinstance(value, str) else value
        encoded += bytes([number << 3 | 2]) + _varint(len(content)) + content
    return encoded


def _varint(value):
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def container(name, devices=(), claims=()):
    """*devices*: (resource, id …); *claims*: (driver, device, CDI name …)."""
    fields = [(1, name)]
    for resource, *ids in devices:
        # With the topology that kubelets add: one NUMA node, number 1.
        fields.append((2, message((1, resource), *((2, one) for one in ids), (3, message((1, b"\x08\x01"))))))
    for driver, device, *cdi_names in claims:
        resource = message(*((1, message((1, name))) for name in cdi_names), (2, driver), (3, "pool"), (4, device))
        fields.append((5, message((2, "claim"), (3, "default"), (4, resource))))
    return message(*fields)


def pod(name, *containers, namespace="default"):
    return message((1, name), (2, namespace), *((3, one) for one in containers))


class Kubelet:
    """What it says can be changed, and how slowly."""

    def __init__(self) -> None:
        self.pods = []
        self.delay_s = 0.0
        self.code = None

    def answer(self, _request, context):
        time.sleep(self.delay_s)
        if self.code is not None:
            context.abort(self.code, "no such thing")
        return message(*((1, one) for one in self.pods))


@contextlib.contextmanager
def kubelet(socket):
    """Serve on *socket* (a path)."""
    told = Kubelet()
    method = grpc.unary_unary_rpc_method_handler(told.answer)
    handler = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": method})
    Path(socket).unlink(missing_ok=True)  # as the kubelet does
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    try:
        yield told
    finally:
        server.stop(None).wait(5)
