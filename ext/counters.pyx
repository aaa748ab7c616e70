# cython: language_level=3, boundscheck=False, wraparound=False
"""Counter files kept open and read in one pass without the GIL.

sysfs makes a file's content anew for every read from offset 0 (fs/kernfs/file.c), so a descriptor
opened once is read again and again with pread; a file whose device has gone answers ENODEV.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EINTR, errno
from libc.stdint cimport UINT64_MAX, uint64_t
from posix.types cimport off_t
from posix.unistd cimport close as c_close

import os

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)


#: Status of a slot: the value is good. Positive statuses are errno values.
OK = 0
#: The content is not an unsigned decimal number, as in "N/A (no PMA)".
NOT_A_NUMBER = -1
#: The number does not fit in 64 bits.
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

cdef struct Slot:
    int fd
    int status
    bint enabled
    uint64_t value


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


cdef void _read_all(Slot *slots, Py_ssize_t count) noexcept nogil:
    cdef char buffer[_BUFFER]
    cdef Py_ssize_t i
    cdef ssize_t length
    cdef int tries
    for i in range(count):
        if slots[i].fd < 0 or not slots[i].enabled:
            continue
        length = -1
        for tries in range(_TRIES):
            length = pread(slots[i].fd, buffer, _BUFFER, 0)
            if length >= 0 or errno != EINTR:
                break
        if length < 0:
            slots[i].status = errno
        else:
            slots[i].status = _parse(buffer, length, &slots[i].value)


cdef class CounterFiles:
    """Open counter files, each in a numbered slot that stays its own until it is removed.

    Memory grows with the most slots ever held at once. One thread at a time: while ``read`` runs in
    one thread, every other method that changes the set raises RuntimeError.
    """

    cdef Slot *_slots
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _end
    cdef Py_ssize_t _open
    cdef bint _reading
    cdef list _free

    def __cinit__(self):
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

    def __len__(self):
        return self._open

    def add(self, path):
        """Open ``path`` and return its slot. Raises OSError where it cannot be opened."""
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
        self._slots[slot].value = 0
        self._open += 1
        return slot

    def remove(self, Py_ssize_t slot):
        """Close a slot, whose number may then be given out again. Raises IndexError."""
        self._check_idle()
        self._check(slot)
        c_close(self._slots[slot].fd)
        self._slots[slot].fd = -1
        self._slots[slot].status = _NOT_READ
        self._open -= 1
        self._free.append(slot)

    def enable(self, Py_ssize_t slot, bint enabled):
        """Say whether ``read`` reads the slot; a disabled slot's status is NOT_READ. Raises IndexError."""
        self._check_idle()
        self._check(slot)
        if self._slots[slot].enabled != enabled:
            self._slots[slot].enabled = enabled
            self._slots[slot].status = _NOT_READ

    def read(self):
        """Read every enabled slot once, without the GIL."""
        self._check_idle()
        self._reading = True
        with nogil:
            _read_all(self._slots, self._end)
        self._reading = False

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
