/* SPDX-License-Identifier: Apache-2.0 */
/* The layout of ring.h as a table, for readers in other languages: made by the compiler from the structures
 * themselves, so that it cannot say anything else than they do.
 */
#ifndef FABRICTAP_LAYOUT_H
#define FABRICTAP_LAYOUT_H

#include "ring.h"

struct ft_field {
	const char *structure;
	const char *name;
	uint32_t offset;
	uint32_t size;
	char format; /* of one element, as in Python's struct; 's' for text and bytes */
};

/* An array is told apart from its element by what it decays to. */
#define FT_FORMAT(value)                                                                                     \
	_Generic((value),                                                                                    \
		uint8_t: 'B', uint16_t: 'H', uint32_t: 'I', int32_t: 'i', uint64_t: 'Q', float: 'f',         \
		double: 'd', union ft_value: 'q', uint64_t *: 'Q', struct ft_posted *: 'Q', char *: 's',     \
		uint8_t *: 's')
#define FT_FIELD(of, field)                                                                                  \
	{                                                                                                    \
		#of, #field, offsetof(struct of, field), sizeof(((struct of *)0)->field),                    \
			FT_FORMAT(((struct of *)0)->field)                                                   \
	}

static const struct ft_field ft_fields[] = {
	FT_FIELD(ft_ring_header, magic),
	FT_FIELD(ft_ring_header, version),
	FT_FIELD(ft_ring_header, byte_order),
	FT_FIELD(ft_ring_header, size),
	FT_FIELD(ft_ring_header, created_ns),
	FT_FIELD(ft_ring_header, tick_ns),
	FT_FIELD(ft_ring_header, pid),
	FT_FIELD(ft_ring_header, rows),
	FT_FIELD(ft_ring_header, series),
	FT_FIELD(ft_ring_header, histograms),
	FT_FIELD(ft_ring_header, connections),
	FT_FIELD(ft_ring_header, events),
	FT_FIELD(ft_ring_header, about_at),
	FT_FIELD(ft_ring_header, about_size),
	FT_FIELD(ft_ring_header, rows_at),
	FT_FIELD(ft_ring_header, kinds_at),
	FT_FIELD(ft_ring_header, series_at),
	FT_FIELD(ft_ring_header, heap_at),
	FT_FIELD(ft_ring_header, heap_size),
	FT_FIELD(ft_ring_header, histograms_at),
	FT_FIELD(ft_ring_header, connections_at),
	FT_FIELD(ft_ring_header, events_at),
	FT_FIELD(ft_ring_header, cells_at),
	FT_FIELD(ft_ring_header, checksum),
	FT_FIELD(ft_ring_header, about_sequence),
	FT_FIELD(ft_ring_header, about_length),
	FT_FIELD(ft_ring_header, about_checksum),
	FT_FIELD(ft_ring_header, head),
	FT_FIELD(ft_ring_header, events_head),
	FT_FIELD(ft_ring_header, ended_ns),
	FT_FIELD(ft_ring_header, connections_used),
	FT_FIELD(ft_ring_header, segments_used),

	FT_FIELD(ft_row, number),
	FT_FIELD(ft_row, start_ns),
	FT_FIELD(ft_row, end_ns),
	FT_FIELD(ft_row, reserved),

	FT_FIELD(ft_series, sequence),
	FT_FIELD(ft_series, metric),
	FT_FIELD(ft_series, kind),
	FT_FIELD(ft_series, state),
	FT_FIELD(ft_series, number),
	FT_FIELD(ft_series, rates),
	FT_FIELD(ft_series, attributes_size),
	FT_FIELD(ft_series, attributes),
	FT_FIELD(ft_series, histogram),
	FT_FIELD(ft_series, overflow),
	FT_FIELD(ft_series, reserved),
	FT_FIELD(ft_series, first_row),
	FT_FIELD(ft_series, last_row),
	FT_FIELD(ft_series, start_ns),
	FT_FIELD(ft_series, time_ns),
	FT_FIELD(ft_series, value),
	FT_FIELD(ft_series, row_delta),
	FT_FIELD(ft_series, interval_delta),
	FT_FIELD(ft_series, row_peak),
	FT_FIELD(ft_series, interval_peak),
	FT_FIELD(ft_series, peak),
	FT_FIELD(ft_series, average),
	FT_FIELD(ft_series, low),
	FT_FIELD(ft_series, high),
	FT_FIELD(ft_series, interval_start_ns),
	FT_FIELD(ft_series, spare),

	FT_FIELD(ft_histogram, sequence),
	FT_FIELD(ft_histogram, scale),
	FT_FIELD(ft_histogram, count),
	FT_FIELD(ft_histogram, sum),
	FT_FIELD(ft_histogram, zeros),
	FT_FIELD(ft_histogram, offset),
	FT_FIELD(ft_histogram, used),
	FT_FIELD(ft_histogram, row_count),
	FT_FIELD(ft_histogram, row_sum),
	FT_FIELD(ft_histogram, buckets),

	FT_FIELD(ft_event, number),
	FT_FIELD(ft_event, time_ns),
	FT_FIELD(ft_event, kind),
	FT_FIELD(ft_event, severity),
	FT_FIELD(ft_event, reserved),
	FT_FIELD(ft_event, pid),
	FT_FIELD(ft_event, qpn),
	FT_FIELD(ft_event, peer_qpn),
	FT_FIELD(ft_event, value),
	FT_FIELD(ft_event, device),
	FT_FIELD(ft_event, process),
	FT_FIELD(ft_event, gid),
	FT_FIELD(ft_event, peer_gid),
	FT_FIELD(ft_event, text),

	FT_FIELD(ft_connection, sequence),
	FT_FIELD(ft_connection, state),
	FT_FIELD(ft_connection, type),
	FT_FIELD(ft_connection, qp_state),
	FT_FIELD(ft_connection, coverage),
	FT_FIELD(ft_connection, origin),
	FT_FIELD(ft_connection, port),
	FT_FIELD(ft_connection, mtu_exponent),
	FT_FIELD(ft_connection, known),
	FT_FIELD(ft_connection, qpn),
	FT_FIELD(ft_connection, peer_qpn),
	FT_FIELD(ft_connection, pid),
	FT_FIELD(ft_connection, sq_psn),
	FT_FIELD(ft_connection, rq_psn),
	FT_FIELD(ft_connection, created_ns),
	FT_FIELD(ft_connection, since_ns),
	FT_FIELD(ft_connection, ended_ns),
	FT_FIELD(ft_connection, device),
	FT_FIELD(ft_connection, process),
	FT_FIELD(ft_connection, gid),
	FT_FIELD(ft_connection, peer_gid),
	FT_FIELD(ft_connection, posted),
	FT_FIELD(ft_connection, in_bytes),
	FT_FIELD(ft_connection, out_bytes),
	FT_FIELD(ft_connection, in_rate),
	FT_FIELD(ft_connection, out_rate),
	FT_FIELD(ft_connection, fraction),
	FT_FIELD(ft_connection, reserved),
};

#define FT_FIELDS (sizeof(ft_fields) / sizeof(ft_fields[0]))

#endif
