// SPDX-License-Identifier: Apache-2.0
/*
 * A STAND-IN for a verbs provider library: it posts nothing to nobody. Signatures and layouts are the real
 * ones, so a uprobe sees what it would see in librxe or libmlx5.
 *
 * Each entry point is one instruction sequence, ENTRY, and a jump: what a uprobe costs is decided by the
 * first instruction, so the tests choose it.
 */
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdlib.h>

#include "provider.h"

#ifndef ENTRY
#define ENTRY "push %rbp\n\tpop %rbp"
#endif

int stand_in_error;
unsigned int stand_in_accepts;
unsigned int stand_in_next_handle;

static struct ibv_ah handles[STAND_IN_HANDLES];

/* Accept stand_in_accepts requests of the chain, then refuse; both request types begin with wr_id, next. */
static int answer(void *chain, void **bad)
{
	struct ibv_recv_wr *wr = chain;

	if (!stand_in_error)
		return 0;
	for (unsigned int left = stand_in_accepts; wr && left; left--)
		wr = wr->next;
	*bad = wr;
	return wr ? stand_in_error : 0;
}

/*
 * What is complete and not polled yet, once stand_in_completes says so: each signaled request that was taken, in
 * the order of its queue pair. All queue pairs share it, whatever CQ they name.
 */
int stand_in_completes;
static struct ibv_wc complete[STAND_IN_COMPLETIONS];
static unsigned int first_complete, last_complete;
static pthread_mutex_t completing = PTHREAD_MUTEX_INITIALIZER;

void stand_in_complete(const struct ibv_wc *wc)
{
	pthread_mutex_lock(&completing);
	if (last_complete - first_complete < STAND_IN_COMPLETIONS)
		complete[last_complete++ % STAND_IN_COMPLETIONS] = *wc;
	pthread_mutex_unlock(&completing);
}

static enum ibv_wc_opcode completes_as(enum ibv_wr_opcode opcode)
{
	switch (opcode) {
	case IBV_WR_RDMA_WRITE:
	case IBV_WR_RDMA_WRITE_WITH_IMM:
		return IBV_WC_RDMA_WRITE;
	case IBV_WR_RDMA_READ:
		return IBV_WC_RDMA_READ;
	case IBV_WR_ATOMIC_CMP_AND_SWP:
		return IBV_WC_COMP_SWAP;
	case IBV_WR_ATOMIC_FETCH_AND_ADD:
		return IBV_WC_FETCH_ADD;
	default:
		return IBV_WC_SEND;
	}
}

/* Queue pairs are posted to under a lock, as providers do: the order of completions is that of the posts. */
static int send_and_complete(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	static pthread_mutex_t posting = PTHREAD_MUTEX_INITIALIZER;
	struct ibv_send_wr *end = NULL;
	int error;

	pthread_mutex_lock(&posting);
	error = answer(wr, (void **)bad);
	if (error)
		end = *bad;
	for (; wr && wr != end; wr = wr->next)
		if (wr->send_flags & IBV_SEND_SIGNALED || stand_in_completes == STAND_IN_ALL)
			stand_in_complete(&(struct ibv_wc){ .wr_id = wr->wr_id, .qp_num = qp->qp_num,
							   .opcode = completes_as(wr->opcode) });
	pthread_mutex_unlock(&posting);
	return error;
}

__attribute__((used)) static int send_body(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	return stand_in_completes ? send_and_complete(qp, wr, bad) : answer(wr, (void **)bad);
}

__attribute__((used)) static int recv_body(void *queue, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return answer(wr, (void **)bad);
}

__attribute__((used)) static int poll_body(struct ibv_cq *cq, int entries, struct ibv_wc *wc)
{
	int found = 0;

	if (!stand_in_completes) /* as fast as a provider's when there is nothing */
		return 0;
	pthread_mutex_lock(&completing);
	for (; found < entries && first_complete != last_complete; found++)
		wc[found] = complete[first_complete++ % STAND_IN_COMPLETIONS];
	pthread_mutex_unlock(&completing);
	return found;
}

__attribute__((used)) static struct ibv_ah *ah_body(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
	unsigned int slot = stand_in_next_handle++;

	if (stand_in_error || slot >= STAND_IN_HANDLES)
		return NULL;
	handles[slot].pd = pd;
	return &handles[slot];
}

#define STARTS_WITH_ENTRY(body) asm(ENTRY "\n\tjmp " #body)

__attribute__((naked)) int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	STARTS_WITH_ENTRY(send_body);
}

__attribute__((naked)) int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	STARTS_WITH_ENTRY(recv_body);
}

__attribute__((naked)) int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	STARTS_WITH_ENTRY(recv_body);
}

__attribute__((naked)) struct ibv_ah *create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
	STARTS_WITH_ENTRY(ah_body);
}

__attribute__((naked)) int poll_cq(struct ibv_cq *cq, int entries, struct ibv_wc *wc)
{
	STARTS_WITH_ENTRY(poll_body);
}

/* As providers of rdma-core: a table that only relocations fill. */
static const struct stand_in_ops table = {
	.poll_cq = poll_cq,
	.post_recv = post_recv,
	.post_send = post_send,
	.post_srq_recv = post_srq_recv,
};

void stand_in_alloc_context(struct verbs_context *context)
{
	verbs_set_ops(context, &table);
}
