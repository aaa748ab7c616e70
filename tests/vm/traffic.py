"""RDMA traffic between the two devices of the VM: a server on one, a client on the other, both watched.

All RDMA between the devices crosses the veth pair; the exchange of QP numbers over TCP does not
(two_devices.sh). rxe sends a packet again when the emulated CPU was late: there can be more bytes on the wire
than the payload explains.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from vm.harness import Machine, Process, Result

ADDRESSES = {"rxe0": "10.9.0.1", "rxe1": "10.9.0.2"}
NETDEVS = {"rxe0": "d0", "rxe1": "d1"}

_ports = itertools.count(20000)  # one per run: a port used just now is in TIME_WAIT


@dataclass(frozen=True)
class Traffic:
    """What both sides said, and who they were: process ids in the guest."""

    server: Result
    client: Result
    server_pid: int
    client_pid: int


@dataclass
class Server:
    """One that listens; for tests that look at it before the client comes."""

    process: Process
    tool: str
    args: tuple[str, ...]
    device: str
    port: int

    def connect(self, machine: Machine, client_device: str) -> Process:
        """Start the client, with the same arguments."""
        argv = command(machine, self.tool, self.args, client_device, self.port, server=self.device)
        return machine.start(argv)


def perftest(
    machine: Machine,
    tool: str,
    *args: str,
    server_device: str = "rxe0",
    client_device: str = "rxe1",
    timeout: float = 60,
) -> Traffic:
    """Run a tool of perftest, ibv_*_pingpong or rping between the devices; both ends must succeed.

    `args` go to both ends: "-n", "200", "-s", "65536", "-q", "4", "-l", "8", "-R" ... (rping has -C and
    -S; -n must be a multiple of -l). The data of read flows to the client, of write and send to
    the server.
    """
    server = listen(machine, tool, *args, device=server_device)
    try:
        client = server.connect(machine, client_device)
        client_result = client.wait(timeout).check()
        server_result = server.process.wait(timeout).check()
    except BaseException:
        server.process.kill()
        raise
    return Traffic(server_result, client_result, server.process.pid, client.pid)


def unused_port() -> int:
    """A TCP port for one run in the guest."""
    return next(_ports)


def listen(machine: Machine, tool: str, *args: str, device: str = "rxe0", timeout: float = 30) -> Server:
    """Start the server end and wait until it listens."""
    port = unused_port()
    process = machine.start(command(machine, tool, args, device, port, server=None))
    # A listening TCP socket (state 0A), or with rdma_cm a listening CM id; or the server has ended.
    found = f"rdma resource show cm_id | grep -q 'LISTEN.*:{port} '"
    if not _uses_rdma_cm(tool, args):
        found = f"grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6"
    wait = f"until {found}; do kill -0 {process.pid} || exit 1; sleep 0.05; done"
    if machine.run(wait, timeout).rc != 0:
        result = process.wait(timeout)
        raise AssertionError(f"{result.command!r} ended with {result.rc}\n{result.stdout}{result.stderr}")
    return Server(process, tool, args, device, port)


def command(
    machine: Machine, tool: str, args: Sequence[str], device: str, port: int, *, server: str | None
) -> list[str]:
    """The argv of one end: of the server where `server` is None, else of the client of that device."""
    peer = [] if server is None else [ADDRESSES[server]]
    if tool == "rping":
        own = ADDRESSES[device]
        ends = ["-s", "-a", own] if server is None else ["-c", "-I", own, "-a", *peer]
        return [tool, *ends, "-p", str(port), *args]
    if tool.startswith("ibv_"):
        return [tool, "-d", device, "-g", str(gid_index(machine, device)), "-p", str(port), *args, *peer]
    # -F: no complaint about CPU frequency scaling.
    return [tool, "-F", "-d", device, "-x", str(gid_index(machine, device)), "-p", str(port), *args, *peer]


@cache
def gid_index(machine: Machine, device: str) -> int:
    """Where the RoCE v2 GID of the device's IPv4 address stands in its table."""
    wanted = "ffff" + "".join(f"{int(part):02x}" for part in ADDRESSES[device].split("."))
    port = f"/sys/class/infiniband/{device}/ports/1"
    line = f"echo $i $(<{port}/gids/$i) $(<{port}/gid_attrs/types/$i)"
    script = f"for i in {{0..7}}; do {line}; done 2>/dev/null"
    for line in machine.run(script).stdout.splitlines():
        index, gid, *kind = line.split()
        if gid.replace(":", "").endswith(wanted) and kind == ["RoCE", "v2"]:
            return int(index)
    raise AssertionError(f"{device} has no RoCE v2 GID for {ADDRESSES[device]}")


def netdev_bytes(machine: Machine, device: str) -> tuple[int, int]:
    """(sent, received) by the network device below an RDMA device, frames with all headers."""
    base = f"/sys/class/net/{NETDEVS[device]}/statistics"
    sent, received = machine.run(["cat", f"{base}/tx_bytes", f"{base}/rx_bytes"]).check().stdout.split()
    return int(sent), int(received)


def _uses_rdma_cm(tool: str, args: Sequence[str]) -> bool:
    return tool == "rping" or "-R" in args
