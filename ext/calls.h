/* SPDX-License-Identifier: Apache-2.0 */
/* Calls into a library that may never return, made without holding up whoever waits for them.
 *
 * One worker thread makes all calls, in two ways: those of a round, one after the other while somebody waits
 * (ft_calls_round), and those that are made again and again at fixed times while nobody does (ft_calls_keep):
 * the sampler. A call that takes too long is left behind with its thread and a new worker goes on with the
 * rest. What was left behind is not called again until it has returned; its memory must stay until then. At
 * most `limit` threads are left behind.
 *
 * All that is shared stands under `lock`, which is never held while a call is made.
 */
#ifndef FABRICTAP_CALLS_H
#define FABRICTAP_CALLS_H

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum ft_call_state {
	FT_CALL_IDLE,	 /* not made in the last round */
	FT_CALL_QUEUED,
	FT_CALL_RUNNING,
	FT_CALL_DONE,	 /* has returned */
	FT_CALL_STUCK,	 /* left behind */
};

struct ft_call {
	void (*run)(struct ft_call *call); /* may hang */
	/* It has returned in time; under its own lock. Returns whether the sampler is not to make it again until
	 * somebody has looked. now_ns: since the epoch. */
	int (*took)(struct ft_call *call, uint64_t now_ns);
	struct ft_call *next;
	uint64_t began_ns; /* CLOCK_MONOTONIC */
	uint64_t limit_ns;
	uint64_t every_ns; /* sampler: not more often than this; 0: at every tick */
	uint64_t due_ns;
	int state;  /* enum ft_call_state */
	int halted; /* took() said so */
	int locked; /* guards what took() writes */
};

/* What the sampler does. Its calls are the owner's and stay while they are listed, running or stuck. */
struct ft_sampler {
	struct ft_call **calls;
	unsigned int count, at; /* at: the next of this tick */
	uint64_t tick_ns;	/* CLOCK_MONOTONIC of this or the next tick */
	uint64_t period_ns;	/* 0: off */
	uint64_t began_ns;	/* this tick; 0: it has not */
	int64_t wall_ns;	/* this tick: nanoseconds since the epoch minus CLOCK_MONOTONIC */
	/* what ticks cost */
	uint64_t ticks;
	uint64_t missed;  /* times that passed while another tick, or a call of a round, was being made */
	uint64_t busy_ns; /* time that they took, all together */
	uint64_t cpu_ns;  /* CPU time of the last one that was measured */
	uint64_t cpu_began_ns;
	int measure; /* measure the next */
};

struct ft_calls {
	pthread_mutex_t lock;
	pthread_cond_t done;
	uint32_t work; /* a futex: changes when there is something for the worker */
	int sleeping;  /* the worker waits for that */
	struct ft_call *queue;	 /* of this round, still to be made */
	struct ft_call *current; /* being made */
	struct ft_sampler sampler;
	int64_t wall_ns;	 /* of a round: as the sampler's */
	unsigned int threads;	 /* all that live */
	unsigned int stuck;	 /* those left behind */
	unsigned int limit;
	int active; /* a worker that is not left behind lives */
	int parked; /* it is to end when it has nothing to do */
	int released; /* the last thread to end frees this */
};

static inline uint64_t ft_clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t ft_monotonic_ns(void)
{
	return ft_clock_ns(CLOCK_MONOTONIC);
}

static inline int ft_call_state(const struct ft_call *call)
{
	return __atomic_load_n(&call->state, __ATOMIC_ACQUIRE);
}

static inline void ft_call_becomes(struct ft_call *call, int state)
{
	__atomic_store_n(&call->state, state, __ATOMIC_RELEASE);
}

/* Held for a microsecond at most: by the worker that puts an answer down, by whoever folds what was put down. */
static inline void ft_call_lock(struct ft_call *call)
{
	while (__atomic_exchange_n(&call->locked, 1, __ATOMIC_ACQUIRE))
		sched_yield();
}

static inline void ft_call_unlock(struct ft_call *call)
{
	__atomic_store_n(&call->locked, 0, __ATOMIC_RELEASE);
}

static inline void ft_calls_free(struct ft_calls *calls)
{
	pthread_cond_destroy(&calls->done);
	pthread_mutex_destroy(&calls->lock);
	free(calls->sampler.calls);
	free(calls);
}

static inline struct timespec ft_timespec(uint64_t ns)
{
	return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

/* Under the lock: there is something for the worker. */
static inline void ft_calls_call(struct ft_calls *calls)
{
	calls->work++;
	if (calls->sleeping)
		syscall(SYS_futex, &calls->work, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* The worker, under the lock: until there is something, or until then (CLOCK_MONOTONIC; 0: for ever).
 *
 * Not a condition variable: ten times a second, with nothing in any cache, that costs a third more. */
static inline void ft_calls_sleep(struct ft_calls *calls, uint64_t until_ns)
{
	struct timespec until = ft_timespec(until_ns);
	uint32_t seen = calls->work;

	calls->sleeping = 1;
	pthread_mutex_unlock(&calls->lock);
	syscall(SYS_futex, &calls->work, FUTEX_WAIT_BITSET_PRIVATE, seen, until_ns ? &until : NULL, NULL,
		FUTEX_BITSET_MATCH_ANY);
	pthread_mutex_lock(&calls->lock);
	calls->sleeping = 0;
}

static inline void ft_sampler_ends_tick(struct ft_sampler *sampler, uint64_t now_ns)
{
	uint64_t next_ns = sampler->tick_ns + sampler->period_ns;

	sampler->ticks++;
	sampler->busy_ns += now_ns - sampler->began_ns;
	if (sampler->cpu_began_ns) {
		sampler->cpu_ns = ft_clock_ns(CLOCK_THREAD_CPUTIME_ID) - sampler->cpu_began_ns;
		sampler->cpu_began_ns = 0;
	}
	if (next_ns <= now_ns) {
		uint64_t late = (now_ns - next_ns) / sampler->period_ns + 1;

		sampler->missed += late;
		next_ns += late * sampler->period_ns;
	}
	sampler->tick_ns = next_ns;
	sampler->began_ns = 0;
	sampler->at = 0;
}

/* The next call of the tick that is due; NULL where none is. */
static inline struct ft_call *ft_sampler_next(struct ft_sampler *sampler, uint64_t now_ns)
{
	if (!sampler->period_ns || now_ns < sampler->tick_ns)
		return NULL;
	if (!sampler->began_ns) {
		sampler->began_ns = now_ns;
		sampler->wall_ns = (int64_t)(ft_clock_ns(CLOCK_REALTIME) - now_ns);
		if (sampler->measure) {
			sampler->measure = 0;
			sampler->cpu_began_ns = ft_clock_ns(CLOCK_THREAD_CPUTIME_ID);
		}
	}
	while (sampler->at < sampler->count) {
		struct ft_call *call = sampler->calls[sampler->at++];

		if (call->halted || call->state == FT_CALL_STUCK || call->state == FT_CALL_QUEUED)
			continue;
		if (call->every_ns) {
			if (sampler->tick_ns < call->due_ns)
				continue;
			call->due_ns = sampler->tick_ns + call->every_ns;
		}
		if (sampler->at < sampler->count)
			__builtin_prefetch(sampler->calls[sampler->at]);
		return call;
	}
	ft_sampler_ends_tick(sampler, now_ns);
	return NULL;
}

/* Returns when it has been left behind, or when there is nothing to do any more and it is to end. */
static inline void *ft_calls_work(void *argument)
{
	struct ft_calls *calls = argument;
	struct ft_call *call;
	uint64_t now_ns;
	int64_t wall_ns;
	int left_behind = 0, last, of_round;

	pthread_mutex_lock(&calls->lock);
	now_ns = ft_monotonic_ns();
	for (;;) {
		call = ft_sampler_next(&calls->sampler, now_ns);
		of_round = !call && calls->queue;
		if (of_round) {
			call = calls->queue;
			calls->queue = call->next;
		}
		if (!call) {
			if (calls->sampler.period_ns) {
				if (ft_monotonic_ns() < calls->sampler.tick_ns)
					ft_calls_sleep(calls, calls->sampler.tick_ns);
			} else if (calls->parked) {
				break;
			} else {
				ft_calls_sleep(calls, 0);
			}
			now_ns = ft_monotonic_ns();
			continue;
		}
		calls->current = call;
		call->began_ns = now_ns;
		ft_call_becomes(call, FT_CALL_RUNNING);
		pthread_mutex_unlock(&calls->lock);
		call->run(call);
		now_ns = ft_monotonic_ns();
		pthread_mutex_lock(&calls->lock);
		left_behind = call->state == FT_CALL_STUCK;
		if (left_behind) {
			calls->stuck--;
			/* from here on its memory is the owner's again */
			ft_call_becomes(call, FT_CALL_IDLE);
			break;
		}
		wall_ns = of_round ? calls->wall_ns : calls->sampler.wall_ns;
		if (call->took) {
			ft_call_lock(call);
			call->halted = call->took(call, now_ns + (uint64_t)wall_ns);
			ft_call_unlock(call);
		}
		ft_call_becomes(call, FT_CALL_DONE);
		calls->current = NULL;
		if (of_round ? !calls->queue : !calls->sampler.count)
			pthread_cond_broadcast(&calls->done);
	}
	if (!left_behind)
		calls->active = 0;
	calls->threads--;
	last = calls->released && !calls->threads;
	pthread_cond_broadcast(&calls->done);
	pthread_mutex_unlock(&calls->lock);
	if (last)
		ft_calls_free(calls);
	return NULL;
}

static inline struct ft_calls *ft_calls_new(unsigned int limit)
{
	struct ft_calls *calls = calloc(1, sizeof(*calls));
	pthread_condattr_t monotonic;

	if (!calls)
		return NULL;
	calls->limit = limit;
	pthread_mutex_init(&calls->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&calls->done, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return calls;
}

/* Under the lock: have a worker. Returns an errno; EBUSY where as many as may be are left behind. */
static inline int ft_calls_need_worker(struct ft_calls *calls)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;
	int error;

	if (calls->active)
		return 0;
	if (calls->stuck >= calls->limit)
		return EBUSY;
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

/* Under the lock: leave behind what takes too long, and have a worker where there is something to do. */
static inline int ft_calls_watch(struct ft_calls *calls)
{
	struct ft_call *call = calls->current;

	if (call && ft_monotonic_ns() - call->began_ns >= call->limit_ns) {
		ft_call_becomes(call, FT_CALL_STUCK);
		calls->current = NULL;
		calls->active = 0;
		calls->stuck++;
		/* how long it took says nothing of the next ticks, nor does another thread's CPU time */
		calls->sampler.began_ns = calls->sampler.began_ns ? ft_monotonic_ns() : 0;
		calls->sampler.cpu_began_ns = 0;
		pthread_cond_broadcast(&calls->done);
	}
	return calls->queue || calls->sampler.period_ns ? ft_calls_need_worker(calls) : 0;
}

/* Under the lock: wait until something is done, or something has to be left behind. */
static inline void ft_calls_pass(struct ft_calls *calls, uint64_t most_ns)
{
	const struct ft_call *call = calls->current;
	struct timespec until =
		ft_timespec(call ? call->began_ns + call->limit_ns : ft_monotonic_ns() + most_ns);

	pthread_cond_timedwait(&calls->done, &calls->lock, &until);
}

static inline int ft_calls_pending(struct ft_call **list, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++)
		if (list[i]->state == FT_CALL_QUEUED || list[i]->state == FT_CALL_RUNNING)
			return 1;
	return 0;
}

/* Makes the calls of one round; each may take limit_ns. Those that are stuck from earlier are left out.
 *
 * wall_ns: see struct ft_calls. Returns 0, or an errno where a thread could not be started, or EBUSY where too
 * many were left behind; calls that were not made are then FT_CALL_IDLE. One round at a time, of calls that the
 * sampler does not make.
 */
static inline int ft_calls_round(struct ft_calls *calls, struct ft_call **list, unsigned int count, uint64_t limit_ns,
			  int64_t wall_ns)
{
	struct ft_call **end = &calls->queue;
	int error = 0;

	pthread_mutex_lock(&calls->lock);
	calls->wall_ns = wall_ns;
	for (unsigned int i = 0; i < count; i++) {
		if (list[i]->state == FT_CALL_STUCK)
			continue;
		list[i]->limit_ns = limit_ns;
		list[i]->next = NULL;
		ft_call_becomes(list[i], FT_CALL_QUEUED);
		*end = list[i];
		end = &list[i]->next;
	}
	error = ft_calls_watch(calls);
	ft_calls_call(calls);
	while (!error && ft_calls_pending(list, count)) {
		ft_calls_pass(calls, limit_ns);
		error = ft_calls_watch(calls);
	}
	for (; error && calls->queue; calls->queue = calls->queue->next)
		ft_call_becomes(calls->queue, FT_CALL_IDLE);
	pthread_mutex_unlock(&calls->lock);
	return error;
}

/* Keeps making these calls every period_ns; the first time at first_ns, or when it was due before. None: no more.
 *
 * Returns an errno. The calls that were kept before may still be running: see ft_calls_settle.
 */
static inline int ft_calls_keep(struct ft_calls *calls, struct ft_call **list, unsigned int count, uint64_t limit_ns,
			 uint64_t period_ns, uint64_t first_ns)
{
	struct ft_sampler *sampler = &calls->sampler;
	struct ft_call **copy = malloc((count + 1) * sizeof(*copy));
	int error;

	if (!copy)
		return ENOMEM;
	for (unsigned int i = 0; i < count; i++)
		copy[i] = list[i];
	pthread_mutex_lock(&calls->lock);
	for (unsigned int i = 0; i < count; i++)
		list[i]->limit_ns = limit_ns;
	free(sampler->calls);
	sampler->calls = copy;
	sampler->count = count;
	/* a tick that is under way ends with what it has made */
	sampler->at = count;
	if (!sampler->period_ns || sampler->tick_ns > first_ns + period_ns) {
		sampler->tick_ns = first_ns;
		sampler->began_ns = 0;
		sampler->cpu_began_ns = 0;
		sampler->at = 0;
	} else if (!sampler->began_ns) {
		sampler->at = 0;
	}
	sampler->period_ns = count ? period_ns : 0;
	error = ft_calls_watch(calls);
	ft_calls_call(calls);
	pthread_mutex_unlock(&calls->lock);
	return error;
}

/* Leaves behind what takes too long. Returns an errno, and in *sampler what it does. */
static inline int ft_calls_look(struct ft_calls *calls, struct ft_sampler *sampler)
{
	int error;

	pthread_mutex_lock(&calls->lock);
	error = ft_calls_watch(calls);
	calls->sampler.measure = 1;
	*sampler = calls->sampler;
	pthread_mutex_unlock(&calls->lock);
	return error;
}

/* Waits until no call is being made that is not stuck. After ft_calls_keep of none. */
static inline void ft_calls_settle(struct ft_calls *calls)
{
	pthread_mutex_lock(&calls->lock);
	while (calls->current) {
		ft_calls_pass(calls, 0);
		ft_calls_watch(calls);
	}
	pthread_mutex_unlock(&calls->lock);
}

/* Ends the worker as soon as it has nothing to do, until there is something again. */
static inline void ft_calls_park(struct ft_calls *calls)
{
	pthread_mutex_lock(&calls->lock);
	calls->parked = 1;
	ft_calls_call(calls);
	while (calls->active) {
		ft_calls_pass(calls, 1000000000u);
		ft_calls_watch(calls);
	}
	calls->parked = 0;
	pthread_mutex_unlock(&calls->lock);
}

/* Ends the sampler and the worker. What was left behind stays until it returns; the last of it frees `calls`. */
static inline void ft_calls_close(struct ft_calls *calls)
{
	int last;

	ft_calls_keep(calls, NULL, 0, 0, 0, 0);
	ft_calls_park(calls);
	pthread_mutex_lock(&calls->lock);
	calls->released = 1;
	last = !calls->threads;
	pthread_mutex_unlock(&calls->lock);
	if (last)
		ft_calls_free(calls);
}

#endif
