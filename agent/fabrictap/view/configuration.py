"""Every key of the configuration in print."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from fabrictap import config
from fabrictap.config import Config, Duration, Section, Size, WorkloadData, WorkloadPolicy
from fabrictap.meanings import MEANINGS, RULES

#: Keys of lists of rules -> what an entry is.
ENTRIES: dict[str, type[Section]] = {
    "sources.verbs.budget.workloads": WorkloadData,
    "policy.workloads": WorkloadPolicy,
}
_SIGNALS = ("metrics", "traces", "logs")
_INTRODUCTION = (
    "Made by `fabrictap check-config --reference`. How it is read, and what wins over what:",
    "[operator.md](operator.md#configuration). A key `section.key` is written as YAML, as",
    "`--set section.key=VALUE`, or as the variable `FABRICTAP_SECTION__KEY` of the environment.",
    "",
    "A duration is written `500ms`, `10s`, `5m`, `1h` or `1d`, a size `512KiB`, `64MiB` or `2GiB`.",
    "*or null*: it may be left open, and the meaning says what that does. `{metrics,traces,logs}` stands for",
    "each of the three.",
)


def markdown() -> str:
    """A table for each section; docs/configuration.md is this."""
    lines = ["# Configuration", "", *_INTRODUCTION]
    section = ""
    for key, kind, default, meaning in rows():
        if (head := key.partition(".")[0]) != section:
            section = head
            lines += ["", f"## {section}", "", *_head(getattr(Config(), section))]
        lines.append(f"| `{key}` | {kind} | `{default}` | {_cell(meaning)} |")
        for name, rule_kind, rule_default in _rule(key):
            said = _cell(RULES[key][name])
            lines.append(f"| &nbsp;&nbsp;`- {name}` | {rule_kind} | `{rule_default}` | {said} |")
    return "\n".join(lines) + "\n"


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(key, kind of value, default as it is written, meaning) of every key that has one value."""
    for key, kind, value in _leaves(Config(), ""):
        place = key.split(".")
        if place[:2] == ["export", "otlp"] and place[2] in _SIGNALS:
            if place[2] != _SIGNALS[0]:
                continue
            key = ".".join(("export.otlp.{metrics,traces,logs}", *place[3:]))  # noqa: PLW2901 - one for all
        yield key, _kind(kind), _written(value), MEANINGS[key]


def _leaves(section: Section, path: str) -> Iterator[tuple[str, Any, Any]]:
    kinds = typing.get_type_hints(type(section))
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", kinds[name], value


def _rule(key: str) -> Iterator[tuple[str, str, str]]:
    """(name, kind, default) of what an entry of the list at ``key`` may have; nothing for other keys."""
    if key in ENTRIES:
        for name, kind, value in _leaves(ENTRIES[key](), ""):
            yield name, _kind(kind), _written(value)


def _head(section: Section) -> list[str]:
    said = (type(section).__doc__ or "").partition("\n")[0].strip().replace("``", "`")
    table = ["| key | value | default | meaning |", "|---|---|---|---|"]
    # A structure without words of its own has the base's.
    return [said, "", *table] if said and said != Section.__doc__ else table


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = (one for one in typing.get_args(kind) if one is not type(None))
        return f"{_kind(inner)} or null"
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        return "rules" if isinstance(inner, type) and issubclass(inner, Section) else "list of texts"
    if typing.get_origin(kind) is dict:
        return "names and texts"
    return {
        bool: "`true`, `false`",
        int: "whole number",
        float: "number",
        str: "text",
        Duration: "duration",
        Size: "size",
    }[kind]


def _written(value: Any) -> str:
    """As YAML in one line."""
    written = config.written(value)
    return written if isinstance(written, str) else json.dumps(written)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
