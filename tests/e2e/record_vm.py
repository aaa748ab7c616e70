"""Records data/rdma-in-vm.jsonl.gz anew: what two agents export of real RDMA between two Soft-RoCE
devices.

    PYTHONPATH=tests python tests/e2e/record_vm.py

Takes three minutes with KVM, more without. One agent watches rxe0, the other rxe1, so that they are two
nodes. There is traffic that somebody asked for (writes, sends, atomics, datagrams, the connection
manager), and at the end the theft of tests/vm/test_dark.py: rxe1 reads memory of a process at rxe0 that
does nothing. A policy and low limits make detectors speak of peers and of exposed memory too. Nothing
in it is made up but the names of the two nodes and of their cluster.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from vm.agent import Agent
from vm.harness import Machine
from vm.traffic import perftest

FILE = Path(__file__).parent / "data" / "rdma-in-vm.jsonl.gz"
ROUNDS = 5
ASKED = (
    ("ib_write_bw", "-n", "128", "-s", "65536"),
    ("ib_send_bw", "-n", "128", "-s", "16384"),
    ("ib_atomic_bw", "-n", "64"),
    ("ibv_ud_pingpong", "-n", "64", "-s", "1024"),
    ("rping", "-C", "200", "-S", "1000"),
)
STOLEN = ("ib_read_bw", "-n", "500", "-s", "65536")
BROKEN_COUNTER = "/sys/class/infiniband/rxe1/ports/1/hw_counters/send_err"
#: Its peers are elsewhere: the other device of the VM is none of them.
POLICY = "policy: {workloads: [{match: {process.executable.name: rping}, peers: [192.0.2.0/24]}]}"


def agent(machine: Machine, name: str, device: str) -> Agent:
    policy = machine.share / "policy.yaml"
    policy.write_text(POLICY)
    return Agent(
        machine,
        name,
        "export.interval=5s",
        "findings.exposed_memory=64KiB",
        # Nobody listens there: what could not be handed over is told of too.
        "export.otlp.traces.enabled=true",
        "export.otlp.traces.endpoint=http://127.0.0.1:9",
        "export.otlp.queue=3",
        "flows.window=5s",
        f"resource.attributes=host.name={name},k8s.cluster.name=recorded-in-a-vm",
        device=device,
        config=policy,
    )


def asked(machine: Machine, tool: str, *args: str) -> None:
    """Traffic that is watched. An emulated CPU may be too slow for rxe: then there is less."""
    try:
        perftest(machine, tool, *args)
    except AssertionError as error:
        print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)


def main() -> None:
    with Machine() as machine:
        machine.devices()
        # A counter that cannot be read.
        machine.run(["mount", "--bind", "/dev/null", BROKEN_COUNTER]).check()
        victim, attacker = agent(machine, "vm-rxe0", "rxe0"), agent(machine, "vm-rxe1", "rxe1")
        victim.start()
        attacker.start()
        for _ in range(ROUNDS):
            for tool, *args in ASKED:
                asked(machine, tool, *args)
            victim.exports(1)
        tool, *args = STOLEN
        for _ in range(3):
            asked(machine, tool, *args)
        victim.exports(3)
        victim.stop()
        attacker.stop()
        lines = [
            json.dumps(json.loads(line), separators=(",", ":"))
            for one in (victim, attacker)
            for line in one.exported.path.read_text().splitlines()
        ]
    lines.sort(key=first_time)
    FILE.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(FILE, "wb", 9, mtime=0) as packed:
        packed.write(("\n".join(lines) + "\n").encode())
    print(f"{FILE}: {len(lines)} exports, {FILE.stat().st_size >> 10} KiB")


def first_time(line: str) -> int:
    """When an export was made, in nanoseconds since the epoch."""
    found: list[int] = []

    def walk(part: object) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                if key in ("timeUnixNano", "endTimeUnixNano"):
                    found.append(int(value))
                else:
                    walk(value)
        elif isinstance(part, list):
            for one in part:
                walk(one)

    walk(json.loads(line))
    return max(found)


if __name__ == "__main__":
    main()
