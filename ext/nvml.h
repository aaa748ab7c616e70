/* SPDX-License-Identifier: Apache-2.0 */
/* What is called of libnvidia-ml.so.1 many times a second, as nvml.h lays it out. */
#ifndef FABRICTAP_NVML_H
#define FABRICTAP_NVML_H

#include <stddef.h>
#include <stdint.h>

#include "calls.h"

/* nvmlReturn_t, where the code must know it. */
enum { FT_NVML_SUCCESS = 0, FT_NVML_UNKNOWN = 999 };

/* nvmlValueType_t */
enum {
	FT_NVML_DOUBLE = 0,
	FT_NVML_UINT = 1,
	FT_NVML_ULONG = 2,
	FT_NVML_ULONGLONG = 3,
	FT_NVML_LONGLONG = 4,
	FT_NVML_INT = 5,
	FT_NVML_USHORT = 6,
};

union ft_nvml_number {
	double d;
	uint32_t ui;
	uint64_t ull;
	int64_t ll;
	int32_t si;
	uint16_t us;
};

/* nvmlFieldValue_t */
struct ft_nvml_field {
	uint32_t id;
	uint32_t scope;
	int64_t timestamp_us;
	int64_t latency_us;
	uint32_t type;
	int32_t status;
	union ft_nvml_number value;
};
_Static_assert(sizeof(struct ft_nvml_field) == 40, "nvmlFieldValue_t");
_Static_assert(offsetof(struct ft_nvml_field, status) == 28, "nvmlFieldValue_t");

/* nvmlGpmMetric_t */
struct ft_gpm_metric {
	uint32_t id;
	int32_t status;
	double value;
	const char *info[3];
};
_Static_assert(sizeof(struct ft_gpm_metric) == 40, "nvmlGpmMetric_t");

/* nvmlGpmMetricsGet_t of the newest header, which has room for all: older libraries look at fewer. */
#define FT_GPM_METRICS 477
struct ft_gpm_get {
	uint32_t version;
	uint32_t count;
	void *before;
	void *after;
	struct ft_gpm_metric metrics[FT_GPM_METRICS];
};
_Static_assert(sizeof(struct ft_gpm_get) == 19104, "nvmlGpmMetricsGet_t");

/* Field values of one GPU, in one call. */
struct ft_fields_call {
	struct ft_call call;
	int (*get)(void *device, int count, struct ft_nvml_field *fields);
	void *device;
	struct ft_nvml_field *fields;
	int count;
	int status;
};

/* One GPM sample of a GPU or GPU instance, and what happened since the one before. */
struct ft_gpm_call {
	struct ft_call call;
	int (*sample)(void *device, void *sample);
	int (*mig_sample)(void *device, unsigned int instance, void *sample);
	int (*get)(struct ft_gpm_get *metrics);
	void *device;
	int64_t instance; /* GPU instance; -1: the whole GPU */
	void *samples[2];
	struct ft_gpm_get *metrics;
	unsigned int latest; /* of samples */
	int sampled;	     /* how many of the two are good */
	int status;
};

static void ft_fields_run(struct ft_call *call)
{
	struct ft_fields_call *one = (struct ft_fields_call *)call;

	one->status = one->get(one->device, one->count, one->fields);
}

static void ft_gpm_run(struct ft_call *call)
{
	struct ft_gpm_call *one = (struct ft_gpm_call *)call;
	unsigned int next = one->sampled ? !one->latest : 0;

	one->status = one->instance < 0
			      ? one->sample(one->device, one->samples[next])
			      : one->mig_sample(one->device, (unsigned int)one->instance, one->samples[next]);
	if (one->status != FT_NVML_SUCCESS) {
		one->sampled = 0; /* rates over a gap would be of another time */
		return;
	}
	one->latest = next;
	if (one->sampled < 2)
		one->sampled++;
	if (one->sampled < 2)
		return;
	one->metrics->before = one->samples[!next];
	one->metrics->after = one->samples[next];
	one->status = one->get(one->metrics);
}

/* The number of a field that counts; 0 and *good = 0 where it is negative or of an unknown type. */
static inline uint64_t ft_nvml_count(const struct ft_nvml_field *field, int *good)
{
	*good = 1;
	switch (field->type) {
	case FT_NVML_UINT:
		return field->value.ui;
	case FT_NVML_ULONG:
	case FT_NVML_ULONGLONG:
		return field->value.ull;
	case FT_NVML_USHORT:
		return field->value.us;
	case FT_NVML_LONGLONG:
		if (field->value.ll >= 0)
			return (uint64_t)field->value.ll;
		break;
	case FT_NVML_INT:
		if (field->value.si >= 0)
			return (uint64_t)field->value.si;
		break;
	case FT_NVML_DOUBLE:
		if (field->value.d >= 0 && field->value.d < 18446744073709551616.0)
			return (uint64_t)field->value.d;
		break;
	default:
		break;
	}
	*good = 0;
	return 0;
}

/* When the driver read a field: by itself where that can be, for a thread may be held between call and clock and
 * a rate over the wrong time be a peak that never was; else now. */
static inline uint64_t ft_nvml_time(const struct ft_nvml_field *field, uint64_t now_ns)
{
	uint64_t when_ns = field->timestamp_us > 0 ? (uint64_t)field->timestamp_us * 1000u : 0;

	if (when_ns > now_ns + 1000000u || when_ns + 2000000000u < now_ns)
		return now_ns;
	return when_ns;
}

#endif
