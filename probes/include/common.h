/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What both probe objects share: the ring buffer, the losses, and how a record is begun. */
#ifndef FABRICTAP_COMMON_H
#define FABRICTAP_COMMON_H

#include "kernel.h"
#include "records.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20); /* set from the configuration before load */
} records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FT_LOSS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

static __always_inline void lose(__u32 what)
{
	__u64 *count = bpf_map_lookup_elem(&losses, &what);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void begin(struct ft_record *record, __u32 kind)
{
	__u64 id = bpf_get_current_pid_tgid();

	__builtin_memset(record, 0, sizeof(*record));
	record->time_ns = bpf_ktime_get_ns();
	record->cgroup_id = bpf_get_current_cgroup_id();
	record->kind = kind;
	record->tgid = id >> 32;
	record->tid = (__u32)id;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
}

static __always_inline struct ft_record *reserve(__u32 kind)
{
	struct ft_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record) {
		lose(FT_LOSS_BUFFER_FULL);
		return NULL;
	}
	begin(record, kind);
	return record;
}

#endif
