# cython: language_level=3, boundscheck=False, wraparound=False
"""Whether directories and small files are still as they were, without making a Python object of them."""

from libc.errno cimport ENODEV, ENOENT, ENOTDIR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, O_RDONLY, open as c_open
from posix.unistd cimport close as c_close, read as c_read

import os

cdef extern from "<sys/stat.h>" nogil:
    struct c_stat "stat":
        uint64_t st_dev
        uint64_t st_ino
    int stat_of "stat" (const char *path, c_stat *found)

cdef extern from "<dirent.h>" nogil:
    ctypedef struct DIR:
        pass
    struct dirent:
        char d_name[256]
    DIR *opendir(const char *path)
    dirent *readdir(DIR *directory)
    int closedir(DIR *directory)

cdef enum:
    _TEXT = 256
    _IDENTITY = 0
    _DIRECTORY = 1
    _CONTENT = 2

cdef struct Trace:
    char *path
    int kind
    uint64_t digest


cdef uint64_t _hash(uint64_t seed, const char *data, size_t size) noexcept nogil:
    """FNV-1a."""
    cdef uint64_t found = seed ^ <uint64_t>0xCBF29CE484222325
    cdef size_t i
    for i in range(size):
        found = (found ^ <unsigned char>data[i]) * <uint64_t>0x100000001B3
    return found


cdef uint64_t _failed() noexcept nogil:
    """What is absent is the same, whichever way it is."""
    cdef int error = errno
    if error == ENOTDIR or error == ENODEV:
        error = ENOENT
    return <uint64_t>error


cdef uint64_t _look(const Trace *trace, size_t most) noexcept nogil:
    cdef c_stat status
    cdef char content[_TEXT]
    cdef DIR *directory
    cdef dirent *entry
    cdef uint64_t digest = 1
    cdef size_t names = 0, length
    cdef ssize_t size
    cdef int fd
    if trace.kind == _IDENTITY:
        if stat_of(trace.path, &status) < 0:
            return _failed()
        return _hash(_hash(0, <char *>&status.st_dev, 8), <char *>&status.st_ino, 8)
    if trace.kind == _CONTENT:
        fd = c_open(trace.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        if fd < 0:
            return _failed()
        size = c_read(fd, content, _TEXT)
        digest = _failed() if size < 0 else _hash(<uint64_t>size, content, <size_t>size)
        c_close(fd)
        return digest
    directory = opendir(trace.path)
    if directory == NULL:
        return _failed()
    while names <= most:
        entry = readdir(directory)
        if entry == NULL:
            break
        length = 0
        while entry.d_name[length]:
            length += 1
        # A sum: the order of the names says nothing.
        digest += _hash(0, entry.d_name, length)
        names += 1
    closedir(directory)
    return digest


cdef class Traces:
    """Directories and files with what they were when they were added: a digest, for all or nothing.

    Add a path before it is read: what changes in between is then found to have changed. Two states have the
    same digest once in 2^64. ``most``: names of a directory that are looked at.
    """

    cdef Trace *_traces
    cdef size_t _count
    cdef size_t _capacity
    cdef size_t _most

    def __cinit__(self, size_t most=4096):
        self._traces = NULL
        self._count = self._capacity = 0
        self._most = most

    def __dealloc__(self):
        cdef size_t i
        for i in range(self._count):
            free(self._traces[i].path)
        free(self._traces)

    def __len__(self):
        return self._count

    def identity(self, path):
        """That ``path`` is the same device and inode."""
        self._add(path, _IDENTITY)

    def directory(self, path):
        """That the directory has the same names."""
        self._add(path, _DIRECTORY)

    def content(self, path):
        """That the small file says the same."""
        self._add(path, _CONTENT)

    def still_hold(self):
        """Whether all is as it was."""
        cdef size_t i
        cdef bint same = True
        with nogil:
            for i in range(self._count):
                if _look(&self._traces[i], self._most) != self._traces[i].digest:
                    same = False
                    break
        return same

    cdef _add(self, path, int kind):
        cdef bytes name = os.fsencode(path)
        cdef size_t capacity = self._capacity
        cdef Trace *traces
        cdef char *copied
        if self._count == capacity:
            capacity = max(2 * capacity, <size_t>16)
            traces = <Trace *>realloc(self._traces, capacity * sizeof(Trace))
            if traces == NULL:
                raise MemoryError
            self._traces, self._capacity = traces, capacity
        copied = <char *>malloc(len(name) + 1)
        if copied == NULL:
            raise MemoryError
        memcpy(copied, <const char *>name, len(name) + 1)
        cdef Trace *trace = &self._traces[self._count]
        trace.path, trace.kind = copied, kind
        self._count += 1
        with nogil:
            trace.digest = _look(trace, self._most)
