/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The counters of posted work, and how one message gets into them; whichever API it was posted by.
 *
 * A uprobe may be preempted by another one on its CPU, so counters are added atomically and no scratch map is
 * shared.
 */
#ifndef FABRICTAP_VERBS_POSTS_H
#define FABRICTAP_VERBS_POSTS_H

#include "common.h"
#include "verbs_abi.h"
#include "verbs_meter.h"
#include "verbs_sges.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384); /* set from the configuration before load */
	__type(key, struct ft_post_key);
	__type(value, struct ft_post);
} posts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct ft_context_key);
	__type(value, struct ft_context);
} contexts SEC(".maps");

/* Address handles: (process, user address of struct ibv_ah) -> id. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct ft_context_key);
	__type(value, __u64);
} address_handles SEC(".maps");

static const struct ft_post empty_post = {};

/*
 * The slot of ft_post.sizes for a message of size bytes. Not static: the verifier looks at a global function
 * once, and not on each path that leads to each of its calls.
 */
__noinline __u32 size_slot(__u64 size)
{
	__u64 below = size - 1;
	__u32 log = 0;

	if (!size)
		return 0;
	if (size > 1ULL << 31)
		return FT_SIZE_SLOTS - 1;
	if (below >> 16) {
		below >>= 16;
		log += 16;
	}
	if (below >> 8) {
		below >>= 8;
		log += 8;
	}
	if (below >> 4) {
		below >>= 4;
		log += 4;
	}
	if (below >> 2) {
		below >>= 2;
		log += 2;
	}
	if (below >> 1) {
		below >>= 1;
		log += 1;
	}
	return 1 + log + (__u32)below;
}

/* First post of a key: makes its counter, and remembers which device its context stands for. */
static __always_inline struct ft_post *new_post(const struct ft_post_key *key)
{
	struct ft_context_key context_key = { .context = key->context, .tgid = key->tgid };
	struct ft_context context = {};
	__u64 device = 0;
	int error;

	if (bpf_probe_read_user(&device, sizeof(device), (void *)(key->context + USER_CONTEXT_DEVICE)) ||
	    bpf_probe_read_user_str(context.device, sizeof(context.device), (void *)(device + USER_DEVICE_NAME)) < 0)
		lose(FT_LOSS_FAULT);
	else
		bpf_map_update_elem(&contexts, &context_key, &context, BPF_ANY);

	error = bpf_map_update_elem(&posts, key, &empty_post, BPF_NOEXIST);
	if (error && error != -17 /* EEXIST: another CPU was first */) {
		lose(error == -7 /* E2BIG */ ? FT_LOSS_TABLE_FULL : FT_LOSS_TABLE_BUSY);
		return NULL;
	}
	return bpf_map_lookup_elem(&posts, key);
}

/* What is counted of one message. */
struct message {
	__u64 bytes;
	__u32 sges;
	bool inlined;
	bool signaled;
};

static __always_inline struct ft_post *post_of(const struct ft_post_key *key)
{
	struct ft_post *post = bpf_map_lookup_elem(&posts, key);

	return post ? post : new_post(key);
}

static __always_inline void add_message(struct ft_post *post, const struct message *message)
{
	__u64 slot = size_slot(message->bytes);

	__sync_fetch_and_add(&post->bytes, message->bytes);
	if (message->sges != 1)
		__sync_fetch_and_add(&post->sges, (__u64)message->sges - 1);
	if (message->inlined)
		__sync_fetch_and_add(&post->inlined, 1);
	if (message->signaled)
		__sync_fetch_and_add(&post->signaled, 1);
	asm volatile("" : "+r"(slot)); /* the verifier of 6.1 wants the bound on the register that is used */
	if (slot < FT_SIZE_SLOTS)
		__sync_fetch_and_add(&post->sizes[slot], 1);
	/* Last: a reader that sees the same number again has missed nothing of what is above. */
	__sync_fetch_and_add(&post->operations, 1);
}

static __always_inline void to_peer(struct ft_post_key *key, __u64 handle, __u32 qpn)
{
	struct ft_context_key handle_key = { .context = handle, .tgid = key->tgid };
	__u64 *id = bpf_map_lookup_elem(&address_handles, &handle_key);

	key->address_handle = id ? *id : 0;
	key->peer_qpn = qpn;
}

/*
 * What a thread is in the middle of, from a function's entry to its return. Overwritten by the next call, so
 * it is as many entries as threads that post; those of threads that ended are swept by the agent.
 */
struct ft_call_key {
	__u64 thread;
	__u64 function;	/* FT_QUEUE_SEND and so on, or CALL_COMPLETE */
};

struct call {
	__u64 queue;	/* user address of the QP or SRQ; 0 when the call has returned */
	__u64 wr;
	__u64 bad_wr;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct ft_call_key);
	__type(value, struct call);
} calls SEC(".maps");

#define CALL_COMPLETE 3	/* beside FT_QUEUE_SEND and so on */

static __always_inline int enter(__u64 function, __u64 queue, __u64 wr, __u64 bad_wr)
{
	struct ft_call_key key = { .thread = bpf_get_current_pid_tgid(), .function = function };
	struct call made = { .queue = queue, .wr = wr, .bad_wr = bad_wr };
	struct call *call;

	meter(1);
	call = bpf_map_lookup_elem(&calls, &key);
	if (call)
		*call = made;
	else if (bpf_map_update_elem(&calls, &key, &made, BPF_ANY))
		lose(FT_LOSS_TABLE_FULL);
	return 0;
}

/* The call that returns now, in ``call``; false where its entry was not seen. */
static __always_inline bool leave(__u64 function, struct call *call)
{
	struct ft_call_key key = { .thread = bpf_get_current_pid_tgid(), .function = function };
	struct call *entered = bpf_map_lookup_elem(&calls, &key);

	if (!entered || !entered->queue)
		return false;
	*call = *entered;
	entered->queue = 0;
	return true;
}

#endif
