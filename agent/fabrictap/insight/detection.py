"""The detectors of the node: what each may look at and when, and what becomes of what they find.

``look`` is called by the node at every tick under its lock. What must block (the state file, files that are
watched) is done by a thread of its own. Two bounds keep the cost small: connections are walked in slices of
``SLICE``, and after a look all rest for as long as keeps them below ``SHARE`` of a core.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from fabrictap import catalog
from fabrictap.config import Config, Policy
from fabrictap.insight.detectors import Balance, Context, Detector, FileState, SourceState
from fabrictap.insight.detectors.dark import Dark
from fabrictap.insight.detectors.egress import Egress
from fabrictap.insight.detectors.gpus import GpuUse
from fabrictap.insight.detectors.links import Links
from fabrictap.insight.detectors.memory import Memory
from fabrictap.insight.detectors.peers import Peers
from fabrictap.insight.detectors.resources import Resources
from fabrictap.insight.detectors.tampering import Tampering
from fabrictap.insight.filewatch import WatchedFile
from fabrictap.insight.findings import QUIET_NS, Findings
from fabrictap.insight.policy import CompiledPolicy
from fabrictap.insight.remembered import Remembered
from fabrictap.insight.statefile import StateFile
from fabrictap.journal import Journal
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection
from fabrictap.series import Series, SeriesTable

_log = logging.getLogger(__name__)
#: Connections of one look.
SLICE = 1024
#: Share of a core that the detectors may take together.
SHARE = 0.01
#: The series that detectors watch are listed anew at most this often.
_INDEX_NS = 15 * 10**9
_WATCHED = frozenset(
    metric.name
    for metric in (
        catalog.ERRORS,
        catalog.PORT_COUNTER,
        catalog.NETWORK_UP,
        catalog.NETWORK_LIMIT,
        catalog.PROBE_ATTACHED,
        catalog.LOST,
        catalog.GPU_CONFIDENTIAL,
    )
)
#: Between two looks.
_LONGEST_NS = 60 * 10**9
_SAVE_SECONDS = 60.0
_STOP_SECONDS = 3.0


class Detectors:
    """All detectors of the node, their board and their memory. Under the lock, save where it is said."""

    def __init__(
        self,
        config: Config,
        series: SeriesTable,
        ledger: Ledger,
        journal: Journal,
        lock: threading.Lock,
        *,
        watched: Iterable[WatchedFile] = (),
        detectors: Sequence[Detector] | None = None,
    ) -> None:
        """Reads the state file. ``watched``: files of which finding file_replaced tells."""
        self.findings = Findings(config.findings, config.limits.findings, series, journal)
        self.remembered = Remembered(config.limits.egress_pairs)
        self._settings = config.findings
        self._policy = CompiledPolicy(config.policy)
        self._series = series
        self._ledger = ledger
        self._lock = lock
        self._watched = tuple(watched)
        self._files: tuple[FileState, ...] = ()
        self._detectors: Sequence[Detector] = (
            (Dark(), Memory(), Peers(), Egress(), Resources(), Tampering(), Links(), GpuUse())
            if detectors is None
            else detectors
        )
        if not config.findings.enabled:
            self._detectors = ()
        self._next_ns = 0
        self._failed: Counter[tuple[str, str]] = Counter()
        self._walk: list[Connection] = []
        self._index: dict[str, list[Series]] = {}
        self._indexed: tuple[int, int] = (-1, 0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._state: StateFile | None = None
        if config.state.path is not None and self._detectors:
            self._state = StateFile(config.state.path, self.remembered)
            self._state.load()

    def start(self) -> None:
        """Begin to save and to watch files. Without the lock."""
        if self._detectors and (self._state is not None or self._watched):
            self._thread = threading.Thread(target=self._keep, name="findings", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Save once more; a disk that hangs is left behind. Without the lock."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                _log.warning("what detectors remember could not be written before the end")

    def reload(self, policy: Policy) -> None:
        """A new policy is in force from the next look on."""
        self._policy = CompiledPolicy(policy)

    def accept_files(self) -> None:
        """What is in the watched files now has been read. Without the lock; may block."""
        for file in self._watched:
            file.accept()

    def look(
        self, now_ns: int, balances: Sequence[Balance] = (), sources: Sequence[SourceState] = ()
    ) -> None:
        """Let the detectors look, where it is time. ``now_ns``: nanoseconds since the epoch."""
        # A clock that was set back does not stop the looks.
        if not self._detectors or self._next_ns - _LONGEST_NS <= now_ns < self._next_ns:
            return
        ledger = self._ledger
        if not self._walk:
            self._walk = list(ledger.connections)
        batch, self._walk = self._walk[:SLICE], self._walk[SLICE:]
        context = Context(
            ledger,
            self._settings,
            self._policy,
            self.remembered,
            balances=balances,
            # Those that ended meanwhile are among the ended.
            batch=[one for one in batch if not one.ended],
            round_done=not self._walk,
            ended=ledger.connections.take_ended(),
            made=ledger.connections.take_made(),
            series=self._listed(now_ns),
            sources=sources,
            files=self._files,
        )
        cost = sum(self._look(detector, context, now_ns) for detector in self._detectors)
        pause_ns = min(int(max(float(self._settings.interval), cost / SHARE) * 1e9), _LONGEST_NS)
        self._next_ns = now_ns + pause_ns
        # What rests for long has not ended for that.
        self.findings.expire(now_ns, max(QUIET_NS, 3 * pause_ns))

    def fold(self, now_ns: int) -> None:
        """Bring the series of findings up to date, before an export."""
        table = self._series
        self.findings.fold(now_ns)
        for (name, error), count in self._failed.items():
            labels = {catalog.DETECTOR.name: name, catalog.ERROR_TYPE.name: error}
            table.series(catalog.DETECTOR_ERRORS, labels, now_ns).observe(count, now_ns)
        if self._state is not None:
            table.series(catalog.STATE_ROWS, {}, now_ns).set(len(self.remembered.pairs), now_ns)
        for error, count in self.remembered.errors.copy().items():
            labels = {catalog.STATE_ERROR.name: error}
            table.series(catalog.STATE_ERRORS, labels, now_ns).observe(count, now_ns)

    def _look(self, detector: Detector, context: Context, now_ns: int) -> float:
        """Returns the CPU seconds that it took."""
        began = time.thread_time()
        try:
            ignored = self._settings.ignore
            found = [
                finding for finding in detector.look(now_ns, context) if finding.kind.name not in ignored
            ]
            self.findings.see(found, now_ns)
        except Exception as error:  # noqa: BLE001 - a fault of one detector must not end the agent
            kind = type(error).__name__
            if not self._failed[detector.name, kind]:
                _log.error("detector %s failed unexpectedly: %s: %s", detector.name, kind, error)
                _log.debug("where it failed:", exc_info=error)
            self._failed[detector.name, kind] += 1
        cost = time.thread_time() - began
        labels = {catalog.DETECTOR.name: detector.name}
        self._series.series(catalog.DETECTOR_DURATION, labels, now_ns).record(cost, now_ns)
        return cost

    def _listed(self, now_ns: int) -> dict[str, list[Series]]:
        """The series that detectors watch: walked when some came or went, and not too often."""
        version, listed_ns = self._indexed
        if version != self._series.version and not 0 <= now_ns - listed_ns < _INDEX_NS:
            self._indexed = (self._series.version, now_ns)
            self._index = {}
            for series in self._series:
                if series.metric.name in _WATCHED:
                    self._index.setdefault(series.metric.name, []).append(series)
        return self._index

    def _keep(self) -> None:
        """The thread: looks at files in every interval, saves every minute and at the end."""
        next_save = time.monotonic() + _SAVE_SECONDS
        while True:
            last = self._stop.wait(float(self._settings.interval))
            self._files = tuple(file.state() for file in self._watched)
            if self._state is not None and (last or time.monotonic() >= next_save):
                self.save()
                next_save = time.monotonic() + _SAVE_SECONDS
            if last:
                return

    def save(self) -> None:
        """Write what has changed. Without the lock; blocks on the disk."""
        if self._state is None:
            return
        with self._lock:
            batch = self._state.take()
        if batch and not self._state.save(batch):
            with self._lock:
                self._state.give_back(batch)
