"""What windows saw, as series: successes, errors, receive bytes, latencies. Under the node's lock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ext.completions import COMPLETED, LATENCY_SCALE, Group
from fabrictap.ledger import Ledger
from fabrictap.series import AttributeValue, Histogram, Series, SeriesTable
from fabrictap.sources.verbs import wc
from fabrictap.sources.verbs.windows import Window

_NS = 10**9
#: What an exponential histogram of the ring has (ext/ring.h).
_MOST_BUCKETS = 160


@dataclass(slots=True)
class Latencies:
    """A cumulative histogram of seconds, of scale LATENCY_SCALE."""

    buckets: dict[int, int] = field(default_factory=dict)
    sum_ns: int = 0

    def add(self, group: Group) -> None:
        for index, count in group.latencies.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.sum_ns += group.latency_ns

    def histogram(self) -> Histogram:
        """In as few buckets as the ring has."""
        buckets, scale = self.buckets, LATENCY_SCALE
        while buckets and max(buckets) - min(buckets) >= _MOST_BUCKETS:
            coarser: dict[int, int] = {}
            for index, count in buckets.items():
                coarser[index >> 1] = coarser.get(index >> 1, 0) + count
            buckets, scale = coarser, scale - 1
        low, high = min(buckets), max(buckets)
        counts = [buckets.get(index, 0) for index in range(low, high + 1)]
        return Histogram(sum(counts), self.sum_ns / _NS, 0, low, counts, scale)


class CompletionFold:
    """Sums windows into series, which live as long as a process that they count."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger
        self._latencies: dict[Series, Latencies] = {}
        #: The series of each process; several may share one (limits.identities).
        self._of_pid: dict[int, set[Series]] = {}
        self._users: dict[Series, int] = {}
        self._last: Window | None = None

    def fold(self, windows: Iterable[Window], now_ns: int) -> None:
        for window in windows:
            self._tell(catalog.COMPLETION_WINDOWS, {catalog.WINDOW_END.name: window.end}, 1, now_ns)
            if window.end == "failed":
                continue
            self._tell(
                catalog.COMPLETION_OBSERVED_TIME, {}, (window.ended_ns - window.began_ns) / _NS, now_ns
            )
            self._tell(catalog.COMPLETION_LOST, {}, window.lost, now_ns)
            self._share(window, now_ns)
            for group in window.groups:
                device = window.devices.get((group.pid, group.context)) or self._device(group)
                if group.kind == COMPLETED and device is not None and self._ledger.filter(device):
                    self._completed(group, device, now_ns)

    def _share(self, window: Window, now_ns: int) -> None:
        """Of the time from the last window's begin to this one's: of the first nothing can be said."""
        last, self._last = self._last, window
        if last is not None and window.began_ns > last.began_ns:
            share = (last.ended_ns - last.began_ns) / (window.began_ns - last.began_ns)
            self._series.series(catalog.COMPLETION_OBSERVED_SHARE, {}, now_ns).set(share, now_ns)

    def process_gone(self, pid: int) -> None:
        for series in self._of_pid.pop(pid, ()):
            self._users[series] -= 1
            if not self._users[series]:
                del self._users[series]
                self._latencies.pop(series, None)
                self._series.end(series)

    def _device(self, group: Group) -> str | None:
        """Of a process that has gone by now: of its connection with that number, where there is one only."""
        found = {one.device for one in self._ledger.connections.of_process(group.pid) if one.qpn == group.qpn}
        return found.pop() if len(found) == 1 else None

    def _completed(self, group: Group, device: str, now_ns: int) -> None:
        base: dict[str, AttributeValue] = {**self._ledger.identity(group.pid), "rdma.device": device}
        if group.status:
            attributes = {
                **base,
                catalog.RDMA_QPN.name: group.qpn,
                catalog.RDMA_COMPLETION_STATUS.name: wc.status(group.status),
            }
            self._of(group.pid, catalog.COMPLETION_ERRORS, attributes, now_ns).add(group.count, now_ns)
            return
        operation = wc.completed(group.operation)
        with_operation = {**base, catalog.RDMA_OPERATION.name: operation}
        self._of(group.pid, catalog.COMPLETION_OPERATIONS, with_operation, now_ns).add(group.count, now_ns)
        if group.operation >= wc.RECEIVE:
            connection = self._ledger.connections.get(device, group.qpn)
            size = group.payload(connection is not None and connection.type == "ud")
            self._of(group.pid, catalog.COMPLETION_RECEIVE_IO, base, now_ns).add(size, now_ns)
        if group.latencies:
            series = self._of(group.pid, catalog.COMPLETION_LATENCY, with_operation, now_ns)
            latencies = self._latencies.setdefault(series, Latencies())
            latencies.add(group)
            series.set(latencies.histogram(), now_ns)
        for reason, count in group.outcomes.items():
            attributes = {**base, catalog.RDMA_COMPLETION_UNMATCHED.name: reason}
            self._of(group.pid, catalog.COMPLETION_UNMATCHED, attributes, now_ns).add(count, now_ns)

    def _of(self, pid: int, metric: Metric, attributes: dict[str, AttributeValue], now_ns: int) -> Series:
        series = self._series.series(metric, attributes, now_ns)
        mine = self._of_pid.setdefault(pid, set())
        if series not in mine:
            mine.add(series)
            self._users[series] = self._users.get(series, 0) + 1
        return series

    def _tell(self, metric: Metric, attributes: dict[str, AttributeValue], value: float, now_ns: int) -> None:
        self._series.series(metric, attributes, now_ns).add(value, now_ns)
