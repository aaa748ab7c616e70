"""How the demo looks in a terminal: titles, tables and live lines, 80 columns, colour where it is seen."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from otlp_json import Point, Reader, Span

WIDTH = 80
HEADERS = 58
"""Ethernet 14, IPv4 20, UDP 8, BTH 12, ICRC 4: what RoCE v2 adds to a packet, as a netdev counts it."""
_STYLES = {"title": "1;36", "good": "32", "bad": "1;31", "dim": "2", "strong": "1"}


@dataclass(frozen=True)
class Flow:
    """What one process asked of one queue pair with one opcode, since the queue pair was made."""

    process: str
    pid: int
    device: str
    qpn: int
    peer_gid: str
    peer_qpn: str
    operation: str
    operations: int
    bytes: int
    coverage: str

    @property
    def who(self) -> str:
        return f"{self.process}({self.pid})"

    @property
    def path(self) -> str:
        """device/qpn to peer GID/qpn, in the direction of the data."""
        here, there = f"{self.device}/{self.qpn}", f"{self.peer_gid}/{self.peer_qpn}"
        return f"{here} <- {there}" if self.operation == "rdma_read" else f"{here} -> {there}"


@dataclass(frozen=True)
class Wire:
    """What a port moved, as its counters have it."""

    sent_bytes: int = 0
    sent_packets: int = 0
    received_bytes: int = 0
    received_packets: int = 0

    def __sub__(self, before: Wire) -> Wire:
        return Wire(
            self.sent_bytes - before.sent_bytes,
            self.sent_packets - before.sent_packets,
            self.received_bytes - before.received_bytes,
            self.received_packets - before.received_packets,
        )


def flows(exported: Reader, process: str) -> list[Flow]:
    """The flows of all processes of a name, live or ended, from the exported metrics."""
    found = [_flow(exported, point) for point in exported.find("rdma.verbs.operations", process=process)]
    return sorted(found, key=lambda flow: (flow.device, flow.qpn, flow.operation))


def _flow(exported: Reader, operations: Point) -> Flow:
    posted = [
        point
        for point in exported.find("rdma.verbs.io", pid=operations["process.pid"])
        if point.has(operations.attributes)
    ]
    return Flow(
        process=str(operations.get("process.executable.name") or "?"),
        pid=int(operations["process.pid"]),
        device=str(operations["rdma.device"]),
        qpn=int(operations["rdma.qp.number"]),
        peer_gid=str(operations.get("rdma.peer.gid") or "?"),
        peer_qpn=str(operations.get("rdma.peer.qp.number") or "?"),
        operation=str(operations["rdma.operation"]),
        operations=int(operations.value or 0),
        bytes=int(sum(point.value or 0 for point in posted)),
        coverage=str(operations["fabrictap.coverage"]),
    )


def wire(exported: Reader, port: str) -> Wire:
    """The newest counters of a port, as in rxe0/1."""

    def read(metric: str, direction: str) -> int:
        return int(exported.total(metric, port=port, direction=direction))

    return Wire(
        read("hw.network.io", "transmit"),
        read("hw.network.packets", "transmit"),
        read("hw.network.io", "receive"),
        read("hw.network.packets", "receive"),
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


class Screen:
    """Prints for a person. Colour on a terminal without NO_COLOR (no-color.org) and with a TERM not dumb."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._colour = (
            stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        )
        self._steps = 0

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour else text

    def line(self, text: str = "", style: str | None = None) -> None:
        print(self.paint(text, style) if style else text, file=self._stream, flush=True)

    def step(self, title: str) -> None:
        self._steps += 1
        self.line()
        self.line(f"{self._steps}. {title}", "title")

    def say(self, text: str) -> None:
        self.line(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="   "))

    def notice(self, text: str) -> None:
        """What is special about what was just shown."""
        filled = textwrap.fill(text, WIDTH, initial_indent="   => ", subsequent_indent="      ")
        self.line(filled.replace("=>", self.paint("=>", "good"), 1))

    def live(self, seconds: float, moved: Sequence[Flow], port: str, on_wire: Wire) -> None:
        """One look at traffic under way: software's view, then hardware's."""
        if not moved:
            return
        clock = f"   {seconds:4.1f} s  "
        for flow in moved:
            self.line(
                f"{clock}{flow.who}  {flow.operation}  {flow.operations:,} ops  {megabytes(flow.bytes)}"
            )
            clock = " " * len(clock)
        self.line(
            f"{clock}port {port}  sent {megabytes(on_wire.sent_bytes)}"
            f"  received {megabytes(on_wire.received_bytes)}",
            "dim",
        )

    def software(self, moved: Sequence[Flow]) -> None:
        """The flows: which process, to whom, what."""
        rows = [
            (flow.who, flow.path, flow.operation, f"{flow.operations:,}", f"{flow.bytes:,}")
            for flow in moved
            if flow.operation != "recv"
        ]
        self.line("   Software, what processes posted:", "strong")
        self.table(("process", "local qp, peer qp", "operation", "posted", "bytes"), rows, right=(3, 4))

    def hardware(self, ports: Sequence[tuple[str, Wire]]) -> None:
        """The ports in the same interval."""
        self.line("   Hardware, what the ports moved meanwhile:", "strong")
        rows = [
            (
                name,
                f"{w.sent_bytes:,}",
                f"{w.sent_packets:,}",
                f"{w.received_bytes:,}",
                f"{w.received_packets:,}",
            )
            for name, w in ports
        ]
        header = ("port", "bytes sent", "in packets", "bytes received", "in packets")
        self.table(header, rows, right=(1, 2, 3, 4))

    def compare(self, payload: int, on_wire: Wire, extra: int, why: str) -> None:
        """Whether the port's bytes are the payload and its headers, with `extra` bytes of others."""
        headers = HEADERS * on_wire.sent_packets
        if payload + headers + extra == on_wire.sent_bytes:
            self.notice(
                f"Software and hardware agree to the byte: {payload:,} of data, {HEADERS} bytes of headers "
                f"on each of {on_wire.sent_packets:,} packets, {extra:,} {why}: {on_wire.sent_bytes:,} sent."
            )
        else:
            self.notice(
                f"The port sent {megabytes(on_wire.sent_bytes - payload)} more than the data: headers of "
                f"{on_wire.sent_packets:,} packets, and what Soft-RoCE had to send again."
            )

    def alarm(self, title: str, text: str, evidence: Mapping[str, object]) -> None:
        """A finding, as it was exported."""
        self.line(f"   !! {title}", "bad")
        self.line(textwrap.fill(text, WIDTH, initial_indent="      ", subsequent_indent="      "), "strong")
        shown = "  ".join(f"{name}={value}" for name, value in evidence.items())
        self.line(textwrap.fill(shown, WIDTH, initial_indent="      ", subsequent_indent="      "), "dim")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

        def cells(row: Sequence[str]) -> str:
            made = [
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            return "   " + " ".join(made).rstrip()

        self.line(cells(header), "dim")
        for row in rows:
            self.line(cells(row))

    def trace(self, sender: Span, receiver: Span) -> None:
        """Two ends of one flow, each as its own end reported it."""
        self.line(f"   trace {sender.trace_id}", "strong")
        for end, text in ((sender, "sent by    "), (receiver, "received by")):
            who = f"{end.get('process.executable.name')}({end.get('process.pid')})"
            at = f"{end['rdma.gid']} qp {end['rdma.qp.number']}"
            parent = f"parent {end.parent_id}" if end.parent_id else "root"
            self.line(f"     {text} {who}, {at}")
            self.line(f"                 span {end.span_id}, {parent}", "dim")
