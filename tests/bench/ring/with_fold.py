"""The agent's own consumer: records into series of the ring, by a key that stands in them (ext/fold.pyx).

``with_fold.py OBJECT``; for each line "BURSTS" on stdin a line of JSON: CPU time of consuming that many
bursts and of bringing the series up to date after each, in nanoseconds, and the table as [[count, bytes],
...].
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

# As in record.h.
RECORD_SIZE, BYTES_AT, QPN_AT, QPN_SIZE = 64, 16, 24, 4


def main() -> None:
    made = Object(sys.argv[1])
    made.set_constant("watched_tgid", os.getpid())
    made.load()
    table = SeriesTable(1000)
    fold = KeyedFold(table.ring, record_size=RECORD_SIZE, key_at=QPN_AT, key_size=QPN_SIZE, total_at=BYTES_AT)
    records = RingBuffer(made, "records", RECORD_SIZE, into=fold)
    link = made.attach("burst")
    series: dict[int, tuple[Series, Series]] = {}
    before: dict[int, list[int]] = {}
    for line in sys.stdin:
        spent = 0
        for _ in range(int(line)):
            os.getpgid(0)
            began = time.process_time_ns()
            records.poll(0)
            now_ns = time.time_ns()
            for key in fold.fold(now_ns):
                qpn = int.from_bytes(key, sys.byteorder)
                attributes = {"rdma.qp.number": qpn}
                count = table.series(catalog.VERBS_OPERATIONS, attributes, now_ns)
                size = table.series(catalog.VERBS_IO, attributes, now_ns)
                fold.bind(key, count, size, now_ns)
                series[qpn] = (count, size)
            spent += time.process_time_ns() - began
        now = {qpn: [int(one.value or 0) for one in both] for qpn, both in series.items()}  # type: ignore[arg-type]
        sums = [
            [new - old for new, old in zip(now[qpn], before.get(qpn, [0, 0]), strict=True)]
            for qpn in sorted(now)
        ]
        before = now
        print(json.dumps({"cpu_ns": spent, "sums": sums}), flush=True)
    link.close()


main()
