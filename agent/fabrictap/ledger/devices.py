"""The RDMA devices of the node, and which of them this agent stands for."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


class DeviceFilter:
    """Shell patterns on device names; ``deny`` wins over ``allow``."""

    def __init__(self, allow: Sequence[str], deny: Sequence[str]) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)

    def __call__(self, device: str) -> bool:
        return any(fnmatch.fnmatchcase(device, p) for p in self._allow) and not any(
            fnmatch.fnmatchcase(device, p) for p in self._deny
        )


@dataclass(slots=True)
class Port:
    """One port. ``gids``: GID index -> GID in IPv6 notation. ``netdev`` is None where there is none."""

    number: int
    link_layer: str
    state: str
    netdev: str | None
    gids: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class Device:
    """One RDMA device as sysfs shows it; what the driver does not report is None."""

    name: str
    driver: str | None
    model: str | None
    firmware: str | None
    node_guid: str | None
    ports: dict[int, Port] = field(default_factory=dict)


class Devices:
    """Device name -> Device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.dropped = 0
        self._devices: dict[str, Device] = {}

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices.values())

    def get(self, name: str) -> Device | None:
        return self._devices.get(name)

    def put(self, device: Device) -> None:
        """Add or replace."""
        if device.name not in self._devices and len(self._devices) >= self.capacity:
            self.dropped += 1
            return
        self._devices[device.name] = device

    def remove(self, name: str) -> None:
        self._devices.pop(name, None)
