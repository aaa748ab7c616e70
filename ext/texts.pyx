# cython: language_level=3, boundscheck=False, wraparound=False
"""Small files kept open, of which one asks again and again whether they still say the same."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EINTR, errno
from libc.string cimport memcmp, memcpy
from posix.types cimport off_t
from posix.unistd cimport close as c_close

import os

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void *buffer, size_t count, off_t offset)

cdef enum:
    # the kernel's show functions write at most a page; nothing read here is longer than a line
    _LENGTH = 256
    _TRIES = 8
    # no errno, no length
    _NOT_READ = -1

#: Bytes of a file that are read.
LENGTH = _LENGTH

cdef struct Text:
    int fd
    # 0: good; an errno value; _NOT_READ
    int status
    int length
    bint changed
    char content[_LENGTH]


cdef void _read_text(Text *text) noexcept nogil:
    cdef char buffer[_LENGTH]
    cdef ssize_t length = -1
    cdef int tries, status
    for tries in range(_TRIES):
        length = pread(text.fd, buffer, _LENGTH, 0)
        if length >= 0 or errno != EINTR:
            break
    status = errno if length < 0 else 0
    if status == text.status and (status or (length == text.length and not memcmp(buffer, text.content, length))):
        return
    text.changed = True
    text.status = status
    text.length = 0 if status else <int>length
    memcpy(text.content, buffer, text.length)


cdef class TextFiles:
    """Open text files, each in a numbered slot that stays its own until it is removed.

    ``read`` reads all of them without the GIL and says which have changed. Of one thread at a time.
    """

    cdef Text *_texts
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _end
    cdef list _free

    def __cinit__(self):
        self._texts = NULL
        self._capacity = 0
        self._end = 0
        self._free = []

    def __dealloc__(self):
        if self._texts != NULL:
            self._close_all()
            PyMem_Free(self._texts)
            self._texts = NULL

    def __len__(self):
        return self._end - len(self._free)

    def add(self, path):
        """Open ``path`` and return its slot. Raises OSError where it cannot be opened."""
        cdef Py_ssize_t slot
        # O_NONBLOCK: what only looks like a file of sysfs, a FIFO say, must not hold the reader
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
        self._texts[slot].fd = fd
        self._texts[slot].status = _NOT_READ
        self._texts[slot].length = 0
        self._texts[slot].changed = False
        return slot

    def remove(self, Py_ssize_t slot):
        """Close a slot, whose number may then be given out again. Raises IndexError."""
        self._check(slot)
        c_close(self._texts[slot].fd)
        self._texts[slot].fd = -1
        self._free.append(slot)

    def read(self):
        """Read every file once. Returns the slots that say something else than at the last time."""
        cdef Py_ssize_t i
        cdef bint changed = False
        with nogil:
            for i in range(self._end):
                if self._texts[i].fd >= 0:
                    self._texts[i].changed = False
                    _read_text(&self._texts[i])
                    changed = changed or self._texts[i].changed
        if not changed:
            return []
        return [i for i in range(self._end) if self._texts[i].fd >= 0 and self._texts[i].changed]

    def content(self, Py_ssize_t slot):
        """What the last ``read`` found; reads the file where there was none. Raises IndexError, OSError."""
        self._check(slot)
        cdef Text *text = &self._texts[slot]
        if text.status == _NOT_READ:
            _read_text(text)
            text.changed = False
        if text.status:
            raise OSError(text.status, os.strerror(text.status))
        return PyBytes_FromStringAndSize(text.content, text.length)

    def close(self):
        """Close every slot. The object can be used again."""
        self._close_all()
        self._free.clear()

    cdef _check(self, Py_ssize_t slot):
        if slot < 0 or slot >= self._end or self._texts[slot].fd < 0:
            raise IndexError(f"no text file in slot {slot}")

    cdef _grow(self):
        cdef Py_ssize_t capacity = self._capacity * 2 if self._capacity else 32
        cdef Text *texts = <Text *>PyMem_Realloc(self._texts, capacity * sizeof(Text))
        if texts == NULL:
            raise MemoryError
        self._texts = texts
        self._capacity = capacity

    cdef void _close_all(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self._end):
            if self._texts[i].fd >= 0:
                c_close(self._texts[i].fd)
        self._end = 0
