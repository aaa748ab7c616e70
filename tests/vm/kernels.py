"""What fabrictap gives on a kernel, by level of its hooks: one scenario, an agent for each level at once.

A connection that is older than the agents, an ib_write_bw, an ib_read_bw, an rping that stays, clients that
are killed. What each agent exported of them is a row of the table in docs/kernels.md.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel_table import GIVES
from otlp_json import Reader
from vm.agent import Agent
from vm.harness import Machine, Process
from vm.traffic import ADDRESSES, Traffic, listen, perftest

#: How the control path can be hooked, best first; the last is what is left without.
LEVELS = ("fexit", "kprobe", "syscall", "netlink")
#: What is not looked at here, off: several agents share an emulated machine.
_QUIET = (
    "sources.rdma_netlink.interval=1s", "sources.infiniband.enabled=false", "sources.nvml.enabled=false",
    "sources.dcgm.enabled=off", "sources.kubelet.enabled=off",
)  # fmt: skip
ENDLESS = ("ibv_rc_pingpong", "-e", "-n", "10000000", "-s", "1024")
COUNT, SIZE = 50, 4096
TRANSFER = ("-n", str(COUNT), "-s", str(SIZE))
#: What is there for as long as a process has it.
OF_PROCESSES = ("rdma.qp.status", "rdma.verbs.operations", "rdma.memory_region.size", "rdma.context.count")
#: Both ends are ready to send, and more has crossed the wire than it took to get there.
_EXCHANGING = """
sent() {{ cat /sys/class/net/d1/statistics/tx_bytes; }}
wait_until() {{ until eval "$1"; do kill -0 {pid} || exit 1; sleep 0.05; done; }}
wait_until '(($(rdma resource show qp | grep -c "state RTS.* comm {tool}") >= 2))'
before=$(sent)
wait_until '(($(sent) > before + 4000))'
"""
_ABOUT = """
import json, sys
from pathlib import Path
from fabrictap.ext.bpf import has_bpf_loop, has_uprobe_multi
from fabrictap.sources.verbs import probes, returns
refused = {}
for level in probes.LEVELS:
    try:
        probes.load_control(level, 1 << 16).close()
    except probes.ProbesUnavailable as error:
        refused[level] = str(error)
print(json.dumps([{
    "types": Path("/sys/kernel/btf/vmlinux").exists(),
    "module_types": Path("/sys/kernel/btf/ib_core").exists(),
    "bpf_loop": has_bpf_loop(),
    "uprobe_multi": has_uprobe_multi(),
    "return_probes": returns.safe(str(probes._OBJECTS / "verbs_data.bpf.o")),
}, refused]))
"""


def about(machine: Machine) -> tuple[dict[str, bool], dict[str, str]]:
    """What the kernel has that matters, as the agent asks it; and why it refuses the levels that it does."""
    has, refused = json.loads(machine.run([sys.executable, "-c", _ABOUT], timeout=180).check().stdout)
    return has, refused


def settings(refused: Mapping[str, str], headers: Path | None) -> dict[str, tuple[str, ...]]:
    """Level -> what its agent is told. The best is what the agent takes by itself; a refused one has none.

    ``headers``: what bcc's compiler said of this kernel, for the level of that name.
    """
    found: dict[str, tuple[str, ...]] = {}
    for level in LEVELS:
        if level not in refused:
            chosen = {"netlink": "off"}.get(level, level)
            found[level] = (f"sources.verbs.control={chosen}",) if found else ()
    if headers is not None:
        found["bcc"] = ("sources.verbs.loader=bcc", f"sources.verbs.kernel_headers={headers}")
    return found


@dataclass
class Seen:
    """One agent's view. ``gives``: names of kernel_table.GIVES."""

    agent: Agent
    gives: set[str] = field(default_factory=set)
    #: How the control path was hooked; None where it was not.
    hooked: str | None = None

    def row(self) -> dict[str, Any]:
        """What is recorded of it."""
        return {"hooked": self.hooked, "missing": [name for name in GIVES if name not in self.gives]}


class Scenario:
    """Use as a context; :meth:`play` once."""

    def __init__(self, machine: Machine, levels: Mapping[str, tuple[str, ...]]) -> None:
        self.machine = machine
        self.seen = {
            level: Seen(Agent(machine, f"kernel-{level}", *_QUIET, *chosen))
            for level, chosen in levels.items()
        }
        self._ending = ExitStack()

    def __enter__(self) -> Scenario:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def play(self) -> dict[str, Seen]:
        """What each level saw, once all of it was exported."""
        older_server, older = self._endless(*ENDLESS)
        agents = [seen.agent for seen in self.seen.values()]
        for agent in agents:  # one after the other: each has limits of its own for what it does at first
            agent.launch()
            assert agent.process is not None
            self._ending.callback(agent.process.kill)
            agent.until_watching(timeout=180)
            self.machine.wait_for(lambda a=agent: _watches_connection_manager(a), 120, "no export")
        written = perftest(self.machine, "ib_write_bw", *TRANSFER, timeout=150)
        read = perftest(self.machine, "ib_read_bw", *TRANSFER, timeout=150)
        rping_server, rping = self._endless("rping", "-C", "10000000", "-S", "1000")
        for seen in self.seen.values():
            exported = seen.agent.exports(3)
            seen.hooked = _hooked(exported)
            checks = {
                "posts": _posts_exact(exported, written, "rdma_write")
                and _posts_exact(exported, read, "rdma_read"),
                "flows": _flows_meet(exported, written) and _flows_meet(exported, read),
                "memory": _memory(exported, rping.pid),
                "cm": exported.total("rdma.cm.events", rdma_cm_event="established") > 0,
                "older": _older(exported, older.pid, peer=False),
                "older_peer": _older(exported, older.pid, peer=True),
            }
            seen.gives |= {name for name, found in checks.items() if found}
        for process in (older, rping, older_server, rping_server):
            process.kill()
        for seen in self.seen.values():
            if self._ended(seen.agent.exports(1), older.pid, rping.pid):
                seen.gives.add("ends")
        for agent in agents:
            agent.stop()
        return self.seen

    def _ended(self, exported: Reader, *pids: int) -> bool:
        """Whether nothing of these processes goes on; netlink is asked for all kinds of objects in 6 s."""

        def nothing() -> bool:
            exported.poll()
            return not any(exported.now(name, pid=pid) for name in OF_PROCESSES for pid in pids)

        try:
            self.machine.wait_for(nothing, 40)
        except TimeoutError:
            return False
        return True

    def _endless(self, tool: str, *args: str) -> tuple[Process, Process]:
        server = listen(self.machine, tool, *args)
        self._ending.callback(server.process.kill)
        client = server.connect(self.machine, "rxe1")
        self._ending.callback(client.kill)
        self.machine.run(_EXCHANGING.format(tool=tool, pid=client.pid), 90).check()
        # Connected is enough. Going on, rxe of 5.10 leaves an emulated CPU nothing for anybody else.
        for process in (client, server.process):
            process.signal(signal.SIGSTOP)
        return server.process, client


def _watches_connection_manager(agent: Agent) -> bool:
    """Its tracepoints are attached in the first tick, unless the agent said why not or was told not to."""
    agent.exported.poll()
    attached = {p["fabrictap.probe"] for p in agent.exported.now("fabrictap.probe.attached") if p.value}
    refused = "control path: " in agent.log or "connection manager: " in agent.log
    return "tracepoint_cm_event" in attached or refused or "sources.verbs.control=off" in agent.settings


def _hooked(exported: Reader) -> str | None:
    probes = {str(p["fabrictap.probe"]) for p in exported.find("fabrictap.probe.attached") if p.value}
    return next(
        (lvl for lvl in ("fexit", "kprobe", "syscall") if any(p.startswith(f"{lvl}_") for p in probes)), None
    )


def _posts_exact(exported: Reader, traffic: Traffic, operation: str) -> bool:
    """Work requests and bytes of the client, and none of the server, whose CPU does nothing."""
    counted = [
        exported.total(name, pid=traffic.client_pid, operation=operation)
        for name in ("rdma.verbs.operations", "rdma.verbs.io")
    ]
    return counted == [COUNT, COUNT * SIZE] and not exported.find(
        "rdma.verbs.operations", pid=traffic.server_pid
    )


def _flows_meet(exported: Reader, traffic: Traffic) -> bool:
    """Both ends' spans are in one trace, by ids that each computes alone."""
    sent = exported.spans_named("rdma.flow", pid=traffic.client_pid, role="sender")
    received = exported.spans_named("rdma.flow", pid=traffic.server_pid, role="receiver")
    return (
        len(sent) == len(received) == 1
        and sent[0].trace_id == received[0].trace_id
        and {span["rdma.flow.identity"] for span in (*sent, *received)} == {"exact"}
        and sent[0].get("rdma.peer.gid") == f"::ffff:{ADDRESSES['rxe0']}"
    )


def _memory(exported: Reader, pid: int) -> bool:
    """rping's memory that its peer may read and write, with its owner."""
    return any(
        (point.value or 0) >= 1000 and point["rdma.device"] == "rxe1"
        for point in exported.now("rdma.memory_region.size", pid=pid, access="read_write")
    )


def _older(exported: Reader, pid: int, *, peer: bool) -> bool:
    status = [point for point in exported.now("rdma.qp.status", pid=pid) if point.value]
    return any(not peer or p.get("rdma.peer.gid") == f"::ffff:{ADDRESSES['rxe0']}" for p in status)
