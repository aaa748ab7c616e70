/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in application's queues and what it posts to them. */
#ifndef STAND_IN_WORKLOAD_H
#define STAND_IN_WORKLOAD_H

#include <infiniband/verbs.h>
#include <stdint.h>

#include "tally.h"

#define MAX_QUEUES 256
#define MAX_HANDLES 8192

struct world {
	struct ibv_device devices[MAX_QUEUES];
	struct ibv_context *contexts[MAX_QUEUES];
	struct ibv_qp_ex *qps; /* MAX_QUEUES, of which the plain ones use no more than the struct ibv_qp */
	int extended[MAX_QUEUES]; /* which of them have the extended API */
	struct ibv_srq srqs[MAX_QUEUES];
	struct ibv_cq cqs[MAX_QUEUES]; /* one for each context */
	struct ibv_ah *handles[MAX_HANDLES];
	int device_count, context_count, qp_count, srq_count, handle_count, extended_count;
	/*
	 * Where the observer stops: requests in a chain, elements in a list. What lies beyond is posted but
	 * not tallied, and each stop is counted.
	 */
	uint32_t chain_limit, list_limit;
};

/* What every request of a chain is like. */
struct shape {
	uint32_t opcode, flags, sges, length;
	int32_t handle;		/* index, -1 without */
	uint32_t peer_qpn;
};

struct rng {
	uint64_t state;
};

uint32_t below(struct rng *rng, uint32_t bound);

enum setter { SGE, SGE_LIST, INLINE_DATA, INLINE_DATA_LIST };

/* Messages of one shape by the extended API, posted together or given up. */
void post_batch(struct world *world, struct tally *tally, int queue, uint32_t messages,
		const struct shape *shape, enum setter setter, int abort);
void post_random_batch(struct world *world, struct tally *tally, int queue, struct rng *rng);

/* One chain of one shape; what the provider refuses is not tallied. Queue is an index. */
void post_sends(struct world *world, struct tally *tally, int queue, uint32_t chain, const struct shape *shape);
void post_recvs(struct world *world, struct tally *tally, int queue, uint32_t chain, const struct shape *shape);
void post_shared(struct world *world, struct tally *tally, int queue, uint32_t chain, const struct shape *shape);

/* posts random chains of random requests to random queues. */
void post_mixed(struct world *world, struct tally *tally, uint64_t seed, uint32_t posts);

#endif
