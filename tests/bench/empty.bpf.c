// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the kernel itself costs: a uprobe that does nothing. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("uprobe")
int empty(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
