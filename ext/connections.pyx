# cython: language_level=3
"""One queue pair of the ledger, as a row of the ring's table of connections (struct ft_connection, ring.h).

What is read here is read from the row, and what is set is written to it under its sequence: other processes
see what the ledger says, as soon as it says it.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fabrictap.ext.ring cimport (
    FT_ENDED, FT_HAS_PEER_QPN, FT_HAS_PID, FT_HAS_RQ_PSN, FT_HAS_SQ_PSN, FT_LIVE, FT_NO_CONNECTION,
    FT_OPERATIONS, Ring, ft_close_sequence, ft_connection, ft_open_sequence,
)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, uint32_t size)
    const int AF_INET6

# The lists of fabrictap.ledger.names and the places of their words. They are learned when the first row is
# made, because the package that they are in imports this module.
cdef tuple _types, _states, _coverages, _origins, _operations
cdef dict _type_of, _state_of, _coverage_of, _origin_of, _operation_of
cdef int _estimated
_types = None


cdef _learn():
    global _types, _states, _coverages, _origins, _operations
    global _type_of, _state_of, _coverage_of, _origin_of, _operation_of, _estimated
    from fabrictap.ledger import names

    if len(names.OPERATIONS) > FT_OPERATIONS:
        raise RuntimeError(f"a row has room for {FT_OPERATIONS} operations")
    _types, _type_of = names.QP_TYPES, _places(names.QP_TYPES)
    _states, _state_of = names.QP_STATES, _places(names.QP_STATES)
    _coverages, _coverage_of = names.COVERAGES, _places(names.COVERAGES)
    _estimated = _coverage_of["estimated"]
    _origins, _origin_of = names.ORIGINS, _places(names.ORIGINS)
    _operations, _operation_of = names.OPERATIONS, _places(names.OPERATIONS)


cdef dict _places(tuple words):
    return {word: place for place, word in enumerate(words)}


def places_of(words):
    """A set of opcodes, by name, for ``posted_sum``: a bit for each place in a row."""
    from fabrictap.ledger import names

    return sum(1 << place for place, word in enumerate(names.OPERATIONS) if word in words)


cdef int _place(dict places, str word, str what) except -1:
    found = places.get(word)
    if found is None:
        raise ValueError(f"no {what} of a connection: {word!r}")
    return found


cdef _put_text(char *target, size_t room, str value):
    """UTF-8, cut between characters, filled up with NUL."""
    cdef bytes raw = value.encode("utf-8", "replace")
    if <size_t>len(raw) > room:
        raw = raw[:room].decode("utf-8", "ignore").encode()
    memset(target, 0, room)
    memcpy(target, <const char *>raw, len(raw))


cdef _put_gid(uint8_t *target, str gid):
    cdef uint8_t raw[16]
    cdef bytes text
    memset(raw, 0, 16)
    if gid is not None:
        text = gid.encode("ascii", "replace")
        if inet_pton(AF_INET6, text, raw) != 1:
            raise ValueError(f"no GID in IPv6 notation: {gid!r}")
    memcpy(target, raw, 16)


cdef str _gid(const uint8_t *raw):
    """IPv6 notation; None where it is all zero, which no GID is."""
    cdef char text[48]
    cdef int index
    for index in range(16):
        if raw[index]:
            inet_ntop(AF_INET6, raw, text, sizeof(text))
            return (<bytes>text).decode("ascii")
    return None


# The row is in the ring's memory: a collection of cycles must not take that away before the row.
@cython.no_gc_clear
cdef class ConnectionRow:
    """The row of one queue pair. What is not known is None.

    It has memory of its own until :meth:`list_in` gives it a row of a ring, and again after :meth:`unlist`,
    so that it can be read whatever becomes of that row. Nothing here locks: the node's lock guards it.
    """

    def __cinit__(self):
        memset(&self._own, 0, sizeof(self._own))
        self.row = &self._own
        self._index = FT_NO_CONNECTION

    def __init__(
        self, str device, uint32_t qpn, str type, str state, pid, str process, uint64_t created_ns, str origin,
    ):
        if _types is None:
            _learn()
        self.device = device
        self._process = process
        self._own.state = FT_LIVE
        _put_text(self._own.device, sizeof(self._own.device), device)
        _put_text(self._own.process, sizeof(self._own.process), process)
        self._own.qpn = qpn
        self._own.type = _place(_type_of, type, "type")
        self._own.qp_state = _place(_state_of, state, "state")
        self._own.origin = _place(_origin_of, origin, "origin")
        self._own.created_ns = created_ns
        if pid is not None:
            self._own.pid = pid
            self._own.known |= FT_HAS_PID

    def list_in(self, Ring ring, uint64_t now_ns):
        """Take a row of ``ring`` for readers to see. False where its table is full: nothing else changes."""
        cdef uint32_t index
        cdef ft_connection *row
        cdef size_t skipped = sizeof(row.sequence)
        if self._index != FT_NO_CONNECTION:
            raise ValueError("the connection is in a ring already")
        index = ring.take_connection(now_ns)
        if index == FT_NO_CONNECTION:
            return False
        row = ring.view.connections + index
        ft_open_sequence(&row.sequence)
        memcpy(<char *>row + skipped, <const char *>&self._own + skipped, sizeof(ft_connection) - skipped)
        ft_close_sequence(&row.sequence)
        self._ring = ring
        self._index = index
        self.row = row
        return True

    def unlist(self, uint64_t now_ns):
        """The queue pair has ended. Its row says so, and can be read until another takes it."""
        self._open()
        self.row.state = FT_ENDED
        self.row.ended_ns = now_ns
        self.row.in_rate = self.row.out_rate = 0
        self._close()
        if self._index != FT_NO_CONNECTION:
            memcpy(&self._own, self.row, sizeof(ft_connection))
            self.row = &self._own
            self._ring.give_connection(self._index, now_ns)
            self._index = FT_NO_CONNECTION
            self._ring = None

    def tell_changes(self, set changes):
        """Have the connection put itself into ``changes`` whenever something of it but its posts changes."""
        self._changes = changes

    cdef void _open(self) noexcept:
        ft_open_sequence(&self.row.sequence)

    cdef void _close(self):
        ft_close_sequence(&self.row.sequence)
        if self._changes is not None:
            self._changes.add(self)

    @property
    def listed(self):
        """Whether the connection has a row of a ring."""
        return self._index != FT_NO_CONNECTION

    @property
    def ended(self):
        return self.row.state == FT_ENDED

    @property
    def ended_ns(self):
        return self.row.ended_ns or None

    @property
    def qpn(self):
        return self.row.qpn

    @property
    def type(self):
        return _types[self.row.type]

    @property
    def pid(self):
        return self.row.pid if self.row.known & FT_HAS_PID else None

    @property
    def created_ns(self):
        return self.row.created_ns

    @property
    def origin(self):
        return _origins[self.row.origin]

    @property
    def process(self):
        # The row has room for 32 bytes of it.
        return self._process

    @process.setter
    def process(self, str value):
        self._process = value
        self._open()
        _put_text(self.row.process, sizeof(self.row.process), value)
        self._close()

    @property
    def state(self):
        return _states[self.row.qp_state]

    @state.setter
    def state(self, str value):
        cdef int place = _place(_state_of, value, "state")
        if place != self.row.qp_state:
            self._open()
            self.row.qp_state = place
            self._close()

    @property
    def coverage_kind(self):
        return _coverages[self.row.coverage]

    @property
    def since_ns(self):
        return self.row.since_ns or None

    @property
    def fraction(self):
        """The share of its time in which its posts were seen, where that is known not to be all of it."""
        return self.row.fraction if self.row.coverage == _estimated else None

    def cover(self, str kind, since_ns, fraction=None):
        """How well posts are seen, since when where that is not since the queue pair's start, and in which
        share of the time since then where the coverage is estimated."""
        cdef int place = _place(_coverage_of, kind, "coverage")
        cdef uint64_t since = since_ns or 0
        self._open()
        self.row.coverage = place
        self.row.since_ns = since
        self.row.fraction = fraction or 0.0
        self._close()

    @property
    def port(self):
        return self.row.port or None

    @port.setter
    def port(self, value):
        cdef int number = value or 0
        self._open()
        # InfiniBand has at most 254; a number beyond it is not known.
        self.row.port = number if 0 <= number <= 255 else 0
        self._close()

    @property
    def mtu(self):
        return 1 << self.row.mtu_exponent if self.row.mtu_exponent else None

    @mtu.setter
    def mtu(self, value):
        cdef int exponent = max(0, int(value or 0).bit_length() - 1)
        self._open()
        self.row.mtu_exponent = exponent
        self._close()

    @property
    def gid(self):
        return _gid(self.row.gid)

    @gid.setter
    def gid(self, str value):
        cdef uint8_t raw[16]
        _put_gid(raw, value)
        self._open()
        memcpy(self.row.gid, raw, 16)
        self._close()

    @property
    def peer_gid(self):
        return _gid(self.row.peer_gid)

    @peer_gid.setter
    def peer_gid(self, str value):
        cdef uint8_t raw[16]
        _put_gid(raw, value)
        self._open()
        memcpy(self.row.peer_gid, raw, 16)
        self._close()

    @property
    def peer_qpn(self):
        return self.row.peer_qpn if self.row.known & FT_HAS_PEER_QPN else None

    @peer_qpn.setter
    def peer_qpn(self, value):
        self._know(&self.row.peer_qpn, FT_HAS_PEER_QPN, value)

    @property
    def sq_psn(self):
        return self.row.sq_psn if self.row.known & FT_HAS_SQ_PSN else None

    @sq_psn.setter
    def sq_psn(self, value):
        self._know(&self.row.sq_psn, FT_HAS_SQ_PSN, value)

    @property
    def rq_psn(self):
        return self.row.rq_psn if self.row.known & FT_HAS_RQ_PSN else None

    @rq_psn.setter
    def rq_psn(self, value):
        self._know(&self.row.rq_psn, FT_HAS_RQ_PSN, value)

    cdef void _know(self, uint32_t *target, int bit, value):
        cdef uint32_t number = 0 if value is None else value & 0xFFFFFFFF
        self._open()
        target[0] = number
        if value is None:
            self.row.known &= <uint8_t>~bit
        else:
            self.row.known |= bit
        self._close()

    def post(self, str operation, uint64_t operations, uint64_t size):
        """Count work requests with one opcode, of ``size`` bytes together."""
        cdef int place = _place(_operation_of, operation, "operation")
        self.row.posted[place].operations += operations
        self.row.posted[place].bytes += size

    def posted_sum(self, uint32_t places):
        """(operations, bytes) of all that was posted of these opcodes (``places_of``), cumulative."""
        cdef uint64_t operations = 0, size = 0
        cdef int place
        for place in range(FT_OPERATIONS):
            if places >> place & 1:
                operations += self.row.posted[place].operations
                size += self.row.posted[place].bytes
        return operations, size

    def posted_totals(self):
        """(opcode, operations, bytes) of the opcodes that were posted, cumulative."""
        cdef int place
        return [
            (_operations[place], self.row.posted[place].operations, self.row.posted[place].bytes)
            for place in range(len(_operations))
            if self.row.posted[place].operations or self.row.posted[place].bytes
        ]
