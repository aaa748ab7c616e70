# cython: language_level=3
"""Calls that may hang, and the thread that makes them (ext/calls.h)."""

from libc.stdint cimport int64_t, uint64_t

cdef extern from "calls.h" nogil:
    cdef enum:
        FT_CALL_IDLE
        FT_CALL_RUNNING
        FT_CALL_DONE
        FT_CALL_STUCK

    cdef struct ft_call:
        void (*run)(ft_call *call) noexcept
        int (*took)(ft_call *call, uint64_t now_ns) noexcept
        uint64_t every_ns
        uint64_t due_ns
        int halted

    cdef struct ft_sampler:
        unsigned int count
        uint64_t period_ns
        uint64_t ticks
        uint64_t missed
        uint64_t busy_ns
        uint64_t cpu_ns
        int measure

    cdef struct ft_calls:
        ft_sampler sampler
        unsigned int stuck

    ft_calls *ft_calls_new(unsigned int limit)
    int ft_calls_round(ft_calls *calls, ft_call **list, unsigned int count, uint64_t limit_ns, int64_t wall_ns)
    int ft_calls_keep(
        ft_calls *calls, ft_call **list, unsigned int count, uint64_t limit_ns, uint64_t period_ns, uint64_t first_ns
    )
    int ft_calls_look(ft_calls *calls, ft_sampler *sampler)
    void ft_calls_settle(ft_calls *calls)
    void ft_calls_park(ft_calls *calls)
    void ft_calls_close(ft_calls *calls)
    int ft_call_state(const ft_call *call)
    void ft_call_lock(ft_call *call)
    void ft_call_unlock(ft_call *call)
    uint64_t ft_monotonic_ns()


cdef class Call:
    cdef ft_call *_call
