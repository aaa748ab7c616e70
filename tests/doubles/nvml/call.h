/* What every entry point begins and ends with. */
#pragma once

#include <string.h>

#include "node.h"

/* Which branch of the driver the library is of: what symbols it has. Settled by the builder: 470, 535 or newer. */
#ifndef BRANCH
#error "compile with -DBRANCH=..."
#endif

#define EXPORT __attribute__((visibility("default")))

/* One call under way: the node is locked from a successful `call_enter` until the variable goes out of scope. */
struct call {
    struct node *node; /* NULL: not locked */
    struct gpu *gpu;
    uint32_t function, index, mig; /* mig: ANY for a whole GPU */
    uint64_t now;
    nvmlReturn_t answer; /* not SUCCESS: the call is over */
};

/* What a call is addressed to. */
enum target { TO_NODE, TO_GPU, TO_DEVICE /* a GPU or a MIG instance */ };

struct call call_enter(uint32_t function, enum target target, nvmlDevice_t device);
void call_leave(struct call *call);
/* Counts and rules of a GPU that the call found by itself (by index, UUID, bus id). */
nvmlReturn_t call_address(struct call *call, uint32_t index);

nvmlDevice_t device_handle(const struct node *node, uint32_t gpu, uint32_t mig);


#define CALL(name, target, device) \
    struct call call __attribute__((cleanup(call_leave))) = call_enter(F_##name, target, device); \
    if (call.answer) \
        return call.answer

#define NEED(condition) \
    if (!(condition)) \
        return NVML_ERROR_INVALID_ARGUMENT

static inline nvmlReturn_t read_u64(const struct call *call, const struct cell *cell, uint64_t *out)
{
    return cell_read(cell, call->now, out);
}

static inline nvmlReturn_t read_u32(const struct call *call, const struct cell *cell, unsigned int *out)
{
    uint64_t value;
    nvmlReturn_t result = cell_read(cell, call->now, &value);
    if (!result)
        *out = (unsigned int)value;
    return result;
}

/* A number that is not there reads 0: for parts of an answer that cannot be refused alone. */
static inline uint64_t number_of(const struct call *call, const struct cell *cell)
{
    uint64_t value;
    return cell_read(cell, call->now, &value) ? 0 : value;
}

static inline uint64_t number(const struct call *call, uint32_t value)
{
    return number_of(call, &call->gpu->value[value]);
}

static inline nvmlReturn_t copy_text(const char *text, char *out, unsigned int length)
{
    size_t size = strnlen(text, TEXT - 1) + 1;
    if (!text[0])
        return NVML_ERROR_NOT_SUPPORTED;
    if (size > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, size - 1);
    out[size - 1] = 0;
    return NVML_SUCCESS;
}
