"""Link trouble: errors, retransmissions, a port that is down or slower than it was. From series of ports."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from fabrictap import catalog
from fabrictap.insight.detectors import Context
from fabrictap.insight.findings import Finding, Severity
from fabrictap.series import Series

_WINDOW_NS = 60 * 10**9
#: Ports that are remembered while they have no series: a device that is reset comes back slower, or not.
_MOST_PORTS = 1024
#: Of these one is too many: the link was lost or trained anew (IBTA 16.1.3.5, PortCounters).
_EVENTS = frozenset({"link_downed", "link_error_recovery", "local_link_integrity_errors"})
#: Counters of repeated packets and of requests for them, by driver: mlx5, mlx4, bnxt_re, irdma, rxe, efa.
RETRANSMISSIONS = frozenset(
    {
        "local_ack_timeout_err",
        "packet_seq_err",
        "out_of_sequence",
        "implied_nak_seq_err",
        "rnr_nak_retry_err",
        "roce_adp_retrans",
        "roce_adp_retrans_to",
        "roce_slow_restart",
        "num_cqe_with_sw_retrans",
        "seq_err_naks_rcvd",
        "to_retransmits",
        "max_retry_exceeded",
        "rnr_naks_rcvd",
        "tcpRetransSegs",
        "iwRdmaRetrans",
        "rcvd_rnr_err",
        "rcvd_seq_err",
        "retry_exceeded_err",
        "retry_rnr_exceeded_err",
        "retrans_pkts",
        "retrans_bytes",
        "retrans_timeout_events",
    }
)


#: Errors of GPUs, CPUs and switches that are a link's.
_LINKS = ("nvlink_", "nvswitch_", "pcie_")


@dataclass(slots=True)
class _Counter:
    name: str
    repeats: bool
    #: One is too many.
    single: bool
    readings: deque[tuple[int, int]] = field(default_factory=deque)

    def take(self, value: int, now_ns: int) -> tuple[int, float] | None:
        """Increase and its rate a second over the last window; None until there are two readings."""
        if self.readings and value < self.readings[-1][1]:
            self.readings.clear()
        self.readings.append((now_ns, value))
        while len(self.readings) > 2 and now_ns - self.readings[1][0] >= _WINDOW_NS:
            self.readings.popleft()
        began_ns, before = self.readings[0]
        if now_ns <= began_ns:
            return None
        # At least half a window, so that one error is no rate.
        return value - before, (value - before) * 1e9 / max(now_ns - began_ns, _WINDOW_NS // 2)


def _counter(series: Series) -> _Counter | None:
    attributes = series.attributes
    name = str(attributes.get(catalog.ERROR_TYPE.name) or attributes[catalog.RDMA_COUNTER_NAME.name])
    plain = name.rpartition("/")[2]
    repeats = plain in RETRANSMISSIONS
    if series.metric is catalog.PORT_COUNTER and not repeats:
        return None
    if attributes.get(catalog.HW_TYPE.name, "network") != "network" and not plain.startswith(_LINKS):
        return None  # memory errors and driver errors of a GPU
    return _Counter(name, repeats, plain in _EVENTS)


class Links:
    """Costs what there are of error counters; a window holds at most a reading a look."""

    name = "links"

    def __init__(self) -> None:
        #: Of every error counter there is; None where it is no link's.
        self._counters: dict[Series, _Counter | None] = {}
        self._was_up: dict[str, int] = {}
        #: Fastest speed seen of each port, and since when it is slower.
        self._speed: dict[str, tuple[float, int | None]] = {}

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        settings = context.settings
        live: set[Series] = set()
        for metric, kind, limit in (
            (catalog.ERRORS, catalog.LINK_ERRORS, settings.link_error_rate),
            (catalog.PORT_COUNTER, catalog.RETRANSMISSIONS, settings.retransmission_rate),
        ):
            for series in context.series.get(metric.name, ()):
                if series.ended or not isinstance(series.value, int):
                    continue
                live.add(series)
                if series not in self._counters:
                    self._counters[series] = _counter(series)
                counter = self._counters[series]
                grown = None if counter is None else counter.take(series.value, now_ns)
                if counter is None or grown is None:
                    continue
                increase, rate = grown
                most = settings.retransmission_rate if counter.repeats else limit
                if rate > most or (counter.single and increase > 0):
                    told = catalog.RETRANSMISSIONS if counter.repeats else kind
                    yield _counted(told, series, counter.name, grown, most)
        for gone in self._counters.keys() - live:
            del self._counters[gone]
        yield from self._states(now_ns, context)
        yield from self._speeds(now_ns, context)

    def _states(self, now_ns: int, context: Context) -> Iterator[Finding]:
        up: dict[str, Series] = {}
        for series in context.series.get(catalog.NETWORK_UP.name, ()):
            if not series.ended and series.value is not None:
                up[str(series.attributes[catalog.HW_ID.name])] = series
        for hw_id, series in up.items():
            if series.value == 1:
                self._was_up[hw_id] = now_ns
            elif hw_id in self._was_up:
                attributes = series.attributes
                state = attributes.get(catalog.RDMA_PORT_STATE.name, "down")
                yield Finding(
                    catalog.LINK_DEGRADED,
                    Severity.ERROR,
                    f"{hw_id} is {state}; it was active",
                    (hw_id, "state"),
                    since_ns=self._was_up[hw_id],
                    attributes=_port(attributes),
                )
        if len(self._was_up) > _MOST_PORTS:
            self._was_up = {hw_id: since for hw_id, since in self._was_up.items() if hw_id in up}

    def _speeds(self, now_ns: int, context: Context) -> Iterator[Finding]:
        seen = set()
        for series in context.series.get(catalog.NETWORK_LIMIT.name, ()):
            value = series.value
            if series.ended or not isinstance(value, (int, float)) or value <= 0:
                continue
            attributes = series.attributes
            hw_id = str(attributes[catalog.HW_ID.name])
            seen.add(hw_id)
            fastest, since_ns = self._speed.get(hw_id, (float(value), None))
            if value >= fastest:
                self._speed[hw_id] = (float(value), None)
                continue
            since_ns = now_ns if since_ns is None else since_ns
            self._speed[hw_id] = (fastest, since_ns)
            yield Finding(
                catalog.LINK_DEGRADED,
                Severity.WARN,
                f"{hw_id} runs at {value * 8e-9:.4g} Gbit/s; it ran at {fastest * 8e-9:.4g}",
                (hw_id, "speed"),
                value,
                "By/s",
                fastest,
                since_ns,
                _port(attributes),
            )
        if len(self._speed) > _MOST_PORTS:
            self._speed = {hw_id: speed for hw_id, speed in self._speed.items() if hw_id in seen}


#: What tells counters of one name on one device apart.
_APART = (catalog.IO_DIRECTION, catalog.GPU_LINK, catalog.NVSWITCH_LINK)


def _counted(
    kind: catalog.Finding, series: Series, name: str, grown: tuple[int, float], limit: float
) -> Finding:
    attributes = series.attributes
    increase, rate = grown
    hw_id = str(attributes[catalog.HW_ID.name])
    word = catalog.ERROR_TYPE if catalog.ERROR_TYPE.name in attributes else catalog.RDMA_COUNTER_NAME
    evidence = {**_port(attributes), word.name: name}
    if (direction := attributes.get(catalog.IO_DIRECTION.name)) is not None:
        evidence[catalog.IO_DIRECTION.name] = direction
    for link in (catalog.GPU_LINK, catalog.NVSWITCH_LINK):
        if (number := attributes.get(link.name)) is not None:
            evidence[link.name] = number
    evidence[catalog.FINDING_WINDOW.name] = _WINDOW_NS // 10**9
    return Finding(
        kind,
        Severity.WARN,
        f"{hw_id} counted {increase} {name} in a minute",
        (hw_id, name, *(str(evidence.get(one.name, "")) for one in _APART)),
        # A rate, which does not grow while the window fills as the increase does.
        rate * 60,
        "{count}/min",
        limit * 60,
        None,
        evidence,
    )


def _port(attributes: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    made: dict[str, str | int | bool] = {catalog.HW_ID.name: attributes[catalog.HW_ID.name]}
    if (device := attributes.get(catalog.HW_PARENT.name)) is not None:
        made[catalog.RDMA_DEVICE.name] = device
    return made
