/* nvmlDeviceGetFieldValues. */
#include "call.h"

#include <stdbool.h>

static bool in(unsigned int field, unsigned int first, unsigned int last)
{
    return field >= first && field <= last;
}

/* Fields of one NVLink (or C2C link): scopeId says which. Everywhere else it is not looked at. */
static bool has_scope(unsigned int field)
{
    return in(field, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX) ||
           field == NVML_FI_DEV_NVLINK_REMOTE_NVLINK_ID ||
           in(field, NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY, NVML_FI_DEV_NVLINK_GET_POWER_THRESHOLD) ||
           in(field, NVML_FI_DEV_C2C_LINK_GET_STATUS, NVML_FI_DEV_C2C_LINK_GET_MAX_BW) ||
           in(field, NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS, NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER) ||
           in(field, NVML_FI_DEV_C2C_LINK_ERROR_INTR, NVML_FI_DEV_NVLINK_COUNT_FEC_HISTORY_15) ||
           in(field, NVML_FI_DEV_NVLINK_COUNT_RAW_ERRORS_LANE0, NVML_FI_DEV_NVLINK_GET_DATA_RATE);
}

/* The sum of the links that have the counter, for fields 138-141 and scopeId UINT_MAX. */
static nvmlReturn_t sum(const struct call *call, const struct cell *cells, uint64_t *total)
{
    nvmlReturn_t result = NVML_ERROR_NOT_SUPPORTED;
    *total = 0;
    for (unsigned int link = 0; link < MAX_LINKS; link++) {
        uint64_t value;
        nvmlReturn_t one = cell_read(&cells[link], call->now, &value);
        if (one && one != NVML_ERROR_NOT_SUPPORTED)
            return one;
        if (!one) {
            *total += value;
            result = NVML_SUCCESS;
        }
    }
    return result;
}

static void store(nvmlFieldValue_t *out, uint64_t value)
{
    out->value.ullVal = 0;
    switch (out->valueType) {
    case NVML_VALUE_TYPE_DOUBLE:
        out->value.dVal = (double)value / 1000.0; /* such cells hold thousandths */
        break;
    case NVML_VALUE_TYPE_UNSIGNED_INT:
    case NVML_VALUE_TYPE_SIGNED_INT:
        out->value.uiVal = (unsigned int)value;
        break;
    case NVML_VALUE_TYPE_UNSIGNED_SHORT:
        out->value.usVal = (unsigned short)value;
        break;
    default:
        out->value.ullVal = value;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    CALL(nvmlDeviceGetFieldValues, TO_GPU, device);
    NEED(count > 0 && values);
    uint64_t limit = number_of(&call, &call.node->value[N_field_limit]);
    for (int i = 0; i < count; i++) {
        nvmlFieldValue_t *out = &values[i];
        uint64_t value = 0;
        out->timestamp = (long long)(call.now / 1000);
        out->latencyUsec = 0;
        if (out->fieldId == 0 || out->fieldId >= MAX_FIELDS || (limit && out->fieldId >= limit)) {
            out->nvmlReturn = NVML_ERROR_INVALID_ARGUMENT;
            continue;
        }
        const struct cell *cells = call.gpu->field[out->fieldId];
        unsigned int scope = has_scope(out->fieldId) ? out->scopeId : 0;
        if (scope < MAX_LINKS) {
            out->nvmlReturn = read_u64(&call, &cells[scope], &value);
            out->valueType = cells[scope].type;
        } else if (scope == ANY &&
                   in(out->fieldId, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX)) {
            out->nvmlReturn = sum(&call, cells, &value);
            out->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        } else {
            out->nvmlReturn = NVML_ERROR_INVALID_ARGUMENT;
        }
        if (!out->nvmlReturn)
            store(out, value);
    }
    return NVML_SUCCESS;
}
