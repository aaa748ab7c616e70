/* One GPU: its identity, memory, health, clocks and PCIe link. */
#include "call.h"

#include <stdio.h>
#include <strings.h>
#include <time.h>

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    CALL(nvmlDeviceGetHandleByIndex_v2, TO_NODE, NULL);
    NEED(device && index < call.node->gpus);
    nvmlReturn_t result = call_address(&call, index);
    if (!result)
        *device = device_handle(call.node, index, ANY);
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    CALL(nvmlDeviceGetHandleByUUID, TO_NODE, NULL);
    NEED(uuid && device);
    for (uint32_t gpu = 0; gpu < call.node->gpus; gpu++) {
        struct gpu *at = &call.node->gpu[gpu];
        uint32_t mig = ANY;
        bool found = !strcmp(uuid, at->text[T_uuid]);
        for (uint32_t i = 0; i < MAX_MIG && !found; i++)
            if (number_of(&call, &at->mig[i][M_present]) && !strcmp(uuid, at->mig_uuid[i])) {
                found = true;
                mig = i;
            }
        if (!found)
            continue;
        nvmlReturn_t result = call_address(&call, gpu);
        if (!result)
            *device = device_handle(call.node, gpu, mig);
        return result;
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    CALL(nvmlDeviceGetHandleByPciBusId_v2, TO_NODE, NULL);
    NEED(bus_id && device);
    unsigned int domain, bus, slot, function = 0;
    NEED(sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) >= 3 && function == 0);
    for (uint32_t gpu = 0; gpu < call.node->gpus; gpu++) {
        const struct cell *value = call.node->gpu[gpu].value;
        if (number_of(&call, &value[V_pci_domain]) != domain || number_of(&call, &value[V_pci_bus]) != bus ||
            number_of(&call, &value[V_pci_device]) != slot)
            continue;
        nvmlReturn_t result = call_address(&call, gpu);
        if (!result)
            *device = device_handle(call.node, gpu, ANY);
        return result;
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    CALL(nvmlDeviceGetName, TO_DEVICE, device);
    NEED(name);
    return copy_text(call.gpu->text[T_name], name, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    CALL(nvmlDeviceGetUUID, TO_DEVICE, device);
    NEED(uuid);
    return copy_text(call.mig == ANY ? call.gpu->text[T_uuid] : call.gpu->mig_uuid[call.mig], uuid, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    CALL(nvmlDeviceGetSerial, TO_GPU, device);
    NEED(serial);
    return copy_text(call.gpu->text[T_serial], serial, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *version, unsigned int length)
{
    CALL(nvmlDeviceGetVbiosVersion, TO_GPU, device);
    NEED(version);
    return copy_text(call.gpu->text[T_vbios_version], version, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    CALL(nvmlDeviceGetIndex, TO_DEVICE, device);
    NEED(index);
    *index = call.mig == ANY ? call.index : call.mig;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    CALL(nvmlDeviceGetPciInfo_v3, TO_DEVICE, device);
    NEED(pci);
    memset(pci, 0, sizeof *pci);
    pci->domain = (unsigned int)number(&call, V_pci_domain);
    pci->bus = (unsigned int)number(&call, V_pci_bus);
    pci->device = (unsigned int)number(&call, V_pci_device);
    pci->pciDeviceId = (unsigned int)number(&call, V_pci_device_id);
    pci->pciSubSystemId = (unsigned int)number(&call, V_pci_subsystem_id);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0xff);
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    return NVML_SUCCESS;
}

/* Getters of one number: the function, its out type and the number. */
#define GETTER(function, type, value_name) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, type *out) \
    { \
        CALL(function, TO_GPU, device); \
        NEED(out); \
        return read_u32(&call, &call.gpu->value[V_##value_name], (unsigned int *)out); \
    }
#define GETTER64(function, value_name) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned long long *out) \
    { \
        CALL(function, TO_GPU, device); \
        NEED(out); \
        uint64_t value = 0; \
        nvmlReturn_t result = read_u64(&call, &call.gpu->value[V_##value_name], &value); \
        if (!result) \
            *out = value; \
        return result; \
    }

GETTER(nvmlDeviceGetMinorNumber, unsigned int, minor_number)
GETTER(nvmlDeviceGetBrand, unsigned int, brand)
GETTER(nvmlDeviceGetPowerUsage, unsigned int, power_mw)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, power_limit_mw)
GETTER(nvmlDeviceGetPerformanceState, unsigned int, performance_state)
GETTER(nvmlDeviceGetComputeMode, unsigned int, compute_mode)
GETTER(nvmlDeviceGetPersistenceMode, unsigned int, persistence_mode)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, pcie_generation)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, pcie_width)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, pcie_generation_max)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, pcie_width_max)
GETTER64(nvmlDeviceGetTotalEnergyConsumption, energy_mj)
GETTER64(nvmlDeviceGetCurrentClocksThrottleReasons, clocks_event_reasons)
GETTER64(nvmlDeviceGetSupportedEventTypes, supported_events)
GETTER(nvmlDeviceGetArchitecture, unsigned int, architecture)
#if BRANCH >= 535
GETTER64(nvmlDeviceGetCurrentClocksEventReasons, clocks_event_reasons)
#endif
#if BRANCH > 535
GETTER(nvmlDeviceGetNumaNodeId, unsigned int, numa_node)
#endif

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    CALL(nvmlDeviceGetCudaComputeCapability, TO_DEVICE, device);
    NEED(major && minor);
    *major = (int)number(&call, V_compute_capability_major);
    *minor = (int)number(&call, V_compute_capability_minor);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int size, unsigned long *nodes,
                                                unsigned int scope)
{
    CALL(nvmlDeviceGetMemoryAffinity, TO_GPU, device);
    NEED(nodes && size && scope <= 1);
    unsigned int node = 0;
    nvmlReturn_t result = read_u32(&call, &call.gpu->value[V_numa_node], &node);
    if (result)
        return result;
    if (node / 64 >= size)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memset(nodes, 0, size * sizeof *nodes);
    nodes[node / 64] = 1ul << node % 64;
    return NVML_SUCCESS;
}

/* The stand-in's nodes have a host bridge per GPU: within a NUMA node NODE, else SYSTEM. */
EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned int *level)
{
    uint64_t first;
    uint32_t index;
    {
        CALL(nvmlDeviceGetTopologyCommonAncestor, TO_GPU, one);
        NEED(level);
        index = call.index;
        first = number(&call, V_numa_node);
    }
    CALL(nvmlDeviceGetTopologyCommonAncestor, TO_GPU, other);
    *level = call.index == index ? 0 : first == number(&call, V_numa_node) ? 40 : 50;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    CALL(nvmlDeviceGetUtilizationRates, TO_GPU, device);
    NEED(utilization);
    if (number(&call, V_mig_mode_current))
        return NVML_ERROR_NOT_SUPPORTED;
    nvmlReturn_t result = read_u32(&call, &call.gpu->value[V_utilization_gpu_percent], &utilization->gpu);
    if (!result)
        utilization->memory = (unsigned int)number(&call, V_utilization_memory_percent);
    return result;
}

static nvmlReturn_t clock_mhz(const struct call *call, unsigned int type, unsigned int first, unsigned int *mhz)
{
    NEED(mhz && type <= 3);
    return read_u32(call, &call->gpu->value[first + type], mhz);
}
_Static_assert(V_clock_video_mhz == V_clock_graphics_mhz + 3, "in the order of nvmlClockType_t");
_Static_assert(V_clock_memory_max_mhz == V_clock_graphics_max_mhz + 2, "in the order of nvmlClockType_t");

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz)
{
    CALL(nvmlDeviceGetClockInfo, TO_GPU, device);
    return clock_mhz(&call, type, V_clock_graphics_mhz, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz)
{
    CALL(nvmlDeviceGetMaxClockInfo, TO_GPU, device);
    return clock_mhz(&call, type, V_clock_graphics_max_mhz, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *celsius)
{
    CALL(nvmlDeviceGetTemperature, TO_GPU, device);
    NEED(celsius && sensor == 0);
    return read_u32(&call, &call.gpu->value[V_temperature_celsius], celsius);
}

#if BRANCH > 535
EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *temperature)
{
    CALL(nvmlDeviceGetTemperatureV, TO_GPU, device);
    NEED(temperature && temperature->sensorType == 0);
    if (temperature->version != NVML_STRUCT_VERSION(sizeof *temperature, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return read_u32(&call, &call.gpu->value[V_temperature_celsius], (unsigned int *)&temperature->temperature);
}
#endif

EXPORT nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned int *replays)
{
    CALL(nvmlDeviceGetPcieReplayCounter, TO_GPU, device);
    NEED(replays);
    return read_u32(&call, &call.gpu->field[NVML_FI_DEV_PCIE_REPLAY_COUNTER][0], replays);
}

/* As slow as the real one, which watches the link for 20 ms before it answers. Nobody else waits for it. */
EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, unsigned int counter, unsigned int *kb_per_s)
{
    CALL(nvmlDeviceGetPcieThroughput, TO_GPU, device);
    NEED(kb_per_s && counter <= 1);
    struct timespec sample = {.tv_nsec = (long)number_of(&call, &call.node->value[N_pcie_sample_ms]) * 1000000};
    node_unlock(call.node);
    nanosleep(&sample, NULL);
    node_lock(call.node);
    return read_u32(&call, &call.gpu->value[counter ? V_pcie_rx_kb_per_s : V_pcie_tx_kb_per_s], kb_per_s);
}
