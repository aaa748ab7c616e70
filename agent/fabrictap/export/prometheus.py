"""The ring's series as Prometheus text: names and families. The text itself is written by ext/exposition.pyx.

Names follow the OpenTelemetry specification ("Prometheus and OpenMetrics Compatibility") as the Collector's
exporter translates them, so that a dashboard works with either way: dots become underscores, the unit and,
for counters, ``_total`` are appended. Rates of counters are gauges of their own.

Exponential histograms become classic ones with bounds that are powers of four: a bound of two to some power
is a bucket's own at every scale from 0 on, at -1 so is every power of four; coarser buckets count below the
first bound that they lie below as a whole. Who wants native histograms takes OTLP.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from fabrictap import catalog, config
from fabrictap.catalog import Kind, Metric
from fabrictap.export import scrape
from fabrictap.ext.exposition import Exposition, label_name, label_value
from fabrictap.ext.ring import Ring

_log = logging.getLogger(__name__)

#: What stands before the samples of a family, and its name.
Pair = tuple[bytes, bytes]

#: Prometheus looks back this long for a sample.
_LINGER_NS = 5 * 60 * 10**9
_UNITS = {
    "By": "bytes",
    "s": "seconds",
    "ms": "milliseconds",
    "J": "joules",
    "W": "watts",
    "V": "volts",
    "A": "amperes",
    "Hz": "hertz",
    "Cel": "celsius",
    "%": "percent",
}
_PER = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
# Exponents of two: from 1 B to 4 GiB, from about 1 us to 256 s.
_BOUNDS = {"s": range(-20, 9, 2)}
_OTHER_BOUNDS = range(0, 33, 2)


class Endpoint:
    """The node's exposition, where ``settings`` say; nowhere by default. Raises ConfigError."""

    def __init__(
        self, settings: config.Prometheus, ring: Ring, resource: Mapping[str, str], lock: threading.Lock
    ) -> None:
        self._address = None
        if settings.listen is not None:
            self._address = scrape.parse(settings.listen, allow_remote=settings.allow_remote)
        self._ring = ring
        self._resource = resource
        self._lock = lock
        self._said = False
        #: The listener, once there is one.
        self.scrape: scrape.Scrape | None = None

    def open(self) -> None:
        """Listen. Where the address cannot be had now, that is said once, and the next call tries again."""
        if self._address is None or self.scrape is not None:
            return
        text = exposition(self._ring, self._resource)

        def body() -> bytes:
            with self._lock:
                text.collect(time.time_ns())
            return text.render()

        try:
            self.scrape = scrape.Scrape(self._address, body)
        except scrape.ListenError as error:
            if not self._said:
                _log.error("no Prometheus endpoint: %s; will try again", error)
            self._said = True
            return
        self.scrape.start()
        _log.info("Prometheus endpoint at %s, path /metrics", self.scrape.address)

    def close(self) -> None:
        if self.scrape is not None:
            self.scrape.close()
            self.scrape = None


def name(metric: Metric) -> str:
    """``hw.network.io`` in By -> ``hw_network_io_bytes_total``."""
    words = [word for word in re.split("[^a-zA-Z0-9:]+", metric.name) if word]
    unit, _, per = metric.unit.partition("/")
    suffixes = [_UNITS.get(unit, "" if unit.startswith("{") else re.sub("[^a-zA-Z0-9]", "", unit))]
    if metric.unit == "1":
        suffixes = ["ratio"] if metric.kind is Kind.GAUGE else []
    elif per:
        suffixes.append(f"per_{_PER.get(per, per)}")
    words += [suffix for suffix in suffixes if suffix and suffix not in words]
    if metric.kind is Kind.COUNTER:
        words = [word for word in words if word != "total"] + ["total"]
    text = "_".join(words)
    return f"_{text}" if text[:1].isdigit() else text


def exposition(ring: Ring, resource: Mapping[str, str]) -> Exposition:
    """What writes the text of ``ring``, whose metrics are those of the catalog in its order."""
    return Exposition(ring, [_family(metric) for metric in catalog.metrics()], _target(resource), _LINGER_NS)


def _family(
    metric: Metric,
) -> tuple[tuple[Pair, Pair | None, Pair | None], Sequence[tuple[int, bytes]]]:
    average = peak = None
    if metric.rates:
        average, peak = (_pair(rate) for rate in catalog.rates(metric))
    return (_pair(metric), average, peak), list(_bounds(metric))


def _pair(metric: Metric) -> Pair:
    kind = {Kind.COUNTER: "counter", Kind.HISTOGRAM: "histogram"}.get(metric.kind, "gauge")
    called = name(metric)
    text = metric.description.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {called} {text}\n# TYPE {called} {kind}\n".encode(), called.encode()


def _bounds(metric: Metric) -> Iterator[tuple[int, bytes]]:
    if metric.kind is Kind.HISTOGRAM:
        for exponent in _BOUNDS.get(metric.unit, _OTHER_BOUNDS):
            yield exponent, f"{2.0**exponent:.17g}".encode()


def _target(resource: Mapping[str, str]) -> bytes:
    """The resource as the one sample of target_info. Of two names that become one label, both values stay."""
    labels: dict[str, list[str]] = {}
    for attribute, value in sorted(resource.items()):
        labels.setdefault(label_name(attribute), []).append(label_value(value))
    text = ",".join(f'{label}="{";".join(values)}"' for label, values in labels.items())
    return (
        f"# HELP target_info Who exports: the OpenTelemetry resource\n# TYPE target_info gauge\n"
        f"target_info{{{text}}} 1\n"
    ).encode("utf-8", "replace")
