"""What the agent could not say about whose traffic it is, as series; and identities given back."""

from __future__ import annotations

from fabrictap import catalog
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable


class Identities:
    """Brought up to date before each export, after everything else that asks for identities."""

    def __init__(self, series: SeriesTable, ledger: Ledger) -> None:
        self._series = series
        self._ledger = ledger

    def fold(self, now_ns: int) -> None:
        """Under the node's lock. ``now_ns``: nanoseconds since the epoch."""
        table, workloads = self._series, self._ledger.workloads
        self._ledger.sweep()
        for reason, count in sorted(workloads.resolver.losses.copy().items()):
            labels = {catalog.WORKLOAD_LOSS.name: reason}
            table.series(catalog.WORKLOAD_LOST, labels, now_ns).observe(count, now_ns)
        for level, count in zip(catalog.IDENTITY_LEVEL.values, workloads.budget.dropped, strict=True):
            if count:
                labels = {catalog.IDENTITY_LEVEL.name: level}
                table.series(catalog.IDENTITY_DROPPED, labels, now_ns).observe(count, now_ns)
