"""fabrictap's reader of a BPF ring buffer: records are counted by key in C and told to series of the ring.

``with_fabrictap.py OBJECT``; for each line "BURSTS" on stdin a line of JSON: CPU time of consuming that many
bursts, in nanoseconds, and the table as [[count, bytes], ...].
"""

from __future__ import annotations

import json
import os
import sys
import time

from fabrictap import catalog
from fabrictap.ext.bpf import Object, RingBuffer
from fabrictap.ext.fold import KeyedFold
from fabrictap.series import Series, SeriesTable

#: As in record.h.
RECORD_SIZE, BYTES_AT, QPN_AT, QPN_SIZE = 64, 16, 24, 4


class _Sums:
    """The series of each key; ``take`` is what a source does with its ring buffer, every time."""

    def __init__(self, loaded: Object) -> None:
        self._table = SeriesTable(1000)
        self._fold = KeyedFold(
            self._table.ring, record_size=RECORD_SIZE, key_at=QPN_AT, key_size=QPN_SIZE, total_at=BYTES_AT
        )
        self._records = RingBuffer(loaded, "records", RECORD_SIZE, into=self._fold)
        self._series: dict[int, tuple[Series, Series]] = {}
        self._before: dict[int, tuple[int, int]] = {}

    def take(self) -> None:
        self._records.poll(0)
        now_ns = time.time_ns()
        for key in self._fold.fold(now_ns):
            qpn = int.from_bytes(key, sys.byteorder)
            attributes = {"rdma.qp.number": qpn}
            bound = (
                self._table.series(catalog.VERBS_OPERATIONS, attributes, now_ns),
                self._table.series(catalog.VERBS_IO, attributes, now_ns),
            )
            self._series[qpn] = bound
            self._fold.bind(key, *bound, now_ns)

    def since_last(self) -> list[list[int]]:
        """What each key has gained since the last call."""
        gained = []
        for qpn, (count, total) in sorted(self._series.items()):
            now = int(str(count.value)), int(str(total.value))
            before = self._before.get(qpn, (0, 0))
            gained.append([now[0] - before[0], now[1] - before[1]])
            self._before[qpn] = now
        return gained


def main() -> None:
    loaded = Object(sys.argv[1])
    loaded.set_constant("watched_tgid", os.getpid())
    loaded.load()
    link = loaded.attach("burst")
    sums = _Sums(loaded)
    for line in sys.stdin:
        spent = 0
        for _ in range(int(line)):
            os.getpgid(0)
            began = time.process_time_ns()
            sums.take()
            spent += time.process_time_ns() - began
        print(json.dumps({"cpu_ns": spent, "sums": sums.since_last()}), flush=True)
    link.close()


if __name__ == "__main__":
    main()
