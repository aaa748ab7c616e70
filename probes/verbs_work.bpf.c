// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Each work request and each completion by itself: uprobes on a provider library's post_send, ibv_wr_*, and
 * poll_cq. Attached for a moment only, in the agent's windows and by `fabrictap trace`: applications call
 * poll_cq in busy loops, where a probe costs more than the call.
 *
 * A request is recorded on entry, so that its record stands before that of its completion, whichever thread
 * polls it; what the provider then refuses is taken back on return. Completions are known on return only.
 */
#include "verbs_sges.h"
#include "work.h"

/* 0: every process. */
const volatile __u32 only_tgid = 0;
/*
 * Whether requests without IBV_SEND_SIGNALED are told of too where others have it, which have no completion
 * then. Of a queue pair that has only such requests they may have (sq_sig_all), so they are in any case.
 */
const volatile __u32 tell_all = 0;

#define MAX_CHAIN 512		/* requests of one post, completions of one poll */
#define EMPTY_INTERVAL_NS 1000000	/* of one queue; of others of the same thread */
#define OTHER_INTERVAL_NS 100000
#define NO_WAKEUP 1		/* BPF_RB_NO_WAKEUP: the reader comes by itself */

struct thread_key {
	__u64 thread;
	__u64 object;	/* FT_WORK_* of a call; address of a struct ibv_qp_ex */
};

struct call {
	__u64 queue;	/* 0 when it has returned */
	__u64 list;	/* work requests, or where completions are put */
	__u64 bad_wr;
	__u64 empty_ns;	/* when it was last told that there was nothing, and in which queue */
	__u64 empty;
};

/* Kept by thread and not deleted: those of threads that have ended make room by themselves. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct thread_key);
	__type(value, struct call);
} work_calls SEC(".maps");

/* The message that ibv_wr_* builds, and what of its batch is recorded already. */
struct building {
	__u64 wr_id;
	__u64 bytes;
	__u32 flags;
	__u32 sges;
	__u32 peer_qpn;
	__u32 count;
	__u32 signaled;
	__u8 operation;
	__u8 live;
	__u8 padding[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct thread_key);
	__type(value, struct building);
} building SEC(".maps");

struct pair_key {
	__u64 context;
	__u32 tgid;
	__u32 qpn;
};

/* Queue pairs that were seen to ask for some completions, so not for all. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct pair_key);
	__type(value, __u8);
} selective SEC(".maps");

/* How many calls were probed, so that who attached them knows what they cost. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

static __always_inline bool wanted(void)
{
	__u32 first = 0;
	__u64 *count = bpf_map_lookup_elem(&hits, &first);

	if (count)
		__sync_fetch_and_add(count, 1);
	return !only_tgid || bpf_get_current_pid_tgid() >> 32 == only_tgid;
}

static __always_inline struct ft_work *tell(__u8 kind)
{
	struct ft_work *work = bpf_ringbuf_reserve(&records, sizeof(*work), 0);
	__u64 id = bpf_get_current_pid_tgid();

	if (!work) {
		lose(FT_LOSS_BUFFER_FULL);
		return NULL;
	}
	__builtin_memset(work, 0, sizeof(*work));
	work->time_ns = bpf_ktime_get_ns();
	work->tgid = id >> 32;
	work->tid = (__u32)id;
	work->kind = kind;
	return work;
}

static __always_inline struct thread_key of_thread(__u64 object)
{
	return (struct thread_key){ .thread = bpf_get_current_pid_tgid(), .object = object };
}

static __always_inline void enter(__u64 function, __u64 queue, __u64 list, __u64 bad_wr)
{
	struct thread_key key = of_thread(function);
	struct call *call = bpf_map_lookup_elem(&work_calls, &key);
	struct call made = { .queue = queue, .list = list, .bad_wr = bad_wr };

	if (call) {
		call->queue = queue;
		call->list = list;
		call->bad_wr = bad_wr;
	} else if (bpf_map_update_elem(&work_calls, &key, &made, BPF_ANY)) {
		lose(FT_LOSS_TABLE_FULL);
	}
}

/* The call that returns now; NULL where its entry was not seen. The caller sets queue to 0. */
static __always_inline struct call *entered(__u64 function)
{
	struct thread_key key = of_thread(function);
	struct call *call = bpf_map_lookup_elem(&work_calls, &key);

	return call && call->queue ? call : NULL;
}

/* Whether a request without IBV_SEND_SIGNALED is left out; remembers who has some with it. */
static __always_inline bool hidden(const struct user_qp *qp, __u32 flags)
{
	struct pair_key key = { .context = qp->context, .qpn = qp->qp_num };
	__u8 yes = 1;

	if (tell_all)
		return false;
	key.tgid = bpf_get_current_pid_tgid() >> 32;
	if (!(flags & USER_SEND_SIGNALED))
		return bpf_map_lookup_elem(&selective, &key);
	if (!bpf_map_lookup_elem(&selective, &key))
		bpf_map_update_elem(&selective, &key, &yes, BPF_ANY);
	return false;
}

/*
 * Records one request of a chain; returns the address of the next, 0 at the end. Not static: the verifier looks
 * at a global function once, and not at each step of the loop.
 */
__noinline __u64 record_request(__u64 queue, __u64 address, __u32 place)
{
	struct user_wr wr = {};
	struct user_qp qp = {};
	struct ft_work *work;
	__u64 bytes = 0;

	if (bpf_probe_read_user(&wr, sizeof(wr), (void *)address) ||
	    bpf_probe_read_user(&qp, sizeof(qp), (void *)queue)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	if (hidden(&qp, wr.send_flags))
		return wr.next;
	if (wr.num_sge > 0)
		bytes = sum_sges(wr.sg_list, wr.num_sge);
	work = tell(FT_WORK_SENT);
	if (!work)
		return wr.next;
	work->context = qp.context;
	work->wr_id = wr.wr_id;
	work->bytes = bytes;
	work->count = wr.num_sge > 0 ? wr.num_sge : 0;
	work->place = place;
	work->queue = qp.send_cq;
	work->qpn = qp.qp_num;
	work->qp_type = qp.qp_type;
	work->flags = wr.send_flags;
	work->operation = wr.opcode < FT_OPERATION_RECV ? wr.opcode : FT_OPERATION_RECV - 1;
	if (qp.qp_type == USER_QPT_UD)
		work->peer_qpn = wr.remote_qpn;
	bpf_ringbuf_submit(work, NO_WAKEUP);
	return wr.next;
}

/* The same of a receive queue; what is told is its number. */
__noinline __u64 record_receive(__u64 queue, __u64 address, __u32 shared, __u32 place)
{
	struct user_wr wr = {};
	struct ft_work *work;
	__u64 context = 0, bytes = 0;
	__u32 number = 0, type = 0;

	if (bpf_probe_read_user(&wr, USER_RECV_WR_SIZE, (void *)address)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	if (shared) {
		struct user_srq srq = {};

		bpf_probe_read_user(&srq, sizeof(srq), (void *)queue);
		context = srq.context;
		number = srq.handle;
	} else {
		struct user_qp qp = {};

		bpf_probe_read_user(&qp, sizeof(qp), (void *)queue);
		context = qp.context;
		number = qp.qp_num;
		type = qp.qp_type;
	}
	if (wr.num_sge > 0)
		bytes = sum_sges(wr.sg_list, wr.num_sge);
	work = tell(FT_WORK_RECEIVE);
	if (!work)
		return wr.next;
	work->context = context;
	work->wr_id = wr.wr_id;
	work->bytes = bytes;
	work->count = wr.num_sge > 0 ? wr.num_sge : 0;
	work->place = place;
	work->qpn = number;
	work->qp_type = type;
	work->status = shared;
	work->operation = FT_OPERATION_RECV;
	bpf_ringbuf_submit(work, NO_WAKEUP);
	return wr.next;
}

SEC("uprobe")
int work_post_send(struct pt_regs *ctx)
{
	__u64 queue = PT_REGS_PARM1(ctx), next = PT_REGS_PARM2(ctx);

	if (!wanted())
		return 0;
	enter(FT_WORK_SENT, queue, next, PT_REGS_PARM3(ctx));
	for (int i = 0; i < MAX_CHAIN && next; i++)
		next = record_request(queue, next, i);
	if (next)
		lose(FT_LOSS_CHAIN);
	return 0;
}

static __always_inline int receives(struct pt_regs *ctx, __u32 shared)
{
	__u64 queue = PT_REGS_PARM1(ctx), next = PT_REGS_PARM2(ctx);

	if (!wanted())
		return 0;
	for (int i = 0; i < MAX_CHAIN && next; i++)
		next = record_receive(queue, next, shared, i);
	if (next)
		lose(FT_LOSS_CHAIN);
	return 0;
}

SEC("uprobe")
int work_post_recv(struct pt_regs *ctx)
{
	return receives(ctx, 0);
}

SEC("uprobe")
int work_post_srq_recv(struct pt_regs *ctx)
{
	return receives(ctx, 1);
}

static __always_inline void refuse(__u64 queue, __u32 error, __u32 count, __u32 signaled)
{
	struct user_qp qp = {};
	struct ft_work *work;

	if (!count || bpf_probe_read_user(&qp, sizeof(qp), (void *)queue))
		return;
	work = tell(FT_WORK_REFUSED);
	if (!work)
		return;
	work->context = qp.context;
	work->queue = qp.send_cq;
	work->qpn = qp.qp_num;
	work->qp_type = qp.qp_type;
	work->status = error;
	work->count = count;
	work->place = signaled;
	bpf_ringbuf_submit(work, NO_WAKEUP);
}

/* (next << 1) | signaled of a request. 0 at the end of the chain, unless it is signaled. */
__noinline __u64 look_at(__u64 address)
{
	struct user_wr wr = {};

	if (bpf_probe_read_user(&wr, sizeof(wr), (void *)address))
		return 0;
	return wr.next << 1 | !!(wr.send_flags & USER_SEND_SIGNALED);
}

SEC("uretprobe")
int work_post_send_return(struct pt_regs *ctx)
{
	struct call *call = entered(FT_WORK_SENT);
	__u32 count = 0, signaled = 0;
	__u64 queue, bad_wr, next = 0;
	int error = PT_REGS_RC(ctx);

	if (!call)
		return 0;
	queue = call->queue;
	bad_wr = call->bad_wr;
	call->queue = 0;
	if (!error)
		return 0;
	if (bpf_probe_read_user(&next, sizeof(next), (void *)bad_wr)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	for (int i = 0; i < MAX_CHAIN && next; i++) {
		__u64 seen = look_at(next);

		count++;
		signaled += seen & 1;
		next = seen >> 1;
	}
	refuse(queue, error < 0 ? -error : error, count, signaled);
	return 0;
}

/* --- the extended API; see verbs_extended.h for how it works --------------------------------------- */

/* Records the message that was built last. */
static __always_inline void finish(__u64 address, struct building *building)
{
	struct ft_work *work;
	struct user_qp qp;

	if (!building->live)
		return;
	building->live = 0;
	if (bpf_probe_read_user(&qp, sizeof(qp), (void *)address)) {
		lose(FT_LOSS_FAULT);
		return;
	}
	if (hidden(&qp, building->flags))
		return;
	work = tell(FT_WORK_SENT);
	if (!work)
		return;
	work->context = qp.context;
	work->queue = qp.send_cq;
	work->qpn = qp.qp_num;
	work->qp_type = qp.qp_type;
	work->wr_id = building->wr_id;
	work->bytes = building->bytes;
	work->flags = building->flags;
	work->count = building->sges;
	work->peer_qpn = building->peer_qpn;
	work->operation = building->operation;
	work->place = building->count;
	bpf_ringbuf_submit(work, NO_WAKEUP);
	building->count++;
	building->signaled += !!(building->flags & USER_SEND_SIGNALED);
}

static __always_inline struct building *building_of(__u64 address)
{
	struct thread_key key = of_thread(address);

	return bpf_map_lookup_elem(&building, &key);
}

static __always_inline int begin_message(struct pt_regs *ctx, __u8 operation)
{
	__u64 address = PT_REGS_PARM1(ctx);
	struct thread_key key = of_thread(address);
	static const struct building none = {};
	struct building *built;

	if (!wanted())
		return 0;
	built = bpf_map_lookup_elem(&building, &key);
	if (!built) {
		bpf_map_update_elem(&building, &key, &none, BPF_ANY);
		built = bpf_map_lookup_elem(&building, &key);
		if (!built) {
			lose(FT_LOSS_TABLE_FULL);
			return 0;
		}
	}
	finish(address, built);
	built->wr_id = 0;
	built->flags = 0;
	if (bpf_probe_read_user(&built->wr_id, sizeof(built->wr_id), (void *)(address + USER_QP_EX_WR_ID)) ||
	    bpf_probe_read_user(&built->flags, sizeof(built->flags), (void *)(address + USER_QP_EX_WR_FLAGS)))
		lose(FT_LOSS_FAULT);
	built->bytes = 0;
	built->sges = 0;
	built->peer_qpn = 0;
	built->operation = operation;
	built->live = 1;
	return 0;
}

#define BEGINS(name, operation)                   \
	SEC("uprobe")                             \
	int work_##name(struct pt_regs *ctx)      \
	{                                         \
		return begin_message(ctx, operation); \
	}

BEGINS(wr_rdma_write, 0)
BEGINS(wr_rdma_write_imm, 1)
BEGINS(wr_send, 2)
BEGINS(wr_send_imm, 3)
BEGINS(wr_rdma_read, 4)
BEGINS(wr_atomic_cmp_swp, 5)
BEGINS(wr_atomic_fetch_add, 6)
BEGINS(wr_local_inv, 7)
BEGINS(wr_bind_mw, 8)
BEGINS(wr_send_inv, 9)
BEGINS(wr_send_tso, 10)

static __always_inline int add_data(struct pt_regs *ctx, __u64 bytes, __u32 sges, __u32 flags)
{
	struct building *built = building_of(PT_REGS_PARM1(ctx));

	if (built) {
		built->bytes += bytes;
		built->sges += sges;
		built->flags |= flags;
	}
	return 0;
}

SEC("uprobe")
int work_wr_set_ud_addr(struct pt_regs *ctx)
{
	struct building *built = building_of(PT_REGS_PARM1(ctx));

	if (built)
		built->peer_qpn = (__u32)PT_REGS_PARM3(ctx);
	return 0;
}

SEC("uprobe")
int work_wr_set_sge(struct pt_regs *ctx)
{
	return add_data(ctx, (__u32)PT_REGS_PARM4(ctx), 1, 0);
}

SEC("uprobe")
int work_wr_set_sge_list(struct pt_regs *ctx)
{
	__u32 count = (__u32)PT_REGS_PARM2(ctx);

	return add_data(ctx, sum_sges(PT_REGS_PARM3(ctx), count), count, 0);
}

SEC("uprobe")
int work_wr_set_inline_data(struct pt_regs *ctx)
{
	return add_data(ctx, PT_REGS_PARM3(ctx), 1, USER_SEND_INLINE);
}

/* struct ibv_data_buf has 64-bit lengths where struct ibv_sge has 32 and a key. */
SEC("uprobe")
int work_wr_set_inline_data_list(struct pt_regs *ctx)
{
	__u64 count = PT_REGS_PARM2(ctx), list = PT_REGS_PARM3(ctx), bytes = 0;

	if (count > MAX_SGE)
		lose(FT_LOSS_SGE);
	for (int i = 0; i < MAX_SGE && i < count; i++) {
		struct user_data_buf buffer = {};

		if (bpf_probe_read_user(&buffer, sizeof(buffer), (void *)(list + i * sizeof(buffer)))) {
			lose(FT_LOSS_FAULT);
			break;
		}
		bytes += buffer.length;
	}
	return add_data(ctx, bytes, count, USER_SEND_INLINE);
}

SEC("uprobe")
int work_wr_complete(struct pt_regs *ctx)
{
	__u64 address = PT_REGS_PARM1(ctx);
	struct building *built = building_of(address);

	if (!built)
		return 0;
	finish(address, built);
	enter(FT_WORK_KINDS, address, 0, 0);
	return 0;
}

static __always_inline int drop_batch(__u64 address, int error)
{
	struct thread_key key = of_thread(address);
	struct building *built = bpf_map_lookup_elem(&building, &key);

	if (!built)
		return 0;
	if (error)
		refuse(address, error < 0 ? -error : error, built->count, built->signaled);
	bpf_map_delete_elem(&building, &key);
	return 0;
}

SEC("uretprobe")
int work_wr_complete_return(struct pt_regs *ctx)
{
	struct call *call = entered(FT_WORK_KINDS);
	__u64 address;

	if (!call)
		return 0;
	address = call->queue;
	call->queue = 0;
	return drop_batch(address, PT_REGS_RC(ctx));
}

SEC("uprobe")
int work_wr_abort(struct pt_regs *ctx)
{
	return drop_batch(PT_REGS_PARM1(ctx), 125 /* ECANCELED */);
}

/* --- completions ----------------------------------------------------------------------------------- */

SEC("uprobe")
int work_poll_cq(struct pt_regs *ctx)
{
	if (wanted())
		enter(FT_WORK_COMPLETED, PT_REGS_PARM1(ctx), PT_REGS_PARM3(ctx), 0);
	return 0;
}

__noinline int record_completion(__u64 queue, __u64 address)
{
	struct user_wc wc = {};
	struct ft_work *work;
	__u64 context = 0;

	if (bpf_probe_read_user(&wc, sizeof(wc), (void *)address) ||
	    bpf_probe_read_user(&context, sizeof(context), (void *)(queue + USER_CQ_CONTEXT))) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	work = tell(FT_WORK_COMPLETED);
	if (!work)
		return 0;
	work->context = context;
	work->queue = queue;
	work->wr_id = wc.wr_id;
	work->qpn = wc.qp_num;
	work->status = wc.status;
	work->vendor_error = wc.vendor_err;
	if (!wc.status) { /* of a completion with an error nothing else is valid (ibv_poll_cq(3)) */
		work->bytes = wc.byte_len;
		work->flags = wc.wc_flags;
		work->operation = wc.opcode;
		work->peer_qpn = wc.src_qp;
	}
	bpf_ringbuf_submit(work, NO_WAKEUP);
	return 0;
}

SEC("uretprobe")
int work_poll_cq_return(struct pt_regs *ctx)
{
	struct call *call = entered(FT_WORK_COMPLETED);
	int found = PT_REGS_RC(ctx);
	struct ft_work *work;
	__u64 queue, list, now;

	if (!call)
		return 0;
	queue = call->queue;
	list = call->list;
	call->queue = 0;
	for (int i = 0; i < MAX_CHAIN && i < found; i++)
		record_completion(queue, list + i * sizeof(struct user_wc));
	if (found > MAX_CHAIN)
		lose(FT_LOSS_CHAIN);
	if (found)
		return 0;
	now = bpf_ktime_get_ns();
	if (now - call->empty_ns < (call->empty == queue ? EMPTY_INTERVAL_NS : OTHER_INTERVAL_NS))
		return 0;
	call->empty_ns = now;
	call->empty = queue;
	work = tell(FT_WORK_EMPTY);
	if (!work)
		return 0;
	bpf_probe_read_user(&work->context, sizeof(work->context), (void *)(queue + USER_CQ_CONTEXT));
	work->queue = queue;
	bpf_ringbuf_submit(work, NO_WAKEUP);
	return 0;
}

/* int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask) of libibverbs. */
SEC("uprobe")
int work_modify_qp(struct pt_regs *ctx)
{
	struct pair_key key = { .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct user_qp qp = {};
	struct ft_work *work;
	__u32 state = 0;

	if (!wanted() || !(PT_REGS_PARM3(ctx) & USER_QP_STATE_MASK) ||
	    bpf_probe_read_user(&state, sizeof(state), (void *)PT_REGS_PARM2(ctx)) ||
	    (state != USER_QPS_RESET && state != USER_QPS_INIT) ||
	    bpf_probe_read_user(&qp, sizeof(qp), (void *)PT_REGS_PARM1(ctx)))
		return 0;
	key.context = qp.context;
	key.qpn = qp.qp_num;
	bpf_map_delete_elem(&selective, &key);
	work = tell(FT_WORK_RESET);
	if (!work)
		return 0;
	work->context = qp.context;
	work->queue = qp.send_cq;
	work->qpn = qp.qp_num;
	work->qp_type = qp.qp_type;
	bpf_ringbuf_submit(work, NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
