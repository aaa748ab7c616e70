"""What detectors remember, in an SQLite file: read at the start, written every minute from a thread.

The file's rows are those of memory and so as bounded. A file that is not what it should be is moved aside
(PATH.corrupt), said and counted; one that cannot be written costs the memory of a restart and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabrictap.insight.remembered import DAYS, HOURS, MAX_PEERS, MAX_WORKLOADS, Known, Pair, Remembered

if TYPE_CHECKING:
    import sqlite3

_log = logging.getLogger(__name__)
_VERSION = 1
_MOST_HOURS = 1 << 24  # in the year 3883
_SCHEMA = """
CREATE TABLE IF NOT EXISTS workload (
    name TEXT PRIMARY KEY, first_hour INTEGER NOT NULL, last_hour INTEGER NOT NULL, learned TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pair (
    workload TEXT NOT NULL, peer TEXT NOT NULL, first_hour INTEGER NOT NULL, hour INTEGER NOT NULL,
    last_active INTEGER NOT NULL, hours BLOB NOT NULL, days BLOB NOT NULL, PRIMARY KEY (workload, peer)
) WITHOUT ROWID;
"""


class StateFileError(Exception):
    """The file cannot be used where it is; the message says why."""


@dataclass(slots=True)
class Batch:
    """What has changed since the last save, ready to be written without the node's lock."""

    pairs: list[tuple[Any, ...]] = field(default_factory=list)
    workloads: list[tuple[Any, ...]] = field(default_factory=list)
    removed_pairs: list[tuple[str, str]] = field(default_factory=list)
    removed_workloads: list[tuple[str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pairs or self.workloads or self.removed_pairs or self.removed_workloads)


class StateFile:
    """The file at ``path``. ``load`` once, then ``take`` under the node's lock and ``save`` outside it."""

    def __init__(self, path: str, remembered: Remembered) -> None:
        self.path = path
        self._remembered = remembered
        self._said = ""

    def load(self) -> None:
        """Fill what is remembered. Trouble is said and counted, never raised."""
        with self._guarded():
            if not Path(self.path).exists():
                return
            with closing(self._open()) as database:
                self._fill(database)

    def read(self) -> None:
        """The same for a command: the file is left as it is. Raises StateFileError."""
        import sqlite3  # noqa: PLC0415 - likewise

        try:
            # Opened first, for an error that says what is wrong.
            os.close(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            uri = f"{Path(self.path).resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as database:
                self._fill(database)
        except OSError as error:
            raise StateFileError(f"{self.path}: {error.strerror}") from None
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise StateFileError(f"{self.path}: is no state of fabrictap: {error}") from None

    def take(self) -> Batch:
        """What has changed since the last call. Under the node's lock."""
        remembered = self._remembered
        batch = Batch(
            [_pair_row(remembered.pairs[key]) for key in remembered.changed_pairs],
            [_known_row(remembered.workloads[name]) for name in remembered.changed_workloads],
            list(remembered.removed_pairs),
            [(name,) for name in remembered.removed_workloads],
        )
        for changes in (remembered.changed_pairs, remembered.removed_pairs):
            changes.clear()
        for names in (remembered.changed_workloads, remembered.removed_workloads):
            names.clear()
        return batch

    def give_back(self, batch: Batch) -> None:
        """A batch that could not be saved will be part of the next. Under the node's lock."""
        remembered = self._remembered
        remembered.changed_pairs |= {(row[0], row[1]) for row in batch.pairs} & remembered.pairs.keys()
        remembered.changed_workloads |= {row[0] for row in batch.workloads} & remembered.workloads.keys()
        remembered.removed_pairs |= set(batch.removed_pairs) - remembered.pairs.keys()
        remembered.removed_workloads |= {name for (name,) in batch.removed_workloads} - set(
            remembered.workloads
        )
        # Names that nobody could write for weeks are worth less than a bound.
        for gone in (remembered.removed_pairs, remembered.removed_workloads):
            if len(gone) > remembered.capacity:
                gone.clear()

    def save(self, batch: Batch) -> bool:
        """Write ``batch``, wholly or not at all. May block on the disk. False where it could not be."""
        with self._guarded() as outcome:
            with closing(self._open()) as database, database:
                database.executemany("DELETE FROM pair WHERE workload = ? AND peer = ?", batch.removed_pairs)
                database.executemany("DELETE FROM workload WHERE name = ?", batch.removed_workloads)
                database.executemany("INSERT OR REPLACE INTO workload VALUES (?, ?, ?, ?)", batch.workloads)
                database.executemany("INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?, ?, ?, ?)", batch.pairs)
            outcome.append(True)
        return bool(outcome)

    def _fill(self, database: sqlite3.Connection) -> None:
        workloads = [
            _known(row) for row in database.execute("SELECT * FROM workload LIMIT ?", (MAX_WORKLOADS + 1,))
        ]
        pairs = [
            _pair(row)
            for row in database.execute(
                "SELECT * FROM pair ORDER BY last_active DESC LIMIT ?", (self._remembered.capacity,)
            )
        ]
        self._remembered.workloads.update((known.name, known) for known in workloads)
        self._remembered.pairs.update(((pair.workload, pair.peer), pair) for pair in pairs)

    def _open(self) -> sqlite3.Connection:
        import sqlite3  # noqa: PLC0415 - 2 MB that an agent without a state file does not need

        path = Path(self.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.parent.stat()
        if status.st_uid not in (0, os.geteuid()) or (
            status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        ):
            raise StateFileError(f"others may write to {path.parent}")
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600
        )
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StateFileError("it is no regular file")
        finally:
            os.close(descriptor)
        database = sqlite3.connect(path, timeout=1.0)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise ValueError(f"it is of version {version}, not {_VERSION}")
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def _guarded(self) -> Iterator[list[bool]]:
        import sqlite3  # noqa: PLC0415 - likewise

        try:
            yield []
        except (StateFileError, OSError, sqlite3.OperationalError) as error:
            self._remembered.errors["io"] += 1
            self._say(f"cannot be used: {error}. What is remembered is kept in memory meanwhile")
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            self._remembered.errors["corrupt"] += 1
            self._move_aside(error)
        else:
            self._said = ""

    def _move_aside(self, error: Exception) -> None:
        try:
            Path(self.path).replace(f"{self.path}.corrupt")
            for ending in ("-journal", "-wal", "-shm"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
        except OSError as trouble:
            self._say(f"is no state of fabrictap ({error}), and cannot be moved aside: {trouble.strerror}")
            return
        self._say(f"is no state of fabrictap ({error}); moved to {self.path}.corrupt, a new one is begun")
        # The new file shall have all of it.
        self._remembered.changed_pairs |= set(self._remembered.pairs)
        self._remembered.changed_workloads |= set(self._remembered.workloads)

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            _log.warning("state.path %s %s", self.path, text)


def _little(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = array("Q", numbers)
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(raw: Any, count: int) -> array[int]:
    if not isinstance(raw, bytes) or len(raw) != 8 * count:
        raise ValueError(f"{count} numbers expected")
    numbers = array("Q", raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _pair_row(pair: Pair) -> tuple[Any, ...]:
    return (
        pair.workload,
        pair.peer,
        pair.first_hour,
        pair.hour,
        pair.last_active,
        _little(pair.hours),
        _little(pair.days),
    )


def _pair(row: tuple[Any, ...]) -> Pair:
    workload, peer, first, hour, last, hours, days = row
    if not isinstance(workload, str) or not isinstance(peer, str):
        raise ValueError("names expected")
    _check_hours(first, hour, last)
    return Pair(workload, peer, first, hour, _numbers(hours, HOURS), _numbers(days, DAYS + 1), last)


def _known_row(known: Known) -> tuple[Any, ...]:
    learned = {"peers": known.peers, "networks": known.networks, "anybody": known.anybody}
    return known.name, known.first_hour, known.last_hour, json.dumps(learned)


def _known(row: tuple[Any, ...]) -> Known:
    name, first, last, text = row
    learned = json.loads(text)
    _check_hours(first, last)
    if not isinstance(name, str) or not isinstance(learned, dict):
        raise ValueError("a workload expected")
    found = {}
    for kind in ("peers", "networks"):
        names = learned.get(kind)
        if not isinstance(names, dict) or len(names) > MAX_PEERS + 1:
            raise ValueError(f"{kind} of a workload expected")
        _check_hours(*names.values())
        found[kind] = names
    return Known(name, first, last, found["peers"], found["networks"], learned.get("anybody") is True)


def _check_hours(*hours: Any) -> None:
    if not all(isinstance(hour, int) and 0 <= hour < _MOST_HOURS for hour in hours):
        raise ValueError("an hour since the epoch expected")
