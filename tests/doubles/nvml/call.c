/* The frame of a call: initialised or not, counted, obeying rules, its device found; init and shutdown. */
#include "call.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The process's view: written under its mutex, read without. A node that was mapped stays so: a hung call may still
 * wait in it. */
static struct {
    pthread_mutex_t mutex;
    struct node *node;
    dev_t device;
    ino_t inode;
    uint32_t references;
    uint32_t generation; /* of the driver at init */
} process = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* This thread's record in the node. A child of fork has another pid, so it looks for its own. */
static _Thread_local struct {
    const struct node *node;
    struct thread_calls *record;
} me;

static void forget_me(void)
{
    me.node = NULL;
}

__attribute__((constructor)) static void at_load(void)
{
    pthread_atfork(NULL, NULL, forget_me);
}

static struct thread_calls *my_record(struct node *node)
{
    if (me.node == node)
        return me.record;
    int32_t pid = (int32_t)getpid(), tid = (int32_t)syscall(SYS_gettid);
    struct thread_calls *record = NULL;
    for (uint32_t i = 0; i < node->threads && !record; i++)
        if (node->thread[i].pid == pid && node->thread[i].tid == tid)
            record = &node->thread[i];
    if (!record && node->threads < MAX_THREADS) {
        record = &node->thread[node->threads++];
        record->pid = pid;
        record->tid = tid;
    }
    me.node = node;
    me.record = record;
    return record;
}

static void count(struct node *node, uint32_t function)
{
    struct thread_calls *record = my_record(node);
    if (record)
        record->calls[function]++;
    else
        node->threads_lost++;
}

/* The oldest rule after `done`; `exact`: those of this very GPU, not those of any. */
static const struct rule *rule_for(const struct node *node, uint32_t function, uint32_t gpu, bool exact,
                                   uint32_t done)
{
    const struct rule *found = NULL;
    for (uint32_t i = 0; i < MAX_RULES; i++) {
        const struct rule *rule = &node->rule[i];
        if (rule->id > done && (!found || rule->id < found->id) &&
            (rule->function == ANY || rule->function == function) &&
            (rule->gpu == gpu || (rule->gpu == ANY && !exact)))
            found = rule;
    }
    return found;
}

/* Hangs, then answers, as the rules of this function and GPU say. A rule that is taken away lets go. */
static nvmlReturn_t obey(struct node *node, uint32_t function, uint32_t gpu, bool exact)
{
    uint32_t done = 0;
    const struct rule *rule;
    while (node->rules && (rule = rule_for(node, function, gpu, exact, done))) {
        const struct rule copy = *rule;
        done = copy.id;
        if (copy.hangs) {
            uint64_t deadline = copy.hang_ns ? monotonic_ns() + copy.hang_ns : 0;
            node->inside[function]++;
            while (rule->id == copy.id && node_wait(node, deadline))
                ;
            node->inside[function]--;
        }
        if (copy.answer)
            return (nvmlReturn_t)copy.answer;
    }
    return NVML_SUCCESS;
}

/* Handles are numbers that no pointer has: the GPU, the MIG slot and how often that slot was used. */
#define HANDLE_BASE 0x4e56000000000000ull

nvmlDevice_t device_handle(const struct node *node, uint32_t gpu, uint32_t mig)
{
    uint64_t handle = HANDLE_BASE | (uint64_t)(gpu + 1) << 32;
    if (mig != ANY)
        handle |= (uint64_t)(node->gpu[gpu].mig_generation[mig] & 0xffffff) << 8 | (mig + 1);
    return (nvmlDevice_t)(uintptr_t)handle;
}

static nvmlReturn_t find_device(struct call *call, nvmlDevice_t device)
{
    uint64_t handle = (uint64_t)(uintptr_t)device;
    uint32_t gpu = (uint32_t)(handle >> 32 & 0xffff) - 1, mig = (uint32_t)(handle & 0xff) - 1;
    if ((handle & 0xffff000000000000ull) != HANDLE_BASE || gpu >= call->node->gpus || (mig != ANY && mig >= MAX_MIG))
        return NVML_ERROR_INVALID_ARGUMENT;
    call->index = gpu;
    call->gpu = &call->node->gpu[gpu];
    call->mig = mig;
    return NVML_SUCCESS;
}

/* After a hang the world may have changed: this is asked again then. */
static nvmlReturn_t state(const struct call *call)
{
    const struct node *node = call->node;
    if (!node->driver_loaded)
        return (nvmlReturn_t)node->driver_answer;
    if (__atomic_load_n(&process.generation, __ATOMIC_ACQUIRE) != node->driver_generation)
        return NVML_ERROR_UNINITIALIZED;
    if (!call->gpu)
        return NVML_SUCCESS;
    if (number(call, V_lost))
        return NVML_ERROR_GPU_IS_LOST;
    return NVML_SUCCESS;
}

struct call call_enter(uint32_t function, enum target target, nvmlDevice_t device)
{
    struct call call = {.function = function, .index = ANY, .mig = ANY};
    struct node *node = __atomic_load_n(&process.node, __ATOMIC_ACQUIRE);
    if (!node || !__atomic_load_n(&process.references, __ATOMIC_ACQUIRE)) {
        call.answer = NVML_ERROR_UNINITIALIZED;
        return call;
    }
    call.node = node;
    node_lock(node);
    count(node, function);
    if (target == TO_GPU || target == TO_DEVICE)
        call.answer = find_device(&call, device);
    node->calls[function][call.index == ANY ? MAX_GPUS : call.index]++;
    if (!call.answer)
        call.answer = obey(node, function, call.index, false);
    if (!call.answer)
        call.answer = state(&call);
    if (!call.answer && call.mig != ANY) {
        bool there = number_of(&call, &call.gpu->mig[call.mig][M_present]);
        if (!there || device != device_handle(node, call.index, call.mig))
            call.answer = NVML_ERROR_INVALID_ARGUMENT; /* the instance is gone */
        else if (target == TO_GPU)
            call.answer = NVML_ERROR_NOT_SUPPORTED;
    }
    call.now = node_now(node);
    return call;
}

void call_leave(struct call *call)
{
    if (call->node)
        node_unlock(call->node);
}

nvmlReturn_t call_address(struct call *call, uint32_t index)
{
    struct node *node = call->node;
    call->index = index;
    call->gpu = &node->gpu[index];
    node->calls[call->function][MAX_GPUS]--;
    node->calls[call->function][index]++;
    nvmlReturn_t answer = obey(node, call->function, index, true); /* rules for any GPU: obeyed on entering */
    if (answer)
        return answer;
    call->now = node_now(node);
    return state(call);
}

static struct node *mapped(void)
{
    const char *path = getenv("FABRICTAP_NVML_DOUBLE");
    struct stat status;
    if (!path || !path[0] || stat(path, &status))
        return NULL;
    if (process.node && process.device == status.st_dev && process.inode == status.st_ino)
        return process.node;
    struct node *node = node_map(path);
    if (node) {
        process.device = status.st_dev;
        process.inode = status.st_ino;
    }
    return node;
}

static nvmlReturn_t initialise(uint32_t function)
{
    pthread_mutex_lock(&process.mutex);
    nvmlReturn_t answer = NVML_SUCCESS;
    struct node *node = process.references ? process.node : mapped();
    if (node && node != process.node)
        __atomic_store_n(&process.node, node, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&process.mutex);
    if (!node)
        return NVML_ERROR_DRIVER_NOT_LOADED; /* as without a GPU: nobody said which node */
    node_lock(node);
    count(node, function);
    node->calls[function][MAX_GPUS]++;
    answer = obey(node, function, ANY, false);
    if (!answer && !node->driver_loaded)
        answer = NVML_ERROR_DRIVER_NOT_LOADED;
    uint32_t generation = node->driver_generation;
    node_unlock(node);
    if (answer)
        return answer;
    pthread_mutex_lock(&process.mutex);
    if (process.generation != generation || process.node != node) {
        /* What was initialised is of a driver that is gone. */
        __atomic_store_n(&process.references, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&process.generation, generation, __ATOMIC_RELEASE);
        __atomic_store_n(&process.node, node, __ATOMIC_RELEASE);
    }
    __atomic_add_fetch(&process.references, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&process.mutex);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInit_v2(void)
{
    return initialise(F_nvmlInit_v2);
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    return initialise(F_nvmlInitWithFlags);
}

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    pthread_mutex_lock(&process.mutex);
    struct node *node = process.references ? process.node : NULL;
    pthread_mutex_unlock(&process.mutex);
    if (!node)
        return NVML_ERROR_UNINITIALIZED;
    node_lock(node);
    count(node, F_nvmlShutdown);
    node->calls[F_nvmlShutdown][MAX_GPUS]++;
    nvmlReturn_t answer = obey(node, F_nvmlShutdown, ANY, false);
    node_unlock(node);
    if (answer)
        return answer;
    pthread_mutex_lock(&process.mutex);
    if (process.references)
        __atomic_sub_fetch(&process.references, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&process.mutex);
    return NVML_SUCCESS;
}
