# cython: language_level=3, boundscheck=False, wraparound=False
"""Counter files kept open and read in one pass without the GIL.

sysfs makes a file's content anew for every read from offset 0 (fs/kernfs/file.c), so a descriptor
opened once is read again and again with pread; a file whose device has gone answers ENODEV.

A read costs the kernel more than everything that is done with it here, and a device's firmware more than the
kernel. So a counter that has been still for a while is read in every fifth pass, as most error counters are;
one that moves is read in every pass.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EINTR, errno
from libc.stdint cimport INT64_MAX, UINT64_MAX, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.types cimport off_t
from posix.unistd cimport close as c_close

from fabrictap.ext.ring cimport FT_NO_SERIES, Ring, Series, ft_observer, ft_ring_observe, ft_ring_peak

import os

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)

cdef extern from "semaphore.h" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *semaphore, int shared, unsigned int value)
    int sem_destroy(sem_t *semaphore)
    int sem_post(sem_t *semaphore)
    # glibc 2.30, musl 1.2.4
    int sem_clockwait(sem_t *semaphore, int clock, const timespec *until)


#: Status of a slot: the value is good. Positive statuses are errno values.
OK = 0
#: The content is not an unsigned decimal number, as in "N/A (no PMA)".
NOT_A_NUMBER = -1
#: The number does not fit in 64 bits, or what it stands for not in the 63 that OTLP carries.
OVERFLOW = -2
#: The slot is disabled, free, or has not been read since it was added or enabled.
NOT_READ = -3

cdef enum:
    _OK = 0
    _NOT_A_NUMBER = -1
    _OVERFLOW = -2
    _NOT_READ = -3
    # 20 digits are the most a u64 has; what does not fit here cannot be one
    _BUFFER = 64
    # a signal handler may interrupt pread, but must not hold this loop for ever
    _TRIES = 8
    # Passes without a change after which a counter is still, and every how many passes it is then read.
    _STILL = 15
    _TURNS = 5

cdef struct Slot:
    int fd
    int status
    bint enabled
    bint fast
    bint prompt
    # Read in the last pass.
    bint read
    # Passes in a row in which the value was the same, up to _STILL.
    uint32_t still
    # The largest rate between two readings of a rest, in units of the series a second; 0: none.
    float peak
    uint64_t value
    # When it was read, of a fast slot, by CLOCK_MONOTONIC: a rate must not follow the clock of the wall.
    uint64_t time_ns
    ft_observer observer


cdef int _parse(const char *text, ssize_t length, uint64_t *value) noexcept nogil:
    """Parse ``[space]* digit+ [space or NUL]*``. Returns a status; ``value`` is set where it is OK."""
    cdef ssize_t i = 0
    cdef uint64_t number = 0
    cdef unsigned int digit
    cdef ssize_t first
    if length >= _BUFFER:
        return _NOT_A_NUMBER
    while i < length and (text[i] == 32 or text[i] == 9):
        i += 1
    first = i
    while i < length and 48 <= text[i] <= 57:
        digit = text[i] - 48
        if number > (UINT64_MAX - digit) // 10:
            return _OVERFLOW
        number = number * 10 + digit
        i += 1
    if i == first:
        return _NOT_A_NUMBER
    while i < length:
        if not (text[i] == 0 or text[i] == 32 or 9 <= text[i] <= 13):
            return _NOT_A_NUMBER
        i += 1
    value[0] = number
    return _OK


cdef uint64_t _now_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef void _read_slot(Slot *slot) noexcept nogil:
    cdef char buffer[_BUFFER]
    cdef ssize_t length = -1
    cdef int tries
    cdef uint64_t before = slot.value
    cdef bint known = slot.status == _OK
    slot.read = True
    for tries in range(_TRIES):
        length = pread(slot.fd, buffer, _BUFFER, 0)
        if length >= 0 or errno != EINTR:
            break
    if length < 0:
        slot.status = errno
    else:
        slot.status = _parse(buffer, length, &slot.value)
        if slot.status == _OK and slot.value > <uint64_t>INT64_MAX // slot.observer.scale:
            slot.status = _OVERFLOW
    if not known or slot.status != _OK or slot.value != before:
        slot.still = 0
    elif slot.still < _STILL:
        slot.still += 1


cdef void _read_fast(Slot *slot, bint rate) noexcept nogil:
    """Read a fast slot; where ``rate``, note that at which it has moved since its last reading."""
    cdef uint64_t before = slot.value, before_ns = slot.time_ns
    cdef bint known = slot.status == _OK and before_ns != 0
    cdef float found
    _read_slot(slot)
    slot.time_ns = _now_ns(CLOCK_MONOTONIC)
    if rate and known and slot.status == _OK and slot.value > before and slot.time_ns > before_ns:
        found = <float>(<double>((slot.value - before) * slot.observer.scale) * 1e9 / <double>(slot.time_ns - before_ns))
        if found > slot.peak:
            slot.peak = found


cdef void _read_all(Slot *slots, Py_ssize_t count, bint rate, uint32_t turn) noexcept nogil:
    """``turn``: which of the still slots are read; _TURNS for all."""
    cdef Py_ssize_t i
    for i in range(count):
        slots[i].read = False
        if slots[i].fd < 0 or not slots[i].enabled:
            continue
        if slots[i].fast:
            _read_fast(&slots[i], rate)
        elif slots[i].prompt or slots[i].still < _STILL or turn == _TURNS or i % _TURNS == turn:
            _read_slot(&slots[i])


cdef void _read_some(Slot *slots, const uint32_t *fast, Py_ssize_t count, bint rate) noexcept nogil:
    """Read the fast slots, whose numbers are in ``fast``: the others are not even looked at."""
    cdef Py_ssize_t i
    for i in range(count):
        if slots[fast[i]].enabled:
            _read_fast(&slots[fast[i]], rate)


cdef void _fold_all(Slot *slots, Py_ssize_t count, bint fast, Ring ring, uint64_t now_ns) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if slots[i].fd >= 0 and slots[i].read and slots[i].status == _OK and (slots[i].fast or not fast):
            ft_ring_observe(&ring.view, &slots[i].observer, slots[i].value, now_ns)
            if slots[i].peak > 0:
                ft_ring_peak(&ring.view, slots[i].observer.series, slots[i].peak)
                slots[i].peak = 0


cdef bint _wait(sem_t *wake, uint64_t until) noexcept nogil:
    """Wait until a time of CLOCK_MONOTONIC. Whether it was woken before."""
    cdef timespec then
    then.tv_sec = until // 1000000000
    then.tv_nsec = until % 1000000000
    while sem_clockwait(wake, CLOCK_MONOTONIC, &then) < 0:
        if errno != EINTR:
            return False
    return True


cdef class CounterFiles:
    """Open counter files, each in a numbered slot that stays its own until it is removed.

    ``bind`` says which series a slot feeds; ``read`` reads the files and ``fold`` puts what was read into
    the series, both without the GIL. Slots that are bound as fast can be read and folded by themselves; or
    ``rest`` reads them between two passes, and the next ``fold`` puts the largest rate that it saw into the
    peaks of their series. Of a slot that has been still for a while every fifth ``read`` reads the file.

    Memory grows with the most slots ever held at once. One thread at a time: while ``read`` runs in
    one thread, every other method that changes the set raises RuntimeError.
    """

    cdef Slot *_slots
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _end
    cdef Py_ssize_t _open
    cdef bint _reading
    cdef list _free
    # The numbers of the fast slots, in a list that is made anew where it does not hold any more.
    cdef uint32_t *_fast
    cdef Py_ssize_t _fast_count
    cdef bint _fast_holds
    # Of the last rest: it happened, it was cut short.
    cdef bint _rested
    cdef bint _interrupted
    cdef uint32_t _turn
    cdef sem_t _wake

    def __cinit__(self):
        sem_init(&self._wake, 0, 0)
        self._fast = NULL
        self._fast_count = 0
        self._fast_holds = False
        self._rested = self._interrupted = False
        self._turn = 0
        self._slots = NULL
        self._capacity = 0
        self._end = 0
        self._open = 0
        self._reading = False
        self._free = []

    def __dealloc__(self):
        # NULL where __cinit__ did not get this far
        if self._slots != NULL:
            self._close_all()
            PyMem_Free(self._slots)
            self._slots = NULL
        PyMem_Free(self._fast)
        sem_destroy(&self._wake)

    def __len__(self):
        return self._open

    def add(self, path, uint32_t scale=1):
        """Open ``path`` and return its slot. Raises OSError where it cannot be opened.

        ``scale`` is what one count is worth in the unit of the series.
        """
        cdef Py_ssize_t slot
        self._check_idle()
        # O_NONBLOCK: what only looks like a counter, a FIFO say, must not hold the reader
        cdef int fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if self._free:
                slot = self._free.pop()
            else:
                if self._end == self._capacity:
                    self._grow()
                slot = self._end
                self._end += 1
        except BaseException:
            c_close(fd)
            raise
        self._slots[slot].fd = fd
        self._slots[slot].status = _NOT_READ
        self._slots[slot].enabled = True
        self._slots[slot].prompt = False
        self._slots[slot].fast = False
        self._slots[slot].read = False
        self._slots[slot].still = 0
        self._slots[slot].peak = 0
        self._slots[slot].value = 0
        self._slots[slot].time_ns = 0
        self._slots[slot].observer = ft_observer(FT_NO_SERIES, scale, 0, 0, 64)
        self._open += 1
        return slot

    def remove(self, Py_ssize_t slot):
        """Close a slot, whose number may then be given out again. Raises IndexError."""
        self._check_idle()
        self._check(slot)
        c_close(self._slots[slot].fd)
        self._slots[slot].fd = -1
        self._slots[slot].status = _NOT_READ
        self._fast_holds = False
        self._open -= 1
        self._free.append(slot)

    def enable(self, Py_ssize_t slot, bint enabled):
        """Say whether ``read`` reads the slot; a disabled slot's status is NOT_READ. Raises IndexError."""
        self._check_idle()
        self._check(slot)
        if self._slots[slot].enabled != enabled:
            self._slots[slot].enabled = enabled
            self._slots[slot].status = _NOT_READ
            self._slots[slot].read = False
            self._slots[slot].time_ns = 0

    def bind(self, Py_ssize_t slot, Series series, bint fast, bint prompt=False):
        """Let a slot feed ``series``, which begins with what the file says at the next fold.

        A slot that is ``prompt`` is read in every pass of all, even while it is still.

        None takes its series away. Raises IndexError.
        """
        self._check_idle()
        self._check(slot)
        self._slots[slot].observer.series = FT_NO_SERIES if series is None else series.slot
        self._slots[slot].observer.time_ns = 0
        self._slots[slot].fast = fast
        self._slots[slot].prompt = prompt
        self._slots[slot].peak = 0
        self._fast_holds = False

    def read(self, bint fast=False):
        """Read every enabled slot once, or the fast ones only, without the GIL.

        Still slots are read in turns, and all of them where a rest was cut short: it may be the last pass.
        """
        cdef bint rate = self._rested and not fast
        cdef uint32_t turn
        self._check_idle()
        if not fast:
            self._turn = (self._turn + 1) % _TURNS
        turn = _TURNS if self._interrupted else self._turn
        self._rested = False
        self._reading = True
        if fast:
            self._list_fast()
        with nogil:
            if fast:
                _read_some(self._slots, self._fast, self._fast_count, rate)
            else:
                _read_all(self._slots, self._end, rate, turn)
        self._reading = False

    def rest(self, double until, double interval):
        """Read the fast slots every ``interval`` seconds until ``until``, without the GIL.

        ``until`` is a time of CLOCK_MONOTONIC in seconds. No reading is made so late that the next pass
        comes right after it. Returns their number. ``wake`` ends it at once.
        """
        cdef uint64_t end = <uint64_t>(max(until, 0.0) * 1e9), step = <uint64_t>(interval * 1e9), due
        cdef Py_ssize_t readings = 0
        cdef bint woken = False
        if step < 1000000:
            raise ValueError(f"an interval of {interval} s")
        self._check_idle()
        self._list_fast()
        self._reading = True
        with nogil:
            while not woken and self._fast_count:
                due = _now_ns(CLOCK_MONOTONIC) + step
                if due + step // 2 >= end:
                    break
                woken = _wait(&self._wake, due)
                if not woken:
                    _read_some(self._slots, self._fast, self._fast_count, True)
                    readings += 1
            if not woken:
                woken = _wait(&self._wake, end)
        self._reading = False
        self._rested = True
        self._interrupted = woken
        return readings

    def wake(self):
        """End a ``rest`` of another thread, or the next one. May be called by any thread."""
        sem_post(&self._wake)

    def fold(self, Ring ring not None, uint64_t now_ns, bint fast=False):
        """Put what the last ``read`` found into the series, under the lock that guards ``ring``."""
        self._check_idle()
        with nogil:
            _fold_all(self._slots, self._end, fast, ring, now_ns)

    def troubles(self):
        """[(slot, status)] of the enabled slots that the last ``read`` of all could not read."""
        cdef Py_ssize_t i
        self._check_idle()
        return [
            (i, self._slots[i].status)
            for i in range(self._end)
            if self._slots[i].fd >= 0 and self._slots[i].enabled and self._slots[i].status != _OK
        ]

    def results(self):
        """What the last ``read`` found: (values, statuses), both indexed by slot.

        A value means something only where its status is OK.
        """
        cdef Py_ssize_t i
        self._check_idle()
        values = [self._slots[i].value for i in range(self._end)]
        statuses = [self._slots[i].status for i in range(self._end)]
        return values, statuses

    def close(self):
        """Close every slot. The object can be used again."""
        self._check_idle()
        self._close_all()
        self._free.clear()

    cdef _check_idle(self):
        if self._reading:
            raise RuntimeError("CounterFiles is being read by another thread")

    cdef _check(self, Py_ssize_t slot):
        if slot < 0 or slot >= self._end or self._slots[slot].fd < 0:
            raise IndexError(f"no counter file in slot {slot}")

    cdef _list_fast(self):
        cdef Py_ssize_t i
        cdef uint32_t *fast
        if self._fast_holds:
            return
        fast = <uint32_t *>PyMem_Realloc(self._fast, max(self._end, 1) * sizeof(uint32_t))
        if fast == NULL:
            raise MemoryError
        self._fast, self._fast_count = fast, 0
        for i in range(self._end):
            if self._slots[i].fd >= 0 and self._slots[i].fast:
                self._fast[self._fast_count] = <uint32_t>i
                self._fast_count += 1
        self._fast_holds = True

    cdef _grow(self):
        cdef Py_ssize_t capacity = self._capacity * 2 if self._capacity else 64
        cdef Slot *slots = <Slot *>PyMem_Realloc(self._slots, capacity * sizeof(Slot))
        if slots == NULL:
            raise MemoryError
        self._slots = slots
        self._capacity = capacity

    cdef void _close_all(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self._end):
            if self._slots[i].fd >= 0:
                c_close(self._slots[i].fd)
        self._end = 0
        self._open = 0
        self._fast_holds = False
