"""Small records, counted by a key that stands in them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fabrictap.ext.ring cimport Ring, ft_ring
from fabrictap.ext.table cimport ft_table

cdef extern from "keyed.h" nogil:
    const uint32_t FT_KEY_MAX

    cdef struct ft_tally:
        uint8_t key[32]
        uint64_t count
        uint64_t total
        uint32_t count_series
        uint32_t total_series
        uint8_t touched
        uint8_t bound

    cdef struct ft_keyed:
        ft_table table
        size_t record_size
        uint32_t key_at
        uint32_t total_at
        uint32_t *touched
        uint32_t touched_count
        uint64_t received
        uint64_t misfits

    int ft_keyed_take(void *context, void *data, size_t size) noexcept
    void ft_keyed_tell(ft_tally *tally, ft_ring *ring, uint64_t now_ns)
    uint32_t ft_keyed_fold(ft_keyed *keyed, ft_ring *ring, uint64_t now_ns)


cdef class KeyedFold:
    # What ft_keyed_take gets as its context: stays where it is while the object lives.
    cdef ft_keyed keyed
    cdef Ring _ring
