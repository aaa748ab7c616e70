"""Puts readings into series: everything that DCGM delivers now, entity by entity."""

from __future__ import annotations

from collections.abc import Iterable

from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources.dcgm.delivery import Delivery, Readings
from fabrictap.sources.dcgm.entities import Entity
from fabrictap.sources.dcgm.fields import GPU, LINK, SETS, SWITCH
from fabrictap.sources.dcgm.happenings import Happenings, LinkState
from fabrictap.sources.dcgm.session import Sample


class Figures:
    """Everything that DCGM delivers now. Used under the node's lock."""

    def __init__(self, table: SeriesTable, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._entities: dict[Entity, list[Delivery | Happenings]] = {}
        self._links: dict[Entity, LinkState] = {}

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put a sample into the series. A lost connection ends them all."""
        if sample.lost is not None:
            self.give_up("not_connected", now_ns)
            return
        for entity in (self._entities.keys() | self._links.keys()) - sample.readings.keys():
            self._forget(entity, now_ns)
        for entity, readings in sample.readings.items():
            if entity.group == LINK and not self._link(entity, readings, now_ns):
                continue
            known = self._entities.get(entity)
            if known is None:
                known = self._entities[entity] = list(self._make(entity))
            for one in known:
                one.fold(readings, now_ns)

    def _link(self, entity: Entity, readings: Readings, now_ns: int) -> bool:
        """Fold the state of a switch's link; False while there is nothing at it."""
        state = self._links.get(entity)
        if state is None:
            state = self._links[entity] = LinkState(entity, self._table)
        state.fold(readings, now_ns)
        if not state.used:
            for one in self._entities.pop(entity, ()):
                one.withdraw(now_ns)
        return state.used

    def _make(self, entity: Entity) -> Iterable[Delivery | Happenings]:
        for each in SETS[entity.group]:
            for bundle in each.bundles:
                yield Delivery(entity, bundle, self._table, self._ledger)
        if entity.group in (GPU, SWITCH):
            yield Happenings(entity, self._table, self._ledger)

    def give_up(self, reason: str, now_ns: int) -> None:
        """End every series, and say why nothing can be delivered. What is offered stays announced."""
        for known in self._entities.values():
            for one in known:
                one.give_up(reason, now_ns)
        for link in self._links.values():
            link.give_up(reason, now_ns)

    def _forget(self, entity: Entity, now_ns: int) -> None:
        for one in self._entities.pop(entity, ()):
            one.withdraw(now_ns)
        link = self._links.pop(entity, None)
        if link is not None:
            link.withdraw(now_ns)
