"""A scrape of 5,000 series: the text from the ring against prometheus_client's, and the answer over HTTP."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from bench.result import Result, alternate, left_out, note
from fabrictap import catalog
from fabrictap.config import Prometheus
from fabrictap.export import prometheus
from fabrictap.ext.exposition import label_name
from fabrictap.series import SeriesTable

SERIES = 5000
METRICS = (
    catalog.VERBS_OPERATIONS,
    catalog.VERBS_IO,
    catalog.VERBS_SGES,
    catalog.VERBS_INLINE,
    catalog.VERBS_SIGNALED,
)
ROUNDS = 15
#: Milliseconds.
GOAL = 1.0


def _attributes(number: int) -> dict[str, str | int]:
    """As those of a posted work request's series."""
    return {
        "process.pid": 4000 + number // 100,
        "process.executable.name": "python3.11",
        "rdma.device": f"mlx5_{number % 8}",
        "rdma.qp.number": 1000 + number,
        "rdma.qp.type": "rc",
        "rdma.operation": "rdma_write",
        "rdma.gid": "::ffff:10.0.0.1",
        "rdma.peer.gid": "::ffff:10.0.0.2",
        "rdma.peer.qp.number": 2000 + number,
        "fabrictap.coverage": "exact",
    }


def _table() -> SeriesTable:
    table = SeriesTable(SERIES)
    now = time.time_ns()
    for metric in METRICS:
        for number in range(SERIES // len(METRICS)):
            table.series(metric, _attributes(number), now).set(10**9 + number, now)
    return table


def _ours(table: SeriesTable) -> Callable[[], bytes]:
    text = prometheus.exposition(table.ring, {"service.name": "fabrictap"})

    def run() -> bytes:
        text.collect(time.time_ns())
        return text.render()

    return run


def _peer() -> Callable[[], bytes] | None:
    try:
        from prometheus_client import CollectorRegistry, Counter, generate_latest  # noqa: PLC0415
    except ImportError:
        return None
    registry = CollectorRegistry()
    labels = [label_name(name) for name in _attributes(0)]
    values = count(10**9)
    for metric in METRICS:
        counter: Any = Counter(
            prometheus.name(metric).removesuffix("_total"), metric.description, labels, registry=registry
        )
        for number in range(SERIES // len(METRICS)):
            counter.labels(*map(str, _attributes(number).values())).inc(next(values))
    return lambda: bytes(generate_latest(registry))


def _timed(run: Callable[[], bytes]) -> Callable[[], float]:
    """Milliseconds of CPU of one text, once it is seen to hold every series."""
    lines = sum(line.startswith(b"rdma_") and b"_created" not in line for line in run().splitlines())
    if lines != SERIES:
        raise RuntimeError(f"{lines} of {SERIES} series in the text")

    def measure() -> float:
        began = time.process_time_ns()
        run()
        return (time.process_time_ns() - began) / 1e6

    return measure


def measure() -> list[Result]:
    table = _table()
    run, peer = _ours(table), _peer()
    what = f"Prometheus text of {SERIES:,} series"
    if peer is None:
        left_out("exposition", "no peer: pip install prometheus_client")
        (ours,) = alternate(ROUNDS, _timed(run))
        results = [Result(what, "ms", ours, GOAL, "the limit", 1.0)]
    else:
        ours, theirs = alternate(ROUNDS, _timed(run), _timed(peer))
        (alone,) = alternate(ROUNDS, _timed(run))
        results = [
            Result(what, "ms", ours, theirs, "prometheus_client", GOAL / 27),
            Result(f"{what}, one after the other", "ms", alone, GOAL, "the limit", 1.0),
        ]
    size = len(run())
    endpoint = prometheus.Endpoint(
        Prometheus(listen="127.0.0.1:0"), table.ring, {"service.name": "fabrictap"}, threading.Lock()
    )
    endpoint.open()
    assert endpoint.scrape is not None
    address = endpoint.scrape.address

    def scraped() -> float:
        began = time.perf_counter_ns()
        client = http.client.HTTPConnection(address.host, address.port, timeout=10)
        client.request("GET", "/metrics")
        if len(client.getresponse().read()) != size:
            raise RuntimeError("a scrape of another size")
        return (time.perf_counter_ns() - began) / 1e6

    try:
        scraped()  # labels are made at the first
        (whole,) = alternate(ROUNDS, scraped)
    finally:
        endpoint.close()
    return [
        *results,
        note("one scrape over HTTP, client included", "ms", whole, f"{size / 1e6:.1f} MB of text"),
    ]
