"""The catalog in print."""

from __future__ import annotations

import json
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Attribute

_INTRODUCTION = (
    "Made by `fabrictap catalog`; `fabrictap catalog --format json` has the same for programs.",
    "",
    "Counters and UpDownCounters are cumulative sums. An attribute that cannot be known is absent, never",
    "empty or guessed, and so is a metric. A series ends with a point flagged *no recorded value*.",
)
_EVENTS = (
    "Events with attributes are exported as OTLP log events and stand on the span of the flow concerned.",
    "All are kept in the recording.",
)


def markdown() -> str:
    """Metrics, spans, findings and attributes as Markdown tables; docs/catalog.md is this."""
    lines = ["# What fabrictap exports", "", *_INTRODUCTION, "", "## Metrics", ""]
    lines += ["| name | kind | unit | meaning | attributes | defined by |", "|---|---|---|---|---|---|"]
    for metric in catalog.exported():
        lines.append(
            f"| `{metric.name}` | {metric.kind.value} | `{metric.unit}` | {_cell(metric.description)} "
            f"| {_names(metric.attributes)} | {metric.standard.value} |"
        )
    lines += ["", "## Spans", "", "| name | meaning | attributes |", "|---|---|---|"]
    for span in catalog.spans():
        lines.append(f"| `{span.name}` | {_cell(span.description)} | {_names(span.attributes)} |")
    lines += [
        "",
        "## Findings",
        "",
        "| name | meaning | why it may be wrong | what to do |",
        "|---|---|---|---|",
    ]
    for finding in catalog.findings():
        lines.append(
            f"| `{finding.name}` | {_cell(finding.description)} | {_cell(finding.doubt)} "
            f"| {_cell(finding.advice)} |"
        )
    lines += ["", "## Events", "", *_EVENTS, "", "| name | meaning | attributes |", "|---|---|---|"]
    for event in catalog.events():
        lines.append(f"| `{event.name}` | {_cell(event.description)} | {_names(event.attributes)} |")
    lines += ["", "## Attributes", "", "| name | type | meaning | values |", "|---|---|---|---|"]
    for attribute in catalog.attributes():
        values = ", ".join(f"`{value}`" for value in attribute.values)
        lines.append(
            f"| `{attribute.name}` | {attribute.type.__name__} | {_cell(attribute.meaning)} | {values} |"
        )
    return "\n".join(lines) + "\n"


def as_json() -> str:
    """The same as one JSON object with the lists metrics, spans, findings, events and attributes."""
    content: dict[str, list[dict[str, Any]]] = {
        "metrics": [
            {
                "name": metric.name,
                "kind": metric.kind.value,
                "unit": metric.unit,
                "description": metric.description,
                "attributes": [attribute.name for attribute in metric.attributes],
                "standard": metric.standard.value,
            }
            for metric in catalog.exported()
        ],
        "spans": [
            {
                "name": span.name,
                "description": span.description,
                "attributes": [attribute.name for attribute in span.attributes],
            }
            for span in catalog.spans()
        ],
        "findings": [
            {
                "name": finding.name,
                "description": finding.description,
                "doubt": finding.doubt,
                "advice": finding.advice,
            }
            for finding in catalog.findings()
        ],
        "events": [
            {
                "name": event.name,
                "description": event.description,
                "attributes": [attribute.name for attribute in event.attributes],
            }
            for event in catalog.events()
        ],
        "attributes": [
            {
                "name": attribute.name,
                "type": attribute.type.__name__,
                "meaning": attribute.meaning,
                "values": list(attribute.values),
            }
            for attribute in catalog.attributes()
        ],
    }
    return json.dumps(content, indent=2) + "\n"


def _names(attributes: tuple[Attribute, ...]) -> str:
    return ", ".join(f"`{attribute.name}`" for attribute in attributes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
