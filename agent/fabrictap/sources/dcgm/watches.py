"""What the engine watches for us, in groups of entities and of fields, and when it is asked again."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fabrictap import config
from fabrictap.ext.dcgm import MAX_ENTITIES, DcgmError, Engine
from fabrictap.sources.dcgm import states
from fabrictap.sources.dcgm.entities import Entity
from fabrictap.sources.dcgm.fields import SETS, FieldSet

_log = logging.getLogger(__name__)

#: Seconds that the engine keeps a value, and how many of a field: the newest, and one for rates to grow from.
_KEEP_SECONDS = 600.0
_KEEP_SAMPLES = 2
#: Seconds before a refused watch is tried again, doubling.
_FIRST_RETRY = 60.0
_LAST_RETRY = 3600.0


@dataclass(slots=True)
class _Watch:
    """One field set of one group. ``code``: what the engine said last, 0 while it is watched."""

    fields: FieldSet
    group: int
    members: tuple[Entity, ...]
    code: int = states.NOT_WATCHED
    retry_at: float = 0.0
    delay: float = _FIRST_RETRY

    @property
    def refused(self) -> bool:
        return self.code not in (0, states.NOT_WATCHED)


class Watches:
    """All watches of one connection. ``count`` is told the code of every call that the engine refused.

    Raises DcgmError where the connection is of no use any more.
    """

    def __init__(self, engine: Engine, settings: config.Dcgm, count: Callable[[int], None]) -> None:
        self._engine = engine
        self._settings = settings
        self._count = count
        self._watches: list[_Watch] = []
        #: Field set -> the fields of it that the engine knows, and the field group made of them.
        self._known: dict[str, tuple[tuple[int, ...], int]] = {}

    def plan(self, entities: Sequence[Entity]) -> None:
        """Make the groups for ``entities`` in place of those there were. ``begin`` then watches."""
        for watch in self._watches:
            if watch.code == 0:
                self._engine.unwatch(watch.group, self._known[watch.fields.name][1])
        for group in {watch.group for watch in self._watches}:
            self._engine.drop_group(group)
        self._watches.clear()
        for kind, sets in SETS.items():
            mine = [entity for entity in entities if entity.group == kind]
            known = [one for one in sets if mine and self._make_fields(one)]
            for shared in (True, False):
                tier = [entity for entity in mine if entity.shared is shared]
                wanted = [one for one in known if not one.profiling or self._may_profile(shared)]
                for start in range(0, len(tier) if wanted else 0, MAX_ENTITIES):
                    self._make_group(tier[start : start + MAX_ENTITIES], wanted)

    def begin(self, now: float) -> None:
        """Watch what is due. What the engine refuses costs its field set, and is tried ever more rarely."""
        for watch in self._watches:
            if watch.code == 0 or now < watch.retry_at:
                continue
            fields = self._known[watch.fields.name][1]
            try:
                self._engine.watch(watch.group, fields, self._settings.interval, _KEEP_SECONDS, _KEEP_SAMPLES)
            except DcgmError as error:
                self._unless_fatal(error)
                if error.code != watch.code:
                    _log.info("DCGM does not watch %s: %s (%d)", watch.fields.name, error.text, error.code)
                watch.code = error.code
                watch.retry_at = now + watch.delay
                watch.delay = min(2 * watch.delay, _LAST_RETRY)
            else:
                watch.code = 0
                watch.delay = _FIRST_RETRY

    def known(self, fields: FieldSet) -> tuple[int, ...]:
        """The fields of a set that the engine knows; none of a set that nothing here has."""
        return self._known.get(fields.name, ((), 0))[0]

    def refused(self) -> dict[tuple[Entity, int], int]:
        """(entity, field) -> code, of what was asked for and refused."""
        return {
            (entity, field): watch.code
            for watch in self._watches
            if watch.refused
            for entity in watch.members
            for field in watch.fields.fields
        }

    def refusals(self) -> Iterator[tuple[str, int]]:
        """(field set, code) likewise."""
        return ((watch.fields.name, watch.code) for watch in self._watches if watch.refused)

    def _make_group(self, entities: Sequence[Entity], sets: Sequence[FieldSet]) -> None:
        try:
            made, refused = self._engine.group(_name(), [entity.key for entity in entities])
        except DcgmError as error:
            self._unless_fatal(error)
            return
        for _, code in refused:
            self._count(code)
        without = {pair for pair, _ in refused}
        members = tuple(entity for entity in entities if entity.key not in without)
        self._watches += [_Watch(one, made, members) for one in sets]

    def _may_profile(self, shared: bool) -> bool:
        """Whether to watch profiling fields. Hardware for one user at a time only where we are told to."""
        wanted = self._settings.profiling
        return wanted == "on" or (wanted == "auto" and shared)

    def _make_fields(self, wanted: FieldSet) -> bool:
        """Make the field group of a set, of the fields that the engine knows. False: it knows none."""
        if wanted.name not in self._known:
            known = wanted.fields
            try:
                made = self._engine.fields(_name(), known)
            except DcgmError as error:
                if error.code != states.BAD_PARAMETER:
                    raise
                # for one that it does not know, an older engine refuses them all
                known = tuple(one for one in known if self._knows(one))
                made = self._engine.fields(_name(), known) if known else 0
            self._known[wanted.name] = known, made
        return bool(self._known[wanted.name][0])

    def _knows(self, field: int) -> bool:
        try:
            self._engine.drop_fields(self._engine.fields(_name(), (field,)))
        except DcgmError as error:
            if error.code != states.BAD_PARAMETER:
                raise
            return False
        return True

    def _unless_fatal(self, error: DcgmError) -> None:
        if error.code in states.FATAL:
            raise error
        self._count(error.code)


def _name() -> str:
    """Unique at an engine that others use as well, from whatever pid namespace."""
    return f"fabrictap-{secrets.token_hex(8)}"
