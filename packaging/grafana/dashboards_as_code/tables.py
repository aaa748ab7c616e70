"""Panels that are tables: lines of labels with values beside them, and matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dashboards_as_code.panels import Json, Mapped, Query, asked, base_panel, mappings, thresholds


@dataclass(frozen=True)
class Column:
    """One column of a table: a label, or ``Value #A`` for the value of the first query."""

    source: str
    title: str
    unit: str = ""
    link: Json | None = None
    steps: Sequence[tuple[float | None, str]] = ()
    mapped: Mapped = field(default_factory=dict)
    #: A bar in the cell, from 0 to this; None: none.
    gauge_to: float | None = None
    width: int | None = None


def table(
    title: str,
    description: str,
    *queries: Query,
    columns: Sequence[Column],
    sort: str = "",
    size: tuple[int, int] = (24, 9),
) -> Json:
    """Rows of labels with the values of all queries beside them; labels without a column are left out."""
    panel = base_panel("table", title, description, asked(queries, instant=True, table=True), size)
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "filterFieldsByName",
            "options": {"include": {"names": [column.source for column in columns]}},
        },
        {
            "id": "organize",
            "options": {
                "excludeByName": {},
                "indexByName": {column.source: index for index, column in enumerate(columns)},
                "renameByName": {column.source: column.title for column in columns},
            },
        },
    ]
    panel["fieldConfig"] = {
        "defaults": {"custom": {"align": "auto", "filterable": True}},
        "overrides": [override for column in columns for override in _override(column)],
    }
    panel["options"] = {
        "showHeader": True,
        "cellHeight": "sm",
        "sortBy": [{"displayName": sort, "desc": True}] if sort else [],
        "footer": {"show": False, "reducer": ["sum"], "fields": ""},
    }
    return panel


def _override(column: Column) -> list[Json]:
    properties: list[Json] = []
    if column.unit:
        properties.append({"id": "unit", "value": column.unit})
    if column.link is not None:
        properties.append({"id": "links", "value": [column.link]})
    if column.mapped:
        properties.append({"id": "mappings", "value": mappings(column.mapped)})
    if column.steps:
        properties.append({"id": "thresholds", "value": thresholds(column.steps)})
    if column.steps or column.mapped:
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    if column.gauge_to is not None:
        properties.append({"id": "custom.cellOptions", "value": {"type": "gauge", "mode": "basic"}})
        properties += [{"id": "min", "value": 0}, {"id": "max", "value": column.gauge_to}]
    if column.width is not None:
        properties.append({"id": "custom.width", "value": column.width})
    if not properties:
        return []
    return [{"matcher": {"id": "byName", "options": column.title}, "properties": properties}]


def matrix(
    title: str, description: str, query: Query, *, rows: str, columns: str, unit: str, size: tuple[int, int]
) -> Json:
    """A cell for each pair of the labels ``rows`` and ``columns``, coloured by its value."""
    panel = base_panel("table", title, description, asked([query], instant=True, table=True), size)
    panel["transformations"] = [
        {
            "id": "groupingToMatrix",
            "options": {
                "rowField": rows,
                "columnField": columns,
                "valueField": "Value",
                "emptyValue": "null",
            },
        }
    ]
    panel["fieldConfig"]["defaults"] = {
        "unit": unit,
        "color": {"mode": "continuous-BlPu"},
        "custom": {
            "align": "center",
            "filterable": True,
            "cellOptions": {"type": "color-background", "mode": "basic"},
        },
        "noValue": "",
    }
    panel["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": f"{rows}\\{columns}"},
            "properties": [{"id": "custom.cellOptions", "value": {"type": "auto"}}],
        }
    ]
    panel["options"] = {"showHeader": True, "cellHeight": "sm"}
    return panel
