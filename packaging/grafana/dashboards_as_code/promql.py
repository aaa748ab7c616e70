"""Names of metrics and labels as Prometheus has them, and the pieces that queries are made of.

``P.NETWORK_IO`` is ``hw_network_io_bytes_total``: the constants of the catalog under the translation
UnderscoreEscapingWithSuffixes, which the Collector, Prometheus' OTLP receiver and fabrictap's own text share.
"""

from __future__ import annotations

from fabrictap import catalog
from fabrictap.catalog import Attribute, Metric
from fabrictap.export import prometheus


class _Names:
    """Attribute NAME -> what Prometheus calls the metric that the catalog's constant NAME is."""

    def __getattr__(self, constant: str) -> str:
        metric = getattr(catalog, constant)
        if not isinstance(metric, Metric):
            raise AttributeError(constant)
        return prometheus.name(metric)


P = _Names()

#: Labels that are no attributes of the catalog: of the resource, as the Collector puts them on every series.
NODE, CLUSTER = "host_name", "k8s_cluster_name"
#: What every dashboard's variables select.
SELECTED = f'{CLUSTER}=~"$cluster",{NODE}=~"$node"'
RATE = "[$__rate_interval]"
OUT, IN = 'network_io_direction="transmit"', 'network_io_direction="receive"'


def average(metric: Metric) -> str:
    """Name of the metric's rate over the export interval."""
    return prometheus.name(catalog.rates(metric)[0])


def peak(metric: Metric) -> str:
    """Name of the largest rate between two samples of the export interval."""
    return prometheus.name(catalog.rates(metric)[1])


def label(attribute: Attribute) -> str:
    """``hw.id`` -> ``hw_id``."""
    return attribute.name.replace(".", "_")


def of(metric: str, *matchers: str) -> str:
    """The metric's series that the variables select, and that match."""
    return f"{metric}{{{','.join((SELECTED, *matchers))}}}"


def rate(metric: str, *matchers: str) -> str:
    """Growth of a counter in a second."""
    return f"rate({of(metric, *matchers)}{RATE})"


def with_workload(expr: str) -> str:
    """``expr`` with the label that the variable $by chooses as label workload: columns of tables have fixed
    names."""
    return f'label_join({expr}, "workload", "", "$by")'


def grown(metric: str, *matchers: str) -> str:
    """What was counted lately. A series that begins with its first count has not grown: it is new."""
    series = of(metric, *matchers)
    return f"(increase({series}{RATE}) > 0 or ({series} unless {series} offset $__rate_interval))"


def quantile(share: float, histogram: str, by: str, *matchers: str) -> str:
    """Of a histogram that came as classic buckets (fabrictap's own text) or as a native one (over OTLP)."""
    classic = rate(f"{histogram}_bucket", *matchers)
    return (
        f"histogram_quantile({share}, sum by (le, {by}) ({classic}))"
        f" or histogram_quantile({share}, sum by ({by}) ({rate(histogram, *matchers)}))"
    )
