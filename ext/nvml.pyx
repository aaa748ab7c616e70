# cython: language_level=3, boundscheck=False, wraparound=False
"""The fast reads of NVIDIA GPUs: calls into libnvidia-ml.so.1 and the folding of what they say, without the GIL.

:class:`Calls` makes the calls of a tick in a thread that can be left behind (ext/calls.h); :class:`Fields` and
:class:`Gpm` are such calls, each of one GPU, and fold what they were answered into the ring.
"""

from cpython.ref cimport Py_INCREF
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from fabrictap.ext.ring cimport FT_NO_SERIES, Ring, ft_observer, ft_ring, ft_ring_observe, ft_ring_set

cdef extern from "calls.h" nogil:
    cdef enum:
        FT_CALL_IDLE
        FT_CALL_DONE
        FT_CALL_STUCK

    cdef struct ft_call:
        void (*run)(ft_call *call)

    cdef struct ft_calls:
        unsigned int stuck

    ft_calls *ft_calls_new(unsigned int limit)
    int ft_calls_round(ft_calls *calls, ft_call **list, unsigned int count, uint64_t limit_ns)
    void ft_calls_close(ft_calls *calls)
    int ft_call_state(const ft_call *call)
    uint64_t ft_monotonic_ns()

cdef extern from "nvml.h" nogil:
    cdef enum:
        FT_NVML_SUCCESS
        FT_NVML_UNKNOWN
        FT_GPM_METRICS

    cdef union ft_nvml_number:
        uint64_t ull

    cdef struct ft_nvml_field:
        uint32_t id
        uint32_t scope
        uint32_t type
        int32_t status
        ft_nvml_number value

    cdef struct ft_gpm_metric:
        uint32_t id
        int32_t status
        double value

    cdef struct ft_gpm_get:
        uint32_t version
        uint32_t count
        ft_gpm_metric *metrics

    cdef struct ft_fields_call:
        ft_call call
        int (*get)(void *device, int count, ft_nvml_field *fields)
        void *device
        ft_nvml_field *fields
        int count
        int status

    cdef struct ft_gpm_call:
        ft_call call
        int (*sample)(void *device, void *sample)
        int (*mig_sample)(void *device, unsigned int instance, void *sample)
        int (*get)(ft_gpm_get *metrics)
        void *device
        int64_t instance
        void *samples[2]
        ft_gpm_get *metrics
        unsigned int latest
        int sampled
        int status

    void ft_fields_run(ft_call *call)
    void ft_gpm_run(ft_call *call)
    uint64_t ft_nvml_count(const ft_nvml_field *field, int *good)
    uint64_t ft_nvml_time(const ft_nvml_field *field, uint64_t now_ns)

ctypedef int (*_get_fields)(void *device, int count, ft_nvml_field *fields) noexcept
ctypedef int (*_gpm_sample)(void *device, void *sample) noexcept
ctypedef int (*_gpm_mig_sample)(void *device, unsigned int instance, void *sample) noexcept
ctypedef int (*_gpm_get)(ft_gpm_get *metrics) noexcept

#: What statuses say of a number that cannot be one: NVML_ERROR_UNKNOWN.
BAD_NUMBER = FT_NVML_UNKNOWN

#: Native objects that live now, by kind; what was left behind in the library keeps living.
_alive = {"calls": 0, "fields": 0, "gpm": 0}


def alive():
    """Native objects that have been made and not freed, by kind. For tests of leaks."""
    return dict(_alive)


cdef class Call:
    """Base of what :class:`Calls` makes. Not to be made itself."""

    cdef ft_call *_call

    @property
    def answered(self):
        """Whether it has returned in the last round."""
        return self._call != NULL and ft_call_state(self._call) == FT_CALL_DONE

    @property
    def stuck(self):
        """Whether it was left behind and has not returned yet."""
        return self._call != NULL and ft_call_state(self._call) == FT_CALL_STUCK


cdef class Calls:
    """Makes calls in a thread of its own that can be left behind.

    ``limit`` is the most threads that may be. One round at a time; ``close`` when no round runs.
    """

    cdef ft_calls *_calls
    cdef readonly unsigned int limit
    # What is in the library now and must not be freed.
    cdef list _left_behind

    def __cinit__(self, unsigned int limit):
        self.limit = limit
        self._left_behind = []
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

    def round(self, list calls, double seconds):
        """Make ``calls``, one after the other, each for at most ``seconds``.

        Those left behind earlier are passed over. Returns 0, or an errno: EBUSY where as many threads as may
        be are left behind; then some were not made. See ``Call.answered`` and ``Call.stuck``.
        """
        cdef ft_call *pointers[256]
        cdef unsigned int count = 0
        cdef uint64_t limit_ns = <uint64_t>(seconds * 1e9)
        cdef int error
        cdef Call call
        if self._calls == NULL:
            raise RuntimeError("Calls is closed")
        if len(calls) > 256:
            raise ValueError(f"{len(calls)} calls; a round has at most 256")
        for call in calls:
            pointers[count] = call._call
            count += 1
        if self._left_behind:
            self._left_behind = [call for call in self._left_behind if call.stuck]
        with nogil:
            error = ft_calls_round(self._calls, pointers, count, limit_ns)
        if self._calls.stuck:
            known = set(map(id, self._left_behind))
            self._left_behind += [call for call in calls if call.stuck and id(call) not in known]
        return error

    def close(self):
        """End the worker. Threads left behind end when their call returns; that memory is never freed."""
        self._close()

    cdef _close(self):
        cdef ft_calls *calls = self._calls
        if calls == NULL:
            return
        self._calls = NULL
        for call in self._left_behind:
            if call.stuck:
                Py_INCREF(call)
        self._left_behind = []
        with nogil:
            ft_calls_close(calls)
        _alive["calls"] -= 1


cdef class Counters(Call):
    """A call whose numbers are folded into the ring. Not to be made itself.

    Each number may be bound to a series, and may add to one of ``totals`` sums.
    """

    cdef ft_observer *_observers
    cdef int *_total_of
    cdef ft_observer *_totals
    cdef uint64_t *_sums
    cdef int *_contributed
    cdef readonly int totals
    cdef readonly int count

    cdef _make(self, int count, int totals):
        cdef int i
        if count < 1 or totals < 0:
            raise ValueError("a call asks for at least one number and has no negative number of totals")
        self.count = count
        self.totals = totals
        self._observers = <ft_observer *>calloc(count, sizeof(ft_observer))
        self._total_of = <int *>calloc(count, sizeof(int))
        self._totals = <ft_observer *>calloc(totals + 1, sizeof(ft_observer))
        self._sums = <uint64_t *>calloc(totals + 1, sizeof(uint64_t))
        self._contributed = <int *>calloc(totals + 1, sizeof(int))
        if (
            self._observers == NULL or self._total_of == NULL or self._totals == NULL or self._sums == NULL
            or self._contributed == NULL
        ):
            raise MemoryError
        for i in range(count):
            self._observers[i].series = FT_NO_SERIES
            self._total_of[i] = -1
        for i in range(totals):
            self._totals[i].series = FT_NO_SERIES
            self._totals[i].scale = 1
            self._totals[i].bits = 64

    def __dealloc__(self):
        # what is stuck is kept alive by Calls
        free(self._observers)
        free(self._total_of)
        free(self._totals)
        free(self._sums)
        free(self._contributed)

    def bind(self, int index, uint32_t series, uint32_t scale, uint8_t bits, int total=-1):
        """Fold number ``index`` into ``series`` (a slot): a count is worth ``scale``; it is ``bits`` wide."""
        self._check(index)
        if not -1 <= total < self.totals:
            raise IndexError(f"no total {total}")
        self._observers[index].series = series
        self._observers[index].scale = scale
        self._observers[index].bits = bits
        self._total_of[index] = total

    def bind_total(self, int total, uint32_t series):
        """Fold the sum of the numbers that have this ``total`` into ``series``."""
        if not 0 <= total < self.totals:
            raise IndexError(f"no total {total}")
        self._totals[total].series = series

    cdef _check(self, int index):
        if not 0 <= index < self.count:
            raise IndexError(f"no number {index}")

    cdef _go_on(self, Counters before, tuple keys, tuple keys_before):
        cdef int i, j
        known = {key: index for index, key in enumerate(keys_before)}
        for i in range(self.count):
            j = known.get(keys[i], -1)
            if j >= 0 and before._observers[j].series == self._observers[i].series:
                self._observers[i].last = before._observers[j].last
                self._observers[i].time_ns = before._observers[j].time_ns
        for i in range(min(self.totals, before.totals)):
            if self._totals[i].series == before._totals[i].series:
                self._totals[i].last = before._totals[i].last
                self._totals[i].time_ns = before._totals[i].time_ns
                self._sums[i] = before._sums[i]

    cdef void _observe(self, ft_ring *ring, int index, uint64_t raw, uint64_t now_ns) noexcept nogil:
        cdef ft_observer *observer = &self._observers[index]
        cdef bint fresh = observer.time_ns == 0
        cdef int total = self._total_of[index]
        cdef int64_t before
        if observer.series == FT_NO_SERIES:
            ft_ring_observe(ring, observer, raw, now_ns)
            return
        if total < 0:
            ft_ring_observe(ring, observer, raw, now_ns)
        elif fresh:
            before = ring.series[observer.series].value.integer
            ft_ring_observe(ring, observer, raw, now_ns)
            # What a number that comes later has counted so far would be a burst that never was.
            if self._totals[total].time_ns == 0:
                self._sums[total] += <uint64_t>(ring.series[observer.series].value.integer - before)
            self._contributed[total] = 1
        else:
            before = ring.series[observer.series].row_delta.integer
            ft_ring_observe(ring, observer, raw, now_ns)
            self._sums[total] += <uint64_t>(ring.series[observer.series].row_delta.integer - before)
            self._contributed[total] = 1

    cdef void _observe_totals(self, ft_ring *ring, uint64_t now_ns) noexcept nogil:
        cdef int i
        for i in range(self.totals):
            if self._contributed[i]:
                self._contributed[i] = 0
                ft_ring_observe(ring, &self._totals[i], self._sums[i], now_ns)


cdef class Fields(Counters):
    """Field values of one GPU, in one call of nvmlDeviceGetFieldValues.

    ``function`` and ``device`` are addresses; ``fields`` are (field id, scope id). Nothing is allocated later.
    """

    cdef ft_fields_call _self
    cdef readonly tuple fields

    def __cinit__(self, uintptr_t function, uintptr_t device, fields, int totals=0):
        cdef int i
        _alive["fields"] += 1
        self.fields = tuple(fields)
        if not function:
            raise ValueError("Fields needs nvmlDeviceGetFieldValues")
        self._make(len(self.fields), totals)
        self._self.count = self.count
        self._self.fields = <ft_nvml_field *>calloc(self.count, sizeof(ft_nvml_field))
        if self._self.fields == NULL:
            raise MemoryError
        for i in range(self.count):
            self._self.fields[i].id, self._self.fields[i].scope = self.fields[i]
            self._self.fields[i].status = FT_NVML_UNKNOWN
        self._self.get = <_get_fields>function
        self._self.device = <void *>device
        self._self.call.run = ft_fields_run
        self._call = &self._self.call

    def __dealloc__(self):
        free(self._self.fields)
        _alive["fields"] -= 1

    def take_over(self, Fields before):
        """Go on where the call ``before`` was, series by series, so that nothing is counted twice or lost."""
        self._go_on(before, self.fields, before.fields)

    def fold(self, Ring ring, uint64_t now_ns):
        """Fold what the last round was answered. Returns how many fields have no number; all without an answer.

        ``now_ns`` stands for the time of fields that have none, or one that cannot be. A sum is brought forward where one of its fields has a number.
        """
        cdef ft_ring *view = &ring.view
        cdef int failed
        if ft_call_state(&self._self.call) != FT_CALL_DONE or self._self.status != FT_NVML_SUCCESS:
            return self.count
        with nogil:
            failed = self._fold(view, now_ns)
        return failed

    cdef int _fold(self, ft_ring *view, uint64_t now_ns) noexcept nogil:
        cdef int i, good, failed = 0
        cdef uint64_t raw, when_ns = now_ns
        for i in range(self.count):
            if self._self.fields[i].status == FT_NVML_SUCCESS:
                raw = ft_nvml_count(&self._self.fields[i], &good)
                if good:
                    when_ns = ft_nvml_time(&self._self.fields[i], now_ns)
                    self._observe(view, i, raw, when_ns)
                    continue
            failed += 1
        self._observe_totals(view, when_ns)
        return failed

    @property
    def status(self):
        """nvmlReturn_t of the last call as a whole."""
        return self._self.status

    def results(self):
        """(nvmlReturn_t, number) of each field, as the last call was answered; see ``answered``."""
        cdef int i, good
        cdef uint64_t raw
        cdef list found = []
        for i in range(self.count):
            raw = ft_nvml_count(&self._self.fields[i], &good)
            status = self._self.fields[i].status
            found.append((status if status or good else BAD_NUMBER, raw))
        return found


cdef class Gpm(Counters):
    """A GPM sample of one GPU, or of one of its GPU instances, and metrics from the two latest.

    ``sample``, ``mig_sample``, ``get`` and ``device`` are addresses, ``samples`` those of two samples that
    nvmlGpmSampleAlloc gave and that stay the caller's; ``instance`` is None for the whole GPU. The caller sees
    to it that samples are more than 100 ms apart.
    """

    cdef ft_gpm_call _self
    cdef double *_gauges
    cdef readonly tuple metrics

    def __cinit__(
        self, uintptr_t sample, uintptr_t mig_sample, uintptr_t get, uintptr_t device, instance, samples, metrics,
        int totals=0,
    ):
        cdef int i
        _alive["gpm"] += 1
        self.metrics = tuple(metrics)
        if not sample or not get or len(self.metrics) > FT_GPM_METRICS:
            raise ValueError(f"Gpm needs functions and at most {FT_GPM_METRICS} metrics")
        if instance is not None and not mig_sample:
            raise ValueError("Gpm of a GPU instance needs nvmlGpmMigSampleGet")
        self._make(len(self.metrics), totals)
        self._self.metrics = <ft_gpm_get *>calloc(1, sizeof(ft_gpm_get))
        self._gauges = <double *>calloc(self.count, sizeof(double))
        if self._self.metrics == NULL or self._gauges == NULL:
            raise MemoryError
        self._self.metrics.version = 1
        self._self.metrics.count = self.count
        for i in range(self.count):
            self._self.metrics.metrics[i].id = self.metrics[i]
            self._self.metrics.metrics[i].status = FT_NVML_UNKNOWN
        self._self.sample = <_gpm_sample><void *>sample
        self._self.mig_sample = <_gpm_mig_sample><void *>mig_sample
        self._self.get = <_gpm_get><void *>get
        self._self.device = <void *>device
        self._self.instance = -1 if instance is None else instance
        self._self.samples[0] = <void *><uintptr_t>samples[0]
        self._self.samples[1] = <void *><uintptr_t>samples[1]
        self._self.call.run = ft_gpm_run
        self._call = &self._self.call

    def __dealloc__(self):
        free(self._self.metrics)
        free(self._gauges)
        _alive["gpm"] -= 1

    def bind_gauge(self, int index, uint32_t series, double scale):
        """Set ``series`` (a slot) to ``scale`` times number ``index``."""
        self._check(index)
        self._observers[index].series = series
        self._gauges[index] = scale

    def take_over(self, Gpm before):
        """Go on where the call ``before`` was, of the same GPU and with the same samples."""
        self._go_on(before, self.metrics, before.metrics)
        if self._self.samples[0] == before._self.samples[0] and self._self.samples[1] == before._self.samples[1]:
            self._self.latest = before._self.latest
            self._self.sampled = before._self.sampled

    @property
    def compared(self):
        """Whether the last call had two samples to compare."""
        return self._self.sampled > 1

    @property
    def status(self):
        """nvmlReturn_t of the last sample or comparison."""
        return self._self.status

    def fold(self, Ring ring, uint64_t now_ns):
        """Fold what the last round was answered. Returns how many metrics have no number; all without an answer.

        After the first of two samples there is nothing to fold, and 0 is returned.
        """
        cdef ft_ring *view = &ring.view
        cdef int failed
        if ft_call_state(&self._self.call) != FT_CALL_DONE or self._self.status != FT_NVML_SUCCESS:
            return self.count
        if self._self.sampled < 2:
            return 0
        with nogil:
            failed = self._fold(view, now_ns)
        return failed

    cdef int _fold(self, ft_ring *view, uint64_t now_ns) noexcept nogil:
        cdef int i, failed = 0
        cdef ft_gpm_metric *metric
        for i in range(self.count):
            metric = &self._self.metrics.metrics[i]
            # NaN is no number either; a counter that does not fit in a double's 53 bits is not exact
            if metric.status != FT_NVML_SUCCESS or not 0 <= metric.value < <double>INT64_MAX:
                failed += 1
            elif self._gauges[i]:
                ft_ring_set(view, self._observers[i].series, metric.value * self._gauges[i], now_ns)
            else:
                self._observe(view, i, <uint64_t>metric.value, now_ns)
        self._observe_totals(view, now_ns)
        return failed

    def results(self):
        """(nvmlReturn_t, number) of each metric, as the last call was answered; see ``compared``."""
        cdef int i
        cdef double value
        cdef list found = []
        for i in range(self.count):
            value = self._self.metrics.metrics[i].value
            status = self._self.metrics.metrics[i].status
            found.append((status if status or value >= 0 else BAD_NUMBER, value))
        return found
