/* SPDX-License-Identifier: Apache-2.0 */
/* The memory regions that are registered, and their sums by who may do what with them. */
#ifndef FABRICTAP_REGIONS_H
#define FABRICTAP_REGIONS_H

#include "records.h"
#include "ring.h"
#include "table.h"

/* enum ibv_access_flags, libibverbs/verbs.h */
#define FT_REMOTE_WRITE 2u
#define FT_REMOTE_READ 4u
#define FT_REMOTE_ATOMIC 8u

enum ft_region_known { FT_REGION_PID = 1, FT_REGION_ADDRESS = 2, FT_REGION_ACCESS = 4 };
/* What a peer may do: the bits of reading and writing, or that it is not known. */
enum ft_region_remote { FT_REMOTE_UNKNOWN = 4 };
enum ft_region_atomic { FT_ATOMIC_NO, FT_ATOMIC_YES, FT_ATOMIC_UNKNOWN };

struct ft_region_key {
	uint32_t device; /* number of its name */
	uint32_t lkey;
};

struct ft_region {
	struct ft_region_key key;
	uint32_t rkey;
	int32_t pid;
	uint64_t address;
	uint64_t length;
	uint64_t serial; /* of the registration: a key is used again */
	uint32_t access;
	uint32_t known;
	uint32_t sum; /* number of its sum */
	uint32_t reserved;
};

struct ft_sum_key {
	uint32_t device;
	int32_t pid;
	uint8_t has_pid;
	uint8_t remote; /* bit 0: read, bit 1: write; or FT_REMOTE_UNKNOWN */
	uint8_t atomic;
	uint8_t padding;
};
_Static_assert(sizeof(struct ft_sum_key) == 12, "a key with holes never matches");

struct ft_sum {
	struct ft_sum_key key;
	uint32_t reserved;
	uint64_t count;
	uint64_t bytes;
};

struct ft_device_name {
	char name[FT_DEVICE_NAME_LEN]; /* filled up with NUL */
	uint8_t wanted;
	uint8_t padding[7];
};

struct ft_regions {
	struct ft_table table;
	struct ft_table sums;
	struct ft_table devices;
	uint64_t serial;
	uint64_t dropped;
	/* Kinds of the journal's events; negative: none is written. */
	int32_t registered;
	int32_t deregistered;
};

static inline struct ft_region *ft_region_at(const struct ft_regions *regions, uint32_t number)
{
	return (struct ft_region *)ft_table_at(&regions->table, number);
}

static struct ft_sum_key ft_region_sum_key(const struct ft_region *region)
{
	struct ft_sum_key key = {.device = region->key.device};

	if (region->known & FT_REGION_PID) {
		key.has_pid = 1;
		key.pid = region->pid;
	}
	if (region->known & FT_REGION_ACCESS) {
		key.remote = region->access & FT_REMOTE_READ ? 1 : 0;
		if (region->access & FT_REMOTE_WRITE)
			key.remote |= 2;
		key.atomic = region->access & FT_REMOTE_ATOMIC ? FT_ATOMIC_YES : FT_ATOMIC_NO;
	} else {
		key.remote = FT_REMOTE_UNKNOWN;
		key.atomic = FT_ATOMIC_UNKNOWN;
	}
	return key;
}

static void ft_region_leave_sum(struct ft_regions *regions, const struct ft_region *region)
{
	struct ft_sum *sum = (struct ft_sum *)ft_table_at(&regions->sums, region->sum);

	sum->bytes -= region->length;
	if (!--sum->count)
		ft_table_remove(&regions->sums, region->sum);
}

/* Adds a region, or replaces the one with its key. False where there is no room, which is counted. */
static bool ft_regions_put(struct ft_regions *regions, const struct ft_region *from)
{
	struct ft_sum_key sum_key = ft_region_sum_key(from);
	struct ft_region *region;
	uint32_t number, sum_number;
	struct ft_sum *sum;
	bool added, sum_added;

	number = ft_table_add(&regions->table, &from->key, &added);
	if (number == FT_NONE) {
		regions->dropped++;
		return false;
	}
	region = ft_region_at(regions, number);
	if (!added)
		ft_region_leave_sum(regions, region);
	sum_number = ft_table_add(&regions->sums, &sum_key, &sum_added);
	if (sum_number == FT_NONE) { /* no memory: there are never more sums than regions */
		ft_table_remove(&regions->table, number);
		regions->dropped++;
		return false;
	}
	sum = (struct ft_sum *)ft_table_at(&regions->sums, sum_number);
	sum->count++;
	sum->bytes += from->length;
	*region = *from;
	region->sum = sum_number;
	region->serial = ++regions->serial;
	return true;
}

static void ft_regions_remove(struct ft_regions *regions, uint32_t number)
{
	ft_region_leave_sum(regions, ft_region_at(regions, number));
	ft_table_remove(&regions->table, number);
}

static void ft_region_tell(const struct ft_regions *regions, struct ft_ring *ring, int32_t kind,
			   const struct ft_record *record, uint64_t time_ns, uint64_t length)
{
	struct ft_event event = {.time_ns = time_ns, .kind = (uint16_t)kind, .severity = 9, .value = length};

	if (kind < 0)
		return;
	event.pid = record->flags & FT_FLAG_KERNEL ? 0 : (int32_t)record->tgid;
	memcpy(event.device, record->device, sizeof(event.device));
	if (!(record->flags & FT_FLAG_KERNEL))
		memcpy(event.process, record->comm, sizeof(event.process));
	ft_ring_event(ring, &event);
}

/* One record of a registration or its end. False: nobody has said whether its device is wanted. */
static bool ft_regions_fold(struct ft_regions *regions, struct ft_ring *ring, const struct ft_record *record,
			    uint64_t time_ns)
{
	char name[FT_DEVICE_NAME_LEN] = {0};
	struct ft_region region = {.key = {.lkey = record->mr.lkey}};
	uint32_t device, number;

	memcpy(name, record->device, strnlen(record->device, sizeof(name) - 1));
	device = region.key.device = ft_table_find(&regions->devices, name);
	if (device == FT_NONE)
		return false;
	if (!((struct ft_device_name *)ft_table_at(&regions->devices, device))->wanted)
		return true;
	if (record->kind == FT_MR_REGISTERED) {
		region.rkey = record->mr.rkey;
		region.length = record->mr.length;
		if (!(record->flags & FT_FLAG_KERNEL)) {
			region.known |= FT_REGION_PID;
			region.pid = (int32_t)record->tgid;
		}
		if (record->flags & FT_FLAG_ACCESS) {
			region.known |= FT_REGION_ACCESS | FT_REGION_ADDRESS;
			region.access = record->mr.access;
			region.address = record->mr.address;
		}
		if (ft_regions_put(regions, &region))
			ft_region_tell(regions, ring, regions->registered, record, time_ns, region.length);
		return true;
	}
	number = ft_table_find(&regions->table, &region.key);
	if (number != FT_NONE) {
		uint64_t length = ft_region_at(regions, number)->length;

		ft_regions_remove(regions, number);
		ft_region_tell(regions, ring, regions->deregistered, record, time_ns, length);
	}
	return true;
}

struct ft_moment {
	uint64_t time_ns;
	uint32_t at;
};

static int ft_by_time(const void *one, const void *other)
{
	const struct ft_moment *a = (const struct ft_moment *)one, *b = (const struct ft_moment *)other;

	if (a->time_ns != b->time_ns)
		return a->time_ns < b->time_ns ? -1 : 1;
	return a->at < b->at ? -1 : a->at > b->at;
}

/* The order of the records' times: an end is told when it is done, with the time at which it began. */
static void ft_order_records(const struct ft_record *records, uint32_t count, struct ft_moment *order)
{
	bool sorted = true;

	for (uint32_t i = 0; i < count; i++) {
		order[i].time_ns = records[i].time_ns;
		order[i].at = i;
		sorted = sorted && (!i || order[i - 1].time_ns <= order[i].time_ns);
	}
	if (!sorted)
		qsort(order, count, sizeof(*order), ft_by_time);
}

#endif
