/* Processes on a GPU or on a MIG instance. */
#include "call.h"

enum { COMPUTE, GRAPHICS, MPS };

static nvmlReturn_t processes(const struct call *call, unsigned int kind, unsigned int *count,
                              nvmlProcessInfo_t *out)
{
    NEED(count && (out || !*count));
    const struct gpu *gpu = call->gpu;
    const struct cell *mig = call->mig == ANY ? NULL : gpu->mig[call->mig];
    unsigned int found = 0, room = *count;
    for (uint32_t i = 0; i < gpu->processes[kind]; i++) {
        const nvmlProcessInfo_t *process = &gpu->process[kind][i];
        if (mig && (process->gpuInstanceId != number_of(call, &mig[M_gpu_instance]) ||
                    process->computeInstanceId != number_of(call, &mig[M_compute_instance])))
            continue;
        if (found < room)
            out[found] = *process;
        found++;
    }
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

#define LIST(name, kind) \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out) \
    { \
        CALL(name, TO_DEVICE, device); \
        return processes(&call, kind, count, out); \
    }

LIST(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, MPS)
#if BRANCH >= 535
LIST(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS)
#endif
