/* MIG: the mode, and the instances with their ids and attributes. */
#include "call.h"

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    CALL(nvmlDeviceGetMigMode, TO_GPU, device);
    NEED(current && pending);
    nvmlReturn_t result = read_u32(&call, &call.gpu->value[V_mig_mode_current], current);
    return result ? result : read_u32(&call, &call.gpu->value[V_mig_mode_pending], pending);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    CALL(nvmlDeviceGetMaxMigDeviceCount, TO_GPU, device);
    NEED(count);
    *count = (unsigned int)number(&call, V_mig_max_devices);
    return NVML_SUCCESS;
}

/* Slots that nothing lives in answer NOT_FOUND; the numbers of the others stay when one goes. */
EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
    CALL(nvmlDeviceGetMigDeviceHandleByIndex, TO_GPU, device);
    if (!number(&call, V_mig_max_devices))
        return NVML_ERROR_NOT_SUPPORTED;
    NEED(mig && index < number(&call, V_mig_max_devices) && index < MAX_MIG);
    if (!number_of(&call, &call.gpu->mig[index][M_present]))
        return NVML_ERROR_NOT_FOUND;
    *mig = device_handle(call.node, call.index, index);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    CALL(nvmlDeviceIsMigDeviceHandle, TO_DEVICE, device);
    NEED(is_mig);
    *is_mig = call.mig != ANY;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device)
{
    CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, TO_DEVICE, mig);
    NEED(device && call.mig != ANY);
    *device = device_handle(call.node, call.index, ANY);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t mig, unsigned int *id)
{
    CALL(nvmlDeviceGetGpuInstanceId, TO_DEVICE, mig);
    NEED(id);
    if (call.mig == ANY)
        return NVML_ERROR_NOT_SUPPORTED;
    return read_u32(&call, &call.gpu->mig[call.mig][M_gpu_instance], id);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t mig, unsigned int *id)
{
    CALL(nvmlDeviceGetComputeInstanceId, TO_DEVICE, mig);
    NEED(id);
    if (call.mig == ANY)
        return NVML_ERROR_NOT_SUPPORTED;
    return read_u32(&call, &call.gpu->mig[call.mig][M_compute_instance], id);
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t mig, nvmlDeviceAttributes_t *out)
{
    CALL(nvmlDeviceGetAttributes_v2, TO_DEVICE, mig);
    NEED(out);
    if (call.mig == ANY)
        return NVML_ERROR_NOT_SUPPORTED;
    const struct cell *at = call.gpu->mig[call.mig];
    *out = (nvmlDeviceAttributes_t){
        .multiprocessorCount = (unsigned int)number_of(&call, &at[M_multiprocessors]),
        .sharedCopyEngineCount = (unsigned int)number_of(&call, &at[M_copy_engines]),
        .sharedDecoderCount = (unsigned int)number_of(&call, &at[M_decoders]),
        .sharedEncoderCount = (unsigned int)number_of(&call, &at[M_encoders]),
        .sharedJpegCount = (unsigned int)number_of(&call, &at[M_jpeg_engines]),
        .sharedOfaCount = (unsigned int)number_of(&call, &at[M_ofa_engines]),
        .gpuInstanceSliceCount = (unsigned int)number_of(&call, &at[M_gpu_slices]),
        .computeInstanceSliceCount = (unsigned int)number_of(&call, &at[M_compute_slices]),
        .memorySizeMB = number_of(&call, &at[M_memory_mib]),
    };
    return NVML_SUCCESS;
}
