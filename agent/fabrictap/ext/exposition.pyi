from collections.abc import Sequence

from fabrictap.ext.ring import Ring

_Pair = tuple[bytes, bytes]

class Exposition:
    def __init__(
        self,
        ring: Ring,
        families: Sequence[tuple[tuple[_Pair, _Pair | None, _Pair | None], Sequence[tuple[int, bytes]]]],
        before: bytes,
        linger_ns: int,
    ) -> None: ...
    def collect(self, now_ns: int) -> None: ...
    def render(self) -> bytes: ...

def label_name(name: str) -> str: ...
def label_value(value: str | int | bool) -> str: ...
