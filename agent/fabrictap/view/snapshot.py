"""``fabrictap snapshot``: one picture of the node as the recording has it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.view import flows, simulated, snapshot_gpus, text
from fabrictap.view.recording import Connection, CounterCell, HistogramCell, Life, Recording, Row, SeriesEntry
from fabrictap.view.recording.about import MetricName
from fabrictap.view.text import UNKNOWN, amount, duration, moment, plain

_TOP = 10
#: Seconds in which a peak is looked for.
_PEAK_SECONDS = 60
_GPU = ("hw.gpu.", "gpu.")
_OF_GPUS = frozenset(
    metric.name
    for metric in (catalog.GPU_POWER, catalog.GPU_ENERGY, catalog.GPU_TEMPERATURE, catalog.HW_STATUS)
)
_LOSSES = (catalog.LOST, catalog.SERIES_REFUSED, catalog.TABLE_EVICTED, catalog.SOURCE_ERRORS)
_EXPORTED = (catalog.POINTS_EXPORTED, catalog.SPANS_EXPORTED)
_PORTS = (
    catalog.NETWORK_UP,
    catalog.NETWORK_LIMIT,
    catalog.NETWORK_IO,
    catalog.ERRORS,
    catalog.PORT_DARK,
)
_SHOWN = {
    metric.name
    for metric in (*_LOSSES, *_EXPORTED, *_PORTS, catalog.MR_SIZE, catalog.MR_COUNT, catalog.SOURCE_UP)
}


@dataclass(frozen=True, slots=True)
class Now:
    """A series, its rate over the last tick and the largest of the last minute; None where not known."""

    series: SeriesEntry
    rate: float | None
    peak: float | None

    def attribute(self, name: str, otherwise: str = UNKNOWN) -> str:
        value = self.series.attributes.get(name)
        return otherwise if value is None else str(value)


def take(recording: Recording) -> dict[str, Any]:
    """The picture, for programs: bytes, bytes per second, seconds; null is not known."""
    now = list(_now(recording))
    durations = dict(durations_of(recording))
    connections = recording.connections()
    life = recording.alive()
    live = [one for one in connections if not one.ended]
    return {
        "agent": agent_of(recording, life),
        "simulated": simulated.is_simulated(recording.about.resource),
        "resource": recording.about.resource,
        "ports": ports_of(now),
        "gpus": gpus_of(now),
        "connections": {
            "live": len(live),
            "by_coverage": dict(Counter(one.coverage for one in live)),
            "by_type": dict(Counter(one.type for one in live)),
            "top": [flows.as_json(one) for one in _top(live)],
        },
        "memory": memory_of(now),
        "losses": losses_of(now),
        "sources": sources_of(now, durations),
        "unreadable": recording.unreadable,
    }


def main(open_recording: Callable[[], Recording], *, as_json: bool) -> int:
    with open_recording() as recording:
        picture, connections = take(recording), recording.connections()
        life = recording.alive()
    if as_json:
        print(json.dumps(picture, indent=2))
        return 0
    seen_ns = time.time_ns() if life.alive else life.last_tick_ns or life.created_ns
    for line in _page(picture, _top([one for one in connections if not one.ended]), seen_ns):
        print(line)
    return 0


def _now(recording: Recording) -> Iterable[Now]:
    rows = last_minute(recording.rows())
    for series in recording.series(is_shown):
        if series.ended:
            continue
        cells = recording.cells(series, rows)
        counted = [cell for cell in cells if isinstance(cell, CounterCell)]
        last = cells[-1] if cells else None
        rate = None
        if isinstance(last, CounterCell) and rows[-1].seconds:
            rate = last.delta / rows[-1].seconds
        yield Now(series, rate, max((cell.peak for cell in counted), default=None))


def is_shown(metric: MetricName) -> bool:
    """Not the many series of posted work: the table of connections has that."""
    wanted = metric.name in _SHOWN or metric.name in _OF_GPUS or metric.name.startswith(_GPU)
    return metric.kind != "Histogram" and wanted


def last_minute(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.end_ns > rows[-1].end_ns - _PEAK_SECONDS * 10**9]


def _of(now: Iterable[Now], *metrics: Metric) -> Iterable[Now]:
    names = {metric.name for metric in metrics}
    return (one for one in now if one.series.metric.name in names and one.series.value is not None)


def _top(connections: Iterable[Connection]) -> list[Connection]:
    return flows.select(connections, flows.Filter(), "rate")[:_TOP]


def agent_of(recording: Recording, life: Life) -> dict[str, Any]:
    end_ns = life.ended_ns or (None if life.alive else life.last_tick_ns)
    return {
        "state": life.state,
        "pid": life.pid,
        "version": recording.about.agent.version,
        "since": moment(life.created_ns, 3),
        "until": None if end_ns is None else moment(end_ns, 3),
        "last_tick": None if life.last_tick_ns is None else moment(life.last_tick_ns, 3),
        "last_tick_age": life.age,
        "file": recording.path,
    }


def ports_of(now: list[Now]) -> list[dict[str, Any]]:
    ports: dict[str, dict[str, Any]] = {}

    def port(one: Now) -> dict[str, Any]:
        return ports.setdefault(
            one.attribute("hw.id"),
            {
                "port": one.attribute("hw.id"),
                "interface": one.attribute("hw.name"),
                "up": None,
                "state": None,
                "limit": None,
                "receive": None,
                "transmit": None,
                "dark": {},
                "errors": {},
            },
        )

    for one in _of(now, catalog.NETWORK_UP):
        port(one).update(up=bool(one.series.value), state=one.attribute("rdma.port.state"))
    for one in _of(now, catalog.NETWORK_LIMIT):
        port(one)["limit"] = one.series.value
    for one in _of(now, catalog.NETWORK_IO):
        port(one)[one.attribute("network.io.direction")] = {
            "bytes": one.series.value,
            "rate": one.rate,
            "peak": one.peak,
            "source": one.attribute("rdma.counter.source"),
        }
    for one in _of(now, catalog.PORT_DARK):
        port(one)["dark"][one.attribute("network.io.direction")] = {
            "bytes": one.series.value,
            "rate": one.rate,
        }
    for one in _of(now, catalog.ERRORS):
        if one.series.value and one.attribute("hw.type", "network") == "network":
            name = " ".join(
                filter(None, (one.attribute("error.type"), one.attribute("network.io.direction", "")))
            )
            port(one)["errors"][name] = one.series.value
    return [ports[name] for name in sorted(ports)]


def gpus_of(now: list[Now]) -> list[dict[str, Any]]:
    """Whatever there is of each GPU."""
    gpus: dict[str, dict[str, Any]] = {}
    for one in now:
        series = one.series
        name = series.metric.name
        of_gpu = name.startswith(_GPU) or (name in _OF_GPUS and one.attribute("hw.type") == "gpu")
        errors = name == catalog.ERRORS.name and one.attribute("hw.type") == "gpu"
        if not (of_gpu or errors) or series.value is None:
            continue
        who = one.attribute("hw.id")
        gpu = gpus.setdefault(
            who,
            {
                "gpu": who,
                "index": None,
                "parent": None,
                "model": None,
                "state": None,
                "errors": {},
                "values": [],
            },
        )
        if errors:
            if series.value and one.attribute("gpu.ecc.span") != "aggregate":
                kind = one.attribute("error.type")
                gpu["errors"][kind] = gpu["errors"].get(kind, 0) + series.value
            continue
        if name == catalog.GPU_PRESENT.name:
            for key, attribute in (("index", "gpu.index"), ("parent", "hw.parent"), ("model", "hw.model")):
                gpu[key] = series.attributes.get(attribute)
        if name == catalog.HW_STATUS.name and series.value:
            gpu["state"] = one.attribute("hw.state")
        rest = {
            name: value
            for name, value in series.attributes.items()
            if not name.startswith("hw.") or name == "hw.sensor_location"
        }
        gpu["values"].append(
            {
                "metric": series.metric.name,
                "unit": series.metric.unit,
                "attributes": rest,
                "value": series.value,
                "rate": one.rate,
                "peak": one.peak,
            }
        )
    return [gpus[name] for name in sorted(gpus)]


def memory_of(now: list[Now]) -> list[dict[str, Any]]:
    """Registered memory by what peers may do to it, and the processes that have most of it."""
    kinds: dict[str, dict[str, Any]] = {}
    for one in _of(now, catalog.MR_SIZE, catalog.MR_COUNT):
        access = one.attribute("rdma.memory_region.remote_access")
        kind = kinds.setdefault(
            access, {"remote_access": access, "bytes": 0, "regions": 0, "processes": Counter()}
        )
        if one.series.metric.name == catalog.MR_COUNT.name:
            kind["regions"] += one.series.value
        else:
            kind["bytes"] += one.series.value
            who = f"{one.attribute('process.pid')}/{one.attribute('process.executable.name')}"
            kind["processes"][who] += one.series.value
    order = ("read_write", "write", "read", "unknown", "none")
    for kind in kinds.values():
        kind["processes"] = dict(kind["processes"].most_common(3))
    return sorted(
        kinds.values(),
        key=lambda kind: order.index(kind["remote_access"]) if kind["remote_access"] in order else len(order),
    )


def losses_of(now: list[Now]) -> list[dict[str, Any]]:
    lost = [one for one in _of(now, *_LOSSES) if one.series.value]
    lost += [
        one for one in _of(now, *_EXPORTED) if one.series.value and "error.type" in one.series.attributes
    ]
    return [
        {
            "metric": one.series.metric.name,
            "attributes": one.series.attributes,
            "value": one.series.value,
            "rate": one.rate,
        }
        for one in lost
    ]


def durations_of(recording: Recording) -> Iterable[tuple[str, float]]:
    """Source -> seconds that a sample took in the last minute, on average."""
    rows = last_minute(recording.rows())
    for series in recording.series(lambda metric: metric.name == catalog.SOURCE_DURATION.name):
        cells = [cell for cell in recording.cells(series, rows) if isinstance(cell, HistogramCell)]
        if count := sum(cell.values for cell in cells):
            yield str(series.attributes.get("fabrictap.source")), sum(cell.sum for cell in cells) / count


def sources_of(now: list[Now], durations: Mapping[str, float]) -> list[dict[str, Any]]:
    sources = [
        {
            "source": name,
            "up": bool(one.series.value),
            "sample_seconds": durations.get(name),
        }
        for one in _of(now, catalog.SOURCE_UP)
        for name in (one.attribute("fabrictap.source"),)
    ]
    return sorted(sources, key=lambda source: str(source["source"]))


# --- for people -----------------------------------------------------------------------------------


def _page(picture: Mapping[str, Any], top: list[Connection], now_ns: int) -> Iterable[str]:
    yield from simulated.lines(picture["resource"])
    agent = picture["agent"]
    state = {
        "running": f"running, pid {agent['pid']}",
        "stalled": f"STALLED, pid {agent['pid']}: no tick for {duration(agent['last_tick_age'])}",
        "ended": f"ended {agent['until']}; what follows is what it saw last",
        "died": f"DIED, last tick {agent['last_tick'] or UNKNOWN}; what follows is what it saw last",
    }[agent["state"]]
    last = "" if agent["last_tick_age"] is None else f", last tick {duration(agent['last_tick_age'])} ago"
    yield f"agent    {state}; fabrictap {plain(agent['version'])}, since {agent['since']}{last}"
    yield f"node     {plain(str(picture['resource'].get('host.name', UNKNOWN)))}"
    for title, lines in (
        ("ports", _port_lines(picture["ports"])),
        ("GPUs", snapshot_gpus.lines(picture["gpus"])),
        ("connections", _connection_lines(picture["connections"], top, now_ns)),
        ("memory registered", memory_lines(picture["memory"])),
        ("losses", loss_lines(picture["losses"])),
        ("sources", source_lines(picture["sources"])),
    ):
        yield ""
        yield title
        yield from (f"  {line}" for line in lines)
    if picture["unreadable"]:
        yield ""
        yield f"{picture['unreadable']} records could not be read"


def _port_lines(ports: list[dict[str, Any]]) -> list[str]:
    if not ports:
        return ["none seen"]
    reconciled = any(port["dark"] for port in ports)
    heads = ["PORT", "IFACE", "STATE", "LINK", "IN/s", "OUT/s", "IN PEAK", "OUT PEAK"]
    heads += ["DARK IN/s", "DARK OUT/s"] if reconciled else []
    rows = [[*heads, "ERRORS"]]
    for port in ports:
        ways = [port["receive"] or {}, port["transmit"] or {}]
        darks = [port["dark"].get(name, {}) for name in ("receive", "transmit")] if reconciled else []
        state = port["state"] or UNKNOWN
        rows.append(
            [
                plain(port["port"]),
                plain(port["interface"]),
                plain(state) if state != UNKNOWN else {True: "up", False: "down", None: UNKNOWN}[port["up"]],
                amount(port["limit"], "By/s"),
                *(amount(way.get("rate"), "By") for way in ways),
                *(amount(way.get("peak"), "By") for way in ways),
                *(amount(dark.get("rate"), "By") for dark in darks),
                ", ".join(f"{plain(name)} {amount(count, '1')}" for name, count in port["errors"].items())
                or "none",
            ]
        )
    return text.columns(rows, range(3, len(heads)))


def _connection_lines(counts: Mapping[str, Any], top: list[Connection], now_ns: int) -> list[str]:
    if not counts["live"]:
        return ["none"]
    by = [
        ", ".join(f"{number} {plain(name)}" for name, number in sorted(counts[what].items()))
        for what in ("by_type", "by_coverage")
    ]
    more = f"; the {len(top)} busiest:" if counts["live"] > len(top) else ":"
    room = text.room()
    return [
        f"{counts['live']} live ({by[0]}; coverage {by[1]}){more}",
        *flows.lines(top, now_ns, None if room is None else room - 2),
    ]


def memory_lines(kinds: list[dict[str, Any]]) -> list[str]:
    rows = [["PEERS MAY", "SIZE", "REGIONS", "MOST OF IT"]]
    for kind in kinds:
        processes = ", ".join(f"{plain(who)} {amount(size, 'By')}" for who, size in kind["processes"].items())
        rows.append(
            [
                plain(kind["remote_access"]),
                amount(kind["bytes"], "By"),
                amount(kind["regions"], "1"),
                processes,
            ]
        )
    return text.columns(rows, (1, 2)) if kinds else ["none"]


def loss_lines(losses: list[dict[str, Any]]) -> list[str]:
    rows = []
    for loss in losses:
        rest = ", ".join(f"{plain(name)}={plain(str(value))}" for name, value in loss["attributes"].items())
        rows.append([plain(loss["metric"]), amount(loss["value"], "1"), rest])
    return text.columns(rows, (1,)) if rows else ["none"]


def source_lines(sources: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            plain(source["source"]),
            {True: "up", False: "DOWN", None: UNKNOWN}[source["up"]],
            f"a sample takes {duration(source['sample_seconds'])}",
        ]
        for source in sources
    ]
    return text.columns(rows) if rows else ["none seen"]
