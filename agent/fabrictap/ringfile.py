"""The file that the ring lives in: made anew at each start, the older ones kept, one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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

    def ring(descriptor: int, path: str | None) -> Ring:
        return Ring(
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

    if settings.path is not None:
        try:
            with _claimed(Path(settings.path)) as descriptor:
                found = ring(descriptor, settings.path)
                # Whole before anybody can find it, and before an older one moves for it.
                _rotate(Path(settings.path), settings.keep)
                Path(f"{settings.path}.new").rename(settings.path)
                return found
        except (RingFileError, OSError) as error:
            _log.warning("no flight recorder: %s", error)
    return ring(os.memfd_create("fabrictap-ring", os.MFD_CLOEXEC), None)


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


@contextmanager
def _claimed(path: Path) -> Iterator[int]:
    """A new file ``path``.new, while nobody else writes ``path`` or is about to; whoever is inside names it.

    The writer's lock is on the file itself, so that it ends with its writer, however that ends; another one,
    ``path``.lock, is held while files change places. Raises RingFileError and OSError.
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
    new = Path(f"{path}.new")
    create = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    places = os.open(f"{path}.lock", create, 0o600)
    try:
        if not _locked(places, fcntl.LOCK_EX):
            raise RingFileError(f"ring.path {path}: another agent is just starting with it")
        _refuse_second_writer(path)
        new.unlink(missing_ok=True)  # of an agent that died between making and naming it
        descriptor = os.open(new, create | os.O_EXCL, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield descriptor  # which the ring takes over, even where it fails
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    finally:
        os.close(places)


def _locked(descriptor: int, kind: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return False
    return True


def _refuse_second_writer(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        if not _locked(descriptor, fcntl.LOCK_SH):
            raise RingFileError(
                f"ring.path {path} is written by another agent; give this one a ring.path of its own"
            )
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
