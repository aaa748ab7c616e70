# cython: language_level=3
"""The layout of a ring file, as the compiler sees ring.h, for readers that use pread and struct."""

from libc.stdint cimport uint8_t, uint32_t

from fabrictap.ext cimport ring

cdef extern from "layout.h" nogil:
    struct ft_field:
        const char *structure
        const char *name
        uint32_t offset
        uint32_t size
        char format
    const ft_field ft_fields[]
    const size_t FT_FIELDS

cdef extern from "ring.h" nogil:
    size_t FT_CHECKED "offsetof(struct ft_ring_header, checksum)"

#: What the header begins with.
MAGIC = ring.FT_RING_MAGIC[:8]
BYTE_ORDER = ring.FT_RING_BYTE_ORDER
#: Bytes of the header that its checksum covers.
CHECKED = FT_CHECKED
PAGE = ring.FT_PAGE
STRIDE_MAX = ring.FT_STRIDE_MAX
FREE, LIVE, ENDED = ring.FT_FREE, ring.FT_LIVE, ring.FT_ENDED
UNKNOWN, INTEGER, REAL = ring.FT_UNKNOWN, ring.FT_INTEGER, ring.FT_REAL
HAS_PEER_QPN, HAS_SQ_PSN, HAS_RQ_PSN, HAS_PID = (
    ring.FT_HAS_PEER_QPN, ring.FT_HAS_SQ_PSN, ring.FT_HAS_RQ_PSN, ring.FT_HAS_PID,
)

#: Structure -> its size in bytes.
SIZES = {
    "header": sizeof(ring.ft_ring_header),
    "row": sizeof(ring.ft_row),
    "series": sizeof(ring.ft_series),
    "histogram": sizeof(ring.ft_histogram),
    "event": sizeof(ring.ft_event),
    "connection": sizeof(ring.ft_connection),
}
_NAMES = {"ring_header": "header"}
_ELEMENT = {"B": 1, "H": 2, "I": 4, "i": 4, "f": 4, "s": 1, "q": 8, "Q": 8, "d": 8}


def _fields():
    """Structure -> {field: (offset, format as in struct)}, in the order of offsets."""
    cdef size_t index
    found = {name: {} for name in SIZES}
    for index in range(FT_FIELDS):
        structure = ft_fields[index].structure.decode().removeprefix("ft_")
        form = chr(ft_fields[index].format)
        count = ft_fields[index].size // _ELEMENT[form]
        found[_NAMES.get(structure, structure)][ft_fields[index].name.decode()] = (
            ft_fields[index].offset, form if count == 1 else f"{count}{form}",
        )
    return found


#: Values of eight bytes that are an integer or a double are given as integers ("q").
FIELDS = _fields()


def stride(uint8_t kind):
    """Bytes that a tick of a segment of this kind takes."""
    return ring.ft_stride(kind)
