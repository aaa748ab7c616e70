"""All subjects of an audit, in the order of the report."""

from __future__ import annotations

from fabrictap.audit import (
    adapters,
    containers,
    cuda_ipc,
    direct,
    gdrcopy,
    gpu_links,
    gpudirect,
    kernel_users,
    peers,
    registered,
    sharing,
    storage,
    verbs,
)
from fabrictap.audit.facts import Node
from fabrictap.audit.model import Way

_SUBJECTS = (
    verbs,
    registered,
    containers,
    direct,
    kernel_users,
    adapters,
    gpudirect,
    storage,
    gdrcopy,
    gpu_links,
    peers,
    cuda_ipc,
    sharing,
)


def all_ways(node: Node) -> list[Way]:
    return [way for subject in _SUBJECTS for way in subject.ways(node)]
