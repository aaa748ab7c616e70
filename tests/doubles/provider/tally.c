// SPDX-License-Identifier: Apache-2.0
/* See tally.h. */
#include "tally.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t hash(const struct tally_key *key)
{
	const unsigned char *bytes = (const unsigned char *)key;
	uint64_t value = 14695981039346656037u;

	for (size_t i = 0; i < sizeof(*key); i++)
		value = (value ^ bytes[i]) * 1099511628211u;
	return value ^ value >> 29;
}

static struct tally_entry *entry(struct tally *tally, const struct tally_key *key)
{
	size_t slot;

	if (tally->used * 2 >= tally->room) {
		struct tally old = *tally;

		tally->room = old.room ? old.room * 2 : 256;
		tally->used = 0;
		tally->entries = calloc(tally->room, sizeof(*tally->entries));
		if (!tally->entries)
			abort();
		for (size_t i = 0; i < old.room; i++)
			if (old.entries[i].operations)
				*entry(tally, &old.entries[i].key) = old.entries[i];
		free(old.entries);
	}
	for (slot = hash(key) % tally->room; tally->entries[slot].operations; slot = (slot + 1) % tally->room)
		if (!memcmp(&tally->entries[slot].key, key, sizeof(*key)))
			return &tally->entries[slot];
	tally->entries[slot].key = *key;
	tally->used++;
	return &tally->entries[slot];
}

/* The definition of the slots in records.h, word for word: slot s >= 1 holds (2^(s-2), 2^(s-1)] bytes. */
static size_t size_slot(uint64_t bytes)
{
	size_t slot = 1;

	if (!bytes)
		return 0;
	while (slot < TALLY_SIZES - 1 && bytes > (uint64_t)1 << (slot - 1))
		slot++;
	return slot;
}

void tally_add(struct tally *tally, const struct tally_key *key, const struct request *request)
{
	struct tally_entry *counted = entry(tally, key);

	counted->operations++;
	counted->bytes += request->bytes;
	counted->sges += request->sges;
	counted->inlined += request->inlined;
	counted->signaled += request->signaled;
	counted->sizes[size_slot(request->bytes)]++;
}

void tally_merge(struct tally *into, const struct tally *from)
{
	for (size_t i = 0; i < from->room; i++) {
		const struct tally_entry *one = &from->entries[i];
		struct tally_entry *sum;

		if (!one->operations)
			continue;
		sum = entry(into, &one->key);
		sum->operations += one->operations;
		sum->bytes += one->bytes;
		sum->sges += one->sges;
		sum->inlined += one->inlined;
		sum->signaled += one->signaled;
		for (size_t slot = 0; slot < TALLY_SIZES; slot++)
			sum->sizes[slot] += one->sizes[slot];
	}
	into->long_chains += from->long_chains;
	into->long_lists += from->long_lists;
}

void tally_print(const struct tally *tally)
{
	const char *comma = "";

	printf("{\"long_chains\":%" PRIu64 ",\"long_lists\":%" PRIu64 ",\"counters\":[", tally->long_chains,
	       tally->long_lists);
	for (size_t i = 0; i < tally->room; i++) {
		const struct tally_entry *one = &tally->entries[i];

		if (!one->operations)
			continue;
		printf("%s{\"context\":%" PRIu64 ",\"number\":%u,\"operation\":%u,\"queue\":%u,\"qp_type\":%u,"
		       "\"peer_qpn\":%u,\"address_handle\":%d,\"operations\":%" PRIu64 ",\"bytes\":%" PRIu64
		       ",\"sges\":%" PRIu64 ",\"inlined\":%" PRIu64 ",\"signaled\":%" PRIu64 ",\"sizes\":[",
		       comma, one->key.context, one->key.number, one->key.operation, one->key.queue,
		       one->key.qp_type, one->key.peer_qpn, one->key.address_handle, one->operations, one->bytes,
		       one->sges, one->inlined, one->signaled);
		for (size_t slot = 0; slot < TALLY_SIZES; slot++)
			printf("%s%" PRIu64, slot ? "," : "", one->sizes[slot]);
		printf("]}");
		comma = ",";
	}
	printf("]}\n");
}

void tally_free(struct tally *tally)
{
	free(tally->entries);
	memset(tally, 0, sizeof(*tally));
}
