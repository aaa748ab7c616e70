// SPDX-License-Identifier: Apache-2.0
/*
 * Compiles only if the layouts that we read by hand are those of the installed libibverbs: the structures of
 * probes/include/verbs_abi.h, and the offsets that the tests define from provider_helper.py.
 */
#include <infiniband/verbs.h>
#include <stddef.h>

#include "records.h"
#include "verbs_abi.h"

#define SAME(ours, theirs, our_field, their_field)                                                          \
	_Static_assert(offsetof(struct ours, our_field) == offsetof(struct theirs, their_field) &&          \
			       sizeof(((struct ours *)0)->our_field) ==                                     \
				       sizeof(((struct theirs *)0)->their_field),                           \
		       #ours "." #our_field)

SAME(user_qp, ibv_qp, context, context);
SAME(user_qp, ibv_qp, srq, srq);
SAME(user_qp, ibv_qp, handle, handle);
SAME(user_qp, ibv_qp, qp_num, qp_num);
SAME(user_qp, ibv_qp, state, state);
SAME(user_qp, ibv_qp, qp_type, qp_type);

SAME(user_srq, ibv_srq, context, context);
SAME(user_srq, ibv_srq, handle, handle);

SAME(user_wr, ibv_send_wr, wr_id, wr_id);
SAME(user_wr, ibv_send_wr, next, next);
SAME(user_wr, ibv_send_wr, sg_list, sg_list);
SAME(user_wr, ibv_send_wr, num_sge, num_sge);
SAME(user_wr, ibv_send_wr, opcode, opcode);
SAME(user_wr, ibv_send_wr, send_flags, send_flags);
SAME(user_wr, ibv_send_wr, imm_data, imm_data);
SAME(user_wr, ibv_send_wr, ah, wr.ud.ah);
SAME(user_wr, ibv_send_wr, remote_qpn, wr.ud.remote_qpn);
SAME(user_wr, ibv_send_wr, remote_qkey, wr.ud.remote_qkey);
_Static_assert(sizeof(struct user_wr) <= sizeof(struct ibv_send_wr), "a read beyond the work request");

SAME(user_wr, ibv_recv_wr, next, next);
SAME(user_wr, ibv_recv_wr, sg_list, sg_list);
SAME(user_wr, ibv_recv_wr, num_sge, num_sge);
_Static_assert(USER_RECV_WR_SIZE == sizeof(struct ibv_recv_wr), "USER_RECV_WR_SIZE");

SAME(user_sge, ibv_sge, addr, addr);
SAME(user_sge, ibv_sge, length, length);
SAME(user_sge, ibv_sge, lkey, lkey);
_Static_assert(sizeof(struct user_sge) == sizeof(struct ibv_sge), "user_sge");

SAME(user_ah_attr, ibv_ah_attr, dgid, grh.dgid);
SAME(user_ah_attr, ibv_ah_attr, dlid, dlid);
SAME(user_ah_attr, ibv_ah_attr, is_global, is_global);
_Static_assert(sizeof(struct user_ah_attr) <= sizeof(struct ibv_ah_attr), "a read beyond the attributes");

SAME(user_data_buf, ibv_data_buf, addr, addr);
SAME(user_data_buf, ibv_data_buf, length, length);
_Static_assert(sizeof(struct user_data_buf) == sizeof(struct ibv_data_buf), "user_data_buf");
SAME(user_wc, ibv_wc, wr_id, wr_id);
SAME(user_wc, ibv_wc, status, status);
SAME(user_wc, ibv_wc, opcode, opcode);
SAME(user_wc, ibv_wc, vendor_err, vendor_err);
SAME(user_wc, ibv_wc, byte_len, byte_len);
SAME(user_wc, ibv_wc, qp_num, qp_num);
SAME(user_wc, ibv_wc, src_qp, src_qp);
SAME(user_wc, ibv_wc, wc_flags, wc_flags);
_Static_assert(sizeof(struct user_wc) == sizeof(struct ibv_wc), "user_wc");
SAME(user_qp, ibv_qp, send_cq, send_cq);
_Static_assert(offsetof(struct ibv_cq, context) == USER_CQ_CONTEXT, "ibv_cq.context");
_Static_assert(offsetof(struct ibv_qp_attr, qp_state) == 0 && IBV_QP_STATE == USER_QP_STATE_MASK, "ibv_qp_attr");
_Static_assert(IBV_QPS_RESET == USER_QPS_RESET && IBV_QPS_INIT == USER_QPS_INIT, "enum ibv_qp_state");
_Static_assert(offsetof(struct ibv_qp_ex, wr_id) == USER_QP_EX_WR_ID, "wr_id");
_Static_assert(offsetof(struct ibv_qp_ex, wr_flags) == USER_QP_EX_WR_FLAGS, "wr_flags");
_Static_assert(offsetof(struct ibv_qp_ex, wr_atomic_cmp_swp) == USER_QP_EX_FUNCTIONS, "wr_atomic_cmp_swp");
_Static_assert(offsetof(struct ibv_qp_ex, wr_complete) == USER_QP_EX_FUNCTIONS + 8 * FT_QP_EX_BASE, "wr_complete");
_Static_assert(offsetof(struct ibv_qp_ex, wr_abort) == USER_QP_EX_FUNCTIONS + 8 * (FT_QP_EX_FUNCTIONS - 1),
	       "wr_abort");
_Static_assert(offsetof(struct ibv_qp_ex, qp_base) == 0, "qp_base");
_Static_assert(offsetof(struct ft_record, qp_ex.qpn) == offsetof(struct ft_record, qp.qpn) &&
	       offsetof(struct ft_record, qp_ex.type) == offsetof(struct ft_record, qp.type), "ft_qp_ex");

_Static_assert(offsetof(struct ibv_context, device) == USER_CONTEXT_DEVICE, "ibv_context.device");
_Static_assert(offsetof(struct ibv_device, name) == USER_DEVICE_NAME, "ibv_device.name");
_Static_assert(sizeof(((struct ibv_device *)0)->name) == FT_DEVICE_NAME_LEN, "FT_DEVICE_NAME_LEN");

_Static_assert(IBV_QPT_UD == USER_QPT_UD, "IBV_QPT_UD");
_Static_assert(IBV_SEND_SIGNALED == USER_SEND_SIGNALED, "IBV_SEND_SIGNALED");
_Static_assert(IBV_SEND_INLINE == USER_SEND_INLINE, "IBV_SEND_INLINE");
_Static_assert(IBV_WR_DRIVER1 < FT_OPERATION_RECV, "FT_OPERATION_RECV is beyond the opcodes");

#ifdef HELPER_POST_SEND /* from provider_helper.py */
_Static_assert(offsetof(struct ibv_context, ops.poll_cq) == HELPER_POLL_CQ, "poll_cq");
_Static_assert(offsetof(struct ibv_context, ops.post_send) == HELPER_POST_SEND, "post_send");
_Static_assert(offsetof(struct ibv_context, ops.post_recv) == HELPER_POST_RECV, "post_recv");
_Static_assert(offsetof(struct ibv_context, ops.post_srq_recv) == HELPER_POST_SRQ_RECV, "post_srq_recv");
_Static_assert(offsetof(struct ibv_device, name) == HELPER_DEVICE_NAME, "name");
_Static_assert(sizeof(struct ibv_context) == HELPER_CONTEXT_SIZE, "ibv_context");
_Static_assert(offsetof(struct ibv_context, abi_compat) == HELPER_ABI_COMPAT, "abi_compat");
_Static_assert((long)offsetof(struct verbs_context, create_qp_ex) - (long)offsetof(struct verbs_context, context) ==
	       HELPER_CREATE_QP_EX, "create_qp_ex");
_Static_assert(offsetof(struct ibv_qp_init_attr_ex, send_cq) == 8 && offsetof(struct ibv_qp_init_attr_ex, cap) == 32 &&
	       offsetof(struct ibv_qp_init_attr_ex, qp_type) == 52 &&
	       offsetof(struct ibv_qp_init_attr_ex, comp_mask) == 60 &&
	       offsetof(struct ibv_qp_init_attr_ex, pd) == 64 &&
	       offsetof(struct ibv_qp_init_attr_ex, send_ops_flags) == 128 &&
	       sizeof(struct ibv_qp_init_attr_ex) == 136, "ibv_qp_init_attr_ex");
_Static_assert(IBV_QP_INIT_ATTR_PD == 1 << 0 && IBV_QP_INIT_ATTR_SEND_OPS_FLAGS == 1 << 6, "comp_mask");
#endif
