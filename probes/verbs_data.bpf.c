// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The verbs data path: uprobes on a provider library's own post_send, post_recv and post_srq_recv, which
 * applications reach through ibv_context.ops without a system call or an exported symbol. The agent finds
 * them at run time and attaches by file and offset.
 *
 * Posts are counted per process, context, queue pair and opcode in a per-CPU map. A uprobe may be preempted
 * by another one on its CPU, so counters are added atomically and no scratch map is shared.
 */
#include "common.h"
#include "verbs_abi.h"

#define MAX_CHAIN (1 << 14)	/* work requests in one post; the deepest send queues hold 32k */
#define MAX_CHAIN_BOUNDED 64	/* the same where the kernel has no bpf_loop (before 5.17) */
#define SGE_BATCH 4	/* more would not fit the 512 bytes of stack */
#define MAX_SGE 64		/* providers allow up to 32 */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384); /* set from the configuration before load */
	__type(key, struct ft_post_key);
	__type(value, struct ft_post);
} posts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct ft_context_key);
	__type(value, struct ft_context);
} contexts SEC(".maps");

/* Address handles: (process, user address of struct ibv_ah) -> id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct ft_context_key);
	__type(value, __u64);
} address_handles SEC(".maps");

struct gid {
	__u8 raw[FT_GID_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct gid);
} creating_ah SEC(".maps");

static const struct ft_post empty_post = {};

/* The slot of ft_post.sizes for a message of size bytes. */
static __always_inline __u32 size_slot(__u64 size)
{
	__u64 below = size - 1;
	__u32 log = 0;

	if (!size)
		return 0;
	if (size > 1ULL << 31)
		return FT_SIZE_SLOTS - 1;
	if (below >> 16) {
		below >>= 16;
		log += 16;
	}
	if (below >> 8) {
		below >>= 8;
		log += 8;
	}
	if (below >> 4) {
		below >>= 4;
		log += 4;
	}
	if (below >> 2) {
		below >>= 2;
		log += 2;
	}
	if (below >> 1) {
		below >>= 1;
		log += 1;
	}
	return 1 + log + (__u32)below;
}

/* First post of a key: makes its counter, and remembers which device its context stands for. */
static __always_inline struct ft_post *new_post(const struct ft_post_key *key)
{
	struct ft_context_key context_key = { .context = key->context, .tgid = key->tgid };
	struct ft_context context = {};
	__u64 device = 0;
	int error;

	if (bpf_probe_read_user(&device, sizeof(device), (void *)(key->context + USER_CONTEXT_DEVICE)) ||
	    bpf_probe_read_user_str(context.device, sizeof(context.device), (void *)(device + USER_DEVICE_NAME)) < 0)
		lose(FT_LOSS_FAULT);
	else
		bpf_map_update_elem(&contexts, &context_key, &context, BPF_ANY);

	error = bpf_map_update_elem(&posts, key, &empty_post, BPF_NOEXIST);
	if (error && error != -17 /* EEXIST: another CPU was first */) {
		lose(error == -7 /* E2BIG */ ? FT_LOSS_TABLE_FULL : FT_LOSS_TABLE_BUSY);
		return NULL;
	}
	return bpf_map_lookup_elem(&posts, key);
}

/* Sum of the lengths of count elements. Not inlined: it needs a frame of its own. */
static __noinline __u64 sum_sges(__u64 list, __u32 count)
{
	__u64 sum = 0;

	if (count > MAX_SGE) {
		lose(FT_LOSS_SGE);
		count = MAX_SGE;
	}
	for (int done = 0; done < MAX_SGE && done < count; done += SGE_BATCH) {
		struct user_sge sges[SGE_BATCH] = {};
		__u64 size = (__u64)(count - done) * sizeof(sges[0]);

		asm volatile("" : "+r"(size)); /* or clang proves the bound in a way that the verifier cannot */
		if (size > sizeof(sges))
			size = sizeof(sges);
		if (bpf_probe_read_user(sges, size, (void *)(list + done * sizeof(sges[0])))) {
			lose(FT_LOSS_FAULT);
			break;
		}
		for (int i = 0; i < SGE_BATCH; i++)
			sum += sges[i].length;
	}
	return sum;
}

/* Counts one work request; returns the address of the next in its chain, 0 at the end. */
static __always_inline __u64 count_wr(struct ft_post_key *key, __u64 address)
{
	bool receive = key->queue != FT_QUEUE_SEND;
	struct user_wr wr = {};
	struct ft_post *post;
	__u64 bytes = 0;
	__u64 slot;

	if (bpf_probe_read_user(&wr, receive ? USER_RECV_WR_SIZE : sizeof(wr), (void *)address)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	if (!receive) {
		key->operation = wr.opcode < FT_OPERATION_RECV ? wr.opcode : FT_OPERATION_RECV - 1;
		if (key->qp_type == USER_QPT_UD) {
			struct ft_context_key handle = { .context = wr.ah, .tgid = key->tgid };
			__u64 *id = bpf_map_lookup_elem(&address_handles, &handle);

			key->address_handle = id ? *id : 0;
			key->peer_qpn = wr.remote_qpn;
		}
	}
	post = bpf_map_lookup_elem(&posts, key);
	if (!post) {
		post = new_post(key);
		if (!post)
			return wr.next;
	}
	if (wr.num_sge == 1) {
		struct user_sge sge = {};

		if (bpf_probe_read_user(&sge, sizeof(sge), (void *)wr.sg_list))
			lose(FT_LOSS_FAULT);
		bytes = sge.length;
	} else if (wr.num_sge > 1) {
		bytes = sum_sges(wr.sg_list, wr.num_sge);
	}
	__sync_fetch_and_add(&post->bytes, bytes);
	if (wr.num_sge > 0)
		__sync_fetch_and_add(&post->sges, (__u32)wr.num_sge);
	if (!receive && wr.send_flags & USER_SEND_INLINE)
		__sync_fetch_and_add(&post->inlined, 1);
	if (!receive && wr.send_flags & USER_SEND_SIGNALED)
		__sync_fetch_and_add(&post->signaled, 1);
	slot = size_slot(bytes);
	asm volatile("" : "+r"(slot)); /* the verifier of 6.1 wants the bound on the register that is used */
	if (slot < FT_SIZE_SLOTS)
		__sync_fetch_and_add(&post->sizes[slot], 1);
	/* Last: a reader that sees the same number again has missed nothing of what is above. */
	__sync_fetch_and_add(&post->operations, 1);
	return wr.next;
}

struct walk {
	struct ft_post_key key;
	__u64 next;
};

static long step(__u32 index, struct walk *walk)
{
	walk->next = count_wr(&walk->key, walk->next);
	return !walk->next;
}

static __always_inline int count_chain(struct walk *walk, bool loop)
{
	if (!walk->next)
		return 0;
	walk->next = count_wr(&walk->key, walk->next);
	if (!walk->next)
		return 0;
	if (loop) {
		bpf_loop(MAX_CHAIN, step, walk, 0);
	} else {
		for (int i = 1; i < MAX_CHAIN_BOUNDED && walk->next; i++)
			step(i, walk);
	}
	if (walk->next)
		lose(FT_LOSS_CHAIN);
	return 0;
}

static __always_inline int queue_posted(struct pt_regs *ctx, __u8 queue, bool loop)
{
	struct walk walk = { .next = PT_REGS_PARM2(ctx) };
	struct user_qp qp;

	if (bpf_probe_read_user(&qp, sizeof(qp), (void *)PT_REGS_PARM1(ctx))) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	walk.key.tgid = bpf_get_current_pid_tgid() >> 32;
	walk.key.context = qp.context;
	walk.key.qpn = qp.qp_num;
	walk.key.qp_type = qp.qp_type;
	walk.key.queue = queue;
	if (queue != FT_QUEUE_SEND)
		walk.key.operation = FT_OPERATION_RECV;
	return count_chain(&walk, loop);
}

static __always_inline int shared_queue_posted(struct pt_regs *ctx, bool loop)
{
	struct walk walk = { .next = PT_REGS_PARM2(ctx) };
	struct user_srq srq;

	if (bpf_probe_read_user(&srq, sizeof(srq), (void *)PT_REGS_PARM1(ctx))) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	walk.key.tgid = bpf_get_current_pid_tgid() >> 32;
	walk.key.context = srq.context;
	walk.key.qpn = srq.handle;
	walk.key.queue = FT_QUEUE_SHARED_RECEIVE;
	walk.key.operation = FT_OPERATION_RECV;
	return count_chain(&walk, loop);
}

SEC("uprobe")
int post_send(struct pt_regs *ctx)
{
	return queue_posted(ctx, FT_QUEUE_SEND, true);
}

SEC("uprobe")
int post_recv(struct pt_regs *ctx)
{
	return queue_posted(ctx, FT_QUEUE_RECEIVE, true);
}

SEC("uprobe")
int post_srq_recv(struct pt_regs *ctx)
{
	return shared_queue_posted(ctx, true);
}

/* The same for kernels without bpf_loop. */

SEC("uprobe")
int post_send_bounded(struct pt_regs *ctx)
{
	return queue_posted(ctx, FT_QUEUE_SEND, false);
}

SEC("uprobe")
int post_recv_bounded(struct pt_regs *ctx)
{
	return queue_posted(ctx, FT_QUEUE_RECEIVE, false);
}

SEC("uprobe")
int post_srq_recv_bounded(struct pt_regs *ctx)
{
	return shared_queue_posted(ctx, false);
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

/*
 * ibv_qp_to_qp_ex hands out the function pointers of the extended API, whose posts are not counted: the
 * queue pair must not pass for one that is seen in full. What it returns begins with the struct ibv_qp.
 */
SEC("uretprobe")
int qp_to_qp_ex(struct pt_regs *ctx)
{
	struct ft_record *record;
	struct user_qp qp;
	__u64 device = 0;

	if (!PT_REGS_RC(ctx))
		return 0;
	if (bpf_probe_read_user(&qp, sizeof(qp), (void *)PT_REGS_RC(ctx)) ||
	    bpf_probe_read_user(&device, sizeof(device), (void *)qp.context)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	record = reserve(FT_QP_EXTENDED);
	if (!record)
		return 0;
	record->qp.qpn = qp.qp_num;
	record->qp.type = qp.qp_type;
	bpf_probe_read_user_str(record->device, sizeof(record->device), (void *)(device + USER_DEVICE_NAME));
	bpf_ringbuf_submit(record, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
