/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Scatter/gather lists in user memory. */
#ifndef FABRICTAP_VERBS_SGES_H
#define FABRICTAP_VERBS_SGES_H

#include "common.h"
#include "verbs_abi.h"

#define SGE_BATCH 4	/* more would not fit the 512 bytes of stack */
#define MAX_SGE 64		/* providers allow up to 32 */

/*
 * Sum of the lengths of count elements. A frame of its own, and not static: the verifier
 * looks at a global function once, and not on each path that leads to each of its calls.
 */
__noinline __u64 sum_sges(__u64 list, __u32 count)
{
	__u64 sum = 0;

	if (count > MAX_SGE) {
		lose(FT_LOSS_SGE);
		count = MAX_SGE;
	}
	for (int done = 0; done < MAX_SGE && done < count; done += SGE_BATCH) {
		struct user_sge sges[SGE_BATCH] = {};
		__u64 size = (__u64)(count - done) * sizeof(sges[0]);

		asm volatile("" : "+r"(size)); /* or clang proves the bound in a way that the verifier cannot */
		if (size > sizeof(sges))
			size = sizeof(sges);
		if (bpf_probe_read_user(sges, size, (void *)(list + done * sizeof(sges[0])))) {
			lose(FT_LOSS_FAULT);
			break;
		}
		for (int i = 0; i < SGE_BATCH; i++)
			sum += sges[i].length;
	}
	return sum;
}

#endif
