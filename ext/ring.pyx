# cython: language_level=3
"""The ring: a fixed-size memory-mapped file that everything is aggregated in. See ring.h for its layout.

One process writes, under one lock of its own; any number of others read (docs/ring.md). A file that nobody
else can see, in memory only, serves where no path is given.
"""

import os
import zlib
from collections import deque
from dataclasses import dataclass, field

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    const int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED

cdef extern from "ring.h" nogil:
    size_t FT_CHECKED "offsetof(struct ft_ring_header, checksum)"


#: Slot of a series that the ring refused.
NO_SERIES = FT_NO_SERIES
VERSION = FT_RING_VERSION
SEGMENT = FT_SEGMENT
BUCKETS = FT_BUCKETS
OPERATIONS = FT_OPERATIONS
COUNTER, UPDOWNCOUNTER, GAUGE, HISTOGRAM = FT_COUNTER, FT_UPDOWNCOUNTER, FT_GAUGE, FT_HISTOGRAM
_HEAP_CLASS = 64
_LARGEST_ATTRIBUTES = 0xFFFF
_NS = 10**9


@dataclass
class Histogram:
    """A cumulative exponential histogram.

    ``buckets[i]`` counts values in ``(base**(offset+i), base**(offset+i+1)]`` with base ``2**(2**-scale)``;
    ``zeros`` counts the value 0.
    """

    count: int = 0
    sum: float = 0
    zeros: int = 0
    offset: int = 0
    buckets: list = field(default_factory=list)
    scale: int = 0


cdef uint64_t _pages(uint64_t size):
    return (size + FT_PAGE - 1) // FT_PAGE * FT_PAGE


cdef class Ring:
    """A new ring in ``fd``, an empty file opened for reading and writing, which the ring then owns.

    ``series``, ``connections``, ``events`` are capacities, ``rows`` the number of ticks of ``tick_ns`` that
    are kept. A slot is given to another series ``grace_ns`` after its last one was released, not sooner.
    ``inbound`` and ``outbound`` are bit masks of the opcodes whose bytes come in and go out. Memory is taken
    as it is needed, so that a file system that is full refuses a series instead of killing the agent. Takes
    ``fd`` over, even where it raises OSError.
    """

    def __cinit__(self):
        self._base = NULL
        self._fd = -1

    def __init__(
        self, int fd, *, uint32_t series, uint32_t rows, uint64_t tick_ns, uint32_t connections, uint32_t events,
        uint64_t grace_ns, uint64_t now_ns, uint32_t inbound=0, uint32_t outbound=0,
        uint64_t about_size=1 << 18, path=None,
    ):
        if self._base != NULL:
            raise RuntimeError("a ring is made once")
        # Every kind may have one segment that is not full, and slots in their grace time take room too.
        cdef uint64_t segments = (series + series // 4 + FT_SEGMENT - 1) // FT_SEGMENT + FT_KINDS
        cdef uint64_t slots = segments * FT_SEGMENT
        cdef ft_ring_header header
        self._fd = fd
        self.path = path
        self.inbound = inbound
        self.outbound = outbound
        self._grace_ns = grace_ns
        memset(&header, 0, sizeof(header))
        memcpy(header.magic, FT_RING_MAGIC, 8)
        header.version = FT_RING_VERSION
        header.byte_order = FT_RING_BYTE_ORDER
        header.created_ns = now_ns
        header.tick_ns = tick_ns
        header.pid = os.getpid()
        header.rows = rows
        header.series = slots
        header.histograms = slots
        header.connections = connections
        header.events = events
        header.about_at = FT_PAGE
        header.about_size = _pages(about_size)
        header.rows_at = header.about_at + header.about_size
        header.kinds_at = header.rows_at + _pages(rows * sizeof(ft_row))
        header.series_at = header.kinds_at + _pages(segments)
        header.heap_at = header.series_at + _pages(slots * sizeof(ft_series))
        header.heap_size = _pages(slots * 512)
        header.histograms_at = header.heap_at + header.heap_size
        header.connections_at = header.histograms_at + _pages(slots * sizeof(ft_histogram))
        header.events_at = header.connections_at + _pages(connections * sizeof(ft_connection))
        header.cells_at = header.events_at + _pages(events * sizeof(ft_event))
        header.size = header.cells_at + _pages(segments * rows * FT_STRIDE_MAX)
        header.checksum = zlib.crc32((<const char *>&header)[:FT_CHECKED])
        self._size = header.size
        os.ftruncate(fd, self._size)
        # What is written without asking first.
        os.posix_fallocate(fd, 0, header.series_at)
        os.posix_fallocate(fd, header.events_at, header.cells_at - header.events_at)
        self._base = mmap(NULL, self._size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if self._base == MAP_FAILED:
            self._base = NULL
            raise OSError(f"cannot map a ring of {self._size} bytes")
        cdef char *base = <char *>self._base
        self.view.header = <ft_ring_header *>base
        self.view.rows = <ft_row *>(base + header.rows_at)
        self.view.kinds = <uint8_t *>(base + header.kinds_at)
        self.view.series = <ft_series *>(base + header.series_at)
        self.view.heap = base + header.heap_at
        self.view.histograms = <ft_histogram *>(base + header.histograms_at)
        self.view.connections = <ft_connection *>(base + header.connections_at)
        self.view.events = <ft_event *>(base + header.events_at)
        self.view.cells = base + header.cells_at
        self.view.row_start_ns = now_ns
        self._reserved = {}
        self._free = [deque() for _ in range(FT_KINDS)]
        self._free_heap = {}
        self._heap_used = 0
        self._free_histograms = []
        self._histograms_used = 0
        self._free_connections = deque()
        memcpy(self.view.header, &header, sizeof(header))

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, self._size)
            self._base = NULL
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def head(self):
        """Number of the last whole row."""
        return self.view.header.head

    @property
    def allocated(self):
        """Bytes of memory or disk that the file takes now; its apparent size is far larger."""
        return os.fstat(self._fd).st_blocks * 512

    def describe(self, bytes about):
        """Replace the about section: JSON that names what the numbers in the file stand for."""
        cdef ft_ring_header *header = self.view.header
        if len(about) > header.about_size:
            raise ValueError(f"the description of the ring takes {len(about)} of {header.about_size} bytes")
        ft_open_sequence(&header.about_sequence)
        memcpy(<char *>self._base + header.about_at, <const char *>about, len(about))
        header.about_length = len(about)
        header.about_checksum = zlib.crc32(about)
        ft_close_sequence(&header.about_sequence)

    def tick(self, uint64_t now_ns):
        """Write a row: what every series did since the last one."""
        with nogil:
            ft_ring_tick(&self.view, now_ns, self.inbound, self.outbound)

    def interval(self, uint64_t now_ns):
        """End an export interval: latch the peaks and averages of the series that have them."""
        with nogil:
            ft_ring_interval(&self.view, now_ns)

    def event(
        self, int kind, uint64_t time_ns, *, int severity=9, int pid=0, uint32_t qpn=0, uint32_t peer_qpn=0,
        uint64_t value=0, str device="", str process="", bytes gid=b"", bytes peer_gid=b"", str text="",
    ):
        """Write one event. ``gid`` and ``peer_gid``: 16 bytes or none; texts that are too long are cut."""
        cdef ft_event one
        memset(&one, 0, sizeof(one))
        one.time_ns = time_ns
        one.kind = kind
        one.severity = severity
        one.pid = pid
        one.qpn = qpn
        one.peer_qpn = peer_qpn
        one.value = value
        put_text(one.device, sizeof(one.device), device)
        put_text(one.process, sizeof(one.process), process)
        put_bytes(<char *>one.gid, 16, gid)
        put_bytes(<char *>one.peer_gid, 16, peer_gid)
        put_text(one.text, sizeof(one.text), text)
        ft_ring_event(&self.view, &one)

    def close(self, uint64_t now_ns):
        """Say in the file that the writer ended in order. Nothing may be written after this."""
        self.view.header.ended_ns = now_ns

    def take(
        self, int kind, int metric, bytes attributes, bint rates, uint64_t start_ns, uint64_t now_ns,
        bint overflow=False,
    ):
        """A slot for a new series, or NO_SERIES where there is no room for it."""
        cdef uint32_t slot, histogram = 0
        cdef ft_series *one
        cdef int64_t at
        if len(attributes) > _LARGEST_ATTRIBUTES:
            return NO_SERIES
        slot = self._new_slot(kind, now_ns)
        if slot == FT_NO_SERIES:
            return NO_SERIES
        at = self._take_heap(len(attributes))
        if kind == FT_HISTOGRAM and at >= 0:
            found = self._take_histogram()
            if found is None:
                self._give_heap(at, len(attributes))
                at = -1
            else:
                histogram = found
        if at < 0:
            self._free[kind].appendleft((slot, 0))
            return NO_SERIES
        one = self.view.series + slot
        ft_open_sequence(&one.sequence)
        memset(<char *>one + sizeof(one.sequence), 0, sizeof(ft_series) - sizeof(one.sequence))
        memcpy(self.view.heap + at, <const char *>attributes, len(attributes))
        one.metric = metric
        one.kind = kind
        one.state = FT_LIVE
        one.rates = rates
        one.overflow = overflow
        one.attributes = at
        one.attributes_size = len(attributes)
        one.histogram = histogram
        one.first_row = self.view.header.head + 1
        one.start_ns = start_ns
        one.time_ns = now_ns
        one.low = INFINITY
        one.high = -INFINITY
        one.interval_start_ns = now_ns
        ft_close_sequence(&one.sequence)
        return slot

    def end(self, uint32_t slot):
        """Say that nothing will be written to a series any more; its row of now is its last."""
        cdef ft_series *one = self.view.series + slot
        ft_open_sequence(&one.sequence)
        one.state = FT_ENDED
        one.last_row = self.view.header.head + 1
        ft_close_sequence(&one.sequence)

    def release(self, uint32_t slot, uint64_t now_ns):
        """Let another series have an ended one's slot, after the grace time. Until then it can be read."""
        cdef ft_series *one = self.view.series + slot
        if one.state == FT_LIVE:
            self.end(slot)
        self._free[one.kind].append((slot, now_ns + self._grace_ns))

    cdef void _release(self, uint32_t slot):
        """Take the meaning of a slot away: from here on its history can be read no more."""
        cdef ft_series *one = self.view.series + slot
        ft_open_sequence(&one.sequence)
        one.state = FT_FREE
        self._give_heap(one.attributes, one.attributes_size)
        if one.kind == FT_HISTOGRAM:
            self._free_histograms.append(one.histogram)
        ft_close_sequence(&one.sequence)

    cdef uint32_t _new_slot(self, int kind, uint64_t now_ns) except? 0xFFFFFFFE:
        cdef ft_ring_header *header = self.view.header
        cdef uint32_t segment = header.segments_used
        cdef uint32_t first = segment * FT_SEGMENT
        cdef uint64_t room = <uint64_t>header.rows * FT_STRIDE_MAX
        cdef uint32_t slot
        waiting = self._free[kind]
        if waiting and waiting[0][1] <= now_ns:
            slot = waiting.popleft()[0]
            if self.view.series[slot].state != FT_FREE:
                self._release(slot)
            return slot
        if first >= header.series:
            return FT_NO_SERIES
        try:
            os.posix_fallocate(
                self._fd, header.series_at + first * sizeof(ft_series), FT_SEGMENT * sizeof(ft_series)
            )
            os.posix_fallocate(
                self._fd, header.cells_at + segment * room, <uint64_t>header.rows * ft_stride(kind)
            )
        except OSError:
            return FT_NO_SERIES
        memset(self.view.series + first, 0, FT_SEGMENT * sizeof(ft_series))
        for slot in range(first, first + FT_SEGMENT):
            self.view.series[slot].kind = kind
        # The lowest first, so that what is in use lies close together.
        for slot in range(first + FT_SEGMENT - 1, first, -1):
            waiting.appendleft((slot, 0))
        self.view.kinds[segment] = kind
        ft_barrier()
        header.segments_used = segment + 1
        return first

    cdef bint _reserve(
        self, str section, uint64_t at, uint64_t end, uint64_t limit, uint64_t step
    ) except? False:
        """Have the file's memory for [at, end) of a section that grows; False where there is none."""
        cdef uint64_t have = self._reserved.get(section, at)
        if end <= have:
            return True
        end = min(limit, (end + step - 1) // step * step)
        try:
            os.posix_fallocate(self._fd, have, end - have)
        except OSError:
            return False
        self._reserved[section] = end
        return True

    def _take_heap(self, size):
        cdef uint64_t room = (max(size, 1) + _HEAP_CLASS - 1) // _HEAP_CLASS * _HEAP_CLASS
        free = self._free_heap.get(room)
        if free:
            return free.pop()
        cdef ft_ring_header *header = self.view.header
        cdef uint64_t at = self._heap_used
        if at + room > header.heap_size:
            return -1
        if not self._reserve(
            "heap", header.heap_at, header.heap_at + at + room, header.heap_at + header.heap_size, 1 << 16
        ):
            return -1
        self._heap_used = at + room
        return at

    def _give_heap(self, at, size):
        room = (max(size, 1) + _HEAP_CLASS - 1) // _HEAP_CLASS * _HEAP_CLASS
        self._free_heap.setdefault(room, []).append(at)

    def _take_histogram(self):
        cdef ft_ring_header *header = self.view.header
        cdef uint32_t index
        if self._free_histograms:
            index = self._free_histograms.pop()
        else:
            index = self._histograms_used
            if index >= header.histograms or not self._reserve(
                "histograms", header.histograms_at, header.histograms_at + (index + 1) * sizeof(ft_histogram),
                header.connections_at, 1 << 16,
            ):
                return None
            self._histograms_used = index + 1
        memset(self.view.histograms + index, 0, sizeof(ft_histogram))
        return index

    cdef uint32_t take_connection(self, uint64_t now_ns) except? 0xFFFFFFFE:
        """A row of the table of connections for the caller to fill; FT_NO_CONNECTION where it is full."""
        cdef ft_ring_header *header = self.view.header
        cdef uint32_t row = header.connections_used
        if self._free_connections and (
            self._free_connections[0][1] <= now_ns or row >= header.connections
        ):
            return self._free_connections.popleft()[0]
        if row >= header.connections or not self._reserve(
            "connections", header.connections_at, header.connections_at + (row + 1) * sizeof(ft_connection),
            header.events_at, 1 << 14,
        ):
            return FT_NO_CONNECTION
        header.connections_used = row + 1
        return row

    cdef void give_connection(self, uint32_t row, uint64_t now_ns):
        """The caller has marked the row as ended; it can still be read for the grace time."""
        self._free_connections.append((row, now_ns + self._grace_ns))


cdef put_bytes(char *target, size_t room, bytes value):
    memset(target, 0, room)
    memcpy(target, <const char *>value, min(room, <size_t>len(value)))


cdef put_text(char *target, size_t room, str value):
    """UTF-8, cut between characters, filled up with NUL."""
    cdef bytes raw = value.encode("utf-8", "replace")
    if <size_t>len(raw) > room:
        raw = raw[:room].decode("utf-8", "ignore").encode()
    put_bytes(target, room, raw)


cdef struct Text:
    const char *data
    Py_ssize_t size


cdef struct Encoded:
    char *data
    size_t used
    size_t capacity


def encode_attributes(attributes, int field=7):
    """Attributes as OTLP KeyValues in the order of their names, each as field 7 of a NumberDataPoint.

    ``field`` is that of another message. Values are str, bool, int or float. An int of more than 64 bits and text that is not UTF-8, as a process's
    name may be, are told as text as well as they can be: one odd attribute must not cost an export.
    """
    cdef Text key, text
    cdef Encoded out
    cdef uint64_t number = 0
    cdef size_t inner, whole
    cdef int kind
    cdef double real = 0
    out.data, out.used, out.capacity = NULL, 0, 0
    try:
        for name, value in sorted(attributes.items()):
            key_held = _utf8(name, &key)
            text.size = 0
            text_held = None
            # The field of AnyValue: string_value 1, bool_value 2, int_value 3, double_value 4.
            if value is True or value is False:
                kind, number = 2, 1 if value else 0
                inner = 2
            elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
                kind, number = 3, value & 0xFFFFFFFFFFFFFFFF
                inner = 1 + _varint_size(number)
            elif isinstance(value, float):
                kind, real = 4, value
                inner = 9
            else:
                kind = 1
                text_held = _utf8(value if isinstance(value, str) else str(value), &text)
                inner = 1 + _varint_size(text.size) + text.size
            whole = 1 + _varint_size(key.size) + key.size + 1 + _varint_size(inner) + inner
            _make_room(&out, 1 + _varint_size(whole) + whole)
            _put_varint(&out, field << 3 | 2)
            _put_varint(&out, whole)
            _put_varint(&out, 0x0A)
            _put_varint(&out, key.size)
            _put_bytes(&out, key.data, key.size)
            _put_varint(&out, 0x12)
            _put_varint(&out, inner)
            if kind == 1:
                _put_varint(&out, 0x0A)
                _put_varint(&out, text.size)
                _put_bytes(&out, text.data, text.size)
            elif kind == 4:
                _put_varint(&out, 0x21)
                _put_bytes(&out, <char *>&real, sizeof(real))
            else:
                _put_varint(&out, kind << 3)
                _put_varint(&out, number)
        return PyBytes_FromStringAndSize(out.data, out.used) if out.used else b""
    finally:
        free(out.data)


cdef object _utf8(text, Text *found):
    """Point ``found`` at ``text`` as UTF-8, which lives as long as ``text`` and what is returned."""
    try:
        found.data = PyUnicode_AsUTF8AndSize(text, &found.size)
        return None
    except UnicodeEncodeError:
        replaced = text.encode("utf-8", "replace")
        found.data = PyBytes_AS_STRING(replaced)
        found.size = len(replaced)
        return replaced


cdef int _make_room(Encoded *out, size_t size) except -1:
    cdef size_t capacity = out.capacity
    if out.used + size <= capacity:
        return 0
    capacity = max(2 * capacity, out.used + size, <size_t>512)
    cdef char *data = <char *>realloc(out.data, capacity)
    if data == NULL:
        raise MemoryError
    out.data, out.capacity = data, capacity
    return 0


cdef inline size_t _varint_size(uint64_t number) noexcept nogil:
    cdef size_t size = 1
    while number > 0x7F:
        number >>= 7
        size += 1
    return size


cdef inline void _put_varint(Encoded *out, uint64_t number) noexcept nogil:
    while number > 0x7F:
        out.data[out.used] = <char>(number & 0x7F | 0x80)
        out.used += 1
        number >>= 7
    out.data[out.used] = <char>number
    out.used += 1


cdef inline void _put_bytes(Encoded *out, const char *data, size_t size) noexcept nogil:
    memcpy(out.data + out.used, data, size)
    out.used += size


def decode_attributes(bytes encoded):
    """The attributes behind :func:`encode_attributes`. Raises ValueError for anything that it did not make."""
    cdef Py_ssize_t at = 0
    attributes = {}
    try:
        while at < len(encoded):
            pair, at = _take(encoded, at, 0x3A)
            key, value_at = _take(pair, 0, 0x0A)
            value, end = _take(pair, value_at, 0x12)
            if end != len(pair):
                raise ValueError
            attributes[key.decode()] = _any_value(value)
    except (ValueError, IndexError):
        raise ValueError(f"malformed attributes of {len(encoded)} bytes") from None
    return attributes


def _any_value(bytes value):
    cdef double real
    tag = value[0]
    if tag == 0x0A:
        return _take(value, 0, 0x0A)[0].decode()
    if tag == 0x10:
        return _number(value, 1)[0] != 0
    if tag == 0x18:
        number = _number(value, 1)[0]
        return number - (1 << 64) if number >> 63 else number
    if tag == 0x21 and len(value) == 9:
        memcpy(&real, <const char *>value + 1, 8)
        return real
    raise ValueError


def _take(bytes data, Py_ssize_t at, int tag):
    """The content of the length-delimited field with ``tag`` at ``at``, and where the next one begins."""
    if data[at] != tag:
        raise ValueError
    size, at = _number(data, at + 1)
    if size > len(data) - at:
        raise ValueError
    return data[at : at + size], at + size


def _number(bytes data, Py_ssize_t at):
    number = shift = 0
    while shift < 64:
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError


cdef class Series:
    """One series of a ring. Made by a series table, which says what to do when the ring is full.

    ``start_ns`` and ``time_ns`` are nanoseconds since the Unix epoch. ``start_ns`` is when the cumulative
    count began as far as the agent knows; it moves when a counter was reset.
    """

    def __init__(self, Ring ring, uint32_t slot, metric, bytes encoded):
        self.ring = ring
        self.slot = slot
        self.metric = metric
        self.encoded = encoded
        self.ended = False
        self._observer.series = slot
        self._observer.scale = 1
        self._observer.bits = 64

    def set(self, value, uint64_t now_ns):
        """Set the current value: int, float, or a Histogram for a series that is one."""
        cdef ft_series *one
        if self.slot == FT_NO_SERIES:
            return
        one = self.ring.view.series + self.slot
        if one.kind == FT_HISTOGRAM:
            self._set_histogram(value, now_ns)
        elif one.kind == FT_COUNTER and one.overflow:
            # It stands for many: only what has come since this one was last set is its own.
            before, self._told = self._told, value
            if before is not None:
                self.add(max(value - before, 0), now_ns)
        elif one.kind == FT_COUNTER:
            before = self.value
            self.add(value - (before if before is not None else 0), now_ns)
            if one.number == FT_REAL:
                one.value.real = value  # not the sum of what was rounded
        elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            ft_ring_set_integer(&self.ring.view, self.slot, value, now_ns)
        else:
            ft_ring_set(&self.ring.view, self.slot, value, now_ns)

    def add(self, delta, uint64_t now_ns):
        """Add to a sum."""
        cdef ft_series *one
        if self.slot == FT_NO_SERIES:
            return
        one = self.ring.view.series + self.slot
        if isinstance(delta, int) and one.number != FT_REAL:
            total = one.value.integer + delta
            if -(1 << 63) <= total < 1 << 63 and -(1 << 63) <= delta < 1 << 63:
                ft_ring_add(&self.ring.view, self.slot, delta, now_ns)
                return
        if one.number == FT_INTEGER:
            # More than 63 bits, or a fraction: nearly right is better than nothing.
            one.value.real = <double>one.value.integer
            one.row_delta.real = <double>one.row_delta.integer
            one.interval_delta.real = <double>one.interval_delta.integer
        ft_ring_add_real(&self.ring.view, self.slot, delta, now_ns)

    def observe(self, uint64_t cumulative, uint64_t now_ns):
        """Fold what a counter of integers says that something else accumulates; see ft_ring_observe."""
        ft_ring_observe(&self.ring.view, &self._observer, cumulative, now_ns)

    def record(self, double value, uint64_t now_ns):
        """Put one value into a histogram."""
        ft_ring_record(&self.ring.view, self.slot, value, now_ns)

    def _set_histogram(self, value, uint64_t now_ns):
        cdef ft_histogram *histogram = ft_ring_histogram(&self.ring.view, self.slot)
        if len(value.buckets) > FT_BUCKETS:
            raise ValueError(f"{len(value.buckets)} buckets; a histogram of the ring has {FT_BUCKETS}")
        ft_open_sequence(&histogram.sequence)
        histogram.scale = value.scale
        histogram.count = value.count
        histogram.sum = value.sum
        histogram.zeros = value.zeros
        histogram.offset = value.offset
        histogram.used = len(value.buckets)
        for index, count in enumerate(value.buckets):
            histogram.buckets[index] = count
        ft_close_sequence(&histogram.sequence)
        self.ring.view.series[self.slot].time_ns = now_ns
        self.ring.view.series[self.slot].number = FT_REAL

    @property
    def value(self):
        """The current value: int, float or Histogram; None before there is one."""
        cdef ft_series *one
        cdef ft_histogram *histogram
        if self.slot == FT_NO_SERIES:
            return None
        one = self.ring.view.series + self.slot
        if one.number == FT_UNKNOWN:
            return None
        if one.kind == FT_HISTOGRAM:
            histogram = ft_ring_histogram(&self.ring.view, self.slot)
            return Histogram(
                histogram.count, histogram.sum, histogram.zeros, histogram.offset,
                [histogram.buckets[index] for index in range(histogram.used)], histogram.scale,
            )
        return one.value.real if one.number == FT_REAL else one.value.integer

    @property
    def attributes(self):
        """The attributes, decoded."""
        return decode_attributes(self.encoded)

    @property
    def known(self):
        """Whether there is a value."""
        return self.slot != FT_NO_SERIES and self.ring.view.series[self.slot].number != FT_UNKNOWN

    @property
    def start_ns(self):
        return 0 if self.slot == FT_NO_SERIES else self.ring.view.series[self.slot].start_ns

    @property
    def time_ns(self):
        return 0 if self.slot == FT_NO_SERIES else self.ring.view.series[self.slot].time_ns

    @property
    def peak(self):
        """Largest rate per second between two observations in the last whole export interval."""
        return 0.0 if self.slot == FT_NO_SERIES else self.ring.view.series[self.slot].peak

    @property
    def average(self):
        """Rate per second over the last whole export interval."""
        return 0.0 if self.slot == FT_NO_SERIES else self.ring.view.series[self.slot].average

    def end(self):
        """Say that nothing will be written any more. Only the table calls this."""
        self.ended = True
        self._observer.series = FT_NO_SERIES
