"""One metric, one name: on fabrictap's own page, and in a Prometheus that got it through the Collector."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fabrictap import catalog
from fabrictap.export import prometheus as translation
from metrics_world import collecting
from otelcol import free_port
from prometheus_server import Prometheus
from support import eventually

#: Labels that the Collector makes of the resource and the scope, and Prometheus of the target.
ELSEWHERE = (
    "host_",
    "service_",
    "os_",
    "otel_scope_",
    "telemetry_",
    "fabrictap_simulated",
    "job",
    "instance",
)
SCRAPED, COLLECTED = "scraped", "simulated-hgx-h100"
#: What classic histograms end in.
PARTS = ("_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, set[str]]]]:
    """By host name, which says the way: metric -> its labels, as Prometheus has them of one agent."""
    folder = tmp_path_factory.mktemp("names")
    listen = free_port()
    targets = [{"targets": [f"127.0.0.1:{listen}"], "labels": {"host_name": SCRAPED}}]
    scrapes = json.dumps([{"job_name": "fabrictap", "static_configs": targets}])
    prometheus = Prometheus(folder, f"scrape_configs: {scrapes}")
    agent = None
    try:
        with collecting(folder, prometheus) as port:
            settings = [
                f"ring.path={folder}/ring", "state.path=none", "export.interval=1s",
                f"export.prometheus.listen=127.0.0.1:{listen}",
                f"export.otlp.metrics.endpoint=http://127.0.0.1:{port}",
                *(f"export.otlp.{signal}.enabled=false" for signal in ("traces", "logs")),
            ]  # fmt: skip
            argv = [sys.executable, "-m", "fabrictap", "run", "--simulate", "hgx-h100"]
            agent = subprocess.Popen(
                [*argv, *(part for one in settings for part in ("--set", one))], stderr=subprocess.DEVNULL
            )

            def there() -> bool:
                # Told in the second export for the first time, by either way.
                found = prometheus.get(
                    "query", query="count by (host_name) (otel_sdk_exporter_metric_data_point_exported_total)"
                )["result"]
                return {one["metric"]["host_name"] for one in found} == {SCRAPED, COLLECTED}

            eventually(there, "the agent's figures are there by both ways", 90)
            yield {host: _labels(prometheus, host) for host in (SCRAPED, COLLECTED)}
    finally:
        if agent is not None:
            agent.kill()
            agent.wait()
        prometheus.stop()


def _labels(prometheus: Prometheus, host: str) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = {}
    matching = f'{{host_name="{host}",__name__!~"up|scrape_.*|target_info|otel_scope_info"}}'
    for one in prometheus.get("query", query=matching)["result"]:
        name = one["metric"].pop("__name__")
        labels.setdefault(name, set()).update(one["metric"])
    return labels


def _whole(labels: dict[str, set[str]]) -> dict[str, set[str]]:
    """Histograms by one name, whether they are native or classic; labels of points only."""
    histograms = {
        translation.name(metric) for metric in catalog.metrics() if metric.kind is catalog.Kind.HISTOGRAM
    }
    whole: dict[str, set[str]] = {}
    for name, found in labels.items():
        bare = next((name.removesuffix(part) for part in PARTS if name.endswith(part)), name)
        own = {label for label in found if not label.startswith(ELSEWHERE) and label != "le"}
        whole.setdefault(bare if bare in histograms else name, set()).update(own)
    return whole


def test_every_metric_has_the_same_name_and_labels_by_both_ways(
    names: dict[str, dict[str, set[str]]],
) -> None:
    scraped, collected = _whole(names[SCRAPED]), _whole(names[COLLECTED])
    assert len(scraped) > 60
    assert collected == scraped


def test_every_name_is_the_catalogs(names: dict[str, dict[str, set[str]]]) -> None:
    known = {translation.name(metric) for metric in catalog.exported()}
    labels = {attribute.name.replace(".", "_") for attribute in catalog.attributes()}
    for found in map(_whole, names.values()):
        assert set(found) <= known
        for own in found.values():
            assert own <= labels
