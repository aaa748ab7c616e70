"""The source ``verbs`` with a stand-in for the kernel: made-up connections, all of them busy, every second.

What the kernel would say is packed as the probes pack it and goes through the source's own decoding and
folding. The stand-in costs CPU of its own, which :attr:`VerbsTraffic.stand_in_seconds` tells apart. It stands
for a node without RDMA and must say so in the resource attributes of whatever exports it (:data:`LABEL`).
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Iterator
from itertools import islice

from doubles import raw_records as raw
from fabrictap.config import Verbs as VerbsConfig
from fabrictap.ext import records
from fabrictap.ext.records import PostKey, Record
from fabrictap.ledger import Ledger
from fabrictap.ledger.processes import Process
from fabrictap.series import SeriesTable
from fabrictap.sources.verbs.source import Sample, Verbs

_log = logging.getLogger(__name__)

#: Resource attribute that tells stand-ins from hardware.
LABEL = "fabrictap.synthetic"
#: enum ibv_wr_opcode: RDMA write, send, RDMA read. Each is a counter and 6 series.
OPERATIONS = (0, 2, 4)
SERIES_OF_CONNECTION = 6 * len(OPERATIONS)
#: The kernel's map of posted work has no more (config: sources.verbs.post_memory).
MAX_COUNTERS = 16384
#: What a wait brings at most, as the ring buffer's reader does.
MAX_RECORDS = 4096
_CONNECTIONS_OF_PROCESS = 32
_FIRST_PID = 4_000_000  # beyond every pid of this machine: pid_max is at most 2**22
_FIRST_QPN = 100
_MESSAGE = 65536
_PER_SECOND = 1000
_CPUS = 2
_TOTALS = struct.Struct("<5Q")
_SLOT = struct.Struct("<I")
#: The slot of records.h that counts messages of 64 KiB.
_SIZE_SLOT = 17


class VerbsTraffic(Verbs):
    """``connections`` queue pairs of type RC on ``devices`` devices, connected at once, then busy."""

    def __init__(
        self, config: VerbsConfig, series: SeriesTable, ledger: Ledger, connections: int, devices: int
    ) -> None:
        super().__init__(config, series, ledger)
        self.interval = 0.0  # until all are connected
        self.stand_in_seconds = 0.0
        self._connections = connections
        self._device_count = devices
        self._lives = self._control_records()
        self._connected = False
        self._probed_ns = 0
        self._ticks = 0
        counters = min(connections * len(OPERATIONS), MAX_COUNTERS)
        self._keys = b"".join(self._key(number) for number in range(counters))
        self._values = bytearray(records.POST_SIZE * _CPUS * counters)
        self._count = counters

    def open(self) -> None:
        self._known = {}
        self._probed_ns = time.time_ns() - 10**9  # before the first record, however the clocks are read

    def sample(self) -> Sample:
        """Some connections while there are new ones, then a second's posts of all."""
        began = time.thread_time()
        happened = list(islice(self._lives, MAX_RECORDS))
        sample = Sample(records=happened, received=len(happened))
        for pid in sorted({record.pid for record in happened}):
            if pid not in self._known:
                sample.processes.append(Process(pid, "synthetic_app", time.time()))
                self._known[pid] = sample.instrumented[pid] = self._probed_ns
        if not happened:
            self._connect()
            self._post()
        self.stand_in_seconds += time.thread_time() - began
        if self._connected:
            sample.posts = True
            self._posts.take(self._keys, bytes(self._values), self._count, _CPUS)
            for number in self._posts.strangers():
                self._posts.place(number, self._device(self._posts.key(number)))
        return sample

    def close(self) -> None:
        """There is nothing that is open."""

    def _connect(self) -> None:
        if not self._connected:
            self._connected = True
            self.interval = float(self._config.interval)
            _log.warning("%d synthetic connections are made", self._connections)

    def _device(self, key: PostKey) -> str:
        return self._name(key.qpn - _FIRST_QPN)

    def _name(self, connection: int) -> str:
        return f"mlx5_{connection % self._device_count}"

    @staticmethod
    def _pid(connection: int) -> int:
        return _FIRST_PID + connection // _CONNECTIONS_OF_PROCESS

    def _key(self, number: int) -> bytes:
        connection, operation = divmod(number, len(OPERATIONS))
        key, _ = raw.post(
            _FIRST_QPN + connection, OPERATIONS[operation], pid=self._pid(connection), context=0xC0
        )
        return key.raw

    def _post(self) -> None:
        """One more second of work in every counter, all of it on the first CPU."""
        self._ticks += 1
        operations = self._ticks * _PER_SECOND
        totals = (operations, operations * _MESSAGE, 0, 0, operations // 64)
        for number in range(self._count):
            at = number * records.POST_SIZE * _CPUS
            _TOTALS.pack_into(self._values, at, *totals)
            _SLOT.pack_into(self._values, at + _TOTALS.size + 4 * _SIZE_SLOT, operations & 0xFFFFFFFF)

    def _control_records(self) -> Iterator[Record]:
        for connection in range(self._connections):
            device, pid, qpn = self._name(connection), self._pid(connection), _FIRST_QPN + connection
            yield raw.qp(records.QP_CREATED, device, qpn, pid=pid)
            yield raw.qp(records.QP_MODIFIED, device, qpn, pid=pid, mask=raw.STATE, state=1)
            mask = raw.STATE | raw.AV | raw.DEST_QPN | raw.RQ_PSN | raw.PATH_MTU
            yield raw.qp(
                records.QP_MODIFIED, device, qpn, pid=pid, mask=mask, state=2, mtu=5, rq_psn=connection,
                gid="::ffff:10.0.0.1", peer_gid="::ffff:10.0.0.2", peer_qpn=qpn + 100_000,
            )  # fmt: skip
            yield raw.qp(
                records.QP_MODIFIED, device, qpn, pid=pid, mask=raw.STATE | raw.SQ_PSN, state=3, sq_psn=qpn
            )
