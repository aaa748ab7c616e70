/* A GPU's memory: how much is used, ECC errors, remapped rows and retired pages. */
#include "call.h"

/* Total, used and reserved bytes of a GPU or of a MIG instance. */
static nvmlReturn_t memory(const struct call *call, nvmlMemory_v2_t *out)
{
    uint64_t total = 0;
    nvmlReturn_t result;
    if (call->mig != ANY) {
        const struct cell *mig = call->gpu->mig[call->mig];
        out->total = number_of(call, &mig[M_memory_mib]) << 20;
        out->reserved = 0;
        out->used = number_of(call, &mig[M_memory_used_bytes]);
    } else {
        result = read_u64(call, &call->gpu->value[V_memory_total_bytes], &total);
        if (result)
            return result;
        out->total = total;
        out->reserved = number(call, V_memory_reserved_bytes);
        out->used = number(call, V_memory_used_bytes);
    }
    out->free = out->total > out->reserved + out->used ? out->total - out->reserved - out->used : 0;
    return NVML_SUCCESS;
}

/* The first version counts what is reserved as used. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out)
{
    CALL(nvmlDeviceGetMemoryInfo, TO_DEVICE, device);
    NEED(out);
    nvmlMemory_v2_t all;
    nvmlReturn_t result = memory(&call, &all);
    if (!result)
        *out = (nvmlMemory_t){.total = all.total, .free = all.free, .used = all.used + all.reserved};
    return result;
}

#if BRANCH >= 535
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *out)
{
    CALL(nvmlDeviceGetMemoryInfo_v2, TO_DEVICE, device);
    NEED(out);
    if (out->version != NVML_STRUCT_VERSION(sizeof *out, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return memory(&call, out);
}
#endif

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *out)
{
    CALL(nvmlDeviceGetBAR1MemoryInfo, TO_GPU, device);
    NEED(out);
    uint64_t total = 0;
    nvmlReturn_t result = read_u64(&call, &call.gpu->value[V_bar1_total_bytes], &total);
    if (result)
        return result;
    uint64_t used = number(&call, V_bar1_used_bytes);
    *out = (nvmlBAR1Memory_t){.bar1Total = total, .bar1Free = total > used ? total - used : 0, .bar1Used = used};
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    CALL(nvmlDeviceGetEccMode, TO_GPU, device);
    NEED(current && pending);
    nvmlReturn_t result = read_u32(&call, &call.gpu->value[V_ecc_mode_current], current);
    return result ? result : read_u32(&call, &call.gpu->value[V_ecc_mode_pending], pending);
}

static nvmlReturn_t ecc_errors(const struct call *call, unsigned int type, unsigned int counter,
                               unsigned long long *out)
{
    NEED(out && type <= 1 && counter <= 1);
    if (!number(call, V_ecc_mode_current))
        return NVML_ERROR_NOT_SUPPORTED;
    static const unsigned int which[2][2] = {
        {V_ecc_corrected_volatile, V_ecc_corrected_aggregate},
        {V_ecc_uncorrected_volatile, V_ecc_uncorrected_aggregate},
    };
    uint64_t value = 0;
    nvmlReturn_t result = read_u64(call, &call->gpu->value[which[type][counter]], &value);
    if (!result)
        *out = value;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                                unsigned long long *errors)
{
    CALL(nvmlDeviceGetTotalEccErrors, TO_GPU, device);
    return ecc_errors(&call, type, counter, errors);
}

/* All errors of the stand-in are in DRAM. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                                    unsigned int location, unsigned long long *errors)
{
    CALL(nvmlDeviceGetMemoryErrorCounter, TO_GPU, device);
    NEED(location < 8);
    nvmlReturn_t result = ecc_errors(&call, type, counter, errors);
    if (!result && location == 7)
        *errors = 0;
    else if (!result && location != 2)
        result = NVML_ERROR_NOT_SUPPORTED;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *correctable,
                                              unsigned int *uncorrectable, unsigned int *pending,
                                              unsigned int *failure)
{
    CALL(nvmlDeviceGetRemappedRows, TO_GPU, device);
    NEED(correctable && uncorrectable && pending && failure);
    unsigned int *const out[] = {correctable, uncorrectable, pending, failure};
    for (unsigned int i = 0; i < 4; i++) {
        nvmlReturn_t result = read_u32(&call, &call.gpu->field[NVML_FI_DEV_REMAPPED_COR + i][0], out[i]);
        if (result)
            return result;
    }
    return NVML_SUCCESS;
}

/* GPUs that remap rows (since Ampere) or have no ECC retire no pages: that is all of our profiles. */
EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, unsigned int cause, unsigned int *count,
                                              unsigned long long *addresses)
{
    CALL(nvmlDeviceGetRetiredPages, TO_GPU, device);
    NEED(cause <= 1 && count);
    (void)addresses;
    return NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, unsigned int cause, unsigned int *count,
                                                 unsigned long long *addresses, unsigned long long *times)
{
    CALL(nvmlDeviceGetRetiredPages_v2, TO_GPU, device);
    NEED(cause <= 1 && count);
    (void)addresses;
    (void)times;
    return NVML_ERROR_NOT_SUPPORTED;
}
