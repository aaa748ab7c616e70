/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What passes between the BPF programs and the agent: fixed-size records and map entries.
 *
 * Included by probes/ and by ext/, so that there is one definition of every layout. All times are
 * CLOCK_MONOTONIC nanoseconds.
 */
#ifndef FABRICTAP_RECORDS_H
#define FABRICTAP_RECORDS_H

#include <linux/types.h>

#define FT_COMM_LEN 16		/* TASK_COMM_LEN */
#define FT_DEVICE_NAME_LEN 64	/* IB_DEVICE_NAME_MAX */
#define FT_GID_LEN 16

enum ft_record_kind {
	FT_QP_CREATED = 1,
	FT_QP_MODIFIED = 2,
	FT_QP_DESTROYED = 3,
	FT_QP_SNAPSHOT = 4,	/* attributes of a QP that existed before, caught while the kernel lists it */
	FT_MR_REGISTERED = 5,
	FT_MR_DEREGISTERED = 6,
	FT_CONTEXT_OPENED = 7,
	FT_CONTEXT_CLOSED = 8,
	FT_DEVICE_REMOVED = 9,
	FT_CM_EVENT = 10,
	FT_AH_CREATED = 11,
	FT_CM_SENT = 12,
	FT_PROCESS_EXITED = 13,	/* and all that it had made ends; only where that is not seen one by one */
	FT_QP_EXTENDED = 14,	/* software got hold of its ibv_qp_ex: posts may come by ibv_wr_* */
};

/* ft_cm_record.event of FT_CM_SENT */
#define FT_CM_REQUEST 0
#define FT_CM_REPLY 1

/* ft_record.flags */
#define FT_FLAG_EXITING 0x1	/* the current task is exiting */
#define FT_FLAG_KERNEL 0x2	/* the object belongs to a kernel user, not to a process */
#define FT_FLAG_GID 0x4		/* qp.gid is set */
#define FT_FLAG_ACCESS 0x8	/* mr.access and mr.address are set */
#define FT_FLAG_UVERBS 0x10	/* the device is known by number only: uverbs is set, not device */
#define FT_FLAG_GID_INDEX 0x20	/* qp.gid_index is set */

struct ft_qp {
	__u32 qpn;
	__u32 type;		/* enum ib_qp_type */
	__u32 state;		/* enum ib_qp_state, valid with IB_QP_STATE in mask */
	__u32 mask;		/* enum ib_qp_attr_mask: which of the following software set */
	__s32 result;		/* of ib_modify_qp: 0 or -errno */
	__u32 port;
	__u32 peer_qpn;
	__u32 rq_psn;
	__u32 sq_psn;
	__u32 path_mtu;		/* enum ib_mtu */
	__u8 gid[FT_GID_LEN];
	__u8 peer_gid[FT_GID_LEN];
	__u32 gid_index;	/* in the GID table of the port */
	__u32 padding;
};

struct ft_mr {
	__u64 address;
	__u64 length;
	__u64 iova;
	__u32 lkey;
	__u32 rkey;
	__u32 access;		/* enum ib_access_flags */
	__u32 padding;
};

struct ft_ah {
	__u64 id;		/* what ft_post_key.address_handle names */
	__u8 peer_gid[FT_GID_LEN];
};

/*
 * Functions of a struct ibv_qp_ex, from wr_atomic_cmp_swp to wr_abort in the order of its members, as bytes
 * from one of them: they lie in one library, and as addresses would not fit.
 */
#define FT_QP_EX_FUNCTIONS 20
#define FT_QP_EX_BASE 18	/* wr_complete */
#define FT_QP_EX_NONE (-0x7fffffff - 1)	/* this queue pair has none, or it lies elsewhere */

struct ft_qp_ex {
	__u32 qpn;		/* as in ft_qp */
	__u32 type;
	__u64 base;
	__s32 functions[FT_QP_EX_FUNCTIONS];
};

/* 224 bytes: the largest member plus who and where; one size, so that the reader needs no table of sizes. */
struct ft_record {
	__u64 time_ns;
	__u64 cgroup_id;
	__u32 kind;
	__u32 flags;
	__u32 tgid;
	__u32 tid;
	char comm[FT_COMM_LEN];
	union {
		char device[FT_DEVICE_NAME_LEN];
		__u32 uverbs;	/* dev_t of the character device */
	};
	union {
		struct ft_qp qp;
		struct ft_mr mr;
		struct ft_ah ah;
		struct ft_qp_ex qp_ex;
		__u8 reserved[112];
	};
};
_Static_assert(sizeof(struct ft_record) == 224, "ft_record has holes");

/* The connection manager's events, in a ring buffer of their own: counted by kind, event and status. */
struct ft_cm_record {
	__u64 time_ns;
	__u32 kind;		/* FT_CM_EVENT or FT_CM_SENT; the key begins here */
	__u32 event;		/* enum rdma_cm_event_type, or FT_CM_REQUEST and so on */
	__s32 status;		/* 0 or -errno, or a reason to reject; the key ends here */
	__u32 tgid;
	__u32 tid;
	__u32 qpn;		/* of what was sent; 0 where it is not told */
	char comm[FT_COMM_LEN];
	__u8 reserved[16];
};
_Static_assert(sizeof(struct ft_cm_record) == 64, "one cache line");

/* What a probe could not record; index into the per-CPU array of losses. */
enum ft_loss {
	FT_LOSS_BUFFER_FULL,	/* ring buffer full: a control record is gone */
	FT_LOSS_TABLE_FULL,	/* post table full: posts of a new queue pair are not counted */
	FT_LOSS_TABLE_BUSY,	/* the kernel refused the update for another reason */
	FT_LOSS_CHAIN,		/* chain of work requests longer than the walk */
	FT_LOSS_SGE,		/* scatter/gather list longer than the read */
	FT_LOSS_FAULT,		/* user memory was not readable: the rest of the post is not counted */
	FT_LOSS_HANDLE,		/* a command on an object that is older than the agent, or that the table forgot */
	FT_LOSS_BATCH,		/* ibv_wr_*: a long batch was not posted after its beginning had been counted */
	FT_LOSS_MAX,
};

#define FT_QUEUE_SEND 0
#define FT_QUEUE_RECEIVE 1
#define FT_QUEUE_SHARED_RECEIVE 2

#define FT_OPERATION_RECV 128	/* beyond enum ibv_wr_opcode */

/* One counter of posted work. address_handle and peer_qpn are 0 but for datagrams. */
struct ft_post_key {
	__u64 context;		/* user address of the struct ibv_context */
	__u64 address_handle;
	__u32 tgid;
	__u32 qpn;		/* SRQ handle for a shared receive queue */
	__u32 peer_qpn;
	__u8 operation;		/* enum ibv_wr_opcode, or FT_OPERATION_RECV */
	__u8 queue;
	__u8 qp_type;		/* enum ibv_qp_type */
	__u8 padding;
};
_Static_assert(sizeof(struct ft_post_key) == 32, "a key with holes never matches");

/*
 * Sizes are counted by the power of two at or above them, so that slot s >= 1 holds (2^(s-2), 2^(s-1)] bytes
 * and slot 0 the value 0: the buckets of an exponential histogram of scale 0. A message is at most 2^31 bytes
 * (max_msg_sz), which is slot 32; longer sums, which no provider accepts, go there too.
 */
#define FT_SIZE_SLOTS 33

/*
 * Kept once per CPU, so small: the size slots are 32 bits wide and wrap. The agent adds their differences,
 * which are right as long as it reads once in 2^32 posts.
 */
struct ft_post {
	__u64 operations;
	__u64 bytes;
	__u64 sges; /* less one for each operation: most have one, and each addition counts */
	__u64 inlined;
	__u64 signaled;
	__u32 sizes[FT_SIZE_SLOTS];
	__u32 padding;
};
_Static_assert(sizeof(struct ft_post) == 176, "ft_post must be a multiple of 8: per-CPU values are rounded up");

/* What the probes cost one process, see verbs_meter.h. */
struct ft_meter {
	__u64 hits;	/* charged until now */
	__u64 mark;	/* hits when the window began */
	__u64 began_ns;
	__u64 quota;	/* hits in one window */
	__u32 told;	/* the agent knows that the quota is used up */
	__u32 padding;
};
#define FT_METERS 4096	/* processes that post at a time */

/* A process has used up its quota. */
struct ft_exceeded {
	__u64 time_ns;
	__u32 tgid;
	__u32 padding;
};

struct ft_context_key {
	__u64 context;
	__u64 tgid;
};

struct ft_context {
	char device[FT_DEVICE_NAME_LEN];
};

#endif
