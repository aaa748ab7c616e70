"""The board of findings: told once, again when worse, ended once; bounded; as OTLP and in the recording."""

import json

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import rings
from fabrictap import catalog
from fabrictap.config import FindingSettings
from fabrictap.export.logs import LogEncoder
from fabrictap.export.otlpjson import logs_line
from fabrictap.export.spans import SpanEncoder
from fabrictap.insight.findings import MAX_WAITING, Finding, Findings, Severity
from fabrictap.journal import Journal
from fabrictap.ledger.flows import MAX_EVENTS
from fabrictap.view.recording import Recording
from findings_house import DAY, HERE, SECOND, House


class Says:
    """A detector that finds what it is told to."""

    name = "says"

    def __init__(self):
        self.found = []

    def look(self, now_ns, context):
        yield from self.found


class Fails:
    name = "fails"

    def look(self, now_ns, context):
        raise ZeroDivisionError("by nought")


def finding(value=1, key=("a",), kind=catalog.DARK_EGRESS, severity=Severity.WARN, **more):
    return Finding(kind, severity, "something", key, value, "By", 1, **more)


@pytest.fixture
def says():
    return Says()


@pytest.fixture
def house(says):
    return House(says)


def states(records):
    return [record.attributes["fabrictap.finding.state"] for record in records]


def test_what_lasts_is_told_once(house, says):
    says.found = [finding()]
    assert states(house.look(100)) == ["opened"]
    assert house.value(catalog.FINDING_COUNT) == house.value(catalog.FINDING_OPEN) == 1


def test_it_is_told_again_when_many_times_worse_more_severe_or_a_day_later(house, says):
    says.found = [finding(1)]
    house.look()
    says.found = [finding(9)]
    assert house.look(10) == []
    says.found = [finding(10)]
    assert states(house.look(10)) == ["worsened"]
    says.found = [finding(10, severity=Severity.ERROR)]
    assert states(house.look(10)) == ["worsened"]
    assert states(house.look(3 * DAY // 2 // (50 * SECOND), step=50 * SECOND)) == ["continuing"]


def test_its_end_is_told_once_and_what_flaps_is_one_episode(house, says):
    says.found = [finding()]
    house.look()
    says.found = []
    assert states(house.look(30)) == ["ended"]
    assert house.value(catalog.FINDING_OPEN) == 0
    says.found = [finding()]
    assert house.look(3) == []
    says.found = []
    house.look(30)
    house.look(step=700 * SECOND)
    says.found = [finding()]
    assert states(house.look()) == ["opened"]


def test_a_flood_of_one_kind_is_limited_and_hides_no_other(house, says):
    says.found = [finding(key=(number,)) for number in range(500)]
    assert len(house.look()) == house.config.findings.per_minute
    assert house.value(catalog.FINDING_DROPPED, **{"fabrictap.finding.loss.reason": "rate"}) == 480
    says.found.append(finding(kind=catalog.LINK_ERRORS))
    # One interval more is worth one or two events of the first kind.
    made = house.look()
    assert [one.attributes["fabrictap.finding.kind"] for one in made].count("link_errors") == 1
    assert len(made) <= 3
    assert house.value(catalog.FINDING_OPEN) == 501
    # All are told in the end.
    assert len(house.look(400)) + len(house.records) >= 501
    assert house.value(catalog.FINDING_DROPPED, **{"fabrictap.finding.loss.reason": "rate"}) == 480


def test_open_findings_and_waiting_events_are_bounded(says):
    house = House(says, per_minute=10_000, limits={"findings": 2000})
    says.found = [finding(key=(number,)) for number in range(10_000)]
    assert len(house.look()) == MAX_WAITING
    assert len(house.board) == 2000
    assert house.value(catalog.FINDING_DROPPED, **{"fabrictap.finding.loss.reason": "full"}) == 8000
    assert (
        house.value(catalog.FINDING_DROPPED, **{"fabrictap.finding.loss.reason": "queue"})
        == 2000 - MAX_WAITING
    )


def test_a_detector_that_fails_costs_itself_and_is_said_once(says, caplog):
    house = House(Fails(), says)
    says.found = [finding()]
    assert len(house.look(5)) == 1
    assert caplog.text.count("detector fails failed unexpectedly: ZeroDivisionError: by nought") == 1
    assert house.value(catalog.DETECTOR_ERRORS) == 5


def test_kinds_that_are_not_wanted_are_left_out(says):
    house = House(says, ignore=["dark_egress"])
    says.found = [finding(), finding(kind=catalog.NEW_PEER)]
    assert [one.attributes["fabrictap.finding.kind"] for one in house.look()] == ["new_peer"]


def test_other_peoples_words_are_one_printable_line(house, says):
    hostile = 'x\x1b[31m\n"; DROP\u202e' + "y" * 10_000
    says.found = [
        Finding(
            catalog.DARK_EGRESS,
            Severity.WARN,
            f"by {hostile}",
            (hostile,),
            attributes={"process.executable.name": hostile},
        )
    ]
    (record,) = house.look()
    for text in (record.body, record.attributes["process.executable.name"]):
        assert text.isprintable()
        assert len(text) <= 512
    (request,) = LogEncoder({}).requests([record])
    assert logs_line(request.body).count(b"\n") == 1


def test_the_id_is_that_of_the_finding_not_of_the_event(house, says):
    says.found = [finding(key=("a",)), finding(key=("b",))]
    one, other = house.look()
    says.found = [finding(100, key=("a",))]
    (again,) = house.look()
    ids = [record.attributes["fabrictap.finding.id"] for record in (one, other, again)]
    assert ids[0] == ids[2] != ids[1]


def test_attributes_are_the_catalogs(house, says):
    says.found = [finding(since_ns=5 * SECOND)]
    (record,) = house.look()
    known = {attribute.name: attribute for attribute in catalog.FINDING_RAISED.attributes}
    for name, value in record.attributes.items():
        assert type(value) is known[name].type
        assert not known[name].values or value in known[name].values
    assert record.attributes["fabrictap.finding.since"] == "1970-01-01T00:00:05.000Z"


def test_the_flow_concerned_has_the_event_and_the_event_its_ids(house, says):
    connection = house.connect(7)
    says.found = [finding(flows=(connection.sender,), attributes={"rdma.gid": HERE, "process.pid": 1})]
    (record,) = house.look()
    assert (record.trace_id, record.span_id) == (connection.sender.id.trace_id, connection.sender.span_id)
    house.ledger.flows.roll(house.now + 61 * SECOND)
    house.end(connection)
    spans = house.ledger.flows.take_finished()
    told = [(span.name, len(span.events)) for span in spans if span.sender]
    # The window in which it was, the one after it, and the whole flow.
    assert told == [("rdma.flow.window", 1), ("rdma.flow.window", 0), ("rdma.flow", 1)]
    assert not any(span.events for span in spans if not span.sender)
    (request,) = SpanEncoder({}).requests([span for span in spans if span.sender][-1:])
    (span,) = ExportTraceServiceRequest.FromString(request.body).resource_spans[0].scope_spans[0].spans
    assert [(event.name, event.time_unix_nano) for event in span.events] == [
        ("fabrictap.finding.raised", record.time_ns)
    ]


def test_events_of_a_flow_are_bounded(house, says):
    flow = house.connect(7).sender
    house.board._per_minute = 10_000
    says.found = [finding(key=(number,), flows=(flow,)) for number in range(200)]
    house.look()
    assert len(flow.events) == len(flow.window_events) == MAX_EVENTS


def test_findings_are_log_events_of_otlp(house, says):
    says.found = [finding(5, flows=(house.connect(7).sender,))]
    (record,) = house.look()
    (request,) = LogEncoder({"service.name": "fabrictap"}).requests([record])
    (resource,) = ExportLogsServiceRequest.FromString(request.body).resource_logs
    assert resource.resource.attributes[0].value.string_value == "fabrictap"
    (log,) = resource.scope_logs[0].log_records
    assert (log.event_name, log.severity_number, log.severity_text) == (
        "fabrictap.finding.raised",
        13,
        "WARN",
    )
    assert (log.body.string_value, log.time_unix_nano) == ("something", house.now)
    line = json.loads(logs_line(request.body))
    (told,) = line["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert told["traceId"] == record.trace_id.hex()
    assert told["spanId"] == record.span_id.hex()
    assert told["eventName"] == "fabrictap.finding.raised"


def test_many_log_events_are_split_and_stay_in_order(house, says):
    house.board._per_minute = 10_000
    says.found = [finding(key=(number,)) for number in range(200)]
    records = house.look()
    requests = list(LogEncoder({}, 10_000).requests(records))
    assert len(requests) > 4
    assert sum(request.items for request in requests) == 200
    ids = [
        attribute.value.string_value
        for request in requests
        for log in ExportLogsServiceRequest.FromString(request.body)
        .resource_logs[0]
        .scope_logs[0]
        .log_records
        for attribute in log.attributes
        if attribute.key == "fabrictap.finding.id"
    ]
    assert ids == [record.attributes["fabrictap.finding.id"] for record in records]


def test_detectors_rest_when_they_cost_too_much(house, says):
    house.detectors.look(house.now)
    first = house.detectors._next_ns
    assert first >= house.now + 5 * SECOND
    says.found = [finding()]
    house.detectors.look(first - 1)
    assert len(house.board) == 0
    house.detectors.look(first)
    assert len(house.board) == 1


def test_a_clock_that_is_set_back_does_not_stop_the_looks(house, says):
    house.detectors.look(house.now)
    says.found = [finding()]
    house.detectors.look(house.now - DAY)
    assert len(house.board) == 1


def test_findings_are_kept_in_the_recording(tmp_path):
    ring, table = rings.make(tmp_path / "ring", now_ns=SECOND)
    board = Findings(FindingSettings(), 10, table, Journal(ring))
    evidence = {
        "process.pid": 42,
        "process.executable.name": "thief",
        "rdma.device": "mlx5_0",
        "rdma.qp.number": 7,
        "rdma.peer.gid": "fe80::2",
        "rdma.peer.qp.number": 9,
    }
    board.see([finding(1 << 70, attributes=evidence, severity=Severity.ERROR)], 2 * SECOND)
    board.expire(200 * SECOND)
    with Recording.open(str(tmp_path / "ring")) as recording:
        raised, ended = recording.events()
    assert (raised.name, raised.severity) == ("fabrictap.finding.raised", 17)
    assert (raised.pid, raised.process, raised.device, raised.qpn) == (42, "thief", "mlx5_0", 7)
    assert (raised.peer_gid, raised.peer_qpn) == ("fe80::2", 9)
    assert raised.text == "dark_egress: something"
    assert (ended.name, ended.severity) == ("fabrictap.finding.ended", 9)
