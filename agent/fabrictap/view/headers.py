"""What ``fabrictap doctor`` says of the headers from which the structures of the kernel are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fabrictap.config import Verbs
from fabrictap.sources.verbs import kernel_types

_COST = "the control path cannot be hooked: connections are known from netlink only; posts are counted"
_GIVES = "hooks by kprobe or at the system call, not by fexit"


@dataclass(frozen=True, slots=True)
class Headers:
    """``missing``: what there is not, empty where nothing is; ``cost`` and ``fix`` of that."""

    found: str
    missing: str = ""
    cost: str = ""
    fix: str = ""


def look(config: Verbs) -> Headers | None:
    """None where they are not asked for. Compiles nothing."""
    try:
        types = kernel_types.choose(config.loader, config.kernel_headers)
    except kernel_types.TypesUnavailable as error:
        return Headers("", str(error), _COST, "sources.verbs.loader: auto")
    if types is None:
        return None
    place = types.headers
    if place.is_file():
        return Headers(f"{place}, made elsewhere: {_GIVES}")
    if not Path(place, "build", "include").is_dir():
        fix = "apt-get install linux-headers-$(uname -r), or sources.verbs.kernel_headers"
        return Headers("", f"no headers in {place}/build", _COST, fix)
    if not _has_library():
        return Headers("", "no libbcc, which compiles them", _COST, "apt-get install libbpfcc")
    return Headers(f"{place}, compiled by bcc when the agent starts: {_GIVES}")


def _has_library() -> bool:
    from ctypes.util import find_library  # noqa: PLC0415 - few nodes need it

    return find_library("bcc") is not None
