# cython: language_level=3
"""What the probes record, decoded from the one definition of its layout in probes/include/records.h."""

import socket

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset


cdef extern from "fold.h" nogil:
    cdef enum:
        FT_QP_CREATED
        FT_QP_MODIFIED
        FT_QP_DESTROYED
        FT_QP_SNAPSHOT
        FT_MR_REGISTERED
        FT_MR_DEREGISTERED
        FT_CONTEXT_OPENED
        FT_CONTEXT_CLOSED
        FT_DEVICE_REMOVED
        FT_CM_EVENT
        FT_AH_CREATED
        FT_CM_SENT
        FT_QP_EXTENDED
        FT_PROCESS_EXITED
        FT_FLAG_EXITING
        FT_FLAG_KERNEL
        FT_FLAG_GID
        FT_FLAG_ACCESS
        FT_FLAG_UVERBS
        FT_FLAG_GID_INDEX
        FT_LOSS_MAX
        FT_SIZE_SLOTS
        FT_COMM_LEN
        FT_DEVICE_NAME_LEN
        FT_QP_EX_FUNCTIONS
        FT_QP_EX_NONE
        FT_QUEUE_SEND
        FT_QUEUE_RECEIVE
        FT_QUEUE_SHARED_RECEIVE

    cdef struct ft_qp:
        uint32_t qpn
        uint32_t type
        uint32_t state
        uint32_t mask
        int32_t result
        uint32_t port
        uint32_t peer_qpn
        uint32_t rq_psn
        uint32_t sq_psn
        uint32_t path_mtu
        uint8_t gid[16]
        uint8_t peer_gid[16]
        uint32_t gid_index

    cdef struct ft_mr:
        uint64_t address
        uint64_t length
        uint64_t iova
        uint32_t lkey
        uint32_t rkey
        uint32_t access

    cdef struct ft_cm_record:
        uint32_t kind

    cdef struct ft_ah:
        uint64_t id
        uint8_t peer_gid[16]

    const uint32_t FT_CM_KEY_AT "offsetof(struct ft_cm_record, kind)"
    cdef struct ft_qp_ex:
        uint64_t base
        int32_t functions[20]

    cdef struct ft_record:
        uint64_t time_ns
        uint64_t cgroup_id
        uint32_t kind
        uint32_t flags
        uint32_t tgid
        uint32_t tid
        char comm[16]
        char device[64]
        uint32_t uverbs
        ft_qp qp
        ft_mr mr
        ft_ah ah
        ft_qp_ex qp_ex

    cdef struct ft_post_key:
        uint64_t context
        uint64_t address_handle
        uint32_t tgid
        uint32_t qpn
        uint32_t peer_qpn
        uint8_t operation
        uint8_t queue
        uint8_t qp_type

    cdef struct ft_post:
        uint64_t operations
        uint64_t bytes
        uint64_t sges
        uint64_t inlined
        uint64_t signaled
        uint32_t sizes[33]



RECORD_SIZE = sizeof(ft_record)
CM_RECORD_SIZE = sizeof(ft_cm_record)
#: Where the connection manager's events have what they are counted by: kind, event and status.
CM_KEY_AT, CM_KEY_SIZE = FT_CM_KEY_AT, 12
POST_KEY_SIZE = sizeof(ft_post_key)
POST_SIZE = sizeof(ft_post)
SIZE_SLOTS = FT_SIZE_SLOTS

QP_CREATED = FT_QP_CREATED
QP_MODIFIED = FT_QP_MODIFIED
QP_DESTROYED = FT_QP_DESTROYED
QP_SNAPSHOT = FT_QP_SNAPSHOT
MR_REGISTERED = FT_MR_REGISTERED
MR_DEREGISTERED = FT_MR_DEREGISTERED
CONTEXT_OPENED = FT_CONTEXT_OPENED
CONTEXT_CLOSED = FT_CONTEXT_CLOSED
DEVICE_REMOVED = FT_DEVICE_REMOVED
CM_EVENT = FT_CM_EVENT
AH_CREATED = FT_AH_CREATED
CM_SENT = FT_CM_SENT
QP_EXTENDED = FT_QP_EXTENDED
PROCESS_EXITED = FT_PROCESS_EXITED

QUEUE_SEND = FT_QUEUE_SEND
QUEUE_RECEIVE = FT_QUEUE_RECEIVE
QUEUE_SHARED_RECEIVE = FT_QUEUE_SHARED_RECEIVE

#: Index of the per-CPU array of losses -> the catalog's fabrictap.loss.reason.
LOSSES = (
    "buffer_full",
    "table_full",
    "table_busy",
    "chain_too_long",
    "too_many_sges",
    "memory_fault",
    "unknown_handle",
    "batch_too_long",
)
assert len(LOSSES) == FT_LOSS_MAX


cdef str _text(const char *data, size_t size):
    cdef size_t length = 0
    while length < size and data[length]:
        length += 1
    return data[:length].decode("utf-8", "replace")


cdef object _gid(const uint8_t *raw):
    """GID in IPv6 notation; None where it is all zero, which no GID is."""
    data = (<const char *>raw)[:16]
    return socket.inet_ntop(socket.AF_INET6, data) if any(data) else None


cdef class Record:
    """One record of a probe. Fields that its kind does not have raise AttributeError by not being used:
    read ``qp_*`` for queue pairs, ``mr_*`` for memory regions, ``ah_*`` for address handles. ``time_ns`` is
    CLOCK_MONOTONIC. The connection manager has records of its own, struct ft_cm_record."""

    cdef ft_record _raw

    @property
    def raw(self):
        """The record as it stands in the ring buffer."""
        return (<const char *>&self._raw)[: sizeof(ft_record)]

    @property
    def kind(self): return self._raw.kind
    @property
    def time_ns(self): return self._raw.time_ns
    @property
    def cgroup_id(self): return self._raw.cgroup_id
    @property
    def pid(self): return self._raw.tgid
    @property
    def tid(self): return self._raw.tid
    @property
    def comm(self): return _text(self._raw.comm, FT_COMM_LEN)
    @property
    def device(self):
        """Name of the RDMA device; empty where :attr:`uverbs` stands for it, or the kind has none."""
        return "" if self._raw.flags & FT_FLAG_UVERBS else _text(self._raw.device, FT_DEVICE_NAME_LEN)
    @property
    def uverbs(self):
        """dev_t of the uverbs device where the probe knew the RDMA device by that only, until :meth:`place`."""
        return self._raw.uverbs if self._raw.flags & FT_FLAG_UVERBS else None
    @property
    def exiting(self): return bool(self._raw.flags & FT_FLAG_EXITING)
    @property
    def kernel(self): return bool(self._raw.flags & FT_FLAG_KERNEL)

    @property
    def qpn(self): return self._raw.qp.qpn
    @property
    def qp_type(self): return self._raw.qp.type
    @property
    def qp_state(self): return self._raw.qp.state
    @property
    def qp_mask(self): return self._raw.qp.mask
    @property
    def qp_result(self): return self._raw.qp.result
    @property
    def qp_port(self): return self._raw.qp.port
    @property
    def qp_peer_qpn(self): return self._raw.qp.peer_qpn
    @property
    def qp_rq_psn(self): return self._raw.qp.rq_psn
    @property
    def qp_sq_psn(self): return self._raw.qp.sq_psn
    @property
    def qp_path_mtu(self): return self._raw.qp.path_mtu
    @property
    def qp_gid(self): return _gid(self._raw.qp.gid) if self._raw.flags & FT_FLAG_GID else None
    @property
    def qp_gid_index(self):
        return self._raw.qp.gid_index if self._raw.flags & FT_FLAG_GID_INDEX else None
    @property
    def qp_peer_gid(self): return _gid(self._raw.qp.peer_gid)

    @property
    def mr_address(self): return self._raw.mr.address if self._raw.flags & FT_FLAG_ACCESS else None
    @property
    def mr_access(self): return self._raw.mr.access if self._raw.flags & FT_FLAG_ACCESS else None
    @property
    def mr_length(self): return self._raw.mr.length
    @property
    def mr_lkey(self): return self._raw.mr.lkey
    @property
    def mr_rkey(self): return self._raw.mr.rkey

    @property
    def ah_id(self): return self._raw.ah.id
    @property
    def ah_peer_gid(self): return _gid(self._raw.ah.peer_gid)

    @property
    def qp_ex_functions(self):
        """Addresses of the functions of a QP_EXTENDED's struct ibv_qp_ex, in the order of its members from
        wr_atomic_cmp_swp to wr_abort; None where it has none."""
        return [
            None if self._raw.qp_ex.functions[index] == FT_QP_EX_NONE
            else (self._raw.qp_ex.base + self._raw.qp_ex.functions[index]) & 0xFFFFFFFFFFFFFFFF
            for index in range(FT_QP_EX_FUNCTIONS)
        ]

    def place(self, str device, str gid=None):
        """Name what the probe knew by number only: the RDMA device, and for a QP its own ``gid``."""
        cdef bytes name = device.encode()[: FT_DEVICE_NAME_LEN - 1]
        cdef bytes raw
        memset(self._raw.device, 0, FT_DEVICE_NAME_LEN)
        memcpy(self._raw.device, <const char *>name, len(name))
        self._raw.flags &= ~FT_FLAG_UVERBS
        if gid is not None:
            raw = socket.inet_pton(socket.AF_INET6, gid)
            memcpy(self._raw.qp.gid, <const char *>raw, 16)
            self._raw.flags |= FT_FLAG_GID


cdef Record _record(const ft_record *raw):
    cdef Record record = Record.__new__(Record)
    record._raw = raw[0]
    return record


cdef Py_ssize_t _whole(bytes batch) except -1:
    cdef Py_ssize_t count = len(batch) // <Py_ssize_t>sizeof(ft_record)
    if count * <Py_ssize_t>sizeof(ft_record) != len(batch):
        raise ValueError(f"{len(batch)} bytes are no whole number of records of {sizeof(ft_record)}")
    return count


def decode(bytes batch):
    """The records of a batch, oldest first. Raises ValueError if it holds no whole number of them."""
    cdef const ft_record *raw = <const ft_record *><const char *>batch
    cdef Py_ssize_t index
    return [_record(raw + index) for index in range(_whole(batch))]


def divide(bytes batch):
    """(records, regions): what :func:`decode` gives, without memory regions; and these as they are.

    A registration whose device is known by number only is among the records, to be placed first.
    """
    cdef const ft_record *raw = <const ft_record *><const char *>batch
    cdef Py_ssize_t index, begin = -1, count = _whole(batch)
    cdef bint region
    records = []
    regions = []
    for index in range(count):
        region = raw[index].kind in (FT_MR_REGISTERED, FT_MR_DEREGISTERED) and not raw[index].flags & FT_FLAG_UVERBS
        if region and begin < 0:
            begin = index
        elif not region and begin >= 0:
            regions.append((<const char *>(raw + begin))[: (index - begin) * sizeof(ft_record)])
            begin = -1
        if not region:
            records.append(_record(raw + index))
    if begin >= 0:
        regions.append((<const char *>(raw + begin))[: (count - begin) * sizeof(ft_record)])
    return records, b"".join(regions)


cdef class PostKey:
    """What one counter of posted work counts; ``raw`` is its key in the map."""

    cdef readonly bytes raw
    cdef readonly uint64_t context
    cdef readonly uint64_t address_handle
    cdef readonly uint32_t pid
    cdef readonly uint32_t qpn
    cdef readonly uint32_t peer_qpn
    cdef readonly int operation
    cdef readonly int queue
    cdef readonly int qp_type


cdef class Post:
    """Cumulative counts of posted work. ``sizes``: SIZE_SLOTS counts modulo 2**32, see records.h."""

    cdef readonly uint64_t operations
    cdef readonly uint64_t bytes
    cdef readonly uint64_t sges
    cdef readonly uint64_t inlined
    cdef readonly uint64_t signaled
    cdef readonly tuple sizes


def post_key(bytes raw):
    """What the key ``raw`` of the map of posted work says."""
    if len(raw) != sizeof(ft_post_key):
        raise ValueError(f"a key has {sizeof(ft_post_key)} bytes, got {len(raw)}")
    cdef const ft_post_key *key = <const ft_post_key *><const char *>raw
    cdef PostKey made = PostKey.__new__(PostKey)
    made.raw = raw
    made.context = key.context
    made.address_handle = key.address_handle
    made.pid = key.tgid
    made.qpn = key.qpn
    made.peer_qpn = key.peer_qpn
    made.operation = key.operation
    made.queue = key.queue
    made.qp_type = key.qp_type
    return made


def post(bytes raw):
    """One value of the map of posted work, the counts of one CPU or the sum of them all."""
    if len(raw) != sizeof(ft_post):
        raise ValueError(f"a value has {sizeof(ft_post)} bytes, got {len(raw)}")
    cdef const ft_post *total = <const ft_post *><const char *>raw
    cdef Post made = Post.__new__(Post)
    made.operations = total.operations
    made.bytes = total.bytes
    made.sges = total.sges
    made.inlined = total.inlined
    made.signaled = total.signaled
    made.sizes = tuple([total.sizes[slot] for slot in range(FT_SIZE_SLOTS)])
    return made


def context_key(uint64_t context, uint32_t pid):
    """The key of the map ``contexts``: struct ft_context_key."""
    return context.to_bytes(8, "little") + int(pid).to_bytes(8, "little")


def context_device(bytes value):
    """The device name in a value of the map ``contexts``: struct ft_context."""
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")


def sum_per_cpu(bytes value):
    """Sum of one 64-bit counter kept per CPU."""
    cdef const uint64_t *counts = <const uint64_t *><const char *>value
    cdef uint64_t total = 0
    for index in range(len(value) // 8):
        total += counts[index]
    return total
