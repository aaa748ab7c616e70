# cython: language_level=3
"""Counters of posted work, folded from the kernel's per-CPU map into the ring without the GIL. See posts.h.

A counter is named by its number in the table, which stays until :meth:`Posts.forget`. Whoever binds a counter
to its series and its connection is not asked again, until the connection ends or is back in INIT.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free

from fabrictap.ext.bpf cimport Map
from fabrictap.ext.connections cimport ConnectionRow
from fabrictap.ext.ring cimport (
    FT_HISTOGRAM, FT_NO_SERIES, Ring, Series, ft_connection, ft_ring,
)
from fabrictap.ext.table cimport (
    FT_NONE, ft_table, ft_table_at, ft_table_find, ft_table_free, ft_table_init, ft_table_lives,
)

from fabrictap.ext.records import post as decode_post
from fabrictap.ext.records import post_key

cdef extern from "posts.h" nogil:
    cdef enum:
        FT_TOTALS
        FT_PORTS
        FT_NO_PORT
        FT_WAY_NONE
        FT_WAY_OUT
        FT_WAY_IN
        FT_WAY_ROOM
        FT_STATE_INIT
        FT_PENDING
        FT_PLACED
        FT_ADMITTED
        FT_BOUND
        FT_MUTED
        FT_IN_LIST

    cdef struct ft_post_key:
        uint32_t qpn

    cdef struct ft_post:
        uint64_t operations
        uint64_t bytes

    cdef struct ft_counter:
        ft_post_key key
        ft_post now
        uint64_t told[5]
        uint32_t flags
        uint64_t attributed[2]
        uint32_t series[5]
        uint32_t histogram
        ft_connection **row
        uint16_t port
        uint8_t way
        uint8_t header
        uint32_t operation
        uint32_t not_in

    cdef struct ft_port:
        uint64_t out
        uint64_t in_ "in"
        uint64_t room
        uint64_t headers

    cdef struct ft_posts:
        ft_table table
        uint32_t *pending
        uint32_t pending_count
        ft_port ports[1]

    # The true ones: what is declared above is only what is used here.
    const uint32_t sizeof_key "sizeof(struct ft_post_key)"
    const uint32_t sizeof_value "sizeof(struct ft_post)"
    void ft_posts_take(ft_posts *posts, const char *keys, const char *values, uint32_t count, size_t cpus)
    void ft_posts_forget(ft_posts *posts, uint32_t number)
    void ft_counter_attribute(ft_counter *counter, ft_connection *row)
    void ft_counter_tell(ft_posts *posts, ft_counter *counter, ft_ring *ring, uint64_t now_ns)
    bint ft_counter_settled(const ft_counter *counter)
    void ft_counter_fold(ft_posts *posts, ft_counter *counter, ft_ring *ring, uint64_t now_ns)
    uint32_t ft_posts_fold(ft_posts *posts, ft_ring *ring, uint64_t now_ns)

#: Which way the bytes of a counter go; see ft_port in posts.h.
NONE, OUT, IN, ROOM = FT_WAY_NONE, FT_WAY_OUT, FT_WAY_IN, FT_WAY_ROOM
#: A state that no connection is in.
cdef uint32_t _NO_STATE = 0xFF


cdef struct Batch:
    ft_posts *posts
    size_t cpus


cdef int _take_batch(void *context, const char *keys, const char *values, uint32_t count) noexcept nogil:
    cdef Batch *batch = <Batch *>context
    ft_posts_take(batch.posts, keys, values, count, batch.cpus)
    return 0


cdef class Posts:
    """The counters of one map, at most ``capacity``; what is beyond is counted in :attr:`refused`.

    :meth:`take` and :meth:`read` touch nothing shared; everything else writes to ``ring`` or to connections,
    and belongs under the node's lock.
    """

    cdef ft_posts _posts
    cdef Ring _ring
    # number -> the connection whose row C writes to, so that it stays; number -> device.
    cdef dict _held
    cdef dict _devices

    def __cinit__(self, Ring ring not None, uint32_t capacity):
        ft_table_init(&self._posts.table, sizeof(ft_counter), sizeof_key, capacity)
        self._ring = ring
        self._held = {}
        self._devices = {}

    def __dealloc__(self):
        ft_table_free(&self._posts.table)
        free(self._posts.pending)

    def __len__(self):
        return self._posts.table.count

    @property
    def refused(self):
        """How often a counter was left out because the table was full."""
        return self._posts.table.refused

    # --- taking ---------------------------------------------------------------------------------------

    def take(self, bytes keys not None, bytes values not None, uint32_t count, uint32_t cpus):
        """Take a batch of the per-CPU map, ``count`` entries with ``cpus`` values each."""
        cdef const char *key_data = keys
        cdef const char *value_data = values
        if len(keys) != count * sizeof_key or len(values) != count * sizeof_value * cpus:
            raise ValueError("keys and values do not hold count entries")
        with nogil:
            ft_posts_take(&self._posts, key_data, value_data, count, cpus)

    def read(self, Map counters not None):
        """Take the whole map. Raises BpfError."""
        cdef Batch batch
        if counters.key_size != sizeof_key or counters.value_size != sizeof_value * counters.cpus:
            raise ValueError("not a map of posted work")
        batch.posts = &self._posts
        batch.cpus = counters.cpus
        counters.each_batch(_take_batch, &batch)

    def strangers(self):
        """Numbers of the counters that moved and whose device is not known."""
        return self._pending_without(FT_PLACED)

    def place(self, uint32_t number, str device not None):
        """Say which device a counter belongs to."""
        self._counter(number).flags |= FT_PLACED
        self._devices[number] = device

    # --- folding --------------------------------------------------------------------------------------

    def arrived(self):
        """Numbers of the counters that moved and that nobody has admitted."""
        return self._pending_without(FT_ADMITTED)

    def admit(self, uint32_t number):
        """A counter is wanted."""
        self._counter(number).flags |= FT_ADMITTED

    def mute(self, uint32_t number):
        """A counter is not wanted: it is not heard of again."""
        cdef ft_counter *counter = self._counter(number)
        self.unbind(number)
        counter.flags = (counter.flags & ~<uint32_t>FT_PENDING) | FT_MUTED

    def fold(self, uint64_t now_ns):
        """Fold what moved; returns the numbers of the counters that somebody has to look at."""
        cdef uint32_t left, index
        with nogil:
            left = ft_posts_fold(&self._posts, &self._ring.view, now_ns)
        return [self._posts.pending[index] for index in range(left)]

    def fold_one(self, uint32_t number, uint64_t now_ns):
        """Fold one counter if it moved. True where somebody has to look at it."""
        cdef ft_counter *counter = self._counter(number)
        if not counter.flags & FT_PENDING:
            return False
        counter.flags &= ~<uint32_t>FT_PENDING
        if ft_counter_settled(counter):
            ft_counter_fold(&self._posts, counter, &self._ring.view, now_ns)
            return False
        return True

    def attribute(self, uint32_t number, ConnectionRow connection not None, uint32_t operation):
        """Count in a connection what a counter has that it was not told. ``operation``: place of the opcode."""
        cdef ft_counter *counter = self._counter(number)
        if operation >= 16:
            raise ValueError(f"no operation {operation}")
        counter.operation = operation
        ft_counter_attribute(counter, connection.row)

    def give_series(self, uint32_t number, list totals not None, Series histogram):
        """Set the series of operations, bytes, sges, inlined and signaled, each of which may be None."""
        cdef ft_counter *counter = self._counter(number)
        cdef Series one
        if len(totals) != FT_TOTALS:
            raise ValueError(f"a counter has {FT_TOTALS} totals")
        for one in (*totals, histogram):
            if one is not None and one.ring is not self._ring:
                raise ValueError("a series of another ring")
        if histogram is not None and histogram.slot != FT_NO_SERIES:
            if self._ring.view.series[histogram.slot].kind != FT_HISTOGRAM:
                raise ValueError("not a histogram")
        for index in range(FT_TOTALS):
            one = totals[index]
            counter.series[index] = FT_NO_SERIES if one is None else one.slot
        counter.histogram = FT_NO_SERIES if histogram is None else histogram.slot

    def give_port(self, uint32_t number, port, int way, int header):
        """Count a counter's bytes for a port too: its index, which :meth:`ports` has, or None for no port.

        ``way`` is OUT, IN or ROOM, NONE for bytes that do not move; ``header`` is the number of bytes of
        extended transport headers that the request of each operation takes.
        """
        cdef ft_counter *counter = self._counter(number)
        counter.port = FT_NO_PORT if port is None or not 0 <= port < FT_PORTS else port
        counter.way = way
        counter.header = header

    def ports(self, uint32_t count):
        """(out, in, room, headers) of the first ports: bytes posted until now, cumulative."""
        return [
            (
                self._posts.ports[index].out, self._posts.ports[index].in_,
                self._posts.ports[index].room, self._posts.ports[index].headers,
            )
            for index in range(min(count, <uint32_t>FT_PORTS))
        ]

    def tell(self, uint32_t number, uint64_t now_ns):
        """Add to its series what a counter has that they do not."""
        cdef ft_counter *counter = self._counter(number)
        ft_counter_tell(&self._posts, counter, &self._ring.view, now_ns)

    def bind(self, uint32_t number, ConnectionRow connection, uint32_t operation, bint waits_in_init):
        """Fold a counter from now on without asking: into the series that it has, and ``connection``'s row.

        ``waits_in_init``: what is posted while the connection is in INIT is to be looked at.
        """
        cdef ft_counter *counter = self._counter(number)
        if operation >= 16:
            raise ValueError(f"no operation {operation}")
        counter.row = NULL
        self._held.pop(number, None)
        if connection is not None:
            self._held[number] = connection
            counter.row = &connection.row
        counter.operation = operation
        counter.not_in = FT_STATE_INIT if waits_in_init else _NO_STATE
        counter.flags |= FT_BOUND

    def unbind(self, uint32_t number):
        """Have a counter looked at when it moves."""
        cdef ft_counter *counter = self._counter(number)
        counter.flags &= ~<uint32_t>FT_BOUND
        counter.row = NULL
        self._held.pop(number, None)

    def forget(self, bytes raw not None):
        """A counter was taken out of the map. False where it was not known."""
        cdef uint32_t number = self._find(raw)
        if number == FT_NONE:
            return False
        self._held.pop(number, None)
        self._devices.pop(number, None)
        ft_posts_forget(&self._posts, number)
        return True

    # --- looking --------------------------------------------------------------------------------------

    def number(self, bytes raw not None):
        """The number of the counter with the key ``raw``; None where there is none."""
        cdef uint32_t number = self._find(raw)
        return None if number == FT_NONE else number

    def key(self, uint32_t number):
        """What a counter counts, a PostKey."""
        return post_key(self.raw(number))

    def raw(self, uint32_t number):
        """A counter's key in the map."""
        return (<const char *>self._counter(number))[:sizeof_key]

    def device(self, uint32_t number):
        """The device that was told by :meth:`place`, or None."""
        return self._devices.get(number)

    def post(self, uint32_t number):
        """What a counter says, a Post."""
        return decode_post((<const char *>&self._counter(number).now)[:sizeof_value])

    def owes(self, uint32_t number):
        """Whether a counter has what its series do not."""
        cdef ft_counter *counter = self._counter(number)
        return counter.told[0] != counter.now.operations

    def drain(self):
        """(PostKey, Post) of each counter that moved, for who only wants to look; nothing is pending then."""
        moved = self._pending_without(0)
        for number in moved:
            self._counter(number).flags &= ~<uint32_t>FT_PENDING
        return [(self.key(number), self.post(number)) for number in moved]

    cdef uint32_t _find(self, bytes raw) except? 0xFFFFFFFE:
        if len(raw) != sizeof_key:
            raise ValueError(f"a key has {sizeof_key} bytes, got {len(raw)}")
        return ft_table_find(&self._posts.table, <const char *>raw)

    cdef ft_counter *_counter(self, uint32_t number) except NULL:
        if not ft_table_lives(&self._posts.table, number):
            raise KeyError(number)
        return <ft_counter *>ft_table_at(&self._posts.table, number)

    cdef list _pending_without(self, uint32_t flag):
        cdef uint32_t index, number
        cdef ft_counter *counter
        found = []
        for index in range(self._posts.pending_count):
            number = self._posts.pending[index]
            counter = <ft_counter *>ft_table_at(&self._posts.table, number)
            if counter.flags & FT_PENDING and not counter.flags & flag:
                found.append(number)
        return found
