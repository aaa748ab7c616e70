// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The verbs control path in ib_core, ib_uverbs and rdma_cm: who makes which queue pair and memory region,
 * and where a queue pair is connected to. It sees every library and every container.
 *
 * Each hook comes twice, as fentry/fexit and as kprobe/kretprobe, over one shared body; the agent loads the
 * first set that the kernel accepts. Hooks are chosen to be the same from old kernels to new ones:
 *
 *   rdma_restrack_add     queue pairs, memory regions and contexts being made; exported, one argument
 *   ib_modify_qp_with_udata  every transition, from uverbs and from kernel users alike; exported
 *   ib_destroy_qp_user, ib_dereg_mr_user  ends; rdma_restrack_del is no longer called for queue pairs where
 *                         destruction was split into begin_del and commit_del (6.1.19x and later)
 *   ib_query_qp           run by the kernel for our own netlink dump: the peer of an older connection
 */
#include "common.h"

/* Set by the agent before load: its own thread group, whose netlink dumps are worth a look. */
const volatile __u32 agent_tgid = 0;

/* What an entry hook hands to its return hook, by thread. */
struct modify {
	__u64 qp;
	__u64 attr;
	__u32 mask;
	__u32 padding;
};

struct registration {
	__u64 address;
	__u32 access;
	__u32 padding;
};

#define PER_THREAD(name, value_type)                          \
	struct {                                              \
		__uint(type, BPF_MAP_TYPE_HASH);              \
		__uint(max_entries, 4096);                    \
		__type(key, __u64);                           \
		__type(value, value_type);                    \
	} name SEC(".maps")

PER_THREAD(modifying, struct modify);
PER_THREAD(registering, struct registration);
PER_THREAD(destroying_qp, struct ft_record);
PER_THREAD(destroying_mr, struct ft_record);

static __always_inline void name_device(struct ft_record *record, struct ib_device *device)
{
	BPF_CORE_READ_STR_INTO(&record->device, device, name);
}

static __always_inline __u32 task_flags(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, flags) & PF_EXITING ? FT_FLAG_EXITING : 0;
}

static __always_inline void read_qp(struct ft_record *record, struct ib_qp *qp)
{
	const struct ib_gid_attr *gid = BPF_CORE_READ(qp, av_sgid_attr);

	name_device(record, BPF_CORE_READ(qp, device));
	record->qp.qpn = BPF_CORE_READ(qp, qp_num);
	record->qp.type = BPF_CORE_READ(qp, qp_type);
	record->qp.port = BPF_CORE_READ(qp, port);
	if (gid) {
		BPF_CORE_READ_INTO(&record->qp.gid, gid, gid);
		record->flags |= FT_FLAG_GID;
	}
	if (BPF_CORE_READ(qp, res.kern_name))
		record->flags |= FT_FLAG_KERNEL;
}

static __always_inline void read_mr(struct ft_record *record, struct ib_mr *mr)
{
	name_device(record, BPF_CORE_READ(mr, device));
	record->mr.lkey = BPF_CORE_READ(mr, lkey);
	record->mr.rkey = BPF_CORE_READ(mr, rkey);
	record->mr.length = BPF_CORE_READ(mr, length);
	record->mr.iova = BPF_CORE_READ(mr, iova);
	if (BPF_CORE_READ(mr, res.kern_name))
		record->flags |= FT_FLAG_KERNEL;
}

static __always_inline void read_attr(struct ft_record *record, struct ib_qp_attr *attr, __u32 mask)
{
	record->qp.mask = mask;
	if (mask & IB_QP_STATE)
		record->qp.state = BPF_CORE_READ(attr, qp_state);
	if (mask & IB_QP_DEST_QPN)
		record->qp.peer_qpn = BPF_CORE_READ(attr, dest_qp_num);
	if (mask & IB_QP_RQ_PSN)
		record->qp.rq_psn = BPF_CORE_READ(attr, rq_psn);
	if (mask & IB_QP_SQ_PSN)
		record->qp.sq_psn = BPF_CORE_READ(attr, sq_psn);
	if (mask & IB_QP_PATH_MTU)
		record->qp.path_mtu = BPF_CORE_READ(attr, path_mtu);
	if (mask & IB_QP_AV)
		BPF_CORE_READ_INTO(&record->qp.peer_gid, attr, ah_attr.grh.dgid);
}

/* --- bodies ----------------------------------------------------------------------------------- */

static __always_inline int resource_added(struct rdma_restrack_entry *res)
{
	__u32 type = BPF_CORE_READ(res, type);
	struct ft_record *record;

	if (type == bpf_core_enum_value(enum rdma_restrack_type, RDMA_RESTRACK_QP)) {
		record = reserve(FT_QP_CREATED);
		if (!record)
			return 0;
		read_qp(record, (void *)res - bpf_core_field_offset(struct ib_qp, res));
	} else if (type == bpf_core_enum_value(enum rdma_restrack_type, RDMA_RESTRACK_MR)) {
		__u64 thread = bpf_get_current_pid_tgid();
		struct registration *registration = bpf_map_lookup_elem(&registering, &thread);

		record = reserve(FT_MR_REGISTERED);
		if (!record)
			return 0;
		read_mr(record, (void *)res - bpf_core_field_offset(struct ib_mr, res));
		if (registration) {
			record->mr.address = registration->address;
			record->mr.access = registration->access;
			record->flags |= FT_FLAG_ACCESS;
		}
	} else if (type == bpf_core_enum_value(enum rdma_restrack_type, RDMA_RESTRACK_CTX)) {
		struct ib_ucontext *context = (void *)res - bpf_core_field_offset(struct ib_ucontext, res);

		record = reserve(FT_CONTEXT_OPENED);
		if (!record)
			return 0;
		name_device(record, BPF_CORE_READ(context, device));
	} else {
		return 0;
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline int resource_deleted(struct rdma_restrack_entry *res)
{
	struct ib_ucontext *context = (void *)res - bpf_core_field_offset(struct ib_ucontext, res);
	struct ft_record *record;

	if (BPF_CORE_READ(res, type) != bpf_core_enum_value(enum rdma_restrack_type, RDMA_RESTRACK_CTX))
		return 0;
	record = reserve(FT_CONTEXT_CLOSED);
	if (!record)
		return 0;
	record->flags |= task_flags();
	name_device(record, BPF_CORE_READ(context, device));
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline int modified(struct ib_qp *qp, struct ib_qp_attr *attr, __u32 mask, int result)
{
	struct ft_record *record = reserve(FT_QP_MODIFIED);

	if (!record)
		return 0;
	record->qp.result = result;
	read_qp(record, qp);
	read_attr(record, attr, mask);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static __always_inline int queried(struct ib_qp *qp, struct ib_qp_attr *attr, int result)
{
	struct ft_record *record;

	if (!agent_tgid || bpf_get_current_pid_tgid() >> 32 != agent_tgid || result)
		return 0;
	record = reserve(FT_QP_SNAPSHOT);
	if (!record)
		return 0;
	read_qp(record, qp);
	read_attr(record, attr, IB_QP_STATE | IB_QP_DEST_QPN | IB_QP_PATH_MTU);
	if (BPF_CORE_READ(attr, ah_attr.ah_flags) & IB_AH_GRH) {
		BPF_CORE_READ_INTO(&record->qp.peer_gid, attr, ah_attr.grh.dgid);
		record->qp.mask |= IB_QP_AV;
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* The object is freed before the return hook runs: its identity is read on entry, told on success. */
static __always_inline int qp_ending(struct ib_qp *qp)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct ft_record record;

	/* A further handle of an XRC target (ib_open_qp): the queue pair itself stays. */
	if (BPF_CORE_READ(qp, real_qp) != qp)
		return 0;
	begin(&record, FT_QP_DESTROYED);
	record.flags |= task_flags();
	read_qp(&record, qp);
	if (bpf_map_update_elem(&destroying_qp, &thread, &record, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

static __always_inline int mr_ending(struct ib_mr *mr)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct ft_record record;

	begin(&record, FT_MR_DEREGISTERED);
	record.flags |= task_flags();
	read_mr(&record, mr);
	if (bpf_map_update_elem(&destroying_mr, &thread, &record, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

static __always_inline int ended(void *pending, int result)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct ft_record *record = bpf_map_lookup_elem(pending, &thread);

	if (!record)
		return 0;
	if (!result && bpf_ringbuf_output(&records, record, sizeof(*record), 0))
		lose(FT_LOSS_BUFFER_FULL);
	bpf_map_delete_elem(pending, &thread);
	return 0;
}

static __always_inline int device_leaving(struct ib_device *device)
{
	struct ft_record *record = reserve(FT_DEVICE_REMOVED);

	if (!record)
		return 0;
	name_device(record, device);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* struct ib_uverbs_reg_mr, include/uapi/rdma/ib_user_verbs.h */
struct uverbs_reg_mr {
	__u64 response;
	__u64 start;
	__u64 length;
	__u64 hca_va;
	__u32 pd_handle;
	__u32 access_flags;
};

static __always_inline int registration_begins(struct uverbs_attr_bundle *attrs)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct registration registration = {};
	struct uverbs_reg_mr command;
	const void *input = BPF_CORE_READ(attrs, ucore.inbuf);

	if (bpf_probe_read_user(&command, sizeof(command), input)) {
		lose(FT_LOSS_FAULT);
		return 0;
	}
	registration.address = command.start;
	registration.access = command.access_flags;
	if (bpf_map_update_elem(&registering, &thread, &registration, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

static __always_inline int registration_ends(void)
{
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&registering, &thread);
	return 0;
}

/* --- fentry and fexit ------------------------------------------------------------------------- */

SEC("fentry/rdma_restrack_add")
int BPF_PROG(fexit_restrack_add, struct rdma_restrack_entry *res)
{
	return resource_added(res);
}

SEC("fentry/rdma_restrack_del")
int BPF_PROG(fexit_restrack_del, struct rdma_restrack_entry *res)
{
	return resource_deleted(res);
}

SEC("fexit/ib_modify_qp_with_udata")
int BPF_PROG(fexit_modify_qp, struct ib_qp *qp, struct ib_qp_attr *attr, int mask, struct ib_udata *udata, int result)
{
	return modified(qp, attr, mask, result);
}

SEC("fexit/ib_query_qp")
int BPF_PROG(fexit_query_qp, struct ib_qp *qp, struct ib_qp_attr *attr, int mask, void *init_attr, int result)
{
	return queried(qp, attr, result);
}

SEC("fentry/ib_destroy_qp_user")
int BPF_PROG(fexit_destroy_qp_enter, struct ib_qp *qp)
{
	return qp_ending(qp);
}

SEC("fexit/ib_destroy_qp_user")
int BPF_PROG(fexit_destroy_qp, struct ib_qp *qp, struct ib_udata *udata, int result)
{
	return ended(&destroying_qp, result);
}

SEC("fentry/ib_dereg_mr_user")
int BPF_PROG(fexit_dereg_mr_enter, struct ib_mr *mr)
{
	return mr_ending(mr);
}

SEC("fexit/ib_dereg_mr_user")
int BPF_PROG(fexit_dereg_mr, struct ib_mr *mr, struct ib_udata *udata, int result)
{
	return ended(&destroying_mr, result);
}

SEC("fentry/__ib_unregister_device")
int BPF_PROG(fexit_unregister_device, struct ib_device *device)
{
	return device_leaving(device);
}

SEC("fentry/ib_uverbs_reg_mr")
int BPF_PROG(fexit_reg_mr_enter, struct uverbs_attr_bundle *attrs)
{
	return registration_begins(attrs);
}

SEC("fexit/ib_uverbs_reg_mr")
int BPF_PROG(fexit_reg_mr, struct uverbs_attr_bundle *attrs, int result)
{
	return registration_ends();
}

/* --- kprobe and kretprobe --------------------------------------------------------------------- */

SEC("kprobe/rdma_restrack_add")
int BPF_KPROBE(kprobe_restrack_add, struct rdma_restrack_entry *res)
{
	return resource_added(res);
}

SEC("kprobe/rdma_restrack_del")
int BPF_KPROBE(kprobe_restrack_del, struct rdma_restrack_entry *res)
{
	return resource_deleted(res);
}

static __always_inline int call_begins(struct ib_qp *qp, struct ib_qp_attr *attr, __u32 mask)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct modify modify = { .qp = (__u64)qp, .attr = (__u64)attr, .mask = mask };

	if (bpf_map_update_elem(&modifying, &thread, &modify, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

SEC("kprobe/ib_modify_qp_with_udata")
int BPF_KPROBE(kprobe_modify_qp_enter, struct ib_qp *qp, struct ib_qp_attr *attr, int mask)
{
	return call_begins(qp, attr, mask);
}

SEC("kretprobe/ib_modify_qp_with_udata")
int BPF_KRETPROBE(kprobe_modify_qp, int result)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct modify *found = bpf_map_lookup_elem(&modifying, &thread);
	struct modify modify;

	if (!found)
		return 0;
	modify = *found;
	bpf_map_delete_elem(&modifying, &thread);
	return modified((void *)modify.qp, (void *)modify.attr, modify.mask, result);
}

SEC("kprobe/ib_query_qp")
int BPF_KPROBE(kprobe_query_qp_enter, struct ib_qp *qp, struct ib_qp_attr *attr)
{
	if (!agent_tgid || bpf_get_current_pid_tgid() >> 32 != agent_tgid)
		return 0;
	return call_begins(qp, attr, 0);
}

SEC("kretprobe/ib_query_qp")
int BPF_KRETPROBE(kprobe_query_qp, int result)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct modify *found = bpf_map_lookup_elem(&modifying, &thread);
	struct modify modify;

	if (!found)
		return 0;
	modify = *found;
	bpf_map_delete_elem(&modifying, &thread);
	return queried((void *)modify.qp, (void *)modify.attr, result);
}

SEC("kprobe/ib_destroy_qp_user")
int BPF_KPROBE(kprobe_destroy_qp_enter, struct ib_qp *qp)
{
	return qp_ending(qp);
}

SEC("kretprobe/ib_destroy_qp_user")
int BPF_KRETPROBE(kprobe_destroy_qp, int result)
{
	return ended(&destroying_qp, result);
}

SEC("kprobe/ib_dereg_mr_user")
int BPF_KPROBE(kprobe_dereg_mr_enter, struct ib_mr *mr)
{
	return mr_ending(mr);
}

SEC("kretprobe/ib_dereg_mr_user")
int BPF_KRETPROBE(kprobe_dereg_mr, int result)
{
	return ended(&destroying_mr, result);
}

SEC("kprobe/__ib_unregister_device")
int BPF_KPROBE(kprobe_unregister_device, struct ib_device *device)
{
	return device_leaving(device);
}

SEC("kprobe/ib_uverbs_reg_mr")
int BPF_KPROBE(kprobe_reg_mr_enter, struct uverbs_attr_bundle *attrs)
{
	return registration_begins(attrs);
}

SEC("kretprobe/ib_uverbs_reg_mr")
int BPF_KRETPROBE(kprobe_reg_mr)
{
	return registration_ends();
}

/* --- the connection manager: tracepoints, with either set -------------------------------------- */

static __always_inline int cm_happened(__u32 kind, __u32 event, __s32 status, __u32 qpn)
{
	struct ft_cm_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	__u64 id = bpf_get_current_pid_tgid();

	if (!record) {
		lose(FT_LOSS_BUFFER_FULL);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->time_ns = bpf_ktime_get_ns();
	record->kind = kind;
	record->event = event;
	record->status = status;
	record->tgid = id >> 32;
	record->tid = (__u32)id;
	record->qpn = qpn;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	bpf_ringbuf_submit(record, 0);
	return 0;
}

SEC("tracepoint/rdma_cma/cm_event_handler")
int tracepoint_cm_event(struct trace_event_raw_cm_event_handler *ctx)
{
	return cm_happened(FT_CM_EVENT, BPF_CORE_READ(ctx, event), BPF_CORE_READ(ctx, status), 0);
}

SEC("tracepoint/rdma_cma/cm_send_req")
int tracepoint_cm_send_req(struct trace_event_raw_cma_qp_class *ctx)
{
	return cm_happened(FT_CM_SENT, FT_CM_REQUEST, 0, BPF_CORE_READ(ctx, qp_num));
}

SEC("tracepoint/rdma_cma/cm_send_rep")
int tracepoint_cm_send_rep(struct trace_event_raw_cma_qp_class *ctx)
{
	return cm_happened(FT_CM_SENT, FT_CM_REPLY, 0, BPF_CORE_READ(ctx, qp_num));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
