"""Looks, taken from a followed recording: only what is new of the past is read each time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.view import flows, snapshot, snapshot_gpus
from fabrictap.view.recording import Connection, Recording, Row, SeriesEntry
from fabrictap.view.recording.about import MetricName
from fabrictap.view.snapshot import Now
from fabrictap.view.text import UNKNOWN
from fabrictap.view.top.findings import SEVERITIES, Findings
from fabrictap.view.top.follow import Follower
from fabrictap.view.top.look import NOWHERE, Flow, Gpu, Link, Look, Port, Way, added
from fabrictap.view.top.past import Pasts
from fabrictap.view.top.workloads import Posts, name_of

#: What there may be thousands of is looked at again after so many seconds: errors, speeds, memory, owners.
_SLOW = 5.0
_EXTRA = (catalog.CONTEXT_COUNT.name, catalog.FINDING_OPEN.name)
#: What is not shown, though a snapshot for programs has it: by link there is much of it.
_LEFT_OUT = (catalog.NVLINK_PACKETS.name, catalog.NVLINK_RAW_IO.name)
_DIRECTION, _LINK = catalog.IO_DIRECTION.name, catalog.GPU_LINK.name
_INTERCONNECT = catalog.GPU_INTERCONNECT.name
#: What has a sparkline or a peak.
_PAST = frozenset(
    metric.name
    for metric in (
        catalog.NETWORK_IO,
        catalog.PORT_DARK,
        catalog.GPU_IO,
        catalog.GPU_THROUGHPUT,
        catalog.NVLINK_IO,
        catalog.NVLINK_THROUGHPUT,
    )
)
#: What else is looked at each time.
_FAST = _PAST | {
    metric.name for metric in (catalog.NETWORK_UP, catalog.GPU_UTILIZATION, catalog.GPU_MEMORY_BANDWIDTH)
}
#: What tells the series of an object apart: metric, hw.id, direction, interconnect, link.
_Key = tuple[str, str, str, str, int]


class Reader:
    """``spent``: seconds of CPU that the last look took; 0 for the first of a file, which reads all."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.spent = 0.0
        self._generation = -1
        self._pasts = Pasts()
        self._findings = Findings()
        self._posts = Posts()
        self._slow: list[SeriesEntry] = []
        self._slow_at = -1e9

    def look(self, flows_wanted: int) -> Look:
        """Look now. Of that many of the busiest flows the past is told as well. Raises RecordingError."""
        began = time.thread_time()
        life = self.follower.life()
        recording = self.follower.recording
        fresh = self._generation != self.follower.generation
        if fresh:
            self._generation = self.follower.generation
            self._pasts, self._findings, self._posts = Pasts(), Findings(), Posts()
            self._slow_at = -1e9
        recording.unreadable = 0
        rows = recording.rows()
        entries = self._entries(recording)
        connections = [one for one in recording.connections() if not one.ended]
        top = flows.select(flows.select(connections, flows.Filter(), "bytes"), flows.Filter(), "rate")
        posts = self._posts.of(recording, top[:flows_wanted])
        posted = [entry for of_one in posts.values() for entry in of_one]
        told = [one for one in entries if one.metric.name in _PAST]
        self._pasts.update(recording, (*told, *posted), rows)
        now = [Now(entry, None, None) for entry in entries]
        index = _index(entries)
        seen_ns = time.time_ns() if life.alive else life.last_tick_ns or life.created_ns
        found = Look(
            time_ns=seen_ns,
            life=life,
            version=recording.about.agent.version,
            resource=recording.about.resource,
            ports=tuple(self._ports(now, index)),
            gpus=tuple(self._gpus(now, index)),
            flows=tuple(self._flows(top, entries, posts)),
            findings=tuple(self._findings.update(recording, _open_findings(entries), seen_ns)),
            picture=_picture(recording, now, rows),
            unreadable=recording.unreadable,
        )
        self.spent = 0.0 if fresh else time.thread_time() - began
        return found

    def _entries(self, recording: Recording) -> list[SeriesEntry]:
        """The series that live: of what hardly changes as it was a moment ago."""
        if time.monotonic() - self._slow_at > _SLOW:
            self._slow = [one for one in recording.series(_is_slow) if not one.ended]
            self._slow_at = time.monotonic()
        fast = recording.series(lambda metric: metric.name in _FAST)
        return [*(one for one in fast if not one.ended), *self._slow]

    def _way(self, entry: SeriesEntry | None) -> Way:
        if entry is None:
            return NOWHERE
        past = self._pasts.of(entry)
        rate = past.rate
        if rate is None and entry.metric.kind == catalog.Kind.GAUGE.value:
            rate = entry.value if isinstance(entry.value, (int, float)) else None
        return Way(rate, past.peak(self._pasts.minute), past.rates)

    def _ports(self, now: list[Now], index: Mapping[_Key, SeriesEntry]) -> Iterable[Port]:
        def way(metric: Metric, name: str, direction: str) -> Way:
            return self._way(index.get((metric.name, name, direction, "", -1)))

        for port in snapshot.ports_of(now):
            name = str(port["port"])
            yield Port(
                name,
                port["interface"],
                port["state"] or UNKNOWN,
                port["up"],
                port["limit"],
                way(catalog.NETWORK_IO, name, "receive"),
                way(catalog.NETWORK_IO, name, "transmit"),
                way(catalog.PORT_DARK, name, "receive"),
                way(catalog.PORT_DARK, name, "transmit"),
                port["errors"],
            )

    def _gpus(self, now: list[Now], index: Mapping[_Key, SeriesEntry]) -> Iterable[Gpu]:
        of_gpu: dict[str, list[SeriesEntry]] = {}
        whole = []
        for one in now:
            if one.series.metric.name in (catalog.NVLINK_UP.name, catalog.ERRORS.name):
                of_gpu.setdefault(one.attribute("hw.id"), []).append(one.series)
            if _LINK not in one.series.attributes or one.series.metric.name == catalog.ERRORS.name:
                whole.append(one)
        gpus = snapshot.gpus_of(whole)
        numbers = {gpu["gpu"]: gpu["index"] for gpu in gpus}

        def way(who: str, interconnect: str, direction: str) -> Way:
            for metric in (catalog.GPU_IO, catalog.GPU_THROUGHPUT):
                entry = index.get((metric.name, who, direction, interconnect, -1))
                if entry is not None:
                    return self._way(entry)
            return NOWHERE

        for gpu in sorted(gpus, key=lambda gpu: snapshot_gpus.place_of(gpu, numbers)):
            who, values = gpu["gpu"], gpu["values"]
            label = snapshot_gpus.number_of(gpu, numbers)
            if who.startswith("nvswitch/"):
                continue
            yield Gpu(
                id=who,
                label=f"{label}m" if gpu["parent"] else label,
                model=gpu["model"] or ("MIG device" if who.startswith("MIG-") else UNKNOWN),
                state=gpu["state"] or UNKNOWN,
                busy=snapshot_gpus.figure(values, catalog.GPU_UTILIZATION),
                memory=snapshot_gpus.figure(values, catalog.GPU_MEMORY_LIMIT),
                used=snapshot_gpus.figure(values, catalog.GPU_MEMORY_UTILIZATION),
                dram=snapshot_gpus.figure(values, catalog.GPU_MEMORY_BANDWIDTH),
                nvlink_receive=way(who, "nvlink", "receive"),
                nvlink_transmit=way(who, "nvlink", "transmit"),
                pcie_receive=way(who, "pcie", "receive"),
                pcie_transmit=way(who, "pcie", "transmit"),
                power=snapshot_gpus.figure(values, catalog.GPU_POWER),
                temperature=snapshot_gpus.figure(
                    values, catalog.GPU_TEMPERATURE, **{catalog.GPU_SENSOR.name: "gpu"}
                ),
                errors=gpu["errors"],
                links=tuple(self._links(who, label, of_gpu.get(who, ()), index)),
            )

    def _links(
        self, who: str, label: str, series: Iterable[SeriesEntry], index: Mapping[_Key, SeriesEntry]
    ) -> Iterable[Link]:
        """``series``: whether links are up, and errors, of the GPU ``who``."""
        ups: dict[int, SeriesEntry] = {}
        errors: dict[int, int] = {}
        for one in series:
            number = one.attributes.get(_LINK)
            if not isinstance(number, int):
                continue
            if one.metric.name == catalog.NVLINK_UP.name:
                ups[number] = one
            elif isinstance(one.value, int):
                errors[number] = errors.get(number, 0) + one.value

        def way(number: int, direction: str) -> Way:
            for metric in (catalog.NVLINK_IO, catalog.NVLINK_THROUGHPUT):
                entry = index.get((metric.name, who, direction, "", number))
                if entry is not None:
                    return self._way(entry)
            return NOWHERE

        for number, up in sorted(ups.items()):
            limit = index.get((catalog.NVLINK_LIMIT.name, who, "", "", number))
            yield Link(
                label,
                number,
                None if up.value is None else bool(up.value),
                _remote(up.attributes),
                float(limit.value) if limit is not None and isinstance(limit.value, (int, float)) else None,
                way(number, "receive"),
                way(number, "transmit"),
                errors.get(number, 0),
            )

    def _flows(
        self,
        connections: Sequence[Connection],
        entries: Iterable[SeriesEntry],
        posts: Mapping[tuple[str, int], Sequence[SeriesEntry]],
    ) -> Iterable[Flow]:
        by_pid: dict[object, str] = {}
        for entry in entries:
            if (pid := entry.attributes.get(catalog.PROCESS_PID.name)) is not None:
                by_pid[pid] = by_pid.get(pid) or name_of(entry.attributes)
        for one in connections:
            own = posts.get((one.device, one.qpn), ())
            workload = next(filter(None, (name_of(entry.attributes) for entry in own)), "")
            yield Flow(
                one,
                workload or (by_pid.get(one.pid, "") if one.pid is not None else ""),
                added([self._pasts.of(entry).rates for entry in own]) if own else (),
            )


def _is_slow(metric: MetricName) -> bool:
    if metric.name in _FAST or metric.name in _LEFT_OUT:
        return False
    return snapshot.is_shown(metric) or metric.name in _EXTRA


def _index(entries: Iterable[SeriesEntry]) -> dict[_Key, SeriesEntry]:
    found: dict[_Key, SeriesEntry] = {}
    for one in entries:
        attributes = one.attributes
        link = attributes.get(_LINK, -1)
        found[
            one.metric.name,
            str(attributes.get("hw.id", "")),
            str(attributes.get(_DIRECTION, "")),
            str(attributes.get(_INTERCONNECT, "")),
            link if isinstance(link, int) else -1,
        ] = one
    return found


def _open_findings(entries: Iterable[SeriesEntry]) -> dict[str, tuple[int, int]]:
    """Kind -> (how many are open, the worst severity of them)."""
    found: dict[str, tuple[int, int]] = {}
    for one in entries:
        if one.metric.name == catalog.FINDING_OPEN.name and isinstance(one.value, int):
            kind = str(one.attributes.get(catalog.FINDING_KIND.name))
            number, worst = found.get(kind, (0, 0))
            level = SEVERITIES.get(str(one.attributes.get(catalog.FINDING_SEVERITY.name)), 9)
            found[kind] = number + one.value, max(worst, level if one.value else 0)
    return found


def _remote(attributes: Mapping[str, Any]) -> str:
    """What is at the other end of a link: a GPU's id, or its kind and address."""
    kind = str(attributes.get(catalog.GPU_REMOTE_TYPE.name, ""))
    where = attributes.get(catalog.GPU_REMOTE_ID.name) or attributes.get(catalog.GPU_REMOTE_PCI.name) or ""
    return f"{kind} {where}".strip() or UNKNOWN


def _picture(recording: Recording, now: list[Now], rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "agent": snapshot.agent_of(recording, recording.alive()),
        "memory": snapshot.memory_of(now),
        "losses": snapshot.losses_of(now),
        "sources": snapshot.sources_of(now, {}),
        "rows": len(rows),
        "tick": recording.tick_ns / 1e9,
    }
