// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The truth that the agent is measured against: every packet that Soft-RoCE hands to the wire, told by its
 * transport header. Shares no code with the agent.
 *
 * rxe sends a packet again when an acknowledgement is late. Sequence numbers tell: of each queue pair and
 * side (requests, responses), only packets beyond the highest number so far are counted.
 */
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct ib_device {
	char name[64];
};
struct ib_qp {
	struct ib_device *device;
	__u32 qp_num;
};
struct rxe_qp {
	struct ib_qp ibqp;
};
struct rxe_pkt_info {
	__u8 *hdr; /* the BTH */
	__u32 psn;
	__u16 paylen;
	__u8 opcode;
};
#pragma clang attribute pop

struct key {
	char device[16];
	__u32 qpn;
	__u32 opcode; /* BTH opcode */
};

struct count {
	__u64 packets;
	__u64 bytes; /* BTH, extended headers, payload and ICRC */
	__u64 again;
};

struct side {
	char device[16];
	__u32 qpn;
	__u32 response;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct key);
	__type(value, struct count);
} packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct side);
	__type(value, __u32);
} highest SEC(".maps");

/* IBA 1.4, table 38: the low five bits; responses are READ RESPONSE, ACKNOWLEDGE and ATOMIC ACKNOWLEDGE. */
static bool is_response(__u8 opcode)
{
	return (opcode & 0x1f) >= 0x0d && (opcode & 0x1f) <= 0x12;
}

SEC("fentry/rxe_xmit_packet")
int BPF_PROG(sent, struct rxe_qp *qp, struct rxe_pkt_info *packet)
{
	struct key key = {};
	struct side side = {};
	struct count zero = {}, *count;
	__u32 psn = BPF_CORE_READ(packet, psn) & 0xffffff, *last;
	__u8 *bth = BPF_CORE_READ(packet, hdr), flags = 0;
	bool again = false;

	BPF_CORE_READ_STR_INTO(&key.device, qp, ibqp.device, name);
	key.qpn = BPF_CORE_READ(qp, ibqp.qp_num);
	key.opcode = BPF_CORE_READ(packet, opcode);
	__builtin_memcpy(side.device, key.device, sizeof(side.device));
	side.qpn = key.qpn;
	side.response = is_response(key.opcode);

	last = bpf_map_lookup_elem(&highest, &side);
	/* 24-bit serial number arithmetic: ahead by less than half the space is new */
	if (last && ((psn - *last) & 0xffffff) - 1 >= 0x7fffff)
		again = true;
	else
		bpf_map_update_elem(&highest, &side, &psn, BPF_ANY);

	bpf_map_update_elem(&packets, &key, &zero, BPF_NOEXIST);
	count = bpf_map_lookup_elem(&packets, &key);
	if (!count)
		return 0;
	if (again) {
		__sync_fetch_and_add(&count->again, 1);
	} else {
		__sync_fetch_and_add(&count->packets, 1);
		bpf_probe_read_kernel(&flags, sizeof(flags), bth + 1);
		__sync_fetch_and_add(&count->bytes, BPF_CORE_READ(packet, paylen) - (flags >> 4 & 3)); /* PadCnt */
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
