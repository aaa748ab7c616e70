"""One connection to a host engine, and one pass over all that it has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from fabrictap import config
from fabrictap.ext.dcgm import (
    MAX_ENTITIES,
    MAX_FIELDS,
    ROOM,
    DcgmError,
    Engine,
    Library,
    LibraryMissingError,
    Value,
)
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.dcgm import states
from fabrictap.sources.dcgm.entities import Entity, Inventory, describe, discover
from fabrictap.sources.dcgm.fields import PROFILING, SETS
from fabrictap.sources.dcgm.watches import Watches

_log = logging.getLogger(__name__)

#: Seconds between two looks for entities that came or went.
_RESCAN = 60.0


@dataclass(frozen=True, slots=True)
class Reading:
    """A field of an entity: a value, or the reason why there is none (REASONS of ledger/providers.py)."""

    value: int | float | None
    reason: str | None
    time_us: int = 0


@dataclass(slots=True)
class Sample:
    """One pass. ``lost``: the connection has gone, and nothing of what was before holds any more."""

    readings: dict[Entity, dict[int, Reading]] = field(default_factory=dict)
    lost: str | None = None


class Session:
    """``open``, then ``read`` again and again, then ``close``. ``errors`` counts refused calls, by reason."""

    def __init__(self, settings: config.Dcgm, errors: dict[str, int]) -> None:
        self.version: str | None = None
        self.inventory = Inventory()
        self.watches: Watches | None = None
        self._settings = settings
        self._errors = errors
        self._freshness = states.Freshness(max(3 * settings.interval, 1.0))
        self._pauses = states.Pauses()
        self._room = ROOM
        self._library: Library | None = None
        self._engine: Engine | None = None
        self._rescan_at = 0.0

    @property
    def path(self) -> str | None:
        """The library that is loaded."""
        return self._library.path if self._library is not None else None

    def open(self, now: float) -> None:
        """Connect, look around, begin to watch. ``now``: seconds of a clock that only goes forward.

        Raises SourceUnavailable; SourceAbsent where there is no library or no engine and none was asked for.
        """
        address = self._settings.address
        self._connect()
        assert self._engine is not None
        try:
            self.version = self._engine.version()
            self.inventory = discover(self._engine)
            self.watches = Watches(self._engine, self._settings, self._count)
            self.watches.plan(self.inventory.entities)
            self.watches.begin(now)
        except DcgmError as error:
            self._count(error.code)
            raise SourceUnavailable(f"DCGM host engine at {address}: {error}") from None
        self._rescan_at = now + _RESCAN
        version = self.version or "of unknown version"
        _log.info("DCGM host engine %s at %s: %s", version, address, describe(self.inventory))
        if "stand-in" in version:
            _log.warning("DCGM: the host engine is a stand-in: nothing that it says comes from hardware")

    def read(self, now: float) -> Sample:
        """Every field of every entity once."""
        assert self._engine is not None
        assert self.watches is not None
        try:
            if now >= self._rescan_at:
                self._rescan(self._engine, self.watches, now)
            self.watches.begin(now)
            values, failed = self._values(self._engine, self.watches)
        except DcgmError as error:
            self._count(error.code)
            return Sample(lost=f"DCGM host engine at {self._settings.address}: {error}")
        return Sample(self._readings(self.watches, values, failed, now))

    def close(self) -> None:
        """Take back every watch and group, disconnect, unload. Safe twice, and after a failed open."""
        engine, self._engine, self.watches = self._engine, None, None
        if engine is not None and (code := engine.close()):
            _log.debug("DCGM: not everything could be taken back before the disconnect (%d)", code)
        library, self._library = self._library, None
        if library is not None:
            try:
                library.close()
            except DcgmError as error:
                _log.debug("DCGM: %s", error)

    def text(self, code: int) -> str:
        """DCGM's own words for a code."""
        return self._library.text(code) if self._library is not None else f"error {code}"

    def _connect(self) -> None:
        settings = self._settings
        nothing = SourceAbsent if settings.enabled == "auto" else SourceUnavailable
        try:
            self._library = Library(settings.library)
        except LibraryMissingError as error:
            raise nothing(f"no DCGM library: {error}") from None
        except DcgmError as error:
            raise SourceUnavailable(f"the DCGM library cannot be used: {error}") from None
        try:
            self._engine = self._library.connect(settings.address, max(1, int(settings.timeout * 1000)))
        except ValueError as error:
            raise SourceUnavailable(f"sources.dcgm.address: {error}") from None
        except DcgmError as error:
            if error.code not in states.FATAL:
                nothing = SourceUnavailable
            raise nothing(f"no DCGM host engine at {settings.address}: {error.text} ({error.code})") from None

    def _rescan(self, engine: Engine, watches: Watches, now: float) -> None:
        self._rescan_at = now + _RESCAN
        before, self.inventory = self.inventory, discover(engine)
        if self.inventory.entities != before.entities:
            _log.info("DCGM host engine at %s: %s", self._settings.address, describe(self.inventory))
            watches.plan(self.inventory.entities)

    def _values(self, engine: Engine, watches: Watches) -> tuple[list[Value], dict[Entity, int]]:
        """All values, and the code of what could not be asked for, by entity."""
        values: list[Value] = []
        failed: dict[Entity, int] = {}
        for kind, sets in SETS.items():
            mine = [entity for entity in self.inventory.entities if entity.group == kind]
            wanted = tuple(dict.fromkeys(one for each in sets for one in watches.known(each)))
            for first in range(0, len(wanted) if mine else 0, MAX_FIELDS):
                some = wanted[first : first + MAX_FIELDS]
                start = 0
                while start < len(mine):
                    chunk = mine[start : start + max(1, min(self._room // len(some), MAX_ENTITIES))]
                    start += self._read(engine, chunk, some, values, failed)
        return values, failed

    def _read(
        self,
        engine: Engine,
        chunk: Sequence[Entity],
        wanted: Sequence[int],
        values: list[Value],
        failed: dict[Entity, int],
    ) -> int:
        """Read some fields of some entities. Returns how many are done with: 0 where it was too much."""
        try:
            values += engine.latest([entity.key for entity in chunk], wanted)
        except DcgmError as error:
            if error.code in states.FATAL:
                raise
            if error.code == states.INSUFFICIENT_SIZE and len(chunk) > 1:
                self._room = len(chunk) // 2 * len(wanted)
                return 0
            self._count(error.code)
            failed.update(dict.fromkeys(chunk, error.code))
        return len(chunk)

    def _readings(
        self, watches: Watches, values: list[Value], failed: dict[Entity, int], now: float
    ) -> dict[Entity, dict[int, Reading]]:
        stale = self._freshness.judge(values, now)
        found = {(value.group, value.entity, value.field): value for value in values}
        refused = watches.refused()
        known = {one for sets in SETS.values() for each in sets for one in watches.known(each)}
        readings = {}
        for entity in self.inventory.entities:
            mine: dict[int, Reading] = {}
            for one in (one for each in SETS[entity.group] for one in each.fields):
                value = found.get((*entity.key, one))
                if entity in failed:
                    mine[one] = Reading(None, states.reason_of_code(failed[entity]))
                elif value is None:
                    mine[one] = Reading(None, "no_data" if one in known else "not_supported")
                elif value.status == states.NOT_WATCHED and (entity, one) in refused:
                    mine[one] = Reading(None, states.reason_of_code(refused[entity, one]))
                else:
                    mine[one] = _reading(value, stale=(*entity.key, one) in stale)
            if self._pauses.judge(entity.key, {one: reading.reason for one, reading in mine.items()}):
                for one, reading in mine.items():
                    if one in PROFILING and reading.reason == "blank":
                        mine[one] = Reading(None, "paused")
            readings[entity] = mine
        self._pauses.keep(entity.key for entity in self.inventory.entities)
        return readings

    def _count(self, code: int) -> None:
        reason = states.reason_of_code(code)
        self._errors[reason] = self._errors.get(reason, 0) + 1


def _reading(value: Value, *, stale: bool) -> Reading:
    reason = states.reason_of(value)
    if reason is None and stale:
        reason = "stale"
    if reason is not None or value.value is None or isinstance(value.value, str):
        return Reading(None, reason or "error", value.time_us)
    return Reading(value.value, None, value.time_us)
