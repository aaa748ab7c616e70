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

/* Numbers of one call, what they add up to, and what somebody has to look at. */
struct ft_tallies {
	struct ft_tally *numbers; /* count, then the totals */
	struct ft_tally_rest *rest;
	uint64_t *sums; /* totals, then one for numbers that add to none */
	uint8_t *added;
	int count;
	int totals;
	int made;   /* how often the call has returned since the last fold */
	int failed; /* numbers that had no answer the last time */
	int tell;   /* answers are put down each time; else where one has failed */
	struct ft_answer *answers;
};

/* Field values of one GPU, in one call. */
struct ft_fields_call {
	struct ft_call call;
	int (*get)(void *device, int count, struct ft_nvml_field *fields);
	void *device;
	struct ft_nvml_field *fields;
	int status;
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
	struct ft_tallies of;
};

static inline void ft_fields_run(struct ft_call *call)
{
	struct ft_fields_call *one = (struct ft_fields_call *)call;

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

/* What a number says now. What a number that comes later has counted so far would be a burst of its sum that
 * never was. */
static inline void ft_tallies_put(struct ft_tallies *of, int i, uint64_t raw, uint64_t now_ns, struct ft_span *span)
{
	struct ft_tally *number = of->numbers + i;
	unsigned int total = number->total;

	of->sums[total] += ft_tally_put(number, of->rest + i, raw, now_ns, span,
					 !of->numbers[of->count + (int)total].time_ns);
	of->added[total] = 1;
}

/* Brings the totals forward. Returns whether the answers are to be put down. */
static inline int ft_tallies_took(struct ft_tallies *of, uint64_t now_ns, struct ft_span *span, int failed)
{
	for (int i = 0; i < of->totals; i++) {
		if (!of->added[i])
			continue;
		of->added[i] = 0;
		ft_tally_put(of->numbers + of->count + i, of->rest + of->count + i, of->sums[i], now_ns, span, 0);
	}
	of->made++;
	of->failed = failed;
	return failed || of->tell;
}

static inline void ft_fields_tell(struct ft_fields_call *one)
{
	for (int i = 0; i < one->of.count; i++) {
		const struct ft_nvml_field *field = one->fields + i;
		int good;

		one->of.answers[i].count = ft_nvml_count(field, &good);
		one->of.answers[i].status = field->status || good ? field->status : FT_NVML_UNKNOWN;
	}
}

static inline int ft_fields_took(struct ft_call *call, uint64_t now_ns)
{
	struct ft_fields_call *one = (struct ft_fields_call *)call;
	struct ft_span span = {0, 0, 0};
	uint64_t when_ns = now_ns, raw;
	int64_t seen_us = 0;
	int failed = 0, good;

	if (one->status != FT_NVML_SUCCESS) {
		one->of.made++;
		one->of.failed = one->of.count;
		return 1;
	}
	for (int i = 0; i < one->of.count; i++) {
		const struct ft_nvml_field *field = one->fields + i;

		if (field->status == FT_NVML_SUCCESS) {
			raw = ft_nvml_count(field, &good);
			if (good) {
				if (field->timestamp_us != seen_us || !seen_us) {
					seen_us = field->timestamp_us;
					when_ns = ft_nvml_time(field, now_ns);
				}
				ft_tallies_put(&one->of, i, raw, when_ns, &span);
				continue;
			}
		}
		failed++;
	}
	if (ft_tallies_took(&one->of, when_ns, &span, failed))
		ft_fields_tell(one);
	return 0;
}

static inline int ft_gpm_took(struct ft_call *call, uint64_t now_ns)
{
	struct ft_gpm_call *one = (struct ft_gpm_call *)call;
	struct ft_span span = {0, 0, 0};
	int failed = 0;

	one->time_ns = now_ns;
	if (one->status != FT_NVML_SUCCESS) {
		one->of.made++;
		one->of.failed = one->of.count;
		return 1;
	}
	if (one->sampled < 2) { /* nothing to compare yet */
		one->of.made++;
		one->of.failed = 0;
		return 0;
	}
	for (int i = 0; i < one->of.count; i++) {
		const struct ft_gpm_metric *metric = one->metrics->metrics + i;

		/* NaN is no number either; a counter that does not fit in a double's 53 bits is not exact */
		if (metric->status != FT_NVML_SUCCESS || !(0 <= metric->value && metric->value < 9223372036854775808.0))
			failed++;
		else if (one->scales[i] != 0)
			one->gauges[i] = metric->value * one->scales[i];
		else
			ft_tallies_put(&one->of, i, (uint64_t)metric->value, now_ns, &span);
	}
	if (ft_tallies_took(&one->of, now_ns, &span, failed))
		for (int i = 0; i < one->of.count; i++) {
			one->of.answers[i].status = one->metrics->metrics[i].status;
			one->of.answers[i].real = one->metrics->metrics[i].value;
		}
	return 0;
}

static inline void ft_tallies_fold(struct ft_tallies *of, struct ft_ring *ring)
{
	for (int i = 0; i < of->count + of->totals; i++)
		ft_tally_fold(ring, of->numbers + i, of->rest + i);
}

#endif
