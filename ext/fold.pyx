# cython: language_level=3
"""Small records, counted by a key that stands in them, without the GIL and without an object for each."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free

from fabrictap.ext.ring cimport FT_NO_SERIES, Ring, Series
from fabrictap.ext.table cimport (
    FT_NONE, ft_table_at, ft_table_find, ft_table_free, ft_table_init,
)


cdef class KeyedFold:
    """Counts records of ``record_size`` bytes by the ``key_size`` bytes (32 at most) at ``key_at`` in them.

    With ``total_at`` it also sums up the 64-bit number that stands there. At most ``capacity`` keys are kept;
    records of others are counted in :attr:`refused`.

    It is fed by a ring buffer that was made for it, or by :meth:`feed`::

        fold = KeyedFold(table.ring, record_size=64, key_at=24, key_size=4, total_at=16)
        buffer = RingBuffer(object, "records", 64, into=fold)
        buffer.poll(1000)                     # in C, each record; touches nothing shared
        for key in fold.fold(now_ns):         # under the lock: what came, into the series of its key
            fold.bind(key, count_series, total_series, now_ns)   # a key's first time only
    """

    def __cinit__(
        self, Ring ring not None, *, size_t record_size, uint32_t key_at, uint32_t key_size,
        total_at=None, uint32_t capacity=1024,
    ):
        if not 0 < key_size <= FT_KEY_MAX or key_at + key_size > record_size:
            raise ValueError(f"no key: {key_size} bytes at {key_at} of {record_size}")
        if total_at is not None and not 0 <= total_at <= <long>record_size - 8:
            raise ValueError(f"no number: 8 bytes at {total_at} of {record_size}")
        ft_table_init(&self.keyed.table, sizeof(ft_tally), key_size, capacity)
        self.keyed.record_size = record_size
        self.keyed.key_at = key_at
        self.keyed.total_at = FT_NONE if total_at is None else total_at
        self._ring = ring

    def __dealloc__(self):
        ft_table_free(&self.keyed.table)
        free(self.keyed.touched)

    def __len__(self):
        """The number of keys."""
        return self.keyed.table.count

    @property
    def record_size(self):
        return self.keyed.record_size

    @property
    def received(self):
        """Records taken since the start."""
        return self.keyed.received

    @property
    def misfits(self):
        """Records of an unexpected size since the start."""
        return self.keyed.misfits

    @property
    def refused(self):
        """Records whose key had no room, since the start."""
        return self.keyed.table.refused

    def feed(self, bytes records not None):
        """Take records that stand one after the other. Raises ValueError for a part of one."""
        cdef char *data = records
        cdef size_t size = self.keyed.record_size
        cdef size_t at, count = <size_t>len(records) // size
        if count * size != <size_t>len(records):
            raise ValueError(f"{len(records)} bytes are no whole number of records of {size}")
        with nogil:
            for at in range(count):
                ft_keyed_take(&self.keyed, data + at * size, size)

    def fold(self, uint64_t now_ns):
        """Add what has come to the series of the keys; returns the keys that are bound to none yet.

        What came for those is not lost: :meth:`bind` adds it.
        """
        cdef uint32_t left, index
        cdef ft_tally *tally
        with nogil:
            left = ft_keyed_fold(&self.keyed, &self._ring.view, now_ns)
        keys = []
        for index in range(left):
            tally = <ft_tally *>ft_table_at(&self.keyed.table, self.keyed.touched[index])
            keys.append((<const char *>tally.key)[: self.keyed.table.key_size])
        return keys

    def bind(self, bytes key not None, Series count, Series total, uint64_t now_ns):
        """Say which series counts the records with ``key`` and which sums up their numbers; either may be None.

        Raises KeyError for a key that never came.
        """
        cdef uint32_t number = FT_NONE
        cdef ft_tally *tally
        cdef Series one
        for one in (count, total):
            if one is not None and one.ring is not self._ring:
                raise ValueError("a series of another ring")
        if <uint32_t>len(key) == self.keyed.table.key_size:
            number = ft_table_find(&self.keyed.table, <const char *>key)
        if number == FT_NONE:
            raise KeyError(key)
        tally = <ft_tally *>ft_table_at(&self.keyed.table, number)
        tally.count_series = FT_NO_SERIES if count is None else count.slot
        tally.total_series = FT_NO_SERIES if total is None else total.slot
        tally.bound = True
        ft_keyed_tell(tally, &self._ring.view, now_ns)
