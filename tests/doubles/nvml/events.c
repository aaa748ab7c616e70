/* Event sets: XIDs and their like, and the wait for them. */
#include "call.h"

enum { MAX_SETS = 64 };

/* A set belongs to its process; all of it is read and written under the node's lock. */
struct nvmlEventSet_st {
    struct node *node; /* NULL: free */
    uint64_t mask[MAX_GPUS];
    uint64_t seen; /* events up to here were before the set, or delivered */
};

static struct nvmlEventSet_st sets[MAX_SETS];

static bool known(const struct call *call, nvmlEventSet_t set)
{
    return set >= sets && set < sets + MAX_SETS && set->node == call->node;
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    CALL(nvmlEventSetCreate, TO_NODE, NULL);
    NEED(set);
    for (unsigned int i = 0; i < MAX_SETS; i++)
        if (!sets[i].node) {
            sets[i] = (struct nvmlEventSet_st){.node = call.node, .seen = call.node->events};
            *set = &sets[i];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    CALL(nvmlEventSetFree, TO_NODE, NULL);
    NEED(known(&call, set));
    set->node = NULL;
    node_changed(call.node); /* who waits on it returns */
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    CALL(nvmlDeviceRegisterEvents, TO_GPU, device);
    NEED(known(&call, set));
    uint64_t supported = number(&call, V_supported_events);
    if (!supported || types & ~supported)
        return NVML_ERROR_NOT_SUPPORTED;
    set->mask[call.index] |= types;
    return NVML_SUCCESS;
}

/* The next event that the set wants. More than MAX_EVENTS behind, the oldest are gone, as in a driver's queue. */
static bool next(const struct node *node, nvmlEventSet_t set, nvmlEventData_t *out)
{
    if (node->events > set->seen + MAX_EVENTS)
        set->seen = node->events - MAX_EVENTS;
    while (set->seen < node->events) {
        const struct event *event = &node->event[set->seen++ % MAX_EVENTS];
        if (!(set->mask[event->gpu] & event->type))
            continue;
        *out = (nvmlEventData_t){
            .device = device_handle(node, event->gpu, ANY),
            .eventType = event->type,
            .eventData = event->data,
            .gpuInstanceId = event->gpu_instance,
            .computeInstanceId = event->compute_instance,
        };
        return true;
    }
    return false;
}

static nvmlReturn_t wait_for(struct call *call, nvmlEventSet_t set, nvmlEventData_t *out, uint64_t deadline)
{
    struct node *node = call->node;
    uint32_t generation = node->driver_generation;
    for (;;) {
        if (!known(call, set))
            return NVML_ERROR_INVALID_ARGUMENT;
        if (!node->driver_loaded)
            return (nvmlReturn_t)node->driver_answer;
        if (node->driver_generation != generation)
            return NVML_ERROR_UNINITIALIZED;
        if (next(node, set, out))
            return NVML_SUCCESS;
        for (uint32_t gpu = 0; gpu < node->gpus; gpu++)
            if (set->mask[gpu] && number_of(call, &node->gpu[gpu].value[V_lost]))
                return NVML_ERROR_GPU_IS_LOST;
        if (!node_wait(node, deadline))
            return NVML_ERROR_TIMEOUT;
    }
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *out, unsigned int timeout_ms)
{
    CALL(nvmlEventSetWait_v2, TO_NODE, NULL);
    NEED(out && known(&call, set));
    uint64_t deadline = timeout_ms == ANY ? 0 : monotonic_ns() + timeout_ms * 1000000ull;
    call.node->inside[F_nvmlEventSetWait_v2]++;
    nvmlReturn_t result = wait_for(&call, set, out, deadline);
    call.node->inside[F_nvmlEventSetWait_v2]--;
    return result;
}
