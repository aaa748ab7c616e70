// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The verbs data path: uprobes on a provider library's own post_send, post_recv and post_srq_recv, which
 * applications reach through ibv_context.ops without a system call or an exported symbol. The agent finds
 * them at run time and attaches by file and offset.
 *
 * Posts are counted per process, context, queue pair and opcode in a per-CPU map: when the function returns,
 * because only then it is known how many of a chain the provider took. The chain is still the caller's then.
 */
#include "verbs_posts.h"

#define MAX_CHAIN (1 << 14)	/* work requests in one post; the deepest send queues hold 32k */
#define MAX_CHAIN_BOUNDED 64	/* the same where the kernel has no bpf_loop (before 5.17) */
#define REQUESTS_OF_A_HIT 8	/* more requests of a chain that cost as much as stopping the process once */

struct gid {
	__u8 raw[FT_GID_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct gid);
} creating_ah SEC(".maps");

/* Counts one work request; returns the address of the next in its chain, 0 at the end. */
static __always_inline __u64 count_wr(struct ft_post_key *key, __u64 address)
{
	bool receive = key->queue != FT_QUEUE_SEND;
	struct message message = {};
	struct user_wr wr = {};
	struct ft_post *post;

	if (bpf_probe_read_user(&wr, receive ? USER_RECV_WR_SIZE : sizeof(wr), (void *)address)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	if (!receive) {
		key->operation = wr.opcode < FT_OPERATION_RECV ? wr.opcode : FT_OPERATION_RECV - 1;
		if (key->qp_type == USER_QPT_UD)
			to_peer(key, wr.ah, wr.remote_qpn);
		message.inlined = wr.send_flags & USER_SEND_INLINE;
		message.signaled = wr.send_flags & USER_SEND_SIGNALED;
	}
	post = post_of(key);
	if (!post)
		return wr.next;
	if (wr.num_sge == 1) {
		struct user_sge sge = {};

		if (bpf_probe_read_user(&sge, sizeof(sge), (void *)wr.sg_list))
			lose(FT_LOSS_FAULT);
		message.bytes = sge.length;
	} else if (wr.num_sge > 1) {
		message.bytes = sum_sges(wr.sg_list, wr.num_sge);
	}
	if (wr.num_sge > 0)
		message.sges = wr.num_sge;
	add_message(post, &message);
	return wr.next;
}

/* What the requests to a QP or SRQ, at a user address, are counted under; false where it cannot be read. */
static __always_inline bool key_of(struct ft_post_key *key, __u8 queue, __u64 address)
{
	key->tgid = bpf_get_current_pid_tgid() >> 32;
	key->queue = queue;
	if (queue == FT_QUEUE_SHARED_RECEIVE) {
		struct user_srq srq;

		if (bpf_probe_read_user(&srq, sizeof(srq), (void *)address))
			goto unreadable;
		key->context = srq.context;
		key->qpn = srq.handle;
	} else {
		struct user_qp qp;

		if (bpf_probe_read_user(&qp, sizeof(qp), (void *)address))
			goto unreadable;
		key->context = qp.context;
		key->qpn = qp.qp_num;
		key->qp_type = qp.qp_type;
	}
	if (queue != FT_QUEUE_SEND)
		key->operation = FT_OPERATION_RECV;
	return true;
unreadable:
	lose(FT_LOSS_FAULT);
	return false;
}

/* ``end`` is the first request that the provider refused, 0 if it took all. */
struct walk {
	struct ft_post_key key;
	__u64 next;
	__u64 end;
};

/* Not inlined: what the verifier learns in one step does not burden the next. */
static __noinline long step(__u32 index, struct walk *walk)
{
	walk->next = count_wr(&walk->key, walk->next);
	return !walk->next || walk->next == walk->end;
}

/* Where the chain of a call that returns now begins and ends; false where nothing is to be counted. */
static __always_inline bool taken(struct pt_regs *ctx, struct call *call, __u64 *end)
{
	*end = 0;
	if (!(int)PT_REGS_RC(ctx))
		return call->wr;
	if (bpf_probe_read_user(end, sizeof(*end), (void *)call->bad_wr)) {
		lose(FT_LOSS_FAULT);
		return false;
	}
	return call->wr && call->wr != *end;
}

static __always_inline int count_chain(__u8 queue, __u64 address, __u64 first, __u64 end)
{
	struct walk walk = { .next = first, .end = end };
	long more;

	if (!key_of(&walk.key, queue, address) || step(0, &walk))
		return 0;
	more = bpf_loop(MAX_CHAIN, step, &walk, 0);
	if (more >= REQUESTS_OF_A_HIT)
		meter((__u32)more / REQUESTS_OF_A_HIT);
	if (walk.next && walk.next != walk.end)
		lose(FT_LOSS_CHAIN);
	return 0;
}

static __always_inline int posted(struct pt_regs *ctx, __u8 queue)
{
	struct call call;
	__u64 end;

	if (!leave(queue, &call) || !taken(ctx, &call, &end))
		return 0;
	return count_chain(queue, call.queue, call.wr, end);
}

/* At the entry alone: all of the chain, whatever the provider takes of it. */
static __always_inline int offered(struct pt_regs *ctx, __u8 queue)
{
	__u64 first = PT_REGS_PARM2(ctx);

	meter(1);
	return first ? count_chain(queue, PT_REGS_PARM1(ctx), first, 0) : 0;
}

/* For the kernels without bpf_loop. Not static: the verifier looks at it once, not at each step of the loop. */
__noinline __u64 count_one(__u64 address, __u64 wr, __u32 queue)
{
	struct ft_post_key key = {};

	return key_of(&key, queue, address) ? count_wr(&key, wr) : 0;
}

static __always_inline int posted_bounded(struct pt_regs *ctx, __u8 queue)
{
	struct call call;
	__u64 next, end;

	if (!leave(queue, &call) || !taken(ctx, &call, &end))
		return 0;
	next = call.wr;
	for (int i = 0; i < MAX_CHAIN_BOUNDED; i++) {
		next = count_one(call.queue, next, queue);
		if (!next || next == end)
			return 0;
	}
	lose(FT_LOSS_CHAIN);
	return 0;
}

static __always_inline int offered_bounded(struct pt_regs *ctx, __u8 queue)
{
	__u64 next = PT_REGS_PARM2(ctx);

	meter(1);
	for (int i = 0; i < MAX_CHAIN_BOUNDED && next; i++)
		next = count_one(PT_REGS_PARM1(ctx), next, queue);
	if (next)
		lose(FT_LOSS_CHAIN);
	return 0;
}

SEC("uprobe")
int post_send(struct pt_regs *ctx)
{
	return enter(FT_QUEUE_SEND, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}

SEC("uprobe")
int post_recv(struct pt_regs *ctx)
{
	return enter(FT_QUEUE_RECEIVE, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}

SEC("uprobe")
int post_srq_recv(struct pt_regs *ctx)
{
	return enter(FT_QUEUE_SHARED_RECEIVE, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}

SEC("uretprobe")
int post_send_return(struct pt_regs *ctx)
{
	return posted(ctx, FT_QUEUE_SEND);
}

SEC("uretprobe")
int post_recv_return(struct pt_regs *ctx)
{
	return posted(ctx, FT_QUEUE_RECEIVE);
}

SEC("uretprobe")
int post_srq_recv_return(struct pt_regs *ctx)
{
	return posted(ctx, FT_QUEUE_SHARED_RECEIVE);
}

/* The same for kernels without bpf_loop. */

SEC("uretprobe")
int post_send_return_bounded(struct pt_regs *ctx)
{
	return posted_bounded(ctx, FT_QUEUE_SEND);
}

SEC("uretprobe")
int post_recv_return_bounded(struct pt_regs *ctx)
{
	return posted_bounded(ctx, FT_QUEUE_RECEIVE);
}

SEC("uretprobe")
int post_srq_recv_return_bounded(struct pt_regs *ctx)
{
	return posted_bounded(ctx, FT_QUEUE_SHARED_RECEIVE);
}

/* The same at the entry alone, which costs half. */

SEC("uprobe")
int post_send_entry(struct pt_regs *ctx)
{
	return offered(ctx, FT_QUEUE_SEND);
}

SEC("uprobe")
int post_recv_entry(struct pt_regs *ctx)
{
	return offered(ctx, FT_QUEUE_RECEIVE);
}

SEC("uprobe")
int post_srq_recv_entry(struct pt_regs *ctx)
{
	return offered(ctx, FT_QUEUE_SHARED_RECEIVE);
}

SEC("uprobe")
int post_send_entry_bounded(struct pt_regs *ctx)
{
	return offered_bounded(ctx, FT_QUEUE_SEND);
}

SEC("uprobe")
int post_recv_entry_bounded(struct pt_regs *ctx)
{
	return offered_bounded(ctx, FT_QUEUE_RECEIVE);
}

SEC("uprobe")
int post_srq_recv_entry_bounded(struct pt_regs *ctx)
{
	return offered_bounded(ctx, FT_QUEUE_SHARED_RECEIVE);
}

/*
 * A datagram's peer stands in its address handle. The id names one making of the handle, so that a handle
 * freed and made again at the same address is another one.
 */
SEC("uprobe")
int create_ah(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct user_ah_attr attr;
	struct gid gid;

	meter(1);
	if (bpf_probe_read_user(&attr, sizeof(attr), (void *)PT_REGS_PARM2(ctx))) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	if (!attr.is_global) {
		bpf_map_delete_elem(&creating_ah, &thread);
		return 0;
	}
	__builtin_memcpy(&gid, attr.dgid, sizeof(gid));
	if (bpf_map_update_elem(&creating_ah, &thread, &gid, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

SEC("uretprobe")
int create_ah_return(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct ft_context_key key = { .context = PT_REGS_RC(ctx), .tgid = thread >> 32 };
	struct gid *gid = bpf_map_lookup_elem(&creating_ah, &thread);
	struct ft_record *record;
	__u64 id;

	if (key.context) {
		record = gid ? reserve(FT_AH_CREATED) : NULL;
		if (record) {
			/* Two CPUs may read the same nanosecond. */
			id = record->time_ns ^ (__u64)bpf_get_smp_processor_id() << 52;
			record->ah.id = id;
			__builtin_memcpy(record->ah.peer_gid, gid, sizeof(record->ah.peer_gid));
			bpf_ringbuf_submit(record, 0);
			bpf_map_update_elem(&address_handles, &key, &id, BPF_ANY);
		} else {
			/* Whose peer is not known must not pass for the handle that stood here before. */
			bpf_map_delete_elem(&address_handles, &key);
		}
	}
	if (gid)
		bpf_map_delete_elem(&creating_ah, &thread);
	return 0;
}

#include "verbs_extended.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
