/* SPDX-License-Identifier: Apache-2.0 */
/* What the cumulative counters of one call did since somebody last looked, added up where the ring must not be
 * touched.
 *
 * ft_tally_put() takes what a counter says, many times; ft_tallies_fold() then writes into the ring what
 * ft_ring_observe() would have written, had it been called as often: value, deltas, start after a reset, and
 * the largest rate between two observations.
 *
 * A read comes ten times a second, when nothing of this is in a cache any more. So what each of them touches of a
 * counter is 13 bytes: last, peak, kind. When all counters have the same times, which is the rule, they are kept
 * once.
 */
#ifndef FABRICTAP_TALLY_H
#define FABRICTAP_TALLY_H

#include "ring.h"

#define FT_TALLY_KINDS 32
#define FT_TALLY_AHEAD 10

enum { FT_TALLY_FRESH = 1, FT_TALLY_RESET = 2 };

/* What counters have in common. */
struct ft_tally_kind {
	double rate;	/* of one count, in the series' unit, over the time that is being put: scale / seconds */
	uint32_t scale; /* what one count is worth, in the series' unit */
	uint8_t bits;	/* width of the counter: 64, or 32 for one that wraps there */
	uint8_t total;	/* index of the sum that it adds to */
};

/* What is touched by folds. */
struct ft_tally_rest {
	uint64_t base;	  /* last, as it was folded; less what a wrap or a reset took from it */
	uint64_t time_ns; /* of the last observation, where not all have the same; 0: none yet */
	uint32_t series;  /* FT_NO_SERIES: nothing is written */
	uint32_t flags;
};

/* What is touched where something has happened. */
struct ft_tally_event {
	uint64_t first;		/* FT_TALLY_FRESH: what was observed first */
	uint64_t reset_ns;	/* FT_TALLY_RESET: time of the observation before */
	uint64_t before_reset;	/* likewise: what was gained until then */
};

/* Counters of one call (count), then what they add up to (totals). */
struct ft_tallies {
	const char *hot, *hot_end; /* where last, peaks, kinds, sums and the kinds that are used lie */
	uint64_t *last;
	float *peaks; /* since the last fold: largest rate per second, in the series' unit */
	uint8_t *kinds;
	uint64_t *sums; /* of totals */
	int count;
	int totals;
	int made;	     /* how often the call has returned since the last fold */
	int failed;	     /* counters that had no answer the last time */
	int gained;	     /* whether there is something to fold */
	uint64_t time_ns;    /* of all counters; 0: each has its own */
	uint64_t from_ns;    /* the span for which the kinds' rates are */
	uint64_t to_ns;
	unsigned int kinds_used;
	struct ft_tally_kind *kind;
	struct ft_tally_rest *rest;
	struct ft_tally_event *events;
	uint8_t *added; /* whether something adds to a total now */
};

static inline void ft_tallies_span(struct ft_tallies *of, uint64_t from_ns, uint64_t to_ns)
{
	/* where the clock was set back nobody knows how long it took, and so no rate */
	double per_second = to_ns > from_ns ? 1e9 / (double)(to_ns - from_ns) : 0;

	if (of->from_ns == from_ns && of->to_ns == to_ns)
		return;
	of->from_ns = from_ns;
	of->to_ns = to_ns;
	for (unsigned int i = 0; i < of->kinds_used; i++)
		of->kind[i].rate = of->kind[i].scale * per_second;
}

/* A fall: a wrap or a reset, as in ft_ring_observe(). Returns what was gained; time_ns: of the one before. */
static inline uint64_t ft_tally_fell(struct ft_tallies *of, int i, uint64_t raw, uint64_t time_ns)
{
	struct ft_tally_rest *rest = of->rest + i;
	uint64_t last = of->last[i];
	uint8_t bits = of->kind[of->kinds[i]].bits;

	if (bits == 32 && last <= UINT32_MAX && last - raw > UINT32_MAX / 2) {
		rest->base -= UINT64_C(1) << 32;
		return raw + (UINT64_C(1) << 32) - last;
	}
	if (bits == 64 && last - raw > UINT64_MAX / 2)
		return raw - last; /* modulo 2^64 */
	of->events[i].reset_ns = time_ns;
	of->events[i].before_reset = last - rest->base;
	rest->flags |= FT_TALLY_RESET;
	rest->base -= last;
	return raw;
}

/* What a counter gained, for the span that is set. Returns it in the series' unit. */
static inline uint64_t ft_tally_gain(struct ft_tallies *of, int i, const struct ft_tally_kind *kind, uint64_t raw)
{
	uint64_t delta = raw - of->last[i];
	float rate;

	if (__builtin_expect(raw < of->last[i], 0))
		delta = ft_tally_fell(of, i, raw, of->from_ns);
	of->last[i] = raw;
	rate = (float)((double)(int64_t)delta * kind->rate);
	if (rate > of->peaks[i])
		of->peaks[i] = rate;
	return delta * kind->scale;
}

/* Each counter has its own time from now on. */
static inline void ft_tallies_part(struct ft_tallies *of)
{
	if (!of->time_ns)
		return;
	for (int i = 0; i < of->count; i++)
		of->rest[i].time_ns = of->time_ns;
	of->time_ns = 0;
}

/* What one counter says; after ft_tallies_part(). What one that comes later has counted so far would be a burst of
 * its sum that never was. */
static inline void ft_tally_put(struct ft_tallies *of, int i, uint64_t raw, uint64_t now_ns)
{
	struct ft_tally_rest *rest = of->rest + i;
	const struct ft_tally_kind *kind = of->kind + of->kinds[i];
	uint64_t gained = 0;

	if (rest->time_ns) {
		ft_tallies_span(of, rest->time_ns, now_ns);
		gained = ft_tally_gain(of, i, kind, raw);
	} else {
		of->events[i].first = rest->base = of->last[i] = raw;
		rest->flags |= FT_TALLY_FRESH;
		if (kind->total < of->totals && !of->rest[of->count + kind->total].time_ns)
			gained = raw * kind->scale;
	}
	rest->time_ns = now_ns;
	if (kind->total < of->totals) {
		of->sums[kind->total] += gained;
		of->added[kind->total] = 1;
	}
}

/* Brings the totals forward, after all counters have said what they had to say. */
static inline void ft_tallies_took(struct ft_tallies *of, uint64_t now_ns, int failed)
{
	for (int i = 0; i < of->totals; i++)
		if (of->added[i])
			ft_tally_put(of, of->count + i, of->sums[i], now_ns);
	of->made++;
	of->gained = 1;
	of->failed = failed;
}

static inline void ft_tally_fold(struct ft_tallies *of, int i, uint64_t time_ns, struct ft_ring *ring)
{
	struct ft_tally_rest *rest = of->rest + i;
	uint32_t scale = of->kind[of->kinds[i]].scale, flags = rest->flags;
	uint64_t gained = (of->last[i] - rest->base) * scale;
	float peak = of->peaks[i];
	struct ft_series *series;

	rest->base = of->last[i];
	rest->flags = 0;
	of->peaks[i] = 0;
	if (rest->series == FT_NO_SERIES || !time_ns)
		return;
	series = ring->series + rest->series;
	series->time_ns = time_ns;
	/* To what stands for many, the first would be added by every new counter again. */
	if (flags & FT_TALLY_FRESH) {
		if (!series->overflow)
			series->value.integer += (int64_t)(of->events[i].first * scale);
		series->number = FT_INTEGER;
	}
	if (flags & FT_TALLY_RESET && !series->overflow) {
		series->start_ns = of->events[i].reset_ns;
		series->value.integer = -(int64_t)(of->events[i].before_reset * scale);
	}
	series->value.integer += (int64_t)gained;
	series->row_delta.integer += (int64_t)gained;
	series->interval_delta.integer += (int64_t)gained;
	if (peak > series->row_peak)
		series->row_peak = peak;
	if (peak > series->interval_peak)
		series->interval_peak = peak;
}

/* Series that are folded soon are fetched: nobody has touched them for a second. */
static inline void ft_tally_fetch(const struct ft_tallies *of, int i, const struct ft_ring *ring)
{
	if (i < of->count && of->rest[i].series != FT_NO_SERIES) {
		const char *series = (const char *)(ring->series + of->rest[i].series);

		__builtin_prefetch(series, 1);
		__builtin_prefetch(series + 64, 1);
	}
}

/* Writes what has come together into the series. */
static inline void ft_tallies_fold(struct ft_tallies *of, struct ft_ring *ring)
{
	of->made = 0;
	if (!of->gained)
		return;
	of->gained = 0;
	for (int i = 0; i < FT_TALLY_AHEAD; i++)
		ft_tally_fetch(of, i, ring);
	for (int i = 0; i < of->count; i++) {
		ft_tally_fetch(of, i + FT_TALLY_AHEAD, ring);
		ft_tally_fold(of, i, of->time_ns ? of->time_ns : of->rest[i].time_ns, ring);
	}
	for (int i = of->count; i < of->count + of->totals; i++)
		ft_tally_fold(of, i, of->rest[i].time_ns, ring);
}

#endif
