/* SPDX-License-Identifier: Apache-2.0 */
/* Uprobes without a perf event each (Linux 6.6): cheaper per hit, and to attach and detach.
 *
 * The system calls by hand: libbpf has them since 1.3. Layouts: union bpf_attr, include/uapi/linux/bpf.h.
 */
#ifndef FABRICTAP_UPROBE_MULTI_H
#define FABRICTAP_UPROBE_MULTI_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FT_BPF_PROG_LOAD 5
#define FT_BPF_LINK_CREATE 28
#define FT_BPF_PROG_TYPE_KPROBE 2
#define FT_BPF_TRACE_UPROBE_MULTI 48
#define FT_BPF_F_UPROBE_MULTI_RETURN 1u

struct ft_uprobe_multi_attr {
	uint32_t prog_fd;
	uint32_t target_fd;
	uint32_t attach_type;
	uint32_t link_flags;
	uint64_t path;
	uint64_t offsets;
	uint64_t ref_ctr_offsets;
	uint64_t cookies;
	uint32_t count;
	uint32_t flags;
	uint32_t pid;
	uint32_t padding;
};
_Static_assert(sizeof(struct ft_uprobe_multi_attr) == 64, "union bpf_attr, link_create.uprobe_multi");

/* A link's descriptor, or -1 with errno. pid 0: every process. */
static inline int ft_uprobe_multi(int program, const char *path, uint64_t offset, int on_return, uint32_t pid)
{
	struct ft_uprobe_multi_attr attr = {
		.prog_fd = (uint32_t)program,
		.attach_type = FT_BPF_TRACE_UPROBE_MULTI,
		.path = (uint64_t)(uintptr_t)path,
		.offsets = (uint64_t)(uintptr_t)&offset,
		.count = 1,
		.flags = on_return ? FT_BPF_F_UPROBE_MULTI_RETURN : 0,
		.pid = pid,
	};

	return (int)syscall(SYS_bpf, FT_BPF_LINK_CREATE, &attr, sizeof(attr));
}

struct ft_prog_load_attr {
	uint32_t prog_type;
	uint32_t insn_cnt;
	uint64_t insns;
	uint64_t license;
	uint32_t log_level;
	uint32_t log_size;
	uint64_t log_buf;
	uint32_t kern_version;
	uint32_t prog_flags;
	char prog_name[16];
	uint32_t prog_ifindex;
	uint32_t expected_attach_type;
};

/* Whether the kernel has them: a probe in a directory is refused for that alone. */
static inline int ft_has_uprobe_multi(void)
{
	static const uint64_t insns[] = {0x00000000000000b7, 0x0000000000000095}; /* r0 = 0; exit */
	struct ft_prog_load_attr attr = {
		.prog_type = FT_BPF_PROG_TYPE_KPROBE,
		.insn_cnt = 2,
		.insns = (uint64_t)(uintptr_t)insns,
		.license = (uint64_t)(uintptr_t) "GPL",
		.expected_attach_type = FT_BPF_TRACE_UPROBE_MULTI,
	};
	int program = (int)syscall(SYS_bpf, FT_BPF_PROG_LOAD, &attr, sizeof(attr));
	int link, why;

	if (program < 0)
		return 0;
	link = ft_uprobe_multi(program, "/", 0, 0, 0);
	why = errno;
	close(program);
	if (link >= 0) {
		close(link);
		return 1;
	}
	return why == EBADF;
}

#endif
