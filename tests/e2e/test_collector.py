"""What fabrictap sends, as the real OpenTelemetry Collector understood it."""

import pytest

from fabrictap import catalog
from fabrictap.catalog import Kind
from fabrictap.config import Config, Duration, Export, File, Otlp, Signal
from fabrictap.export import resource
from fabrictap.export.exporter import Exporter
from fabrictap.ledger.connections import Connection, Connections, Coverage
from fabrictap.ledger.flows import Flows
from fabrictap.series import Histogram, SeriesTable
from support import eventually

pytest_plugins = ["otelcol"]

NOW = 1_800_000_000 * 10**9
SECOND = 10**9


class Node:
    """A series table with every metric of the catalog, flows with spans, and an exporter."""

    def __init__(self, endpoint="", lines=None, queue=64):
        signal = Signal(endpoint=endpoint, timeout=Duration(5)) if endpoint else Signal(enabled=False)
        file = File(path=str(lines) if lines else None)
        otlp = Otlp(metrics=signal, traces=signal, logs=signal, queue=queue)
        self.config = Config(export=Export(otlp=otlp, file=file))
        self.table = SeriesTable(1000)
        self.flows = Flows(1000, 60 * SECOND)
        self.exporter = Exporter(
            self.config, resource.attributes(self.config.resource), self.table, self.flows
        )

    def fill(self):
        for metric in catalog.metrics():
            series = self.table.series(metric, attributes_of(metric), NOW)
            if metric.kind is Kind.HISTOGRAM:
                series.set(Histogram(count=6, sum=4096, zeros=1, offset=9, buckets=[2, 0, 3]), NOW + SECOND)
            elif metric.kind is Kind.GAUGE:
                series.set(0.25, NOW + SECOND)
            else:
                series.set(2**53 + 1, NOW + SECOND)

    def flow(self):
        """A connection that lived for 90 seconds, seen from the sender."""
        connections = Connections(10, self.flows)
        connection = Connection(
            "mlx5_0", 17, "rc", "init", 42, "ib_write_bw", NOW, "probe", Coverage("exact"), 1,
            "fe80::1", "fe80::2", 18, 100, 200,
        )  # fmt: skip
        connections.put(connection)
        connections.advance(connection, "rtr", NOW)
        connections.advance(connection, "rts", NOW + SECOND)
        connection.post("rdma_write", 3, 3000)
        self.flows.roll(NOW + 61 * SECOND)
        connections.remove(connection, "destroyed", NOW + 90 * SECOND)

    def export(self, seconds):
        self.exporter.collect(NOW + seconds * SECOND)
        self.exporter.ship()


@pytest.fixture
def node():
    """Makes nodes and closes them after the test."""
    made = []

    def make(*arguments, **named):
        made.append(Node(*arguments, **named))
        return made[-1]

    yield make
    for one in made:
        one.exporter.close()


def attributes_of(metric):
    """One attribute set with a value of the right type for every attribute of the metric."""
    values = {str: "x", int: 7, bool: True}
    return {
        attribute.name: attribute.values[0] if attribute.values else values[attribute.type]
        for attribute in metric.attributes
    }


def plain(attributes):
    """OTLP/JSON attributes as a dict."""
    read = {"stringValue": str, "intValue": int, "boolValue": bool}
    return {
        pair["key"]: next(read[kind](value) for kind, value in pair["value"].items()) for pair in attributes
    }


def check_metrics(metrics):
    expected = {metric.name: metric for metric in catalog.exported()}
    own = {metric.name for metric in catalog.metrics()}
    assert set(metrics) == set(expected)
    for name, (got, kind, points) in metrics.items():
        metric = expected[name]
        assert (got.get("unit"), got["description"]) == (metric.unit, metric.description)
        (point,) = points
        assert plain(point.get("attributes", ())) == attributes_of(metric)
        if name not in own:
            assert (kind, point["asDouble"] > 0) == ("gauge", True)
            continue
        if metric.kind is Kind.GAUGE:
            assert (kind, point["asDouble"], point["timeUnixNano"]) == ("gauge", 0.25, str(NOW + SECOND))
            continue
        assert got[kind]["aggregationTemporality"] == 2
        assert (point["startTimeUnixNano"], point["timeUnixNano"]) == (str(NOW), str(NOW + 10 * SECOND))
        if metric.kind is Kind.HISTOGRAM:
            assert kind == "exponentialHistogram"
            assert (point["count"], point["sum"], point["zeroCount"]) == ("6", 4096, "1")
            assert point.get("scale", 0) == 0
            assert point["positive"] == {"offset": 9, "bucketCounts": ["2", "0", "3"]}
        else:
            assert (kind, point["asInt"]) == ("sum", str(2**53 + 1))
            assert got["sum"].get("isMonotonic", False) is (metric.kind is Kind.COUNTER)


def check_spans(spans):
    flows = {
        plain(span["attributes"])["rdma.flow.role"]: span for span in spans if span["name"] == "rdma.flow"
    }
    windows = [span for span in spans if span["name"] == "rdma.flow.window"]
    assert (len(spans), len(flows), len(windows)) == (6, 2, 4)
    sender, receiver = flows["sender"], flows["receiver"]
    assert (sender["kind"], receiver["kind"]) == (4, 5)
    assert sender.get("parentSpanId", "") == ""
    assert receiver["parentSpanId"] != receiver["spanId"]
    assert len(bytes.fromhex(sender["traceId"])) == 16
    (link,) = receiver["links"]
    assert (link["traceId"], link["spanId"]) == (sender["traceId"], sender["spanId"])
    attributes = plain(sender["attributes"])
    assert (attributes["rdma.flow.io"], attributes["rdma.flow.rdma_write.operations"]) == (3000, 3)
    assert sender["startTimeUnixNano"] == str(NOW + SECOND)
    assert sender["endTimeUnixNano"] == str(NOW + 90 * SECOND)
    for window in windows:
        assert window["kind"] == 1
        assert window["parentSpanId"] in (sender["spanId"], receiver["spanId"])
        assert window["traceId"] in (sender["traceId"], receiver["traceId"])


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_every_metric_and_span_of_the_catalog_arrives(collector, node, transport):
    collector.listen()
    endpoint = f"http://127.0.0.1:{collector.port}" if transport == "tcp" else f"unix://{collector.socket}"
    sender = node(endpoint)
    sender.fill()
    sender.flow()
    sender.export(10)
    assert sender.exporter.flush(20)
    eventually(lambda: collector.metrics() and len(collector.spans()) >= 6, "the Collector wrote it all")
    (metrics,) = collector.metrics()
    check_metrics(metrics)
    check_spans(collector.spans())
    resource = collector.requests()[0]
    resource = next(iter(resource.values()))[0]
    assert plain(resource["resource"]["attributes"])["service.name"] == "fabrictap"
    scopes = resource.get("scopeMetrics") or resource["scopeSpans"]
    assert scopes[0]["scope"]["name"] == "fabrictap"
    counts = {(metric.name, attributes.get("error.type")): count
              for metric, attributes, count in sender.exporter.stats.counts()}  # fmt: skip
    assert counts == {
        ("otel.sdk.exporter.metric_data_point.exported", None): len(list(catalog.exported())),
        ("otel.sdk.exporter.span.exported", None): 6,
        ("otel.sdk.exporter.log.exported", None): 0,
    }


def test_an_ended_series_arrives_with_its_last_value_then_as_no_recorded_value_then_not_at_all(
    collector, node
):
    collector.listen()
    sender = node(f"http://127.0.0.1:{collector.port}")
    sender.table.series(catalog.NETWORK_UP, {"hw.id": "mlx5_0/1"}, NOW).set(1, NOW)
    ending = sender.table.series(catalog.VERBS_IO, {"rdma.qp.number": 5}, NOW)
    ending.set(9, NOW)
    ending_histogram = sender.table.series(catalog.VERBS_MESSAGE_SIZE, {"rdma.qp.number": 5}, NOW)
    ending_histogram.set(Histogram(1, 2, 0, 0, [1]), NOW)
    sender.table.end(ending)
    sender.table.end(ending_histogram)
    for seconds in (10, 20, 30):
        sender.export(seconds)
    assert sender.exporter.flush(20)
    eventually(lambda: len(collector.metrics()) == 3, "three requests")
    last, ended, gone = collector.metrics()
    assert last["rdma.verbs.io"][2][0]["asInt"] == "9"
    for name in ("rdma.verbs.io", "rdma.verbs.message.size"):
        assert last[name][2][0].get("flags", 0) == 0
        (point,) = ended[name][2]
        assert point["flags"] == 1
        assert "asInt" not in point
        assert plain(point["attributes"]) == {"rdma.qp.number": 5}
    assert set(gone) == {"hw.network.up"}


def test_the_lines_of_our_file_come_out_of_the_collectors_receiver_the_same(collector, node):
    writer = node(lines=collector.lines)
    writer.fill()
    writer.flow()
    writer.export(10)
    assert writer.exporter.flush(20)
    assert len(collector.lines.read_text().splitlines()) == 2
    collector.read_lines()
    eventually(lambda: collector.metrics() and len(collector.spans()) >= 6, "the lines were read", 30)
    (metrics,) = collector.metrics()
    check_metrics(metrics)
    check_spans(collector.spans())


def test_while_the_collector_is_away_nothing_is_lost_and_order_holds(collector, node):
    collector.listen()
    sender = node(f"http://127.0.0.1:{collector.port}")
    series = sender.table.series(catalog.VERBS_IO, {"rdma.qp.number": 5}, NOW)

    def export(values):
        for value in values:
            series.set(value, NOW)
            sender.export(value)

    def arrived():
        return [int(metrics["rdma.verbs.io"][2][0]["asInt"]) for metrics in collector.metrics()]

    export(range(1, 6))
    assert sender.exporter.flush(20)
    collector.stop()
    export(range(6, 41))
    assert not sender.exporter.flush(0.5)
    collector.listen()
    export(range(41, 46))
    eventually(lambda: len(arrived()) >= 45, "all 45 requests arrive", 60)
    assert arrived() == list(range(1, 46))
