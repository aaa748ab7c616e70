/* SPDX-License-Identifier: Apache-2.0 */
/* The least that reading the counters of GPUs can cost: the calls, in a loop, and nothing else.
 *
 * And a library that takes its time: what a driver does in a call is not in the stand-in. */
#include <stdint.h>
#include <time.h>

struct field {
	uint32_t id, scope;
	int64_t timestamp, latency;
	uint32_t type;
	int32_t status;
	uint64_t value;
};
typedef int (*get_fields)(void *, int, struct field *);

static get_fields real;
static uint64_t delay_ns;

void delay(get_fields function, uint64_t ns)
{
	real = function;
	delay_ns = ns;
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

int delayed(void *device, int count, struct field *fields)
{
	uint64_t until = now() + delay_ns;

	while (delay_ns && now() < until)
		;
	return real(device, count, fields);
}

/* Returns how many calls and fields had no answer. */
int loop(get_fields get, void **devices, int gpus, struct field *fields, int count, int rounds)
{
	int failed = 0;

	for (int round = 0; round < rounds; round++)
		for (int gpu = 0; gpu < gpus; gpu++)
			failed += get(devices[gpu], count, fields + gpu * count) != 0;
	for (int i = 0; i < gpus * count; i++)
		failed += fields[i].status != 0;
	return failed;
}
