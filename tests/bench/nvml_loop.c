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

/* One more thing that a reader of counters must do: keep what it was told. */
static uint64_t kept[16 * 128];

static int tick(get_fields get, void **devices, int gpus, struct field *fields, int count)
{
	int failed = 0;

	for (int gpu = 0; gpu < gpus; gpu++) {
		struct field *of = fields + gpu * count;

		failed += get(devices[gpu], count, of) != 0;
		for (int i = 0; i < count; i++) {
			failed += of[i].status != 0;
			kept[gpu * count + i] = of[i].value;
		}
	}
	return failed;
}

/* Makes `ticks` ticks, period_ns apart: it sleeps until each; 0: without sleeping. Returns how many calls and
 * fields had no answer. */
int loop(get_fields get, void **devices, int gpus, struct field *fields, int count, int ticks, uint64_t period_ns)
{
	uint64_t at = now();
	int failed = 0;

	if (gpus * count > (int)(sizeof(kept) / sizeof(*kept)))
		return -1;
	for (int i = 0; i < ticks; i++) {
		if (period_ns) {
			struct timespec until;

			at += period_ns;
			until.tv_sec = (time_t)(at / 1000000000u);
			until.tv_nsec = (long)(at % 1000000000u);
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
		}
		failed += tick(get, devices, gpus, fields, count);
	}
	return failed;
}
