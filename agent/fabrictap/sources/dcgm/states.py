"""Why a value of DCGM cannot be had, in the words that all providers share (ledger/providers.py, REASONS)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fabrictap.ext.dcgm import Value
from fabrictap.sources.dcgm.fields import PROFILING, SXID_FATAL, SXID_NON_FATAL, XID

BAD_PARAMETER, TIMEOUT, NOT_WATCHED, INSUFFICIENT_SIZE = -1, -11, -16, -31
#: The connection is of no use any more: uninitialized, timed out, not valid.
FATAL = frozenset({-10, TIMEOUT, -21})
#: There is nothing of the kind at this engine, or its module is not there: not a fault.
ABSENT = frozenset({-6, -14, -33})
#: DCGM_ST_ code -> reason; any other is an error.
REASONS = {
    -5: "not_supported",  # not configured
    -6: "not_supported",
    -10: "not_connected",
    TIMEOUT: "timeout",
    -12: "version_mismatch",
    -13: "not_supported",  # a field that the engine does not know
    -14: "no_data",
    -15: "stale",
    NOT_WATCHED: "not_watched",
    -17: "no_permission",
    -18: "gpu_lost",
    -19: "gpu_lost",  # a reset is required
    -20: "function_not_found",
    -21: "not_connected",
    -22: "not_supported",  # this GPU
    -23: "not_supported",  # GPUs of one group that are not alike
    -29: "no_permission",  # the engine does not run as root
    -32: "not_supported",
    -33: "module_not_loaded",
    -34: "in_use",
    -36: "not_supported",  # profiling, on this GPU
    -37: "error",  # the profiling library
    -38: "in_use",  # not in one pass with what others have watched
    -44: "not_supported",  # the driver is too old
    -54: "paused",
    -56: "driver_not_loaded",  # the engine runs without NVML
    -57: "timeout",  # the driver, below the engine
    -67: "gpu_lost",  # detached
}
_BLANKS = {
    "blank": "blank",
    "not_found": "no_data",
    "not_supported": "not_supported",
    "not_permitted": "no_permission",
}
#: Written when something happens, not at every update.
EVENTS = frozenset({XID, SXID_FATAL, SXID_NON_FATAL})


def reason_of_code(code: int) -> str:
    """What a DCGM_ST_ code means for a figure."""
    return REASONS.get(code, "error")


def reason_of(value: Value) -> str | None:
    """Why ``value`` holds none; None where it does. Whether it is fresh is another question."""
    if value.status != 0:
        return reason_of_code(value.status)
    if value.blank is not None:
        return _BLANKS.get(value.blank, "error")
    return None


class Freshness:
    """Tells values that the engine has stopped to update, without trusting that its clock is ours.

    A value is stale when its time has not moved for ``patience`` seconds of our clock; at first sight, when
    it is older than that by the engine's time, for which the newest of all values is taken.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        #: (group, entity, field) -> (time of the value in us, when it was first seen)
        self._seen: dict[tuple[int, int, int], tuple[int, float]] = {}

    def judge(self, values: Iterable[Value], now: float) -> set[tuple[int, int, int]]:
        """The keys of the stale ones among the ``values`` of one sample. What is not there is forgotten."""
        wanted = [value for value in values if value.status == 0 and value.field not in EVENTS]
        newest = max((value.time_us for value in wanted), default=0)
        seen: dict[tuple[int, int, int], tuple[int, float]] = {}
        stale = set()
        for value in wanted:
            key = (value.group, value.entity, value.field)
            before = self._seen.get(key)
            if before is not None and before[0] == value.time_us:
                seen[key] = before
            elif before is None:
                age = min(max(0.0, (newest - value.time_us) / 1e6), 2 * self._patience)
                seen[key] = (value.time_us, now - age)
            else:
                seen[key] = (value.time_us, now)
            if now - seen[key][1] > self._patience:
                stale.add(key)
        self._seen = seen
        return stale


class Pauses:
    """Tells profiling that was paused from a field that is blank for itself.

    DCGM writes blanks while profiling is paused (dcgmProfPause): two or more profiling fields of an entity
    that had values are then blank, and none has one.
    """

    def __init__(self) -> None:
        self._had: dict[tuple[int, int], set[int]] = {}

    def judge(self, entity: tuple[int, int], reasons: Mapping[int, str | None]) -> bool:
        """Whether profiling of ``entity`` is paused, going by field -> reason of this sample."""
        profiling = {field: reason for field, reason in reasons.items() if field in PROFILING}
        had = self._had.setdefault(entity, set())
        had.update(field for field, reason in profiling.items() if reason is None)
        now = [profiling.get(field) for field in had if profiling.get(field) in (None, "blank")]
        return len(now) >= 2 and all(reason == "blank" for reason in now)

    def keep(self, entities: Iterable[tuple[int, int]]) -> None:
        """Forget what is not among ``entities``."""
        kept = set(entities)
        self._had = {entity: had for entity, had in self._had.items() if entity in kept}
