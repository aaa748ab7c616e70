"""A theft: a model server registers its weights for remote reads, and a peer takes them with RDMA READ."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vm.harness import Machine
from vm.traffic import ADDRESSES, Traffic, gid_index

SOURCE = Path(__file__).with_name("theft.c")
PORT = 19000
#: In the guest's own memory.
WEIGHTS, COPY = Path("/tmp/model.safetensors"), Path("/tmp/copy-of-model")


@dataclass(frozen=True)
class Theft:
    """What came of it: the victim is the ``server`` of ``traffic``, the attacker its ``client``."""

    traffic: Traffic
    size: int
    reads: int
    #: CPU that the victim used while it was read, in milliseconds.
    victim_cpu_ms: float
    #: SHA-256 of what the attacker has.
    sha256: str


class Scene:
    """Both programs and the weights in the guest; ``steal`` may be called once."""

    def __init__(self, machine: Machine, size: int, *, victim: str = "rxe0", attacker: str = "rxe1") -> None:
        self.machine = machine
        self.size = size
        self.victim, self.attacker = victim, attacker
        # Two names, as two people would have written two programs.
        for name in ("model-server", "attacker"):
            _compile(machine.share / name)
        machine.run(f"head -c {size} /dev/urandom > {WEIGHTS}").check()
        self.sha256 = self._sha256(WEIGHTS)

    def steal(self, timeout: float = 120) -> Theft:
        """Run both ends. Raises AssertionError where one fails."""
        server = self.machine.start(self._command("model-server", "victim", self.victim, WEIGHTS))
        try:
            listens = (
                f"until grep -q ':{PORT:04X} .* 0A ' /proc/net/tcp6; do kill -0 {server.pid} || exit 1; "
            )
            self.machine.run(f"{listens} sleep 0.05; done", timeout).check()
            client = self.machine.start(
                self._command("attacker", "attacker", self.attacker, ADDRESSES[self.victim], COPY)
            )
            took = client.wait(timeout).check()
            lost = server.wait(timeout).check()
        except BaseException:
            server.kill()
            raise
        victim, attacker = json.loads(lost.stdout), json.loads(took.stdout)
        assert victim["registered"] == attacker["read"] == self.size
        return Theft(
            Traffic(lost, took, server.pid, client.pid),
            self.size,
            attacker["reads"],
            victim["cpu_ms"],
            self._sha256(COPY),
        )

    def _command(self, program: str, role: str, device: str, *more: object) -> list[str]:
        index = gid_index(self.machine, device)
        return [str(self.machine.share / program), role, device, str(index), str(PORT), *map(str, more)]

    def _sha256(self, path: Path) -> str:
        return self.machine.run(["sha256sum", str(path)]).check().stdout.split()[0]


def _compile(target: Path) -> None:
    if shutil.which("cc") is None:
        raise AssertionError("a C compiler is needed: apt-get install build-essential")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", str(SOURCE), "-o", str(target), "-libverbs"], check=True)
