"""What the budget did, into coverage, series and journal. Under the node's lock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fabrictap import catalog
from fabrictap.catalog import Event, Metric
from fabrictap.journal import Journal
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.series import Attributes, Series, SeriesTable
from fabrictap.sources.verbs.budget import Decision, State
from fabrictap.sources.verbs.duty import Duty, Figures
from fabrictap.sources.verbs.missed import Missed
from fabrictap.sources.verbs.posts import PostFold

#: A fraction that has moved by less is not written anew.
_STEP = 0.001
#: What is not all must not read as if it were, in a float of the ring.
_MOST = 0.9999
_EVENTS: dict[State, Event] = {
    State.REDUCED: catalog.BUDGET_REDUCED,
    State.DETACHED: catalog.BUDGET_DETACHED,
    State.FULL: catalog.BUDGET_RESTORED,
}


@dataclass(slots=True)
class _Shown:
    """What is exported of one process."""

    identity: Attributes
    hits: Series
    cost: Series
    figures: Figures


class Estimates:
    """Of one :class:`Duty`."""

    def __init__(
        self, series: SeriesTable, ledger: Ledger, posts: PostFold, duty: Duty, missed: Missed
    ) -> None:
        self._series = series
        self._ledger = ledger
        self._posts = posts
        self._duty = duty
        self._missed = missed
        self._journal = Journal(series.ring)
        self._shown: dict[int, _Shown] = {}
        self._ratios: set[Series] = set()
        #: Nanoseconds missed of each process at the last fold.
        self._before: dict[int, int] = {}

    def settle(self, connection: Connection, now_ns: int) -> None:
        """The flows of a connection are about to end: how much of it was seen."""
        if connection.pid is not None:
            self._estimate(connection, self._missed.until(connection.pid, now_ns), now_ns)

    def fold(self, now_ns: int, *, figures: bool) -> None:
        """``figures``: export them too."""
        known = self._duty.figures()
        self._cover(known, now_ns)
        self._tell(self._duty.decisions(), now_ns)
        if figures:
            self._export(known, now_ns)

    def close(self) -> None:
        """End what is exported of processes."""
        for pid in list(self._shown):
            self._hide(pid)
        for series in self._ratios:
            self._series.end(series)
        self._ratios.clear()

    def _cover(self, known: dict[int, Figures], now_ns: int) -> None:
        before, self._before = self._before, {}
        for pid in self._missed.pids():
            if pid in known and known[pid].state is State.OFF:
                continue
            total = self._before[pid] = self._missed.until(pid, now_ns)
            if total == before.get(pid, 0):
                continue  # the fractions only grow, which can wait until there is a gap again
            for connection in self._ledger.connections.of_process(pid):
                self._estimate(connection, total, now_ns)

    def _estimate(self, connection: Connection, missed: int, now_ns: int) -> None:
        """``missed`` of its process until now."""
        if not missed or connection.pid is None or connection.coverage_kind == "control_only":
            return
        if connection.missed_before_ns is None:
            connection.missed_before_ns = self._missed.until(connection.pid, connection.created_ns)
        lost = missed - connection.missed_before_ns
        if lost <= 0:
            return
        self._ledger.traffic.partial_ns[f"{connection.device}/{connection.port or 1}"] = now_ns
        began_ns = max(connection.since_ns or 0, connection.created_ns)
        fraction = min(max(0.0, 1 - lost / max(1, now_ns - began_ns)), _MOST)
        was = connection.fraction
        if was is not None and abs(was - fraction) < _STEP and (fraction > 0) == (was > 0):
            return
        if was is None:
            # What says exact, or since, has all until now.
            self._posts.settle(connection.device, connection.qpn, now_ns)
            self._posts.unbind(connection.device, connection.qpn, now_ns)
        connection.coverage = Coverage("estimated", connection.since_ns, fraction)

    def _tell(self, decisions: Iterable[Decision], now_ns: int) -> None:
        for one in decisions:
            what = one.state.value if not one.count else "restored" if one.state is State.FULL else "window"
            labels = {catalog.BUDGET_DECISION.name: what}
            self._series.series(catalog.BUDGET_DECISIONS, labels, now_ns).add(1, now_ns)
            if one.changed and (event := _EVENTS.get(one.state)) is not None:
                process = self._ledger.processes.get(one.pid)
                self._journal.write(
                    event,
                    now_ns,
                    pid=one.pid,
                    process=process.name if process is not None else "",
                    value=int(one.rate),
                    text="" if one.count else f"for {one.pause:.1f} s to begin with",
                )

    def _export(self, known: dict[int, Figures], now_ns: int) -> None:
        for pid in self._shown.keys() - known.keys():
            self._hide(pid)
        ratios: dict[Series, float] = {}
        for pid, figures in known.items():
            shown = self._shown.get(pid)
            if shown is None and not figures.hits:
                continue
            identity = self._ledger.identity(pid)
            if shown is None or shown.identity is not identity:
                if shown is not None:
                    self._hide(pid)
                told = Figures(0, 0.0, figures.state, figures.met_ns) if shown is None else shown.figures
                shown = self._shown[pid] = _Shown(
                    identity,
                    self._series.series(catalog.PROBE_HITS, identity, now_ns),
                    self._series.series(catalog.PROBE_COST, identity, now_ns),
                    told,
                )
            # Added, not set: processes may share a series.
            shown.hits.add(figures.hits - shown.figures.hits, now_ns)
            shown.cost.add(figures.cost - shown.figures.cost, now_ns)
            shown.figures = figures
            if (missed := self._before.get(pid)) and figures.state is not State.OFF:
                series = self._series.series(catalog.COVERAGE_RATIO, identity, now_ns)
                ratio = max(0.0, 1 - missed / max(1, now_ns - figures.met_ns))
                ratios[series] = min(ratio, ratios.get(series, 1.0))
        for series, ratio in ratios.items():
            series.set(ratio, now_ns)
        for series in self._ratios - ratios.keys():
            self._series.end(series)
        self._ratios = set(ratios)
        self._export_node(now_ns)

    def _export_node(self, now_ns: int) -> None:
        def show(metric: Metric, attributes: Attributes, value: float) -> None:
            self._series.series(metric, attributes, now_ns).set(value, now_ns)

        show(catalog.BUDGET_USED, {}, self._duty.node_cost())
        for state, count in self._duty.states().items():
            show(catalog.BUDGET_PROCESSES, {catalog.BUDGET_STATE.name: state.value}, count)
        if self._duty.cost.problem is None:
            for entry in catalog.PROBE_ENTRY.values:
                cost = getattr(self._duty.cost, entry) * 1e-9
                show(catalog.PROBE_HIT_COST, {catalog.PROBE_ENTRY.name: entry}, cost)
        for program, seconds in self._duty.run_times().items():
            show(catalog.PROBE_RUN_TIME, {catalog.PROBE.name: program}, seconds)

    def _hide(self, pid: int) -> None:
        shown = self._shown.pop(pid)
        others = [one for one in self._shown.values() if one.hits is shown.hits]
        if not others:
            self._series.end(shown.hits)
            self._series.end(shown.cost)
