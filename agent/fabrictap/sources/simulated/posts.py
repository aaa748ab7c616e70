"""What the simulated processes post: counters as the probes would have them, folded as those are."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fabrictap.ext import records
from fabrictap.ext.posts import Posts
from fabrictap.ledger import Ledger, names
from fabrictap.ledger.connections import Connection
from fabrictap.series import SeriesTable
from fabrictap.sources.simulated.applications import Wanted, Work
from fabrictap.sources.simulated.script import Script
from fabrictap.sources.verbs.posts import PostFold

#: struct ft_post_key and struct ft_post, probes/include/records.h.
_KEY = struct.Struct("=QQIIIBBBx")
_POST = struct.Struct("=5Q33I4x")
if (_KEY.size, _POST.size) != (records.POST_KEY_SIZE, records.POST_SIZE):
    raise ImportError("records.h has changed: the simulated source packs other counters")
_CAPACITY = 1024
_RECV = 128  # FT_OPERATION_RECV
_RC = 2  # enum ibv_qp_type
#: Of so many work requests one asks for a completion.
_SIGNALED = 16


@dataclass(slots=True)
class _Counter:
    """One counter. ``base``: what its channel had moved when the queue pair was made."""

    key: bytes
    device: str
    work: Work
    base: int
    slot: int


class SimulatedPosts:
    """All counters of all queue pairs. Under the node's lock."""

    def __init__(self, table: SeriesTable, ledger: Ledger) -> None:
        self._ledger = ledger
        self._posts = Posts(table.ring, _CAPACITY)
        self._fold = PostFold(table, ledger, self._posts)
        self._counters: dict[tuple[str, int], list[_Counter]] = {}

    def begin(self, queue_pair: Wanted, qpn: int, script: Script) -> None:
        """A queue pair is there: count from now on."""
        self._counters[queue_pair.device, qpn] = [
            _counter(queue_pair, qpn, work, script) for work in queue_pair.works
        ]

    def finish(self, device: str, qpn: int, script: Script, now_ns: int) -> None:
        """A queue pair is about to end: what it posted until now belongs to it."""
        self._take(script)
        self._fold.finish(device, qpn, now_ns)
        self._counters.pop((device, qpn), None)
        self._fold.delete_retired(self._forget)

    def fold(self, arrived: list[Connection], script: Script, now_ns: int) -> None:
        """Count all that was posted until now, and tell the reconciler."""
        self._take(script)
        self._fold.fold(arrived, now_ns)
        self._ledger.traffic.posted = self._fold.posted()
        self._ledger.traffic.posted_until_ns = now_ns

    def _forget(self, raw: bytes) -> None:
        self._posts.forget(raw)

    def _take(self, script: Script) -> None:
        counters = [counter for of_one in self._counters.values() for counter in of_one]
        keys = b"".join(counter.key for counter in counters)
        values = b"".join(_value(counter, script) for counter in counters)
        self._posts.take(keys, values, len(counters), 1)
        devices = {counter.key: counter.device for counter in counters}
        for number in self._posts.strangers():
            self._posts.place(number, devices[self._posts.raw(number)])
        self._fold.admit()


def _counter(queue_pair: Wanted, qpn: int, work: Work, script: Script) -> _Counter:
    receives = work.operation == "recv"
    operation = _RECV if receives else names.OPERATIONS.index(work.operation)
    queue = records.QUEUE_RECEIVE if receives else records.QUEUE_SEND
    pid = queue_pair.process.pid
    # The address of the process's context: one for each device.
    context = (pid << 16) + int(queue_pair.device.removeprefix("mlx5_"))
    key = _KEY.pack(context, 0, pid, qpn, 0, operation, queue, _RC)
    slot = 0 if work.every else (work.message - 1).bit_length() + 1
    return _Counter(key, queue_pair.device, work, script.moved(work.channel, work.rate), slot)


def _value(counter: _Counter, script: Script) -> bytes:
    """What the counter says now: a message is posted before it moves, so that the last one counts in full."""
    work = counter.work
    moved = script.moved(work.channel, work.rate) - counter.base
    operations = -(-moved // work.message)
    size = operations * work.message
    if work.every:
        operations, size = operations // work.every, 0
    sizes = [0] * records.SIZE_SLOTS
    sizes[counter.slot] = operations & 0xFFFFFFFF
    return _POST.pack(operations, size, operations, 0, operations // _SIGNALED, *sizes)
