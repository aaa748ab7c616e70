/* The node's file: creating, mapping, locking, waiting, its clock. Part of the library and of the control. */
#include "node.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t node_now(const struct node *node)
{
    return node->clock_is_real ? node->clock + clock_ns(CLOCK_REALTIME) : node->clock;
}

static struct node *map(int file)
{
    void *at = mmap(NULL, sizeof(struct node), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct node *node_create(const char *path)
{
    int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return NULL;
    struct node *node = ftruncate(file, sizeof(struct node)) ? NULL : map(file);
    close(file);
    if (!node)
        return NULL;
    pthread_mutexattr_t shared;
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&node->mutex, &shared);
    pthread_mutexattr_destroy(&shared);
    node->size = sizeof(struct node);
    node->clock = clock_ns(CLOCK_REALTIME);
    node->driver_loaded = node->driver_generation = 1;
    __atomic_store_n(&node->magic, NODE_MAGIC, __ATOMIC_RELEASE);
    return node;
}

struct node *node_map(const char *path)
{
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) {
        fprintf(stderr, "NVML stand-in: cannot open %s: %s\n", path, strerror(errno));
        return NULL;
    }
    struct stat status;
    struct node *node = NULL;
    if (!fstat(file, &status) && status.st_size == (off_t)sizeof(struct node))
        node = map(file);
    close(file);
    if (node && (__atomic_load_n(&node->magic, __ATOMIC_ACQUIRE) != NODE_MAGIC ||
                 node->size != sizeof(struct node))) {
        munmap(node, sizeof(struct node));
        node = NULL;
    }
    if (!node)
        fprintf(stderr, "NVML stand-in: %s is no node of this build (doubles/nvml/driver.py makes them)\n", path);
    return node;
}

void node_lock(struct node *node)
{
    /* Who died with the lock left single stores behind, nothing that another could trip over. */
    if (pthread_mutex_lock(&node->mutex) == EOWNERDEAD)
        pthread_mutex_consistent(&node->mutex);
}

void node_unlock(struct node *node)
{
    pthread_mutex_unlock(&node->mutex);
}

void node_changed(struct node *node)
{
    __atomic_add_fetch(&node->epoch, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &node->epoch, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

bool node_wait(struct node *node, uint64_t deadline)
{
    uint32_t seen = __atomic_load_n(&node->epoch, __ATOMIC_ACQUIRE);
    struct timespec until = {
        .tv_sec = (time_t)(deadline / 1000000000ull),
        .tv_nsec = (long)(deadline % 1000000000ull),
    };
    node_unlock(node);
    /* FUTEX_WAIT_BITSET takes an absolute time of CLOCK_MONOTONIC. */
    long woken = syscall(SYS_futex, &node->epoch, FUTEX_WAIT_BITSET, seen, deadline ? &until : NULL, NULL,
                         FUTEX_BITSET_MATCH_ANY);
    bool late = woken && errno == ETIMEDOUT;
    node_lock(node);
    return !late;
}
