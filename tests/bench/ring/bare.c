/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least that a consumer can do: libbpf's ring_buffer with a callback in C that adds to a table.
 *
 * bare OBJECT; for each line "BURSTS" on stdin a line of JSON: CPU time of consuming that many bursts, in
 * nanoseconds, and the table as [[count, bytes], ...].
 */
#define _GNU_SOURCE
#include <bpf/libbpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "record.h"

struct sum {
	uint64_t count, bytes;
};

static struct sum sums[KEYS];

static int fold(void *context, void *data, size_t size)
{
	const struct record *record = data;

	if (size < sizeof(*record) || record->qpn >= KEYS)
		return 0;
	sums[record->qpn].count++;
	sums[record->qpn].bytes += record->bytes;
	return 0;
}

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	struct bpf_object *object;
	struct bpf_map *constants;
	struct bpf_program *program;
	struct ring_buffer *ring;
	uint32_t tgid = getpid();
	size_t size;
	int bursts;

	if (argc != 2)
		fail("bare OBJECT");
	object = bpf_object__open_file(argv[1], NULL);
	if (!object)
		fail("open");
	constants = bpf_object__find_map_by_name(object, ".rodata");
	if (!constants)
		fail(".rodata");
	memcpy((void *)bpf_map__initial_value(constants, &size), &tgid, sizeof(tgid));
	if (bpf_object__load(object))
		fail("load");
	program = bpf_object__find_program_by_name(object, "burst");
	if (!bpf_program__attach(program))
		fail("attach");
	ring = ring_buffer__new(bpf_object__find_map_fd_by_name(object, "records"), fold, NULL, NULL);
	if (!ring)
		fail("ring_buffer__new");
	while (scanf("%d", &bursts) == 1) {
		uint64_t spent = 0;

		memset(sums, 0, sizeof(sums));
		for (int burst = 0; burst < bursts; burst++) {
			uint64_t began;

			syscall(SYS_GETPGID, 0);
			began = cpu_ns();
			if (ring_buffer__consume(ring) < 0)
				fail("consume");
			spent += cpu_ns() - began;
		}
		printf("{\"cpu_ns\": %llu, \"sums\": [", (unsigned long long)spent);
		for (int key = 0; key < KEYS; key++)
			printf("%s[%llu, %llu]", key ? ", " : "", (unsigned long long)sums[key].count,
			       (unsigned long long)sums[key].bytes);
		printf("]}\n");
		fflush(stdout);
	}
	return 0;
}
