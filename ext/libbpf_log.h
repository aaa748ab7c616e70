/* SPDX-License-Identifier: Apache-2.0 */
/* libbpf's messages, formatted, for a callback that takes text. */
#ifndef FABRICTAP_LIBBPF_LOG_H
#define FABRICTAP_LIBBPF_LOG_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <bpf/libbpf.h>

typedef void (*ft_log_fn)(int level, const char *text);
static ft_log_fn ft_log;

static int ft_print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char *text; /* a verifier's log has no bound worth naming */

	/* LIBBPF_DEBUG tells of every relocation: thousands of lines that say nothing of this node. */
	if (!ft_log || level == LIBBPF_DEBUG || vasprintf(&text, format, arguments) < 0)
		return 0;
	ft_log((int)level, text);
	free(text);
	return 0;
}

/* What libbpf.a calls stderr: see position_independent_libbpf in setup.py. */
__attribute__((visibility("hidden"))) FILE *fabrictap_stderr;

static void ft_log_to(ft_log_fn log)
{
	fabrictap_stderr = stderr;
	ft_log = log;
	libbpf_set_print(ft_print);
}

#endif
