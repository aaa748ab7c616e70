# cython: language_level=3
"""The memory regions that are registered, with their sums kept as they come and go. See regions.h.

Records of the probes are folded without the GIL and without an object for each.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fabrictap.ext.ring cimport Ring, ft_ring
from fabrictap.ext.table cimport (
    FT_NONE, ft_table, ft_table_at, ft_table_find, ft_table_free, ft_table_init, ft_table_lives,
)

cdef extern from "regions.h" nogil:
    cdef enum:
        FT_DEVICE_NAME_LEN
        FT_REGION_PID
        FT_REGION_ADDRESS
        FT_REGION_ACCESS
        FT_REMOTE_UNKNOWN
        FT_ATOMIC_YES
        FT_ATOMIC_UNKNOWN

    cdef struct ft_record:
        uint64_t time_ns

    cdef struct ft_region_key:
        uint32_t device
        uint32_t lkey

    cdef struct ft_region:
        ft_region_key key
        uint32_t rkey
        int32_t pid
        uint64_t address
        uint64_t length
        uint64_t serial
        uint32_t access
        uint32_t known

    cdef struct ft_sum_key:
        uint32_t device
        int32_t pid
        uint8_t has_pid
        uint8_t remote
        uint8_t atomic

    cdef struct ft_sum:
        ft_sum_key key
        uint64_t count
        uint64_t bytes

    cdef struct ft_device_name:
        char name[64]
        uint8_t wanted

    cdef struct ft_regions:
        ft_table table
        ft_table sums
        ft_table devices
        uint64_t dropped
        int32_t registered
        int32_t deregistered

    cdef struct ft_moment:
        uint32_t at

    bint ft_regions_put(ft_regions *regions, const ft_region *region)
    void ft_regions_remove(ft_regions *regions, uint32_t number)
    bint ft_regions_fold(ft_regions *regions, ft_ring *ring, const ft_record *record, uint64_t time_ns)
    void ft_order_records(const ft_record *records, uint32_t count, ft_moment *order)

cdef extern from * nogil:
    """
    static uint32_t ft_add_device(struct ft_regions *regions, const char *name, int wanted)
    {
        bool added;
        uint32_t number = ft_table_add(&regions->devices, name, &added);

        if (number != FT_NONE)
            ((struct ft_device_name *)ft_table_at(&regions->devices, number))->wanted = wanted != 0;
        return number;
    }
    """
    uint32_t ft_add_device(ft_regions *regions, const char *name, bint wanted)

#: Names that are remembered; a node has some ten, and may rename them.
cdef uint32_t _MAX_DEVICES = 4096
#: What a peer may do, in the catalog's words, by ft_sum_key.remote.
cdef tuple _REMOTE = ("none", "read", "write", "read_write", "unknown")


cdef class RegionTable:
    """(device, lkey) -> region, at most ``capacity``; the newest is refused when full, and counted.

    ``wanted`` says of a device's name whether its records are to be folded. With ``ring``, each registration
    and its end is an event there, of the kinds ``registered`` and ``deregistered``.
    """

    cdef ft_regions _regions
    cdef Ring _ring
    cdef object _wanted

    def __cinit__(
        self, uint32_t capacity, wanted, Ring ring=None, int registered=-1, int deregistered=-1,
    ):
        ft_table_init(&self._regions.table, sizeof(ft_region), sizeof(ft_region_key), capacity)
        ft_table_init(&self._regions.sums, sizeof(ft_sum), sizeof(ft_sum_key), capacity)
        ft_table_init(&self._regions.devices, sizeof(ft_device_name), FT_DEVICE_NAME_LEN, _MAX_DEVICES)
        self._regions.registered = -1 if ring is None else registered
        self._regions.deregistered = -1 if ring is None else deregistered
        self._ring = ring
        self._wanted = wanted

    def __dealloc__(self):
        ft_table_free(&self._regions.table)
        ft_table_free(&self._regions.sums)
        ft_table_free(&self._regions.devices)

    def __len__(self):
        return self._regions.table.count

    @property
    def capacity(self):
        return self._regions.table.capacity

    @property
    def dropped(self):
        """Regions that had no room, since the start."""
        return self._regions.dropped

    def fold(self, bytes records not None, int64_t offset_ns):
        """Fold whole records of registrations and their ends, in the order of their times.

        ``offset_ns`` makes their clock the epoch's. Raises ValueError for a part of a record.
        """
        cdef const ft_record *raw = <const ft_record *><const char *>records
        cdef uint32_t count = <uint32_t>(len(records) // sizeof(ft_record))
        cdef uint32_t index = 0
        cdef uint32_t asked = FT_NONE
        cdef bint known
        cdef ft_ring *ring = NULL if self._ring is None else &self._ring.view
        cdef ft_moment *order
        if count * sizeof(ft_record) != <size_t>len(records):
            raise ValueError(f"{len(records)} bytes are no whole number of records of {sizeof(ft_record)}")
        if not count:
            return
        order = <ft_moment *>malloc(count * sizeof(ft_moment))
        if order is NULL:
            raise MemoryError
        try:
            with nogil:
                ft_order_records(raw, count, order)
            while index < count:
                with nogil:
                    known = True
                    while index < count and known:
                        known = ft_regions_fold(
                            &self._regions, ring, raw + order[index].at,
                            raw[order[index].at].time_ns + offset_ns,
                        )
                        if known:
                            index += 1
                if index == count:
                    break
                # The first record of a device: look at its name, then once more at the record.
                if asked == index or self._device(_device_name(raw + order[index].at)) == FT_NONE:
                    self._regions.dropped += 1
                    index += 1
                else:
                    asked = index
        finally:
            free(order)

    def put(self, str device not None, uint32_t lkey, uint32_t rkey, pid, address, uint64_t length, access):
        """Add a region, or replace the one with its key; None for what is not known. False when full."""
        cdef ft_region region
        memset(&region, 0, sizeof(region))
        region.key.device = self._device(device)
        if region.key.device == FT_NONE:
            self._regions.dropped += 1
            return False
        region.key.lkey = lkey
        region.rkey = rkey
        region.length = length
        if pid is not None:
            region.pid = pid
            region.known |= FT_REGION_PID
        if address is not None:
            region.address = address
            region.known |= FT_REGION_ADDRESS
        if access is not None:
            region.access = access
            region.known |= FT_REGION_ACCESS
        return ft_regions_put(&self._regions, &region)

    def find(self, str device not None, uint32_t lkey):
        """(device, lkey, rkey, pid, address, length, access, serial), or None.

        ``serial`` is another one for each registration.
        """
        cdef uint32_t number = self._find(device, lkey)
        return None if number == FT_NONE else self._region(number)

    def remove(self, str device not None, uint32_t lkey):
        """Take a region out; False if it was not there."""
        cdef uint32_t number = self._find(device, lkey)
        if number == FT_NONE:
            return False
        ft_regions_remove(&self._regions, number)
        return True

    def remove_device(self, str device not None):
        """Take all regions of a device out."""
        cdef uint32_t number, wanted = self._known_device(device)
        if wanted != FT_NONE:
            for number in range(self._regions.table.used):
                if ft_table_lives(&self._regions.table, number) and self._at(number).key.device == wanted:
                    ft_regions_remove(&self._regions, number)

    def remove_process(self, int32_t pid):
        """Take all regions of a process out."""
        cdef uint32_t number
        cdef ft_region *region
        for number in range(self._regions.table.used):
            if ft_table_lives(&self._regions.table, number):
                region = self._at(number)
                if region.known & FT_REGION_PID and region.pid == pid:
                    ft_regions_remove(&self._regions, number)

    def keys(self):
        """(device, lkey) of every region."""
        cdef uint32_t number
        names = self._names()
        return [
            (names[self._at(number).key.device], self._at(number).key.lkey)
            for number in range(self._regions.table.used)
            if ft_table_lives(&self._regions.table, number)
        ]

    def regions(self):
        """Every region, as :meth:`find` gives one."""
        cdef uint32_t number
        return [
            self._region(number)
            for number in range(self._regions.table.used)
            if ft_table_lives(&self._regions.table, number)
        ]

    def sums(self):
        """(pid, device, remote access, remote atomic, count, bytes) of each kind of region there is."""
        cdef uint32_t number
        cdef ft_sum *one
        names = self._names()
        found = []
        for number in range(self._regions.sums.used):
            if ft_table_lives(&self._regions.sums, number):
                one = <ft_sum *>ft_table_at(&self._regions.sums, number)
                found.append((
                    one.key.pid if one.key.has_pid else None,
                    names[one.key.device],
                    _REMOTE[one.key.remote],
                    None if one.key.atomic == FT_ATOMIC_UNKNOWN else one.key.atomic == FT_ATOMIC_YES,
                    one.count,
                    one.bytes,
                ))
        return found

    cdef ft_region *_at(self, uint32_t number) noexcept:
        return <ft_region *>ft_table_at(&self._regions.table, number)

    cdef tuple _region(self, uint32_t number):
        cdef ft_region *one = self._at(number)
        cdef ft_device_name *device = <ft_device_name *>ft_table_at(&self._regions.devices, one.key.device)
        return (
            _name(device.name),
            one.key.lkey,
            one.rkey,
            one.pid if one.known & FT_REGION_PID else None,
            one.address if one.known & FT_REGION_ADDRESS else None,
            one.length,
            one.access if one.known & FT_REGION_ACCESS else None,
            one.serial,
        )

    cdef list _names(self):
        cdef uint32_t number
        return [
            _name((<ft_device_name *>ft_table_at(&self._regions.devices, number)).name)
            for number in range(self._regions.devices.used)
        ]

    cdef uint32_t _known_device(self, str device) except? 0xFFFFFFFE:
        cdef char key[64]
        _put_name(key, device)
        return ft_table_find(&self._regions.devices, key)

    cdef uint32_t _device(self, str device) except? 0xFFFFFFFE:
        """The number of a device's name, which is new perhaps; FT_NONE where there are too many."""
        cdef uint32_t number = self._known_device(device)
        cdef char key[64]
        if number == FT_NONE:
            _put_name(key, device)
            number = ft_add_device(&self._regions, key, self._wanted(device))
        return number

    cdef uint32_t _find(self, str device, uint32_t lkey) except? 0xFFFFFFFE:
        cdef ft_region_key key
        key.device = self._known_device(device)
        key.lkey = lkey
        return FT_NONE if key.device == FT_NONE else ft_table_find(&self._regions.table, &key)


cdef _put_name(char *target, str device):
    """As the kernel writes it: UTF-8 or what it was, 63 bytes at most, NUL behind."""
    cdef bytes raw = device.encode("utf-8", "surrogateescape")[: FT_DEVICE_NAME_LEN - 1]
    memset(target, 0, FT_DEVICE_NAME_LEN)
    memcpy(target, <const char *>raw, len(raw))


cdef str _name(const char *raw):
    cdef size_t length = 0
    # There is always a NUL in the kernel's; regions.h takes no more either.
    while length < FT_DEVICE_NAME_LEN - 1 and raw[length]:
        length += 1
    return raw[:length].decode("utf-8", "surrogateescape")


cdef str _device_name(const ft_record *record):
    return _name((<const char *>record) + _DEVICE_AT)


cdef extern from *:
    const size_t _DEVICE_AT "offsetof(struct ft_record, device)"
