# cython: language_level=3, boundscheck=False, wraparound=False
"""The fast reads of NVIDIA GPUs: calls into libnvidia-ml.so.1 and the folding of what they say, without the GIL.

:class:`Fields` and :class:`Gpm` are calls that :class:`fabrictap.ext.calls.Calls` makes, each of one GPU. Each
time one has returned it adds up, in memory of its own, what its counters did (ext/tally.h); ``fold`` then
writes into the ring what has come together since the last fold.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from fabrictap.ext.calls cimport (
    FT_CALL_STUCK,
    Call,
    ft_call,
    ft_call_lock,
    ft_call_state,
    ft_call_unlock,
)
from fabrictap.ext.ring cimport FT_NO_SERIES, Ring, ft_ring, ft_ring_set

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

    cdef struct ft_answer:
        int32_t status
        uint64_t count
        double real

    cdef enum:
        FT_TALLY_KINDS

    cdef struct ft_tally_kind:
        uint32_t scale
        uint8_t bits
        uint8_t total

    cdef struct ft_tally_rest:
        uint64_t base
        uint64_t time_ns
        uint32_t series
        uint32_t flags

    cdef struct ft_tally_event:
        uint64_t first

    cdef struct ft_tallies:
        const char *hot
        const char *hot_end
        uint64_t *last
        float *peaks
        uint8_t *kinds
        uint64_t *sums
        int count
        int totals
        int made
        int failed
        int gained
        uint64_t time_ns
        uint64_t from_ns
        unsigned int kinds_used
        ft_tally_kind *kind
        ft_tally_rest *rest
        ft_tally_event *events
        uint8_t *added

    cdef struct ft_fields_call:
        ft_call call
        int (*get)(void *device, int count, ft_nvml_field *fields)
        void *device
        ft_nvml_field *fields
        int status
        int tell
        ft_answer *answers
        ft_tallies of

    cdef struct ft_gpm_call:
        ft_call call
        int (*sample)(void *device, void *sample)
        int (*mig_sample)(void *device, unsigned int instance, void *sample)
        int (*get)(ft_gpm_get *metrics)
        void *device
        int64_t instance
        void *samples[2]
        ft_gpm_get *metrics
        double *scales
        double *gauges
        uint64_t time_ns
        unsigned int latest
        int sampled
        int status
        int tell
        ft_answer *answers
        ft_tallies of

    void ft_fields_run(ft_call *call) noexcept
    void ft_gpm_run(ft_call *call) noexcept
    int ft_fields_took(ft_call *call, uint64_t now_ns) noexcept
    int ft_gpm_took(ft_call *call, uint64_t now_ns) noexcept
    void ft_tallies_part(ft_tallies *of)
    void ft_tallies_fold(ft_tallies *of, ft_ring *ring)

ctypedef int (*_get_fields)(void *device, int count, ft_nvml_field *fields) noexcept
ctypedef int (*_gpm_sample)(void *device, void *sample) noexcept
ctypedef int (*_gpm_mig_sample)(void *device, unsigned int instance, void *sample) noexcept
ctypedef int (*_gpm_get)(ft_gpm_get *metrics) noexcept

#: What statuses say of a number that cannot be one: NVML_ERROR_UNKNOWN.
BAD_NUMBER = FT_NVML_UNKNOWN
#: What ``fold`` returns where the call has not returned since the last fold, or hangs.
NO_ANSWER = -1

_alive = {"fields": 0, "gpm": 0}


def alive():
    """Native objects that have been made and not freed, by kind. For tests of leaks."""
    return dict(_alive)


cdef class Counters(Call):
    """A call whose numbers are folded into the ring. Not to be made itself.

    Each number may be bound to a series, and may add to one of ``totals`` sums.
    """

    cdef ft_tallies *_of
    cdef ft_answer *_answers
    cdef int *_tell
    cdef char *_hot

    @property
    def count(self):
        """How many numbers it asks for."""
        return self._of.count

    @property
    def totals(self):
        return self._of.totals

    cdef _make(self, ft_call *call, ft_tallies *of, int *tell, int count, int totals):
        cdef int i, rows = count + totals
        if count < 1 or not 0 <= totals < 255:
            raise ValueError("a call asks for at least one number and has no negative number of totals")
        self._call = call
        self._of = of
        self._tell = tell
        of.count = count
        of.totals = totals
        # What each read touches of the numbers lies together: fewer pages, fewer misses.
        cdef size_t tables = (rows * 13 + (totals + 1) * 8 + 7) // 8 * 8
        self._hot = <char *>calloc(1, tables + FT_TALLY_KINDS * sizeof(ft_tally_kind))
        of.rest = <ft_tally_rest *>calloc(rows, sizeof(ft_tally_rest))
        of.events = <ft_tally_event *>calloc(rows, sizeof(ft_tally_event))
        of.added = <uint8_t *>calloc(totals + 1, sizeof(uint8_t))
        self._answers = <ft_answer *>calloc(count, sizeof(ft_answer))
        if (
            self._hot == NULL or of.rest == NULL or of.events == NULL or of.added == NULL
            or self._answers == NULL
        ):
            raise MemoryError
        of.sums = <uint64_t *>self._hot
        of.last = of.sums + totals + 1
        of.peaks = <float *>(of.last + rows)
        of.kinds = <uint8_t *>(of.peaks + rows)
        of.kind = <ft_tally_kind *>(self._hot + tables)
        of.hot = self._hot
        of.hot_end = <const char *>(of.kind + 4)  # more are seldom used
        self._kind(1, 64, totals)  # the first: also that of totals
        for i in range(rows):
            of.rest[i].series = FT_NO_SERIES
        for i in range(count):
            self._answers[i].status = FT_NVML_UNKNOWN

    def __dealloc__(self):
        # what is stuck is kept alive by Calls
        if self._of != NULL:
            free(self._hot)
            free(self._of.rest)
            free(self._of.events)
            free(self._of.added)
            free(self._answers)

    @property
    def tell(self):
        """Whether ``results`` is there after every answer; else only where a number had none."""
        return bool(self._tell[0])

    @tell.setter
    def tell(self, bint on):
        self._tell[0] = on

    @property
    def every(self):
        """Seconds between two calls at least, where ``Calls`` keeps making it; 0: at each of its times."""
        return self._call.every_ns / 1e9

    @every.setter
    def every(self, double seconds):
        self._call.every_ns = <uint64_t>(seconds * 1e9)

    def resume(self):
        """Let ``Calls`` keep making it after it has failed as a whole."""
        ft_call_lock(self._call)
        self._call.halted = 0
        ft_call_unlock(self._call)

    def bind(self, int index, uint32_t series, uint32_t scale, uint8_t bits, int total=-1):
        """Fold number ``index`` into ``series`` (a slot): a count is worth ``scale``; it is ``bits`` wide."""
        self._check(index)
        if not -1 <= total < self._of.totals:
            raise IndexError(f"no total {total}")
        if total < 0 or series == FT_NO_SERIES:
            total = self._of.totals
        ft_call_lock(self._call)
        try:
            self._of.kinds[index] = self._kind(scale, bits, total)
            self._bind(index, series)
        finally:
            ft_call_unlock(self._call)

    def bind_total(self, int total, uint32_t series):
        """Fold the sum of the numbers that have this ``total`` into ``series``."""
        if not 0 <= total < self._of.totals:
            raise IndexError(f"no total {total}")
        ft_call_lock(self._call)
        self._bind(self._of.count + total, series)
        ft_call_unlock(self._call)

    cdef uint8_t _kind(self, uint32_t scale, uint8_t bits, int total) except? 255:
        """Numbers of this scale and width that add to this total, among the kinds that there are."""
        cdef ft_tally_kind *kind
        cdef unsigned int i
        self._of.from_ns = 0  # so that the rates of all kinds are worked out anew
        for i in range(self._of.kinds_used):
            kind = &self._of.kind[i]
            if kind.scale == scale and kind.bits == bits and kind.total == total:
                return i
        if self._of.kinds_used == FT_TALLY_KINDS:
            raise ValueError(f"numbers of more than {FT_TALLY_KINDS} kinds in one call")
        i = self._of.kinds_used
        self._of.kind[i].scale = scale
        self._of.kind[i].bits = bits
        self._of.kind[i].total = total
        self._of.kinds_used += 1
        return i

    cdef void _bind(self, int row, uint32_t series) noexcept:
        if self._of.rest[row].series != series:
            # what came together for another series is not this one's
            self._of.rest[row].base = self._of.last[row]
            self._of.rest[row].flags = 0
            self._of.rest[row].series = series
            self._of.peaks[row] = 0

    cpdef int fold(self, Ring ring) except? -2:
        """See the classes."""
        raise NotImplementedError

    cdef _check(self, int index):
        if not 0 <= index < self._of.count:
            raise IndexError(f"no number {index}")

    cdef _go_on(self, Counters before, tuple keys, tuple keys_before):
        cdef int i, j
        known = {key: index for index, key in enumerate(keys_before)}
        ft_call_lock(before._call)
        ft_tallies_part(before._of)
        for i in range(self._of.count):
            j = known.get(keys[i], -1)
            if j >= 0:
                self._move(i, before, j)
        for i in range(min(self._of.totals, before._of.totals)):
            if self._move(self._of.count + i, before, before._of.count + i):
                self._of.sums[i] = before._of.sums[i]
        self._of.gained = before._of.gained
        ft_call_unlock(before._call)

    cdef bint _move(self, int row, Counters before, int row_before) noexcept:
        """What a number remembers and what came together for it; it is folded here from now on."""
        if self._of.rest[row].series != before._of.rest[row_before].series:
            return False
        self._of.rest[row] = before._of.rest[row_before]
        self._of.events[row] = before._of.events[row_before]
        self._of.last[row] = before._of.last[row_before]
        self._of.peaks[row] = before._of.peaks[row_before]
        before._of.rest[row_before].series = FT_NO_SERIES
        return True


def fold(calls, Ring ring):
    """``Counters.fold`` of each. Returns those where it did not return 0, with what it returned."""
    cdef Counters call
    cdef int failed
    cdef list found = []
    for call in calls:
        failed = call.fold(ring)
        if failed:
            found.append((call, failed))
    return found


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
        self._make(&self._self.call, &self._self.of, &self._self.tell, len(self.fields), totals)
        self._self.answers = self._answers
        self._self.fields = <ft_nvml_field *>calloc(self._of.count, sizeof(ft_nvml_field))
        if self._self.fields == NULL:
            raise MemoryError
        for i in range(self._of.count):
            self._self.fields[i].id, self._self.fields[i].scope = self.fields[i]
            self._self.fields[i].status = FT_NVML_UNKNOWN
        self._self.get = <_get_fields>function
        self._self.device = <void *>device
        self._self.call.run = ft_fields_run
        self._self.call.took = ft_fields_took

    def __dealloc__(self):
        free(self._self.fields)
        _alive["fields"] -= 1

    def take_over(self, Fields before):
        """Go on where the call ``before`` was, series by series, so that nothing is counted twice or lost."""
        self._go_on(before, self.fields, before.fields)

    cpdef int fold(self, Ring ring) except? -2:
        """Fold what has come together. Returns how many fields had no number at last, all where the call failed
        as a whole; NO_ANSWER where it has not returned since the last fold, or hangs.

        The time of a field is its own; that of the call stands for one that has none, or one that cannot be.
        A sum is brought forward where one of its fields has a number.
        """
        cdef ft_tallies *of = self._of
        cdef int failed = -1
        ft_call_lock(self._call)
        if of.made and ft_call_state(self._call) != FT_CALL_STUCK:
            failed = of.failed
        ft_tallies_fold(of, &ring.view)
        ft_call_unlock(self._call)
        return failed

    @property
    def status(self):
        """nvmlReturn_t of the last call as a whole."""
        return self._self.status

    def results(self):
        """(nvmlReturn_t, number) of each field as it was answered last; see ``tell``."""
        cdef int i
        cdef list found = []
        ft_call_lock(self._call)
        for i in range(self._of.count):
            found.append((self._answers[i].status, self._answers[i].count))
        ft_call_unlock(self._call)
        return found


cdef class Gpm(Counters):
    """A GPM sample of one GPU, or of one of its GPU instances, and metrics from the two latest.

    ``sample``, ``mig_sample``, ``get`` and ``device`` are addresses, ``samples`` those of two samples that
    nvmlGpmSampleAlloc gave and that stay the caller's; ``instance`` is None for the whole GPU. The caller sees
    to it that samples are more than 100 ms apart.
    """

    cdef ft_gpm_call _self
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
        self._make(&self._self.call, &self._self.of, &self._self.tell, len(self.metrics), totals)
        self._self.answers = self._answers
        self._self.metrics = <ft_gpm_get *>calloc(1, sizeof(ft_gpm_get))
        self._self.scales = <double *>calloc(self._of.count, sizeof(double))
        self._self.gauges = <double *>calloc(self._of.count, sizeof(double))
        if self._self.metrics == NULL or self._self.scales == NULL or self._self.gauges == NULL:
            raise MemoryError
        self._self.metrics.version = 1
        self._self.metrics.count = self._of.count
        for i in range(self._of.count):
            self._self.metrics.metrics[i].id = self.metrics[i]
            self._self.metrics.metrics[i].status = FT_NVML_UNKNOWN
            self._self.gauges[i] = -1
        self._self.sample = <_gpm_sample><void *>sample
        self._self.mig_sample = <_gpm_mig_sample><void *>mig_sample
        self._self.get = <_gpm_get><void *>get
        self._self.device = <void *>device
        self._self.instance = -1 if instance is None else instance
        self._self.samples[0] = <void *><uintptr_t>samples[0]
        self._self.samples[1] = <void *><uintptr_t>samples[1]
        self._self.call.run = ft_gpm_run
        self._self.call.took = ft_gpm_took

    def __dealloc__(self):
        free(self._self.metrics)
        free(self._self.scales)
        free(self._self.gauges)
        _alive["gpm"] -= 1

    def bind_gauge(self, int index, uint32_t series, double scale):
        """Set ``series`` (a slot) to ``scale`` times number ``index``."""
        self._check(index)
        ft_call_lock(self._call)
        self._of.rest[index].series = series
        self._self.scales[index] = scale
        ft_call_unlock(self._call)

    def take_over(self, Gpm before):
        """Go on where the call ``before`` was, of the same GPU and with the same samples. It is not being made."""
        self._go_on(before, self.metrics, before.metrics)
        self._call.due_ns = before._call.due_ns
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

    cpdef int fold(self, Ring ring) except? -2:
        """Fold what has come together; returns what ``Fields.fold`` does.

        After the first of two samples there is nothing to fold, and 0 is returned.
        """
        cdef ft_tallies *of = self._of
        cdef int i, failed = -1
        ft_call_lock(self._call)
        if of.made and ft_call_state(self._call) != FT_CALL_STUCK:
            failed = of.failed
        ft_tallies_fold(of, &ring.view)
        for i in range(of.count):
            if self._self.scales[i] != 0 and self._self.gauges[i] >= 0:
                ft_ring_set(&ring.view, of.rest[i].series, self._self.gauges[i], self._self.time_ns)
                self._self.gauges[i] = -1
        ft_call_unlock(self._call)
        return failed

    def results(self):
        """(nvmlReturn_t, number) of each metric as it was answered last; see ``tell`` and ``compared``."""
        cdef int i
        cdef double value
        cdef list found = []
        ft_call_lock(self._call)
        for i in range(self._of.count):
            value = self._answers[i].real
            status = self._answers[i].status
            found.append((status if status or value >= 0 else BAD_NUMBER, value))
        ft_call_unlock(self._call)
        return found
