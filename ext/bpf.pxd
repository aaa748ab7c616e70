"""libbpf for the agent: what other modules use of it without the GIL."""

from libc.stdint cimport uint32_t

cimport libbpf

# Gets a batch of entries as they lie in memory. Not called again after it has returned anything but 0.
ctypedef int (*batch_fn)(void *context, const char *keys, const char *values, uint32_t count) noexcept nogil


cdef class Object:
    cdef libbpf.bpf_object *_object
    cdef readonly str path
    cdef readonly bint loaded
    cdef bint _uprobe_multi

    cdef libbpf.bpf_program *_program(self, str name) except NULL
    cdef libbpf.bpf_map *_map(self, str name) except NULL


cdef class Map:
    cdef Object _object
    cdef int _fd
    cdef readonly size_t key_size
    # Bytes of one entry's value, all CPUs together.
    cdef readonly size_t value_size
    # How many CPUs' values one entry holds: 1 if the map is not per-CPU.
    cdef readonly int cpus
    cdef readonly uint32_t max_entries
    # Kept for the next reading: as many entries as one batch has at most.
    cdef char *_keys
    cdef char *_values
    cdef uint32_t _chunk

    cdef int _make_room(self, uint32_t chunk) except -1
    cdef int each_batch(self, batch_fn take, void *context) except -1
    cdef int _check(self, bytes key) except -1
