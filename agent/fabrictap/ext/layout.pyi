MAGIC: bytes
BYTE_ORDER: int
CHECKED: int
PAGE: int
STRIDE_MAX: int
FREE: int
LIVE: int
ENDED: int
UNKNOWN: int
INTEGER: int
REAL: int
HAS_PEER_QPN: int
HAS_SQ_PSN: int
HAS_RQ_PSN: int
HAS_PID: int
SIZES: dict[str, int]
FIELDS: dict[str, dict[str, tuple[int, str]]]

def stride(kind: int) -> int: ...
