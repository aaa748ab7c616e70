/* GPM: two samples of a GPU's counters, and metrics from their difference. Not in drivers of branch 470. */
#include "call.h"

#if BRANCH >= 535

#include <stdlib.h>

#define MIN_INTERVAL_NS 100000000ull
#define MIB 1048576.0

/* A sample holds what the cells said: percentages in thousandths, traffic in bytes. */
struct nvmlGpmSample_st {
    uint64_t taken; /* 0: never */
    uint32_t gpu, mig;
    nvmlReturn_t result[MAX_METRICS];
    uint64_t value[MAX_METRICS];
};

EXPORT nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *out)
{
    CALL(nvmlGpmQueryDeviceSupport, TO_GPU, device);
    NEED(out);
    if (out->version != NVML_GPM_SUPPORT_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    out->isSupportedDevice = (unsigned int)number(&call, V_gpm_supported);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample)
{
    CALL(nvmlGpmSampleAlloc, TO_NODE, NULL);
    NEED(sample);
    *sample = calloc(1, sizeof **sample);
    return *sample ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

EXPORT nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample)
{
    CALL(nvmlGpmSampleFree, TO_NODE, NULL);
    NEED(sample);
    free(sample);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample)
{
    CALL(nvmlGpmSampleGet, TO_GPU, device);
    NEED(sample);
    if (!number(&call, V_gpm_supported))
        return NVML_ERROR_NOT_SUPPORTED;
    sample->taken = call.now;
    sample->gpu = call.index;
    sample->mig = ANY;
    for (unsigned int i = 0; i < MAX_METRICS; i++)
        sample->result[i] = cell_read(&call.gpu->gpm[i], call.now, &sample->value[i]);
    return NVML_SUCCESS;
}

/* Of a GPU instance only what its own slices do is known: the links are the whole GPU's. */
EXPORT nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gpu_instance, nvmlGpmSample_t sample)
{
    CALL(nvmlGpmMigSampleGet, TO_GPU, device);
    NEED(sample);
    if (!number(&call, V_gpm_supported))
        return NVML_ERROR_NOT_SUPPORTED;
    static const struct {
        unsigned int metric, cell;
    } own[] = {{1, M_graphics_util_millipercent}, {2, M_sm_util_millipercent}, {10, M_dram_util_millipercent}};
    for (uint32_t mig = 0; mig < MAX_MIG; mig++) {
        const struct cell *cells = call.gpu->mig[mig];
        if (!number_of(&call, &cells[M_present]) || number_of(&call, &cells[M_gpu_instance]) != gpu_instance)
            continue;
        sample->taken = call.now;
        sample->gpu = call.index;
        sample->mig = gpu_instance;
        for (unsigned int i = 0; i < MAX_METRICS; i++)
            sample->result[i] = NVML_ERROR_NOT_SUPPORTED;
        for (unsigned int i = 0; i < sizeof own / sizeof *own; i++)
            sample->result[own[i].metric] = cell_read(&cells[own[i].cell], call.now, &sample->value[own[i].metric]);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

struct interval {
    const struct nvmlGpmSample_st *first, *second;
    double seconds;
};

/* MiB/s of a counter of bytes. */
static nvmlReturn_t rate(const struct interval *in, unsigned int counter, double *value)
{
    nvmlReturn_t result = in->second->result[counter] ? in->second->result[counter] : in->first->result[counter];
    if (!result)
        *value = (double)(in->second->value[counter] - in->first->value[counter]) / in->seconds / MIB;
    return result;
}

static nvmlReturn_t all_links(const struct interval *in, unsigned int first, double *value)
{
    nvmlReturn_t result = NVML_ERROR_NOT_SUPPORTED;
    *value = 0;
    for (unsigned int link = 0; link < MAX_LINKS; link++) {
        double one;
        nvmlReturn_t answer = rate(in, first + 2 * link, &one);
        if (answer && answer != NVML_ERROR_NOT_SUPPORTED)
            return answer;
        if (!answer) {
            *value += one;
            result = NVML_SUCCESS;
        }
    }
    return result;
}

static nvmlReturn_t metric(const struct call *call, const struct interval *in, unsigned int id, double *value)
{
    uint64_t limit = number_of(call, &call->node->value[N_gpm_limit]);
    if (id == 0 || id >= MAX_METRICS || (limit && id >= limit))
        return NVML_ERROR_INVALID_ARGUMENT;
    if (id == NVML_GPM_METRIC_PCIE_TX_PER_SEC || id == NVML_GPM_METRIC_PCIE_RX_PER_SEC)
        return rate(in, NVML_GPM_METRIC_PCIE_TX + (id - NVML_GPM_METRIC_PCIE_TX_PER_SEC), value);
    if (id == NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC || id == NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC)
        return all_links(in, NVML_GPM_METRIC_NVLINK_L0_RX + (id - NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC), value);
    if (id >= NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC && id <= NVML_GPM_METRIC_NVLINK_L17_TX_PER_SEC)
        return rate(in, NVML_GPM_METRIC_NVLINK_L0_RX + (id - NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC), value);
    if (id >= NVML_GPM_METRIC_NVLINK_L18_RX_PER_SEC && id <= NVML_GPM_METRIC_NVLINK_L35_TX_PER_SEC)
        return rate(in, NVML_GPM_METRIC_NVLINK_L0_RX + 36 + (id - NVML_GPM_METRIC_NVLINK_L18_RX_PER_SEC), value);
    if (id >= NVML_GPM_METRIC_C2C_TOTAL_TX_PER_SEC && id <= NVML_GPM_METRIC_C2C_DATA_RX_PER_SEC)
        return rate(in, id, value); /* these cells count bytes */
    if (in->second->result[id])
        return in->second->result[id];
    bool cumulative = id == NVML_GPM_METRIC_PCIE_TX || id == NVML_GPM_METRIC_PCIE_RX ||
                      (id >= NVML_GPM_METRIC_NVLINK_L0_RX && id <= NVML_GPM_METRIC_NVLINK_L35_TX);
    if (cumulative && !number_of(call, &call->node->gpu[in->second->gpu].value[V_gpm_cumulative]))
        return NVML_ERROR_NOT_SUPPORTED;
    *value = cumulative ? (double)in->second->value[id] : (double)in->second->value[id] / 1000.0;
    return NVML_SUCCESS;
}

/* What the real library answers to samples that are too close is not written anywhere; ours refuses them. */
EXPORT nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *get)
{
    CALL(nvmlGpmMetricsGet, TO_NODE, NULL);
    NEED(get);
    if (get->version != NVML_GPM_METRICS_GET_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    NEED(get->numMetrics && get->numMetrics < MAX_METRICS && get->sample1 && get->sample2);
    const struct interval in = {
        .first = get->sample1,
        .second = get->sample2,
        .seconds = (double)(get->sample2->taken - get->sample1->taken) / 1e9,
    };
    NEED(in.first->taken && in.second->taken && in.first->gpu == in.second->gpu && in.first->mig == in.second->mig);
    NEED(in.second->taken > in.first->taken && in.second->taken - in.first->taken > MIN_INTERVAL_NS);
    for (unsigned int i = 0; i < get->numMetrics; i++) {
        nvmlGpmMetric_t *out = &get->metrics[i];
        double value = 0;
        out->nvmlReturn = metric(&call, &in, out->metricId, &value);
        out->value = value;
    }
    return NVML_SUCCESS;
}
#endif
