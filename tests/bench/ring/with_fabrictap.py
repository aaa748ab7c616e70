"""fabrictap's reader of a BPF ring buffer: drained in C, without the GIL; folded by :func:`fold`.

``with_fabrictap.py OBJECT``; for each line "BURSTS" on stdin a line of JSON: CPU time of consuming that many
bursts, in nanoseconds, and the table as [[count, bytes], ...].
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time

from fabrictap.ext.bpf import Object, RingBuffer

#: As in record.h: bytes and qpn of a record of 64 bytes.
_RECORD = struct.Struct("<16xQI36x")
_BURST = 4096


def fold(batch: bytes, sums: dict[int, list[int]]) -> None:
    """Count what a poll brought."""
    for moved, qpn in _RECORD.iter_unpack(batch):
        entry = sums.get(qpn)
        if entry is None:
            entry = sums[qpn] = [0, 0]
        entry[0] += 1
        entry[1] += moved


def main() -> None:
    loaded = Object(sys.argv[1])
    loaded.set_constant("watched_tgid", os.getpid())
    loaded.load()
    link = loaded.attach("burst")
    records = RingBuffer(loaded, "records", _RECORD.size, _BURST)
    for line in sys.stdin:
        sums: dict[int, list[int]] = {}
        spent = 0
        for _ in range(int(line)):
            os.getpgid(0)
            began = time.process_time_ns()
            while batch := records.poll(0):
                fold(batch, sums)
            spent += time.process_time_ns() - began
        print(json.dumps({"cpu_ns": spent, "sums": [sums[key] for key in sorted(sums)]}), flush=True)
    link.close()


if __name__ == "__main__":
    main()
