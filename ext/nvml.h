/* SPDX-License-Identifier: Apache-2.0 */
/* What is called of libnvidia-ml.so.1 many times a second, as nvml.h lays it out. */
#ifndef FABRICTAP_NVML_H
#define FABRICTAP_NVML_H

#include <stddef.h>
#include <stdint.h>

#include "calls.h"
#include "tally.h"

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

/* How one number was answered. */
struct ft_answer {
	int32_t status; /* nvmlReturn_t */
	union {
		uint64_t count;
		double real;
	};
};

/* Field values of one GPU, in one call. */
struct ft_fields_call {
	struct ft_call call;
	int (*get)(void *device, int count, struct ft_nvml_field *fields);
	void *device;
	struct ft_nvml_field *fields;
	int status;
	int tell; /* answers are put down each time; else where one has failed */
	struct ft_answer *answers;
	struct ft_tallies of;
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
	double *scales;		    /* of gauges; 0: it counts */
	double *gauges;		    /* the last; negative: none since the last fold */
	uint64_t time_ns;	    /* of the last answer */
	unsigned int latest;	    /* of samples */
	int sampled;		    /* how many of the two are good */
	int status;
	int tell; /* see struct ft_fields_call */
	struct ft_answer *answers;
	struct ft_tallies of;
};

static inline void ft_fields_run(struct ft_call *call)
{
	struct ft_fields_call *one = (struct ft_fields_call *)call;

	/* nobody has touched it since the last read; it comes while the library works */
	for (const char *at = one->of.hot; at < one->of.hot_end; at += 64)
		__builtin_prefetch(at, 1);
	one->status = one->get(one->device, one->of.count, one->fields);
}

static inline void ft_gpm_run(struct ft_call *call)
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

static inline void ft_fields_tell(struct ft_fields_call *one)
{
	for (int i = 0; i < one->of.count; i++) {
		const struct ft_nvml_field *field = one->fields + i;
		int good;

		one->answers[i].count = ft_nvml_count(field, &good);
		one->answers[i].status = field->status || good ? field->status : FT_NVML_UNKNOWN;
	}
}

/* The rule: all fields have unsigned numbers, of the same time, and had so before. Returns how many it took of them. */
static inline int ft_fields_took_together(struct ft_fields_call *one, uint64_t when_ns)
{
	struct ft_tallies *of = &one->of;
	const struct ft_nvml_field *field = one->fields;
	int64_t when_us = field->timestamp_us;
	int i;

	ft_tallies_span(of, of->time_ns, when_ns);
	for (i = 0; i < of->count; i++, field++) {
		const struct ft_tally_kind *kind = of->kind + of->kinds[i];
		uint64_t gained;

		if (field->status != FT_NVML_SUCCESS || field->timestamp_us != when_us ||
		    field->type - FT_NVML_UINT > FT_NVML_ULONGLONG - FT_NVML_UINT)
			break;
		gained = ft_tally_gain(of, i, kind,
				       field->type == FT_NVML_UINT ? field->value.ui : field->value.ull);
		if (kind->total < of->totals)
			of->sums[kind->total] += gained;
	}
	return i;
}

/* Whether they have the same time again, after each was put with its own. */
static inline void ft_fields_agree(struct ft_fields_call *one, int failed)
{
	struct ft_tallies *of = &one->of;

	for (int i = 1; i < of->count && !failed; i++)
		failed = of->rest[i].time_ns != of->rest[0].time_ns;
	if (!failed)
		of->time_ns = of->rest[0].time_ns;
}

static inline int ft_fields_took(struct ft_call *call, uint64_t now_ns)
{
	struct ft_fields_call *one = (struct ft_fields_call *)call;
	struct ft_tallies *of = &one->of;
	uint64_t when_ns, raw;
	int failed = 0, i = 0, good;

	if (one->status != FT_NVML_SUCCESS) {
		of->made++; /* nothing to fold */
		of->failed = of->count;
		return 1;
	}
	when_ns = ft_nvml_time(one->fields, now_ns);
	if (of->time_ns)
		i = ft_fields_took_together(one, when_ns);
	if (i == of->count) {
		of->time_ns = when_ns;
	} else {
		ft_tallies_part(of);
		for (int j = 0; j < i; j++)
			of->rest[j].time_ns = when_ns;
		for (; i < of->count; i++) {
			const struct ft_nvml_field *field = one->fields + i;

			raw = ft_nvml_count(field, &good);
			if (field->status != FT_NVML_SUCCESS || !good) {
				failed++;
				continue;
			}
			when_ns = ft_nvml_time(field, now_ns);
			ft_tally_put(of, i, raw, when_ns);
		}
		ft_fields_agree(one, failed);
	}
	ft_tallies_took(of, when_ns, failed);
	if (failed || one->tell)
		ft_fields_tell(one);
	return 0;
}

static inline int ft_gpm_took(struct ft_call *call, uint64_t now_ns)
{
	struct ft_gpm_call *one = (struct ft_gpm_call *)call;
	struct ft_tallies *of = &one->of;
	int failed = 0;

	one->time_ns = now_ns;
	if (one->status != FT_NVML_SUCCESS) {
		of->made++; /* nothing to fold */
		of->failed = of->count;
		return 1;
	}
	if (one->sampled < 2) { /* nothing to compare yet */
		of->made++;
		of->failed = 0;
		return 0;
	}
	for (int i = 0; i < of->count; i++) {
		const struct ft_gpm_metric *metric = one->metrics->metrics + i;

		/* NaN is no number either; a counter that does not fit in a double's 53 bits is not exact */
		if (metric->status != FT_NVML_SUCCESS || !(0 <= metric->value && metric->value < 9223372036854775808.0))
			failed++;
		else if (one->scales[i] != 0)
			one->gauges[i] = metric->value * one->scales[i];
		else
			ft_tally_put(of, i, (uint64_t)metric->value, now_ns);
	}
	ft_tallies_took(of, now_ns, failed);
	if (failed || one->tell)
		for (int i = 0; i < of->count; i++) {
			one->answers[i].status = one->metrics->metrics[i].status;
			one->answers[i].real = one->metrics->metrics[i].value;
		}
	return 0;
}

#endif
