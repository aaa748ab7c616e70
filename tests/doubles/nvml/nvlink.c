/* NVLinks one by one, and the fabric that they make. */
#include "call.h"

#include <stdio.h>

/* No NVLink at all is NOT_SUPPORTED, a number behind the last one INVALID_ARGUMENT. */
#define NVLINK_CALL(name) \
    CALL(name, TO_GPU, device); \
    if (!number(&call, V_nvlink_links)) \
        return NVML_ERROR_NOT_SUPPORTED; \
    NEED(link < number(&call, V_nvlink_links) && link < MAX_LINKS)

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, unsigned int *active)
{
    NVLINK_CALL(nvmlDeviceGetNvLinkState);
    NEED(active);
    return read_u32(&call, &call.gpu->field[NVML_FI_DEV_NVLINK_GET_STATE][link], active);
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link, unsigned int *version)
{
    NVLINK_CALL(nvmlDeviceGetNvLinkVersion);
    NEED(version);
    return read_u32(&call, &call.gpu->field[NVML_FI_DEV_NVLINK_GET_VERSION][link], version);
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link, unsigned int capability,
                                                  unsigned int *has)
{
    NVLINK_CALL(nvmlDeviceGetNvLinkCapability);
    NEED(has && capability < NVML_NVLINK_CAP_COUNT);
    unsigned int bits = 0;
    nvmlReturn_t result = read_u32(&call, &call.gpu->link[link][L_capabilities], &bits);
    if (!result)
        *has = bits >> capability & 1;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link, unsigned int counter,
                                                    unsigned long long *errors)
{
    NVLINK_CALL(nvmlDeviceGetNvLinkErrorCounter);
    NEED(errors);
    const struct gpu *gpu = call.gpu;
    const struct cell *cell;
    switch (counter) {
    case NVML_NVLINK_ERROR_DL_REPLAY:
        cell = &gpu->field[NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY][link];
        break;
    case NVML_NVLINK_ERROR_DL_RECOVERY:
        cell = &gpu->field[NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY][link];
        break;
    case NVML_NVLINK_ERROR_DL_CRC_FLIT:
        cell = &gpu->field[NVML_FI_DEV_NVLINK_ERROR_DL_CRC][link];
        break;
    case NVML_NVLINK_ERROR_DL_CRC_DATA:
        cell = &gpu->link[link][L_crc_data_errors];
        break;
    case NVML_NVLINK_ERROR_DL_ECC_DATA:
        cell = &gpu->link[link][L_ecc_data_errors];
        break;
    default:
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    uint64_t value = 0;
    nvmlReturn_t result = read_u64(&call, cell, &value);
    if (!result)
        *errors = value;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci)
{
    NVLINK_CALL(nvmlDeviceGetNvLinkRemotePciInfo_v2);
    NEED(pci);
    const struct cell *at = call.gpu->link[link];
    unsigned int bus = 0;
    nvmlReturn_t result = read_u32(&call, &at[L_remote_bus], &bus);
    if (result)
        return result;
    memset(pci, 0, sizeof *pci);
    pci->domain = (unsigned int)number_of(&call, &at[L_remote_domain]);
    pci->bus = bus;
    pci->device = (unsigned int)number_of(&call, &at[L_remote_device]);
    pci->pciDeviceId = (unsigned int)number_of(&call, &at[L_remote_device_id]);
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0xff);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link, unsigned int *type)
{
    NVLINK_CALL(nvmlDeviceGetNvLinkRemoteDeviceType);
    NEED(type);
    return read_u32(&call, &call.gpu->link[link][L_remote_type], type);
}

#if BRANCH >= 535
static void cluster(const struct call *call, unsigned char uuid[16])
{
    memset(uuid, 0, 16);
    const char *digits = call->gpu->text[T_cluster_uuid];
    for (int i = 0; i < 16; i++) {
        unsigned int byte;
        while (*digits == '-')
            digits++;
        if (sscanf(digits, "%2x", &byte) != 1)
            return;
        uuid[i] = (unsigned char)byte;
        digits += 2;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *out)
{
    CALL(nvmlDeviceGetGpuFabricInfo, TO_GPU, device);
    NEED(out);
    unsigned int state = 0;
    nvmlReturn_t result = read_u32(&call, &call.gpu->value[V_fabric_state], &state);
    if (result)
        return result;
    cluster(&call, out->clusterUuid);
    out->status = (nvmlReturn_t)number(&call, V_fabric_status);
    out->cliqueId = (unsigned int)number(&call, V_fabric_clique);
    out->state = state;
    return NVML_SUCCESS;
}

#if BRANCH > 535
EXPORT nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfo_v3_t *out)
{
    CALL(nvmlDeviceGetGpuFabricInfoV, TO_GPU, device);
    NEED(out);
    bool third = out->version == NVML_STRUCT_VERSION(sizeof *out, 3);
    if (!third && out->version != NVML_STRUCT_VERSION(NVML_FABRIC_V2_SIZE, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned int state = 0;
    nvmlReturn_t result = read_u32(&call, &call.gpu->value[V_fabric_state], &state);
    if (result)
        return result;
    cluster(&call, out->clusterUuid);
    out->status = (nvmlReturn_t)number(&call, V_fabric_status);
    out->cliqueId = (unsigned int)number(&call, V_fabric_clique);
    out->state = state;
    out->healthMask = (unsigned int)number(&call, V_fabric_health_mask);
    if (third)
        out->healthSummary = (unsigned char)number(&call, V_fabric_health_summary);
    return NVML_SUCCESS;
}
#endif
#endif
