/* SPDX-License-Identifier: Apache-2.0 */
/* What an application counts of its own posts: the truth that the probe's counters are held against. */
#ifndef STAND_IN_TALLY_H
#define STAND_IN_TALLY_H

#include <stddef.h>
#include <stdint.h>

#define TALLY_SIZES 33

struct tally_key {
	uint64_t context;	/* address of the ibv_context */
	uint32_t number;	/* of the queue pair, or handle of the shared receive queue */
	uint32_t operation;
	uint32_t queue;		/* 0 send, 1 receive, 2 shared receive */
	uint32_t qp_type;
	uint32_t peer_qpn;
	int32_t address_handle;	/* 1 + which of the application's handles, 0 without */
};

struct tally_entry {
	struct tally_key key;
	uint64_t operations, bytes, sges, inlined, signaled;
	uint64_t sizes[TALLY_SIZES];
};

/* One per thread: nothing is shared while posts are counted. */
struct tally {
	struct tally_entry *entries;	/* open addressing */
	size_t room, used;
	uint64_t long_chains, long_lists;	/* posts and requests beyond the limits, see workload.h */
};

struct request {
	uint32_t sges, inlined, signaled;
	uint64_t bytes;
};

void tally_add(struct tally *tally, const struct tally_key *key, const struct request *request);
void tally_merge(struct tally *into, const struct tally *from);
void tally_print(const struct tally *tally);
void tally_free(struct tally *tally);

#endif
