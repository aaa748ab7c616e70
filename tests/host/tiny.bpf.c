// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A BPF object for the tests of ext/bpf.pyx: one program that works, two that the verifier refuses. */
#include "common.h"

#define SYS_GETPGID 121 /* x86-64 */

const volatile __u32 watched_tgid;
const volatile __u8 record_kind;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

/* getpgid(number) of the watched process: a record with that number, and an entry of it. */
SEC("raw_tp/sys_enter")
int good(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	struct ft_record *record;
	__u64 number = 0;
	__u32 key;

	if (ctx->args[1] != SYS_GETPGID || bpf_get_current_pid_tgid() >> 32 != watched_tgid)
		return 0;
	bpf_probe_read_kernel(&number, sizeof(number), &regs->rdi);
	record = reserve(record_kind);
	if (record) {
		record->qp.qpn = (__u32)number;
		bpf_ringbuf_submit(record, 0);
	}
	key = (__u32)number;
	bpf_map_update_elem(&numbers, &key, &number, BPF_ANY);
	return 0;
}

/* Follows a pointer that may be NULL. */
SEC("raw_tp/sys_enter")
int refused_for_null(void *ctx)
{
	__u32 key = 0;
	__u64 *number = bpf_map_lookup_elem(&numbers, &key);

	return (int)*number;
}

/* Reads beyond what it was given. */
SEC("raw_tp/sys_enter")
int refused_for_bounds(void *ctx)
{
	return *(int *)(ctx + 4096);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
