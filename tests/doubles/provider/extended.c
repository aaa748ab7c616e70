// SPDX-License-Identifier: Apache-2.0
/*
 * A STAND-IN for a provider's extended API (ibv_wr_*). Nothing is built: the functions have the real
 * signatures, and wr_complete answers 0 or the chosen error (provider.h).
 */
#include "provider.h"

#ifndef ENTRY
#define ENTRY "push %rbp\n\tpop %rbp"
#endif

__attribute__((used)) static int built(void)
{
	return 0;
}

__attribute__((used)) static int completed(void)
{
	return stand_in_error;
}

#define FUNCTION(name, body, ...)                                         \
	__attribute__((naked)) static void name(struct ibv_qp_ex *qp, ##__VA_ARGS__) \
	{                                                                 \
		asm(ENTRY "\n\tjmp " #body);                              \
	}

FUNCTION(atomic_cmp_swp, built, uint32_t rkey, uint64_t address, uint64_t compare, uint64_t swap)
FUNCTION(atomic_fetch_add, built, uint32_t rkey, uint64_t address, uint64_t add)
FUNCTION(bind_mw, built, struct ibv_mw *mw, uint32_t rkey, const struct ibv_mw_bind_info *info)
FUNCTION(local_inv, built, uint32_t rkey)
FUNCTION(rdma_read, built, uint32_t rkey, uint64_t address)
FUNCTION(rdma_write, built, uint32_t rkey, uint64_t address)
FUNCTION(rdma_write_imm, built, uint32_t rkey, uint64_t address, __be32 imm)
FUNCTION(send_, built)
FUNCTION(send_imm, built, __be32 imm)
FUNCTION(send_inv, built, uint32_t rkey)
FUNCTION(send_tso, built, void *header, uint16_t size, uint16_t mss)
FUNCTION(set_ud_addr, built, struct ibv_ah *ah, uint32_t qpn, uint32_t qkey)
FUNCTION(set_xrc_srqn, built, uint32_t srqn)
FUNCTION(set_inline_data, built, void *address, size_t length)
FUNCTION(set_inline_data_list, built, size_t count, const struct ibv_data_buf *list)
FUNCTION(set_sge, built, uint32_t lkey, uint64_t address, uint32_t length)
FUNCTION(set_sge_list, built, size_t count, const struct ibv_sge *list)
/* A second set, as mlx5 has one for each kind of transport. */
FUNCTION(set_sge_of_ud, built, uint32_t lkey, uint64_t address, uint32_t length)
FUNCTION(start, built)
FUNCTION(abort_, built)

__attribute__((naked)) static int complete(struct ibv_qp_ex *qp)
{
	asm(ENTRY "\n\tjmp completed");
}

void stand_in_extend(struct ibv_qp_ex *qp)
{
	qp->wr_atomic_cmp_swp = atomic_cmp_swp;
	qp->wr_atomic_fetch_add = atomic_fetch_add;
	qp->wr_bind_mw = bind_mw;
	qp->wr_local_inv = local_inv;
	qp->wr_rdma_read = rdma_read;
	qp->wr_rdma_write = rdma_write;
	qp->wr_rdma_write_imm = rdma_write_imm;
	qp->wr_send = send_;
	qp->wr_send_imm = send_imm;
	qp->wr_send_inv = send_inv;
	qp->wr_send_tso = send_tso;
	qp->wr_set_ud_addr = qp->qp_base.qp_type == IBV_QPT_UD ? set_ud_addr : NULL;
	qp->wr_set_xrc_srqn = set_xrc_srqn;
	qp->wr_set_inline_data = set_inline_data;
	qp->wr_set_inline_data_list = set_inline_data_list;
	qp->wr_set_sge = qp->qp_base.qp_type == IBV_QPT_UD ? set_sge_of_ud : set_sge;
	qp->wr_set_sge_list = set_sge_list;
	qp->wr_start = start;
	qp->wr_complete = complete;
	qp->wr_abort = abort_;
}
