"""The ring's C side, for the modules that fold into it without the GIL."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    const char *FT_RING_MAGIC
    const uint32_t FT_NO_SERIES
    const uint32_t FT_NO_CONNECTION
    cdef enum:
        FT_RING_VERSION
        FT_RING_BYTE_ORDER
        FT_PAGE
        FT_SEGMENT
        FT_STRIDE_MAX
        FT_BUCKETS
        FT_OPERATIONS
        FT_COUNTER
        FT_UPDOWNCOUNTER
        FT_GAUGE
        FT_HISTOGRAM
        FT_KINDS
        FT_FREE
        FT_LIVE
        FT_ENDED
        FT_UNKNOWN
        FT_INTEGER
        FT_REAL
        FT_HAS_PEER_QPN
        FT_HAS_SQ_PSN
        FT_HAS_RQ_PSN
        FT_HAS_PID

    cdef union ft_value:
        int64_t integer
        double real

    cdef struct ft_ring_header:
        char magic[8]
        uint32_t version
        uint32_t byte_order
        uint64_t size
        uint64_t created_ns
        uint64_t tick_ns
        uint32_t pid
        uint32_t rows
        uint32_t series
        uint32_t histograms
        uint32_t connections
        uint32_t events
        uint64_t about_at
        uint64_t about_size
        uint64_t rows_at
        uint64_t kinds_at
        uint64_t series_at
        uint64_t heap_at
        uint64_t heap_size
        uint64_t histograms_at
        uint64_t connections_at
        uint64_t events_at
        uint64_t cells_at
        uint32_t checksum
        uint32_t about_sequence
        uint32_t about_length
        uint32_t about_checksum
        uint64_t head
        uint64_t events_head
        uint64_t ended_ns
        uint32_t connections_used
        uint32_t segments_used

    cdef struct ft_row:
        uint64_t number
        uint64_t start_ns
        uint64_t end_ns

    cdef struct ft_series:
        uint32_t sequence
        uint16_t metric
        uint8_t kind
        uint8_t state
        uint8_t number
        uint8_t rates
        uint16_t attributes_size
        uint32_t attributes
        uint32_t histogram
        uint8_t overflow
        uint64_t first_row
        uint64_t last_row
        uint64_t start_ns
        uint64_t time_ns
        ft_value value
        ft_value row_delta
        ft_value interval_delta
        float row_peak
        float interval_peak
        float peak
        float average
        double low
        double high
        uint64_t interval_start_ns

    cdef struct ft_histogram:
        uint32_t sequence
        int32_t scale
        uint64_t count
        double sum
        uint64_t zeros
        int32_t offset
        uint32_t used
        uint64_t row_count
        double row_sum
        uint64_t buckets[160]

    cdef struct ft_event:
        uint64_t number
        uint64_t time_ns
        uint16_t kind
        uint8_t severity
        int32_t pid
        uint32_t qpn
        uint32_t peer_qpn
        uint64_t value
        char device[64]
        char process[16]
        uint8_t gid[16]
        uint8_t peer_gid[16]
        char text[104]

    cdef struct ft_posted:
        uint64_t operations
        uint64_t bytes

    cdef struct ft_connection:
        uint32_t sequence
        uint8_t state
        uint8_t type
        uint8_t qp_state
        uint8_t coverage
        uint8_t origin
        uint8_t port
        uint8_t mtu_exponent
        uint8_t known
        uint32_t qpn
        uint32_t peer_qpn
        int32_t pid
        uint32_t sq_psn
        uint32_t rq_psn
        uint64_t created_ns
        uint64_t since_ns
        uint64_t ended_ns
        char device[64]
        char process[32]
        uint8_t gid[16]
        uint8_t peer_gid[16]
        ft_posted posted[16]
        uint64_t in_bytes
        uint64_t out_bytes
        float in_rate
        float out_rate
        float fraction

    cdef struct ft_ring:
        ft_ring_header *header
        ft_row *rows
        uint8_t *kinds
        ft_series *series
        char *heap
        ft_histogram *histograms
        ft_connection *connections
        ft_event *events
        char *cells
        uint64_t row_start_ns

    cdef struct ft_observer:
        uint32_t series
        uint32_t scale
        uint64_t last
        uint64_t time_ns
        uint8_t bits

    void ft_barrier()
    void ft_open_sequence(uint32_t *sequence)
    void ft_close_sequence(uint32_t *sequence)
    void ft_ring_add(ft_ring *ring, uint32_t slot, int64_t delta, uint64_t now_ns)
    void ft_ring_add_real(ft_ring *ring, uint32_t slot, double delta, uint64_t now_ns)
    void ft_ring_set(ft_ring *ring, uint32_t slot, double value, uint64_t now_ns)
    void ft_ring_set_integer(ft_ring *ring, uint32_t slot, int64_t value, uint64_t now_ns)
    void ft_ring_observe(ft_ring *ring, ft_observer *observer, uint64_t raw, uint64_t now_ns)
    void ft_ring_peak(ft_ring *ring, uint32_t slot, float rate)
    void ft_ring_record(ft_ring *ring, uint32_t slot, double value, uint64_t now_ns)
    void ft_histogram_put(ft_histogram *histogram, int32_t index, int32_t scale, uint64_t count)
    void ft_ring_event(ft_ring *ring, const ft_event *event)
    ft_histogram *ft_ring_histogram(ft_ring *ring, uint32_t slot)
    uint32_t ft_stride(uint8_t kind)
    void ft_ring_tick(ft_ring *ring, uint64_t now_ns, uint32_t inbound, uint32_t outbound)
    void ft_ring_interval(ft_ring *ring, uint64_t now_ns)


cdef class Ring:
    # The only owner of the mapping. Whoever keeps `view` keeps a reference to the Ring too.
    cdef ft_ring view
    cdef readonly object path
    cdef readonly uint32_t inbound
    cdef readonly uint32_t outbound
    cdef int _fd
    cdef void *_base
    cdef uint64_t _size
    cdef uint64_t _grace_ns
    cdef dict _reserved
    cdef list _free
    cdef dict _free_heap
    cdef uint64_t _heap_used
    cdef list _free_histograms
    cdef uint32_t _histograms_used
    cdef object _free_connections

    cdef bint _reserve(self, str section, uint64_t at, uint64_t end, uint64_t limit, uint64_t step) except? False
    cdef uint32_t _new_slot(self, int kind, uint64_t now_ns) except? 0xFFFFFFFE
    cdef void _release(self, uint32_t slot)
    cdef uint32_t take_connection(self, uint64_t now_ns) except? 0xFFFFFFFE
    cdef void give_connection(self, uint32_t row, uint64_t now_ns)


cdef class Series:
    # `slot` is FT_NO_SERIES for a series that was refused: writing to it does nothing.
    cdef readonly Ring ring
    cdef readonly uint32_t slot
    cdef readonly object metric
    cdef readonly bytes encoded
    cdef readonly bint ended
    # The value that a series without a slot of its own was last set to.
    cdef object _told
    cdef ft_observer _observer
