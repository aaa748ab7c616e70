/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The public 64-bit ABI of libibverbs as far as the probes read it; unchanged from rdma-core v13 to v64,
 * because applications inline it. A header of its own, so that a test compiles it together with the real
 * <infiniband/verbs.h> and compares (tests/doubles/provider/abi.c).
 */
#ifndef FABRICTAP_VERBS_ABI_H
#define FABRICTAP_VERBS_ABI_H

#include <linux/types.h>

#define USER_CONTEXT_DEVICE 0	/* offset of ibv_context.device */
#define USER_DEVICE_NAME 24	/* offset of ibv_device.name */

#define USER_QPT_UD 4		/* IBV_QPT_UD */
#define USER_SEND_SIGNALED 2	/* IBV_SEND_SIGNALED */
#define USER_SEND_INLINE 8	/* IBV_SEND_INLINE */

/* struct ibv_qp, as far as qp_type */
struct user_qp {
	__u64 context;
	__u64 qp_context;
	__u64 pd;
	__u64 send_cq;
	__u64 recv_cq;
	__u64 srq;
	__u32 handle;
	__u32 qp_num;
	__u32 state;
	__u32 qp_type;
};

/* struct ibv_srq, as far as handle */
struct user_srq {
	__u64 context;
	__u64 srq_context;
	__u64 pd;
	__u32 handle;
	__u32 padding;
};

/* struct ibv_send_wr, as far as wr.ud; struct ibv_recv_wr is the same as far as num_sge */
struct user_wr {
	__u64 wr_id;
	__u64 next;
	__u64 sg_list;
	__s32 num_sge;
	__u32 opcode;
	__u32 send_flags;
	__u32 imm_data;
	__u64 ah;
	__u32 remote_qpn;
	__u32 remote_qkey;
};
#define USER_RECV_WR_SIZE 32

struct user_sge {
	__u64 addr;
	__u32 length;
	__u32 lkey;
};

/* struct ibv_data_buf */
struct user_data_buf {
	__u64 addr;
	__u64 length;
};

/* struct ibv_wc */
struct user_wc {
	__u64 wr_id;
	__u32 status;
	__u32 opcode;
	__u32 vendor_err;
	__u32 byte_len;
	__u32 imm_data;
	__u32 qp_num;
	__u32 src_qp;
	__u32 wc_flags;
	__u16 pkey_index;
	__u16 slid;
	__u8 sl;
	__u8 dlid_path_bits;
	__u8 padding[2];
};

#define USER_CQ_CONTEXT 0	/* offset of ibv_cq.context */
#define USER_QPS_RESET 0	/* IBV_QPS_RESET */
#define USER_QPS_INIT 1		/* IBV_QPS_INIT */
#define USER_QP_STATE_MASK 1	/* IBV_QP_STATE; ibv_qp_attr.qp_state stands first */

#define USER_QP_EX_WR_ID 168	/* offset of ibv_qp_ex.wr_id */
#define USER_QP_EX_WR_FLAGS 176	/* offset of ibv_qp_ex.wr_flags */
#define USER_QP_EX_FUNCTIONS 184	/* and of its first function, wr_atomic_cmp_swp */

/* struct ibv_ah_attr, as far as is_global */
struct user_ah_attr {
	__u8 dgid[16];
	__u32 flow_label;
	__u8 sgid_index;
	__u8 hop_limit;
	__u8 traffic_class;
	__u8 padding;
	__u16 dlid;
	__u8 sl;
	__u8 src_path_bits;
	__u8 static_rate;
	__u8 is_global;
};

#endif
