"""From a real RDMA message to the real Collector: what it writes down is what the catalog promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from fabrictap import catalog
from fabrictap.catalog import Kind
from otelcol import BUILD, find_collector
from otlp_json import Reader
from support import require
from vm.agent import Agent
from vm.harness import Machine
from vm.traffic import Traffic, listen, perftest

ENDPOINT = "127.0.0.1:4317"
BROKEN_COUNTER = "/sys/class/infiniband/rxe1/ports/1/hw_counters/send_err"


@pytest.fixture(scope="module")
def received(machine: Machine) -> Iterator[tuple[Reader, Traffic]]:
    """What the Collector in the guest wrote, after an agent beside it watched some traffic."""
    binary = find_collector()
    require("collector", binary.is_file(), f"{binary} does not exist; build it with {BUILD}")
    output = Reader(machine.share / "collector.jsonl")
    configuration = machine.share / "collector.yaml"
    pipeline = {"receivers": ["otlp"], "exporters": ["file"]}
    configuration.write_text(
        yaml.safe_dump(
            {
                "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": ENDPOINT}}}},
                "exporters": {"file": {"path": str(output.path), "flush_interval": "100ms"}},
                "service": {
                    "telemetry": {"metrics": {"level": "none"}},
                    "pipelines": {"metrics": pipeline, "traces": pipeline, "logs": pipeline},
                },
            }
        )
    )
    collector = machine.start([machine.put(binary), "--config", configuration])
    machine.wait_for(lambda: "Everything is ready" in collector.stderr, 60, "the Collector does not start")
    # A counter that cannot be read, so that the agent has an error to tell of.
    machine.run(["mount", "--bind", "/dev/null", BROKEN_COUNTER]).check()
    agent = Agent(
        machine,
        "collected",
        "export.otlp.metrics.enabled=true",
        "export.otlp.traces.enabled=true",
        "export.otlp.logs.enabled=true",
        f"export.otlp.metrics.endpoint=http://{ENDPOINT}",
        f"export.otlp.traces.endpoint=http://{ENDPOINT}",
        f"export.otlp.logs.endpoint=http://{ENDPOINT}",
        "flows.window=1s",
    )
    server = None
    try:
        agent.start()
        server = listen(machine, "rping", "-C", "10000000", "-S", "1000")
        client = server.connect(machine, "rxe1")
        traffic = perftest(machine, "ib_write_bw", "-n", "50", "-s", "4096")
        perftest(machine, "ib_send_bw", "-n", "50", "-s", "4096")

        def complete() -> bool:
            output.poll()
            # The errors of the second export are told in the third.
            return bool(output.find("fabrictap.source.errors") and output.spans_named("rdma.flow.window"))

        machine.wait_for(complete, 90, "the Collector does not get everything")
        client.kill()
        server.process.kill()
        agent.stop()
        collector.stop()
        output.poll()
        yield output, traffic
    finally:
        machine.run(["umount", BROKEN_COUNTER])
        for process in (collector, agent.process, server.process if server else None):
            if process is not None and process.rc is None:
                process.kill()


def test_every_exported_series_is_in_the_catalog(received: tuple[Reader, Traffic]) -> None:
    metrics = {metric.name: metric for metric in catalog.exported()}
    kinds = {Kind.COUNTER: "sum", Kind.UPDOWNCOUNTER: "sum", Kind.GAUGE: "gauge"}
    for point in received[0].points:
        metric = metrics[point.name]
        assert point.unit == metric.unit
        assert point.kind == kinds.get(metric.kind, "exponentialHistogram")
        described = {attribute.name: attribute for attribute in (*metric.attributes, *catalog.ON_ANY_COUNTER)}
        for name, value in point.attributes.items():
            assert isinstance(value, described[name].type), (point.name, name)
            assert not described[name].values or value in described[name].values, (point.name, name, value)
    spans = {span.name: {attribute.name for attribute in span.attributes} for span in catalog.spans()}
    for span in received[0].spans:
        per_operation = {name for name in spans[span.name] if "<operation>" in name}
        templates = {
            name.replace("<operation>", operation)
            for name in per_operation
            for operation in catalog.RDMA_OPERATION.values
        }
        assert span.attributes.keys() <= spans[span.name] | templates


#: What needs more than a moment of RDMA: GPUs, a kubelet, something to find; a window of completions, which
#: is rarer (vm/test_completions.py); counters of processes, which Soft-RoCE has not.
ELSEWHERE = (
    *("gpu.", "hw.gpu.", "hw.power", "hw.energy", "hw.temperature", "hw.status", "fabrictap."),
    *("rdma.completion.", "rdma.process."),
)


def test_every_name_of_the_catalog_that_is_about_rdma_is_exported(received: tuple[Reader, Traffic]) -> None:
    exported = {point.name for point in received[0].points} | {span.name for span in received[0].spans}
    promised = {metric.name for metric in catalog.exported()} | {span.name for span in catalog.spans()}
    assert exported <= promised
    assert {name for name in promised - exported if not name.startswith(ELSEWHERE)} == set()
    assert {"fabrictap.source.up", "fabrictap.probe.attached", "fabrictap.table.entries"} <= exported


def test_the_collector_has_the_bytes_and_the_trace(received: tuple[Reader, Traffic]) -> None:
    output, traffic = received
    assert output.total("rdma.verbs.io", pid=traffic.client_pid) == 50 * 4096
    (sender,) = output.spans_named("rdma.flow", pid=traffic.client_pid, role="sender")
    (receiver,) = output.spans_named("rdma.flow", pid=traffic.server_pid, role="receiver")
    assert receiver.trace_id == sender.trace_id
    assert receiver.parent_id == sender.span_id
    assert sender["rdma.flow.io"] == 50 * 4096
    assert output.resource["service.name"] == "fabrictap"
    assert output.resource["host.name"]


def test_one_broken_counter_costs_one_series(received: tuple[Reader, Traffic]) -> None:
    output, _ = received
    assert not output.now("hw.errors", error_type="send_err", hw_id="rxe1/1")
    assert output.find("hw.errors", error_type="send_err", hw_id="rxe0/1")
    assert output.total("fabrictap.source.errors", source="infiniband") >= 1
    assert {p["fabrictap.source"]: p.value for p in output.find("fabrictap.source.up")} == {
        "infiniband": 1,
        "rdma_netlink": 1,
        "verbs": 1,
    }
