# cython: language_level=3
"""Functions of ours for measuring what a probe costs whoever runs into it. See calibrate.h."""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t


cdef extern from "calibrate.h" nogil:
    ctypedef int (*ft_post_fn)(void *qp, void *wr, void **bad)
    int ft_emulated(void *qp, void *wr, void **bad)
    int ft_stepped(void *qp, void *wr, void **bad)
    uint64_t ft_calls(ft_post_fn post, uint32_t calls)


def address(bint stepped):
    """Where the function is: the one whose first instruction the kernel single-steps, or the other."""
    return <uintptr_t>(ft_stepped if stepped else ft_emulated)


def calls(bint stepped, uint32_t count):
    """CPU nanoseconds of this thread for ``count`` calls of it."""
    cdef uint64_t spent
    with nogil:
        spent = ft_calls(ft_stepped if stepped else ft_emulated, count)
    return spent
