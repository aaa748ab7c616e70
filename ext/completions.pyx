# cython: language_level=3
"""Records of work requests and completions (probes/include/work.h), matched and summed without the GIL.

See completions.h for when a completion has a latency and when it is only counted.
"""

from collections import namedtuple
from dataclasses import dataclass
from struct import Struct

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fabrictap.ext.table cimport ft_table, ft_table_at, ft_table_init

cdef extern from "completions.h" nogil:
    cdef enum:
        FT_WORK_SENT
        FT_WORK_RECEIVE
        FT_WORK_COMPLETED
        FT_WORK_EMPTY
        FT_WORK_REFUSED
        FT_WORK_RESET
        FT_MATCHED
        FT_NOT_MATCHED
        FT_EARLIER
        FT_AMBIGUOUS
        FT_MISMATCHED
        FT_LOST
        FT_OVERFLOWED
        FT_OUTCOMES
        FT_LATENCY_SCALE
        FT_LATENCY_BASE
        FT_LATENCY_BUCKETS
        FT_IDLE_NS
        FT_RUN

    cdef struct ft_work:
        uint64_t time_ns

    cdef struct ft_pair_key:
        uint32_t qpn

    cdef struct ft_pair:
        ft_pair_key key

    cdef struct ft_poll_key:
        uint64_t queue

    cdef struct ft_poll:
        ft_poll_key key

    cdef struct ft_group_key:
        uint64_t context
        uint32_t tgid
        uint32_t qpn
        uint8_t kind
        uint8_t operation
        uint8_t status

    cdef struct ft_group:
        ft_group_key key
        uint64_t count
        uint64_t bytes
        uint64_t headers
        uint64_t outcomes[7]
        uint64_t latency_ns
        uint64_t least_ns
        uint64_t most_ns
        uint32_t latencies[304]

    cdef struct ft_completions:
        ft_table pairs
        ft_table polls
        ft_table groups
        uint64_t began_ns
        uint64_t remembered
        uint64_t remembered_most

    const uint32_t sizeof_pair_key "sizeof(struct ft_pair_key)"
    const uint32_t sizeof_poll_key "sizeof(struct ft_poll_key)"
    const uint32_t sizeof_group_key "sizeof(struct ft_group_key)"
    const size_t sizeof_pair "sizeof(struct ft_pair)"
    const size_t sizeof_poll "sizeof(struct ft_poll)"
    const size_t sizeof_group "sizeof(struct ft_group)"
    const size_t sizeof_work "sizeof(struct ft_work)"
    void ft_completions_feed(ft_completions *all, ft_work *works, size_t count, bint whole)
    void ft_completions_free(ft_completions *all)

WORK_SIZE = sizeof_work
SENT, RECEIVE, COMPLETED, EMPTY, REFUSED, RESET = (
    FT_WORK_SENT, FT_WORK_RECEIVE, FT_WORK_COMPLETED, FT_WORK_EMPTY, FT_WORK_REFUSED, FT_WORK_RESET,
)
MATCHED, NOT_MATCHED = FT_MATCHED, FT_NOT_MATCHED
#: Why a completion has no latency, by its outcome; None where it has one, or where none is looked for.
OUTCOMES = (None, None, "earlier", "ambiguous", "mismatched", "lost", "overflowed")
LATENCY_SCALE = FT_LATENCY_SCALE
#: Nanoseconds of nothing after which nothing is outstanding; completions in order that prove the same.
IDLE_NS, RUN = FT_IDLE_NS, FT_RUN

#: One record. Times are CLOCK_MONOTONIC; ``latency_ns`` is 0 where it is not known.
Work = namedtuple(
    "Work",
    "time_ns context queue wr_id bytes latency_ns pid tid qpn flags status vendor_error number place peer_qpn "
    "kind operation qp_type outcome",
)
# A global routing header (IBTA 8.3).
_GRH = 40
_LAYOUT = Struct("<6Q9I4B")
if _LAYOUT.size != WORK_SIZE:
    raise ImportError("struct ft_work is not what it was")


@dataclass(frozen=True)
class Group:
    """What is alike, summed. ``latencies``: index of an exponential histogram of seconds, of scale
    LATENCY_SCALE -> how many; ``outcomes`` counts by reason the completions without a latency; ``headers`` those
    with a GRH, whose 40 bytes are among those of a datagram, and of no other."""

    context: int
    pid: int
    qpn: int
    kind: int
    operation: int
    status: int
    count: int
    bytes: int
    headers: int
    outcomes: dict
    latency_ns: int
    least_ns: int
    most_ns: int
    latencies: dict

    def payload(self, datagrams):
        """Bytes without headers; ``datagrams``: whether the queue pair is of type UD."""
        return self.bytes - _GRH * self.headers if datagrams else self.bytes


def decode(batch):
    """The records of a batch, as Work."""
    return [Work._make(one) for one in _LAYOUT.iter_unpack(batch)]


def encode(work):
    """The bytes of one Work."""
    return _LAYOUT.pack(*work)


cdef class Completions:
    """Matches completions with requests, and sums both, from ``began_ns`` (CLOCK_MONOTONIC) on.

    ``pairs`` and ``groups`` are limits of its tables, ``outstanding`` of the requests that it remembers in
    all; what is beyond is counted in :attr:`refused` or is without latency (overflowed).
    """

    cdef ft_completions _all

    def __cinit__(
        self, uint64_t began_ns, uint32_t pairs=4096, uint32_t groups=4096, uint64_t outstanding=1 << 18,
    ):
        ft_table_init(&self._all.pairs, sizeof_pair, sizeof_pair_key, pairs)
        ft_table_init(&self._all.polls, sizeof_poll, sizeof_poll_key, pairs)
        ft_table_init(&self._all.groups, sizeof_group, sizeof_group_key, groups)
        self._all.began_ns = began_ns
        self._all.remembered_most = outstanding

    def __dealloc__(self):
        ft_completions_free(&self._all)

    @property
    def refused(self):
        """How often something had no room in a table."""
        return self._all.pairs.refused + self._all.polls.refused + self._all.groups.refused

    def feed(self, bytearray batch not None, bint whole=True):
        """Take a batch of records, and write latency and outcome into those of completions.

        ``whole``: no record was lost among them or right before them. Else none of them is matched, and what
        is outstanding is forgotten.
        """
        cdef size_t count = len(batch) // sizeof_work
        cdef char *data = batch
        if len(batch) % sizeof_work:
            raise ValueError("not whole records")
        with nogil:
            ft_completions_feed(&self._all, <ft_work *>data, count, whole)

    def groups(self):
        """What was counted until now."""
        cdef ft_group *group
        cdef uint32_t number
        found = []
        for number in range(self._all.groups.used):
            group = <ft_group *>ft_table_at(&self._all.groups, number)
            outcomes = {
                OUTCOMES[i]: group.outcomes[i]
                for i in range(FT_OUTCOMES) if group.outcomes[i] and OUTCOMES[i] is not None
            }
            latencies = {
                i - FT_LATENCY_BASE: group.latencies[i]
                for i in range(FT_LATENCY_BUCKETS) if group.latencies[i]
            } if group.most_ns else {}
            found.append(Group(
                group.key.context, group.key.tgid, group.key.qpn, group.key.kind, group.key.operation,
                group.key.status, group.count, group.bytes, group.headers, outcomes, group.latency_ns, group.least_ns,
                group.most_ns, latencies,
            ))
        return found
