"""`make demo`: what fabrictap sees of RDMA traffic, in a VM with two Soft-RoCE devices.

Everything shown is read from what the agent exported, a file of OTLP/JSON, and from nowhere else: what is on
the screen here is what a Collector gets.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from otlp_json import Reader, Span
from vm import traffic
from vm.demo_view import Flow, Screen, Wire, flows, megabytes, wire
from vm.harness import Machine, MachineError, MissingError, Process
from vm.theft import Scene, Theft
from vm.traffic import ADDRESSES

SERVER, CLIENT = "rxe0", "rxe1"
PORTS = {device: f"{device}/1" for device in (SERVER, CLIENT)}
EXPORT_SECONDS = 2
MESSAGE = 65536
WEIGHTS_MB = 48


class UnexpectedError(Exception):
    """The demo did not show what it is there to show; the text says what."""


class Demo:
    """The steps, in the order in which they are shown."""

    def __init__(self, machine: Machine, screen: Screen) -> None:
        self.machine = machine
        self.screen = screen
        self.exported = Reader(machine.share / "exported.jsonl")
        self.agent: Process | None = None
        # Long enough to be watched, whether the CPU is emulated or not.
        self.factor = 1 if machine.accelerator == "tcg" else 40

    def run(self) -> None:
        self.start_agent()
        self.remote_write()
        self.theft()
        self.connection_manager()
        self.traces()
        self.stop_agent()

    def start_agent(self) -> None:
        self.screen.step("The agent starts: one process, no change to any application")
        settings = {
            "export.interval": f"{EXPORT_SECONDS}s",
            "export.file.path": self.exported.path,
            "export.otlp.metrics.enabled": "false",
            "export.otlp.traces.enabled": "false",
            "export.otlp.logs.enabled": "false",
            "sources.infiniband.interval": "500ms",
            # An emulated processor makes probes so dear that the budget would let nearly everybody go.
            "sources.verbs.data": "full",
        }
        argv = [Path(sys.prefix) / "bin" / "fabrictap", "run"]
        for key, value in settings.items():
            argv += ["--set", f"{key}={value}"]
        self.agent = self.machine.start(argv)
        ready = ("infiniband", "verbs", "rdma_netlink")
        self.wait(
            lambda: (
                all(self.exported.total("fabrictap.source.up", source=name) for name in ready)
                and self.exported.total("fabrictap.probe.attached", fabrictap_probe="post_send_entry") > 0
            ),
            180,
            f"not all of {', '.join(ready)} deliver",
        )
        for point in self.exported.now("hw.network.up"):
            port = f"port {point['hw.id']} ({point.get('hw.name')})"
            self.screen.say(f"{port}: {point['rdma.port.state']}, its counters are read")
        attached = [p for p in self.exported.now("fabrictap.probe.attached") if p.value]
        kernel = sum(1 for point in attached if point["fabrictap.probe.method"] != "uprobe")
        self.screen.say(
            f"{kernel} eBPF programs in the kernel see queue pairs, connections and memory; "
            f"{len(attached) - kernel} more in the RDMA libraries count what is posted without a system call"
        )

    def remote_write(self) -> None:
        self.screen.step("RDMA WRITE: ib_write_bw puts data into another process's memory")
        count = 1000 * self.factor
        moved, on_wire, _ = self.perftest("ib_write_bw", CLIENT, "-n", str(count), "-s", str(MESSAGE))
        flow = self.expect(moved, "ib_write_bw", "rdma_write")
        if (flow.operations, flow.bytes) != (count, count * MESSAGE):
            raise UnexpectedError(
                f"ib_write_bw wrote {count} messages of {MESSAGE} bytes; the agent exported "
                f"{flow.operations} and {flow.bytes} bytes"
            )
        self.screen.notice(
            f"ib_write_bw was told to write {count:,} messages of {MESSAGE:,} bytes: counted exactly, though "
            f"no message made a system call (coverage: {flow.coverage})."
        )
        # RETH, on the first packet of each message (IBTA volume 1, 9.3.1.1).
        self.screen.compare(flow.bytes, on_wire[CLIENT], 16 * count, "to say where each message goes")

    def theft(self) -> None:
        self.screen.step("A theft: RDMA READ takes the weights out of a model server that does nothing")
        scene = Scene(self.machine, self.factor * WEIGHTS_MB << 20, victim=SERVER, attacker=CLIENT)
        before = self.dark(SERVER)
        stolen: list[Theft] = []

        def run() -> traffic.Traffic:
            stolen.append(scene.steal())
            return stolen[0].traffic

        self.screen.say(
            f"model-server on {SERVER} registers {scene.size:,} bytes of weights for remote reads"
        )
        moved, on_wire, ran = self.show(f"attacker {ADDRESSES[SERVER]}", "attacker", SERVER, run)
        (theft,) = stolen
        flow = self.expect(moved, "attacker", "rdma_read")
        victim = f"model-server({ran.server_pid})"
        if posts := self.exported.find("rdma.verbs.operations", pid=ran.server_pid):
            raise UnexpectedError(f"{victim} should have posted nothing, and posted {posts}")
        sent = on_wire[SERVER].sent_bytes
        if flow.bytes != theft.size or sent < flow.bytes:
            raise UnexpectedError(f"{flow.bytes} bytes were read and port {PORTS[SERVER]} sent {sent}")
        if theft.sha256 != scene.sha256:
            raise UnexpectedError(f"the copy is {theft.sha256}, the weights were {scene.sha256}")
        self.screen.notice(
            f"The attacker has every byte (SHA-256 {theft.sha256[:16]}... on both sides). {victim} posted "
            f"nothing and used {theft.victim_cpu_ms:.1f} ms of CPU meanwhile, yet its port sent "
            f"{megabytes(sent)}."
        )
        # AETH, on the first and the last packet of each answer (IBTA volume 1, 9.4.4).
        self.screen.compare(flow.bytes, on_wire[SERVER], 8 * theft.reads, "to acknowledge each request")
        enough = 0.98 * flow.bytes
        self.wait(lambda: self.dark(SERVER) - before >= enough, 10, "what was taken is not called dark")
        self.screen.notice(
            f"fabrictap on {SERVER} alone says so: {self.dark(SERVER) - before:,} bytes left that port "
            f"that no process there asked for (rdma.port.dark.io); on {CLIENT}, {self.dark(CLIENT):,}."
        )
        self.finding(theft)
        self.exposure(ran.server_pid, victim)

    def finding(self, theft: Theft) -> None:
        """The log event of the theft, as it was exported."""
        self.wait(lambda: bool(self.exported.opened("remote_read_egress")), 10, "the theft is not told of")
        (found,) = self.exported.opened("remote_read_egress")
        if (found["process.pid"], found["hw.id"]) != (theft.traffic.server_pid, PORTS[SERVER]):
            raise UnexpectedError(f"the finding names another process or port: {found}")
        (read,) = self.exported.spans_named("rdma.flow", pid=theft.traffic.client_pid, role="receiver")
        seconds = (found.time_ns - read.start_ns) / 1e9
        if seconds > 10 + (read.end_ns - read.start_ns) / 1e9:
            raise UnexpectedError(f"the theft was told of {seconds:.1f} s after it had begun")
        self.screen.alarm(
            f"{found.name} {found['fabrictap.finding.kind']}, {seconds:.1f} s after the first connection:",
            found.body,
            {
                name: found[name]
                for name in ("process.executable.name", "process.pid", "rdma.peer.gid", "rdma.qp.number")
            },
        )

    def exposure(self, pid: int, who: str) -> None:
        """What made it possible; it is gone by now, so at its largest."""
        open_to_reads: dict[str, float] = {}
        for point in self.exported.points:
            if point.name == "rdma.memory_region.size" and point.get("process.pid") == pid:
                access = str(point["rdma.memory_region.remote_access"])
                if access.startswith("read") and point.value:
                    open_to_reads[access] = max(open_to_reads.get(access, 0), point.value)
        if not open_to_reads:
            raise UnexpectedError(f"no remotely readable memory of {who} was exported")
        for access, size in open_to_reads.items():
            self.screen.notice(
                f"It could be taken because {who} had registered {size:,.0f} bytes that a peer with the key "
                f"may {access.replace('_', ' and ')}."
            )

    def connection_manager(self) -> None:
        self.screen.step("Both ways, through the connection manager: rping")
        moved, _, _ = self.perftest("rping", CLIENT, "-C", str(300 * self.factor), "-S", "4096")
        for operation in ("rdma_read", "rdma_write"):
            self.expect(moved, "rping", operation)
        events = {
            str(point["rdma.cm.event"]): int(point.value or 0)
            for point in self.exported.find("rdma.cm.events")
        }
        if not events.get("established"):
            raise UnexpectedError(f"no connection manager event says established: {events}")
        self.screen.notice(
            "The kernel's connection manager said: "
            + ", ".join(f"{name} {count}" for name, count in sorted(events.items()))
        )

    def traces(self) -> None:
        self.screen.step("Both ends of a flow meet in one trace, with no propagation")
        pairs: list[tuple[Span, Span]] = []

        def found() -> bool:
            senders = {span.span_id: span for span in self.exported.spans_named("rdma.flow", role="sender")}
            pairs[:] = [
                (senders[span.parent_id], span)
                for span in self.exported.spans_named("rdma.flow", role="receiver")
                if span.parent_id in senders
            ]
            return len(pairs) >= 4

        self.wait(found, 30, "fewer than four flows have a span of each end")
        for sender, receiver in pairs:
            if sender.trace_id != receiver.trace_id:
                raise UnexpectedError(f"{sender} and {receiver} are one flow and two traces")
        for sender, receiver in (pairs[0], pairs[-1]):
            self.screen.trace(sender, receiver)
        self.screen.notice(
            f"{len(pairs)} flows, a span from each end. Each end computed the ids alone, from GIDs, queue "
            f"pair numbers and first packet number; no header was added to any message. On two nodes, two "
            f"agents do the same."
        )

    def stop_agent(self) -> None:
        assert self.agent is not None
        result = self.agent.stop()
        self.exported.poll()
        if result.rc != 0:
            raise UnexpectedError(f"the agent ended with {result.rc}:\n{result.stderr}")
        lost = [p for p in self.exported.find("fabrictap.record.lost") if p.value]
        if lost:
            raise UnexpectedError(f"the probes lost records: {lost}")

    def perftest(
        self, tool: str, watched: str, *args: str
    ) -> tuple[list[Flow], dict[str, Wire], traffic.Traffic]:
        """Run a tool of perftest or librdmacm."""
        run = partial(traffic.perftest, self.machine, tool, *args, timeout=120)
        return self.show(" ".join((tool, *args)), tool, watched, run)

    def show(
        self, command: str, tool: str, watched: str, run: Callable[[], traffic.Traffic]
    ) -> tuple[list[Flow], dict[str, Wire], traffic.Traffic]:
        """Show what is exported while `run` runs and the sums afterwards. `watched`: the port shown."""
        self.next_exports(1)
        before = {device: wire(self.exported, port) for device, port in PORTS.items()}
        self.screen.say(f"$ {command}     live:")
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            seen = self.exported.exports
            while not running.done():
                time.sleep(0.1)
                self.poll()
                if self.exported.exports > seen:
                    seen = self.exported.exports
                    moving = [flow for flow in flows(self.exported, tool) if flow.bytes]
                    on_port = wire(self.exported, PORTS[watched]) - before[watched]
                    self.screen.live(time.monotonic() - began, moving, PORTS[watched], on_port)
            ran = running.result()
        self.next_exports(2)
        moved = flows(self.exported, tool)
        if not moved:
            raise UnexpectedError(f"{tool} moved data and the agent exported no flow of it")
        after = {device: wire(self.exported, PORTS[device]) - before[device] for device in PORTS}
        self.screen.software(moved)
        self.screen.hardware([(PORTS[device], after[device]) for device in PORTS])
        return moved, after, ran

    def expect(self, moved: list[Flow], tool: str, operation: str) -> Flow:
        found = [flow for flow in moved if flow.operation == operation]
        if len(found) != 1:
            raise UnexpectedError(f"{len(found)} flows of {operation} by {tool} instead of one: {moved}")
        return found[0]

    def dark(self, device: str) -> int:
        """Bytes that left a port and that no process asked for."""
        attributes = {"hw.id": PORTS[device], "network.io.direction": "transmit"}
        return sum(
            int(point.value) for point in self.exported.now("rdma.port.dark.io") if point.has(attributes)
        )

    def next_exports(self, count: int) -> None:
        """Wait until whatever has happened by now has been exported."""
        wanted = self.exported.exports + count
        self.wait(lambda: self.exported.exports >= wanted, 30, "the agent exports nothing more")

    def wait(self, condition: Callable[[], bool], timeout: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                said = self.agent.stderr if self.agent else ""
                raise UnexpectedError(f"{complaint} within {timeout:g} s; the agent said:\n{said[-2000:]}")
            time.sleep(0.1)
            self.poll()

    def poll(self) -> None:
        self.exported.poll()
        if self.agent is not None and self.agent.rc is not None:
            raise UnexpectedError(f"the agent ended with {self.agent.rc}:\n{self.agent.stderr[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="What fabrictap sees, shown in a VM.")
    parser.add_argument("--kernel", help="a version as of tests/vm/kernel.sh")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what was exported (OTLP/JSON lines)")
    options = parser.parse_args()
    screen = Screen()
    began = time.monotonic()
    screen.line("fabrictap demo: a VM with two RDMA devices (Soft-RoCE) on one wire", "strong")
    screen.line("booting; without KVM everything in it is 10 to 20 times slower than on hardware", "dim")
    try:
        with Machine(options.kernel) as machine:
            machine.devices()
            up = f"up: Linux {machine.version}, {machine.accelerator}; rxe0 is 10.9.0.1, rxe1 is 10.9.0.2"
            screen.line(up, "dim")
            demo = Demo(machine, screen)
            try:
                demo.run()
            finally:
                if options.keep is not None and demo.exported.path.exists():
                    shutil.copy(demo.exported.path, options.keep)
    except (MissingError, MachineError, UnexpectedError, AssertionError, TimeoutError) as error:
        screen.line()
        print(screen.paint("demo: ", "bad") + str(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    screen.step(f"Done in {time.monotonic() - began:.0f} s; where to go next")
    for what, why in (
        ("make run", "the agent on this machine"),
        ("make vm", "a shell in the VM, to try more"),
        ("make demo ARGS='--keep out.jsonl'", "keep what was exported, to look into"),
        ("docs/operator.md", "installing, configuring, what is lost when"),
        ("docs/catalog.md", "every metric, span and attribute"),
    ):
        screen.line(f"   {what:<34} {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
