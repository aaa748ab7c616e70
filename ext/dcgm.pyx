# cython: language_level=3
"""A client of an NVIDIA DCGM host engine: libdcgm, found at run time, called without the GIL.

:class:`Library` -> :meth:`Library.connect` -> :class:`Engine`. Nothing here starts an engine, pauses
profiling or changes a setting. One thread at a time: a second one gets a RuntimeError, which matters while a
call hangs. Layouts: dcgm_abi.h.
"""

from typing import NamedTuple

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uintptr_t
from libc.string cimport memcpy, memset

from libdcgm cimport (
    FT_BUILD_VERSION, FT_CONNECT2_VERSION, FT_CONNECT3_VERSION, FT_DCGM_FP64_BLANK, FT_DCGM_INSTANCES,
    FT_DCGM_INT64_BLANK, FT_DCGM_STRING, FT_HIERARCHY_VERSION, FT_VALUE_VERSION, RTLD_LOCAL, RTLD_NOW,
    dlclose, dlerror, dlopen, dlsym, ft_dcgm_build, ft_dcgm_build_get, ft_dcgm_connect2, ft_dcgm_connect3,
    ft_dcgm_connect_2, ft_dcgm_connect_3, ft_dcgm_destroy, ft_dcgm_entities, ft_dcgm_fields_create,
    ft_dcgm_group_add, ft_dcgm_group_create, ft_dcgm_handle, ft_dcgm_hierarchy, ft_dcgm_hierarchy_get,
    ft_dcgm_instance, ft_dcgm_latest, ft_dcgm_pair, ft_dcgm_text, ft_dcgm_unwatch, ft_dcgm_value,
    ft_dcgm_void, ft_dcgm_watch, strnlen,
)

cdef enum:
    # DCGM_GROUP_EMPTY of dcgmGroupType_t
    _GROUP_EMPTY = 1
    # DCGM_FV_FLAG_LIVE_DATA: asks the driver now; slow, but needs no watch
    _FLAG_LIVE = 1
    _VER_MISMATCH = -12
    _CONNECTION_NOT_VALID = -21
    _TIMEOUT = -11
    _INSUFFICIENT_SIZE = -31
    # DCGM_MAX_NUM_CPU_CORES is the most of any entity group in 4.6
    _ENTITIES = 1024
    _MOST_ENTITIES = 65536

#: Values that one call of :meth:`Engine.latest` has room for: entities times fields.
ROOM = 256
#: Fields of one field group and of one call, at most (DCGM_MAX_FIELD_IDS_PER_FIELD_GROUP).
MAX_FIELDS = 128
#: Entities of one group, at most: DCGM_GROUP_MAX_ENTITIES of 3.3; 4.x has room for 1024.
MAX_ENTITIES = 64
#: What a layout is known by: structure -> version word. Checked against the stand-in's own definitions.
LAYOUTS = {
    "dcgmConnectV2Params_v2": FT_CONNECT2_VERSION,
    "dcgmConnectV3Params_v1": FT_CONNECT3_VERSION,
    "dcgmFieldValue_v2": FT_VALUE_VERSION,
    "dcgmMigHierarchy_v2": FT_HIERARCHY_VERSION,
    "dcgmVersionInfo_v2": FT_BUILD_VERSION,
}
#: Sonames looked for where no path is given, the newest first.
SONAMES = ("libdcgm.so.4", "libdcgm.so.3")

_BLANKS = ("blank", "not_found", "not_supported", "not_permitted")
_STRING_BLANKS = {
    "<<<NULL>>>": "blank",
    "<<<NOT_FOUND>>>": "not_found",
    "<<<NOT_SUPPORTED>>>": "not_supported",
    "<<<NOT_PERM>>>": "not_permitted",
}

# Native objects that are held now, for the leak test.
cdef int _libraries = 0
cdef int _connections = 0
cdef int _groups = 0
cdef int _field_groups = 0
cdef int _watches = 0


def handles():
    """Native objects that this process holds now, by kind."""
    return {
        "libraries": _libraries,
        "connections": _connections,
        "groups": _groups,
        "field_groups": _field_groups,
        "watches": _watches,
    }


class LibraryMissingError(Exception):
    """libdcgm cannot be used: not there, not loadable, or without a function that is needed."""


class DcgmError(Exception):
    """A call that libdcgm or the host engine refused. ``code``: the negative DCGM_ST_ number."""

    def __init__(self, str call, int code, str text):
        self.call = call
        self.code = code
        self.text = text
        super().__init__(f"{call}: {text} ({code})")


class Instance(NamedTuple):
    """A GPU instance or compute instance of MIG. ``gpu_instance`` and ``compute_instance``: NVML's ids."""

    group: int
    entity: int
    parent_group: int
    parent: int
    gpu_uuid: str
    gpu_instance: int
    compute_instance: int


@cython.final
cdef class Value:
    """One field of one entity. ``time_us``: microseconds since the epoch, 0 where there is none.

    ``value`` is None where ``status`` (a DCGM_ST_ code) is not 0 or where ``blank`` says why not: blank,
    not_found, not_supported, not_permitted, or unknown_type for what is no number and no text.
    """

    cdef readonly uint32_t group
    cdef readonly uint32_t entity
    cdef readonly uint32_t field
    cdef readonly int32_t status
    cdef readonly int64_t time_us
    cdef readonly object value
    cdef readonly str blank

    def __repr__(self):
        return (
            f"Value(group={self.group}, entity={self.entity}, field={self.field}, status={self.status}, "
            f"time_us={self.time_us}, value={self.value!r}, blank={self.blank!r})"
        )


cdef Value _decode(const ft_dcgm_value *raw):
    cdef Value made = Value.__new__(Value)
    cdef int64_t kind
    made.group = raw.group
    made.entity = raw.entity
    made.field = raw.field
    made.time_us = raw.time_us
    made.status = raw.status
    if raw.version != FT_VALUE_VERSION:
        made.status = _VER_MISMATCH
    if made.status != 0:
        return made
    if raw.type == c'i' or raw.type == c't':
        if raw.i64 >= FT_DCGM_INT64_BLANK:
            kind = raw.i64 - FT_DCGM_INT64_BLANK
            made.blank = _BLANKS[kind if kind < 4 else 0]
        else:
            made.value = raw.i64
    elif raw.type == c'd':
        if not isfinite(raw.dbl) or raw.dbl >= FT_DCGM_FP64_BLANK:
            kind = <int64_t>(raw.dbl - FT_DCGM_FP64_BLANK) if isfinite(raw.dbl) and raw.dbl < 2e14 else 0
            made.blank = _BLANKS[kind if kind < 4 else 0]
        else:
            made.value = raw.dbl
    elif raw.type == c's':
        text = raw.str[:strnlen(raw.str, FT_DCGM_STRING)].decode("utf-8", "replace")
        # DCGM_STR_IS_BLANK: <<< at the start and >>> somewhere
        if text.startswith("<<<") and ">>>" in text:
            made.blank = _STRING_BLANKS.get(text, "blank")
        else:
            made.value = text
    else:
        made.blank = "unknown_type"
    return made


def decode(const unsigned char[::1] buffer):
    """The values in a buffer as :meth:`Engine.latest` gets it; what is over after the last whole one is left.

    Any bytes will do: no byte can do worse than make a value that nobody asked for.
    """
    cdef Py_ssize_t size = sizeof(ft_dcgm_value)
    cdef Py_ssize_t i
    cdef ft_dcgm_value one
    values = []
    for i in range(buffer.shape[0] // size):
        memcpy(&one, &buffer[i * size], size)
        values.append(_decode(&one))
    return values


@cython.final
@cython.no_gc_clear
cdef class Library:
    """libdcgm, loaded and initialized. ``path`` is what was loaded. Raises LibraryMissingError, DcgmError."""

    cdef void *_handle
    cdef bint _initialized
    cdef bint _busy
    cdef int _connections
    cdef readonly str path
    cdef ft_dcgm_void _init
    cdef ft_dcgm_void _shutdown
    cdef ft_dcgm_connect_2 _connect_2
    cdef ft_dcgm_connect_3 _connect_3
    cdef ft_dcgm_handle _disconnect
    cdef ft_dcgm_entities _entities
    cdef ft_dcgm_group_create _group_create
    cdef ft_dcgm_group_add _group_add
    cdef ft_dcgm_destroy _group_destroy
    cdef ft_dcgm_fields_create _fields_create
    cdef ft_dcgm_destroy _fields_destroy
    cdef ft_dcgm_watch _watch
    cdef ft_dcgm_unwatch _unwatch
    cdef ft_dcgm_latest _latest
    cdef ft_dcgm_hierarchy_get _hierarchy
    cdef ft_dcgm_build_get _build
    cdef ft_dcgm_text _text

    def __cinit__(self, str path=None):
        global _libraries
        cdef int code
        self._handle = NULL
        self._load(path)
        self._init = <ft_dcgm_void>self._symbol(b"dcgmInit")
        self._shutdown = <ft_dcgm_void>self._symbol(b"dcgmShutdown")
        self._connect_2 = <ft_dcgm_connect_2>self._symbol(b"dcgmConnect_v2")
        self._disconnect = <ft_dcgm_handle>self._symbol(b"dcgmDisconnect")
        self._entities = <ft_dcgm_entities>self._symbol(b"dcgmGetEntityGroupEntities")
        self._group_create = <ft_dcgm_group_create>self._symbol(b"dcgmGroupCreate")
        self._group_add = <ft_dcgm_group_add>self._symbol(b"dcgmGroupAddEntity")
        self._group_destroy = <ft_dcgm_destroy>self._symbol(b"dcgmGroupDestroy")
        self._fields_create = <ft_dcgm_fields_create>self._symbol(b"dcgmFieldGroupCreate")
        self._fields_destroy = <ft_dcgm_destroy>self._symbol(b"dcgmFieldGroupDestroy")
        self._watch = <ft_dcgm_watch>self._symbol(b"dcgmWatchFields")
        self._unwatch = <ft_dcgm_unwatch>self._symbol(b"dcgmUnwatchFields")
        self._latest = <ft_dcgm_latest>self._symbol(b"dcgmEntitiesGetLatestValues")
        self._text = <ft_dcgm_text>self._symbol(b"errorString")
        # 4.x; the others since 3.x, and what they tell can be done without
        self._connect_3 = <ft_dcgm_connect_3>dlsym(self._handle, b"dcgmConnect_v3")
        self._hierarchy = <ft_dcgm_hierarchy_get>dlsym(self._handle, b"dcgmGetGpuInstanceHierarchy")
        self._build = <ft_dcgm_build_get>dlsym(self._handle, b"dcgmHostengineVersionInfo")
        with nogil:
            code = self._init()
        self._check("dcgmInit", code)
        self._initialized = True
        _libraries += 1

    def __dealloc__(self):
        self._release()

    cdef _load(self, str path):
        cdef bytes name
        problem = ""
        for candidate in (path,) if path is not None else SONAMES:
            name = candidate.encode()
            if 0 in name:
                raise LibraryMissingError(f"{candidate!r} is not a file name")
            self._handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)
            if self._handle is not NULL:
                self.path = candidate
                return
            said = dlerror()
            problem = problem or (said.decode("utf-8", "replace") if said is not NULL else f"{candidate}: not loadable")
        raise LibraryMissingError(problem)

    cdef void *_symbol(self, bytes name) except NULL:
        cdef void *found = dlsym(self._handle, name)
        if found is NULL:
            raise LibraryMissingError(f"{self.path} has no function {name.decode()}")
        return found

    cdef _check(self, str call, int code):
        if code != 0:
            raise DcgmError(call, code, self.text(code))

    cdef _enter(self):
        if self._handle is NULL:
            raise ValueError("the library is closed")
        if self._busy:
            raise RuntimeError("another thread is in a call of libdcgm")
        self._busy = True

    cdef int _release(self) noexcept:
        """Shut down and unload; returns the code of dcgmShutdown. A library in a call is left alone."""
        global _libraries
        cdef int code = 0
        if self._handle is NULL or self._busy:
            return 0
        if self._initialized:
            with nogil:
                code = self._shutdown()
            self._initialized = False
            _libraries -= 1
        # Unloaded, so that a newer libdcgm is picked up after an upgrade; not where its threads may still run.
        if code == 0:
            dlclose(self._handle)
        self._handle = NULL
        return code

    def text(self, int code):
        """libdcgm's own words for a DCGM_ST_ code."""
        cdef const char *said
        if self._handle is NULL:
            return f"error {code}"
        said = self._text(code)
        return said.decode("utf-8", "replace") if said is not NULL else f"error {code}"

    def connect(self, str address, int timeout_ms):
        """Connect to the engine at ``host``, ``host:port`` or ``SCHEME://...``; schemes tcp, unix, vsock.

        What this connection watches ends with it (persistAfterDisconnect is 0). Raises DcgmError.
        """
        global _connections
        cdef ft_dcgm_connect2 second
        cdef ft_dcgm_connect3 third
        cdef uintptr_t handle = 0
        cdef int code
        cdef bytes target
        cdef const char *text
        cdef Engine made
        scheme, separator, rest = address.partition("://")
        if not separator:
            scheme, rest = "tcp", address
        if scheme not in ("tcp", "unix", "vsock") or not rest or "\0" in rest:
            raise ValueError(f"{address!r} is not the address of a host engine")
        made = Engine.__new__(Engine)
        made._prepare(self)
        self._enter()
        try:
            if self._connect_3 is not NULL:
                target = f"{scheme}://{rest}".encode()
                text = target
                memset(&third, 0, sizeof(third))
                third.version = FT_CONNECT3_VERSION
                third.timeout_ms = timeout_ms
                with nogil:
                    code = self._connect_3(text, &third, &handle)
            elif scheme == "vsock":
                raise ValueError(f"{self.path} cannot connect to {address!r}: that takes DCGM 4")
            else:
                target = rest.encode()
                text = target
                memset(&second, 0, sizeof(second))
                second.version = FT_CONNECT2_VERSION
                second.timeout_ms = timeout_ms
                second.is_unix = scheme == "unix"
                with nogil:
                    code = self._connect_2(text, &second, &handle)
        finally:
            self._busy = False
        self._check("dcgmConnect", code)
        made._handle = handle
        made._open = True
        self._connections += 1
        _connections += 1
        return made

    def close(self):
        """Shut libdcgm down and unload it. Close the engines first; safe twice. Raises DcgmError."""
        if self._handle is NULL:
            return
        if self._busy or self._connections:
            raise RuntimeError("libdcgm is still in use")
        code = self._release()
        if code != 0:
            raise DcgmError("dcgmShutdown", code, f"error {code}")


@cython.final
@cython.no_gc_clear
cdef class Engine:
    """One connection to a host engine. Made by :meth:`Library.connect` alone.

    Whatever was created through it and not yet released is released by ``close``. Raises DcgmError where the
    engine refuses, ValueError once closed.
    """

    cdef Library _library
    cdef uintptr_t _handle
    cdef bint _open
    cdef ft_dcgm_value *_values
    cdef ft_dcgm_pair *_pairs
    cdef uint16_t *_fields
    cdef set _groups
    cdef set _field_groups
    cdef list _watches

    def __init__(self):
        raise TypeError("engines are made by Library.connect")

    def __dealloc__(self):
        if self._open and self._library is not None and not self._library._busy:
            self._leave()
        PyMem_Free(self._values)
        PyMem_Free(self._pairs)
        PyMem_Free(self._fields)

    cdef _prepare(self, Library library):
        self._library = library
        self._groups = set()
        self._field_groups = set()
        self._watches = []
        self._values = <ft_dcgm_value *>PyMem_Calloc(ROOM, sizeof(ft_dcgm_value))
        self._pairs = <ft_dcgm_pair *>PyMem_Calloc(ROOM, sizeof(ft_dcgm_pair))
        self._fields = <uint16_t *>PyMem_Calloc(MAX_FIELDS, sizeof(uint16_t))
        if self._values is NULL or self._pairs is NULL or self._fields is NULL:
            raise MemoryError

    cdef _enter(self):
        if not self._open:
            raise ValueError("the connection is closed")
        self._library._enter()

    cdef int _leave(self) noexcept:
        """Disconnect, which ends at the engine whatever this connection still has there."""
        global _connections, _groups, _field_groups, _watches
        cdef int code
        cdef uintptr_t handle = self._handle
        with nogil:
            code = self._library._disconnect(handle)
        self._open = False
        self._library._connections -= 1
        _connections -= 1
        _groups -= len(self._groups)
        _field_groups -= len(self._field_groups)
        _watches -= len(self._watches)
        self._groups.clear()
        self._field_groups.clear()
        self._watches.clear()
        return code

    cdef _load_fields(self, fields):
        cdef Py_ssize_t i
        if not 0 < len(fields) <= MAX_FIELDS:
            raise ValueError(f"from 1 to {MAX_FIELDS} fields, got {len(fields)}")
        for i in range(len(fields)):
            self._fields[i] = fields[i]

    def version(self):
        """The engine's version, as in 4.6.0; None where it does not say."""
        cdef ft_dcgm_build build
        cdef int code
        if self._library._build is NULL:
            return None
        self._enter()
        memset(&build, 0, sizeof(build))
        build.version = FT_BUILD_VERSION
        with nogil:
            code = self._library._build(self._handle, &build)
        self._library._busy = False
        if code != 0:
            return None
        text = build.text[:strnlen(build.text, 512)].decode("utf-8", "replace")
        parts = dict(part.partition(":")[::2] for part in text.split(";"))
        return parts.get("version") or None

    def entities(self, uint32_t group):
        """The ids of all entities of a group (1 GPU, 3 switch, 4 GPU instance, 6 link, 7 CPU)."""
        cdef uint32_t *found
        cdef int room = _ENTITIES
        cdef int count
        cdef int code
        while True:
            found = <uint32_t *>PyMem_Calloc(room, sizeof(uint32_t))
            if found is NULL:
                raise MemoryError
            try:
                count = room
                self._enter()
                with nogil:
                    code = self._library._entities(self._handle, group, found, &count, 0)
                self._library._busy = False
                if code == _INSUFFICIENT_SIZE and room < count <= _MOST_ENTITIES:
                    room = count
                    continue
                self._library._check("dcgmGetEntityGroupEntities", code)
                return [found[i] for i in range(min(max(count, 0), room))]
            finally:
                PyMem_Free(found)

    def instances(self):
        """The MIG instances of all GPUs, a list of Instance; empty where there are none."""
        cdef ft_dcgm_hierarchy *all_
        cdef ft_dcgm_instance *one
        cdef int code
        cdef Py_ssize_t i
        if self._library._hierarchy is NULL:
            return []
        all_ = <ft_dcgm_hierarchy *>PyMem_Calloc(1, sizeof(ft_dcgm_hierarchy))
        if all_ is NULL:
            raise MemoryError
        try:
            all_.version = FT_HIERARCHY_VERSION
            self._enter()
            with nogil:
                code = self._library._hierarchy(self._handle, all_)
            self._library._busy = False
            self._library._check("dcgmGetGpuInstanceHierarchy", code)
            made = []
            for i in range(min(<Py_ssize_t>all_.count, FT_DCGM_INSTANCES)):
                one = &all_.instances[i]
                uuid = one.gpu_uuid[:strnlen(one.gpu_uuid, 128)].decode("utf-8", "replace")
                made.append(
                    Instance(
                        one.entity.group, one.entity.entity, one.parent.group, one.parent.entity,
                        uuid, one.gpu_instance, one.compute_instance,
                    )
                )
            return made
        finally:
            PyMem_Free(all_)

    def group(self, str name, pairs):
        """Make a group of (entity group, entity id) pairs, at most MAX_ENTITIES.

        Returns its id and what the engine did not take into it, a list of (pair, code). If it took none, there
        is no group and the last code is raised.
        """
        global _groups
        cdef uintptr_t made = 0
        cdef int code
        cdef bytes encoded = name.encode()
        cdef const char *text = encoded
        cdef uint32_t kind
        cdef uint32_t entity
        if not 0 < len(pairs) <= MAX_ENTITIES:
            raise ValueError(f"from 1 to {MAX_ENTITIES} entities, got {len(pairs)}")
        self._enter()
        with nogil:
            code = self._library._group_create(self._handle, _GROUP_EMPTY, text, &made)
        self._library._busy = False
        self._library._check("dcgmGroupCreate", code)
        self._groups.add(made)
        _groups += 1
        refused = []
        for kind, entity in pairs:
            self._enter()
            with nogil:
                code = self._library._group_add(self._handle, made, kind, entity)
            self._library._busy = False
            if code == _CONNECTION_NOT_VALID or code == _TIMEOUT:
                self._library._check("dcgmGroupAddEntity", code)
            if code != 0:
                refused.append(((kind, entity), code))
        if len(refused) == len(pairs):
            self.drop_group(made)
            self._library._check("dcgmGroupAddEntity", code)
        return made, refused

    def drop_group(self, uintptr_t group):
        """Destroy a group."""
        global _groups
        cdef int code
        if group not in self._groups:
            raise ValueError("not a group of this connection")
        self._enter()
        with nogil:
            code = self._library._group_destroy(self._handle, group)
        self._library._busy = False
        self._groups.discard(group)
        _groups -= 1
        self._library._check("dcgmGroupDestroy", code)

    def fields(self, str name, fields):
        """Make a field group of at most MAX_FIELDS field ids. Returns its id.

        An engine refuses the whole of it (-1) for one field that it does not know. Names are unique.
        """
        global _field_groups
        cdef uintptr_t made = 0
        cdef int code
        cdef int count = len(fields)
        cdef bytes encoded = name.encode()
        cdef const char *text = encoded
        self._load_fields(fields)
        self._enter()
        with nogil:
            code = self._library._fields_create(self._handle, count, self._fields, text, &made)
        self._library._busy = False
        self._library._check("dcgmFieldGroupCreate", code)
        self._field_groups.add(made)
        _field_groups += 1
        return made

    def drop_fields(self, uintptr_t fields):
        """Destroy a field group."""
        global _field_groups
        cdef int code
        if fields not in self._field_groups:
            raise ValueError("not a field group of this connection")
        self._enter()
        with nogil:
            code = self._library._fields_destroy(self._handle, fields)
        self._library._busy = False
        self._field_groups.discard(fields)
        _field_groups -= 1
        self._library._check("dcgmFieldGroupDestroy", code)

    def watch(self, uintptr_t group, uintptr_t fields, double interval, double keep, int samples):
        """Have the engine read the fields of the group's entities every ``interval`` seconds.

        It keeps values for ``keep`` seconds and at most ``samples`` of them. What it began before it refused
        is taken back, and was not counted as a watch.
        """
        global _watches
        cdef int code
        cdef int taken_back
        cdef long long interval_us = <long long>(interval * 1e6)
        if group not in self._groups or fields not in self._field_groups:
            raise ValueError("not a group of this connection")
        self._enter()
        with nogil:
            code = self._library._watch(self._handle, group, fields, interval_us, keep, samples)
        if code != 0 and code != _CONNECTION_NOT_VALID and code != _TIMEOUT:
            # The engine adds the watches one by one and leaves those before the one that failed.
            with nogil:
                taken_back = self._library._unwatch(self._handle, group, fields)
        self._library._busy = False
        self._library._check("dcgmWatchFields", code)
        self._watches.append((group, fields))
        _watches += 1

    def unwatch(self, uintptr_t group, uintptr_t fields):
        """End a watch."""
        global _watches
        cdef int code
        if (group, fields) not in self._watches:
            raise ValueError("not a watch of this connection")
        self._enter()
        with nogil:
            code = self._library._unwatch(self._handle, group, fields)
        self._library._busy = False
        self._watches.remove((group, fields))
        _watches -= 1
        self._library._check("dcgmUnwatchFields", code)

    def latest(self, pairs, fields, bint live=False):
        """The newest values of ``fields`` of the (entity group, id) ``pairs``: at most ROOM, in any order.

        ``live`` asks the driver now instead of the engine's memory: slow, for what is read once.
        """
        cdef uint32_t entities = len(pairs)
        cdef uint32_t count = len(fields)
        cdef uint32_t flags = _FLAG_LIVE if live else 0
        cdef Py_ssize_t i
        cdef int code
        if not entities or entities * count > ROOM:
            raise ValueError(f"from 1 to {ROOM} values, got {entities * count}")
        self._load_fields(fields)
        for i in range(entities):
            self._pairs[i].group, self._pairs[i].entity = pairs[i]
        for i in range(entities * count):
            # what the engine does not fill in is then seen to be nothing
            memset(&self._values[i], 0, 40)
        self._enter()
        with nogil:
            code = self._library._latest(
                self._handle, self._pairs, entities, self._fields, count, flags, self._values
            )
        self._library._busy = False
        self._library._check("dcgmEntitiesGetLatestValues", code)
        return [_decode(&self._values[i]) for i in range(entities * count) if self._values[i].field]

    def close(self):
        """Release everything and disconnect; safe twice. Returns the first code that was not 0, else 0.

        Once a call says that the connection is lost or timed out, the rest is left to the disconnect.
        """
        global _groups, _field_groups, _watches
        cdef int first = 0
        cdef int code = 0
        cdef uintptr_t one
        cdef uintptr_t other
        if not self._open:
            return 0
        self._library._enter()
        for one, other in list(self._watches):
            with nogil:
                code = self._library._unwatch(self._handle, one, other)
            first = first or code
            if code == _CONNECTION_NOT_VALID or code == _TIMEOUT:
                break
            self._watches.remove((one, other))
            _watches -= 1
        if code != _CONNECTION_NOT_VALID and code != _TIMEOUT:
            for one in list(self._field_groups):
                with nogil:
                    code = self._library._fields_destroy(self._handle, one)
                first = first or code
                if code == _CONNECTION_NOT_VALID or code == _TIMEOUT:
                    break
                self._field_groups.discard(one)
                _field_groups -= 1
        if code != _CONNECTION_NOT_VALID and code != _TIMEOUT:
            for one in list(self._groups):
                with nogil:
                    code = self._library._group_destroy(self._handle, one)
                first = first or code
                if code == _CONNECTION_NOT_VALID or code == _TIMEOUT:
                    break
                self._groups.discard(one)
                _groups -= 1
        code = self._leave()
        self._library._busy = False
        return first or code
