"""What is read or listened to. Each source is one class with open, sample, fold and close.

``open`` and ``sample`` may block: they run in the source's own thread and touch nothing shared.
``fold`` puts a sample into the series and the ledger under the node's lock and must not block. A source
knows the series, the ledger and the catalog, never an exporter. One bad thing costs its own value: a
source that cannot work raises :class:`SourceUnavailable`, a read that fails is counted in ``errors``.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

SampleT = TypeVar("SampleT")


class SourceUnavailable(Exception):  # noqa: N818 - a state of the node, not a fault of the program
    """The source cannot deliver now. The message says what is missing; the runner tries again later."""


class SourceAbsent(SourceUnavailable):
    """What the source is about is not on this node, and was not asked for: nothing is wrong."""


class Source(Protocol[SampleT]):
    """What a runner drives. See the package's docstring for who may block where."""

    name: str
    #: Seconds between the starts of two samples.
    interval: float
    #: Seconds after which a sample counts as hung.
    deadline: float
    #: Seconds of the last sample that were spent waiting for something to happen; 0 for what is polled.
    waited: float
    #: Reads that failed since the start, by error type (an errno name or a short word).
    errors: dict[str, int]

    def open(self) -> None:
        """Get ready. Raises SourceUnavailable."""

    def sample(self) -> SampleT:
        """Read once. Raises SourceUnavailable."""

    def fold(self, sample: SampleT, now_ns: int) -> None:
        """Put a sample into series and ledger. ``now_ns``: nanoseconds since the epoch."""

    def close(self) -> None:
        """Let go of everything. Safe after a failed open, and twice."""


@runtime_checkable
class Expiring(Protocol):
    """A source whose figures must not be exported while it hangs, for they would pass for new ones."""

    def hung(self, now_ns: int) -> None:
        """End what is not known any more. Called under the node's lock, before each export of a hang."""


@runtime_checkable
class SamplingSource(Protocol):
    """A source that reads its fast counters by itself, in a thread of its own and without Python."""

    #: Seconds between two reads, as their cost lets it be; 0 where there are none.
    sampled_every: float

    def tick(self, now_ns: int) -> None:
        """Fold what was read since the last tick. Under the node's lock, before each row; does not block."""


@runtime_checkable
class FastSource(Protocol):
    """A source whose counters are also read between two samples, for the peaks of their rates."""

    #: Seconds between two fast samples; 0 for none. The runner makes it longer where that costs too much.
    fast_interval: float

    def sample_fast(self) -> None:
        """Read the fast counters into memory of the source's own. In its thread; may block."""

    def fold_fast(self, now_ns: int) -> None:
        """Fold them into their series. Under the node's lock; the time is that of the reading."""


@runtime_checkable
class RestingSource(FastSource, Protocol):
    """A fast source that waits for its next sample by itself, at a fraction of the cost: without Python."""

    def rest(self, until: float, interval: float) -> int:
        """Read the fast counters every ``interval`` s until ``until`` (time.monotonic). In its thread.

        Returns how many times; the next ``fold`` has the peaks of their rates.
        """

    def wake(self) -> None:
        """End a ``rest`` at once, or the next one. From any thread."""
