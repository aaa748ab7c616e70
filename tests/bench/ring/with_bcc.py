"""bcc's ring buffer with a callback in Python, as its documentation has it. Runs under the system's Python.

``with_bcc.py``; for each line "BURSTS" on stdin a line of JSON: CPU time of consuming that many bursts, in
nanoseconds, and the table as [[count, bytes], ...].
"""

import json
import os
import sys
import time
from pathlib import Path

from bcc import BPF

HERE = Path(__file__).parent
PROGRAM = """
#include "record.h"

BPF_RINGBUF_OUTPUT(records, 256);

int burst(struct bpf_raw_tracepoint_args *ctx)
{
    u32 tgid = bpf_get_current_pid_tgid() >> 32;

    if (ctx->args[1] != SYS_GETPGID || tgid != WATCHED_TGID)
        return 0;
    for (u32 i = 0; i < BURST; i++) {
        struct record *record = records.ringbuf_reserve(sizeof(struct record));

        if (!record)
            return 0;
        __builtin_memset(record, 0, sizeof(*record));
        record->time_ns = bpf_ktime_get_ns();
        record->bytes = 64 + i;
        record->qpn = i % KEYS;
        record->tgid = tgid;
        record->kind = 1;
        records.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
    }
    return 0;
}
"""


def main():
    includes = [f"-I{HERE}", f"-DWATCHED_TGID={os.getpid()}", *sys.argv[1:]]
    bpf = BPF(text=PROGRAM, cflags=includes)
    bpf.attach_raw_tracepoint(tp="sys_enter", fn_name="burst")
    records = bpf["records"]
    sums = {}

    def fold(context, data, size):
        event = records.event(data)
        entry = sums.get(event.qpn)
        if entry is None:
            entry = sums[event.qpn] = [0, 0]
        entry[0] += 1
        entry[1] += event.bytes

    records.open_ring_buffer(fold)
    for line in sys.stdin:
        sums.clear()
        spent = 0
        for _ in range(int(line)):
            os.getpgid(0)
            began = time.process_time_ns()
            bpf.ring_buffer_consume()
            spent += time.process_time_ns() - began
        print(json.dumps({"cpu_ns": spent, "sums": [sums[key] for key in sorted(sums)]}), flush=True)


main()
