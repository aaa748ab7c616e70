/* SPDX-License-Identifier: Apache-2.0 */
/* Records of one small size counted by a key that stands in them, without the GIL.
 *
 * A record costs one look into a hash table and one or two additions there. What has come together goes to the
 * series of its key when somebody folds, under the node's lock.
 */
#ifndef FABRICTAP_KEYED_H
#define FABRICTAP_KEYED_H

#include "ring.h"
#include "table.h"

#define FT_KEY_MAX 32u

struct ft_tally {
	uint8_t key[FT_KEY_MAX];
	uint64_t count; /* since the last fold, here and below */
	uint64_t total;
	uint32_t count_series;
	uint32_t total_series;
	uint8_t touched; /* in the list */
	uint8_t bound;
};

struct ft_keyed {
	struct ft_table table;
	size_t record_size;
	uint32_t key_at; /* offsets in a record */
	uint32_t total_at; /* of 64 bits; FT_NONE: nothing is summed up */
	uint32_t *touched;
	uint32_t touched_room;
	uint32_t touched_count;
	uint64_t received;
	uint64_t misfits;
};

static inline struct ft_tally *ft_keyed_tally(const struct ft_keyed *keyed, uint32_t number)
{
	return (struct ft_tally *)ft_table_at(&keyed->table, number);
}

static bool ft_keyed_reserve(struct ft_keyed *keyed)
{
	uint32_t *touched;

	if (keyed->touched_room >= keyed->table.room)
		return true;
	touched = (uint32_t *)realloc(keyed->touched, keyed->table.room * sizeof(*touched));
	if (!touched)
		return false;
	keyed->touched = touched;
	keyed->touched_room = keyed->table.room;
	return true;
}

/* A ring_buffer_sample_fn. A key for which there is no room is counted by the table. */
static int ft_keyed_take(void *context, void *data, size_t size)
{
	struct ft_keyed *keyed = (struct ft_keyed *)context;
	const char *record = (const char *)data;
	struct ft_tally *tally;
	uint32_t number;
	bool added;

	if (size != keyed->record_size) {
		keyed->misfits++;
		return 0;
	}
	keyed->received++;
	number = ft_table_add(&keyed->table, record + keyed->key_at, &added);
	if (number == FT_NONE)
		return 0;
	tally = ft_keyed_tally(keyed, number);
	if (added)
		tally->count_series = tally->total_series = FT_NO_SERIES;
	tally->count++;
	if (keyed->total_at != FT_NONE) {
		uint64_t value;

		memcpy(&value, record + keyed->total_at, sizeof(value));
		tally->total += value;
	}
	if (!tally->touched && ft_keyed_reserve(keyed)) {
		tally->touched = 1;
		keyed->touched[keyed->touched_count++] = number;
	}
	return 0;
}

static inline void ft_keyed_tell(struct ft_tally *tally, struct ft_ring *ring, uint64_t now_ns)
{
	ft_ring_add(ring, tally->count_series, (int64_t)tally->count, now_ns);
	ft_ring_add(ring, tally->total_series, (int64_t)tally->total, now_ns);
	tally->count = tally->total = 0;
}

/* Folds what has come. The numbers of tallies that are not bound are left in the list: so many. */
static uint32_t ft_keyed_fold(struct ft_keyed *keyed, struct ft_ring *ring, uint64_t now_ns)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < keyed->touched_count; i++) {
		uint32_t number = keyed->touched[i];
		struct ft_tally *tally = ft_keyed_tally(keyed, number);

		tally->touched = 0;
		if (tally->bound)
			ft_keyed_tell(tally, ring, now_ns);
		else
			keyed->touched[left++] = number;
	}
	keyed->touched_count = 0;
	return left;
}

#endif
