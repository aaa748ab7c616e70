"""The probes of single work requests and completions (probes/verbs_work.bpf.c), and what they tell.

They are attached for a moment only: in windows (:mod:`windows`), and by ``fabrictap trace``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fabrictap.ext.completions import Completions
from fabrictap.ext.records import sum_per_cpu
from fabrictap.sources.verbs.probes import Kind, Probes, ProbesUnavailable, load_work, returns_safe
from fabrictap.sources.verbs.providers import DATA_PATH, EXTENDED, WINDOWED

_WITH_RETURN = frozenset(("post_send", "wr_complete", "poll_cq"))
_RECEIVES = frozenset(("post_recv", "post_srq_recv"))
#: struct ibv_context.device, struct ibv_device.name and its size (libibverbs/verbs.h, public).
_DEVICE, _NAME, _NAME_SIZE = 0, 24, 64
#: Losses (fabrictap.loss.reason) by which a record is missing.
_MISSING = ("buffer_full", "chain_too_long", "memory_fault", "table_full")


@dataclass(frozen=True, slots=True)
class WorkPrograms(Kind):
    """Those of verbs_work.bpf.c, which are the same on all kernels. ``receives``: posted receives too."""

    receives: bool = False

    def programs(self, name: str) -> list[tuple[str, bool]]:
        if name in _WITH_RETURN:
            return [(f"work_{name}", False), (f"work_{name}_return", True)]
        if name in EXTENDED or name in WINDOWED or (name in _RECEIVES and self.receives):
            return [(f"work_{name}", False)]
        return []


def open_probes(
    event_buffer: int, *, pid: int = 0, receives: bool = False, returns: bool | None = None
) -> Probes:
    """Load the probes; nothing is attached yet. Raises ProbesUnavailable.

    With ``pid`` they are for that process only. ``returns``: whether return probes are safe here, without
    which there are no completions; None: to be tried.
    """
    if not (returns_safe() if returns is None else returns):
        raise ProbesUnavailable(
            "completions are known when poll_cq returns, and return probes are not safe on this kernel "
            "(mended in Linux 6.14)"
        )
    return load_work(
        WorkPrograms(receives=receives), (*DATA_PATH, *EXTENDED, *sorted(WINDOWED)), event_buffer, pid=pid
    )


class Reader:
    """Takes what the probes recorded and matches it. One thread at a time."""

    def __init__(self, probes: Probes, completions: Completions) -> None:
        self._probes = probes
        self._completions = completions
        self._before = self._missing()
        self._hits_before = hits(probes)
        #: Records that are missing since the start.
        self.lost = 0

    def read(self, timeout_ms: int) -> bytearray:
        """Wait, and take what is there; latencies and outcomes stand in it. Raises BpfError."""
        batch = bytearray(self._probes.records.poll(timeout_ms))
        # What is missing now is missing in this batch or right after it.
        lost = self._missing() - self._before
        self._completions.feed(batch, lost == self.lost)
        self.lost = lost
        return batch

    @property
    def hits(self) -> int:
        """How many calls were probed since the start."""
        return hits(self._probes) - self._hits_before

    def _missing(self) -> int:
        losses = self._probes.losses()
        return sum(losses[reason] for reason in _MISSING)


def hits(probes: Probes) -> int:
    """How many calls were probed since they were loaded."""
    value = probes.object.map("hits").get(bytes(4))
    return sum_per_cpu(value) if value is not None else 0


def drain(probes: Probes) -> None:
    """Throw away what was recorded, and what the programs remember of before."""
    while probes.records.poll(0):
        pass
    for name in ("selective", "building"):
        table = probes.object.map(name)
        for keys, _, count in table.batches():
            for index in range(count):
                table.delete(keys[table.key_size * index : table.key_size * (index + 1)])


def device_name(pid: int, context: int) -> str | None:
    """The device of a ``struct ibv_context`` of a process; None where it cannot be read any more."""
    try:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        device = int.from_bytes(os.pread(descriptor, 8, context + _DEVICE), "little")
        name = os.pread(descriptor, _NAME_SIZE, device + _NAME)
    except (OSError, OverflowError):
        return None
    finally:
        os.close(descriptor)
    return name.split(b"\0", 1)[0].decode("utf-8", "replace") or None
