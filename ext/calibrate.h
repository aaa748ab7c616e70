/* SPDX-License-Identifier: Apache-2.0 */
/* A function of ours to measure probes at: what a post by one work request with one element looks like.
 *
 * Its first instruction is one that the kernel emulates, as in Debian's and Ubuntu's providers; or, in the
 * second one, one that it has to single-step. Layouts as in probes/include/verbs_abi.h.
 */
#ifndef FABRICTAP_CALIBRATE_H
#define FABRICTAP_CALIBRATE_H

#include <stdint.h>
#include <time.h>

#include "verbs_abi.h"

typedef int (*ft_post_fn)(void *qp, void *wr, void **bad);
int ft_emulated(void *qp, void *wr, void **bad);
int ft_stepped(void *qp, void *wr, void **bad);

#if defined(__x86_64__)
__asm__(".pushsection .text\n"
	".type ft_emulated, @function\n"
	".hidden ft_emulated\n"
	"ft_emulated: push %rbp\n pop %rbp\n xor %eax, %eax\n ret\n"
	".size ft_emulated, . - ft_emulated\n"
	".type ft_stepped, @function\n"
	".hidden ft_stepped\n"
	"ft_stepped: xor %eax, %eax\n ret\n"
	".size ft_stepped, . - ft_stepped\n"
	".popsection\n");
#elif defined(__aarch64__)
/* A nop is simulated; mov is stepped. */
__asm__(".pushsection .text\n"
	".type ft_emulated, @function\n"
	".hidden ft_emulated\n"
	"ft_emulated: nop\n mov w0, #0\n ret\n"
	".size ft_emulated, . - ft_emulated\n"
	".type ft_stepped, @function\n"
	".hidden ft_stepped\n"
	"ft_stepped: mov w0, #0\n ret\n"
	".size ft_stepped, . - ft_stepped\n"
	".popsection\n");
#endif

/* CPU nanoseconds of this thread for so many calls. */
static uint64_t ft_calls(ft_post_fn post, uint32_t calls)
{
	static char device[256] = { [USER_DEVICE_NAME] = 'c' };
	static void *context[64] = { device };
	struct user_qp qp = { .context = (uintptr_t)context, .qp_num = 1, .qp_type = 2 };
	struct user_sge sge = { .length = 4096 };
	struct user_wr wr = { .sg_list = (uintptr_t)&sge, .num_sge = 1 };
	struct timespec before, after;
	void *bad = 0;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
	for (uint32_t i = 0; i < calls; i++)
		post(&qp, &wr, &bad);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
	return (uint64_t)(after.tv_sec - before.tv_sec) * 1000000000u + (uint64_t)after.tv_nsec - (uint64_t)before.tv_nsec;
}

#endif
