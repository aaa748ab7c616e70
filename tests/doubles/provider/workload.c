// SPDX-License-Identifier: Apache-2.0
/* See workload.h. Posts go through the real inline functions of <infiniband/verbs.h>. */
#include "workload.h"

#include <stdlib.h>

/* xorshift64*: a seed makes the same workload on every machine. */
uint32_t below(struct rng *rng, uint32_t bound)
{
	rng->state ^= rng->state >> 12;
	rng->state ^= rng->state << 25;
	rng->state ^= rng->state >> 27;
	return (uint32_t)((rng->state * 2685821657736338717u) >> 33) % bound;
}

static uint32_t random_length(struct rng *rng)
{
	switch (below(rng, 8)) {
	case 0:
		return 0;
	case 1:
		return 1 + below(rng, 4);
	case 2:
		return 1u << below(rng, 32); /* the edge of a slot, and beside it */
	case 3:
		return (1u << below(rng, 32)) + 1;
	default:
		return below(rng, 1 << 20);
	}
}

static uint32_t random_sges(struct rng *rng)
{
	uint32_t kind = below(rng, 16);

	return kind < 8 ? 1 : kind < 15 ? below(rng, 10) : below(rng, 71);
}

static uint32_t random_chain(struct rng *rng)
{
	uint32_t kind = below(rng, 256);

	return kind < 160 ? 1 : kind < 224 ? 1 + below(rng, 8) : kind < 254 ? 1 + below(rng, 70) :
	       kind < 255 ? 65 + below(rng, 200) : 1000 + below(rng, 300);
}

static struct shape random_shape(struct rng *rng, const struct world *world)
{
	return (struct shape){
		.opcode = below(rng, IBV_WR_DRIVER1 + 1),
		.flags = below(rng, 32), /* fence, signaled, solicited, inline, checksum */
		.sges = random_sges(rng),
		.handle = world->handle_count ? (int32_t)below(rng, world->handle_count) : -1,
		.peer_qpn = 1000 + below(rng, 3),
	};
}

/* Lists of a chain, one after the other. With rng each request has its own; else all have the shape's. */
struct lists {
	struct ibv_sge *sges;
	size_t used;
};

static struct request fill(struct ibv_sge *list, uint32_t count, uint32_t length, struct rng *rng,
			   const struct world *world)
{
	struct request request = { .sges = count };

	for (uint32_t i = 0; i < count; i++) {
		list[i].addr = 0xdead0000; /* never followed */
		list[i].length = rng ? random_length(rng) : length;
		list[i].lkey = 0xffffffff;
		if (i < world->list_limit)
			request.bytes += list[i].length;
	}
	return request;
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count ? count : 1, size);

	if (!memory)
		abort();
	return memory;
}

static void sends(struct world *world, struct tally *tally, int queue, uint32_t chain, struct shape shape,
		  struct rng *rng)
{
	struct ibv_qp *qp = &world->qps[queue].qp_base;
	struct ibv_send_wr *wrs = allocate(chain, sizeof(*wrs)), *bad = NULL;
	struct lists lists = { allocate((size_t)chain * (rng ? 70 : shape.sges), sizeof(struct ibv_sge)), 0 };
	struct tally_key *keys = allocate(chain, sizeof(*keys));
	struct request *requests = allocate(chain, sizeof(*requests));
	int refused;

	for (uint32_t i = 0; i < chain; i++) {
		struct tally_key key = { (uintptr_t)qp->context, qp->qp_num, 0, 0, qp->qp_type, 0, 0 };
		struct ibv_sge *list = lists.sges + lists.used;
		struct request request;

		if (rng)
			shape = random_shape(rng, world);
		lists.used += shape.sges;
		request = fill(list, shape.sges, shape.length, rng, world);
		wrs[i].wr_id = i;
		wrs[i].next = i + 1 < chain ? &wrs[i + 1] : NULL;
		wrs[i].sg_list = list;
		wrs[i].num_sge = (int)shape.sges;
		wrs[i].opcode = shape.opcode;
		wrs[i].send_flags = shape.flags;
		key.operation = shape.opcode;
		if (qp->qp_type == IBV_QPT_UD) {
			wrs[i].wr.ud.ah = shape.handle >= 0 ? world->handles[shape.handle] : NULL;
			wrs[i].wr.ud.remote_qpn = key.peer_qpn = shape.peer_qpn;
			key.address_handle = shape.handle + 1;
		} else {
			wrs[i].wr.rdma.remote_addr = 0x1122334455667788; /* stands where ud.ah stands */
			wrs[i].wr.rdma.rkey = 77;
		}
		request.inlined = !!(shape.flags & IBV_SEND_INLINE);
		request.signaled = !!(shape.flags & IBV_SEND_SIGNALED);
		keys[i] = key;
		requests[i] = request;
	}
	refused = ibv_post_send(qp, wrs, &bad);
	for (uint32_t i = 0; i < chain && !(refused && &wrs[i] == bad); i++) {
		if (i == world->chain_limit) {
			tally->long_chains++;
			break;
		}
		tally_add(tally, &keys[i], &requests[i]);
		tally->long_lists += requests[i].sges > world->list_limit;
	}
	free(keys);
	free(requests);
	free(wrs);
	free(lists.sges);
}

static void receives(struct world *world, struct tally *tally, int queue, uint32_t chain, struct shape shape,
		     struct rng *rng, int shared)
{
	struct ibv_qp *qp = &world->qps[queue].qp_base;
	struct ibv_srq *srq = &world->srqs[queue];
	struct tally_key key = { (uintptr_t)qp->context, qp->qp_num, 128, 1, qp->qp_type, 0, 0 };
	struct ibv_recv_wr *wrs = allocate(chain, sizeof(*wrs)), *bad = NULL;
	struct lists lists = { allocate((size_t)chain * (rng ? 70 : shape.sges), sizeof(struct ibv_sge)), 0 };
	struct request *requests = allocate(chain, sizeof(*requests));
	int refused;

	if (shared)
		key = (struct tally_key){ (uintptr_t)srq->context, srq->handle, 128, 2, 0, 0, 0 };
	for (uint32_t i = 0; i < chain; i++) {
		uint32_t count = rng ? random_sges(rng) : shape.sges;
		struct ibv_sge *list = lists.sges + lists.used;

		lists.used += count;
		requests[i] = fill(list, count, shape.length, rng, world);
		wrs[i].next = i + 1 < chain ? &wrs[i + 1] : NULL;
		wrs[i].sg_list = list;
		wrs[i].num_sge = (int)count;
	}
	refused = shared ? ibv_post_srq_recv(srq, wrs, &bad) : ibv_post_recv(qp, wrs, &bad);
	for (uint32_t i = 0; i < chain && !(refused && &wrs[i] == bad); i++) {
		if (i == world->chain_limit) {
			tally->long_chains++;
			break;
		}
		tally_add(tally, &key, &requests[i]);
		tally->long_lists += requests[i].sges > world->list_limit;
	}
	free(requests);
	free(wrs);
	free(lists.sges);
}

void post_sends(struct world *world, struct tally *tally, int queue, uint32_t chain, const struct shape *shape)
{
	sends(world, tally, queue, chain, *shape, NULL);
}

void post_recvs(struct world *world, struct tally *tally, int queue, uint32_t chain, const struct shape *shape)
{
	receives(world, tally, queue, chain, *shape, NULL, 0);
}

void post_shared(struct world *world, struct tally *tally, int queue, uint32_t chain, const struct shape *shape)
{
	receives(world, tally, queue, chain, *shape, NULL, 1);
}

void post_mixed(struct world *world, struct tally *tally, uint64_t seed, uint32_t posts)
{
	struct rng rng = { seed * 0x9e3779b97f4a7c15u | 1 };
	struct shape shape = { 0 };

	for (uint32_t i = 0; i < posts; i++) {
		uint32_t kind = below(&rng, 10), chain = random_chain(&rng);

		if (world->extended_count && kind > 4) {
			post_random_batch(world, tally, world->extended[below(&rng, world->extended_count)], &rng);
			continue;
		}
		if (kind == 0 && world->srq_count)
			receives(world, tally, below(&rng, world->srq_count), chain, shape, &rng, 1);
		else if (kind <= 2)
			receives(world, tally, below(&rng, world->qp_count), chain, shape, &rng, 0);
		else
			sends(world, tally, below(&rng, world->qp_count), chain, shape, &rng);
	}
}
