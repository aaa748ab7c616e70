"""Puts readings into series: what DCGM delivers of an entity, where no better provider does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fabrictap import catalog
from fabrictap.catalog import Kind
from fabrictap.ledger import Ledger
from fabrictap.ledger.providers import DCGM, REASONS, Figure, Offer
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources.dcgm import fields
from fabrictap.sources.dcgm.entities import Entity
from fabrictap.sources.dcgm.fields import GPU, INSTANCE, LINK, SETS, SWITCH, Bundle, Point
from fabrictap.sources.dcgm.session import Reading, Sample

#: Samples in a row without a value after which a counter is given up. A gauge is at once: it would be false.
_PATIENCE = 3
#: More NVLinks than any GPU has.
_MOST_LINKS = 36
#: The largest sum that OTLP carries (sfixed64).
_MOST = (1 << 63) - 1

Readings = Mapping[int, Reading]


class _Kept:
    """The series that one thing delivers of an entity, and its offer where others may deliver the same."""

    def __init__(self, table: SeriesTable) -> None:
        self._table = table
        self._offer: Offer | None = None
        self._now_ns = 0

    def give_up(self, reason: str, now_ns: int) -> None:
        """Nothing can be delivered, and why."""
        self._now_ns = now_ns
        if self._offer is not None:
            self._offer.unavailable(reason)
        self._end()

    def withdraw(self, now_ns: int) -> None:
        """The entity has gone."""
        self._now_ns = now_ns
        if self._offer is not None:
            self._offer.withdraw()
        self._end()

    def _end(self) -> None:
        raise NotImplementedError

    def _finish(self, series: Series) -> None:
        """End a series; what others will sum with their own goes to 0 first, so that nothing counts twice."""
        if series.metric.kind is Kind.UPDOWNCOUNTER and series.known:
            series.set(0, self._now_ns)
        self._table.end(series)


class _Delivery(_Kept):
    """One bundle of one entity."""

    def __init__(self, entity: Entity, bundle: Bundle, table: SeriesTable, ledger: Ledger) -> None:
        super().__init__(table)
        self._providers = ledger.providers
        self._points = bundle.points
        self._attributes = attributes_of(entity)
        if bundle.name == catalog.NVLINK_IO.name and isinstance(bundle.part, int):
            self._attributes[catalog.GPU_LINK.name] = bundle.part
        self._series: dict[Point, Series] = {}
        self._misses: dict[Point, int] = {}
        if entity.group in (GPU, INSTANCE):
            figure = Figure(entity.hw_id, bundle.name, bundle.part)
            self._offer = self._providers.offer(DCGM, figure, self._end, rate=bundle.rate)
        links = range(_MOST_LINKS if bundle.by_link else 0)
        self._rivals = [Figure(entity.hw_id, bundle.name, f"{bundle.part}.{link}") for link in links]

    def fold(self, readings: Readings, now_ns: int) -> None:
        self._now_ns = now_ns
        found: dict[Point, int | float] = {}
        reasons = set()
        for point in self._points:
            value, reason = worth(point, readings)
            if value is not None:
                found[point] = value
                self._misses[point] = 0
            else:
                reasons.add(reason)
                self._misses[point] = min(self._misses.get(point, _PATIENCE) + 1, _PATIENCE)
        if not found and all(not self._waits_for(point) for point in self._points):
            self.give_up(min(reasons, key=REASONS.index), now_ns)
            return
        if self._offer is not None and not self._offer.available():
            return
        if any(self._providers.chosen(figure) is not None for figure in self._rivals):
            self._end()
            return
        for point in self._points:
            if point in found:
                self._write(point, found[point], now_ns)
            elif not self._waits_for(point) and point in self._series:
                self._finish(self._series.pop(point))

    def _waits_for(self, point: Point) -> bool:
        """Whether the series of a point that has no value now is kept a little longer."""
        return point.cumulative and point in self._series and self._misses.get(point, _PATIENCE) < _PATIENCE

    def _write(self, point: Point, value: int | float, now_ns: int) -> None:
        series = self._series.get(point)
        if series is None:
            attributes = self._attributes | dict(point.attributes)
            series = self._series[point] = self._table.series(point.metric, attributes, now_ns)
        if point.cumulative:
            series.observe(int(value), now_ns)
        else:
            series.set(value, now_ns)

    def _end(self) -> None:
        for series in self._series.values():
            self._finish(series)
        self._series.clear()


class _Happenings(_Kept):
    """Counts what a field names when it happens: driver errors of a GPU, errors of an NVSwitch.

    The field holds the last one only, so two between samples count as one. What was there at first is older
    than the agent and not counted. Those of a GPU that the driver's own library watches are counted there.
    """

    def __init__(self, entity: Entity, table: SeriesTable, ledger: Ledger) -> None:
        super().__init__(table)
        self._entity = entity
        self._gpus = ledger.gpus
        self._series: dict[str, Series] = {}
        self._last: dict[int, tuple[int, int] | None] = {}

    def fold(self, readings: Readings, now_ns: int) -> None:
        self._now_ns = now_ns
        names = _XID if self._entity.group == GPU else _SXID
        elsewhere = self._gpus.get(self._entity.hw_id) is not None
        if elsewhere:
            self._end()
        for field, name in names.items():
            reading = readings[field]
            # none has happened yet: there is no value, or the value is 0 or blank
            number = reading.value if isinstance(reading.value, int) else 0
            if reading.reason not in (None, "no_data", "blank"):
                continue
            # An XID is written when it happens, an SXID again and again as long as it is the last.
            now = (number, reading.time_us if self._entity.group == GPU else 0) if number > 0 else None
            known = field in self._last
            before = self._last.get(field)
            self._last[field] = now
            if known and now is not None and now != before and not elsewhere:
                self._count(f"{name}_{number}", now_ns)

    def _count(self, name: str, now_ns: int) -> None:
        series = self._series.get(name)
        if series is None:
            attributes = attributes_of(self._entity) | {
                catalog.HW_TYPE.name: "gpu" if self._entity.group == GPU else "network",
                catalog.ERROR_TYPE.name: name,
            }
            series = self._series[name] = self._table.series(catalog.ERRORS, attributes, now_ns)
        series.add(1, now_ns)

    def _end(self) -> None:
        for series in self._series.values():
            self._finish(series)
        self._series.clear()


_XID = {fields.XID: "xid"}
_SXID = {fields.SXID_FATAL: "sxid_fatal", fields.SXID_NON_FATAL: "sxid"}


class _LinkState(_Kept):
    """Whether a link of an NVSwitch is up. Most switches have links that lead nowhere: those are left out."""

    def __init__(self, entity: Entity, table: SeriesTable) -> None:
        super().__init__(table)
        self._attributes = attributes_of(entity)
        self._series: Series | None = None

    def fold(self, readings: Readings, now_ns: int) -> None:
        self._now_ns = now_ns
        state = readings[fields.LINK_STATUS].value
        if state is None:
            self._end()
            return
        if self._series is None and state in (fields.LINK_ACTIVE, fields.LINK_ERROR):
            self._series = self._table.series(catalog.NVSWITCH_LINK_UP, self._attributes, now_ns)
        if self._series is not None:
            self._series.set(int(state == fields.LINK_ACTIVE), now_ns)

    @property
    def used(self) -> bool:
        return self._series is not None

    def _end(self) -> None:
        if self._series is not None:
            self._finish(self._series)
            self._series = None


class Figures:
    """Everything that DCGM delivers now. Used under the node's lock."""

    def __init__(self, table: SeriesTable, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._entities: dict[Entity, list[_Delivery | _Happenings]] = {}
        self._links: dict[Entity, _LinkState] = {}

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
            state = self._links[entity] = _LinkState(entity, self._table)
        state.fold(readings, now_ns)
        if not state.used:
            for one in self._entities.pop(entity, ()):
                one.withdraw(now_ns)
        return state.used

    def _make(self, entity: Entity) -> Iterable[_Delivery | _Happenings]:
        for each in SETS[entity.group]:
            for bundle in each.bundles:
                yield _Delivery(entity, bundle, self._table, self._ledger)
        if entity.group in (GPU, SWITCH):
            yield _Happenings(entity, self._table, self._ledger)

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


def attributes_of(entity: Entity) -> dict[str, AttributeValue]:
    """What every series of an entity has."""
    made: dict[str, AttributeValue] = {catalog.HW_ID.name: entity.hw_id, catalog.PROVIDER.name: DCGM}
    if entity.parent is not None:
        made[catalog.HW_PARENT.name] = entity.parent
    if entity.link is not None:
        made[catalog.NVSWITCH_LINK.name] = entity.link
    return made


def worth(point: Point, readings: Readings) -> tuple[int | float | None, str]:
    """The value of a point in the metric's unit, or None and the reason why there is none."""
    reading = readings[point.field]
    if reading.value is None:
        return None, reading.reason or "error"
    value = reading.value
    if point.per is not None:
        whole = readings[point.per].value
        return (value / whole, "") if whole else (None, readings[point.per].reason or "error")
    if point.metric is catalog.GPU_ROW_REMAPPING:
        value = int(value != 0)
    if not 0 <= value * point.scale <= _MOST and point.metric is not catalog.GPU_TEMPERATURE:
        return None, "error"
    return value * point.scale, ""
