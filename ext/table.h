/* SPDX-License-Identifier: Apache-2.0 */
/* A bounded hash table: entries of one size, each beginning with its key, found by open addressing.
 *
 * An entry keeps its number while it lives; its address changes when the table grows, up to the capacity that
 * it was made with. Keys come from programs that are watched, so the hash has a secret seed. Nothing here
 * locks, and nothing is freed to the system before the end: what a table once needed it may need again.
 */
#ifndef FABRICTAP_TABLE_H
#define FABRICTAP_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define FT_NONE UINT32_MAX
#define FT_FIRST_ROOM 64u

struct ft_table {
	char *entries;
	uint32_t *hashes; /* of the entry with that number; 0: the entry is free */
	uint32_t *places; /* the index: entry number + 1, 0 where there is none */
	size_t stride;
	uint32_t key_size;
	uint32_t capacity;
	uint32_t room; /* entries that there is memory for */
	uint32_t used; /* entries that were ever used: those behind are free and in no list */
	uint32_t count;
	uint32_t mask; /* of the index, whose size is a power of two of at least twice the room */
	uint32_t free; /* number + 1 of the first free entry, which holds that of the next; 0: none */
	uint64_t refused;
	uint64_t seed;
};

static inline void *ft_table_at(const struct ft_table *table, uint32_t number)
{
	return table->entries + (size_t)number * table->stride;
}

static inline bool ft_table_lives(const struct ft_table *table, uint32_t number)
{
	return number < table->used && table->hashes[number];
}

static inline uint32_t ft_table_hash(const struct ft_table *table, const void *key)
{
	const char *from = (const char *)key;
	uint64_t hash = table->seed, word;
	uint32_t left = table->key_size;

	for (; left >= 8; left -= 8, from += 8) {
		memcpy(&word, from, 8);
		hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
		hash ^= hash >> 29;
	}
	if (left >= 4) {
		uint32_t half;

		memcpy(&half, from, 4);
		hash = (hash ^ half) * UINT64_C(0xBF58476D1CE4E5B9);
		hash ^= hash >> 29;
		from += 4;
		left -= 4;
	}
	for (; left; left--, from++)
		hash = (hash ^ (uint8_t)*from) * UINT64_C(0x94D049BB133111EB);
	hash = (hash ^ (hash >> 32)) * UINT64_C(0x94D049BB133111EB);
	return (uint32_t)(hash >> 32) | 1; /* never 0 */
}

static inline bool ft_table_same(const struct ft_table *table, const void *entry, const void *key)
{
	switch (table->key_size) { /* a compare of known size is a few instructions */
	case 4:
		return !memcmp(entry, key, 4);
	case 8:
		return !memcmp(entry, key, 8);
	case 12:
		return !memcmp(entry, key, 12);
	case 16:
		return !memcmp(entry, key, 16);
	case 32:
		return !memcmp(entry, key, 32);
	default:
		return !memcmp(entry, key, table->key_size);
	}
}

static inline uint32_t ft_table_place(const struct ft_table *table, uint32_t hash)
{
	return (hash >> 1) & table->mask; /* bit 0 says nothing */
}

static int ft_table_init(struct ft_table *table, size_t stride, uint32_t key_size, uint32_t capacity)
{
	memset(table, 0, sizeof(*table));
	table->stride = stride;
	table->key_size = key_size;
	table->capacity = capacity;
	if (getrandom(&table->seed, sizeof(table->seed), GRND_NONBLOCK) != sizeof(table->seed))
		table->seed = (uint64_t)(uintptr_t)table * UINT64_C(0x9E3779B97F4A7C15);
	return 0;
}

static void ft_table_free(struct ft_table *table)
{
	free(table->entries);
	free(table->hashes);
	free(table->places);
	memset(table, 0, sizeof(*table));
}

static inline uint32_t ft_table_find_hashed(const struct ft_table *table, const void *key, uint32_t hash)
{
	uint32_t at, place;

	if (!table->count)
		return FT_NONE;
	for (place = ft_table_place(table, hash); (at = table->places[place]); place = (place + 1) & table->mask)
		if (table->hashes[at - 1] == hash && ft_table_same(table, ft_table_at(table, at - 1), key))
			return at - 1;
	return FT_NONE;
}

static inline uint32_t ft_table_find(const struct ft_table *table, const void *key)
{
	return ft_table_find_hashed(table, key, ft_table_hash(table, key));
}

static void ft_table_put_place(struct ft_table *table, uint32_t number)
{
	uint32_t place = ft_table_place(table, table->hashes[number]);

	while (table->places[place])
		place = (place + 1) & table->mask;
	table->places[place] = number + 1;
}

static bool ft_table_grow(struct ft_table *table)
{
	uint32_t room = table->room ? table->room * 2 : FT_FIRST_ROOM, size = 1;
	uint32_t *hashes, *places;
	char *entries;

	if (room > table->capacity)
		room = table->capacity;
	if (room <= table->room)
		return false;
	while (size < room * UINT64_C(2))
		size *= 2;
	/* Each is kept as soon as it is had: a failure of the next leaves a table that works. */
	entries = (char *)realloc(table->entries, room * table->stride);
	if (!entries)
		return false;
	table->entries = entries;
	hashes = (uint32_t *)realloc(table->hashes, room * sizeof(*hashes));
	if (!hashes)
		return false;
	table->hashes = hashes;
	places = (uint32_t *)calloc(size, sizeof(*places));
	if (!places)
		return false;
	free(table->places);
	table->places = places;
	table->mask = size - 1;
	table->room = room;
	for (uint32_t number = 0; number < table->used; number++)
		if (table->hashes[number])
			ft_table_put_place(table, number);
	return true;
}

/* The entry with this key, made if need be: all zero but for the key. FT_NONE where the table is full. */
static inline uint32_t ft_table_add(struct ft_table *table, const void *key, bool *added)
{
	uint32_t hash = ft_table_hash(table, key), number = ft_table_find_hashed(table, key, hash);
	char *entry;

	*added = false;
	if (number != FT_NONE)
		return number;
	if (table->free) {
		number = table->free - 1;
		memcpy(&table->free, ft_table_at(table, number), sizeof(table->free));
	} else {
		if (table->used == table->room && !ft_table_grow(table)) {
			table->refused++;
			return FT_NONE;
		}
		number = table->used++;
	}
	entry = (char *)ft_table_at(table, number);
	memset(entry, 0, table->stride);
	memcpy(entry, key, table->key_size);
	table->hashes[number] = hash;
	table->count++;
	ft_table_put_place(table, number);
	*added = true;
	return number;
}

static void ft_table_remove(struct ft_table *table, uint32_t number)
{
	uint32_t hole = ft_table_place(table, table->hashes[number]), place;

	while (table->places[hole] != number + 1)
		hole = (hole + 1) & table->mask;
	/* What was put behind because its place was taken moves up, so that no search ends too early. */
	for (place = (hole + 1) & table->mask; table->places[place]; place = (place + 1) & table->mask) {
		uint32_t wanted = ft_table_place(table, table->hashes[table->places[place] - 1]);

		if (((place - wanted) & table->mask) >= ((place - hole) & table->mask)) {
			table->places[hole] = table->places[place];
			hole = place;
		}
	}
	table->places[hole] = 0;
	table->hashes[number] = 0;
	table->count--;
	memcpy(ft_table_at(table, number), &table->free, sizeof(table->free));
	table->free = number + 1;
}

#endif
