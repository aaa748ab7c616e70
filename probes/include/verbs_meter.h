/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the probes cost each process, so that one for which it is too much is let go at once: a tick of the
 * agent would be too late, for a process that posts millions of times a second. Each hit is charged to its
 * process; when that has used up its quota within one window, the agent is told, once, until it takes the
 * word back (``told``) with a new quota.
 *
 * One counter for all threads of a process: contended at rates only that end the counting.
 */
#ifndef FABRICTAP_VERBS_METER_H
#define FABRICTAP_VERBS_METER_H

#include "common.h"

const volatile __u32 metered;		/* 0: nothing of this is in the programs that are loaded */
const volatile __u64 meter_quota;	/* of a process that the agent has not looked at yet */
const volatile __u64 meter_window_ns;

/* pid 0 stands for all that found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FT_METERS);
	__type(key, __u32);
	__type(value, struct ft_meter);
} meters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16); /* whole pages, on every machine */
} exceeded SEC(".maps");

/* Not static: the verifier looks at it once, not at each program that is metered. */
__noinline int charge(__u32 hits)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct ft_meter *meter = bpf_map_lookup_elem(&meters, &tgid);
	struct ft_exceeded *told;
	__u64 now;

	if (!meter) {
		struct ft_meter fresh = { .quota = meter_quota, .began_ns = bpf_ktime_get_ns() };

		bpf_map_update_elem(&meters, &tgid, &fresh, BPF_NOEXIST);
		meter = bpf_map_lookup_elem(&meters, &tgid);
		if (!meter) {
			tgid = 0;
			meter = bpf_map_lookup_elem(&meters, &tgid);
		}
		if (!meter)
			return 0;
	}
	__sync_fetch_and_add(&meter->hits, hits);
	if (meter->hits - meter->mark < meter->quota || meter->told)
		return 0;
	now = bpf_ktime_get_ns();
	if (now - meter->began_ns >= meter_window_ns) {
		meter->began_ns = now;
		meter->mark = meter->hits;
		return 0;
	}
	/* Without room the next hit tells. Two CPUs may both tell, which the agent bears. */
	told = bpf_ringbuf_reserve(&exceeded, sizeof(*told), 0);
	if (!told)
		return 0;
	meter->told = 1;
	told->time_ns = now;
	told->tgid = bpf_get_current_pid_tgid() >> 32;
	told->padding = 0;
	bpf_ringbuf_submit(told, 0);
	return 0;
}

static __always_inline void meter(__u32 hits)
{
	if (metered)
		charge(hits);
}

#endif
