"""One metric, one name: on fabrictap's own page, and in a Prometheus that got it through the Collector."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metrics_world import World
from otelcol import free_port
from prometheus_server import Prometheus
from support import eventually

pytest_plugins = ["metrics_world"]
#: Made by Prometheus and the Collector themselves, or the parts of classic histograms.
ELSEWHERE = ("up", "scrape_", "target_info", "ALERTS", "otel_scope_info")
#: What the simulated nodes tell of later, or only where they export over OTLP.
LATER = {
    "otel_sdk_exporter_metric_data_point_exported_total",
    "fabrictap_finding_open",
    "fabrictap_finding_count_total",
}


@pytest.fixture
def scraped(tmp_path: Path) -> set[str]:
    """Names and labels that a Prometheus has of a simulated node that it scrapes."""
    port = free_port()
    targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"host_name": "scraped"}}]
    scrapes = f"scrape_configs: {json.dumps([{'job_name': 'fabrictap', 'static_configs': targets}])}"
    settings = [
        f"ring.path={tmp_path}/ring", "state.path=none", "export.interval=1s",
        f"export.prometheus.listen=127.0.0.1:{port}",
        *(f"export.otlp.{signal}.enabled=false" for signal in ("metrics", "traces", "logs")),
    ]  # fmt: skip
    argv = [sys.executable, "-m", "fabrictap", "run", "--simulate", "hgx-h100", "--duration", "120s"]
    agent = subprocess.Popen(
        [*argv, *(part for one in settings for part in ("--set", one))], stderr=subprocess.DEVNULL
    )
    try:
        prometheus = Prometheus(tmp_path, scrapes)
        try:

            def there() -> bool:
                return bool(
                    prometheus.get("query", query="rdma_verbs_message_size_bytes_bucket > 0")["result"]
                )

            eventually(there, "the agent is scraped", 60)
            found = prometheus.get("query", query='count by (__name__) ({host_name="scraped"})')["result"]
            return {one["metric"]["__name__"] for one in found}
        finally:
            prometheus.stop()
    finally:
        agent.kill()
        agent.wait()


def test_scraped_and_through_the_collector_the_names_are_the_same(world: World, scraped: set[str]) -> None:
    found = world.prometheus.now('count by (__name__) ({host_name="sim-hgx-1"})', world.end)
    collected = {one["metric"]["__name__"] for one in found}
    own = set()
    for name in scraped:
        whole = next(
            (name.removesuffix(end) for end in ("_bucket", "_count", "_sum") if name.endswith(end)), name
        )
        own.add(whole if whole in collected else name)
    own = {name for name in own if not name.startswith(ELSEWHERE)}
    collected = {name for name in collected if not name.startswith(ELSEWHERE) and ":" not in name}
    assert own - collected == set()
    assert collected - own <= LATER
