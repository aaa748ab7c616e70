// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* getpgid() of the watched process puts a burst of records into the ring buffer. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "record.h"

const volatile __u32 watched_tgid;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} records SEC(".maps");

SEC("raw_tp/sys_enter")
int burst(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (ctx->args[1] != SYS_GETPGID || tgid != watched_tgid)
		return 0;
	for (__u32 i = 0; i < BURST; i++) {
		struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

		if (!record)
			return 0;
		__builtin_memset(record, 0, sizeof(*record));
		record->time_ns = bpf_ktime_get_ns();
		record->bytes = 64 + i;
		record->qpn = i % KEYS;
		record->tgid = tgid;
		record->kind = 1;
		/* Consumers are called directly: what is measured is not the wakeup. */
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
