from fabrictap.ext.ring import Ring, Series

class KeyedFold:
    record_size: int
    received: int
    misfits: int
    refused: int
    def __init__(
        self,
        ring: Ring,
        *,
        record_size: int,
        key_at: int,
        key_size: int,
        total_at: int | None = None,
        capacity: int = 1024,
    ) -> None: ...
    def __len__(self) -> int: ...
    def feed(self, records: bytes) -> None: ...
    def fold(self, now_ns: int) -> list[bytes]: ...
    def bind(self, key: bytes, count: Series | None, total: Series | None, now_ns: int) -> None: ...
