/* SPDX-License-Identifier: Apache-2.0 */
/* Counters of posted work, from the kernel's per-CPU map straight into the ring, without the GIL.
 *
 * First they are taken (ft_posts_take), which touches nothing that others see: a counter that moved becomes
 * pending. Then they are folded (ft_posts_fold), under the node's lock: a counter that is bound goes into its
 * series and its connection's row, the others are left to whoever binds them.
 */
#ifndef FABRICTAP_POSTS_H
#define FABRICTAP_POSTS_H

#include "fold.h"
#include "ring.h"
#include "table.h"

#define FT_TOTALS 5 /* operations, bytes, sges, inlined, signaled */
/* The place of "init" in the list of states (agent/fabrictap/ledger/names.py). */
#define FT_STATE_INIT 2

enum ft_counter_flags {
	FT_PENDING = 1,	 /* moved since it was folded last */
	FT_PLACED = 2,	 /* its device is known */
	FT_ADMITTED = 4, /* somebody has looked at it and wants it */
	FT_BOUND = 8,	 /* nobody needs to look any more */
	FT_MUTED = 16,	 /* nobody wants it */
	FT_IN_LIST = 32, /* of pending counters, where it stays until that is folded */
};

/* What was posted to the queue pairs of one port. */
struct ft_port {
	uint64_t out; /* payload bytes that leave through it */
	uint64_t in; /* that it reads from peers */
	uint64_t room; /* in posted receive buffers */
	uint64_t headers; /* bytes of extended transport headers that its requests take */
};
#define FT_PORTS 512
#define FT_NO_PORT FT_PORTS

enum ft_way { FT_WAY_NONE, FT_WAY_OUT, FT_WAY_IN, FT_WAY_ROOM };

struct ft_counter {
	struct ft_post_key key;
	struct ft_post now; /* as last read */
	uint64_t told[FT_TOTALS]; /* what the series and the histogram have of it */
	uint32_t told_sizes[FT_SIZE_SLOTS];
	uint32_t flags;
	uint64_t attributed[2]; /* operations and bytes that the connection has of it */
	uint32_t series[FT_TOTALS];
	uint32_t histogram;
	/* Where a connection keeps the address of its row (connections.pxd); NULL where there is none. */
	struct ft_connection *const *row;
	uint16_t port; /* index in ft_posts.ports; FT_NO_PORT where it counts for none */
	uint8_t way; /* enum ft_way of its bytes */
	uint8_t header; /* bytes of extended headers that each operation takes */
	uint32_t operation; /* index of ft_connection.posted */
	uint32_t not_in; /* state of the connection in which somebody has to look after all */
};

struct ft_posts {
	struct ft_table table;
	uint32_t *pending; /* as many as the table has room for */
	uint32_t pending_room;
	uint32_t pending_count;
	struct ft_port ports[FT_PORTS + 1];
};

static inline struct ft_counter *ft_counter(const struct ft_posts *posts, uint32_t number)
{
	return (struct ft_counter *)ft_table_at(&posts->table, number);
}

static inline bool ft_posts_reserve(struct ft_posts *posts)
{
	uint32_t *pending;

	if (posts->pending_room >= posts->table.room)
		return true;
	pending = (uint32_t *)realloc(posts->pending, posts->table.room * sizeof(*pending));
	if (!pending)
		return false;
	posts->pending = pending;
	posts->pending_room = posts->table.room;
	return true;
}

/* Takes a batch of the map. A counter that does not fit in the table is refused, which the table counts. */
static void ft_posts_take(struct ft_posts *posts, const char *keys, const char *values, uint32_t count, size_t cpus)
{
	uint32_t next = 0; /* the kernel lists the map in the same order each time: entries were made in it */

	for (uint32_t i = 0; i < count; i++) {
		const struct ft_post *value = (const struct ft_post *)values + i * cpus;
		const char *key = keys + i * sizeof(struct ft_post_key);
		struct ft_counter *counter;
		uint64_t operations = 0;
		uint32_t number;
		bool added;

		if (ft_table_lives(&posts->table, next) && ft_table_same(&posts->table, ft_counter(posts, next), key)) {
			number = next;
			added = false;
		} else {
			number = ft_table_add(&posts->table, key, &added);
		}
		if (number == FT_NONE)
			continue;
		next = number + 1;
		if (!ft_posts_reserve(posts)) {
			if (added)
				ft_table_remove(&posts->table, number);
			continue;
		}
		counter = ft_counter(posts, number);
		if (added) {
			memset(counter->series, 0xFF, sizeof(counter->series)); /* FT_NO_SERIES */
			counter->histogram = FT_NO_SERIES;
			counter->port = FT_NO_PORT;
		}
		/* A probe counts the operation last: as long as that stands, so does the rest. */
		for (size_t cpu = 0; cpu < cpus; cpu++)
			operations += value[cpu].operations;
		if (operations == counter->now.operations && !added)
			continue;
		ft_sum_posts(value, cpus, &counter->now);
		if (counter->flags & FT_MUTED)
			continue;
		if (!(counter->flags & FT_IN_LIST))
			posts->pending[posts->pending_count++] = number;
		counter->flags |= FT_PENDING | FT_IN_LIST;
	}
}

static inline void ft_posts_forget(struct ft_posts *posts, uint32_t number)
{
	if (ft_counter(posts, number)->flags & FT_IN_LIST)
		for (uint32_t i = 0; i < posts->pending_count; i++)
			if (posts->pending[i] == number) {
				posts->pending[i] = posts->pending[--posts->pending_count];
				break;
			}
	ft_table_remove(&posts->table, number);
}

/* Adds to its connection's row what a counter has that the row does not. */
static inline void ft_counter_attribute(struct ft_counter *counter, struct ft_connection *row)
{
	struct ft_posted *posted = row->posted + counter->operation;

	posted->operations += counter->now.operations - counter->attributed[0];
	posted->bytes += counter->now.bytes - counter->attributed[1];
	counter->attributed[0] = counter->now.operations;
	counter->attributed[1] = counter->now.bytes;
}

/* Adds to its series and its port what a counter has that they do not. */
static inline void ft_counter_tell(struct ft_posts *posts, struct ft_counter *counter, struct ft_ring *ring,
				   uint64_t now_ns)
{
	struct ft_port *port = posts->ports + counter->port;
	const uint64_t now[FT_TOTALS] = {
		counter->now.operations, counter->now.bytes,	counter->now.sges,
		counter->now.inlined,	 counter->now.signaled,
	};
	uint64_t delta[FT_TOTALS];

	for (int i = 0; i < FT_TOTALS; i++) {
		delta[i] = now[i] - counter->told[i];
		counter->told[i] = now[i];
		ft_ring_add(ring, counter->series[i], (int64_t)delta[i], now_ns);
	}
	switch (counter->way) {
	case FT_WAY_OUT:
		port->out += delta[1];
		break;
	case FT_WAY_IN:
		port->in += delta[1];
		break;
	case FT_WAY_ROOM:
		port->room += delta[1];
		break;
	}
	port->headers += delta[0] * counter->header;
	if (counter->histogram != FT_NO_SERIES) {
		struct ft_histogram *histogram = ft_ring_histogram(ring, counter->histogram);

		ft_open_sequence(&histogram->sequence);
		for (int slot = 0; slot < FT_SIZE_SLOTS; slot++) {
			/* They wrap at 32 bits. */
			uint32_t more = counter->now.sizes[slot] - counter->told_sizes[slot];

			if (!more)
				continue;
			histogram->count += more;
			if (slot)
				ft_histogram_put(histogram, slot - 2, 0, more); /* records.h: FT_SIZE_SLOTS */
			else
				histogram->zeros += more;
		}
		histogram->sum += (double)delta[1];
		ft_close_sequence(&histogram->sequence);
		ring->series[counter->histogram].time_ns = now_ns;
		ring->series[counter->histogram].number = FT_REAL;
	}
	memcpy(counter->told_sizes, counter->now.sizes, sizeof(counter->told_sizes));
}

/* Whether a counter can be folded without anyone's looking at its connection. */
static inline bool ft_counter_settled(const struct ft_counter *counter)
{
	if (!(counter->flags & FT_BOUND))
		return false;
	if (!counter->row)
		return true;
	return (*counter->row)->state == FT_LIVE && (*counter->row)->qp_state != counter->not_in;
}

static inline void ft_counter_fold(struct ft_posts *posts, struct ft_counter *counter, struct ft_ring *ring,
				   uint64_t now_ns)
{
	if (counter->row)
		ft_counter_attribute(counter, *counter->row);
	ft_counter_tell(posts, counter, ring, now_ns);
}

/* Folds what is pending. The numbers of those that somebody has to look at are left in the list: so many. */
static uint32_t ft_posts_fold(struct ft_posts *posts, struct ft_ring *ring, uint64_t now_ns)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < posts->pending_count; i++) {
		uint32_t number = posts->pending[i];
		struct ft_counter *counter = ft_counter(posts, number);
		bool pending = counter->flags & FT_PENDING;

		counter->flags &= ~(uint32_t)(FT_PENDING | FT_IN_LIST);
		if (!pending)
			continue;
		if (ft_counter_settled(counter))
			ft_counter_fold(posts, counter, ring, now_ns);
		else
			posts->pending[left++] = number;
	}
	posts->pending_count = 0;
	return left;
}

#endif
