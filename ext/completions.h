/* SPDX-License-Identifier: Apache-2.0 */
/* Which request a completion completes, and how long it took: records of probes/include/work.h, matched.
 *
 * Completions of a send queue come in the order of its requests (IBTA 9.6, 10.7.3), so each queue pair has a
 * FIFO of its requests that will have one. Where the observation begins in the middle, requests of before are
 * outstanding, nobody knows how many, and a wr_id need not be unique: the FIFO is not *aligned* until it is
 * known that nothing older is left:
 *
 *   - the queue pair was put into RESET or INIT while it was watched;
 *   - or a run of FT_RUN completions, each with another wr_id than the one before, completed the oldest request
 *     of the FIFO, and no wr_id was given to two requests that were outstanding together;
 *   - or nothing was outstanding that is known of, and nothing was posted or completed, for FT_IDLE_NS, at
 *     the end of which its completion queue was polled and was empty.
 *
 * Until then, and whenever a completion contradicts the FIFO, completions are counted without a latency.
 */
#ifndef FABRICTAP_COMPLETIONS_H
#define FABRICTAP_COMPLETIONS_H

#include <math.h>

#include "records.h"
#include "table.h"
#include "work.h"

#define FT_RUN 16
/*
 * A thread may lose its CPU between its record and its post, while others go on: so many outstanding requests are
 * looked at for a completion, and after so many completions that passed it over the oldest is given up.
 */
#define FT_LOOK 64
#define FT_BYPASSED 8192
#define FT_IDLE_NS 20000000
#define FT_FIFO_FIRST 32
#define FT_FIFO_MOST 32768 /* the deepest send queues */

#define FT_SEND_SIGNALED 2
#define FT_WC_RECEIVE 128 /* enum ibv_wc_opcode: beyond it, of a receive queue */
#define FT_WC_GRH 1

/* Latencies by an exponential histogram of seconds: bucket i holds (2^((i - FT_LATENCY_BASE) / 8), ...]. */
#define FT_LATENCY_SCALE 3
#define FT_LATENCY_BASE 240 /* 2^-30 s */
#define FT_LATENCY_BUCKETS 304 /* to 2^8 s */

struct ft_request {
	uint64_t time_ns;
	uint64_t wr_id;
	uint32_t tid;
	uint8_t operation;
	bool done;
};

struct ft_pair_key {
	uint64_t context;
	uint32_t tgid;
	uint32_t qpn;
};

struct ft_pair {
	struct ft_pair_key key;
	struct ft_request *requests; /* a ring of room, a power of two; head and tail only grow */
	uint32_t room, head, tail;
	uint32_t run; /* of completions that fit, while not aligned */
	uint32_t bypassed; /* completions since the oldest request was passed over */
	bool aligned;
	bool selective; /* has requests with IBV_SEND_SIGNALED: only those are in the FIFO */
	bool reuses; /* gives a wr_id to several requests that are outstanding together */
	uint64_t wr_id; /* of the last completion */
	uint64_t moved_ns; /* last post or completion */
	uint64_t queue; /* its send CQ */
};

struct ft_poll_key {
	uint64_t queue;
	uint64_t tgid;
};

struct ft_poll {
	struct ft_poll_key key;
	uint64_t empty_ns;
};

struct ft_group_key {
	uint64_t context;
	uint32_t tgid;
	uint32_t qpn;
	uint8_t kind;
	uint8_t operation;
	uint8_t status;
	uint8_t padding[5];
};

/* What is alike, summed. */
struct ft_group {
	struct ft_group_key key;
	uint64_t count;
	uint64_t bytes;
	uint64_t headers; /* completions whose flags say that a GRH is there; of datagrams it is within the bytes */
	uint64_t outcomes[FT_OUTCOMES];
	uint64_t latency_ns; /* sum, smallest, largest */
	uint64_t least_ns;
	uint64_t most_ns;
	uint32_t latencies[FT_LATENCY_BUCKETS];
};

struct ft_completions {
	struct ft_table pairs;
	struct ft_table polls;
	struct ft_table groups;
	uint64_t began_ns;
	uint64_t remembered; /* requests that there is memory for, of all FIFOs */
	uint64_t remembered_most;
};

static inline struct ft_pair *ft_pair(const struct ft_completions *all, uint32_t number)
{
	return (struct ft_pair *)ft_table_at(&all->pairs, number);
}

static struct ft_pair *ft_pair_of(struct ft_completions *all, const struct ft_work *work, bool make)
{
	struct ft_pair_key key = { work->context, work->tgid, work->qpn };
	uint32_t number;
	bool added = false;

	number = make ? ft_table_add(&all->pairs, &key, &added) : ft_table_find(&all->pairs, &key);
	if (number == FT_NONE)
		return NULL;
	if (added)
		ft_pair(all, number)->moved_ns = all->began_ns;
	return ft_pair(all, number);
}

static inline struct ft_request *ft_request(struct ft_pair *pair, uint32_t at)
{
	return pair->requests + (at & (pair->room - 1));
}

static void ft_pair_clear(struct ft_pair *pair, bool aligned)
{
	pair->head = pair->tail = 0;
	pair->run = pair->bypassed = 0;
	pair->aligned = aligned;
}

static bool ft_pair_grow(struct ft_completions *all, struct ft_pair *pair)
{
	uint32_t room = pair->room ? pair->room * 2 : FT_FIFO_FIRST;
	struct ft_request *requests;

	if (room > FT_FIFO_MOST || all->remembered + room - pair->room > all->remembered_most)
		return false;
	requests = (struct ft_request *)malloc(room * sizeof(*requests));
	if (!requests)
		return false;
	for (uint32_t at = pair->head; at != pair->tail; at++)
		requests[at & (room - 1)] = *ft_request(pair, at);
	free(pair->requests);
	pair->requests = requests;
	all->remembered += room - pair->room;
	pair->room = room;
	return true;
}

static inline bool ft_pair_idle(const struct ft_completions *all, const struct ft_pair *pair)
{
	struct ft_poll_key key = { pair->queue, pair->key.tgid };
	uint32_t number;

	if (pair->head != pair->tail)
		return false;
	number = ft_table_find(&all->polls, &key);
	return number != FT_NONE &&
	       ((struct ft_poll *)ft_table_at(&all->polls, number))->empty_ns >= pair->moved_ns + FT_IDLE_NS;
}

static enum ft_work_outcome ft_sent(struct ft_completions *all, const struct ft_work *work)
{
	struct ft_pair *pair = ft_pair_of(all, work, true);
	uint32_t at;

	if (!pair)
		return FT_OVERFLOWED;
	pair->queue = work->queue;
	if (!pair->aligned && ft_pair_idle(all, pair))
		pair->aligned = true;
	pair->moved_ns = work->time_ns;
	if (work->flags & FT_SEND_SIGNALED && !pair->selective) {
		/* So the requests before it, which are not signaled, have no completions. */
		pair->selective = true;
		ft_pair_clear(pair, pair->aligned);
	} else if (!(work->flags & FT_SEND_SIGNALED) && pair->selective) {
		return FT_NOT_MATCHED;
	}
	for (at = pair->tail; !pair->reuses && at != pair->head && pair->tail - at < FT_RUN; at--)
		if (!ft_request(pair, at - 1)->done && ft_request(pair, at - 1)->wr_id == work->wr_id) {
			pair->reuses = true;
			pair->run = 0;
		}
	if (pair->tail - pair->head == pair->room && !ft_pair_grow(all, pair)) {
		ft_pair_clear(pair, false);
		return FT_OVERFLOWED;
	}
	*ft_request(pair, pair->tail++) =
		(struct ft_request){ work->time_ns, work->wr_id, work->tid, work->operation, false };
	return FT_MATCHED;
}

/* What a thread posted last was not taken. */
static void ft_refused(struct ft_completions *all, const struct ft_work *work)
{
	struct ft_pair *pair = ft_pair_of(all, work, false);
	uint32_t left;

	if (!pair)
		return;
	left = pair->selective ? work->place : work->count;
	for (uint32_t at = pair->tail; left && at != pair->head; at--) {
		struct ft_request *request = ft_request(pair, at - 1);

		if (request->tid == work->tid && !request->done) {
			request->done = true;
			left--;
		}
	}
	while (pair->tail != pair->head && ft_request(pair, pair->tail - 1)->done)
		pair->tail--;
}

/* enum ibv_wc_opcode of a request that was done; 255: of none that is known. */
static inline uint8_t ft_completes_as(uint8_t operation)
{
	static const uint8_t as[] = { 1, 1, 0, 0, 2, 3, 4, 6, 5, 0, 7 };

	return operation < sizeof(as) ? as[operation] : 255;
}

/* The request that a completion completes, from the oldest on; FT_NONE where it is none of the next. */
static uint32_t ft_find_request(struct ft_pair *pair, const struct ft_work *work)
{
	uint32_t looked = 0;

	for (uint32_t at = pair->head; at != pair->tail && looked < FT_LOOK; at++) {
		struct ft_request *request = ft_request(pair, at);
		uint8_t as = ft_completes_as(request->operation);

		if (request->done)
			continue;
		looked++;
		if (request->wr_id == work->wr_id &&
		    (work->status || as == 255 || as == work->operation))
			return at;
	}
	return FT_NONE;
}

static void ft_take_request(struct ft_pair *pair, uint32_t at)
{
	ft_request(pair, at)->done = true;
	if (at == pair->head)
		pair->bypassed = 0;
	while (pair->head != pair->tail && ft_request(pair, pair->head)->done)
		pair->head++;
}

static enum ft_work_outcome ft_completed(struct ft_completions *all, struct ft_work *work)
{
	struct ft_pair *pair = ft_pair_of(all, work, true);
	bool changed;
	uint32_t at;

	if (!pair)
		return FT_OVERFLOWED;
	pair->moved_ns = work->time_ns;
	changed = pair->wr_id != work->wr_id;
	pair->wr_id = work->wr_id;
	at = ft_find_request(pair, work);
	if (at == FT_NONE) {
		pair->run = 0;
		if (!pair->aligned)
			return FT_EARLIER;
		pair->aligned = false;
		return FT_MISMATCHED;
	}
	work->latency_ns = work->time_ns > ft_request(pair, at)->time_ns ?
				   work->time_ns - ft_request(pair, at)->time_ns : 1;
	if (!pair->aligned) {
		pair->run = at != pair->head ? 0 : pair->run + changed;
		while (pair->head != at) /* they do not come any more */
			ft_take_request(pair, pair->head);
		ft_take_request(pair, at);
		pair->aligned = pair->run >= FT_RUN && !pair->reuses;
		work->latency_ns = 0;
		return FT_AMBIGUOUS;
	}
	if (at != pair->head && ++pair->bypassed > FT_BYPASSED) {
		ft_pair_clear(pair, false);
		work->latency_ns = 0;
		return FT_MISMATCHED;
	}
	ft_take_request(pair, at);
	return FT_MATCHED;
}

/* The queue pair is in its error state: what is outstanding is flushed, signaled or not. */
static void ft_failed(struct ft_completions *all, const struct ft_work *work)
{
	struct ft_pair *pair = ft_pair_of(all, work, false);

	if (pair)
		ft_pair_clear(pair, false);
}

static void ft_emptied(struct ft_completions *all, const struct ft_work *work)
{
	struct ft_poll_key key = { work->queue, work->tgid };
	bool added;
	uint32_t number = ft_table_add(&all->polls, &key, &added);

	if (number != FT_NONE)
		((struct ft_poll *)ft_table_at(&all->polls, number))->empty_ns = work->time_ns;
}

static uint32_t ft_latency_bucket(uint64_t latency_ns)
{
	double index = ceil(ldexp(log2((double)latency_ns * 1e-9), FT_LATENCY_SCALE)) - 1 + FT_LATENCY_BASE;

	return index < 0 ? 0 : index >= FT_LATENCY_BUCKETS ? FT_LATENCY_BUCKETS - 1 : (uint32_t)index;
}

static void ft_count(struct ft_completions *all, const struct ft_work *work)
{
	struct ft_group_key key = { work->context, work->tgid, work->qpn, work->kind, work->operation,
				    (uint8_t)(work->status < 255 ? work->status : 255), { 0 } };
	struct ft_group *group;
	uint32_t number;
	bool added;

	if (work->kind == FT_WORK_REFUSED)
		key.operation = 0;
	number = ft_table_add(&all->groups, &key, &added);
	if (number == FT_NONE)
		return;
	group = (struct ft_group *)ft_table_at(&all->groups, number);
	/* Some drivers set the flag for connections too, whose bytes have none before them. */
	if (work->kind == FT_WORK_COMPLETED && work->operation >= FT_WC_RECEIVE && work->flags & FT_WC_GRH)
		group->headers++;
	group->count += work->kind == FT_WORK_REFUSED ? work->count : 1;
	group->bytes += work->bytes;
	group->outcomes[work->outcome]++;
	if (!work->latency_ns)
		return;
	group->latency_ns += work->latency_ns;
	if (!group->least_ns || work->latency_ns < group->least_ns)
		group->least_ns = work->latency_ns;
	if (work->latency_ns > group->most_ns)
		group->most_ns = work->latency_ns;
	group->latencies[ft_latency_bucket(work->latency_ns)]++;
}

/* Forget what is outstanding, for it is not known any more. */
static void ft_completions_doubt(struct ft_completions *all)
{
	for (uint32_t number = 0; number < all->pairs.used; number++)
		if (ft_table_lives(&all->pairs, number))
			ft_pair_clear(ft_pair(all, number), false);
}

/* ``whole``: no record is missing between these, nor before them since the last call. */
static void ft_completions_feed(struct ft_completions *all, struct ft_work *works, size_t count, bool whole)
{
	for (size_t i = 0; i < count; i++) {
		struct ft_work *work = works + i;

		work->outcome = FT_NOT_MATCHED;
		work->latency_ns = 0;
		switch (work->kind) {
		case FT_WORK_SENT:
			if (whole)
				ft_sent(all, work);
			break;
		case FT_WORK_REFUSED:
			ft_refused(all, work);
			break;
		case FT_WORK_RESET: {
			struct ft_pair *pair = ft_pair_of(all, work, true);

			if (pair) {
				ft_pair_clear(pair, whole);
				pair->selective = pair->reuses = false;
			}
			break;
		}
		case FT_WORK_COMPLETED:
			if (work->status)
				ft_failed(all, work);
			else if (work->operation < FT_WC_RECEIVE)
				work->outcome = (uint8_t)(whole ? ft_completed(all, work) : FT_LOST);
			break;
		case FT_WORK_EMPTY:
			ft_emptied(all, work);
			break;
		}
		if (work->kind == FT_WORK_SENT || work->kind == FT_WORK_RECEIVE ||
		    work->kind == FT_WORK_COMPLETED || work->kind == FT_WORK_REFUSED)
			ft_count(all, work);
	}
	if (!whole)
		ft_completions_doubt(all);
}

static void ft_completions_free(struct ft_completions *all)
{
	for (uint32_t number = 0; number < all->pairs.used; number++)
		if (ft_table_lives(&all->pairs, number))
			free(ft_pair(all, number)->requests);
	ft_table_free(&all->pairs);
	ft_table_free(&all->polls);
	ft_table_free(&all->groups);
	all->remembered = 0;
}

#endif
