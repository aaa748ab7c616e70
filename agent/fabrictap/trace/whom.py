"""Whom to trace: a process, or a connection and the process that has it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fabrictap.sources.rdma_netlink.client import Client
from fabrictap.sources.rdma_netlink.threads import process_of
from fabrictap.sources.verbs import libraries, maps
from fabrictap.sources.verbs.elf import Refused

_DEVICES = "/dev/infiniband/uverbs"


class TraceError(Exception):
    """Why there is nothing to trace; for the person who asked."""


@dataclass(frozen=True, slots=True)
class Whom:
    """``started``: with the pid, its identity. ``device`` and ``qpn``: of one connection only."""

    pid: int
    name: str
    started: int
    device: str | None = None
    qpn: int | None = None

    @property
    def alive(self) -> bool:
        return maps.start_time(self.pid) == self.started


def process(pid: int) -> Whom:
    """A process by its number. Raises TraceError."""
    started = maps.start_time(pid)
    if started is None:
        raise TraceError(f"there is no process {pid}")
    if (owner := process_of(pid)) != pid:
        raise TraceError(f"{pid} is a thread of process {owner}: --pid {owner}")
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError as error:
        raise TraceError(f"process {pid}: {error.strerror}") from None
    return Whom(pid, name, started)


def connection(text: str, client: Client | None = None) -> Whom:
    """A connection as DEVICE/QPN, found by RDMA netlink. Raises TraceError."""
    device, slash, number = text.rpartition("/")
    if not slash or not device or not number.isascii() or not number.isdigit():
        raise TraceError(f"--qp {text}: expected DEVICE/QPN, as in mlx5_0/1234")
    netlink = client or Client()
    try:
        index = {name: index for index, name in netlink.devices().items()}.get(device)
        if index is None:
            raise TraceError(f"--qp {text}: there is no RDMA device {device}")
        found = next((one for one in netlink.queue_pairs(index).entries if one.qpn == int(number)), None)
    except OSError as error:
        raise TraceError(f"--qp {text}: RDMA netlink does not list it: {error.strerror or error}") from None
    finally:
        netlink.close()
    if found is None:
        raise TraceError(
            f"--qp {text}: {device} has no queue pair {number}; `rdma resource show qp` lists them"
        )
    if found.owner.tid is None:
        who = f"the kernel's ({found.owner.kernel})" if found.owner.kernel else "of a process that has gone"
        raise TraceError(f"--qp {text}: this queue pair is {who}: only those of processes can be traced")
    whom = process(process_of(found.owner.tid))
    return Whom(whom.pid, whom.name, whom.started, device, int(number))


def check_uses_rdma(whom: Whom) -> None:
    """Raises TraceError where the process has nothing of RDMA at all."""
    if whom.pid == os.getpid():
        raise TraceError("that is this command's own process")
    try:
        mapped = {mapping.path for mapping in maps.mappings(whom.pid) if mapping.executable_file}
    except Refused as refusal:
        raise TraceError(f"process {whom.pid} ({whom.name}): {refusal}") from None
    libraries_of_rdma = any(
        libraries.is_libibverbs(path) or libraries.provider_name(path) is not None for path in mapped
    )
    if not libraries_of_rdma and not maps.descriptors_on(whom.pid, _DEVICES):
        raise TraceError(
            f"process {whom.pid} ({whom.name}) uses no RDMA: it has neither a device ({_DEVICES}*) open nor "
            "libibverbs mapped"
        )
