"""What the syscall probes know by number only, named: /dev/infiniband/uverbsN and entries of GID tables."""

from __future__ import annotations

import socket
from pathlib import Path

from fabrictap.ext.records import Record

#: MINORBITS, include/linux/kdev_t.h: the kernel's dev_t in a record.
_MINOR_BITS = 20


class Uverbs:
    """Places records; reads sysfs, so in the source's own thread.

    Devices are looked up once between two calls of :meth:`forget`. A record of a device that is not there
    (it has gone meanwhile, or the command went to another kind of file) is left out and counted in
    ``errors``. GID tables change with the addresses of the node, so they are read whenever they are needed.
    """

    def __init__(self, errors: dict[str, int], sysfs: str = "/sys") -> None:
        self._errors = errors
        self._class = Path(sysfs, "class")
        self._devices: dict[int, str] | None = None

    def forget(self) -> None:
        """Devices may have come, gone or been renamed."""
        self._devices = None

    def place(self, records: list[Record]) -> list[Record]:
        """The same records, with every device named."""
        return [record for record in records if record.uverbs is None or self._place(record, record.uverbs)]

    def _place(self, record: Record, number: int) -> bool:
        if self._devices is None:
            self._devices = self._read_devices()
        device = self._devices.get(number)
        if device is None:
            self._errors["unknown_uverbs_device"] = self._errors.get("unknown_uverbs_device", 0) + 1
            return False
        index = record.qp_gid_index
        record.place(device, None if index is None else self._gid(device, record.qp_port, index))
        return True

    def _read_devices(self) -> dict[int, str]:
        found = {}
        try:
            entries = list((self._class / "infiniband_verbs").iterdir())
        except OSError:
            return {}
        for entry in entries:
            try:
                major, minor = (entry / "dev").read_text().split(":")
                found[int(major) << _MINOR_BITS | int(minor)] = (entry / "ibdev").read_text().strip()
            except (OSError, ValueError):
                # abi_version lies beside the devices; and a device may be going.
                continue
        return found

    def _gid(self, device: str, port: int, index: int) -> str | None:
        try:
            table = self._class / "infiniband" / device / "ports" / str(port) / "gids"
            text = (table / str(index)).read_text()
            gid = socket.inet_pton(socket.AF_INET6, text.strip())
        except (OSError, ValueError):
            return None
        return socket.inet_ntop(socket.AF_INET6, gid) if any(gid) else None
