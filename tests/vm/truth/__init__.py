"""What was really sent: a packet-level probe of Soft-RoCE that shares no code with the agent."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vm.harness import Machine, Process

HERE = Path(__file__).parent
# InfiniBand Architecture Specification 1.4, table 38: the operation of a request's BTH opcode, by its low
# five bits, whether the packet begins a message, and the bytes of extended headers behind the BTH.
_RETH, _IMM, _ATOMIC, _DETH, _AETH = 16, 4, 28, 8, 4
_REQUESTS = {
    0x00: ("send", True, 0),
    0x01: ("send", False, 0),
    0x02: ("send", False, 0),
    0x03: ("send", False, _IMM),
    0x04: ("send", True, 0),
    0x05: ("send", True, _IMM),
    0x06: ("rdma_write", True, _RETH),
    0x07: ("rdma_write", False, 0),
    0x08: ("rdma_write", False, 0),
    0x09: ("rdma_write", False, _IMM),
    0x0A: ("rdma_write", True, _RETH),
    0x0B: ("rdma_write", True, _RETH + _IMM),
    0x0C: ("rdma_read", True, _RETH),
    0x13: ("atomic_cmp_and_swp", True, _ATOMIC),
    0x14: ("atomic_fetch_and_add", True, _ATOMIC),
}
_READ_RESPONSES = {0x0D: _AETH, 0x0E: 0, 0x0F: _AETH, 0x10: _AETH}
_UD = 0x60
_BTH_AND_ICRC = 12 + 4


@dataclass
class Sent:
    """What one queue pair sent: messages and payload bytes by operation, and payload of read responses."""

    messages: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    payload: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    read_responses: int = 0
    again: int = 0


class Truth:
    """Watches from construction until ``stop``."""

    def __init__(self, machine: Machine, build: Path) -> None:
        program = machine.put(_compile(build), "truth")
        self._process: Process = machine.start([program / "truth", program / "packets.bpf.o"])
        self._process.wait_output("ready")

    def stop(self) -> dict[tuple[str, int], Sent]:
        """(device, qpn) -> what it sent."""
        output = self._process.stop().check().stdout
        found: dict[tuple[str, int], Sent] = defaultdict(Sent)
        for line in output.splitlines()[1:]:
            row = json.loads(line)
            sent = found[row["device"], row["qpn"]]
            sent.again += row["again"]
            opcode, datagram = row["opcode"] & 0x1F, row["opcode"] & 0xE0 == _UD
            headers = _BTH_AND_ICRC + (_DETH if datagram else 0)
            if opcode in _READ_RESPONSES:
                sent.read_responses += row["bytes"] - row["packets"] * (headers + _READ_RESPONSES[opcode])
            elif opcode in _REQUESTS:
                operation, begins, extended = _REQUESTS[opcode]
                sent.messages[operation] += row["packets"] if begins else 0
                sent.payload[operation] += row["bytes"] - row["packets"] * (headers + extended)
        return found


def _compile(build: Path) -> Path:
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    build.mkdir(parents=True, exist_ok=True)
    bpf = ["clang", "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-D__TARGET_ARCH_x86"]
    include = f"-I/usr/include/{multiarch}"
    source, output = str(HERE / "packets.bpf.c"), str(build / "packets.bpf.o")
    subprocess.run([*bpf, include, "-c", source, "-o", output], check=True)
    loader, program = str(HERE / "main.c"), str(build / "truth")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", loader, "-o", program, "-lbpf"], check=True)
    return build
