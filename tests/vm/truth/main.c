/* SPDX-License-Identifier: Apache-2.0 */
/* Loads packets.bpf.o (argv[1]), says "ready", and prints what was sent, a JSON object a line, on SIGTERM. */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

struct key {
	char device[16];
	__u32 qpn;
	__u32 opcode;
};

struct count {
	__u64 packets;
	__u64 bytes;
	__u64 again;
};

int main(int argc, char **argv)
{
	struct bpf_object *object = argc > 1 ? bpf_object__open_file(argv[1], NULL) : NULL;
	struct bpf_program *program;
	struct key key, *previous = NULL;
	struct count count;
	sigset_t stop;
	int map, number;

	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	if (!object || bpf_object__load(object))
		return 1;
	program = bpf_object__next_program(object, NULL);
	if (!bpf_program__attach(program))
		return 1;
	puts("ready");
	fflush(stdout);
	sigwait(&stop, &number);

	map = bpf_object__find_map_fd_by_name(object, "packets");
	while (!bpf_map_get_next_key(map, previous, &key)) {
		if (!bpf_map_lookup_elem(map, &key, &count))
			printf("{\"device\":\"%s\",\"qpn\":%u,\"opcode\":%u,\"packets\":%llu,\"bytes\":%llu,\"again\":%llu}\n",
			       key.device, key.qpn, key.opcode, count.packets, count.bytes, count.again);
		previous = &key;
	}
	return 0;
}
