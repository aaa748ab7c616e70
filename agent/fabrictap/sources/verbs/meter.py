"""The kernel's side of the budget: what each process was charged, its quota, and who has used it up.

See probes/include/verbs_meter.h. For one thread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fabrictap.ext.bpf import RingBuffer
from fabrictap.sources.verbs.probes import Probes

#: struct ft_meter and struct ft_exceeded of probes/include/records.h.
_METER = struct.Struct("=QQQQII")
_EXCEEDED = struct.Struct("=QII")
_KEY = struct.Struct("=I")
#: Stands for all the processes that found no room in the map.
OTHERS = 0


@dataclass(frozen=True, slots=True)
class Charged:
    """``hits`` until now, ``mark`` of them before the window that began at ``began_ns`` (CLOCK_MONOTONIC)."""

    hits: int = 0
    mark: int = 0
    began_ns: int = 0
    quota: int = 0
    told: int = 0


class Meter:
    """Over a data path that was loaded with a quota."""

    def __init__(self, probes: Probes) -> None:
        self._map = probes.object.map("meters")
        self._records = RingBuffer(probes.object, "exceeded", _EXCEEDED.size, records=256)

    def wait(self, seconds: float) -> set[int]:
        """The processes that have used up their quota, as soon as one has; empty where none has in time."""
        batch = self._records.poll(int(seconds * 1000) + 1)
        return {pid for _, pid, _ in _EXCEEDED.iter_unpack(batch)}

    def all(self) -> dict[int, Charged]:
        """What every process was charged."""
        found = {}
        for keys, values, _ in self._map.batches():
            for (pid,), fields in zip(_KEY.iter_unpack(keys), _METER.iter_unpack(values), strict=True):
                found[pid] = Charged(*fields[:5])
        return found

    def get(self, pid: int) -> Charged:
        value = self._map.get(_KEY.pack(pid))
        return Charged() if value is None else Charged(*_METER.unpack(value)[:5])

    def grant(self, pid: int, quota: int, now_ns: int, *, anew: bool) -> None:
        """Give a process a quota; ``anew``: its window begins now. Hits of this very moment go uncharged.

        Raises BpfError, as where the map is full: the process shares the entry of the others then.
        """
        known = self.get(pid)
        mark, began_ns = (known.hits, now_ns) if anew else (known.mark, known.began_ns or now_ns)
        self._map.set(_KEY.pack(pid), _METER.pack(known.hits, mark, began_ns, quota, 0, 0))

    def forget(self, pid: int) -> bool:
        return bool(self._map.delete(_KEY.pack(pid)))
