/* SPDX-License-Identifier: Apache-2.0 */
/* Calls into a library that may never return, made without holding up whoever waits for them.
 *
 * A worker thread runs the calls of a round one after the other. One that takes too long is left behind with
 * its thread, a new worker runs the rest, and the round ends. What was left behind is not called again until
 * it has returned; its memory must stay until then. At most `limit` threads are left behind.
 */
#ifndef FABRICTAP_CALLS_H
#define FABRICTAP_CALLS_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum ft_call_state {
	FT_CALL_IDLE,	 /* not made in the last round */
	FT_CALL_QUEUED,
	FT_CALL_RUNNING,
	FT_CALL_DONE,	 /* has returned in the last round */
	FT_CALL_STUCK,	 /* left behind */
};

struct ft_call {
	void (*run)(struct ft_call *call);
	struct ft_call *next;
	uint64_t began_ns; /* CLOCK_MONOTONIC */
	int state;	   /* enum ft_call_state; written under the lock */
};

struct ft_calls {
	pthread_mutex_t lock;
	pthread_cond_t work;
	pthread_cond_t done;
	struct ft_call *queue;	 /* of this round, still to be made */
	struct ft_call *current; /* being made */
	unsigned int threads;	 /* all that live */
	unsigned int stuck;	 /* those left behind */
	unsigned int limit;
	int active; /* a worker that is not left behind lives */
	int closing;
	int released; /* the last thread to end frees this */
};

static inline uint64_t ft_monotonic_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline int ft_call_state(const struct ft_call *call)
{
	return __atomic_load_n(&call->state, __ATOMIC_ACQUIRE);
}

static inline void ft_call_becomes(struct ft_call *call, int state)
{
	__atomic_store_n(&call->state, state, __ATOMIC_RELEASE);
}

static void ft_calls_free(struct ft_calls *calls)
{
	pthread_cond_destroy(&calls->done);
	pthread_cond_destroy(&calls->work);
	pthread_mutex_destroy(&calls->lock);
	free(calls);
}

static void *ft_calls_work(void *argument)
{
	struct ft_calls *calls = argument;
	struct ft_call *call;
	int left_behind = 0, last;

	pthread_mutex_lock(&calls->lock);
	while (!left_behind) {
		while (!calls->queue && !calls->closing)
			pthread_cond_wait(&calls->work, &calls->lock);
		if (!calls->queue)
			break;
		call = calls->queue;
		calls->queue = call->next;
		calls->current = call;
		call->began_ns = ft_monotonic_ns();
		ft_call_becomes(call, FT_CALL_RUNNING);
		pthread_mutex_unlock(&calls->lock);
		call->run(call);
		pthread_mutex_lock(&calls->lock);
		left_behind = call->state == FT_CALL_STUCK;
		if (left_behind) {
			calls->stuck--;
			/* from here on its memory is the owner's again */
			ft_call_becomes(call, FT_CALL_IDLE);
			break;
		}
		ft_call_becomes(call, FT_CALL_DONE);
		calls->current = NULL;
		if (!calls->queue)
			pthread_cond_signal(&calls->done);
	}
	if (!left_behind)
		calls->active = 0;
	calls->threads--;
	last = calls->released && !calls->threads;
	pthread_cond_signal(&calls->done);
	pthread_mutex_unlock(&calls->lock);
	if (last)
		ft_calls_free(calls);
	return NULL;
}

static struct ft_calls *ft_calls_new(unsigned int limit)
{
	struct ft_calls *calls = calloc(1, sizeof(*calls));
	pthread_condattr_t monotonic;

	if (!calls)
		return NULL;
	calls->limit = limit;
	pthread_mutex_init(&calls->lock, NULL);
	pthread_cond_init(&calls->work, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&calls->done, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return calls;
}

/* Under the lock. Returns an errno. */
static int ft_calls_start_worker(struct ft_calls *calls)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	/* signals are for the main thread */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, &attributes, ft_calls_work, calls);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (!error) {
		calls->threads++;
		calls->active = 1;
	}
	return error;
}

/* Under the lock: what is still queued is not made in this round. */
static void ft_calls_give_up(struct ft_calls *calls)
{
	for (; calls->queue; calls->queue = calls->queue->next)
		ft_call_becomes(calls->queue, FT_CALL_IDLE);
}

/* Makes the calls of one round; each may take limit_ns. Those that are stuck from earlier are left out.
 *
 * Returns 0, or an errno where a thread could not be started, or EBUSY where too many were left behind; calls
 * that were not made are then FT_CALL_IDLE. One round at a time.
 */
static int ft_calls_round(struct ft_calls *calls, struct ft_call **list, unsigned int count, uint64_t limit_ns)
{
	struct ft_call **end = &calls->queue;
	struct timespec until;
	uint64_t now_ns, until_ns;
	int error = 0;

	pthread_mutex_lock(&calls->lock);
	for (unsigned int i = 0; i < count; i++) {
		if (list[i]->state == FT_CALL_STUCK)
			continue;
		ft_call_becomes(list[i], FT_CALL_QUEUED);
		list[i]->next = NULL;
		*end = list[i];
		end = &list[i]->next;
	}
	while (calls->queue || calls->current) {
		now_ns = ft_monotonic_ns();
		if (calls->current && now_ns - calls->current->began_ns >= limit_ns) {
			ft_call_becomes(calls->current, FT_CALL_STUCK);
			calls->current = NULL;
			calls->active = 0;
			calls->stuck++;
			continue;
		}
		if (!calls->active) {
			error = calls->stuck < calls->limit ? ft_calls_start_worker(calls) : EBUSY;
			if (error) {
				ft_calls_give_up(calls);
				break;
			}
		} else if (!calls->current) {
			pthread_cond_signal(&calls->work);
		}
		until_ns = (calls->current ? calls->current->began_ns : now_ns) + limit_ns;
		until.tv_sec = (time_t)(until_ns / 1000000000u);
		until.tv_nsec = (long)(until_ns % 1000000000u);
		pthread_cond_timedwait(&calls->done, &calls->lock, &until);
	}
	pthread_mutex_unlock(&calls->lock);
	return error;
}

/* Ends the idle worker. What was left behind stays until it returns; the last of it frees `calls`. */
static void ft_calls_close(struct ft_calls *calls)
{
	int last;

	pthread_mutex_lock(&calls->lock);
	calls->closing = 1;
	pthread_cond_broadcast(&calls->work);
	while (calls->active)
		pthread_cond_wait(&calls->done, &calls->lock);
	calls->released = 1;
	last = !calls->threads;
	pthread_mutex_unlock(&calls->lock);
	if (last)
		ft_calls_free(calls);
}

#endif
