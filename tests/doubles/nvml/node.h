/* The state of the stand-in's node: one file, mapped by every process that plays in it.
 *
 * libnvidia-ml.so.1 (the stand-in) maps the file that FABRICTAP_NVML_DOUBLE names, driver.py writes it through
 * libnvml_control.so. Everything is fixed-size and read in place: a call neither allocates nor parses.
 * All of it is guarded by one robust mutex; who waits (a hung call, a wait for events) waits without it on `epoch`,
 * a futex that every change moves. No condition variable: a waiter that is killed would spoil it for the others. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "abi.h"
#include "names.h"

#define ENUM_FUNCTION(name) F_##name,
#define ENUM_VALUE(name) V_##name,
#define ENUM_LINK(name) L_##name,
#define ENUM_MIG(name) M_##name,
#define ENUM_NODE(name) N_##name,
#define ENUM_GPU_TEXT(name) T_##name,
#define ENUM_NODE_TEXT(name) TN_##name,
enum { FUNCTIONS(ENUM_FUNCTION) F_COUNT };
enum { VALUES(ENUM_VALUE) V_COUNT };
enum { LINK_VALUES(ENUM_LINK) L_COUNT };
enum { MIG_VALUES(ENUM_MIG) M_COUNT };
enum { NODE_VALUES(ENUM_NODE) N_COUNT };
enum { GPU_TEXTS(ENUM_GPU_TEXT) T_COUNT };
enum { NODE_TEXTS(ENUM_NODE_TEXT) TN_COUNT };

enum {
    MAX_GPUS = 16,
    MAX_LINKS = NVML_NVLINK_MAX_LINKS,
    MAX_FIELDS = 320, /* NVML_FI_MAX is 308 in CUDA 13.1 */
    MAX_METRICS = 480,
    MAX_MIG = 8, /* seven on every GPU so far */
    MAX_PROCESSES = 64,
    MAX_RULES = 64,
    MAX_THREADS = 256,
    MAX_EVENTS = 256,
    TEXT = 96,
    ANY = 0xffffffff,
};

#define NODE_MAGIC 0x66746e766d6c3031ull /* "ftnvml01" */

/* A number that moves: base + rate * (now - since), in the width of mask. */
struct cell {
    uint64_t base;
    uint64_t rate; /* thousandths per second */
    uint64_t since; /* the node's clock, ns */
    uint64_t mask; /* 2^64-1, or what a narrower counter wraps at */
    uint32_t result; /* nvmlReturn_t that is answered instead */
    uint32_t type; /* nvmlValueType_t, where it is a field */
    uint32_t present; /* 0: NOT_SUPPORTED */
    uint32_t unused;
};

struct gpu {
    char text[T_COUNT][TEXT];
    char mig_uuid[MAX_MIG][TEXT];
    struct cell value[V_COUNT];
    struct cell link[MAX_LINKS][L_COUNT];
    struct cell mig[MAX_MIG][M_COUNT];
    struct cell gpm[MAX_METRICS];
    struct cell field[MAX_FIELDS][MAX_LINKS];
    uint32_t mig_generation[MAX_MIG];
    uint32_t processes[3]; /* compute, graphics, MPS */
    nvmlProcessInfo_t process[3][MAX_PROCESSES];
};

/* What a call does instead of its work. */
struct rule {
    uint32_t id; /* 0: free */
    uint32_t function, gpu; /* or ANY */
    uint32_t answer; /* nvmlReturn_t; with a hang, what it answers at the end, SUCCESS: the work */
    uint32_t hangs;
    uint32_t unused;
    uint64_t hang_ns; /* of CLOCK_MONOTONIC; 0: until released */
};

struct thread_calls {
    int32_t pid, tid;
    uint32_t calls[F_COUNT];
};

struct event {
    uint32_t gpu, gpu_instance, compute_instance, unused;
    uint64_t type, data;
};

struct node {
    uint64_t magic, size;
    pthread_mutex_t mutex;
    uint32_t epoch; /* futex: moves with every change */
    uint32_t driver_loaded;
    uint32_t driver_generation; /* moves when the driver goes */
    uint32_t driver_answer; /* while it is gone */
    uint32_t clock_is_real;
    uint32_t gpus;
    uint64_t clock; /* ns since 1970; with a real clock what it is ahead of CLOCK_REALTIME */
    char text[TN_COUNT][TEXT];
    struct cell value[N_COUNT];
    uint32_t rules, next_rule;
    struct rule rule[MAX_RULES];
    uint64_t events; /* ever emitted; the last MAX_EVENTS are kept */
    struct event event[MAX_EVENTS];
    uint64_t calls[F_COUNT][MAX_GPUS + 1]; /* last: calls without a GPU */
    uint32_t inside[F_COUNT]; /* calls that hang or wait now; one that is killed in there stays counted */
    uint32_t threads, threads_lost;
    struct thread_calls thread[MAX_THREADS];
    struct gpu gpu[MAX_GPUS];
};

/* node.c */
struct node *node_create(const char *path);
struct node *node_map(const char *path);
void node_lock(struct node *node);
void node_unlock(struct node *node);
void node_changed(struct node *node);
/* Wait without the lock for a change; false at `deadline` (CLOCK_MONOTONIC ns, 0: none). */
bool node_wait(struct node *node, uint64_t deadline);
uint64_t node_now(const struct node *node);
uint64_t monotonic_ns(void);

static inline uint64_t cell_value(const struct cell *cell, uint64_t now)
{
    uint64_t value = cell->base;
    if (cell->rate && now > cell->since)
        value += (uint64_t)((unsigned __int128)cell->rate * (now - cell->since) / 1000000000000ull);
    return value & cell->mask;
}

static inline nvmlReturn_t cell_read(const struct cell *cell, uint64_t now, uint64_t *value)
{
    if (cell->result)
        return (nvmlReturn_t)cell->result;
    if (!cell->present)
        return NVML_ERROR_NOT_SUPPORTED;
    *value = cell_value(cell, now);
    return NVML_SUCCESS;
}
