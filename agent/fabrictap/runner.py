"""Runs one source in a thread of its own, so that one bad thing stays one bad thing.

A source that is unavailable, fails or hangs costs its own series. It is said once, retried with growing
pauses and comes back by itself. Between two tries it has no thread: most nodes lack most sources.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Event
from fabrictap.journal import Journal
from fabrictap.sources import (
    FastSource,
    RestingSource,
    SamplingSource,
    Source,
    SourceAbsent,
    SourceUnavailable,
)

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
#: Samples whose durations are kept for the next export, the newest.
_MOST_DURATIONS = 4096
#: Share of a core that the fast samples of one source may take.
_FAST_SHARE = 0.01


class Runner:
    """Drives one source. ``lock`` guards what the source folds into: the series and the ledger."""

    def __init__(self, source: Source[Any], lock: threading.Lock, journal: Journal) -> None:
        self.source = source
        self._journal = journal
        #: Why the source does not deliver; None while it does. Starting counts as a reason.
        self.reason: str | None = "starting"
        #: Whether what the source is about is not here and was not asked for.
        self.absent = False
        self._durations: deque[float] = deque(maxlen=_MOST_DURATIONS)
        #: Seconds between two fast samples, as their cost lets it be; 0 for none.
        self._fast_source = source if isinstance(source, FastSource) else None
        self._resting = source if isinstance(source, RestingSource) else None
        self._sampling = source if isinstance(source, SamplingSource) else None
        self.fast_interval = 0.0 if self._fast_source is None else self._fast_source.fast_interval
        #: CPU seconds that a fast sample takes: the least of the last few.
        self.fast_cost = 0.0
        self._fast_costs: deque[float] = deque(maxlen=5)
        #: Set once the source has delivered or said why it cannot.
        self.settled = threading.Event()
        self._lock = lock
        self._stop = threading.Event()
        self._busy_since: float | None = None
        #: Seconds between the last failure and the next try; None where there was none since a success.
        self.pause: float | None = None
        self._retry_at = 0.0
        self._thread: threading.Thread | None = None

    @property
    def up(self) -> bool:
        """Whether the source delivers: it has, and is not hung."""
        return self.reason is None and self.hung is None

    @property
    def hung(self) -> float | None:
        """Seconds since a call began that should have ended; None if there is none."""
        since = self._busy_since
        if since is None or (waited := time.monotonic() - since) <= self.source.deadline:
            return None
        return waited

    def start(self) -> None:
        """Try to deliver, in a new thread."""
        self._thread = threading.Thread(target=self._run, name=self.source.name, daemon=True)
        self._thread.start()

    @property
    def resting(self) -> bool:
        """Whether the source has failed and has no thread until it is revived."""
        return self._thread is not None and not self._thread.is_alive() and not self._stop.is_set()

    def revive(self, now: float) -> None:
        """Try again where the source rests and its pause is over. ``now``: seconds, time.monotonic."""
        if self.resting and now >= self._retry_at:
            self.start()

    def tick(self, now_ns: int) -> None:
        """Fold what a source has read by itself. Under the node's lock, before each row."""
        if self._sampling is None:
            return
        try:
            self._sampling.tick(now_ns)
        except Exception as error:  # noqa: BLE001 - a fault of one source must not end the agent
            self._sampling = None
            _log.error("source %s: its fast counters end: %s", self.source.name, error)
            _log.debug("where it failed:", exc_info=error)
        else:
            self.fast_interval = self._sampling.sampled_every

    def stop(self) -> None:
        """Ask for a last sample and the end; returns at once."""
        self._stop.set()
        if self._resting is not None:
            self._resting.wake()

    def join(self, timeout: float) -> bool:
        """Wait for the end. False when the source hangs; its thread is then left behind."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def take_durations(self) -> list[float]:
        """How long the samples since the last call took, in seconds, waiting for events not counted."""
        taken = []
        while self._durations:
            taken.append(self._durations.popleft())
        return taken

    def _run(self) -> None:
        try:
            self._timed(self.source.open)
            self._deliver()
        except SourceUnavailable as error:
            self._down(str(error), absent=isinstance(error, SourceAbsent))
        except Exception as error:  # noqa: BLE001 - a fault of one source must not end the agent
            self._fault(error)
        try:
            self._timed(self.source.close)
        except Exception as error:  # noqa: BLE001 - likewise: the source is opened again all the same
            self._fault(error)
        self.pause = _FIRST_PAUSE if self.pause is None else min(self.pause * 2, _LONGEST_PAUSE)
        self._retry_at = time.monotonic() + self.pause

    def _deliver(self) -> None:
        """Sample until told to stop. After a success the next pause is short again."""
        while True:
            last = self._stop.is_set()
            began = time.monotonic()
            sample = self._timed(self.source.sample)
            self._durations.append(max(0.0, time.monotonic() - began - self.source.waited))
            with self._lock:
                self.source.fold(sample, time.time_ns())
            if self.reason is not None:
                self._note(catalog.SOURCE_DELIVERS, self.source.name)
                _log.log(
                    logging.INFO if self.reason == "starting" else logging.WARNING,
                    "source %s delivers",
                    self.source.name,
                )
                self.reason = None
                self.absent = False
                self.settled.set()
                self.pause = None
            if last:
                return
            self._until(began + self.source.interval)

    def _until(self, end: float) -> None:
        """Wait for the next sample, with fast samples between."""
        source, resting = self._fast_source, self._resting
        if source is not None and self.fast_interval:
            if resting is not None:
                began = time.thread_time()
                readings = self._timed(lambda: resting.rest(end, self.fast_interval))
                if readings:
                    self._pace(source, (time.thread_time() - began) / readings)
                return
            while (due := time.monotonic() + self.fast_interval) < end - self.fast_interval / 2:
                if self._stop.wait(due - time.monotonic()):
                    return
                self._fast(source)
        self._stop.wait(max(0.0, end - time.monotonic()))

    def _fast(self, source: FastSource) -> None:
        began = time.thread_time()
        self._timed(source.sample_fast)
        now_ns = time.time_ns()
        with self._lock:
            source.fold_fast(now_ns)
        self._pace(source, time.thread_time() - began)

    def _pace(self, source: FastSource, cost: float) -> None:
        """Make the fast samples as rare as their cost in CPU seconds asks for."""
        self._fast_costs.append(cost)
        # One that costs more, as when a device came, says nothing of the next, and is not the last one taken.
        self.fast_cost = min(self._fast_costs)
        longest = max(source.fast_interval, self.source.interval / 2)
        self.fast_interval = min(max(source.fast_interval, self.fast_cost / _FAST_SHARE), longest)

    def _note(self, event: Event, text: str) -> None:
        with self._lock:
            self._journal.write(event, time.time_ns(), text=text)

    def _timed(self, call: Any) -> Any:
        self._busy_since = time.monotonic()
        try:
            return call()
        finally:
            self._busy_since = None

    def _fault(self, error: Exception) -> None:
        """What no source should raise: said once; where it was raised is for its developer."""
        reason = f"{type(error).__name__}: {error}"
        if reason != self.reason:
            _log.error("source %s failed unexpectedly: %s: %s", self.source.name, type(error).__name__, error)
        _log.debug("where it failed:", exc_info=error)
        self._down(reason)

    def _down(self, reason: str, *, absent: bool = False) -> None:
        if reason != self.reason:
            level = logging.DEBUG if absent else logging.WARNING
            _log.log(level, "source %s is off: %s", self.source.name, reason)
            if not absent:
                self._note(catalog.SOURCE_OFF, f"{self.source.name}: {reason}")
        self.reason = reason
        self.absent = absent
        self.settled.set()
