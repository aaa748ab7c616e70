"""What every command says first of a recording of a made-up node."""

from __future__ import annotations

from collections.abc import Mapping

from fabrictap import catalog
from fabrictap.view.text import UNKNOWN, plain

Resource = Mapping[str, str | int | float | bool]


def is_simulated(resource: Resource) -> bool:
    """Whether the resource says that its node is made up."""
    return str(resource.get(catalog.SIMULATED.name, "")).lower() == "true"


def lines(resource: Resource) -> list[str]:
    """The line to begin with, where there is one to be said."""
    if not is_simulated(resource):
        return []
    node = plain(str(resource.get("host.name", UNKNOWN)))
    return [f"SIMULATED NODE {node}: all of this is made up, nothing was measured"]
