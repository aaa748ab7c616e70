/* SPDX-License-Identifier: Apache-2.0 */
/* The ring: layout of the memory-mapped file, and what writes into it per event, sub-tick and tick.
 *
 * docs/ring.md describes the same bytes for whoever reads them. One writer; readers are other processes that
 * look at the file as it is, so everything that is more than one aligned word stands under a sequence: odd
 * while it is being written. What a killed writer leaves odd, or a row whose number is 0, was never whole.
 *
 * Nothing here takes a lock: all writing is done under the node's lock.
 */
#ifndef FABRICTAP_RING_H
#define FABRICTAP_RING_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FT_RING_MAGIC "FABRTAP\n"
#define FT_RING_VERSION 1
#define FT_RING_BYTE_ORDER 0x01020304u
#define FT_PAGE 4096u
/* Series of one kind share a segment: a tick's cells of 64 series lie side by side. */
#define FT_SEGMENT 64u
/* Bytes of one tick of a segment, at most: what the widest kind takes. */
#define FT_STRIDE_MAX 1024u
/* As many buckets as an exponential histogram of the OpenTelemetry SDKs has. */
#define FT_BUCKETS 160
/* Finer histograms are refused by some receivers. */
#define FT_SCALE_MAX 8
#define FT_NO_SERIES UINT32_MAX
#define FT_NO_CONNECTION UINT32_MAX
#define FT_OPERATIONS 16

enum ft_kind { FT_NO_KIND, FT_COUNTER, FT_UPDOWNCOUNTER, FT_GAUGE, FT_HISTOGRAM, FT_KINDS };
enum ft_state { FT_FREE, FT_LIVE, FT_ENDED };
/* What a value is. Nothing is exported before it is something. */
enum ft_number { FT_UNKNOWN, FT_INTEGER, FT_REAL };

union ft_value {
	int64_t integer;
	double real;
};

/* Page 0. What stands above checksum is written once. */
struct ft_ring_header {
	char magic[8];
	uint32_t version;
	uint32_t byte_order;
	uint64_t size; /* of the file */
	uint64_t created_ns;
	uint64_t tick_ns;
	uint32_t pid;
	uint32_t rows;
	uint32_t series;
	uint32_t histograms;
	uint32_t connections;
	uint32_t events;
	uint64_t about_at; /* offsets in the file, multiples of FT_PAGE */
	uint64_t about_size;
	uint64_t rows_at;
	uint64_t kinds_at;
	uint64_t series_at;
	uint64_t heap_at;
	uint64_t heap_size;
	uint64_t histograms_at;
	uint64_t connections_at;
	uint64_t events_at;
	uint64_t cells_at;
	uint32_t checksum; /* CRC-32 of the bytes above */
	/* --- below: alive */
	uint32_t about_sequence;
	uint32_t about_length;
	uint32_t about_checksum;
	uint64_t head;	     /* number of the last whole row; rows count from 1 */
	uint64_t events_head; /* number of the last whole event; events count from 1 */
	uint64_t ended_ns;   /* when the writer closed the file; 0 while it lives, and after its sudden death */
	uint32_t connections_used; /* rows of the table that were ever used */
	uint32_t segments_used;
};
_Static_assert(offsetof(struct ft_ring_header, checksum) == 152, "documented in docs/ring.md");
_Static_assert(sizeof(struct ft_ring_header) == 200, "documented in docs/ring.md");

/* One tick. Row n lies at n % rows. */
struct ft_row {
	uint64_t number; /* 0 while its cells are being written */
	uint64_t start_ns;
	uint64_t end_ns;
	uint64_t reserved;
};
_Static_assert(sizeof(struct ft_row) == 32, "documented in docs/ring.md");

struct ft_series {
	uint32_t sequence; /* of the meaning: everything up to last_row */
	uint16_t metric;   /* index in the list of metrics of the about section */
	uint8_t kind;
	uint8_t state;
	uint8_t number;
	uint8_t rates; /* whether peak and average are exported */
	uint16_t attributes_size;
	uint32_t attributes; /* offset in the heap: OTLP KeyValues, each as field 7 of a NumberDataPoint */
	uint32_t histogram;
	uint8_t overflow; /* stands for all series of its metric that the full ring refused */
	uint8_t reserved[3];
	uint64_t first_row; /* cells of earlier rows belong to another series */
	uint64_t last_row;  /* cells of later rows likewise; 0 while it lives */
	uint64_t start_ns;
	uint64_t time_ns;
	union ft_value value;
	union ft_value row_delta;	/* counters: since the last row */
	union ft_value interval_delta; /* counters: since the last export */
	float row_peak;			/* counters: largest rate per second since the last row */
	float interval_peak;		/* likewise since the last export */
	float peak;			/* of the interval before the last export */
	float average;
	double low; /* gauges: extremes since the last row */
	double high;
	uint64_t interval_start_ns;
	uint64_t spare;
};
_Static_assert(sizeof(struct ft_series) == 128, "two cache lines, documented in docs/ring.md");

/* Exponential histogram: buckets[i] counts values in (base^(offset+i), base^(offset+i+1)], base 2^(2^-scale). */
struct ft_histogram {
	uint32_t sequence;
	int32_t scale;
	uint64_t count;
	double sum;
	uint64_t zeros;
	int32_t offset;
	uint32_t used;
	uint64_t row_count; /* as they were at the last row */
	double row_sum;
	uint64_t buckets[FT_BUCKETS];
};
_Static_assert(sizeof(struct ft_histogram) == 56 + 8 * FT_BUCKETS, "documented in docs/ring.md");

/* One thing that happened. Event n lies at n % events. */
struct ft_event {
	uint64_t number; /* 0 while it is being written */
	uint64_t time_ns;
	uint16_t kind; /* index in the list of events of the about section */
	uint8_t severity; /* OTLP SeverityNumber */
	uint8_t reserved;
	int32_t pid; /* 0: none */
	uint32_t qpn;
	uint32_t peer_qpn;
	uint64_t value;
	char device[64];
	char process[16];
	uint8_t gid[16];
	uint8_t peer_gid[16];
	char text[104]; /* UTF-8, cut at the end if need be */
};
_Static_assert(sizeof(struct ft_event) == 256, "documented in docs/ring.md");

struct ft_posted {
	uint64_t operations;
	uint64_t bytes;
};

/* One queue pair. */
struct ft_connection {
	uint32_t sequence;
	uint8_t state; /* enum ft_state */
	uint8_t type;  /* indices in the lists of the about section */
	uint8_t qp_state;
	uint8_t coverage;
	uint8_t origin;
	uint8_t port; /* 0: not known, here and below */
	uint8_t mtu_exponent; /* path MTU is 2^this */
	uint8_t known; /* enum ft_known */
	uint32_t qpn;
	uint32_t peer_qpn;
	int32_t pid; /* 0: the kernel */
	uint32_t sq_psn;
	uint32_t rq_psn;
	uint64_t created_ns;
	uint64_t since_ns;
	uint64_t ended_ns;
	char device[64];
	char process[32];
	uint8_t gid[16];
	uint8_t peer_gid[16];
	struct ft_posted posted[FT_OPERATIONS]; /* cumulative, by opcode (about section) */
	uint64_t in_bytes; /* posted totals at the last row, for the rates */
	uint64_t out_bytes;
	float in_rate; /* bytes per second over the last row */
	float out_rate;
	float fraction; /* of its time in which its posts were seen; of coverage estimated */
	uint8_t reserved[44];
};
_Static_assert(sizeof(struct ft_connection) == 512, "documented in docs/ring.md");
enum ft_known { FT_HAS_PEER_QPN = 1, FT_HAS_SQ_PSN = 2, FT_HAS_RQ_PSN = 4, FT_HAS_PID = 8 };

/* The writer's view of the mapped file. */
struct ft_ring {
	struct ft_ring_header *header;
	struct ft_row *rows;
	uint8_t *kinds; /* of each segment */
	struct ft_series *series;
	char *heap;
	struct ft_histogram *histograms;
	struct ft_connection *connections;
	struct ft_event *events;
	char *cells;
	uint64_t row_start_ns;
};

/* A counter that something else accumulates. Belongs to whoever reads it: one for each counter and reader. */
struct ft_observer {
	uint32_t series; /* FT_NO_SERIES: nothing is written */
	uint32_t scale;	 /* what one count is worth, in the series' unit */
	uint64_t last;
	uint64_t time_ns; /* of the last observation; 0: none yet */
	uint8_t bits;	  /* width of the counter: 64, or 32 for one that wraps there */
};

static inline void ft_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void ft_open_sequence(uint32_t *sequence)
{
	__atomic_store_n(sequence, *sequence | 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void ft_close_sequence(uint32_t *sequence)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(sequence, (*sequence | 1) + 1, __ATOMIC_RELAXED);
}

/* Adds to a counter of integers. */
static inline void ft_ring_add(struct ft_ring *ring, uint32_t slot, int64_t delta, uint64_t now_ns)
{
	struct ft_series *series;

	if (slot == FT_NO_SERIES)
		return;
	series = ring->series + slot;
	series->value.integer += delta;
	series->row_delta.integer += delta;
	series->interval_delta.integer += delta;
	series->time_ns = now_ns;
	series->number = FT_INTEGER;
}

static inline void ft_ring_add_real(struct ft_ring *ring, uint32_t slot, double delta, uint64_t now_ns)
{
	struct ft_series *series;

	if (slot == FT_NO_SERIES)
		return;
	series = ring->series + slot;
	series->value.real += delta;
	series->row_delta.real += delta;
	series->interval_delta.real += delta;
	series->time_ns = now_ns;
	series->number = FT_REAL;
}

/* Sets a gauge or an up-down counter. */
static inline void ft_ring_set(struct ft_ring *ring, uint32_t slot, double value, uint64_t now_ns)
{
	struct ft_series *series;

	if (slot == FT_NO_SERIES)
		return;
	series = ring->series + slot;
	series->value.real = value;
	if (value < series->low)
		series->low = value;
	if (value > series->high)
		series->high = value;
	series->time_ns = now_ns;
	series->number = FT_REAL;
}

static inline void ft_ring_set_integer(struct ft_ring *ring, uint32_t slot, int64_t value, uint64_t now_ns)
{
	struct ft_series *series;

	if (slot == FT_NO_SERIES)
		return;
	series = ring->series + slot;
	series->value.integer = value;
	if ((double)value < series->low)
		series->low = (double)value;
	if ((double)value > series->high)
		series->high = (double)value;
	series->time_ns = now_ns;
	series->number = FT_INTEGER;
}

/* Folds what a counter says now into its series.
 *
 * The first observation gives the series the counter's own value. A counter of 32 bits that falls by more than
 * half its range has wrapped; any other fall is a reset, after which the series starts anew at the new value,
 * with the time of the last observation as its start. The rate between two observations counts for the peaks.
 */
static inline void ft_ring_observe(struct ft_ring *ring, struct ft_observer *observer, uint64_t raw,
				   uint64_t now_ns)
{
	struct ft_series *series;
	uint64_t delta, last = observer->last, before_ns = observer->time_ns;

	observer->last = raw;
	observer->time_ns = now_ns;
	if (observer->series == FT_NO_SERIES)
		return;
	series = ring->series + observer->series;
	series->time_ns = now_ns;
	if (!before_ns) {
		/* To what stands for many, it would be added by every new observer again. */
		if (!series->overflow)
			series->value.integer += (int64_t)(raw * observer->scale);
		series->number = FT_INTEGER;
		return;
	}
	if (raw >= last) {
		delta = raw - last;
	} else if (observer->bits == 32 && last <= UINT32_MAX && last - raw > UINT32_MAX / 2) {
		delta = raw + (UINT64_C(1) << 32) - last;
	} else if (observer->bits == 64 && last - raw > UINT64_MAX / 2) {
		delta = raw - last; /* modulo 2^64 */
	} else {
		delta = raw;
		if (!series->overflow) {
			series->start_ns = before_ns;
			series->value.integer = 0;
		}
	}
	delta *= observer->scale;
	series->value.integer += (int64_t)delta;
	series->row_delta.integer += (int64_t)delta;
	series->interval_delta.integer += (int64_t)delta;
	if (now_ns > before_ns) {
		float rate = (float)((double)delta * 1e9 / (double)(now_ns - before_ns));

		if (rate > series->row_peak)
			series->row_peak = rate;
		if (rate > series->interval_peak)
			series->interval_peak = rate;
	}
}

/* A rate that was seen between two observations, for the peaks. */
static inline void ft_ring_peak(struct ft_ring *ring, uint32_t slot, float rate)
{
	struct ft_series *series;

	if (slot == FT_NO_SERIES)
		return;
	series = ring->series + slot;
	if (rate > series->row_peak)
		series->row_peak = rate;
	if (rate > series->interval_peak)
		series->interval_peak = rate;
}

/* Halves the resolution: two buckets become one. */
static inline void ft_histogram_downscale(struct ft_histogram *histogram)
{
	int32_t offset = histogram->offset >> 1; /* rounds down, as the mapping does */
	uint64_t merged[FT_BUCKETS] = {0};
	uint32_t used = 0;

	for (uint32_t i = 0; i < histogram->used; i++) {
		uint32_t to = (uint32_t)(((histogram->offset + (int32_t)i) >> 1) - offset);

		merged[to] += histogram->buckets[i];
		used = to + 1;
	}
	memcpy(histogram->buckets, merged, sizeof(merged));
	histogram->offset = offset;
	histogram->used = used;
	histogram->scale--;
}

/* Adds to the bucket with this index at this scale, which is at least the histogram's. */
static inline void ft_histogram_put(struct ft_histogram *histogram, int32_t index, int32_t scale, uint64_t count)
{
	for (;;) {
		int32_t at = index >> (scale - histogram->scale);
		int32_t low, high;

		if (!histogram->used) {
			histogram->offset = at;
			histogram->used = 1;
		}
		low = at < histogram->offset ? at : histogram->offset;
		high = histogram->offset + (int32_t)histogram->used - 1;
		high = at > high ? at : high;
		if (high - low >= FT_BUCKETS) {
			ft_histogram_downscale(histogram);
			continue;
		}
		if (low < histogram->offset) {
			uint32_t by = (uint32_t)(histogram->offset - low);

			memmove(histogram->buckets + by, histogram->buckets,
				histogram->used * sizeof(*histogram->buckets));
			memset(histogram->buckets, 0, by * sizeof(*histogram->buckets));
			histogram->offset = low;
			histogram->used += by;
		}
		histogram->used = (uint32_t)(high - low + 1);
		histogram->buckets[at - histogram->offset] += count;
		return;
	}
}

static inline struct ft_histogram *ft_ring_histogram(struct ft_ring *ring, uint32_t slot)
{
	return ring->histograms + ring->series[slot].histogram;
}

/* Records one value; negative ones and NaN are not values of a size or a duration. */
static inline void ft_ring_record(struct ft_ring *ring, uint32_t slot, double value, uint64_t now_ns)
{
	struct ft_histogram *histogram;

	if (slot == FT_NO_SERIES || !(value >= 0) || isinf(value))
		return;
	histogram = ft_ring_histogram(ring, slot);
	ft_open_sequence(&histogram->sequence);
	if (!histogram->count)
		histogram->scale = FT_SCALE_MAX; /* as fine as the range of the values lets it be */
	histogram->count++;
	histogram->sum += value;
	if (value == 0) {
		histogram->zeros++;
	} else {
		int32_t index = (int32_t)ceil(ldexp(log2(value), histogram->scale)) - 1;

		ft_histogram_put(histogram, index, histogram->scale, 1);
	}
	ft_close_sequence(&histogram->sequence);
	ring->series[slot].time_ns = now_ns;
	ring->series[slot].number = FT_REAL;
}

/* Writes an event; the number that it brings along is replaced by the next. */
static inline void ft_ring_event(struct ft_ring *ring, const struct ft_event *event)
{
	uint64_t number = ring->header->events_head + 1;
	struct ft_event *one = ring->events + number % ring->header->events;

	__atomic_store_n(&one->number, 0, __ATOMIC_RELAXED);
	ft_barrier();
	memcpy((char *)one + sizeof(one->number), (const char *)event + sizeof(one->number),
	       sizeof(*one) - sizeof(one->number));
	ft_barrier();
	__atomic_store_n(&one->number, number, __ATOMIC_RELAXED);
	ft_barrier();
	ring->header->events_head = number;
}

/* The tick's cells of a segment:
 *   counter         64 x 8 B delta, 64 x float peak rate
 *   up-down counter 64 x 8 B value; INT64_MIN: none yet
 *   gauge           64 x 8 B last, 64 x float low, 64 x float high; low and high NaN: none yet
 *   histogram       64 x u64 count since the last row, 64 x double sum likewise
 * Numbers of 8 B are integer or real as the series says.
 */
static inline uint32_t ft_stride(uint8_t kind)
{
	switch (kind) {
	case FT_COUNTER:
		return FT_SEGMENT * 12;
	case FT_UPDOWNCOUNTER:
		return FT_SEGMENT * 8;
	default:
		return FT_SEGMENT * 16;
	}
}

static inline char *ft_cells(const struct ft_ring *ring, uint32_t segment, uint64_t row)
{
	uint64_t room = (uint64_t)ring->header->rows * FT_STRIDE_MAX;

	return ring->cells + segment * room + row % ring->header->rows * ft_stride(ring->kinds[segment]);
}

static void ft_write_counters(struct ft_series *series, char *cells, double seconds)
{
	union ft_value *deltas = (union ft_value *)cells;
	float *peaks = (float *)(cells + FT_SEGMENT * 8);

	for (uint32_t i = 0; i < FT_SEGMENT; i++) {
		struct ft_series *one = series + i;
		double delta = one->number == FT_REAL ? one->row_delta.real : (double)one->row_delta.integer;
		float rate = (float)(delta / seconds);

		if (rate > one->row_peak)
			one->row_peak = rate;
		if (rate > one->interval_peak)
			one->interval_peak = rate;
		deltas[i] = one->row_delta;
		peaks[i] = one->row_peak;
		one->row_delta.integer = 0; /* the same bits as 0.0 */
		one->row_peak = 0;
	}
}

static void ft_write_gauges(struct ft_series *series, char *cells)
{
	union ft_value *last = (union ft_value *)cells;
	float *low = (float *)(cells + FT_SEGMENT * 8), *high = low + FT_SEGMENT;

	for (uint32_t i = 0; i < FT_SEGMENT; i++) {
		struct ft_series *one = series + i;
		double value = one->number == FT_REAL ? one->value.real : (double)one->value.integer;

		last[i] = one->value;
		if (one->number == FT_UNKNOWN) {
			low[i] = high[i] = NAN;
			continue;
		}
		/* What was not set holds. */
		low[i] = (float)(one->low < value ? one->low : value);
		high[i] = (float)(one->high > value ? one->high : value);
		one->low = one->high = value;
	}
}

static void ft_write_histograms(struct ft_ring *ring, struct ft_series *series, char *cells)
{
	uint64_t *counts = (uint64_t *)cells;
	double *sums = (double *)(cells + FT_SEGMENT * 8);

	for (uint32_t i = 0; i < FT_SEGMENT; i++) {
		struct ft_histogram *histogram;

		counts[i] = 0;
		sums[i] = 0;
		if (series[i].state != FT_LIVE)
			continue;
		histogram = ring->histograms + series[i].histogram;
		counts[i] = histogram->count - histogram->row_count;
		sums[i] = histogram->sum - histogram->row_sum;
		histogram->row_count = histogram->count;
		histogram->row_sum = histogram->sum;
	}
}

static void ft_rate_connections(struct ft_ring *ring, double seconds, uint32_t inbound, uint32_t outbound)
{
	for (uint32_t i = 0; i < ring->header->connections_used; i++) {
		struct ft_connection *one = ring->connections + i;
		uint64_t in = 0, out = 0;

		if (one->state != FT_LIVE)
			continue;
		for (uint32_t opcode = 0; opcode < FT_OPERATIONS; opcode++) {
			if (inbound >> opcode & 1)
				in += one->posted[opcode].bytes;
			if (outbound >> opcode & 1)
				out += one->posted[opcode].bytes;
		}
		one->in_rate = (float)((double)(in - one->in_bytes) / seconds);
		one->out_rate = (float)((double)(out - one->out_bytes) / seconds);
		one->in_bytes = in;
		one->out_bytes = out;
	}
}

/* Writes a row: what every series did since the last one. inbound, outbound: opcodes whose bytes come in or go
 * out; of others, as posted receive buffers, none move.
 */
static void ft_ring_tick(struct ft_ring *ring, uint64_t now_ns, uint32_t inbound, uint32_t outbound)
{
	struct ft_ring_header *header = ring->header;
	uint64_t number = header->head + 1;
	struct ft_row *row = ring->rows + number % header->rows;
	/* Where the clock was set back nobody knows how long it took, and so no rate. */
	double seconds = now_ns > ring->row_start_ns ? (double)(now_ns - ring->row_start_ns) / 1e9 : INFINITY;

	row->number = 0;
	ft_barrier();
	for (uint32_t segment = 0; segment < header->segments_used; segment++) {
		struct ft_series *series = ring->series + (uint64_t)segment * FT_SEGMENT;
		char *cells = ft_cells(ring, segment, number);

		switch (ring->kinds[segment]) {
		case FT_COUNTER:
			ft_write_counters(series, cells, seconds);
			break;
		case FT_UPDOWNCOUNTER:
			for (uint32_t i = 0; i < FT_SEGMENT; i++)
				((int64_t *)cells)[i] =
					series[i].number == FT_UNKNOWN ? INT64_MIN : series[i].value.integer;
			break;
		case FT_GAUGE:
			ft_write_gauges(series, cells);
			break;
		case FT_HISTOGRAM:
			ft_write_histograms(ring, series, cells);
			break;
		}
	}
	ft_rate_connections(ring, seconds, inbound, outbound);
	row->start_ns = ring->row_start_ns;
	row->end_ns = now_ns;
	ring->row_start_ns = now_ns;
	ft_barrier();
	__atomic_store_n(&row->number, number, __ATOMIC_RELEASE);
	__atomic_store_n(&header->head, number, __ATOMIC_RELEASE);
}

/* Ends an interval: peaks and averages of what went on since the last call, for every exporter to show. */
static void ft_ring_interval(struct ft_ring *ring, uint64_t now_ns)
{
	for (uint32_t segment = 0; segment < ring->header->segments_used; segment++) {
		struct ft_series *series = ring->series + (uint64_t)segment * FT_SEGMENT;

		if (ring->kinds[segment] != FT_COUNTER)
			continue;
		for (uint32_t i = 0; i < FT_SEGMENT; i++) {
			struct ft_series *one = series + i;
			double delta = one->number == FT_REAL ? one->interval_delta.real
							      : (double)one->interval_delta.integer;

			if (!one->rates)
				continue;
			if (now_ns <= one->interval_start_ns) { /* the clock was set back: the next interval has it all */
				one->interval_start_ns = now_ns;
				continue;
			}
			one->average = (float)(delta * 1e9 / (double)(now_ns - one->interval_start_ns));
			one->peak = one->interval_peak > one->average ? one->interval_peak : one->average;
			one->interval_delta.integer = 0;
			one->interval_peak = 0;
			one->interval_start_ns = now_ns;
		}
	}
}

#endif
