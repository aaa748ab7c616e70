"""The data path as the tests hold it against the stand-in application's own counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from doubles.provider.builder import COUNTED, Double
from fabrictap.ext import records
from fabrictap.ext.posts import Posts
from fabrictap.ext.records import Record, context_device, context_key, decode
from fabrictap.series import in_memory
from fabrictap.sources.verbs.probes import attach_place, load_data

#: What a counter counts: device, context, queue, number, QP type, operation, peer qpn, address handle.
#: The last is the ordinal of the handle in the application, 0 without.
What = tuple[str | None, int, int, int, int, int, int, int]


@dataclass(frozen=True)
class Count:
    """Operations, bytes, SGEs, inline, signaled; and operations by size slot."""

    totals: tuple[int, int, int, int, int]
    sizes: tuple[int, ...] = field(repr=False)


class Tap:
    """Loaded, and attached to ``double``; close it before the next is opened. Counters are of one ``pid``."""

    def __init__(
        self,
        double: Double | None,
        post_memory: int = 16 << 20,
        event_buffer: int = 1 << 20,
        *,
        bounded: bool = False,
        returns: bool | None = True,
        subtract: bool = True,
    ) -> None:
        self.probes = load_data(
            post_memory, event_buffer, bounded=bounded, returns=returns, subtract=subtract
        )
        if double is not None:
            for function in (*COUNTED, "create_ah"):
                attach_place(self.probes, double.place(function))
            for place in double.extended():
                attach_place(self.probes, place)
        assert self.probes.refused == {}
        self.map = self.probes.object.map("posts")
        self.posts = Posts(in_memory(1), self.map.max_entries)
        self.handles: list[Record] = []

    def close(self) -> None:
        self.probes.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self) -> list[Record]:
        """Address handles made since the last time."""
        fresh = decode(self.probes.records.poll(0))
        assert all(record.kind == records.AH_CREATED for record in fresh)
        self.handles += fresh
        return fresh

    def moved(self) -> list[tuple[records.PostKey, records.Post]]:
        self.posts.read(self.map)
        return self.posts.drain()

    def counters(self, pid: int) -> dict[What, Count]:
        """What moved since the last time in the process ``pid``; other processes count nothing here."""
        self.poll()
        ordinals = {record.ah_id: number for number, record in enumerate(self.handles, 1)}
        contexts = self.probes.object.map("contexts")
        found: dict[What, Count] = {}
        for key, post in self.moved():
            assert key.pid == pid
            name = contexts.get(context_key(key.context, key.pid))
            handle = ordinals[key.address_handle] if key.address_handle else 0
            what = (
                context_device(name) if name is not None else None, key.context, key.queue, key.qpn,
                key.qp_type, key.operation, key.peer_qpn, handle,
            )  # fmt: skip
            assert what not in found
            totals = (post.operations, post.bytes, post.sges, post.inlined, post.signaled)
            found[what] = Count(totals, post.sizes)
        return found

    def lost(self) -> dict[str, int]:
        """Losses that are not 0."""
        return {reason: count for reason, count in self.probes.losses().items() if count}


def truth(counts: dict[str, Any], devices: dict[int, str]) -> dict[What, Count]:
    """The application's own counts (its command ``counts``); ``devices``: context address -> name."""
    found = {}
    for one in counts["counters"]:
        what = (
            devices[one["context"]], one["context"], one["queue"], one["number"], one["qp_type"],
            one["operation"], one["peer_qpn"], one["address_handle"],
        )  # fmt: skip
        totals = tuple(one[name] for name in ("operations", "bytes", "sges", "inlined", "signaled"))
        found[what] = Count(totals, tuple(one["sizes"]))
    assert len(found) == len(counts["counters"])
    return found
