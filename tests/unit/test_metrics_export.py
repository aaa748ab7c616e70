"""The series table as OTLP metrics, and the exporter around it."""

import os
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from fabrictap import catalog
from fabrictap.catalog import Kind
from fabrictap.export.metrics import MetricsTree
from fabrictap.series import Histogram, SeriesTable

SECOND = 10**9


class Tree:
    """A table and its tree; ``export`` gives the metrics of all requests by name."""

    def __init__(self, limit=4 << 20):
        self.table = SeriesTable(100_000)
        self.tree = MetricsTree(self.table, {"service.name": "fabrictap"}, limit)

    def counter(self, number, value=1, now=SECOND):
        series = self.table.series(catalog.VERBS_IO, {"rdma.qp.number": number}, now)
        if value is not None:
            series.set(value, now)
        return series

    def requests(self, now):
        self.tree.update(now)
        return list(self.tree.requests())

    def export(self, now):
        metrics = {}
        for request in self.requests(now):
            message = ExportMetricsServiceRequest.FromString(request.body)
            for metric in message.resource_metrics[0].scope_metrics[0].metrics:
                metrics[metric.name] = metric
        return metrics

    def points(self, now):
        metric = self.export(now).get("rdma.verbs.io")
        return (
            {}
            if metric is None
            else {point.attributes[0].value.int_value: point for point in metric.sum.data_points}
        )


@pytest.mark.parametrize("metric", list(catalog.metrics()), ids=lambda metric: metric.name)
def test_every_metric_of_the_catalog_has_its_name_unit_meaning_and_kind(metric):
    tree = Tree()
    value = Histogram(3, 7, 1, 2, [1, 0, 1]) if metric.kind is Kind.HISTOGRAM else 5
    tree.table.series(metric, {"rdma.device": "mlx5_0", "rdma.port": 1, "yes": True}, SECOND).set(
        value, 2 * SECOND
    )
    exported = tree.export(3 * SECOND)[metric.name]
    assert (exported.unit, exported.description) == (metric.unit, metric.description)
    data = getattr(exported, exported.WhichOneof("data"))
    (point,) = data.data_points
    assert {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in point.attributes} == {
        "rdma.device": "mlx5_0",
        "rdma.port": 1,
        "yes": True,
    }
    if metric.kind is Kind.GAUGE:
        assert exported.WhichOneof("data") == "gauge"
        assert (point.as_int, point.time_unix_nano, point.start_time_unix_nano) == (5, 2 * SECOND, 0)
        return
    assert data.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert (point.start_time_unix_nano, point.time_unix_nano) == (SECOND, 3 * SECOND)
    if metric.kind is Kind.HISTOGRAM:
        assert exported.WhichOneof("data") == "exponential_histogram"
        assert (point.count, point.sum, point.zero_count, point.scale) == (3, 7, 1, 0)
        assert (point.positive.offset, list(point.positive.bucket_counts)) == (2, [1, 0, 1])
    else:
        assert exported.WhichOneof("data") == "sum"
        assert data.is_monotonic is (metric.kind is Kind.COUNTER)
        assert point.as_int == 5


def test_the_request_says_who_sends_it_and_how_many_points_it_has():
    tree = Tree()
    tree.counter(1)
    tree.counter(2)
    (request,) = tree.requests(SECOND)
    assert request.items == 2
    (resource_metrics,) = ExportMetricsServiceRequest.FromString(request.body).resource_metrics
    assert resource_metrics.resource.attributes[0].value.string_value == "fabrictap"
    assert resource_metrics.scope_metrics[0].scope.name == "fabrictap"


def test_a_counter_with_rates_is_exported_with_its_average_and_its_peak_over_the_interval():
    tree = Tree()
    series = tree.table.series(catalog.NETWORK_IO, {"hw.id": "mlx5_0/1"}, SECOND)
    series.observe(0, SECOND)
    tree.table.ring.interval(SECOND)
    for tenth in range(1, 101):
        # 100 ms at 1 GB/s, then nothing for the rest of ten seconds
        series.observe(10**8 if tenth > 50 else 0, SECOND + tenth * SECOND // 10)
        if tenth % 10 == 0:
            tree.table.ring.tick(SECOND + tenth * SECOND // 10)
    tree.table.ring.interval(11 * SECOND)
    exported = tree.export(11 * SECOND)
    (average,) = exported["hw.network.io.rate.average"].gauge.data_points
    (peak,) = exported["hw.network.io.rate.peak"].gauge.data_points
    assert average.as_double == pytest.approx(1e7)
    assert peak.as_double == pytest.approx(1e9)
    assert peak.attributes == average.attributes
    assert exported["hw.network.io.rate.peak"].unit == "By/s"
    tree.table.ring.interval(21 * SECOND)
    (peak,) = tree.export(21 * SECOND)["hw.network.io.rate.peak"].gauge.data_points
    assert peak.as_double == 0


def test_what_a_full_table_refuses_is_counted_in_the_overflow_series_of_its_metric():
    tree = Tree()
    tree.table.capacity = 1
    tree.counter(1, 5)
    for number in (2, 3):
        series = tree.table.series(catalog.VERBS_OPERATIONS, {"rdma.qp.number": number}, SECOND)
        series.add(10, SECOND)
        tree.table.end(series)
    tree.table.series(catalog.QP_STATUS, {"rdma.qp.number": 4}, SECOND).set(1, SECOND)
    for now in (2, 3, 4):
        exported = tree.export(now * SECOND)
        (point,) = exported["rdma.verbs.operations"].sum.data_points
        assert (point.as_int, point.attributes[0].key) == (20, "otel.metric.overflow")
        assert point.attributes[0].value.bool_value
        assert "rdma.qp.status" not in exported
    assert tree.table.refused == 3


def test_an_empty_table_makes_no_request():
    assert Tree().requests(SECOND) == []


def test_the_type_of_the_point_follows_the_value():
    tree = Tree()
    series = tree.counter(1, 3)
    assert tree.points(SECOND)[1].WhichOneof("value") == "as_int"
    series.add(0.5, SECOND)
    assert tree.points(2 * SECOND)[1].as_double == 3.5
    series.set(2**63, SECOND)
    assert tree.points(3 * SECOND)[1].as_double == 2.0**63
    series.set(-4, SECOND)
    assert tree.points(4 * SECOND)[1].as_double == -4


def test_an_attribute_that_otlp_cannot_hold_is_told_as_well_as_it_can_be():
    tree = Tree()
    name = b"caf\xe9".decode(errors="surrogateescape")
    tree.table.series(catalog.CONTEXT_COUNT, {"name": name, "size": 2**64}, SECOND).set(1, SECOND)
    (point,) = tree.export(SECOND)["rdma.context.count"].sum.data_points
    assert [pair.value.string_value for pair in point.attributes] == ["caf?", str(2**64)]


def test_a_series_is_exported_from_its_first_value_on_and_not_while_it_has_none():
    tree = Tree()
    series = tree.counter(1, None)
    tree.counter(2)
    assert set(tree.points(SECOND)) == {2}
    series.add(0, SECOND)
    assert set(tree.points(2 * SECOND)) == {1, 2}


def test_an_ended_series_gives_its_last_value_then_no_recorded_value_and_goes():
    tree = Tree()
    series = tree.counter(1, 41)
    tree.points(SECOND)
    series.add(1, SECOND)
    tree.table.end(series)
    last = tree.points(2 * SECOND)[1]
    assert (last.as_int, last.flags) == (42, 0)
    assert len(tree.table) == 1
    gone = tree.points(3 * SECOND)[1]
    assert gone.flags == pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    assert gone.WhichOneof("value") is None
    assert (gone.start_time_unix_nano, gone.time_unix_nano) == (SECOND, 3 * SECOND)
    assert len(tree.table) == 0
    assert tree.points(4 * SECOND) == {}


def test_an_ended_histogram_loses_its_buckets():
    tree = Tree()
    series = tree.table.series(catalog.VERBS_MESSAGE_SIZE, {}, SECOND)
    series.set(Histogram(1, 2, 0, 1, [1]), SECOND)
    tree.table.end(series)
    tree.export(SECOND)
    (point,) = tree.export(2 * SECOND)["rdma.verbs.message.size"].exponential_histogram.data_points
    assert point.flags == pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
    assert (point.count, point.sum, len(point.positive.bucket_counts)) == (0, 0, 0)


def test_a_series_that_ends_without_a_value_goes_silently():
    tree = Tree()
    tree.table.end(tree.counter(1, None))
    assert tree.points(SECOND) == {}
    assert len(tree.table) == 0


@pytest.mark.parametrize("exports_before", [0, 1, 2, 3])
def test_a_series_that_ends_and_comes_back_is_one_point_with_a_new_start(exports_before):
    tree = Tree()
    series = tree.counter(1, 100, SECOND)
    tree.points(SECOND)
    tree.table.end(series)
    for number in range(exports_before):
        tree.points((2 + number) * SECOND)
    tree.counter(1, 7, 9 * SECOND)
    metric = tree.export(10 * SECOND)["rdma.verbs.io"]
    (point,) = metric.sum.data_points
    assert (point.as_int, point.flags, point.start_time_unix_nano) == (7, 0, 9 * SECOND)
    assert len(tree.table) == 1


def test_after_a_reset_the_new_start_is_not_before_the_last_point_of_the_old_count():
    tree = Tree()
    series = tree.counter(1, None)
    series.observe(100, 10 * SECOND)
    tree.points(15 * SECOND)
    series.observe(3, 20 * SECOND)
    point = tree.points(25 * SECOND)[1]
    assert (point.as_int, point.start_time_unix_nano) == (3, 15 * SECOND)
    assert tree.points(35 * SECOND)[1].start_time_unix_nano == 15 * SECOND


def test_series_that_come_and_go_leave_every_other_point_right():
    tree = Tree()
    live = {}
    for step in range(40):
        now = (step + 1) * SECOND
        for number in range(step * 50, step * 50 + 100):
            live[number] = tree.counter(number, number, now)
        for number in list(live)[:: 3 + step % 3]:
            tree.table.end(live.pop(number))
        for number, series in live.items():
            series.set(number * 1000 + step, now)
        points = {number: point for number, point in tree.points(now).items() if number in live}
        assert {number: point.as_int for number, point in points.items()} == {
            number: number * 1000 + step for number in live
        }
        assert not any(point.flags for point in points.values())
    for _ in range(3):
        now += SECOND
        assert set(live) <= set(tree.points(now))
    assert set(tree.points(now)) == set(live)
    assert len(tree.table) == len(live)


def test_requests_stay_below_the_limit_and_together_have_every_point_once():
    limit = 16 << 10
    tree = Tree(limit)
    for number in range(3000):
        tree.counter(number)
    tree.table.series(catalog.NETWORK_UP, {}, SECOND).set(1, SECOND)
    requests = tree.requests(SECOND)
    assert len(requests) > 3
    assert max(len(request.body) for request in requests) < limit + 4096
    numbers = []
    for request in requests:
        message = ExportMetricsServiceRequest.FromString(request.body)
        points = [
            point
            for metric in message.resource_metrics[0].scope_metrics[0].metrics
            for point in metric.sum.data_points
        ]
        assert len(points) == request.items
        numbers += [point.attributes[0].value.int_value for point in points if point.attributes]
    assert sorted(numbers) == list(range(3000))


def test_a_tree_that_is_kept_for_long_does_not_grow():
    tree = Tree()
    page = os.sysconf("SC_PAGE_SIZE")

    def resident():
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page

    def churn(rounds, start):
        for step in range(rounds):
            now = (start + step + 1) * SECOND
            for number in range(128):
                tree.table.end(tree.counter((start + step, number).__hash__() & 0xFFFFFF, 1, now))
            histogram = tree.table.series(catalog.VERBS_MESSAGE_SIZE, {}, SECOND)
            histogram.set(Histogram(40, 40, 0, 0, [step] * (step % 40)), now)
            tree.requests(now)

    churn(100, 0)
    before = resident()
    churn(300, 100)
    assert resident() - before < 4 << 20
