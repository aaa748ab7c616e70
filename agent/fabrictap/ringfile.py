"""The file that the ring lives in: made anew at each start, the older ones kept, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fabrictap import catalog, config
from fabrictap.ext.ring import Ring
from fabrictap.ledger.flows import INBOUND, LOCAL
from fabrictap.version import VERSION

_log = logging.getLogger(__name__)


class RingFileError(Exception):
    """The file cannot be had; the message says what is in the way."""


def create(settings: config.Ring, limits: config.Limits, names: Mapping[str, Iterable[str]]) -> Ring:
    """The node's ring: in ``ring.path``, or in memory only where that is null or cannot be had.

    ``names`` are the lists that numbers in the table of connections refer to; the operations among them
    whose bytes come in are marked. What is in the way of the file is said once: an agent without a recorder
    is better than none.
    """
    descriptor = -1
    if settings.path is not None:
        try:
            descriptor = _claim(Path(settings.path), settings.keep)
        except (RingFileError, OSError) as error:
            _log.warning("no flight recorder: %s", error)
    path = settings.path if descriptor >= 0 else None
    if descriptor < 0:
        descriptor = os.memfd_create("fabrictap-ring", os.MFD_CLOEXEC)
    ring = Ring(
        descriptor,
        series=limits.series,
        rows=max(2, round(settings.span / settings.tick) + 1),  # one is always being written
        tick_ns=round(settings.tick * 1e9),
        connections=limits.connections,
        events=settings.events,
        grace_ns=round(settings.grace * 1e9),
        now_ns=time.time_ns(),
        **directions(names["operations"]),
        path=path,
    )
    if path is not None:
        # Whole before anybody can find it.
        Path(f"{path}.new").rename(path)
    return ring


def about(resource: Mapping[str, str], names: Mapping[str, Iterable[str]]) -> bytes:
    """What the numbers in the file stand for, as JSON; docs/ring.md."""
    description: dict[str, Any] = {
        "agent": {"version": VERSION, "pid": os.getpid()},
        "boot_id": _boot_id(),
        "resource": dict(resource),
        "metrics": [
            {
                "name": metric.name,
                "unit": metric.unit,
                "kind": metric.kind.value,
                "description": metric.description,
                "rates": metric.rates,
            }
            for metric in catalog.metrics()
        ],
        "events": [{"name": event.name, "description": event.description} for event in catalog.events()],
        "inbound": sorted(INBOUND),
        **{name: list(values) for name, values in names.items()},
    }
    return json.dumps(description, separators=(",", ":")).encode()


def directions(operations: Iterable[str]) -> dict[str, int]:
    """Bit masks of the operations whose bytes come in and go out. Posted receive buffers do neither."""
    masks = {"inbound": 0, "outbound": 0}
    for number, name in enumerate(operations):
        if name in INBOUND:
            masks["inbound"] |= 1 << number
        elif name not in LOCAL and name != "recv":
            masks["outbound"] |= 1 << number
    return masks


def _claim(path: Path, keep: int) -> int:
    """Open ``path``.new, once nobody else writes ``path`` and the older files have moved up by one.

    The lock is on the file itself, so that it ends with its writer, however that ends. Raises RingFileError
    and OSError.
    """
    directory = path.parent
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()) or (
        status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    ):
        raise RingFileError(
            f"ring.path {path}: others may write to {directory}; it must belong to root or the agent's user "
            "and be writable by nobody else"
        )
    _refuse_second_writer(path)
    new = Path(f"{path}.new")
    new.unlink(missing_ok=True)  # of an agent that died between making and naming it
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _rotate(path, keep)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_second_writer(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        raise RingFileError(
            f"ring.path {path} is written by another agent; give this one a ring.path of its own"
        ) from None
    finally:
        os.close(descriptor)


def _rotate(path: Path, keep: int) -> None:
    """``path`` becomes ``path``.1, that ``path``.2 ...; ``keep`` older files stay."""
    for number in range(keep, 0, -1):
        older = path if number == 1 else Path(f"{path}.{number - 1}")
        if older.exists():
            older.replace(f"{path}.{number}")
    if keep == 0:
        path.unlink(missing_ok=True)


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
