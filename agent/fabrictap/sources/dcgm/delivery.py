"""One bundle of one entity as series, where no better provider delivers it."""

from __future__ import annotations

from collections.abc import Mapping

from fabrictap import catalog
from fabrictap.catalog import Kind
from fabrictap.ledger import Ledger
from fabrictap.ledger.providers import DCGM, REASONS, Figure, Offer
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources.dcgm.entities import Entity
from fabrictap.sources.dcgm.fields import GPU, INSTANCE, Bundle, Point
from fabrictap.sources.dcgm.session import Reading

#: Samples in a row without a value after which a counter is given up. A gauge is at once: it would be false.
_PATIENCE = 3
#: More NVLinks than any GPU has.
_MOST_LINKS = 36
#: The largest sum that OTLP carries (sfixed64).
_MOST = (1 << 63) - 1

Readings = Mapping[int, Reading]


class Kept:
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


class Delivery(Kept):
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
        self._by_link = [Figure(entity.hw_id, bundle.name, f"{bundle.part}.{link}") for link in links]
        self._link_offers: dict[Figure, Offer] = {}
        self._looked_at = -1

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
        if not self._whole():
            self._end()
            return
        for point in self._points:
            if point in found:
                self._write(point, found[point], now_ns)
            elif not self._waits_for(point) and point in self._series:
                self._finish(self._series.pop(point))

    def give_up(self, reason: str, now_ns: int) -> None:
        for offer in self._link_offers.values():
            offer.unavailable(reason)
        super().give_up(reason, now_ns)

    def withdraw(self, now_ns: int) -> None:
        for offer in self._link_offers.values():
            offer.withdraw()
        self._link_offers.clear()
        super().withdraw(now_ns)

    def _whole(self) -> bool:
        """Whether nobody better has a link of what this has of all links: then none may be counted here."""
        looked_at, self._looked_at = self._looked_at, self._providers.version
        for figure in self._by_link if looked_at != self._looked_at else ():
            if figure not in self._link_offers and self._providers.known(figure):
                self._link_offers[figure] = self._providers.offer(DCGM, figure, self._end)
        chosen = [offer.available() for offer in self._link_offers.values()]  # each is to be told
        return all(chosen)

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
