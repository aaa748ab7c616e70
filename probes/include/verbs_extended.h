/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The extended API (ibv_wr_*): a message is begun by a builder (wr_send, wr_rdma_write ...), given its data by
 * a setter (wr_set_sge ...), and posted with the others since wr_start by wr_complete, if that succeeds;
 * wr_abort, and a wr_complete that fails, post none of them. All are functions of the provider behind
 * pointers in struct ibv_qp_ex.
 *
 * So what is built is kept per queue pair and thread, and counted when wr_complete returns. The thread is part
 * of the key because a provider's lock, taken in wr_start, is released within wr_complete: another thread may
 * have begun before that returns. wr_start is not probed: nothing is kept before it, and it tells nothing.
 */
#ifndef FABRICTAP_VERBS_EXTENDED_H
#define FABRICTAP_VERBS_EXTENDED_H

#include "verbs_posts.h"

#define MAX_BUILT 32	/* messages between wr_start and wr_complete; a power of two. More are counted early */

struct built {
	__u64 bytes;
	__u64 ah;
	__u32 peer_qpn;
	__u32 sges;
	__u8 operation;
	__u8 inlined;
	__u8 signaled;
	__u8 padding[5];
};

/* The last MAX_BUILT of ``count`` messages; those before are in the counters already. */
struct batch {
	__u32 count;
	__u32 padding;
	struct built messages[MAX_BUILT];
};

struct ft_batch_key {
	__u64 qp_ex;
	__u64 thread;
};

/* Live from the first builder to wr_complete: as many as threads that post at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct ft_batch_key);
	__type(value, struct batch);
} batches SEC(".maps");

static const struct batch empty_batch = {};

static __always_inline struct ft_batch_key batch_of(__u64 qp_ex)
{
	return (struct ft_batch_key){ .qp_ex = qp_ex, .thread = bpf_get_current_pid_tgid() };
}

/* The last message of the batch that this call belongs to; NULL where its beginning was not seen. */
static __always_inline struct built *current_message(struct pt_regs *ctx)
{
	struct ft_batch_key key = batch_of(PT_REGS_PARM1(ctx));
	struct batch *batch = bpf_map_lookup_elem(&batches, &key);
	__u32 last;

	if (!batch || !batch->count)
		return NULL;
	last = batch->count - 1;
	return &batch->messages[last & (MAX_BUILT - 1)];
}

/*
 * Counts one message of the batch of a queue pair. Not static: the verifier looks at a global function once, and
 * not at each of the calls of a loop.
 */
__noinline int count_built(__u64 address, __u32 index)
{
	struct ft_batch_key of = batch_of(address);
	struct batch *batch = bpf_map_lookup_elem(&batches, &of);
	struct ft_post_key key = {};
	struct message message = {};
	struct built *built;
	struct ft_post *post;
	struct user_qp qp;

	if (!batch)
		return 0;
	built = &batch->messages[index & (MAX_BUILT - 1)];
	if (bpf_probe_read_user(&qp, sizeof(qp), (void *)address)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	key.tgid = of.thread >> 32;
	key.context = qp.context;
	key.qpn = qp.qp_num;
	key.qp_type = qp.qp_type;
	key.queue = FT_QUEUE_SEND;
	key.operation = built->operation;
	if (key.qp_type == USER_QPT_UD)
		to_peer(&key, built->ah, built->peer_qpn);
	message.bytes = built->bytes;
	message.sges = built->sges;
	message.inlined = built->inlined;
	message.signaled = built->signaled;
	post = post_of(&key);
	if (post)
		add_message(post, &message);
	return 0;
}

static __always_inline int build(struct pt_regs *ctx, __u8 operation)
{
	struct ft_batch_key key = batch_of(PT_REGS_PARM1(ctx));
	struct batch *batch = bpf_map_lookup_elem(&batches, &key);
	struct built *built;
	__u32 flags = 0;
	__u32 next;

	meter(2); /* a setter follows */
	if (!batch) {
		if (bpf_map_update_elem(&batches, &key, &empty_batch, BPF_NOEXIST)) {
			lose(FT_LOSS_TABLE_FULL);
			return 0;
		}
		batch = bpf_map_lookup_elem(&batches, &key);
		if (!batch)
			return 0;
	}
	if (batch->count >= MAX_BUILT) /* the oldest makes room; it has all its data */
		count_built(key.qp_ex, batch->count);
	if (bpf_probe_read_user(&flags, sizeof(flags), (void *)(key.qp_ex + USER_QP_EX_WR_FLAGS)))
		lose(FT_LOSS_FAULT);
	next = batch->count;
	batch->count = next + 1;
	next &= MAX_BUILT - 1;
	built = &batch->messages[next];
	__builtin_memset(built, 0, sizeof(*built));
	built->operation = operation;
	built->signaled = !!(flags & USER_SEND_SIGNALED);
	return 0;
}

/* Nothing of the batch was posted. */
static __always_inline int discard(const struct ft_batch_key *key)
{
	struct batch *batch = bpf_map_lookup_elem(&batches, key);

	if (!batch)
		return 0;
	if (batch->count > MAX_BUILT)
		lose(FT_LOSS_BATCH);
	bpf_map_delete_elem(&batches, key);
	return 0;
}

/* enum ibv_wr_opcode */
#define BUILDER(name, operation)       \
	SEC("uprobe")                  \
	int name(struct pt_regs *ctx)  \
	{                              \
		return build(ctx, operation); \
	}

BUILDER(wr_rdma_write, 0)
BUILDER(wr_rdma_write_imm, 1)
BUILDER(wr_send, 2)
BUILDER(wr_send_imm, 3)
BUILDER(wr_rdma_read, 4)
BUILDER(wr_atomic_cmp_swp, 5)
BUILDER(wr_atomic_fetch_add, 6)
BUILDER(wr_local_inv, 7)
BUILDER(wr_bind_mw, 8)
BUILDER(wr_send_inv, 9)
BUILDER(wr_send_tso, 10)

SEC("uprobe")
int wr_set_ud_addr(struct pt_regs *ctx)
{
	struct built *built = current_message(ctx);

	if (built) {
		built->ah = PT_REGS_PARM2(ctx);
		built->peer_qpn = (__u32)PT_REGS_PARM3(ctx);
	}
	return 0;
}

SEC("uprobe")
int wr_set_sge(struct pt_regs *ctx)
{
	struct built *built = current_message(ctx);

	if (built) {
		built->bytes += (__u32)PT_REGS_PARM4(ctx);
		built->sges += 1;
	}
	return 0;
}

SEC("uprobe")
int wr_set_sge_list(struct pt_regs *ctx)
{
	struct built *built = current_message(ctx);
	__u32 count = (__u32)PT_REGS_PARM2(ctx);

	if (built) {
		built->bytes += sum_sges(PT_REGS_PARM3(ctx), count);
		built->sges += count;
	}
	return 0;
}

SEC("uprobe")
int wr_set_inline_data(struct pt_regs *ctx)
{
	struct built *built = current_message(ctx);

	if (built) {
		built->bytes += PT_REGS_PARM3(ctx);
		built->sges += 1;
		built->inlined = 1;
	}
	return 0;
}

SEC("uprobe")
int wr_set_inline_data_list(struct pt_regs *ctx)
{
	struct built *built = current_message(ctx);
	__u64 count = PT_REGS_PARM2(ctx);
	__u64 list = PT_REGS_PARM3(ctx);

	if (!built)
		return 0;
	built->sges += count;
	built->inlined = 1;
	if (count > MAX_SGE) {
		lose(FT_LOSS_SGE);
		count = MAX_SGE;
	}
	for (int i = 0; i < MAX_SGE && i < count; i++) {
		struct user_data_buf buffer = {};

		if (bpf_probe_read_user(&buffer, sizeof(buffer), (void *)(list + i * sizeof(buffer)))) {
			lose(FT_LOSS_FAULT);
			break;
		}
		built->bytes += buffer.length;
	}
	return 0;
}

SEC("uprobe")
int wr_complete(struct pt_regs *ctx)
{
	return enter(CALL_COMPLETE, PT_REGS_PARM1(ctx), 0, 0);
}

static __always_inline int completed(__u64 address)
{
	struct ft_batch_key key = batch_of(address);
	struct batch *batch = bpf_map_lookup_elem(&batches, &key);
	__u32 count;

	if (!batch)
		return 0;
	count = batch->count < MAX_BUILT ? batch->count : MAX_BUILT;
	for (int i = 0; i < MAX_BUILT && i < count; i++)
		count_built(address, i);
	bpf_map_delete_elem(&batches, &key);
	return 0;
}

SEC("uretprobe")
int wr_complete_return(struct pt_regs *ctx)
{
	struct ft_batch_key key;
	struct call call;

	if (!leave(CALL_COMPLETE, &call))
		return 0;
	if (!(int)PT_REGS_RC(ctx))
		return completed(call.queue);
	key = batch_of(call.queue);
	return discard(&key);
}

/* Where the kernel's return probes are not safe. */
SEC("uprobe")
int wr_complete_entry(struct pt_regs *ctx)
{
	meter(1);
	return completed(PT_REGS_PARM1(ctx));
}

SEC("uprobe")
int wr_abort(struct pt_regs *ctx)
{
	struct ft_batch_key key = batch_of(PT_REGS_PARM1(ctx));

	return discard(&key);
}

/*
 * ibv_qp_to_qp_ex hands out the struct ibv_qp_ex, and with it the functions: the agent is told where they
 * are, and that this queue pair may be posted to by them. What it returns begins with the struct ibv_qp.
 */
static __always_inline int handed_out(__u64 address)
{
	__u64 functions[FT_QP_EX_FUNCTIONS];
	struct ft_record *record;
	struct user_qp qp;
	__u64 device = 0;
	__u64 base;

	if (!address)
		return 0;
	if (bpf_probe_read_user(&qp, sizeof(qp), (void *)address) ||
	    bpf_probe_read_user(&device, sizeof(device), (void *)qp.context) ||
	    bpf_probe_read_user(functions, sizeof(functions), (void *)(address + USER_QP_EX_FUNCTIONS))) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	record = reserve(FT_QP_EXTENDED);
	if (!record)
		return 0;
	base = functions[FT_QP_EX_BASE];
	record->qp_ex.qpn = qp.qp_num;
	record->qp_ex.type = qp.qp_type;
	record->qp_ex.base = base;
	for (int i = 0; i < FT_QP_EX_FUNCTIONS; i++) {
		__s64 distance = functions[i] - base;

		if (!functions[i] || distance != (__s32)distance)
			distance = FT_QP_EX_NONE;
		record->qp_ex.functions[i] = distance;
	}
	bpf_probe_read_user_str(record->device, sizeof(record->device), (void *)(device + USER_DEVICE_NAME));
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("uretprobe")
int qp_to_qp_ex(struct pt_regs *ctx)
{
	return handed_out(PT_REGS_RC(ctx));
}

/*
 * Where the kernel's return probes are not safe: the result, if there is one, is the argument. If there is none
 * the agent sees that the functions are none.
 */
SEC("uprobe")
int qp_to_qp_ex_entry(struct pt_regs *ctx)
{
	return handed_out(PT_REGS_PARM1(ctx));
}

#endif
