// SPDX-License-Identifier: Apache-2.0
/* Posts by the extended API: see workload.h. Through the real inline functions of <infiniband/verbs.h>. */
#include <pthread.h>
#include <stdlib.h>

#include "workload.h"

static void begin(struct ibv_qp_ex *qp, uint32_t opcode)
{
	switch (opcode) {
	case IBV_WR_RDMA_WRITE:
		return ibv_wr_rdma_write(qp, 7, 0x1000);
	case IBV_WR_RDMA_WRITE_WITH_IMM:
		return ibv_wr_rdma_write_imm(qp, 7, 0x1000, 5);
	case IBV_WR_SEND:
		return ibv_wr_send(qp);
	case IBV_WR_SEND_WITH_IMM:
		return ibv_wr_send_imm(qp, 5);
	case IBV_WR_RDMA_READ:
		return ibv_wr_rdma_read(qp, 7, 0x1000);
	case IBV_WR_ATOMIC_CMP_AND_SWP:
		return ibv_wr_atomic_cmp_swp(qp, 7, 0x1000, 1, 2);
	case IBV_WR_ATOMIC_FETCH_AND_ADD:
		return ibv_wr_atomic_fetch_add(qp, 7, 0x1000, 1);
	case IBV_WR_LOCAL_INV:
		return ibv_wr_local_inv(qp, 7);
	case IBV_WR_BIND_MW:
		return ibv_wr_bind_mw(qp, NULL, 7, NULL);
	case IBV_WR_SEND_WITH_INV:
		return ibv_wr_send_inv(qp, 7);
	default:
		return ibv_wr_send_tso(qp, NULL, 14, 1000);
	}
}

/* Gives the message its data by one of four setters; what it is then. */
static struct request give(struct ibv_qp_ex *qp, const struct shape *shape, enum setter setter)
{
	struct request request = { .sges = shape->sges, .bytes = (uint64_t)shape->sges * shape->length };
	struct ibv_data_buf *buffers = calloc(shape->sges + 1, sizeof(*buffers));
	struct ibv_sge *sges = calloc(shape->sges + 1, sizeof(*sges));

	for (uint32_t i = 0; i < shape->sges; i++) {
		buffers[i].length = shape->length;
		sges[i].length = shape->length;
	}
	request.inlined = setter == INLINE_DATA || setter == INLINE_DATA_LIST;
	if (setter == SGE_LIST)
		ibv_wr_set_sge_list(qp, shape->sges, sges);
	else if (setter == INLINE_DATA_LIST)
		ibv_wr_set_inline_data_list(qp, shape->sges, buffers);
	else {
		request.sges = 1;
		request.bytes = shape->length;
		if (setter == SGE)
			ibv_wr_set_sge(qp, 7, 0x1000, shape->length);
		else
			ibv_wr_set_inline_data(qp, NULL, shape->length);
	}
	free(buffers);
	free(sges);
	return request;
}

/* Real providers lock the queue pair in wr_start and release it in wr_complete, before that returns; here it is
 * held until it has returned. Zero is PTHREAD_MUTEX_INITIALIZER. */
static pthread_mutex_t locks[MAX_QUEUES];

void post_batch(struct world *world, struct tally *tally, int queue, uint32_t messages,
		const struct shape *shape, enum setter setter, int abort)
{
	struct ibv_qp_ex *qp = &world->qps[queue];
	struct tally_key key = { (uintptr_t)qp->qp_base.context, qp->qp_base.qp_num, shape->opcode, 0,
				 qp->qp_base.qp_type, 0, 0 };
	int has_data = shape->opcode != IBV_WR_LOCAL_INV && shape->opcode != IBV_WR_BIND_MW;
	struct request request = { 0 };

	pthread_mutex_lock(&locks[queue]);
	ibv_wr_start(qp);
	for (uint32_t i = 0; i < messages; i++) {
		qp->wr_id = i;
		qp->wr_flags = shape->flags;
		begin(qp, shape->opcode);
		if (qp->qp_base.qp_type == IBV_QPT_UD) {
			ibv_wr_set_ud_addr(qp, shape->handle >= 0 ? world->handles[shape->handle] : NULL,
					   shape->peer_qpn, 1);
			key.peer_qpn = shape->peer_qpn;
			key.address_handle = shape->handle + 1;
		}
		if (has_data)
			request = give(qp, shape, setter);
	}
	if (abort)
		ibv_wr_abort(qp);
	else
		abort = ibv_wr_complete(qp);
	pthread_mutex_unlock(&locks[queue]);
	if (abort)
		return;
	request.signaled = !!(shape->flags & IBV_SEND_SIGNALED);
	for (uint32_t i = 0; i < messages; i++)
		tally_add(tally, &key, &request);
}

void post_random_batch(struct world *world, struct tally *tally, int queue, struct rng *rng)
{
	static const uint32_t lengths[] = { 0, 1, 64, 65, 4096, 1 << 20, 1u << 31 };
	struct shape shape = {
		.opcode = below(rng, IBV_WR_TSO + 1),
		.flags = below(rng, 16),
		.sges = below(rng, 20),
		.length = lengths[below(rng, 7)],
		.handle = world->handle_count ? (int32_t)below(rng, world->handle_count) : -1,
		.peer_qpn = 1000 + below(rng, 3),
	};
	uint32_t messages = below(rng, 8) ? 1 + below(rng, 4) : 1 + below(rng, 32);

	post_batch(world, tally, queue, messages, &shape, below(rng, 4), below(rng, 10) == 0);
}
