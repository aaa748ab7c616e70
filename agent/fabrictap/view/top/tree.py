"""A look for programs: bytes and bytes per second, shares of 1, times in RFC 3339; null is not known."""

from __future__ import annotations

from typing import Any

from fabrictap.view import flows
from fabrictap.view.text import moment
from fabrictap.view.top.cells import severity
from fabrictap.view.top.look import Gpu, Link, Look, Port, Way

#: Ticks of the past that are told.
_TICKS = 60


def as_json(look: Look) -> dict[str, Any]:
    picture = look.picture
    return {
        "time": moment(look.time_ns, 3),
        "node": look.node,
        "stale": look.life.state != "running",
        "simulated": look.simulated,
        "agent": picture["agent"],
        "resource": dict(look.resource),
        "gpus": [_gpu(gpu) for gpu in look.gpus],
        "ports": [_port(port) for port in look.ports],
        "flows": [
            {
                **flows.as_json(one.connection),
                "workload": one.workload or None,
                "ticks": list(one.past)[-_TICKS:],
            }
            for one in look.flows
        ],
        "findings": [
            {
                "kind": one.kind,
                "level": severity(one).lower(),
                "open": not one.ended,
                "text": one.text,
                "since": moment(one.since_ns, 3) if one.since_ns else None,
                "last": moment(one.time_ns, 3),
                "pid": one.pid,
                "process": one.process,
                "device": one.device,
                "peer": one.peer,
            }
            for one in look.findings
        ],
        "memory": picture["memory"],
        "losses": picture["losses"],
        "sources": picture["sources"],
        "unreadable": look.unreadable,
    }


def _way(way: Way) -> dict[str, Any]:
    return {"bytes_per_second": way.rate, "peak": way.peak, "ticks": list(way.past)[-_TICKS:]}


def _port(port: Port) -> dict[str, Any]:
    return {
        "port": port.name,
        "interface": port.interface,
        "state": port.state,
        "up": port.up,
        "limit": port.limit,
        "receive": _way(port.receive),
        "transmit": _way(port.transmit),
        "dark_receive": _way(port.dark_receive),
        "dark_transmit": _way(port.dark_transmit),
        "errors": dict(port.errors),
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    return {
        "gpu": gpu.id,
        "label": gpu.label,
        "model": gpu.model,
        "state": gpu.state,
        "utilization": gpu.busy,
        "memory": gpu.memory,
        "memory_utilization": gpu.used,
        "memory_bandwidth_utilization": gpu.dram,
        "nvlink_receive": _way(gpu.nvlink_receive),
        "nvlink_transmit": _way(gpu.nvlink_transmit),
        "pcie_receive": _way(gpu.pcie_receive),
        "pcie_transmit": _way(gpu.pcie_transmit),
        "power": gpu.power,
        "temperature": gpu.temperature,
        "errors": dict(gpu.errors),
        "links": [_link(link) for link in gpu.links],
    }


def _link(link: Link) -> dict[str, Any]:
    """Without its ticks: a node has hundreds of links."""
    return {
        "link": link.number,
        "up": link.up,
        "remote": link.remote,
        "limit": link.limit,
        **{
            name: {"bytes_per_second": way.rate, "peak": way.peak}
            for name, way in (("receive", link.receive), ("transmit", link.transmit))
        },
        "errors": link.errors,
    }
