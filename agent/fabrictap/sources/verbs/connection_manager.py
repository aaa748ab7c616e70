"""Events of the connection manager, counted in C by what they are; a name is made for each kind once."""

from __future__ import annotations

import struct

from fabrictap import catalog
from fabrictap.ext import records
from fabrictap.ext.fold import KeyedFold
from fabrictap.series import SeriesTable

#: enum rdma_cm_event_type, include/rdma/rdma_cm.h.
_EVENTS = (
    "addr_resolved", "addr_error", "route_resolved", "route_error", "connect_request", "connect_response",
    "connect_error", "unreachable", "rejected", "established", "disconnected", "device_removal",
    "multicast_join", "multicast_error", "addr_change", "timewait_exit",
)  # fmt: skip
_SENT = ("req_sent", "rep_sent")
#: Kind, event and status (struct ft_cm_record).
_KEY = struct.Struct("=IIi")
#: Events by the errors that they come with: some dozens in all.
_CAPACITY = 1024


class ConnectionManagerFold:
    """``events`` takes the records, in the source's thread; :meth:`fold` runs under the node's lock."""

    def __init__(self, series: SeriesTable) -> None:
        self._series = series
        self.events = KeyedFold(
            series.ring,
            record_size=records.CM_RECORD_SIZE,
            key_at=records.CM_KEY_AT,
            key_size=records.CM_KEY_SIZE,
            capacity=_CAPACITY,
        )

    def fold(self, now_ns: int) -> None:
        """Count what has come."""
        for key in self.events.fold(now_ns):
            kind, event, status = _KEY.unpack(key)
            names = _SENT if kind == records.CM_SENT else _EVENTS
            name = names[event] if event < len(names) else f"event_{event}"
            attributes: dict[str, str | int | bool] = {catalog.RDMA_CM_EVENT.name: name}
            if kind == records.CM_EVENT and status:
                attributes[catalog.ERROR_TYPE.name] = str(status)
            counter = self._series.series(catalog.CM_EVENTS, attributes, now_ns)
            self.events.bind(key, counter, None, now_ns)
