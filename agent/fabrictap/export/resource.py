"""Who sends: the OTLP resource and scope of everything that leaves the agent."""

from __future__ import annotations

import platform
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.sdk.version import __version__ as sdk_version

from fabrictap import config
from fabrictap.catalog import SIMULATED
from fabrictap.version import VERSION

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

SCOPE_NAME = "fabrictap"
SCOPE_VERSION = VERSION

#: Namespace that the semantic conventions give for a service.instance.id of UUID version 5.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")

#: platform.machine() -> host.arch of the semantic conventions.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm32",
    "i686": "x86",
    "ppc64le": "ppc64",
}


class AttributeHolder(Protocol):
    """An OTLP message with attributes: a resource, a data point."""

    @property
    def attributes(self) -> RepeatedCompositeFieldContainer[KeyValue]: ...


def attributes(
    settings: config.Resource,
    machine_id_files: tuple[str, ...] = ("/etc/machine-id",),
    *,
    simulated: str | None = None,
) -> dict[str, str]:
    """The resource attributes: detected ones, overridden by those of the configuration.

    A configured ``resource.service_name`` wins over a ``service.name`` among the configured attributes,
    as OTEL_SERVICE_NAME does. ``service.instance.id`` is the same after a restart, so that a restarted
    agent goes on with its own time series: it is derived from the machine id and the host name (both,
    because container images are shipped with a machine id in them), and random where there is no
    machine id. ``simulated``: the profile of a made-up node; it has a name and an instance id of its own, so
    that it never goes on with the time series of the machine that it runs on, and says what it is.
    """
    host = socket.gethostname()
    machine_id = _machine_id(machine_id_files)
    if simulated is not None:
        machine_id = machine_id and f"{machine_id}/{host}"
        host = f"simulated-{simulated}"
    instance = (
        uuid.uuid5(_INSTANCE_NAMESPACE, f"{machine_id}/{host}/{settings.service_name}")
        if machine_id
        else uuid.uuid4()
    )
    machine = platform.machine()
    detected = {
        "service.name": settings.service_name,
        "service.version": VERSION,
        "service.instance.id": str(instance),
        "host.name": host,
        "host.arch": _ARCHITECTURES.get(machine, machine),
        "os.type": platform.system().lower(),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version,
    }
    if machine_id and simulated is None:
        detected["host.id"] = machine_id
    merged = detected | settings.attributes
    if settings.service_name != config.Resource().service_name:
        merged["service.name"] = settings.service_name
    if simulated is not None:
        merged[SIMULATED.name] = SIMULATED.values[0]
    return merged


def message(resource_attributes: dict[str, str]) -> ResourceMessage:
    """The resource as OTLP."""
    made = ResourceMessage()
    put_attributes(made, resource_attributes)
    return made


def scope() -> InstrumentationScope:
    """The instrumentation scope as OTLP."""
    return InstrumentationScope(name=SCOPE_NAME, version=SCOPE_VERSION)


def put_attributes(holder: AttributeHolder, attributes: Mapping[str, str | int | float | bool]) -> None:
    """Set the attributes of a message that has none yet."""
    for key, value in attributes.items():
        pair = holder.attributes.add(key=key)
        try:
            if isinstance(value, bool):  # before int: a bool is one
                pair.value.bool_value = value
            elif isinstance(value, int):
                pair.value.int_value = value
            elif isinstance(value, float):
                pair.value.double_value = value
            else:
                pair.value.string_value = value
        except ValueError:
            # More than 63 bits, or a name that is not UTF-8, as a process may have: one odd attribute must
            # not cost an export.
            pair.value.string_value = str(value).encode(errors="replace").decode()


def _machine_id(files: tuple[str, ...]) -> str | None:
    """machine-id(5); absent, unreadable and "uninitialized" all mean that there is none."""
    for file in files:
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text and text != "uninitialized":
            return text
    return None
