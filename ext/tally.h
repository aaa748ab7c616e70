/* SPDX-License-Identifier: Apache-2.0 */
/* What cumulative counters did since somebody last looked, gathered where the ring must not be touched.
 *
 * ft_tally_put() takes what a counter says, many times; ft_tally_fold() then writes into the ring what
 * ft_ring_observe() would have written, had it been called as often: value, deltas, start after a reset, and
 * the largest rate between two observations.
 */
#ifndef FABRICTAP_TALLY_H
#define FABRICTAP_TALLY_H

#include "ring.h"

enum { FT_TALLY_SEEN = 1, FT_TALLY_FRESH = 2, FT_TALLY_RESET = 4 };

/* What is touched by every observation. */
struct ft_tally {
	uint64_t last;
	uint64_t time_ns; /* of the last observation; 0: none yet */
	uint64_t gained;  /* counts since the last fold */
	float peak;	  /* likewise: largest rate per second, in the series' unit */
	uint32_t scale;	  /* what one count is worth, in the series' unit */
	uint8_t bits;	  /* width of the counter: 64, or 32 for one that wraps there */
	uint8_t flags;	  /* since the last fold */
	uint8_t total;	  /* index of the sum that it adds to */
};

/* What is touched by folds, and where something has happened. */
struct ft_tally_rest {
	uint32_t series; /* FT_NO_SERIES: nothing is written */
	uint64_t first;	 /* FT_TALLY_FRESH: what was observed first */
	uint64_t reset_ns;	/* FT_TALLY_RESET: time of the observation before */
	uint64_t before_reset;	/* likewise: what was gained until then */
};

/* Between which times the rates of one call are; most of its numbers have the same. */
struct ft_span {
	uint64_t from_ns, to_ns;
	double per_second;
};

static inline double ft_span_rate(struct ft_span *span, uint64_t from_ns, uint64_t to_ns)
{
	if (span->from_ns != from_ns || span->to_ns != to_ns) {
		span->from_ns = from_ns;
		span->to_ns = to_ns;
		/* where the clock was set back nobody knows how long it took, and so no rate */
		span->per_second = to_ns > from_ns ? 1e9 / (double)(to_ns - from_ns) : 0;
	}
	return span->per_second;
}

/* A fall: a wrap or a reset, as in ft_ring_observe(). Returns what was gained. */
static inline uint64_t ft_tally_fell(struct ft_tally *number, struct ft_tally_rest *rest, uint64_t raw)
{
	uint64_t last = number->last;

	if (number->bits == 32 && last <= UINT32_MAX && last - raw > UINT32_MAX / 2)
		return raw + (UINT64_C(1) << 32) - last;
	if (number->bits == 64 && last - raw > UINT64_MAX / 2)
		return raw - last; /* modulo 2^64 */
	rest->reset_ns = number->time_ns;
	rest->before_reset = number->gained;
	number->flags |= FT_TALLY_RESET;
	return raw;
}

/* The first observation. Returns what the sum gets of it: nothing, or all where `whole`. */
static inline uint64_t ft_tally_first(struct ft_tally *number, struct ft_tally_rest *rest, uint64_t raw,
				uint64_t now_ns, int whole)
{
	rest->first = raw;
	number->last = raw;
	number->time_ns = now_ns;
	number->flags |= FT_TALLY_FRESH | FT_TALLY_SEEN;
	return whole ? raw * number->scale : 0;
}

/* An observation. Returns what it adds to a sum, in the series' unit; see ft_tally_first(). */
static inline uint64_t ft_tally_put(struct ft_tally *number, struct ft_tally_rest *rest, uint64_t raw,
				     uint64_t now_ns, struct ft_span *span, int whole)
{
	uint64_t delta = raw - number->last;
	float rate;

	if (__builtin_expect(!number->time_ns, 0))
		return ft_tally_first(number, rest, raw, now_ns, whole);
	if (__builtin_expect(raw < number->last, 0))
		delta = ft_tally_fell(number, rest, raw);
	rate = (float)((double)(int64_t)(delta * number->scale) *
		       ft_span_rate(span, number->time_ns, now_ns));
	if (rate > number->peak)
		number->peak = rate;
	number->last = raw;
	number->time_ns = now_ns;
	number->gained += delta;
	number->flags |= FT_TALLY_SEEN;
	return delta * number->scale;
}

/* Writes what was gathered into the number's series. */
static inline void ft_tally_fold(struct ft_ring *ring, struct ft_tally *number, struct ft_tally_rest *rest)
{
	uint64_t gained = number->gained * number->scale;
	struct ft_series *series;
	uint8_t flags = number->flags;
	float peak = number->peak;

	if (!flags)
		return;
	number->gained = 0;
	number->peak = 0;
	number->flags = 0;
	if (rest->series == FT_NO_SERIES)
		return;
	series = ring->series + rest->series;
	series->time_ns = number->time_ns;
	/* To what stands for many, the first would be added by every new number again. */
	if (flags & FT_TALLY_FRESH) {
		if (!series->overflow)
			series->value.integer += (int64_t)(rest->first * number->scale);
		series->number = FT_INTEGER;
	}
	if (flags & FT_TALLY_RESET && !series->overflow) {
		series->start_ns = rest->reset_ns;
		series->value.integer = -(int64_t)(rest->before_reset * number->scale);
	}
	series->value.integer += (int64_t)gained;
	series->row_delta.integer += (int64_t)gained;
	series->interval_delta.integer += (int64_t)gained;
	if (peak > series->row_peak)
		series->row_peak = peak;
	if (peak > series->interval_peak)
		series->interval_peak = peak;
}

#endif
