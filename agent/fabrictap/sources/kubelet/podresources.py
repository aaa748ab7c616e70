"""The kubelet's PodResources API, v1: ``List`` over a unix socket.

Service ``v1.PodResourcesLister``; messages and field numbers from k8s.io/kubelet,
pkg/apis/podresources/v1/api.proto, only what is read here. Text fields are declared as bytes, which are the
same on the wire: one name that is not UTF-8 costs itself, not the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fabrictap.grpc.client import Channel
from fabrictap.grpc.status import Failure
from fabrictap.ledger.workloads import Container, Device
from fabrictap.ledger.workloads.text import LABEL, SUBDOMAIN, clean

#: What Kubernetes' own clients take at most (test/e2e_node/util.go, DefaultPodResourcesMaxSize).
MAX_ANSWER = 16 << 20
#: One pod's message: far more than a pod has, and a bound on what parsing it takes.
_MAX_POD = 256 << 10
_METHOD = "/v1.PodResourcesLister/List"
_NAME = 128

# message -> field -> (number, message it holds, None for text); all but a name, class and the like repeat
_SCHEMA: dict[str, dict[str, tuple[int, str | None]]] = {
    "PodResources": {"name": (1, None), "namespace": (2, None), "containers": (3, "ContainerResources")},
    "ContainerResources": {
        "name": (1, None),
        "devices": (2, "ContainerDevices"),
        "dynamic_resources": (5, "DynamicResource"),
    },
    "ContainerDevices": {"resource_name": (1, None), "device_ids": (2, None)},
    "DynamicResource": {
        "claim_name": (2, None),
        "claim_namespace": (3, None),
        "claim_resources": (4, "ClaimResource"),
    },
    "ClaimResource": {
        "cdi_devices": (1, "CDIDevice"),
        "driver_name": (2, None),
        "pool_name": (3, None),
        "device_name": (4, None),
    },
    "CDIDevice": {"name": (1, None)},
}
_REPEATED_TEXT = frozenset({"device_ids"})


class PodResourcesError(Exception):
    """The API did not answer. ``word`` is for a metric, the message for the operator."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


@dataclass(slots=True)
class Assigned:
    """Devices and who has them. ``rejected``: names that are none; ``dropped``: pods or devices too many."""

    devices: dict[Device, tuple[Container, ...]] = field(default_factory=dict)
    pods: int = 0
    rejected: int = 0
    dropped: int = 0


@functools.cache
def _pod_message() -> Any:
    """The class of PodResources, in a pool of its own: other programs have a package v1 too."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: PLC0415

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    for message, fields in _SCHEMA.items():
        made = file.message_type.add(name=message)
        for name, (number, holds) in fields.items():
            repeated = holds is not None or name in _REPEATED_TEXT
            made.field.add(
                name=name,
                number=number,
                type=kinds.TYPE_MESSAGE if holds is not None else kinds.TYPE_BYTES,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type_name=f".v1.{holds}" if holds is not None else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("v1.PodResources"))


def fetch(socket: str, seconds: float) -> bytes:
    """One ``List``, not decoded. Raises PodResourcesError; takes no longer than ``seconds``."""
    with Channel(f"unix:{socket}", max_response=MAX_ANSWER) as channel:
        try:
            return channel.call(_METHOD, b"", seconds)
        except Failure as failure:
            word = failure.code.name.lower()
            detail = clean(failure.details, 160)
            raise PodResourcesError(word, f"{socket} does not answer: {word}: {detail}") from None


def decode(answer: bytes, max_pods: int, max_devices: int) -> Assigned:
    """An answer of ``List``. Raises PodResourcesError where it is none."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    message = _pod_message()
    made = Assigned()
    owners: dict[Device, dict[Container, None]] = {}
    count = 0
    try:
        for raw in _submessages(answer):
            made.pods += 1
            if made.pods > max_pods or len(raw) > _MAX_POD:
                made.dropped += 1
                if made.pods >= 2 * max_pods:
                    break  # an answer of nothing but empty pods is not walked to its end
                continue
            for container, device in _devices(message.FromString(raw), made):
                if count >= max_devices:
                    made.dropped += 1
                    continue
                count += 1
                owners.setdefault(device, {})[container] = None
    except (DecodeError, ValueError) as error:
        raise PodResourcesError(
            "malformed", f"what it answers is no list of pods: {clean(str(error))}"
        ) from None
    made.devices = {device: tuple(containers) for device, containers in owners.items()}
    return made


def _devices(pod: Any, made: Assigned) -> Iterator[tuple[Container, Device]]:
    """Every device of a pod's containers. Names that Kubernetes would not accept are counted and left out."""
    namespace, name = _name(pod.namespace, LABEL), _name(pod.name, SUBDOMAIN)
    if namespace is None or name is None:
        made.rejected += 1
        return
    for resources in pod.containers:
        if not resources.devices and not resources.dynamic_resources:
            continue
        container_name = _name(resources.name, LABEL)
        if container_name is None:
            made.rejected += 1
            continue
        container = Container(namespace, name, container_name)
        for devices in resources.devices:
            resource = clean(devices.resource_name, _NAME)
            for device_id in devices.device_ids:
                yield container, Device(resource, clean(device_id, _NAME))
        for dynamic in resources.dynamic_resources:
            for claim in dynamic.claim_resources:
                for device in _claimed(claim):
                    yield container, device


def _claimed(claim: Any) -> Iterator[Device]:
    """Devices of a claim: driver and pool since Kubernetes 1.34, before that CDI's names only."""
    if claim.driver_name:
        device = f"{clean(claim.pool_name, _NAME)}/{clean(claim.device_name, _NAME)}"
        yield Device(clean(claim.driver_name, _NAME), device, dynamic=True)
        return
    for device in claim.cdi_devices:
        # vendor.com/class=name (Container Device Interface, SPEC.md)
        kind, _, name = clean(device.name, 2 * _NAME).partition("=")
        yield Device(kind, name, dynamic=True)


def _name(raw: bytes, pattern: Any) -> str | None:
    text = raw.decode("ascii", errors="replace")
    return text if pattern.fullmatch(text) else None


def _submessages(answer: bytes) -> Iterator[bytes]:
    """The values of field 1 of a message, one at a time: parsed whole, 16 MiB of empty pods take gigabytes.

    Other fields are skipped. Raises ValueError. protobuf.dev/programming-guides/encoding.
    """
    position = 0
    while position < len(answer):
        tag, position = _varint(answer, position)
        kind = tag & 7
        if kind == 2:
            size, position = _varint(answer, position)
            if size > len(answer) - position:
                raise ValueError("a field is longer than the message")
            if tag >> 3 == 1:
                yield answer[position : position + size]
            position += size
        elif kind == 0:
            _, position = _varint(answer, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(answer: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(answer):
            break
        byte = answer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number does not end")
