# cython: language_level=3, boundscheck=False, wraparound=False
"""The series of a ring as Prometheus text (exposition format 0.0.4).

`collect` copies what changes under the lock that guards the ring; `render` writes the text outside it, from
labels that are made once for each series. Times are left to the scraper.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.math cimport floor, isinf, isnan
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtod
from libc.string cimport memcpy

from fabrictap.ext.ring cimport (
    FT_COUNTER, FT_FREE, FT_HISTOGRAM, FT_INTEGER, FT_LIVE, FT_SEGMENT, FT_UNKNOWN, Ring, ft_histogram,
    ft_ring_histogram, ft_series, ft_value,
)
from fabrictap.ext.ring import decode_attributes

cdef enum:
    # What a line takes at most beside its name and labels, and a bucket's label.
    _LINE = 48
    _BUCKET = 40
    _MOST_BOUNDS = 64

cdef struct Entry:
    uint32_t sequence
    uint16_t metric
    uint8_t kind
    uint8_t state
    uint8_t number
    uint8_t rates
    uint8_t seen  # the sequence is one that was looked at
    uint8_t replaced  # another series has the same labels
    ft_value value
    float average
    float peak
    uint64_t ended_ns  # when it was first seen to have ended
    uint64_t raw_at  # of a changed one: its attributes in the buffer
    uint32_t raw_size
    uint32_t labels_size
    const char *labels  # lives in _keys
    uint64_t histogram_at

cdef struct Family:
    const char *head[3]
    uint32_t head_size[3]
    const char *name[3]
    uint32_t name_size[3]
    int32_t bounds[_MOST_BOUNDS]  # exponents of two
    uint32_t bounds_used
    const char *les[_MOST_BOUNDS]
    uint32_t le_size[_MOST_BOUNDS]
    uint32_t first
    uint32_t count

cdef struct Text:
    char *data
    size_t used
    size_t room


cdef inline bint _reserve(Text *text, size_t more) noexcept nogil:
    cdef size_t room
    cdef char *data
    if text.used + more <= text.room:
        return True
    room = text.room if text.room else 65536
    while room < text.used + more:
        room *= 2
    data = <char *>PyMem_RawRealloc(text.data, room)
    if data == NULL:
        return False
    text.data, text.room = data, room
    return True


cdef inline void _put(Text *text, const char *what, size_t size) noexcept nogil:
    memcpy(text.data + text.used, what, size)
    text.used += size


cdef inline void _put_unsigned(Text *text, uint64_t value) noexcept nogil:
    cdef char digits[20]
    cdef int at = 20
    while True:
        at -= 1
        digits[at] = <char>(48 + value % 10)
        value //= 10
        if not value:
            break
    _put(text, digits + at, 20 - at)


cdef inline void _put_integer(Text *text, int64_t value) noexcept nogil:
    if value < 0:
        _put(text, b"-", 1)
        _put_unsigned(text, 0 - <uint64_t>value)
    else:
        _put_unsigned(text, <uint64_t>value)


cdef inline void _put_real(Text *text, double value, bint single) noexcept nogil:
    """The shortest of a few ways to write it that is read back as the same number."""
    if isnan(value):
        _put(text, b"NaN", 3)
    elif isinf(value):
        _put(text, b"+Inf" if value > 0 else b"-Inf", 4)
    elif -1e15 < value < 1e15 and floor(value) == value:
        _put_integer(text, <int64_t>value)
    elif single:
        text.used += snprintf(text.data + text.used, 32, b"%.9g", value)
    else:
        snprintf(text.data + text.used, 32, b"%.15g", value)
        if strtod(text.data + text.used, NULL) != value:
            snprintf(text.data + text.used, 32, b"%.17g", value)
        while text.data[text.used]:
            text.used += 1


cdef class Exposition:
    """All series of ``ring``.

    ``families`` has for each metric of the catalog (three pairs, bounds): the pairs are (head, name) of the
    value and, for counters with rates, of average and peak, else None; bounds are (exponent of two, text of
    the label le) of a histogram. ``before`` is text that stands first. A counter or a histogram that has
    ended is shown for ``linger_ns`` more, so that a scraper learns its last value.
    """

    cdef Ring _ring
    cdef const char *_before_text
    cdef size_t _before_size
    cdef uint64_t _linger_ns
    cdef Entry *_entries
    cdef Family *_families
    cdef uint32_t _count
    cdef uint32_t _metrics
    cdef uint32_t *_order
    cdef Text _raw
    cdef Text _histograms
    cdef Text _text
    cdef list _keys
    cdef list _keep
    cdef dict _owners
    cdef dict _names
    cdef uint64_t _now_ns

    def __init__(self, Ring ring, families, bytes before, uint64_t linger_ns):
        cdef Family *family
        cdef bytes head, name, le
        cdef uint32_t index, which
        if self._entries != NULL:
            raise RuntimeError("an exposition is made once")
        self._ring = ring
        self._linger_ns = linger_ns
        self._metrics = len(families)
        self._entries = <Entry *>PyMem_RawCalloc(ring.view.header.series, sizeof(Entry))
        self._order = <uint32_t *>PyMem_RawMalloc(ring.view.header.series * sizeof(uint32_t))
        self._families = <Family *>PyMem_RawCalloc(max(1, self._metrics), sizeof(Family))
        if self._entries == NULL or self._order == NULL or self._families == NULL:
            raise MemoryError
        self._keys = [None] * ring.view.header.series
        self._keep = [before]
        self._before_text, self._before_size = PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before)
        self._owners = {}
        self._names = {}
        for index, (shown, bounds) in enumerate(families):
            family = self._families + index
            for which, pair in enumerate(shown):
                if pair is None:
                    continue
                self._keep += pair
                head, name = pair
                family.head[which], family.head_size[which] = PyBytes_AS_STRING(head), len(head)
                family.name[which], family.name_size[which] = PyBytes_AS_STRING(name), len(name)
            if len(bounds) > _MOST_BOUNDS:
                raise ValueError(f"{len(bounds)} bounds of a histogram; at most {_MOST_BOUNDS}")
            for which, (exponent, le) in enumerate(bounds):
                if len(le) > _BUCKET - 16:
                    raise ValueError(f"too long a bound: {le}")
                self._keep.append(le)
                family.bounds[which] = exponent
                family.les[which], family.le_size[which] = PyBytes_AS_STRING(le), len(le)
            family.bounds_used = len(bounds)

    def __dealloc__(self):
        PyMem_RawFree(self._entries)
        PyMem_RawFree(self._order)
        PyMem_RawFree(self._families)
        PyMem_RawFree(self._raw.data)
        PyMem_RawFree(self._histograms.data)
        PyMem_RawFree(self._text.data)
        self._entries = NULL

    def collect(self, uint64_t now_ns):
        """Take over what the ring says now. Under the lock that guards it. Raises MemoryError."""
        cdef bint well
        with nogil:
            well = self._collect(now_ns)
        if not well:
            raise MemoryError

    cdef bint _collect(self, uint64_t now_ns) noexcept nogil:
        cdef uint32_t slot
        cdef Entry *entry
        cdef const ft_series *series
        cdef const ft_histogram *histogram
        cdef size_t size
        self._now_ns = now_ns
        self._count = self._ring.view.header.segments_used * FT_SEGMENT
        self._raw.used = self._histograms.used = 0
        for slot in range(self._count):
            entry = self._entries + slot
            series = self._ring.view.series + slot
            if entry.sequence != series.sequence:
                entry.sequence = series.sequence
                entry.seen = 0
                entry.metric = series.metric
                entry.kind = series.kind
                entry.state = series.state
                entry.rates = series.rates
                entry.replaced = 0
                entry.ended_ns = now_ns
                if series.state != FT_FREE:
                    if not _reserve(&self._raw, series.attributes_size):
                        entry.sequence -= 1
                        return False
                    entry.raw_at, entry.raw_size = self._raw.used, series.attributes_size
                    _put(&self._raw, self._ring.view.heap + series.attributes, series.attributes_size)
            if entry.state == FT_FREE:
                continue
            entry.number = series.number
            entry.value = series.value
            entry.average, entry.peak = series.average, series.peak
            if entry.kind == FT_HISTOGRAM:
                histogram = ft_ring_histogram(&self._ring.view, slot)
                size = sizeof(ft_histogram) - sizeof(histogram.buckets) + histogram.used * sizeof(uint64_t)
                if not _reserve(&self._histograms, size):
                    return False
                entry.histogram_at = self._histograms.used
                _put(&self._histograms, <const char *>histogram, size)
        return True

    def render(self):
        """The text of what was collected, as bytes. In the thread that calls ``collect``, outside the lock."""
        cdef uint32_t slot
        cdef bint well
        for slot in range(self._count):
            if not self._entries[slot].seen:
                self._look_at(slot)
        with nogil:
            well = self._render()
        if not well:
            raise MemoryError
        return self._text.data[: self._text.used]

    cdef _look_at(self, uint32_t slot):
        """Make the labels of a series that is new, has ended, or has gone."""
        cdef Entry *entry = self._entries + slot
        cdef bytes labels
        before = self._keys[slot]
        if before is not None and self._owners.get(before) == slot:
            del self._owners[before]
        self._keys[slot] = None
        entry.seen = 1
        if entry.state == FT_FREE or entry.metric >= self._metrics:
            entry.state = FT_FREE
            return
        labels = self._label_text(self._raw.data[entry.raw_at : entry.raw_at + entry.raw_size])
        entry.labels, entry.labels_size = PyBytes_AS_STRING(labels), PyBytes_GET_SIZE(labels)
        key = self._keys[slot] = (entry.metric, labels)
        other = self._owners.get(key)
        # One that lives takes the place of one that lingers; of two that linger, the first stays.
        if other is None or entry.state == FT_LIVE:
            if other is not None:
                self._entries[<uint32_t>other].replaced = 1
            self._owners[key] = slot
        else:
            entry.replaced = 1

    cdef bytes _label_text(self, bytes raw):
        parts = []
        for name, value in decode_attributes(raw).items():
            label = self._names.get(name)
            if label is None:
                label = self._names[name] = label_name(name)
            parts.append(f'{label}="{label_value(value)}"')
        return ",".join(parts).encode("utf-8", "replace")

    cdef inline bint _shown(self, const Entry *entry) noexcept nogil:
        if entry.state == FT_FREE or entry.number == FT_UNKNOWN or entry.replaced:
            return False
        if entry.state == FT_LIVE:
            return True
        # What is not cumulative says nothing any more when it has ended.
        return (
            entry.kind == FT_COUNTER or entry.kind == FT_HISTOGRAM
        ) and self._now_ns - entry.ended_ns < self._linger_ns

    cdef bint _render(self) noexcept nogil:
        """Sorted by metric, as all lines of one must stand together."""
        cdef uint32_t slot, metric, at, which, first = 0
        cdef Family *family
        cdef Entry *entry
        for metric in range(self._metrics):
            self._families[metric].count = 0
        for slot in range(self._count):
            if self._shown(self._entries + slot):
                self._families[self._entries[slot].metric].count += 1
        for metric in range(self._metrics):
            self._families[metric].first = first
            first += self._families[metric].count
            self._families[metric].count = 0
        for slot in range(self._count):
            if self._shown(self._entries + slot):
                family = self._families + self._entries[slot].metric
                self._order[family.first + family.count] = slot
                family.count += 1
        self._text.used = 0
        if not _reserve(&self._text, self._before_size):
            return False
        _put(&self._text, self._before_text, self._before_size)
        for metric in range(self._metrics):
            family = self._families + metric
            for which in range(3):
                if not family.count or family.head[which] == NULL:
                    continue
                if not _reserve(&self._text, family.head_size[which]):
                    return False
                _put(&self._text, family.head[which], family.head_size[which])
                for at in range(family.first, family.first + family.count):
                    entry = self._entries + self._order[at]
                    if entry.kind == FT_HISTOGRAM:
                        if not self._put_histogram(family, entry):
                            return False
                    elif not self._put_number(family, entry, which):
                        return False
        return True

    cdef bint _put_number(self, const Family *family, const Entry *entry, uint32_t which) noexcept nogil:
        cdef Text *text = &self._text
        if which and entry.state != FT_LIVE:
            return True
        if not _reserve(text, family.name_size[which] + entry.labels_size + _LINE):
            return False
        _put(text, family.name[which], family.name_size[which])
        if entry.labels_size:
            _put(text, b"{", 1)
            _put(text, entry.labels, entry.labels_size)
            _put(text, b"} ", 2)
        else:
            _put(text, b" ", 1)
        if which == 1:
            _put_real(text, entry.average, True)
        elif which == 2:
            _put_real(text, entry.peak, True)
        elif entry.number == FT_INTEGER:
            _put_integer(text, entry.value.integer)
        else:
            _put_real(text, entry.value.real, False)
        _put(text, b"\n", 1)
        return True

    cdef bint _put_histogram(self, const Family *family, const Entry *entry) noexcept nogil:
        """Classic buckets: exact as long as no bucket of the histogram lies across one of the bounds."""
        cdef Text *text = &self._text
        cdef const ft_histogram *histogram = <const ft_histogram *>(self._histograms.data + entry.histogram_at)
        cdef uint64_t below = histogram.zeros
        cdef uint32_t bound, bucket = 0
        if not _reserve(
            text,
            (family.bounds_used + 3) * <size_t>(family.name_size[0] + entry.labels_size + _LINE + _BUCKET),
        ):
            return False
        for bound in range(family.bounds_used):
            while bucket < histogram.used and _at_most(
                <int64_t>histogram.offset + bucket + 1, histogram.scale, family.bounds[bound]
            ):
                below += histogram.buckets[bucket]
                bucket += 1
            _put_bucket(text, family, entry, family.les[bound], family.le_size[bound], below)
        _put_bucket(text, family, entry, b"+Inf", 4, histogram.count)
        _put_total(text, family, entry, b"_sum", 4)
        _put_real(text, histogram.sum, False)
        _put(text, b"\n", 1)
        _put_total(text, family, entry, b"_count", 6)
        _put_unsigned(text, histogram.count)
        _put(text, b"\n", 1)
        return True


cdef inline bint _at_most(int64_t index, int32_t scale, int32_t exponent) noexcept nogil:
    """Whether the upper bound of a bucket, 2^(index * 2^-scale), is at most 2^exponent."""
    if scale >= 0:
        return index <= <int64_t>exponent << scale
    return index << -scale <= exponent


cdef inline void _put_bucket(
    Text *text, const Family *family, const Entry *entry, const char *le, size_t size, uint64_t count
) noexcept nogil:
    _put(text, family.name[0], family.name_size[0])
    _put(text, b"_bucket{", 8)
    if entry.labels_size:
        _put(text, entry.labels, entry.labels_size)
        _put(text, b",", 1)
    _put(text, b'le="', 4)
    _put(text, le, size)
    _put(text, b'"} ', 3)
    _put_unsigned(text, count)
    _put(text, b"\n", 1)


cdef inline void _put_total(
    Text *text, const Family *family, const Entry *entry, const char *suffix, size_t size
) noexcept nogil:
    _put(text, family.name[0], family.name_size[0])
    _put(text, suffix, size)
    if entry.labels_size:
        _put(text, b"{", 1)
        _put(text, entry.labels, entry.labels_size)
        _put(text, b"}", 1)
    _put(text, b" ", 1)


def label_name(str name):
    """An attribute's name as a label: what Prometheus does not allow becomes an underscore."""
    label = "".join([one if one.isascii() and (one.isalnum() or one == "_") else "_" for one in name])
    return f"key_{label}" if label[:1].isdigit() else label


def label_value(value):
    """An attribute's value as the text between a label's quotes."""
    if value is True or value is False:
        return "true" if value else "false"
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
