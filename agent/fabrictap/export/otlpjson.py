"""OTLP/JSON: serialized export requests as one line of text each.

Source: OTLP specification, "JSON Protobuf Encoding": protobuf's JSON with ids in hex and enumerations as
numbers; 64-bit integers are strings.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint

_IDS = ("traceId", "spanId", "parentSpanId")


def metrics_line(body: bytes) -> bytes:
    """A serialized ExportMetricsServiceRequest as one line.

    Number points are most of a request and protobuf's own JSON takes 60 us for each, so these are written
    by hand, and everything around them by protobuf.
    """
    request = ExportMetricsServiceRequest.FromString(body)
    by_hand: list[list[dict[str, Any]]] = []
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind in ("sum", "gauge"):
                    data = metric.sum if kind == "sum" else metric.gauge
                    by_hand.append([_number_point(point) for point in data.data_points])
                    data.ClearField("data_points")
    tree = _tree(request)
    points = iter(by_hand)
    for resource_tree in tree.get("resourceMetrics", ()):
        for scope_tree in resource_tree.get("scopeMetrics", ()):
            for metric_tree in scope_tree.get("metrics", ()):
                for kind in ("sum", "gauge"):
                    if kind in metric_tree:
                        metric_tree[kind]["dataPoints"] = next(points)
    return _line(tree)


def spans_line(body: bytes) -> bytes:
    """A serialized ExportTraceServiceRequest as one line."""
    tree = _tree(ExportTraceServiceRequest.FromString(body))
    for resource in tree.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                for holder in (span, *span.get("links", ())):
                    _ids_to_hex(holder)
    return _line(tree)


def logs_line(body: bytes) -> bytes:
    """A serialized ExportLogsServiceRequest as one line."""
    # Most nodes have nothing to tell of.
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (  # noqa: PLC0415
        ExportLogsServiceRequest,
    )

    tree = _tree(ExportLogsServiceRequest.FromString(body))
    for resource in tree.get("resourceLogs", ()):
        for scope in resource.get("scopeLogs", ()):
            for record in scope.get("logRecords", ()):
                _ids_to_hex(record)
    return _line(tree)


def _number_point(point: NumberDataPoint) -> dict[str, Any]:
    """One point, as protobuf writes it: zero is left out where the field is not in a oneof."""
    made: dict[str, Any] = {}
    if point.attributes:
        made["attributes"] = _attributes(point.attributes)
    if point.start_time_unix_nano:
        made["startTimeUnixNano"] = str(point.start_time_unix_nano)
    if point.time_unix_nano:
        made["timeUnixNano"] = str(point.time_unix_nano)
    kind = point.WhichOneof("value")
    if kind == "as_int":
        made["asInt"] = str(point.as_int)
    elif kind == "as_double":
        value = point.as_double
        # JSON has no word for these; protobuf's are strings.
        special = {float("inf"): "Infinity", float("-inf"): "-Infinity"}
        made["asDouble"] = "NaN" if value != value else special.get(value, value)  # noqa: PLR0124
    if point.flags:
        made["flags"] = point.flags
    return made


def _attributes(attributes: Iterable[KeyValue]) -> list[dict[str, Any]]:
    made = []
    for pair in attributes:
        value = pair.value
        kind = value.WhichOneof("value")
        if kind == "string_value":
            encoded: dict[str, Any] = {"stringValue": value.string_value}
        elif kind == "int_value":
            encoded = {"intValue": str(value.int_value)}
        else:
            encoded = _tree(value)
        made.append({"key": pair.key, "value": encoded})
    return made


def _tree(message: Message) -> dict[str, Any]:
    return MessageToDict(message, use_integers_for_enums=True)


def _line(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _ids_to_hex(holder: dict[str, Any]) -> None:
    # protobuf's JSON has base64 for bytes; OTLP makes an exception for ids.
    for name in _IDS:
        if name in holder:
            holder[name] = base64.b64decode(holder[name]).hex()
