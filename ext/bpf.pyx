# cython: language_level=3
"""libbpf for the agent: open, configure, load and attach BPF objects; consume ring buffers; read maps.

An :class:`Object` is configured between its construction and :meth:`Object.load`, attached after it.
Links, ring buffers and maps keep their object alive. Nothing here may be used from two threads at once.
"""

import errno
import logging
import os
import re
from collections import deque

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_RawFree, PyMem_RawRealloc
from libc cimport errno as c_errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as c_close

cimport libbpf

from fabrictap.ext.fold cimport KeyedFold, ft_keyed_take

cdef extern from "fold.h" nogil:
    cdef struct ft_batch:
        unsigned char *data
        size_t record_size
        size_t capacity
        size_t used
        uint64_t received
        uint64_t misfits
    int ft_collect(void *context, void *data, size_t size) noexcept

cdef extern from "uprobe_multi.h" nogil:
    const int FT_BPF_TRACE_UPROBE_MULTI
    int ft_uprobe_multi(int program, const char *path, uint64_t offset, int on_return, uint32_t pid)
    int ft_has_uprobe_multi()

cdef extern from "libbpf_log.h" nogil:
    ctypedef void (*ft_log_fn)(int level, const char *text) noexcept nogil
    void ft_log_to(ft_log_fn log)

_log = logging.getLogger("fabrictap.libbpf")
#: The last things libbpf said, so that an error can say why.
_said = deque(maxlen=64)
_FAILED_PROGRAM = re.compile(r"prog '(\w+)'")
#: Bytes of a map that are read at a time.
cdef size_t _BATCH = 1 << 20
_VERDICT = re.compile(r"(.*)\nprocessed \d+ insns", re.DOTALL)


class BpfError(Exception):
    """Something that libbpf or the kernel refused.

    ``errno`` is the positive error number, ``program`` the program that was refused where libbpf named one.
    """

    def __init__(self, str what, int number, said=()):
        self.errno = number
        self.program = next((match[1] for match in map(_FAILED_PROGRAM.search, said) if match), None)
        name = errno.errorcode.get(number, str(number))
        reason = next((line for line in said if "failed" not in line), "") or next(iter(said), "")
        super().__init__(f"{what}: {os.strerror(number)} ({name})" + (f": {reason}" if reason else ""))


def _shortened(str message):
    """The line that matters: of a verifier's log, its verdict."""
    message = message.strip().removeprefix("libbpf: ")
    verdict = _VERDICT.search(message)
    if verdict is not None:
        program = _FAILED_PROGRAM.search(message)
        message = f"{program[0] if program else 'program'}: {verdict[1].strip().splitlines()[-1]}"
    return message[:300]


cdef void _on_message(int level, const char *text) noexcept with gil:
    message = text.decode("utf-8", "replace")
    if level == 0:
        _said.append(_shortened(message))
    # What is refused comes back as a BpfError, whose handler decides how loud it is.
    _log.debug("%s", message.strip())


ft_log_to(_on_message)


def possible_cpus():
    """Number of CPUs that per-CPU maps have room for."""
    return libbpf.libbpf_num_possible_cpus()


def has_bpf_loop():
    """Whether the kernel has the bpf_loop helper (5.17 and later)."""
    return libbpf.libbpf_probe_bpf_helper(libbpf.BPF_PROG_TYPE_KPROBE, libbpf.BPF_FUNC_loop, NULL) == 1


def has_uprobe_multi():
    """Whether the kernel has uprobes that need no perf event each (6.6 and later)."""
    return ft_has_uprobe_multi() == 1


cdef class KernelTypes:
    """The BTF of the running kernel and, where given, of one of its modules. Raises BpfError."""

    cdef libbpf.btf *_vmlinux
    cdef libbpf.btf *_module

    def __cinit__(self, str module=None):
        cdef bytes name
        self._vmlinux = libbpf.btf__load_vmlinux_btf()
        if self._vmlinux is NULL:
            raise BpfError("/sys/kernel/btf/vmlinux", c_errno.errno)
        if module is not None:
            name = module.encode()
            self._module = libbpf.btf__load_module_btf(name, self._vmlinux)
            if self._module is NULL:
                raise BpfError(f"/sys/kernel/btf/{module}", c_errno.errno)

    def __dealloc__(self):
        if self._module is not NULL:
            libbpf.btf__free(self._module)
        if self._vmlinux is not NULL:
            libbpf.btf__free(self._vmlinux)

    cdef bint _has(self, str name, uint32_t kind):
        cdef bytes encoded = name.encode()
        return libbpf.btf__find_by_name_kind(self._module or self._vmlinux, encoded, kind) > 0

    def has_function(self, str name):
        """Whether the module (and the kernel) has a function ``name``."""
        return self._has(name, libbpf.BTF_KIND_FUNC)

    def has_struct(self, str name):
        """Whether the module (and the kernel) has a structure ``name``."""
        return self._has(name, libbpf.BTF_KIND_STRUCT)


cdef class Link:
    """One attachment; detached by :meth:`close` or when it is collected. Made by :class:`Object` only."""

    cdef libbpf.bpf_link *_link
    cdef int _descriptor  # of a link that libbpf knows nothing of, else -1
    cdef Object _object

    def __cinit__(self):
        self._descriptor = -1

    def __init__(self):
        raise TypeError("links are made by Object.attach")

    def __dealloc__(self):
        if self._link is not NULL:
            libbpf.bpf_link__destroy(self._link)
        if self._descriptor >= 0:
            c_close(self._descriptor)

    def close(self):
        """Detach. Safe to call twice."""
        cdef libbpf.bpf_link *link = self._link
        cdef int descriptor = self._descriptor
        self._link = NULL
        self._descriptor = -1
        with nogil:
            if link is not NULL:
                libbpf.bpf_link__destroy(link)
            if descriptor >= 0:
                c_close(descriptor)


cdef Link _link(libbpf.bpf_link *raw, Object owner):
    cdef Link link = Link.__new__(Link)
    link._link = raw
    link._object = owner
    return link


cdef class Object:
    """One BPF object file. Raises BpfError, with libbpf's reason, wherever the kernel refuses.

    ``types``: a file of BTF that says where the kernel's fields are, in place of the kernel's own.
    """

    def __cinit__(self, str path, str types=None):
        cdef bytes encoded = os.fsencode(path)
        cdef bytes custom
        cdef libbpf.bpf_object_open_opts options
        self.path = path
        memset(&options, 0, sizeof(options))
        options.sz = sizeof(options)
        if types is not None:
            custom = os.fsencode(types)
            options.btf_custom_path = custom
        _said.clear()
        self._object = libbpf.bpf_object__open_file(encoded, &options)
        if self._object is NULL:
            raise BpfError(f"open {path}", c_errno.errno, tuple(_said))

    def __dealloc__(self):
        if self._object is not NULL:
            libbpf.bpf_object__close(self._object)

    def programs(self):
        """Program name -> section name, as in ``{"post_send": "uprobe"}``."""
        cdef libbpf.bpf_program *program = NULL
        found = {}
        while True:
            program = libbpf.bpf_object__next_program(self._object, program)
            if program is NULL:
                return found
            name = libbpf.bpf_program__name(program).decode("utf-8", "replace")
            found[name] = libbpf.bpf_program__section_name(program).decode("utf-8", "replace")

    cdef libbpf.bpf_program *_program(self, str name) except NULL:
        cdef bytes encoded = name.encode()
        cdef libbpf.bpf_program *program = libbpf.bpf_object__find_program_by_name(self._object, encoded)
        if program is NULL:
            raise BpfError(f"program {name} in {self.path}", errno.ENOENT)
        return program

    cdef libbpf.bpf_map *_map(self, str name) except NULL:
        cdef bytes encoded = name.encode()
        cdef libbpf.bpf_map *found = libbpf.bpf_object__find_map_by_name(self._object, encoded)
        if found is NULL:
            raise BpfError(f"map {name} in {self.path}", errno.ENOENT)
        return found

    def prefer_uprobe_multi(self):
        """Attach uprobes without a perf event each where the kernel can; says whether it can. Before load."""
        cdef libbpf.bpf_program *program = NULL
        if not has_uprobe_multi():
            return False
        while True:
            program = libbpf.bpf_object__next_program(self._object, program)
            if program is NULL:
                break
            if libbpf.bpf_program__section_name(program) in (b"uprobe", b"uretprobe"):
                libbpf.bpf_program__set_expected_attach_type(program, FT_BPF_TRACE_UPROBE_MULTI)
        self._uprobe_multi = True
        return True

    def autoload(self, str name, bint load):
        """Whether :meth:`load` loads the program ``name``. Before load."""
        cdef int error = libbpf.bpf_program__set_autoload(self._program(name), load)
        if error:
            raise BpfError(f"autoload {name}: the object is loaded", -error)

    def resize(self, str name, uint32_t entries):
        """Set the capacity of the map ``name``: entries, or bytes of a ring buffer. Before load."""
        cdef int error = libbpf.bpf_map__set_max_entries(self._map(name), entries)
        if error:
            raise BpfError(f"resize {name} to {entries}", -error)

    def set_constant(self, str name, uint64_t value):
        """Set the ``const volatile`` variable ``name``. Before load."""
        cdef const libbpf.btf *types = libbpf.bpf_object__btf(self._object)
        cdef int section_id = libbpf.btf__find_by_name_kind(types, b".rodata", libbpf.BTF_KIND_DATASEC)
        cdef const libbpf.btf_type *section
        cdef libbpf.btf_var_secinfo *variables
        cdef const libbpf.btf_type *variable
        cdef size_t size = 0
        cdef unsigned char *data
        cdef libbpf.bpf_map *raw = NULL
        if self.loaded:
            raise BpfError(f"constant {name}: the object is loaded", errno.EBUSY)
        while True:
            raw = libbpf.bpf_object__next_map(self._object, raw)
            if raw is NULL:
                raise BpfError(f"constant {name} in {self.path}", errno.ENOENT)
            # libbpf names the map after the object and the section: verbs_co.rodata.
            if libbpf.bpf_map__name(raw).endswith(b".rodata"):
                break
        data = <unsigned char *>libbpf.bpf_map__initial_value(raw, &size)
        if section_id > 0 and data is not NULL:
            section = libbpf.btf__type_by_id(types, section_id)
            variables = libbpf.btf_var_secinfos(section)
            for index in range(libbpf.btf_vlen(section)):
                variable = libbpf.btf__type_by_id(types, variables[index].type)
                if libbpf.btf__name_by_offset(types, variable.name_off) == name.encode():
                    if variables[index].size > 8 or variables[index].offset + variables[index].size > size:
                        raise BpfError(f"constant {name} is no integer", errno.EINVAL)
                    memcpy(data + variables[index].offset, &value, variables[index].size)
                    return
        raise BpfError(f"constant {name} in {self.path}", errno.ENOENT)

    def load(self):
        """Load every program that is to be loaded, and make the maps."""
        cdef int error
        _said.clear()
        with nogil:
            error = libbpf.bpf_object__load(self._object)
        if error:
            raise BpfError(f"load {os.path.basename(self.path)}", -error, tuple(_said))
        self.loaded = True

    def attach(self, str name):
        """Attach a program where its section says (fentry, fexit, kprobe, kretprobe, tracepoint)."""
        cdef libbpf.bpf_program *program = self._program(name)
        cdef libbpf.bpf_link *link
        _said.clear()
        with nogil:
            link = libbpf.bpf_program__attach(program)
        if link is NULL:
            raise BpfError(f"attach {name}", c_errno.errno, tuple(_said))
        return _link(link, self)

    def attach_uprobe(self, str name, str path, size_t offset, bint on_return=False, int pid=-1):
        """Attach a program to every process that runs the instruction at ``offset`` of the file ``path``.

        With ``pid``, to that process only: no other gets a breakpoint. ``path`` may be ``/proc/self/fd/N``, which attaches to the file that the descriptor holds.
        """
        cdef libbpf.bpf_program *program = self._program(name)
        cdef bytes encoded = os.fsencode(path)
        cdef const char *binary = encoded
        cdef libbpf.bpf_uprobe_opts options
        cdef libbpf.bpf_link *link
        cdef Link made
        cdef int descriptor
        if self._uprobe_multi:
            descriptor = libbpf.bpf_program__fd(program)
            with nogil:
                descriptor = ft_uprobe_multi(descriptor, binary, offset, on_return, max(pid, 0))
            if descriptor < 0:
                raise BpfError(f"attach {name} at {path}+{offset:#x}", c_errno.errno)
            made = _link(NULL, self)
            made._descriptor = descriptor
            return made
        memset(&options, 0, sizeof(options))
        options.sz = sizeof(options)
        options.retprobe = on_return
        _said.clear()
        with nogil:
            link = libbpf.bpf_program__attach_uprobe_opts(program, pid, binary, offset, &options)
        if link is NULL:
            raise BpfError(f"attach {name} at {path}+{offset:#x}", c_errno.errno, tuple(_said))
        return _link(link, self)

    def run_time(self, str name):
        """(nanoseconds, runs) of a loaded program, as far as the kernel keeps such statistics, which it does
        where kernel.bpf_stats_enabled is set; cumulative. Raises BpfError."""
        cdef libbpf.bpf_prog_info info
        cdef uint32_t size = sizeof(info)
        memset(&info, 0, sizeof(info))
        cdef int error = libbpf.bpf_obj_get_info_by_fd(
            libbpf.bpf_program__fd(self._program(name)), &info, &size
        )
        if error:
            raise BpfError(f"statistics of {name}", -error)
        return info.run_time_ns, info.run_cnt

    def map(self, str name):
        """The map ``name``. After load."""
        if not self.loaded and self._map(name) is not NULL:
            raise BpfError(f"map {name}: the object is not loaded", errno.EBADF)
        return _map_of(self._map(name), self)


cdef class Map:
    """A hash or array map of a loaded object; per-CPU or not. Made by :class:`Object` only."""

    def __init__(self):
        raise TypeError("maps are found by Object.map")

    def __dealloc__(self):
        PyMem_RawFree(self._keys)
        PyMem_RawFree(self._values)

    cdef int _make_room(self, uint32_t chunk) except -1:
        keys = <char *>PyMem_RawRealloc(self._keys, chunk * self.key_size)
        if keys is NULL:
            raise MemoryError
        self._keys = keys
        values = <char *>PyMem_RawRealloc(self._values, chunk * self.value_size)
        if values is NULL:
            raise MemoryError
        self._values = values
        self._chunk = chunk
        return 0

    cdef int each_batch(self, batch_fn take, void *context) except -1:
        """Read the whole map without the GIL, by batches as :meth:`batches` does. Raises BpfError."""
        cdef uint32_t count
        cdef uint64_t token_in = 0
        cdef uint64_t token_out = 0
        cdef bint first = True
        cdef int error, answer = 0
        if self._chunk == 0:
            self._make_room(max(1, min(self.max_entries, _BATCH // (self.key_size + self.value_size))))
        while answer == 0:
            with nogil:
                count = self._chunk
                error = libbpf.bpf_map_lookup_batch(
                    self._fd, NULL if first else &token_in, &token_out, self._keys, self._values, &count, NULL
                )
                if (error == 0 or error == -c_errno.ENOENT) and count:
                    answer = take(context, self._keys, self._values, count)
            if error == -c_errno.ENOSPC:
                # A hash bucket is longer than the chunk: nothing was read, ask again with more room.
                self._make_room(self._chunk * 2)
                continue
            if error == -c_errno.ENOENT:
                break
            if error:
                raise BpfError("read map", -error)
            first = False
            token_in = token_out
        return 0

    def batches(self, size_t budget=_BATCH):
        """Read the whole map: an iterator of (keys, values, count), both bytes objects of ``count`` entries.

        A batch holds about ``budget`` bytes at most. Entries that are added or removed meanwhile may or may
        not be seen; an entry that stays is seen. Raises BpfError.
        """
        found = []
        context = (found, self.key_size, self.value_size)
        self._make_room(max(1, min(self.max_entries, budget // (self.key_size + self.value_size))))
        try:
            self.each_batch(_keep_batch, <void *>context)
        finally:
            self._chunk = 0
        return iter(found)

    def get(self, bytes key):
        """The value of ``key``, or None."""
        cdef bytearray value = bytearray(self.value_size)
        cdef char *data = value
        self._check(key)
        if libbpf.bpf_map_lookup_elem(self._fd, <const char *>key, data):
            return None
        return bytes(value)

    def set(self, bytes key, bytes value):
        """Add or replace the value of ``key``, of a map that is not per-CPU. Raises BpfError."""
        cdef int error
        self._check(key)
        if self.cpus != 1 or len(value) != <Py_ssize_t>self.value_size:
            raise ValueError(f"a value has {self.value_size} bytes, got {len(value)}")
        error = libbpf.bpf_map_update_elem(self._fd, <const char *>key, <const char *>value, 0)
        if error:
            raise BpfError("write map", -error)

    def delete(self, bytes key):
        """Remove ``key``; False if it was not there."""
        self._check(key)
        return libbpf.bpf_map_delete_elem(self._fd, <const char *>key) == 0

    cdef int _check(self, bytes key) except -1:
        if len(key) != <Py_ssize_t>self.key_size:
            raise ValueError(f"a key has {self.key_size} bytes, got {len(key)}")
        return 0


cdef int _keep_batch(void *context, const char *keys, const char *values, uint32_t count) noexcept with gil:
    found, key_size, value_size = <tuple>context
    found.append((keys[: count * key_size], values[: count * value_size], count))
    return 0


cdef Map _map_of(libbpf.bpf_map *raw, Object owner):
    cdef Map found = Map.__new__(Map)
    cdef int kind = libbpf.bpf_map__type(raw)
    found._object = owner
    found._fd = libbpf.bpf_map__fd(raw)
    found.key_size = libbpf.bpf_map__key_size(raw)
    found.max_entries = libbpf.bpf_map__max_entries(raw)
    found.cpus = 1
    found.value_size = libbpf.bpf_map__value_size(raw)
    if kind == libbpf.BPF_MAP_TYPE_PERCPU_HASH or kind == libbpf.BPF_MAP_TYPE_PERCPU_ARRAY:
        found.cpus = libbpf.libbpf_num_possible_cpus()
        found.value_size = (found.value_size + 7) // 8 * 8 * found.cpus
    return found


cdef class RingBuffer:
    """The consumer of one BPF ring buffer of records of one size.

    :meth:`poll` waits and collects without the GIL. The batch is bounded; what does not fit stays in the
    kernel's buffer until the next poll. With ``into``, records go there one by one as they come, and there
    is no batch.
    """

    cdef libbpf.ring_buffer *_buffer
    cdef ft_batch _batch
    cdef Object _object
    cdef KeyedFold _into

    def __cinit__(
        self, Object owner, str map_name, size_t record_size, size_t records=4096, KeyedFold into=None,
    ):
        cdef int fd = libbpf.bpf_map__fd(owner._map(map_name))
        if not owner.loaded:
            raise BpfError(f"ring buffer {map_name}: the object is not loaded", errno.EBADF)
        self._object = owner
        self._into = into
        if into is not None:
            if into.keyed.record_size != record_size:
                raise ValueError(f"records of {record_size} bytes for a fold of {into.keyed.record_size}")
            self._buffer = libbpf.ring_buffer__new(fd, ft_keyed_take, &into.keyed, NULL)
            if self._buffer is NULL:
                raise BpfError(f"ring buffer {map_name}", c_errno.errno)
            return
        self._batch.record_size = record_size
        self._batch.capacity = record_size * records
        self._batch.data = <unsigned char *>PyMem_Calloc(records, record_size)
        if self._batch.data is NULL:
            raise MemoryError
        self._buffer = libbpf.ring_buffer__new(fd, ft_collect, &self._batch, NULL)
        if self._buffer is NULL:
            raise BpfError(f"ring buffer {map_name}", c_errno.errno)

    def __dealloc__(self):
        if self._buffer is not NULL:
            libbpf.ring_buffer__free(self._buffer)
        PyMem_Free(self._batch.data)

    @property
    def received(self):
        """Records collected since the start."""
        return self._batch.received if self._into is None else self._into.keyed.received

    @property
    def misfits(self):
        """Records of an unexpected size since the start; not zero means object and agent do not match."""
        return self._batch.misfits if self._into is None else self._into.keyed.misfits

    def poll(self, int timeout_ms):
        """Wait up to ``timeout_ms`` for records and return them as bytes, oldest first; may be empty, and is
        where they go into a fold.

        Whatever was recorded before the call is among them, unless the batch is full: on a starved CPU the
        kernel's wake-up can be late, so what is there is taken in any case.
        """
        cdef int error
        with nogil:
            error = libbpf.ring_buffer__poll(self._buffer, timeout_ms) if timeout_ms > 0 else 0
            if (error >= 0 or error == -c_errno.EINTR) and not self._full():
                error = libbpf.ring_buffer__consume(self._buffer)
        if error < 0 and error != -c_errno.EINTR and error != -c_errno.ENOBUFS:
            raise BpfError("read ring buffer", -error)
        if self._into is not None:
            return b""
        batch = (<char *>self._batch.data)[: self._batch.used]
        self._batch.used = 0
        return batch

    cdef bint _full(self) noexcept nogil:
        return self._batch.capacity != 0 and self._batch.used + self._batch.record_size > self._batch.capacity
