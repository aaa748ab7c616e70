# cython: language_level=3, boundscheck=False, wraparound=False
"""The points of a metric as OTLP, serialized once; an export patches times and values into the bytes.

That works because start_time_unix_nano, time_unix_nano, as_int and as_double are all fixed64: while no series
comes or goes, the length of a point does not change (opentelemetry/proto/metrics/v1/metrics.proto). Histograms
are made anew each time, as their buckets are varints.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from fabrictap.ext.ring cimport (
    FT_INTEGER, FT_LIVE, FT_REAL, FT_UNKNOWN, Ring, Series, ft_histogram, ft_ring_histogram, ft_series,
)

cdef extern from *:
    void __builtin_prefetch(const void *address, int write) nogil

cdef enum:
    # Points that are fetched before they are written.
    _AHEAD = 12

cdef enum:
    # tags: field number << 3 | wire type
    _POINT = 0x0A  # data_points in Sum, Gauge and ExponentialHistogram
    _START = 0x11
    _TIME = 0x19
    _AS_DOUBLE = 0x21
    _AS_INT = 0x31
    _ATTRIBUTE = 0x3A
    _FLAGS = 0x40
    # of an ExponentialHistogramDataPoint
    _H_ATTRIBUTE = 0x0A
    _H_COUNT = 0x21
    _H_SUM = 0x29
    _H_SCALE = 0x30
    _H_ZEROS = 0x39
    _H_POSITIVE = 0x42
    _H_FLAGS = 0x50
    _B_OFFSET = 0x08
    _B_COUNTS = 0x12
    _NO_RECORDED_VALUE = 1
    _FIXED = 9  # a tag and eight bytes
    # The most that a histogram takes beside its attributes: tag and length, fields, 160 varints of ten bytes
    _HISTOGRAM_ROOM = 1750

cdef enum:
    _VALUE
    _PEAK
    _AVERAGE

#: What of a series a point shows.
VALUE, PEAK, AVERAGE = _VALUE, _PEAK, _AVERAGE


cdef struct Entry:
    uint32_t slot
    uint32_t size  # of the point as it stands in the buffer
    uint64_t at  # where it begins there
    uint64_t times  # where its first fixed64 field begins; of histograms: their attributes in another buffer
    uint32_t extra  # histograms: size of these


cdef inline char *_put_varint(char *to, uint64_t number) noexcept nogil:
    while number > 0x7F:
        to[0] = <char>((number & 0x7F) | 0x80)
        number >>= 7
        to += 1
    to[0] = <char>number
    return to + 1


cdef inline char *_put_fixed(char *to, uint8_t tag, const void *value) noexcept nogil:
    to[0] = <char>tag
    memcpy(to + 1, value, 8)
    return to + _FIXED


cdef inline uint64_t _zigzag(int32_t number) noexcept nogil:
    return <uint32_t>((number << 1) ^ (number >> 31))


cdef inline size_t _kept(uint32_t attributes) noexcept nogil:
    """What a histogram keeps between exports: two times and its attributes, aligned."""
    return 16 + (attributes + 7) // 8 * 8


cdef class _Buffer:
    cdef char *data
    cdef size_t used
    cdef size_t room

    def __dealloc__(self):
        PyMem_Free(self.data)
        self.data = NULL

    cdef bint reserve(self, size_t more) except False:
        cdef size_t room = max(self.room, <size_t>4096)
        cdef char *data
        if self.used + more <= self.room:
            return True
        while room < self.used + more:
            room *= 2
        data = <char *>PyMem_Realloc(self.data, room)
        if data == NULL:
            raise MemoryError
        self.data, self.room = data, room
        return True


cdef class Points:
    """All points of one metric. ``shows``: VALUE, PEAK or AVERAGE. ``gauge``: points have no start.

    ``update`` runs under the lock that guards the ring, ``body`` after it in the same thread.
    """

    cdef Ring _ring
    cdef int _shows
    cdef bint _gauge
    cdef bint _histogram
    cdef _Buffer _bytes
    cdef _Buffer _attributes
    cdef Entry *_entries
    cdef Py_ssize_t _count
    cdef Py_ssize_t _room
    cdef list _series

    def __cinit__(self):
        self._entries = NULL

    def __init__(self, Ring ring, int shows, bint gauge, bint histogram):
        self._ring = ring
        self._shows = shows
        self._gauge = gauge
        self._histogram = histogram
        self._bytes = _Buffer()
        self._attributes = _Buffer()
        self._series = []

    def __dealloc__(self):
        PyMem_Free(self._entries)
        self._entries = NULL

    def __len__(self):
        return self._count

    def add(self, Series series):
        """Make a point for a series that has a value."""
        cdef Entry *entries
        cdef Entry *entry
        cdef Py_ssize_t room
        if self._count == self._room:
            room = self._room * 2 if self._room else 16
            entries = <Entry *>PyMem_Realloc(self._entries, room * sizeof(Entry))
            if entries == NULL:
                raise MemoryError
            self._entries, self._room = entries, room
        entry = self._entries + self._count
        entry.slot = series.slot
        if self._histogram:
            self._add_histogram(entry, series.encoded)
        else:
            self._add_number(entry, series.encoded)
        self._series.append(series)
        self._count += 1

    cdef _add_number(self, Entry *entry, bytes attributes):
        cdef uint64_t nothing = 0
        cdef size_t body = len(attributes) + (2 if self._gauge else 3) * _FIXED
        cdef char *to
        self._bytes.reserve(body + 16)
        entry.at = self._bytes.used
        to = self._bytes.data + entry.at
        to[0] = _POINT
        to = _put_varint(to + 1, body)
        entry.times = to - self._bytes.data
        if not self._gauge:
            to = _put_fixed(to, _START, &nothing)
        to = _put_fixed(to, _TIME, &nothing)
        to = _put_fixed(to, _AS_INT, &nothing)
        memcpy(to, <const char *>attributes, len(attributes))
        to += len(attributes)
        entry.size = to - self._bytes.data - entry.at
        self._bytes.used += entry.size

    cdef _add_histogram(self, Entry *entry, bytes attributes):
        cdef bytes raw = b"".join([_field(_H_ATTRIBUTE, pair) for pair in _pairs(attributes)])
        # The start and time of the last point stand before the attributes: a reset must know them.
        self._attributes.reserve(len(raw) + 24)
        entry.times = self._attributes.used
        entry.extra = len(raw)
        (<uint64_t *>(self._attributes.data + entry.times))[0] = 0
        (<uint64_t *>(self._attributes.data + entry.times))[1] = 0
        memcpy(self._attributes.data + entry.times + 16, <const char *>raw, len(raw))
        self._attributes.used += _kept(entry.extra)

    def update(self, uint64_t now_ns):
        """Write what the ring says now; returns the series that have ended."""
        cdef Py_ssize_t index, ended
        if self._histogram:
            self._bytes.used = 0
            self._bytes.reserve(self._attributes.used + self._count * _HISTOGRAM_ROOM)
            with nogil:
                ended = self._update_histograms(now_ns)
        else:
            with nogil:
                ended = self._update_numbers(now_ns)
        if not ended:
            return []
        return [
            self._series[index]
            for index in range(self._count)
            if self._ring.view.series[self._entries[index].slot].state != FT_LIVE
        ]

    cdef Py_ssize_t _update_numbers(self, uint64_t now_ns) noexcept nogil:
        cdef Py_ssize_t index, ended = 0
        cdef Entry *entry
        cdef Entry *ahead
        cdef const ft_series *series
        cdef char *at
        cdef uint64_t start, before
        cdef double rate
        for index in range(self._count):
            entry = self._entries + index
            if index + _AHEAD < self._count:
                # nobody has touched them since the last export
                ahead = entry + _AHEAD
                __builtin_prefetch(&self._ring.view.series[ahead.slot].state, 0)
                __builtin_prefetch(&self._ring.view.series[ahead.slot].value, 0)
                __builtin_prefetch(self._bytes.data + ahead.times, 1)
            series = self._ring.view.series + entry.slot
            if series.state != FT_LIVE:
                ended += 1
            at = self._bytes.data + entry.times
            if self._shows != _VALUE:
                rate = series.peak if self._shows == _PEAK else series.average
                memcpy(at + 1, &now_ns, 8)
                at[_FIXED] = _AS_DOUBLE
                memcpy(at + _FIXED + 1, &rate, 8)
                continue
            if self._gauge:
                memcpy(at + 1, &series.time_ns, 8)
            else:
                memcpy(&start, at + 1, 8)
                memcpy(&before, at + _FIXED + 1, 8)
                if start < series.start_ns:
                    # After a reset the new count must not begin before the last point of the old one.
                    start = max(series.start_ns, before)
                    memcpy(at + 1, &start, 8)
                # A sum holds until something is added, so its time is the export's.
                memcpy(at + _FIXED + 1, &now_ns, 8)
                at += _FIXED
            at[_FIXED] = _AS_INT if series.number == FT_INTEGER else _AS_DOUBLE
            memcpy(at + _FIXED + 1, &series.value, 8)
        return ended

    cdef Py_ssize_t _update_histograms(self, uint64_t now_ns) noexcept nogil:
        cdef Py_ssize_t index, ended = 0
        cdef Entry *entry
        cdef const ft_series *series
        cdef const ft_histogram *histogram
        cdef uint64_t *times
        cdef char *to
        cdef char *body
        cdef char *positive
        cdef char *counts
        cdef char room[1700]
        cdef uint32_t bucket
        cdef size_t size
        for index in range(self._count):
            entry = self._entries + index
            series = self._ring.view.series + entry.slot
            if series.state != FT_LIVE:
                ended += 1
            histogram = ft_ring_histogram(&self._ring.view, entry.slot)
            times = <uint64_t *>(self._attributes.data + entry.times)
            if times[0] < series.start_ns:
                times[0] = max(series.start_ns, times[1])
            times[1] = now_ns
            # Buckets first, as their length stands before them.
            counts = room
            for bucket in range(histogram.used):
                counts = _put_varint(counts, histogram.buckets[bucket])
            entry.at = self._bytes.used
            # The body is written behind the longest head that there can be, then moved up to the head.
            body = self._bytes.data + entry.at + 12
            to = _put_fixed(body, _START, times)
            to = _put_fixed(to, _TIME, times + 1)
            to = _put_fixed(to, _H_COUNT, &histogram.count)
            to = _put_fixed(to, _H_SUM, &histogram.sum)
            to[0] = _H_SCALE
            to = _put_varint(to + 1, _zigzag(histogram.scale))
            to = _put_fixed(to, _H_ZEROS, &histogram.zeros)
            if histogram.used:
                size = counts - room
                positive = to
                to[0] = _H_POSITIVE
                to += 3  # two bytes hold a length up to 16383
                to[0] = _B_OFFSET
                to = _put_varint(to + 1, _zigzag(histogram.offset))
                to[0] = _B_COUNTS
                to = _put_varint(to + 1, size)
                memcpy(to, room, size)
                to += size
                size = to - positive - 3
                positive[1] = <char>((size & 0x7F) | 0x80)
                positive[2] = <char>(size >> 7)
            memcpy(to, times + 2, entry.extra)
            to += entry.extra
            size = to - body
            to = self._bytes.data + entry.at
            to[0] = _POINT
            to = _put_varint(to + 1, size)
            memmove(to, body, size)
            to += size
            entry.size = to - self._bytes.data - entry.at
            self._bytes.used = entry.at + entry.size
        return ended

    def drop(self, gone):
        """Take out the points of the series in ``gone``, a set."""
        cdef Py_ssize_t index, kept = 0
        cdef size_t used = 0
        cdef Entry *entry
        series = self._series
        self._series = []
        for index in range(self._count):
            if series[index] in gone:
                continue
            entry = self._entries + kept
            entry[0] = self._entries[index]
            if self._histogram:
                memmove(self._attributes.data + used, self._attributes.data + entry.times, _kept(entry.extra))
                entry.times = used
                used += _kept(entry.extra)
            else:
                memmove(self._bytes.data + used, self._bytes.data + entry.at, entry.size)
                entry.times -= entry.at - used
                entry.at = used
                used += entry.size
            self._series.append(series[index])
            kept += 1
        self._count = kept
        if self._histogram:
            self._attributes.used = used
        else:
            self._bytes.used = used

    def body(self, Py_ssize_t first, size_t limit):
        """The points from the one numbered ``first`` on, as many as fit in ``limit`` bytes, at least one.

        Returns (memory, number of points); in memory are data_points fields, to stand in a Sum, a Gauge or an
        ExponentialHistogram. It is the points' own, not copied, and good until they are changed.
        """
        cdef Py_ssize_t last = first
        cdef size_t size = 0
        while last < self._count and (last == first or size + self._entries[last].size <= limit):
            size += self._entries[last].size
            last += 1
        if last == first:
            return memoryview(b""), 0
        return PyMemoryView_FromMemory(self._bytes.data + self._entries[first].at, size, PyBUF_READ), last - first


def no_value(bytes attributes, bint histogram, uint64_t start_ns, uint64_t now_ns):
    """A data_points field that says that a series has no value any more."""
    times = _fixed(_START, start_ns) + _fixed(_TIME, now_ns) if start_ns else _fixed(_TIME, now_ns)
    if histogram:
        pairs = b"".join([_field(_H_ATTRIBUTE, pair) for pair in _pairs(attributes)])
        return _field(_POINT, times + pairs + bytes((_H_FLAGS, _NO_RECORDED_VALUE)))
    return _field(_POINT, times + attributes + bytes((_FLAGS, _NO_RECORDED_VALUE)))


cdef bytes _fixed(uint8_t tag, uint64_t value):
    return bytes((tag,)) + (<const char *>&value)[:8]


cdef bytes _field(uint8_t tag, bytes body):
    cdef char head[11]
    head[0] = <char>tag
    return head[: _put_varint(head + 1, len(body)) - head] + body


cdef list _pairs(bytes attributes):
    """The KeyValues of encoded attributes. They are ours and well-formed."""
    cdef Py_ssize_t at = 0
    cdef uint64_t size
    cdef int shift
    pairs = []
    while at < len(attributes):
        at += 1  # the tag
        size = shift = 0
        while True:
            size |= <uint64_t>(<uint8_t>attributes[at] & 0x7F) << shift
            shift += 7
            at += 1
            if not <uint8_t>attributes[at - 1] & 0x80:
                break
        pairs.append(attributes[at : at + size])
        at += size
    return pairs
