"""Reads what the agent exported: a file of OTLP/JSON lines, while it grows or afterwards.

    exported = Reader(path)
    exported.poll()
    for point in exported.now("rdma.verbs.io", device="rxe1"):  # not the ended ones
        print(point.value, point["rdma.operation"])

Source of the format: "OpenTelemetry Protocol File Exporter" and the JSON encoding of OTLP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = str | int | float | bool
Key = tuple[str, frozenset[tuple[str, Value]]]

NO_RECORDED_VALUE = 1
"""DataPointFlags: the series has ended."""


@dataclass(frozen=True)
class Point:
    """One point of a metric. `value` is a histogram's count; None with the flag of an ended series.

    Times are nanoseconds since the epoch, `start_ns` 0 where there is none. `kind`: sum, gauge or
    exponentialHistogram. `raw` is the point as it stands in the file.
    """

    name: str
    unit: str
    kind: str
    attributes: Mapping[str, Value]
    value: int | float | None
    start_ns: int
    time_ns: int
    flags: int
    raw: Mapping[str, Any] = field(repr=False, hash=False, compare=False)

    def __getitem__(self, key: str) -> Value:
        return self.attributes[key]

    def get(self, key: str) -> Value | None:
        return self.attributes.get(key)

    @property
    def key(self) -> Key:
        return self.name, frozenset(self.attributes.items())

    @property
    def ended(self) -> bool:
        return bool(self.flags & NO_RECORDED_VALUE)

    def has(self, attributes: Mapping[str, Value]) -> bool:
        return all(self.attributes.get(key) == value for key, value in attributes.items())


@dataclass(frozen=True)
class Span:
    """One span. Ids in hex, `parent_id` "" at a root; times are nanoseconds since the epoch."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    links: tuple[tuple[str, str], ...]
    raw: Mapping[str, Any] = field(repr=False, hash=False, compare=False)

    def __getitem__(self, key: str) -> Value:
        return self.attributes[key]

    def get(self, key: str) -> Value | None:
        return self.attributes.get(key)

    def has(self, attributes: Mapping[str, Value]) -> bool:
        return all(self.attributes.get(key) == value for key, value in attributes.items())


@dataclass(frozen=True)
class Log:
    """One log event. The time is in nanoseconds since the epoch."""

    name: str
    time_ns: int
    body: str
    attributes: Mapping[str, Value]

    def __getitem__(self, key: str) -> Value:
        return self.attributes[key]


class Reader:
    """Everything in a file of OTLP/JSON lines. The file may not be there yet, and grow; not be rotated."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        #: The resource of the last request.
        self.resource: dict[str, Value] = {}
        #: Every point, in the order of the file.
        self.points: list[Point] = []
        #: The newest point of each series; of an ended one the last that has a value.
        self.latest: dict[Key, Point] = {}
        #: Series whose newest point says that they have ended.
        self.ended: set[Key] = set()
        self.spans: list[Span] = []
        self.logs: list[Log] = []
        #: Metric requests read: one export each, unless one is so large that it is split.
        self.exports = 0
        self._offset = 0

    def poll(self) -> bool:
        """Read the whole lines that came since the last call; True if there were any. Raises ValueError."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return False
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            if line.strip():
                self._request(json.loads(line))
        return bool(complete)

    def now(self, name: str, **attributes: Value) -> list[Point]:
        """The live series of a metric; attributes by a name of SHORT, or their own with _ for every dot."""
        return [point for point in self.find(name, **attributes) if point.key not in self.ended]

    def find(self, name: str, **attributes: Value) -> list[Point]:
        """The same with the ended series, at their last value."""
        wanted = attribute_names(attributes)
        return [point for point in self.latest.values() if point.name == name and point.has(wanted)]

    def total(self, name: str, **attributes: Value) -> int | float:
        """The sum over these series; 0 where there is none."""
        return sum(point.value or 0 for point in self.find(name, **attributes))

    def spans_named(self, name: str, **attributes: Value) -> list[Span]:
        wanted = attribute_names(attributes)
        return [span for span in self.spans if span.name == name and span.has(wanted)]

    def _request(self, request: Mapping[str, Any]) -> None:
        for resource in request.get("resourceMetrics", ()):
            self.exports += 1
            self.resource = plain(resource.get("resource", {}).get("attributes", ()))
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    for point in _points(metric):
                        self._add(point)
        for resource in request.get("resourceSpans", ()):
            for scope in resource["scopeSpans"]:
                self.spans += [_span(span) for span in scope["spans"]]
        for resource in request.get("resourceLogs", ()):
            for scope in resource["scopeLogs"]:
                self.logs += [
                    Log(
                        raw["eventName"],
                        int(raw["timeUnixNano"]),
                        raw["body"]["stringValue"],
                        plain(raw.get("attributes", ())),
                    )
                    for raw in scope["logRecords"]
                ]

    def opened(self, *kinds: str) -> list[Log]:
        """The findings of these kinds that were opened, in order."""
        return [
            log
            for log in self.logs
            if log["fabrictap.finding.kind"] in kinds and log["fabrictap.finding.state"] == "opened"
        ]

    def _add(self, point: Point) -> None:
        self.points.append(point)
        if point.ended:
            self.ended.add(point.key)
        else:
            self.ended.discard(point.key)
            self.latest[point.key] = point


SHORT = {
    "pid": "process.pid",
    "process": "process.executable.name",
    "device": "rdma.device",
    "port": "hw.id",
    "qpn": "rdma.qp.number",
    "operation": "rdma.operation",
    "direction": "network.io.direction",
    "source": "fabrictap.source",
    "role": "rdma.flow.role",
    "access": "rdma.memory_region.remote_access",
}


def attribute_names(attributes: Mapping[str, Value]) -> dict[str, Value]:
    """Python's names of attributes as their own: qpn -> rdma.qp.number, error_type -> error.type."""
    return {
        SHORT.get(key, key if "." in key else key.replace("_", ".")): value
        for key, value in attributes.items()
    }


def plain(attributes: Any) -> dict[str, Value]:
    """OTLP/JSON attributes as a dict. 64-bit integers are strings there."""
    found: dict[str, Value] = {}
    for pair in attributes:
        ((kind, value),) = pair["value"].items()
        found[pair["key"]] = int(value) if kind == "intValue" else value
    return found


def _points(metric: Mapping[str, Any]) -> Iterator[Point]:
    kind = next(kind for kind in ("sum", "gauge", "exponentialHistogram") if kind in metric)
    for raw in metric[kind].get("dataPoints", ()):
        flags = raw.get("flags", 0)
        value: int | float | None = None
        if "asInt" in raw:
            value = int(raw["asInt"])
        elif "asDouble" in raw:
            value = float(raw["asDouble"])
        elif kind == "exponentialHistogram":
            value = int(raw.get("count", 0))
        yield Point(
            metric["name"],
            metric.get("unit", ""),
            kind,
            plain(raw.get("attributes", ())),
            None if flags & NO_RECORDED_VALUE else value,
            int(raw.get("startTimeUnixNano", 0)),
            int(raw["timeUnixNano"]),
            flags,
            raw,
        )


def _span(raw: Mapping[str, Any]) -> Span:
    return Span(
        raw["name"],
        raw["traceId"],
        raw["spanId"],
        raw.get("parentSpanId", ""),
        raw["kind"],
        int(raw["startTimeUnixNano"]),
        int(raw["endTimeUnixNano"]),
        plain(raw.get("attributes", ())),
        tuple((link["traceId"], link["spanId"]) for link in raw.get("links", ())),
        raw,
    )
