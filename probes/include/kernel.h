/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel types that the probes read, and of each no more than the fields they read.
 *
 * preserve_access_index makes libbpf find every field in the running kernel's own BTF, so neither the order
 * nor the omissions below matter. Where kernels differ, the commit that made the difference is named.
 */
#ifndef FABRICTAP_KERNEL_H
#define FABRICTAP_KERNEL_H

#include <linux/types.h>
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* Of enumerations only the kind matters: CO-RE does not match an integer with one. */
enum ib_qp_state { IB_QPS_RESET };
enum ib_mtu { IB_MTU_256 = 1 };
enum ib_qp_type { IB_QPT_SMI };
enum rdma_restrack_type {
	RDMA_RESTRACK_PD,
	RDMA_RESTRACK_CQ,
	RDMA_RESTRACK_QP,
	RDMA_RESTRACK_CM_ID,
	RDMA_RESTRACK_MR,
	RDMA_RESTRACK_CTX,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* atomic_t */
struct atomic_counter {
	int counter;
};

struct inode {
	__u32 i_rdev;
};

struct file {
	struct inode *f_inode;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct signal_struct {
	struct atomic_counter live;
};

struct task_struct {
	unsigned int flags;
	struct files_struct *files;
	struct signal_struct *signal;
};

union ib_gid {
	__u8 raw[16];
};

struct ib_device {
	char name[64];
};

struct ib_gid_attr {
	union ib_gid gid;
};

struct ib_global_route {
	const struct ib_gid_attr *sgid_attr;
	union ib_gid dgid;
};

/* Since 44c58487d51a ("IB/core: Define 'ib' and 'roce' rdma_ah_attr types"), 4.12. */
struct rdma_ah_attr {
	struct ib_global_route grh;
	__u8 ah_flags;
};

struct ib_qp_attr {
	enum ib_qp_state qp_state;
	enum ib_mtu path_mtu;
	__u32 rq_psn;
	__u32 sq_psn;
	__u32 dest_qp_num;
	struct rdma_ah_attr ah_attr;
};

/* Restrack entries moved from uadd/kadd to add in 5.11 (b09c4d701220 "RDMA/restrack: Improve readability in task name management"). */
struct rdma_restrack_entry {
	const char *kern_name;
	enum rdma_restrack_type type;
};

/* port is 8 bits wide before 1fb7f8973f51 ("RDMA: Support more than 255 rdma ports"), 5.13: CO-RE reads the width. */
struct ib_qp {
	struct ib_device *device;
	const struct ib_gid_attr *av_sgid_attr;
	struct ib_qp *real_qp;
	__u32 qp_num;
	enum ib_qp_type qp_type;
	__u32 port;
	struct rdma_restrack_entry res;
};

struct ib_mr {
	struct ib_device *device;
	__u32 lkey;
	__u32 rkey;
	__u64 iova;
	__u64 length;
	struct rdma_restrack_entry res;
};

struct ib_ucontext {
	struct ib_device *device;
	struct rdma_restrack_entry res;
};

struct ib_udata {
	const void *inbuf;
	unsigned long inlen;
};

struct uverbs_attr_bundle {
	struct ib_udata ucore;
};

struct trace_event_raw_sys_enter {
	unsigned long args[6];
};

struct trace_event_raw_sys_exit {
	long ret;
};

/* Addresses are struct sockaddr_in6. Tracepoint records of drivers/infiniband/core/cma_trace.h, since ed999f820a6c ("RDMA/cma: Add trace points"), 5.6. */
struct trace_event_raw_cma_qp_class {
	__u32 qp_num;
	unsigned char srcaddr[28];
	unsigned char dstaddr[28];
};

struct trace_event_raw_cm_event_handler {
	unsigned long event;
	int status;
	unsigned char srcaddr[28];
	unsigned char dstaddr[28];
};

#pragma clang attribute pop

#define PF_EXITING 0x00000004	/* include/linux/sched.h */
#define IB_AH_GRH 1		/* enum rdma_ah_attr.ah_flags, include/rdma/ib_verbs.h */

/* enum ib_qp_attr_mask, include/rdma/ib_verbs.h */
#define IB_QP_STATE (1 << 0)
#define IB_QP_PORT (1 << 5)
#define IB_QP_AV (1 << 7)
#define IB_QP_PATH_MTU (1 << 8)
#define IB_QP_RQ_PSN (1 << 12)
#define IB_QP_SQ_PSN (1 << 16)
#define IB_QP_DEST_QPN (1 << 20)

#endif
