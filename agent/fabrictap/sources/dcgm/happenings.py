"""What is no figure: errors that a field names when they happen, and the state of a switch's link."""

from __future__ import annotations

from fabrictap import catalog
from fabrictap.ledger import Ledger
from fabrictap.series import Series, SeriesTable
from fabrictap.sources.dcgm import fields
from fabrictap.sources.dcgm.delivery import Kept, Readings, attributes_of
from fabrictap.sources.dcgm.entities import Entity
from fabrictap.sources.dcgm.fields import GPU

_XID = {fields.XID: "xid"}
#: Different ones of an entity; NVIDIA has some 200 XIDs, and what goes wrong on one device are a few.
_MOST_KINDS = 64
_SXID = {fields.SXID_FATAL: "sxid_fatal", fields.SXID_NON_FATAL: "sxid"}


class Happenings(Kept):
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
        if name not in self._series and len(self._series) >= _MOST_KINDS:
            name = "other"
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


class LinkState(Kept):
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
