"""Choosing workloads by their attributes, as rules of the configuration do."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from fabrictap.ledger.workloads.budget import AttributeValue


def matches(match: Mapping[str, str], identity: Mapping[str, AttributeValue]) -> bool:
    """Whether every attribute that ``match`` names is there and fits its shell pattern; none: always."""
    return all(fnmatch.fnmatchcase(str(identity.get(name, "")), pattern) for name, pattern in match.items())
