// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The verbs control path as system calls, for kernels without type information for their RDMA modules: only
 * the user ABI of uverbs is decoded (the kernel's own headers, <rdma/...>), and of the kernel's types only
 * those of vmlinux. What it gives has the same form as verbs_control.bpf.c; what the ABI does not tell is
 * left to the agent: the device is a character device's number, the own GID an index.
 *
 * On entry nothing but the caller's pointers is kept. All decoding is done on return, of calls that
 * succeeded: then the kernel has checked header and attributes, and has written its answers.
 */
#include "verbs_objects.h"

#include <rdma/rdma_user_ioctl_cmds.h>

_Static_assert(RDMA_VERBS_IOCTL == 0xc0181b01, "the ABI's number");

/* QP_CREATE has the most, 15; drivers add a few behind them. */
#define MAX_ATTRIBUTES 32
#define EXTENDED(command) (IB_USER_VERBS_CMD_FLAG_EXTENDED | (command))

/* Registration by attributes: MR methods newer than some headers, 6.18. */
#define METHOD_REG_MR 5

struct attributes {
	struct ib_uverbs_attr given[MAX_ATTRIBUTES];
	struct ib_uverbs_attr by_id[MAX_ATTRIBUTES + 1];	/* the last: those of drivers */
};

TABLE(calls, BPF_MAP_TYPE_HASH, 4096, __u64, struct call);
TABLE(users, BPF_MAP_TYPE_HASH, 16384, __u32, __u8);
TABLE(scratch, BPF_MAP_TYPE_PERCPU_ARRAY, 1, __u32, struct attributes);

/* Commands of the old write interface: structures in CORE_IN and CORE_OUT. */
static __always_inline void invoked(const struct call *call, const struct ib_uverbs_attr *by_id)
{
	__u64 in = by_id[UVERBS_ATTR_CORE_IN].data;
	__u64 out = by_id[UVERBS_ATTR_CORE_OUT].data;
	__u32 number = by_id[UVERBS_ATTR_WRITE_CMD].data;

	if (number == IB_USER_VERBS_CMD_GET_CONTEXT) {
		context_opened(call);
	} else if (number == IB_USER_VERBS_CMD_CREATE_QP || number == EXTENDED(IB_USER_VERBS_EX_CMD_CREATE_QP)) {
		struct ib_uverbs_create_qp_resp response;
		__u64 type = number == IB_USER_VERBS_CMD_CREATE_QP ?
				     offsetof(struct ib_uverbs_create_qp, qp_type) :
				     offsetof(struct ib_uverbs_ex_create_qp, qp_type);
		__u8 qp_type;

		if (fetch(&response, sizeof(response), out) && fetch(&qp_type, sizeof(qp_type), in + type))
			qp_created(call, response.qp_handle, response.qpn, qp_type);
	} else if (number == IB_USER_VERBS_CMD_MODIFY_QP || number == EXTENDED(IB_USER_VERBS_EX_CMD_MODIFY_QP)) {
		qp_modified(call, in);
	} else if (number == IB_USER_VERBS_CMD_DESTROY_QP) {
		struct ib_uverbs_destroy_qp command;

		if (fetch(&command, sizeof(command), in))
			destroyed(call, UVERBS_OBJECT_QP, command.qp_handle);
	} else if (number == IB_USER_VERBS_CMD_REG_MR) {
		struct ib_uverbs_reg_mr command;
		struct ib_uverbs_reg_mr_resp response;

		if (fetch(&command, sizeof(command), in) && fetch(&response, sizeof(response), out)) {
			struct ft_mr mr = {
				.address = command.start,
				.length = command.length,
				.iova = command.hca_va,
				.lkey = response.lkey,
				.rkey = response.rkey,
				.access = command.access_flags,
			};

			mr_registered(call, response.mr_handle, &mr);
		}
	} else if (number == IB_USER_VERBS_CMD_DEREG_MR) {
		/* Input of up to 8 bytes lies in the attribute itself. */
		struct ib_uverbs_dereg_mr command;

		__builtin_memcpy(&command, &by_id[UVERBS_ATTR_CORE_IN].data, sizeof(command));
		destroyed(call, UVERBS_OBJECT_MR, command.mr_handle);
	}
}

static __always_inline void qp_method(const struct call *call, __u32 method, const struct ib_uverbs_attr *by_id)
{
	__u32 qpn;

	if (method == UVERBS_METHOD_QP_DESTROY)
		destroyed(call, UVERBS_OBJECT_QP, by_id[UVERBS_ATTR_DESTROY_QP_HANDLE].data);
	else if (method == UVERBS_METHOD_QP_CREATE &&
		 fetch(&qpn, sizeof(qpn), by_id[UVERBS_ATTR_CREATE_QP_RESP_QP_NUM].data))
		qp_created(call, by_id[UVERBS_ATTR_CREATE_QP_HANDLE].data, qpn,
			   by_id[UVERBS_ATTR_CREATE_QP_TYPE].data);
}

static __always_inline void mr_method(const struct call *call, __u32 method, const struct ib_uverbs_attr *by_id)
{
	struct ft_mr mr = {};
	__u64 lkey, rkey;

	if (method == UVERBS_METHOD_MR_DESTROY) {
		destroyed(call, UVERBS_OBJECT_MR, by_id[UVERBS_ATTR_DESTROY_MR_HANDLE].data);
		return;
	}
	if (method == UVERBS_METHOD_REG_DMABUF_MR) {
		mr.iova = by_id[UVERBS_ATTR_REG_DMABUF_MR_IOVA].data;
		mr.length = by_id[UVERBS_ATTR_REG_DMABUF_MR_LENGTH].data;
		mr.access = by_id[UVERBS_ATTR_REG_DMABUF_MR_ACCESS_FLAGS].data;
		lkey = by_id[UVERBS_ATTR_REG_DMABUF_MR_RESP_LKEY].data;
		rkey = by_id[UVERBS_ATTR_REG_DMABUF_MR_RESP_RKEY].data;
	} else if (method == UVERBS_METHOD_DM_MR_REG) {
		mr.length = by_id[UVERBS_ATTR_REG_DM_MR_LENGTH].data;
		mr.access = by_id[UVERBS_ATTR_REG_DM_MR_ACCESS_FLAGS].data;
		lkey = by_id[UVERBS_ATTR_REG_DM_MR_RESP_LKEY].data;
		rkey = by_id[UVERBS_ATTR_REG_DM_MR_RESP_RKEY].data;
	} else if (method == METHOD_REG_MR) {
		/* enum uverbs_attrs_reg_mr_cmd_attr_ids */
		mr.iova = by_id[3].data;
		mr.address = by_id[4].data;
		mr.length = by_id[5].data;
		mr.access = by_id[6].data;
		lkey = by_id[9].data;
		rkey = by_id[10].data;
	} else {
		return;
	}
	/* In each of them attribute 0 is the new handle. */
	if (fetch(&mr.lkey, sizeof(mr.lkey), lkey) && fetch(&mr.rkey, sizeof(mr.rkey), rkey))
		mr_registered(call, by_id[0].data, &mr);
}

static __always_inline void note_user(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u8 present = 1;

	if (!bpf_map_lookup_elem(&users, &tgid) && bpf_map_update_elem(&users, &tgid, &present, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
}

static __always_inline void succeeded(const struct call *call)
{
	struct ib_uverbs_ioctl_hdr header;
	struct attributes *attributes;
	__u32 count, zero = 0;

	if (!fetch(&header, sizeof(header), call->header))
		return;
	note_user();
	if (header.object_id != UVERBS_OBJECT_DEVICE && header.object_id != UVERBS_OBJECT_QP &&
	    header.object_id != UVERBS_OBJECT_MR)
		return;
	attributes = bpf_map_lookup_elem(&scratch, &zero);
	if (!attributes)
		return;
	count = header.num_attrs;
	if (count > MAX_ATTRIBUTES)
		count = MAX_ATTRIBUTES;
	if (count && !fetch(attributes->given, count * sizeof(struct ib_uverbs_attr), call->header + sizeof(header)))
		return;
	__builtin_memset(attributes->by_id, 0, sizeof(attributes->by_id));
	for (__u32 i = 0; i < MAX_ATTRIBUTES; i++) {
		__u32 id;

		if (i >= count)
			break;
		id = attributes->given[i].attr_id;
		if (id > MAX_ATTRIBUTES)
			id = MAX_ATTRIBUTES;
		attributes->by_id[id] = attributes->given[i];
	}
	if (header.object_id == UVERBS_OBJECT_QP)
		qp_method(call, header.method_id, attributes->by_id);
	else if (header.object_id == UVERBS_OBJECT_MR)
		mr_method(call, header.method_id, attributes->by_id);
	else if (header.method_id == UVERBS_METHOD_INVOKE_WRITE)
		invoked(call, attributes->by_id);
	else if (header.method_id == UVERBS_METHOD_GET_CONTEXT)
		context_opened(call);
}

/* --- tracepoints ------------------------------------------------------------------------------- */

SEC("tracepoint/syscalls/sys_enter_ioctl")
int syscall_ioctl_enter(struct trace_event_raw_sys_enter *ctx)
{
	struct task_struct *task;
	struct fdtable *table;
	struct file *file = NULL;
	struct call call = {};
	__u64 thread;

	if ((__u32)ctx->args[1] != RDMA_VERBS_IOCTL)
		return 0;
	task = (struct task_struct *)bpf_get_current_task();
	table = BPF_CORE_READ(task, files, fdt);
	call.fd = ctx->args[0];
	if (call.fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	if (bpf_probe_read_kernel(&file, sizeof(file), BPF_CORE_READ(table, fd) + call.fd) || !file)
		return 0;
	call.time_ns = bpf_ktime_get_ns();
	call.header = ctx->args[2];
	call.file = (__u64)file;
	call.uverbs = BPF_CORE_READ(file, f_inode, i_rdev);
	thread = bpf_get_current_pid_tgid();
	if (bpf_map_update_elem(&calls, &thread, &call, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_ioctl")
int syscall_ioctl_exit(struct trace_event_raw_sys_exit *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct call *found = bpf_map_lookup_elem(&calls, &thread);
	struct call call;

	if (!found)
		return 0;
	call = *found;
	bpf_map_delete_elem(&calls, &thread);
	if (!ctx->ret)
		succeeded(&call);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_close")
int syscall_close(struct trace_event_raw_sys_enter *ctx)
{
	struct context_key key = { .tgid = bpf_get_current_pid_tgid() >> 32, .fd = ctx->args[0] };
	__u32 *uverbs = bpf_map_lookup_elem(&contexts, &key);
	struct ft_record *record;

	if (!uverbs)
		return 0;
	record = reserve(FT_CONTEXT_CLOSED);
	if (record) {
		record->uverbs = *uverbs;
		record->flags = FT_FLAG_UVERBS;
		bpf_ringbuf_submit(record, 0);
	}
	bpf_map_delete_elem(&contexts, &key);
	return 0;
}

/* An exit makes no system call for what the process leaves behind. */
SEC("tracepoint/sched/sched_process_exit")
int syscall_process_exit(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct ft_record *record;

	if (!bpf_map_lookup_elem(&users, &tgid) || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	/* Two last threads can both see that no other is alive: one of them finds the entry. */
	if (bpf_map_delete_elem(&users, &tgid))
		return 0;
	record = reserve(FT_PROCESS_EXITED);
	if (!record)
		return 0;
	record->flags = FT_FLAG_EXITING;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
