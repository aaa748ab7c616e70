# cython: language_level=3, boundscheck=False, wraparound=False
"""Calls that may hang, made in a thread that can be left behind (ext/calls.h).

:class:`Calls` is that thread. It makes native calls (ext/nvml.pyx) once, in a round that somebody waits for, or
again and again by itself, without the GIL; and Python's, as :class:`Task`.
"""

from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint64_t

import time

#: Native objects that live now; what was left behind in the library keeps living.
_alive = {"calls": 0}


def alive():
    """Native objects that have been made and not freed, by kind. For tests of leaks."""
    return dict(_alive)


cdef class Call:
    """Base of what :class:`Calls` makes. Not to be made itself."""

    @property
    def answered(self):
        """Whether it has returned in the last round."""
        return self._call != NULL and ft_call_state(self._call) == FT_CALL_DONE

    @property
    def stuck(self):
        """Whether it was left behind and has not returned yet."""
        return self._call != NULL and ft_call_state(self._call) == FT_CALL_STUCK


cdef struct _task:
    ft_call call
    PyObject *owner


cdef void _run_task(ft_call *call) noexcept with gil:
    (<Task><object>(<_task *>call).owner)._run()


cdef class Task(Call):
    """A call of a Python function. Make it once."""

    cdef _task _self
    cdef object _function
    cdef object _result
    cdef object _error

    def __cinit__(self, function):
        self._function = function
        self._self.owner = <PyObject *>self
        self._self.call.run = _run_task
        self._call = &self._self.call

    cdef _run(self):
        try:
            self._result = self._function()
        except BaseException as error:  # raised again where it is waited for
            self._error = error

    @property
    def returned(self):
        """Whether it is not being made any more."""
        return not self.stuck

    def result(self):
        """What the function returned or raised; see ``answered``."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result


cdef class Calls:
    """Makes calls in a thread of its own that can be left behind; it is started when there is something to do.

    ``limit`` is the most threads that may be left behind. One round at a time; ``keep``, ``look`` and the
    folding of kept calls from any thread.
    """

    cdef ft_calls *_calls
    cdef readonly unsigned int limit
    # What the thread may be making now, which must not be freed.
    cdef list _left_behind
    cdef list _kept

    def __cinit__(self, unsigned int limit):
        self.limit = limit
        self._left_behind = []
        self._kept = []
        self._calls = ft_calls_new(limit)
        if self._calls == NULL:
            raise MemoryError
        _alive["calls"] += 1

    def __dealloc__(self):
        self._close()

    @property
    def stuck(self):
        """Threads left behind that have not returned yet."""
        return self._calls.stuck if self._calls != NULL else 0

    def round(self, list calls, double seconds, wall=time.time_ns):
        """Make ``calls``, one after the other, each for at most ``seconds``, and wait.

        Those left behind earlier are passed over. ``wall``: nanoseconds since the epoch. Returns 0, or an
        errno: EBUSY where as many threads as may be are left behind; then some were not made. See
        ``Call.answered`` and ``Call.stuck``.
        """
        cdef ft_call *pointers[256]
        cdef unsigned int count = self._pointers(calls, pointers)
        cdef uint64_t limit_ns = <uint64_t>(seconds * 1e9)
        cdef int64_t wall_ns = <int64_t>wall() - <int64_t>ft_monotonic_ns()
        cdef int error
        with nogil:
            error = ft_calls_round(self._calls, pointers, count, limit_ns, wall_ns)
        if self._calls != NULL and self._calls.stuck:
            self._remember(calls)
        return error

    def keep(self, list calls, double seconds, double period, first=None):
        """Make ``calls`` every ``period`` seconds from now on, in place of those that were kept; none: no more.

        Each may take ``seconds``. ``first``: seconds (time.monotonic) of the first time, where nothing was kept.
        Returns an errno as ``round``. Does not wait.
        """
        cdef ft_call *pointers[256]
        cdef unsigned int count = self._pointers(calls, pointers)
        cdef uint64_t first_ns = ft_monotonic_ns() if first is None else <uint64_t>(<double>first * 1e9)
        cdef int error
        cdef list before = self._kept
        self._kept = list(calls)
        error = ft_calls_keep(
            self._calls, pointers, count, <uint64_t>(seconds * 1e9), <uint64_t>(period * 1e9), first_ns
        )
        self._remember(before)
        return error

    def settle(self):
        """Keep nothing any more, and wait until nothing that was kept is in the library but what hangs."""
        if self._calls == NULL:
            return
        self.keep([], 0, 0)
        with nogil:
            ft_calls_settle(self._calls)
        self._remember([])

    def look(self):
        """Leave behind what takes too long; to be called again and again while calls are kept.

        Returns (errno, ticks so far, seconds that they took, CPU seconds of the last one that was measured).
        The next one is.
        """
        cdef ft_sampler sampler
        cdef int error
        if self._calls == NULL:
            raise RuntimeError("Calls is closed")
        error = ft_calls_look(self._calls, &sampler)
        if self._left_behind or self._calls.stuck:
            self._remember(self._kept)
        return error, sampler.ticks, sampler.busy_ns / 1e9, sampler.cpu_ns / 1e9

    def park(self):
        """End the idle thread until it is needed again. Not while calls are kept."""
        if self._calls == NULL:
            return
        with nogil:
            ft_calls_park(self._calls)

    def close(self):
        """End the worker. Threads left behind end when their call returns; that memory is never freed."""
        self._close()

    cdef unsigned int _pointers(self, list calls, ft_call **pointers) except? 257:
        cdef unsigned int count = 0
        cdef Call call
        if self._calls == NULL:
            raise RuntimeError("Calls is closed")
        if len(calls) > 256:
            raise ValueError(f"{len(calls)} calls; a round has at most 256")
        for call in calls:
            pointers[count] = call._call
            count += 1
        return count

    cdef _remember(self, list calls):
        """Those of ``calls`` that are stuck (or being made) stay until they have returned."""
        cdef Call call
        cdef list found = []
        for call in self._left_behind + calls:
            state = ft_call_state(call._call)
            if state == FT_CALL_STUCK or state == FT_CALL_RUNNING:
                if call not in found:
                    found.append(call)
        self._left_behind = found

    cdef _close(self):
        cdef ft_calls *calls = self._calls
        cdef Call call
        if calls == NULL:
            return
        self._calls = NULL
        with nogil:
            ft_calls_close(calls)
        for call in self._left_behind + self._kept:
            if call.stuck:
                Py_INCREF(call)
        self._left_behind = []
        self._kept = []
        _alive["calls"] -= 1
