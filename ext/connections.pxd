"""One queue pair of the ledger, as a row of the ring's table of connections."""

from libc.stdint cimport uint32_t

from fabrictap.ext.ring cimport Ring, ft_connection


cdef class ConnectionRow:
    # Where the row is: in the ring, or in `_own` before it is listed there and after. The address of this
    # member stays as it is while the object lives, so that C code may keep it.
    cdef ft_connection *row
    cdef ft_connection _own
    cdef Ring _ring
    cdef uint32_t _index
    cdef readonly str device
    cdef str _process
    cdef object _changes

    cdef void _open(self) noexcept
    cdef void _close(self)
    cdef void _know(self, uint32_t *target, int bit, value)
