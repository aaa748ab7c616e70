/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The record that every consumer of the ring buffer folds, and the burst of them that one system call makes.
 * Included by the two BPF programs (libbpf's and bcc's) and by the consumer in C.
 */
#ifndef BENCH_RECORD_H
#define BENCH_RECORD_H

#define BURST 4096
#define KEYS 48

struct record {
	unsigned long long time_ns;
	unsigned long long context;
	unsigned long long bytes;
	unsigned int qpn;	/* the key: consumers keep a count and a sum of bytes for each */
	unsigned int tgid;
	unsigned int kind;
	unsigned int flags;
	unsigned long long gid_prefix, gid_id;	/* bcc derives its ctypes class from scalars only */
	unsigned long long reserved;
};
_Static_assert(sizeof(struct record) == 64, "a record is 64 bytes");

#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
#define SYS_GETPGID 121
#else
#define SYS_GETPGID 155
#endif

#endif
