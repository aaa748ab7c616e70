"""What the agent says about itself, as series."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from fabrictap import catalog
from fabrictap.export.signals import ExportStats
from fabrictap.runner import Runner
from fabrictap.series import Series, SeriesTable


class SelfWatch:
    """Brought up to date before each export, under the node's lock."""

    def __init__(self, series: SeriesTable) -> None:
        self._series = series
        self._process = psutil.Process()
        self._up: dict[str, Series] = {}

    def fold(self, runners: Iterable[Runner], stats: ExportStats, now_ns: int) -> None:
        """Read the agent's own state. ``now_ns``: nanoseconds since the epoch."""
        table = self._series
        for runner in runners:
            attributes = {catalog.SOURCE.name: runner.source.name}
            if runner.absent:
                # not a source of this node
                if (up := self._up.pop(runner.source.name, None)) is not None:
                    table.end(up)
                continue
            up = self._up[runner.source.name] = table.series(catalog.SOURCE_UP, attributes, now_ns)
            up.set(int(runner.up), now_ns)
            if durations := runner.take_durations():
                histogram = table.series(catalog.SOURCE_DURATION, attributes, now_ns)
                for duration in durations:
                    histogram.record(duration, now_ns)
            if runner.fast_interval:
                table.series(catalog.SAMPLE_INTERVAL, attributes, now_ns).set(runner.fast_interval, now_ns)
            for error, count in list(runner.source.errors.items()):
                labels = {**attributes, catalog.ERROR_TYPE.name: error}
                table.series(catalog.SOURCE_ERRORS, labels, now_ns).observe(count, now_ns)
        for metric, labels, count in stats.counts():
            table.series(metric, labels, now_ns).observe(count, now_ns)
        cpu = self._process.cpu_times()
        for mode, seconds in (("user", cpu.user), ("system", cpu.system)):
            started_ns = int(self._process.create_time() * 1e9)
            labels = {catalog.CPU_MODE.name: mode}
            table.series(catalog.PROCESS_CPU, labels, now_ns, started_ns).set(seconds, now_ns)
        table.series(catalog.PROCESS_MEMORY, {}, now_ns).set(self._process.memory_info().rss, now_ns)
        table.series(catalog.SERIES_REFUSED, {}, now_ns).observe(table.refused, now_ns)
        table.series(catalog.RING_SIZE, {}, now_ns).set(table.ring.allocated, now_ns)
        count_series = table.series(catalog.SERIES_COUNT, {}, now_ns)
        count_series.set(len(table), now_ns)
