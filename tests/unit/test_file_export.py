"""The OTLP/JSON lines file."""

import errno
import json
import logging
import os

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from fabrictap import catalog
from fabrictap.config import File, Size
from fabrictap.export.file import FileSink, RotatingFile
from fabrictap.export.metrics import MetricsTree
from fabrictap.export.otlpjson import metrics_line, spans_line
from fabrictap.export.outbox import flush_all
from fabrictap.export.signals import Signal
from fabrictap.export.spans import SpanEncoder
from fabrictap.ledger.flows import FinishedSpan
from fabrictap.series import Histogram, SeriesTable


def metrics_request():
    table = SeriesTable(10)
    table.series(catalog.NETWORK_IO, {"hw.id": "mlx5_0/1", "rdma.port": 1}, 10**18).set(2**60, 10**18)
    table.series(catalog.SAMPLE_INTERVAL, {}, 10**18).set(0.5, 10**18)
    table.series(catalog.VERBS_MESSAGE_SIZE, {}, 10**18).set(Histogram(3, 7, 1, 2, [1, 1]), 10**18)
    tree = MetricsTree(table, {"service.name": "fabrictap"})
    tree.update(10**18 + 5)
    return next(tree.requests())


def spans_request():
    span = FinishedSpan(
        "rdma.flow", b"\xaa" * 16, b"\x01" * 8, b"\x02" * 8, 5, 9, {}, False, ((b"\xbb" * 16, b"\x03" * 8),)
    )
    return next(SpanEncoder({}).requests([span]))


def by_name(line):
    (resource,) = json.loads(line)["resourceMetrics"]
    return {metric["name"]: metric for metric in resource["scopeMetrics"][0]["metrics"]}


def test_metrics_are_protobuf_json_with_numbers_for_enumerations_and_strings_for_64_bits():
    metrics = by_name(metrics_line(metrics_request().body))
    total = metrics["hw.network.io"]["sum"]
    assert (total["aggregationTemporality"], total["isMonotonic"]) == (2, True)
    (point,) = total["dataPoints"]
    assert (point["asInt"], point["timeUnixNano"]) == (str(2**60), str(10**18 + 5))
    assert {"key": "rdma.port", "value": {"intValue": "1"}} in point["attributes"]
    assert metrics["fabrictap.source.fast.interval"]["gauge"]["dataPoints"][0]["asDouble"] == 0.5
    (histogram,) = metrics["rdma.verbs.message.size"]["exponentialHistogram"]["dataPoints"]
    assert (histogram["count"], histogram["zeroCount"]) == ("3", "1")
    assert histogram["positive"] == {"offset": 2, "bucketCounts": ["1", "1"]}


def test_what_is_written_by_hand_is_what_protobuf_writes():
    table = SeriesTable(100)
    values = [0, -1, 2**62, 0.0, 1.5, 1e300, float("nan"), float("inf"), float("-inf"), 2**63]
    for number, value in enumerate(values):
        attributes = {"text": 'a"\\\n\u00e9', "number": number - 1, "yes": True, "no": False}
        for metric in (catalog.NETWORK_IO, catalog.SAMPLE_INTERVAL):
            table.series(metric, attributes, number).set(value, number)
    ended = table.series(catalog.NETWORK_UP, {}, 1)
    ended.set(1, 1)
    table.end(ended)
    tree = MetricsTree(table, {"service.name": "fabrictap"})
    for now in (100, 200):
        tree.update(now)
        (request,) = tree.requests()
        message = ExportMetricsServiceRequest.FromString(request.body)
        assert json.loads(metrics_line(request.body)) == MessageToDict(message, use_integers_for_enums=True)


def test_ids_of_spans_are_hex():
    line = spans_line(spans_request().body)
    assert line.endswith(b"}\n")
    (span,) = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (span["traceId"], span["spanId"], span["parentSpanId"]) == ("aa" * 16, "01" * 8, "02" * 8)
    assert (span["links"][0]["traceId"], span["links"][0]["spanId"]) == ("bb" * 16, "03" * 8)
    assert span["kind"] == 5


def test_lines_are_rotated_by_size_and_the_oldest_file_goes(tmp_path):
    path = tmp_path / "out.jsonl"
    file = RotatingFile(str(path), max_size=100, max_files=3)
    for number in range(10):
        file.append(b"%039d\n" % number)
    file.close()
    kept = {entry.name: entry.read_text().split() for entry in tmp_path.iterdir()}
    assert {name: [int(line) for line in lines] for name, lines in kept.items()} == {
        "out.jsonl": [8, 9],
        "out.jsonl.1": [6, 7],
        "out.jsonl.2": [4, 5],
    }


def test_with_one_file_it_is_started_over(tmp_path):
    file = RotatingFile(str(tmp_path / "out"), max_size=100, max_files=1)
    for number in range(5):
        file.append(b"%059d\n" % number)
    file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert int((tmp_path / "out").read_text()) == 4


def test_a_line_larger_than_the_file_still_is_one_line(tmp_path):
    file = RotatingFile(str(tmp_path / "out"), max_size=10, max_files=2)
    file.append(b"x" * 50 + b"\n")
    file.append(b"y\n")
    file.close()
    assert (tmp_path / "out").read_bytes() == b"y\n"
    assert (tmp_path / "out.1").read_bytes() == b"x" * 50 + b"\n"


def test_only_the_owner_writes_and_only_the_group_reads(tmp_path):
    before = os.umask(0)
    try:
        file = RotatingFile(str(tmp_path / "out"), 1 << 20, 2)
        file.append(b"x\n")
        file.close()
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o640


def test_a_restarted_writer_appends_and_does_not_continue_a_torn_line(tmp_path):
    (tmp_path / "out").write_bytes(b"whole\ntor")
    file = RotatingFile(str(tmp_path / "out"), 1 << 20, 2)
    file.append(b"next\n")
    file.append(b"last\n")
    file.close()
    assert (tmp_path / "out").read_bytes() == b"whole\ntor\nnext\nlast\n"


def test_a_file_that_was_moved_or_deleted_is_made_anew(tmp_path):
    path = tmp_path / "out"
    file = RotatingFile(str(path), 1 << 20, 2)
    file.append(b"a\n")
    path.rename(tmp_path / "moved")
    file.append(b"b\n")
    path.unlink()
    file.append(b"c\n")
    file.close()
    assert (path.read_bytes(), (tmp_path / "moved").read_bytes()) == (b"c\n", b"a\n")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "symlink":
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match="out"):
        RotatingFile(str(path), 1 << 20, 2).append(b"x\n")
    assert not (tmp_path / "target").exists()


def test_a_line_that_does_not_fit_the_disk_leaves_no_part_of_itself(tmp_path, monkeypatch):
    path = tmp_path / "out"
    file = RotatingFile(str(path), 1 << 20, 2)
    file.append(b"whole\n")
    real, calls = os.write, []

    def full_disk(descriptor, data):
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"too long\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"whole\n"
    file.append(b"again\n")
    file.close()
    assert path.read_bytes() == b"whole\nagain\n"


def test_trouble_is_counted_and_said_once_and_ends_by_itself(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "later" / "out"
    sink = FileSink(File(path=str(path), max_size=Size(1 << 20)), queue=8)
    for outbox in sink.outboxes.values():
        outbox.start()
    request = metrics_request()
    for _ in range(3):
        sink.outboxes[Signal.METRICS].put(request)
    assert flush_all(sink.outboxes.values(), 5)
    assert sink.outboxes[Signal.METRICS].stats.failed == {"ENOENT": 3 * request.items}
    path.parent.mkdir()
    sink.outboxes[Signal.METRICS].put(request)
    sink.outboxes[Signal.TRACES].put(spans_request())
    assert flush_all(sink.outboxes.values(), 5)
    for outbox in sink.outboxes.values():
        outbox.close()
    sink.close()
    assert sink.outboxes[Signal.METRICS].stats.exported == request.items
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "cannot be written: No such file or directory" in caplog.records[0].message
    assert sorted(next(iter(json.loads(line))) for line in path.read_text().splitlines()) == [
        "resourceMetrics",
        "resourceSpans",
    ]
