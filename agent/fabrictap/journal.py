"""The journal: what happened on the node, as events in the ring, for whoever looks at the recording."""

from __future__ import annotations

import ipaddress

from fabrictap import catalog
from fabrictap.catalog import Event
from fabrictap.ext.ring import Ring

_NUMBERS = {event.name: number for number, event in enumerate(catalog.events())}


class Journal:
    """Writes events of the catalog into a ring; the oldest are overwritten. Under the node's lock."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def write(
        self,
        event: Event,
        time_ns: int,
        *,
        pid: int | None = None,
        process: str = "",
        device: str = "",
        qpn: int = 0,
        gid: str | None = None,
        peer_gid: str | None = None,
        peer_qpn: int | None = None,
        value: int = 0,
        text: str = "",
        severity: int | None = None,
    ) -> None:
        """Write one event. ``time_ns``: nanoseconds since the epoch; GIDs in IPv6 notation.

        ``severity`` is the event's own where it is None.
        """
        self._ring.event(
            _NUMBERS[event.name],
            time_ns,
            severity=event.severity if severity is None else severity,
            pid=pid or 0,
            qpn=qpn,
            peer_qpn=peer_qpn or 0,
            value=value,
            device=device,
            process=process,
            gid=_packed(gid),
            peer_gid=_packed(peer_gid),
            text=text,
        )


def _packed(gid: str | None) -> bytes:
    return ipaddress.IPv6Address(gid).packed if gid else b""
