/* Confidential computing. Not in drivers of branch 470. */
#include "call.h"

#if BRANCH >= 535

EXPORT nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *out)
{
    CALL(nvmlSystemGetConfComputeState, TO_NODE, NULL);
    NEED(out);
    const struct cell *value = call.node->value;
    nvmlReturn_t result = read_u32(&call, &value[N_confidential_feature], &out->ccFeature);
    if (result)
        return result;
    out->environment = (unsigned int)number_of(&call, &value[N_confidential_environment]);
    out->devToolsMode = (unsigned int)number_of(&call, &value[N_confidential_devtools]);
    return NVML_SUCCESS;
}

#if BRANCH > 535
EXPORT nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_v1_t *out)
{
    CALL(nvmlSystemGetConfComputeSettings, TO_NODE, NULL);
    NEED(out);
    if (out->version != NVML_STRUCT_VERSION(sizeof *out, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    const struct cell *value = call.node->value;
    nvmlReturn_t result = read_u32(&call, &value[N_confidential_feature], &out->ccFeature);
    if (result)
        return result;
    out->environment = (unsigned int)number_of(&call, &value[N_confidential_environment]);
    out->devToolsMode = (unsigned int)number_of(&call, &value[N_confidential_devtools]);
    out->multiGpuMode = (unsigned int)number_of(&call, &value[N_confidential_multi_gpu]);
    return NVML_SUCCESS;
}
#endif
#endif
