/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Work as it is posted and completed, one record for each: what verbs_work.bpf.c tells while it is attached.
 *
 * Records stand in the ring buffer in the order in which they were made: a request's before its completion's,
 * because a post is recorded on entry and a completion when poll_cq returns it.
 */
#ifndef FABRICTAP_WORK_H
#define FABRICTAP_WORK_H

#include <linux/types.h>

enum ft_work_kind {
	FT_WORK_SENT = 1,	/* a work request, given to post_send or built by ibv_wr_* */
	FT_WORK_RECEIVE,	/* the same to post_recv or post_srq_recv; operation is FT_OPERATION_RECV */
	FT_WORK_COMPLETED,	/* a work completion, polled */
	FT_WORK_EMPTY,		/* a completion queue was polled and had nothing; not told of each time */
	FT_WORK_REFUSED,	/* of what this thread posted last, the provider took the last requests not */
	FT_WORK_RESET,		/* a queue pair is put into RESET or INIT: nothing is outstanding there */
	FT_WORK_KINDS,
};

/* Why a completion has no latency; ft_work.outcome, set by who matches (ext/completions.h). */
enum ft_work_outcome {
	FT_MATCHED,
	FT_NOT_MATCHED,		/* a receive, or a completion with an error: none is looked for */
	FT_EARLIER,		/* posted before the observation began */
	FT_AMBIGUOUS,		/* may have been posted before, for its wr_id does not tell */
	FT_MISMATCHED,		/* no request is outstanding that it could complete */
	FT_LOST,		/* records were lost meanwhile */
	FT_OVERFLOWED,		/* more requests were outstanding than are remembered */
	FT_OUTCOMES,
};

struct ft_work {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u64 context;		/* user address of the struct ibv_context */
	__u64 queue;		/* of the completion queue: the send CQ of a post, the one polled */
	__u64 wr_id;
	__u64 bytes;		/* sum of the SGE lengths; of a completion byte_len */
	__u64 latency_ns;	/* 0 here: set by who matches */
	__u32 tgid;
	__u32 tid;
	__u32 qpn;		/* SRQ handle for a shared receive queue; 0 for FT_WORK_EMPTY */
	__u32 flags;		/* enum ibv_send_flags, or enum ibv_wc_flags */
	__u32 status;		/* enum ibv_wc_status; of FT_WORK_REFUSED an errno */
	__u32 vendor_error;
	__u32 count;		/* SGEs; of FT_WORK_REFUSED how many requests of those recorded */
	__u32 place;		/* in its chain, from 0; of FT_WORK_REFUSED how many of them are signaled */
	__u32 peer_qpn;		/* of a datagram; of a completion src_qp */
	__u8 kind;
	__u8 operation;		/* enum ibv_wr_opcode or FT_OPERATION_RECV; of a completion enum ibv_wc_opcode */
	__u8 qp_type;		/* enum ibv_qp_type; not of a completion */
	__u8 outcome;
};
_Static_assert(sizeof(struct ft_work) == 88, "ft_work has holes");

#endif
