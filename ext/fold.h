/* SPDX-License-Identifier: Apache-2.0 */
/* What runs per record, without the GIL: ring-buffer records into a batch, per-CPU values into one. */
#ifndef FABRICTAP_FOLD_H
#define FABRICTAP_FOLD_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "records.h"

/* A batch of records of one size. Whoever drains it sets used to 0. */
struct ft_batch {
	unsigned char *data;
	size_t record_size;
	size_t capacity; /* bytes, a multiple of record_size */
	size_t used;
	uint64_t received;
	uint64_t misfits; /* records of another size: the object and the agent do not match */
};

/* A ring_buffer_sample_fn. A full batch stops the consumer after its last record, so nothing is lost. */
static int ft_collect(void *context, void *data, size_t size)
{
	struct ft_batch *batch = context;

	if (size != batch->record_size) {
		batch->misfits++;
		return 0;
	}
	memcpy(batch->data + batch->used, data, size);
	batch->used += size;
	batch->received++;
	return batch->used + size > batch->capacity ? -ENOBUFS : 0;
}

/* Sums one counter of posted work over the CPUs; values are rounded up to 8 bytes, which ft_post is. */
static void ft_sum_posts(const struct ft_post *values, size_t cpus, struct ft_post *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (size_t cpu = 0; cpu < cpus; cpu++) {
		const struct ft_post *value = values + cpu;

		if (!value->operations)
			continue;
		sum->operations += value->operations;
		sum->bytes += value->bytes;
		sum->sges += value->sges;
		sum->inlined += value->inlined;
		sum->signaled += value->signaled;
		for (size_t slot = 0; slot < FT_SIZE_SLOTS; slot++)
			sum->sizes[slot] += value->sizes[slot];
	}
	sum->sges += sum->operations; /* records.h */
}

#endif
