"""The Prometheus text exposition, from the ring to the listener."""

import contextlib
import http.client
import math
import re
import shutil
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from fabrictap import catalog
from fabrictap.config import ConfigError, Prometheus
from fabrictap.export import prometheus, scrape
from fabrictap.export.scrape import ListenError, Scrape, parse
from fabrictap.ext.ring import Histogram
from fabrictap.series import SeriesTable, in_memory
from support import eventually, require

S = 10**9
RESOURCE = {"service.name": "fabrictap", "host.name": 'a "node"'}


class Text:
    """A series table and its exposition."""

    def __init__(self, capacity=100):
        self.ring = in_memory(capacity)
        self.table = SeriesTable(capacity, self.ring)
        self.exposition = prometheus.exposition(self.ring, RESOURCE)

    def text(self, now_ns=S):
        self.exposition.collect(now_ns)
        return self.exposition.render().decode()

    def samples(self, now_ns=S):
        """Name and labels -> value, all lines but target_info's."""
        lines = [line for line in self.text(now_ns).splitlines() if not line.startswith(("#", "target_info"))]
        found = dict(line.rsplit(" ", 1) for line in lines)
        assert len(found) == len(lines), "the same series twice"
        return found


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (catalog.NETWORK_IO, "hw_network_io_bytes_total"),
        (catalog.rates(catalog.NETWORK_IO)[1], "hw_network_io_rate_peak_bytes_per_second"),
        (catalog.rates(catalog.NETWORK_PACKETS)[0], "hw_network_packets_rate_average_per_second"),
        (catalog.NETWORK_LIMIT, "hw_network_bandwidth_limit_bytes_per_second"),
        (catalog.NETWORK_UP, "hw_network_up"),
        (catalog.PROCESS_CPU, "process_cpu_time_seconds_total"),
        (catalog.SOURCE_DURATION, "fabrictap_source_sample_duration_seconds"),
        (catalog.VERBS_MESSAGE_SIZE, "rdma_verbs_message_size_bytes"),
        (catalog.POINTS_EXPORTED, "otel_sdk_exporter_metric_data_point_exported_total"),
    ],
)
def test_names_are_translated_as_the_collector_does(metric, name):
    assert prometheus.name(metric) == name


def test_no_two_metrics_of_the_catalog_have_one_name():
    names = [prometheus.name(metric) for metric in catalog.exported()]
    assert len(set(names)) == len(names)


def test_values_rates_and_what_is_not_known():
    text = Text()
    io = text.table.series(catalog.NETWORK_IO, {"hw.id": "mlx5_0/1", "rdma.port": 1}, 0)
    text.table.series(catalog.NETWORK_UP, {"hw.id": "not known yet"}, 0)
    text.table.series(catalog.PROCESS_CPU, {"cpu.mode": "user"}, 0).add(0.1, 1)
    text.table.series(catalog.RING_SIZE, {}, 0).set(-5, 1)
    io.observe(0, S)
    io.observe(2**62, 2 * S)
    text.ring.interval(2 * S)
    assert text.samples() == {
        'hw_network_io_bytes_total{hw_id="mlx5_0/1",rdma_port="1"}': str(2**62),
        'hw_network_io_rate_average_bytes_per_second{hw_id="mlx5_0/1",rdma_port="1"}': "2.30584301e+18",
        'hw_network_io_rate_peak_bytes_per_second{hw_id="mlx5_0/1",rdma_port="1"}': "4.61168602e+18",
        'process_cpu_time_seconds_total{cpu_mode="user"}': "0.1",
        "fabrictap_ring_size_bytes": "-5",
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.1, "0.1"),
        (1 / 3, "0.33333333333333331"),
        (1e300, "1e+300"),
        (-2.0, "-2"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
        (-(2**63), str(-(2**63))),
    ],
)
def test_numbers_are_written_so_that_they_are_read_back_the_same(value, written):
    text = Text()
    text.table.series(catalog.SAMPLE_INTERVAL, {}, 0).set(value, 1)
    assert text.samples() == {"fabrictap_source_fast_interval_seconds": written}
    assert math.isnan(value) or float(written) == value


def test_hostile_labels_are_escaped_and_target_info_has_the_resource():
    text = Text()
    hostile = 'a"b\\c\nd{}\x01ü'
    text.table.series(catalog.NETWORK_UP, {"hw.id": hostile, "otel.metric.overflow": True}, 0).set(1, 1)
    assert 'hw_network_up{hw_id="a\\"b\\\\c\\nd{}\x01ü",otel_metric_overflow="true"} 1\n' in text.text()
    assert 'target_info{host_name="a \\"node\\"",service_name="fabrictap"} 1\n' in text.text()


def test_all_lines_of_a_metric_stand_together():
    text = Text()
    for number in range(5):
        for metric in (catalog.NETWORK_IO, catalog.ERRORS, catalog.NETWORK_UP):
            text.table.series(metric, {"n": number}, 0).set(number, 1)
    names = [re.split(r"[{ ]", line)[0] for line in text.text().splitlines() if not line.startswith("#")]
    groups = [name for name, before in zip(names, [None, *names], strict=False) if name != before]
    assert len(groups) == len(set(groups))


def test_a_histogram_has_cumulative_buckets():
    text = Text()
    series = text.table.series(catalog.VERBS_MESSAGE_SIZE, {"rdma.qp.number": 17}, 0)
    for value in (0, 1, 3, 4, 4.1, 64, 2.0**40):
        series.record(value, 1)
    found = text.samples()
    name = "rdma_verbs_message_size_bytes"
    buckets = {
        key.partition('le="')[2].rstrip('"}'): int(value)
        for key, value in found.items()
        if key.startswith(f"{name}_bucket{{rdma_qp_number=")
    }
    assert [buckets[le] for le in ("1", "4", "16", "64", "256", "4294967296", "+Inf")] == [
        2,
        4,
        5,
        6,
        6,
        6,
        7,
    ]
    assert found[f'{name}_count{{rdma_qp_number="17"}}'] == "7"
    assert float(found[f'{name}_sum{{rdma_qp_number="17"}}']) == 76.1 + 2.0**40


@pytest.mark.parametrize("scale", [8, 3, 0, -1, -3])
def test_no_bucket_counts_what_may_be_above_its_bound(scale):
    text = Text()
    series = text.table.series(catalog.VERBS_MESSAGE_SIZE, {}, 0)
    series.set(Histogram(30, 5, 0, 2, [10, 10, 10], scale), 1)
    for key, value in text.samples().items():
        if "_bucket" in key and "+Inf" not in key:
            bound = float(key.partition('le="')[2].rstrip('"}'))
            base = 2.0 ** (2.0**-scale)
            assert int(value) == 10 * sum(base ** (index + 1) <= bound * 1.0000001 for index in (2, 3, 4))


def test_an_ended_counter_is_shown_a_while_longer_and_a_state_is_not():
    text = Text()
    counter = text.table.series(catalog.VERBS_IO, {"n": 1}, 0)
    state = text.table.series(catalog.NETWORK_UP, {"n": 1}, 0)
    counter.set(5, 1)
    state.set(1, 1)
    text.table.end(counter)
    text.table.end(state)
    assert text.samples(S) == {'rdma_verbs_io_bytes_total{n="1"}': "5"}
    assert text.samples(200 * S) == {'rdma_verbs_io_bytes_total{n="1"}': "5"}
    assert text.samples(302 * S) == {}


def test_a_series_that_comes_back_takes_the_place_of_the_one_that_ended():
    text = Text()
    old = text.table.series(catalog.VERBS_IO, {"n": 1}, 0)
    old.set(5, 1)
    text.table.end(old)
    assert list(text.samples().values()) == ["5"]
    text.table.series(catalog.VERBS_IO, {"n": 1}, 2).set(2, 2)
    assert list(text.samples().values()) == ["2"]
    text.table.remove(old)
    assert list(text.samples().values()) == ["2"]


def test_slots_that_are_used_again_have_the_new_labels():
    text = Text(capacity=64)
    for generation in range(5):
        made = [text.table.series(catalog.VERBS_IO, {"n": f"{generation}.{n}"}, 0) for n in range(64)]
        for one in made:
            one.set(generation, 1)
        shown = [key for key, value in text.samples(S).items() if value == str(generation)]
        assert len(shown) == 64
        for one in made:
            text.table.end(one)
            text.table.remove(one, 1)


def test_promtool_has_nothing_to_say_but_of_names_that_opentelemetry_gives():
    promtool = shutil.which("promtool")
    require("promtool", promtool is not None, "apt-get install prometheus")
    text = Text()
    for metric in catalog.metrics():
        series = text.table.series(metric, {"hw.id": 'x"\n', "rdma.port": 1}, 0)
        if metric.kind is catalog.Kind.HISTOGRAM:
            series.record(70, 1)
        else:
            series.set(3, 1)
    text.ring.interval(S)
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=text.text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = (done.stdout + done.stderr).splitlines()
    # OpenTelemetry names what is counted now NAME.count; rdma.port.counter has a port's counters in it.
    style = ('"_count" suffix', "should not include type 'counter'")
    assert [line for line in said if not any(known in line for known in style)] == []
    assert done.returncode in (0, 3)  # 3: style; 1: not readable


# --- the listener ---------------------------------------------------------------------------------


@pytest.fixture
def listener():
    with _listener("127.0.0.1:0", lambda: b"up 1\n") as made:
        yield made


@contextlib.contextmanager
def _listener(where, body):
    made = Scrape(parse(where, allow_remote=False), body)
    made.start()
    try:
        yield made
    finally:
        made.close()


def _connect(listener):
    return socket.create_connection((listener.address.host, listener.address.port), 5)


def _say(listener, request):
    """The whole answer to some bytes."""
    with _connect(listener) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_get_and_head_of_metrics(listener):
    client = http.client.HTTPConnection(listener.address.host, listener.address.port, timeout=5)
    client.request("GET", "/metrics?x=1")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, b"up 1\n")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    client.request("HEAD", "/metrics")
    answer = client.getresponse()
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "5", b"")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/2\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"x" * 10000, 431),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n", 431),
    ],
)
def test_nothing_else_is_answered(listener, request_, status):
    assert _say(listener, request_).split(b" ")[1] == str(status).encode()


def test_a_request_in_pieces_is_understood(listener):
    with _connect(listener) as client:
        for piece in (b"GET /met", b"rics HTTP/1.1\r\n", b"\r", b"\n"):
            client.sendall(piece)
            time.sleep(0.01)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_one_that_says_nothing_is_left_after_a_while(listener, monkeypatch):
    monkeypatch.setattr(scrape, "REQUEST_TIME", 0.2)
    with _connect(listener) as client:
        client.sendall(b"GET /metrics HT")
        assert client.recv(65536).startswith(b"HTTP/1.1 408")


def test_silent_clients_do_not_keep_others_out_for_long(listener, monkeypatch):
    monkeypatch.setattr(scrape, "REQUEST_TIME", 0.3)
    with contextlib.ExitStack() as stack:
        for _ in range(2 * scrape.MOST_CONNECTIONS):
            stack.enter_context(_connect(listener))
        assert b"200 OK" in _say(listener, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert len(listener._connections) <= scrape.MOST_CONNECTIONS


def test_one_that_does_not_read_its_answer_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(scrape, "ANSWER_TIME", 0.3)
    with _listener("127.0.0.1:0", lambda: b"x" * (64 << 20)) as listener, _connect(listener) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: listener._connections, "the request is being answered")
        eventually(lambda: not listener._connections, "the slow reader is dropped")
        assert b"404" in _say(listener, b"GET / HTTP/1.1\r\n\r\n")


def test_a_body_that_fails_is_an_error_of_that_scrape_only():
    answers = iter([ValueError("broken"), b"up 1\n"])

    def body():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with _listener("127.0.0.1:0", body) as listener:
        assert b" 500 " in _say(listener, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b" 200 " in _say(listener, b"GET /metrics HTTP/1.1\r\n\r\n")


def test_a_large_answer_arrives_whole_for_several_at_once():
    text = b"x" * (8 << 20)
    with _listener("127.0.0.1:0", lambda: text) as listener:
        got = []
        threads = [
            threading.Thread(target=lambda: got.append(_say(listener, b"GET /metrics HTTP/1.1\r\n\r\n")))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [len(answer.partition(b"\r\n\r\n")[2]) for answer in got] == [len(text)] * 4


def test_a_unix_socket_is_for_owner_and_group_and_goes_with_the_listener(tmp_path):
    path = tmp_path / "metrics.sock"
    with _listener(f"unix:{path}", lambda: b"up 1\n"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        with pytest.raises(ListenError, match="another process listens there"):
            Scrape(parse(f"unix:{path}", allow_remote=False), bytes)
    assert not path.exists()


def test_the_socket_of_a_dead_agent_is_replaced_and_other_files_are_not(tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with _listener(f"unix:{path}", lambda: b""):
        pass
    path.write_text("precious")
    with pytest.raises(ListenError, match="in use"):
        Scrape(parse(f"unix:{path}", allow_remote=False), bytes)
    assert path.read_text() == "precious"


def test_an_address_in_use_is_said(listener):
    with pytest.raises(ListenError, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use"):
        Scrape(listener.address, bytes)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:9435", "[::1]:9435", "localhost:9435", "unix:/run/x", "127.9.9.9:1"]
)
def test_loopback_and_unix_sockets_are_allowed(text):
    assert parse(text, allow_remote=False)


@pytest.mark.parametrize("text", ["0.0.0.0:9435", "[::]:9435", "10.0.0.1:9435"])
def test_other_addresses_only_where_that_is_meant(text):
    with pytest.raises(ConfigError, match="allow_remote=true"):
        parse(text, allow_remote=False)
    assert str(parse(text, allow_remote=True)) == text


@pytest.mark.parametrize(
    "text", ["", "9435", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "host:1", "unix:x"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match=r"export\.prometheus\.listen: expected"):
        parse(text, allow_remote=True)


def test_nothing_is_left_open():
    before = {file.name for file in Path("/proc/self/fd").iterdir()}
    for _ in range(3):
        with _listener("127.0.0.1:0", lambda: b"") as listener:
            _say(listener, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert {file.name for file in Path("/proc/self/fd").iterdir()} == before


# --- in the agent ---------------------------------------------------------------------------------


def _get(address):
    client = http.client.HTTPConnection(address.host, address.port, timeout=5)
    client.request("GET", "/metrics")
    return client.getresponse().read().decode()


def test_the_text_is_taken_under_the_lock_and_written_outside_it():
    table, lock = SeriesTable(10), threading.Lock()
    table.series(catalog.VERBS_IO, {"n": 1}, 0).set(5, 1)
    settings = Prometheus(listen="127.0.0.1:0")
    endpoint = prometheus.Endpoint(settings, table.ring, RESOURCE, lock)
    endpoint.open()
    try:
        with lock, _connect(endpoint.scrape) as client:
            client.settimeout(0.3)
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                client.recv(1)
        assert 'rdma_verbs_io_bytes_total{n="1"} 5\n' in _get(endpoint.scrape.address)
    finally:
        endpoint.close()


def test_an_address_that_is_taken_is_said_once_and_tried_again(caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Prometheus(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        endpoint = prometheus.Endpoint(settings, SeriesTable(1).ring, RESOURCE, threading.Lock())
        endpoint.open()
        endpoint.open()
        assert len(caplog.records) == 1
        assert "Address already in use" in caplog.text
    endpoint.open()
    try:
        assert "target_info{" in _get(endpoint.scrape.address)
    finally:
        endpoint.close()


def test_nothing_listens_by_default():
    endpoint = prometheus.Endpoint(Prometheus(), SeriesTable(1).ring, RESOURCE, threading.Lock())
    endpoint.open()
    assert endpoint.scrape is None
    endpoint.close()
