"""Slow egress: what a workload sends to one peer over days and weeks, against a budget and its own past.

Counted is what is posted outwards, for each connection, and the dark egress of each port. Three looks:

- the budget of the policy, a day;
- the past: a day, or a week, far above the median of the days before (by their median absolute deviation),
  once the workload has been known for ``learn_days``; and four weeks together to a peer that is new;
- a trickle: about the same small amount in nearly every hour for three days. Pacing an export below every
  threshold of seconds or days makes it one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fabrictap import catalog
from fabrictap.ext.connections import places_of
from fabrictap.insight.detectors import Balance, Context
from fabrictap.insight.detectors.dark import excused
from fabrictap.insight.findings import Finding, Severity, size_text
from fabrictap.insight.policy import CompiledPolicy, Rule
from fabrictap.insight.remembered import ALL, DAYS, HOURS, OTHERS, Known, Pair, hour_of
from fabrictap.ledger.connections import Connection
from fabrictap.ledger.flows import INBOUND, LOCAL
from fabrictap.ledger.names import OPERATIONS
from fabrictap.series import AttributeValue

#: Deviations above the median that a day may have, and times the median; 1.4826 makes the median absolute
#: deviation comparable to a standard deviation.
_DEVIATIONS, _TIMES = 6 * 1.4826, 3.0
#: All peers together vary with the size of a job.
_TIMES_ALL = 10.0
_OUT = places_of(frozenset(OPERATIONS) - INBOUND - LOCAL - {"recv"})
_TRICKLE_HOURS = HOURS - 1
#: Hours among them that may be without.
_GAPS = 4
_LEAST_AN_HOUR = 64 << 10
_MOST_AN_HOUR = 1 << 30
_DARK = "dark"
_UNKNOWN = "unknown"
#: Pairs judged in one look.
_SLICE = 512


@dataclass(slots=True)
class _Source:
    """The process that last sent for a pair, as evidence, and its workload's rule."""

    identity: dict[str, AttributeValue]
    rule: Rule


class Egress:
    """Counts in slices of connections, judges in slices of pairs."""

    name = "egress"

    def __init__(self) -> None:
        self._counted: dict[Connection, int] = {}
        self._dark: dict[str, tuple[int, int]] = {}
        self._excused: dict[str, bool] = {}
        self._sources: dict[str, _Source] = {}
        self._policy: CompiledPolicy | None = None
        self._queue: list[Pair] = []
        #: What the last judgement of each pair was; repeated until the next.
        self._held: dict[tuple[str, str], Finding] = {}

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        hour = hour_of(now_ns)
        if self._policy is not context.policy:
            self._policy = context.policy
            self._sources.clear()
            self._excused.clear()
            self._held.clear()
        self._count(hour, context)
        context.remembered.sweep(hour)
        if not self._queue:
            self._queue = list(context.remembered.pairs.values())
        batch, self._queue = self._queue[:_SLICE], self._queue[_SLICE:]
        for pair in batch:
            pair.roll(hour)
            key = (pair.workload, pair.peer)
            self._held.pop(key, None)
            if context.remembered.pairs.get(key) is not pair:
                continue
            known = context.remembered.workloads.get(pair.workload)
            if known is not None and (finding := self._judge(pair, known, context)) is not None:
                self._held[key] = finding
        yield from self._held.values()

    def _count(self, hour: int, context: Context) -> None:
        fresh: dict[tuple[str, str], int] = {}
        for connection in context.batch:
            self._add(connection, fresh, context)
        for connection in context.ended:
            self._add(connection, fresh, context)
            self._counted.pop(connection, None)
        for (workload, peer), size in fresh.items():
            context.remembered.sent(workload, peer, size, hour)
        if context.round_done and len(self._counted) > 2 * len(context.ledger.connections) + 1024:
            # More have ended than could be told of.
            self._counted = {one: size for one, size in self._counted.items() if not one.ended}
        if context.round_done:
            self._excused.clear()
        for balance in context.balances:
            if balance.direction != "transmit":
                continue
            since_ns, before = self._dark.get(balance.hw_id, (balance.since_ns, 0))
            if since_ns != balance.since_ns:
                before = 0
            self._dark[balance.hw_id] = (balance.since_ns, balance.dark)
            if balance.dark > before and not self._told(balance, context):
                name = f"{_DARK}:{balance.hw_id}"
                context.remembered.sent(name, _UNKNOWN, balance.dark - before, hour)

    def _told(self, balance: Balance, context: Context) -> bool:
        """Whether dark egress is another finding already, or none. Asked for once in a round of the walk."""
        if balance.hw_id in context.judged_ports:
            return True
        if balance.hw_id not in self._excused:
            self._excused[balance.hw_id] = excused(balance, context)
        return self._excused[balance.hw_id]

    def _add(self, connection: Connection, sums: dict[tuple[str, str], int], context: Context) -> None:
        _, size = connection.posted_sum(_OUT)
        fresh = size - self._counted.get(connection, 0)
        if fresh <= 0:
            return
        self._counted[connection] = size
        owner = context.owner_of(connection)
        key = owner.workload, connection.peer_gid or _UNKNOWN
        sums[key] = sums.get(key, 0) + fresh
        if owner.workload in self._sources or len(self._sources) < 4096:
            self._sources[owner.workload] = _Source(dict(owner.identity), owner.rule)

    def _judge(self, pair: Pair, known: Known, context: Context) -> Finding | None:  # noqa: PLR0911 - one a case
        settings = context.settings
        source = self._sources.get(pair.workload)
        rule = source.rule if source is not None else context.policy.rule({})
        if source is None and not pair.workload.startswith(f"{_DARK}:") and pair.peer != OTHERS:
            # Of before the agent's restart: who it is, and so its rule, is not known until it sends again.
            return None
        floor = settings.egress_floor
        budget = rule.settings.egress_budget
        listed = _listed(rule, pair.peer)
        if pair.workload.startswith(f"{_DARK}:"):
            if pair.peer == ALL:
                return None
            return self._over(pair, floor, 0) or self._trickle(pair, floor)
        if budget is not None and pair.peer != ALL:
            return self._over(pair, budget, None)
        days_known = pair.hour // 24 - known.first_hour // 24
        days_paired = pair.hour // 24 - pair.first_hour // 24
        if pair.peer == ALL:
            if budget is not None or rule.settings.peers is not None:
                return None
            return self._past(pair, days_known, 10 * floor, _TIMES_ALL, settings.learn_days)
        # To a peer that the policy lists only the pair's own past counts: the first day is not strange.
        history = days_paired if listed else days_known
        found = self._past(pair, history, floor, _TIMES, settings.learn_days)
        if found is None and not listed:
            new = pair.first_hour - known.first_hour >= 24 * settings.learn_days
            found = self._month(pair, floor) if new else None
            found = found or self._trickle(pair, floor)
        return found

    def _past(self, pair: Pair, days: int, floor: int, times: float, learn: int) -> Finding | None:
        days = min(days, DAYS)
        if days < learn:
            return None
        past = pair.past_days(days)
        limit, usual = _limit(past, floor, times)
        if pair.today > limit:
            return self._finding(pair, "today", pair.today, limit, usual, 86400)
        if past[0] > limit_without_first(past, floor, times):
            return self._finding(pair, "yesterday", past[0], limit, usual, 86400)
        older = past[6:]
        if len(older) >= learn:
            limit, usual = _limit(older, floor, times)
            week, most = pair.today + sum(past[:6]), 2 * floor + 7 * (limit - floor if limit > floor else 0)
            if week > most:
                return self._finding(pair, "a week", week, most, 7 * usual, 7 * 86400)
        return None

    def _month(self, pair: Pair, floor: int) -> Finding | None:
        month = pair.today + sum(pair.past_days(DAYS - 1))
        if month <= 4 * floor:
            return None
        return self._finding(pair, "four weeks", month, 4 * floor, 0, DAYS * 86400)

    def _trickle(self, pair: Pair, floor: int) -> Finding | None:
        if pair.hour - pair.first_hour < _TRICKLE_HOURS:
            return None
        hours = pair.past_hours(_TRICKLE_HOURS)
        active = sorted(size for size in hours if size >= _LEAST_AN_HOUR)
        if len(active) < _TRICKLE_HOURS - _GAPS or sum(hours) < floor:
            return None
        middle = _median(active)
        steady = (
            active[int(len(active) * 0.95)] <= 2 * middle and active[int(len(active) * 0.05)] * 2 >= middle
        )
        if middle > _MOST_AN_HOUR or not steady:
            return None
        what = f"three days, about {size_text(middle)} in every hour,"
        return self._finding(pair, what, sum(hours), floor, None, _TRICKLE_HOURS * 3600, "trickle")

    def _over(self, pair: Pair, limit: float, usual: float | None) -> Finding | None:
        """What was over the limit yesterday is still told today: midnight ends nothing."""
        for when, size in (("today", pair.today), ("yesterday", pair.past_days(1)[0])):
            if size > limit:
                return self._finding(pair, when, size, limit, usual, 86400)
        return None

    def _finding(  # noqa: PLR0917 - what a title is made of
        self,
        pair: Pair,
        period: str,
        size: float,
        limit: float,
        usual: float | None,
        seconds: int,
        key: str = "volume",
    ) -> Finding:
        source = self._sources.get(pair.workload)
        attributes = dict(source.identity) if source is not None else {}
        attributes[catalog.FINDING_WORKLOAD.name] = pair.workload
        attributes[catalog.FINDING_WINDOW.name] = seconds
        attributes[catalog.IO_DIRECTION.name] = "transmit"
        if usual is not None:
            attributes[catalog.FINDING_BASELINE.name] = round(usual)
        if pair.peer not in (ALL, OTHERS, _UNKNOWN):
            attributes[catalog.RDMA_PEER_GID.name] = pair.peer
        to = {ALL: "all peers together", OTHERS: "many peers", _UNKNOWN: "unknown peers"}
        return Finding(
            catalog.SLOW_EGRESS,
            Severity.WARN,
            f"{pair.workload} sent {size_text(size)} to {to.get(pair.peer, pair.peer)} in {period} "
            f"(limit {size_text(limit)})",
            (pair.workload, pair.peer, key),
            size,
            "By",
            limit,
            attributes=attributes,
        )


def _median(sizes: Iterable[float]) -> float:
    """As statistics.median, whose imports cost a megabyte."""
    ordered = sorted(sizes)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _limit(past: list[int], floor: int, times: float) -> tuple[float, float]:
    """What a day may have after such days, and what they usually had."""
    usual = _median(past)
    spread = _median(abs(size - usual) for size in past)
    return max(float(floor), usual + _DEVIATIONS * spread, times * usual), usual


def limit_without_first(past: list[int], floor: int, times: float) -> float:
    """What yesterday might have after the days before it."""
    return _limit(past[1:], floor, times)[0] if len(past) > 1 else float("inf")


def _listed(rule: Rule, peer: str) -> bool:
    return ":" in peer and rule.allows(peer) is True
