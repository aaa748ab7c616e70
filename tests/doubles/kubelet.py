"""A stand-in for the kubelet's PodResources service, over a real unix socket with the real wire format.

Messages and field numbers are those of k8s.io/kubelet, pkg/apis/podresources/v1/api.proto, written down
here a second time and in full, with text as text: what the agent reads is checked against it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_API = """
ListPodResourcesResponse: pod_resources 1 *PodResources
PodResources: name 1 string, namespace 2 string, containers 3 *ContainerResources, cpu_ids 4 *int64,
  memory 5 *ContainerMemory
ContainerResources: name 1 string, devices 2 *ContainerDevices, cpu_ids 3 *int64, memory 4 *ContainerMemory,
  dynamic_resources 5 *DynamicResource
ContainerMemory: memory_type 1 string, size 2 uint64, topology 3 TopologyInfo
ContainerDevices: resource_name 1 string, device_ids 2 *string, topology 3 TopologyInfo
TopologyInfo: nodes 1 *NUMANode
NUMANode: ID 1 int64
DynamicResource: claim_name 2 string, claim_namespace 3 string, claim_resources 4 *ClaimResource
ClaimResource: cdi_devices 1 *CDIDevice, driver_name 2 string, pool_name 3 string, device_name 4 string
CDIDevice: name 1 string
"""


def _build() -> dict[str, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": kinds.TYPE_STRING, "int64": kinds.TYPE_INT64, "uint64": kinds.TYPE_UINT64}
    file = descriptor_pb2.FileDescriptorProto(name="api.proto", package="v1", syntax="proto3")
    for line in _API.replace(",\n", ",").strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for field in fields.split(","):
            field_name, number, kind = field.split()
            plain = kind.lstrip("*")
            message.field.add(
                name=field_name,
                number=int(number),
                label=kinds.LABEL_REPEATED if kind != plain else kinds.LABEL_OPTIONAL,
                type=scalars.get(plain, kinds.TYPE_MESSAGE),
                type_name=None if plain in scalars else f".v1.{plain}",
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}"))
        for name in (message.name for message in file.message_type)
    }


MESSAGES = _build()


def answer(pods: list[dict[str, Any]]) -> bytes:
    """ListPodResourcesResponse of pods written as dictionaries."""
    return MESSAGES["ListPodResourcesResponse"](pod_resources=pods).SerializeToString()


class Kubelet:
    """Serves ``List`` with what ``respond`` returns, on ``socket``, until ``stop``."""

    def __init__(self, socket: Path, respond: Callable[[], bytes]) -> None:
        self.calls = 0
        self.let_go = threading.Event()
        self._respond = respond
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handlers = {"List": grpc.unary_unary_rpc_method_handler(self._list)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers),)
        )
        self._server.add_insecure_port(f"unix:{socket}")
        self._server.start()

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        assert request == b""
        self.calls += 1
        return self._respond()

    def stop(self) -> None:
        self.let_go.set()
        self._server.stop(None).wait(5)
