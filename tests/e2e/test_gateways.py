"""The Collector configurations that are shipped, run as they are: node, balancer, two gateways, Prometheus.

Prometheus is the real one. Tempo and Loki are stood in for by servers of the test that speak OTLP.
"""

import gzip
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fabrictap import catalog
from fabrictap.export import prometheus as exposition
from otelcol import BUILD, find_collector, free_port
from otlp_json import Reader
from otlp_receiver import Receiver
from prometheus_server import Prometheus
from support import eventually, require

SHIPPED = Path(__file__).parents[2] / "packaging" / "otel-collector"
#: What is given to one Collector together.
TIERS = {
    "minimal": ["gateway-minimal.yaml"],
    "node": ["node.yaml"],
    "balancer-dns": ["balancer.yaml", "resolver-dns.yaml"],
    "balancer-k8s": ["balancer.yaml", "resolver-k8s.yaml"],
    "balancer-static": ["balancer.yaml", "resolver-static.yaml"],
    "gateway": ["gateway.yaml"],
    "gateway-otlp": ["gateway.yaml", "gateway-metrics-otlp.yaml"],
}


@pytest.fixture(scope="module")
def binary():
    found = find_collector()
    require("collector", found.is_file(), f"{found} does not exist; build it with {BUILD}")
    return found


def arguments(tier):
    return [f"--config={SHIPPED / name}" for name in TIERS[tier]]


def validate(binary, options, storage):
    done = subprocess.run(
        [binary, "validate", *options],
        env={"PATH": os.environ["PATH"], "STORAGE": str(storage)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_a_collector_takes_the_configuration(binary, tier, tmp_path):
    validate(binary, arguments(tier), tmp_path)


def test_a_collector_takes_what_the_page_adds_for_tls(binary, tmp_path):
    page = (SHIPPED.parents[1] / "docs" / "collector.md").read_text()
    snippet = page.partition("\n## TLS\n")[2].partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "tls.yaml").write_text(snippet)
    validate(binary, [*arguments("balancer-static"), f"--config={tmp_path}/tls.yaml"], tmp_path)


def test_every_configuration_is_tried():
    tried = {name for names in TIERS.values() for name in names}
    assert {file.name for file in SHIPPED.glob("*.yaml")} - tried == {"kubernetes.yaml"}


class Site:
    """The tiers on loopback: ports, processes, and what stands in for the backends."""

    def __init__(self, binary, folder):
        self.binary = binary
        self.folder = folder
        self.running = {}
        self.prometheus = Prometheus(folder)
        self.balancer = free_port()
        self.gateways = [free_port(), free_port()]
        self.socket = folder / "otlp.sock"
        #: One for each gateway, in Tempo's place.
        self.tempo = [Receiver(), Receiver()]
        self.loki = Loki()
        self.health = {}

    def start(self, name, tier, **environment):
        port = free_port()
        self.health[name] = port
        self.spawn(
            name,
            [self.binary, *arguments(tier), "--set=service::telemetry::metrics::level=none"],
            HEALTH_LISTEN=f"127.0.0.1:{port}",
            **environment,
        )

    def spawn(self, name, command, **environment):
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"], **environment}
            )

    def start_balancer(self):
        self.start(
            "balancer",
            "balancer-static",
            OTLP_LISTEN=f"127.0.0.1:{self.balancer}",
            GATEWAY_1=f"127.0.0.1:{self.gateways[0]}",
            GATEWAY_2=f"127.0.0.1:{self.gateways[1]}",
        )

    def start_all(self):
        for number, port in enumerate(self.gateways):
            self.start(
                f"gateway-{number}",
                "gateway",
                OTLP_LISTEN=f"127.0.0.1:{port}",
                METRICS_URL=f"{self.prometheus.url}/api/v1/write",
                TRACES=f"127.0.0.1:{self.tempo[number].start('127.0.0.1:0')}",
                LOGS_URL=f"http://127.0.0.1:{self.loki.port}/otlp",
            )
        self.start_balancer()
        (self.folder / "queue").mkdir()
        self.start(
            "node",
            "node",
            OTLP_LISTEN=f"127.0.0.1:{free_port()}",
            OTLP_SOCKET=str(self.socket),
            GATEWAY=f"127.0.0.1:{self.balancer}",
            STORAGE=str(self.folder / "queue"),
        )
        for name, port in self.health.items():
            eventually(lambda name=name, port=port: self.answers(name, port), f"{name} is ready", 60)

    def answers(self, name, port, path="/"):
        if self.running[name].poll() is not None:
            pytest.fail(f"{name} ended:\n{(self.folder / f'{name}.log').read_text()[-3000:]}", pytrace=False)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def run_agent(self):
        self.spawn(
            "agent",
            [
                *(sys.executable, "-m", "fabrictap", "run", "--simulate", "hgx-h100"),
                f"--set=ring.path={self.folder}/run/ring",
                f"--set=export.file.path={self.folder}/sent.jsonl",
                *("--set=export.interval=1s", "--set=flows.window=2s"),
            ],
            OTEL_EXPORTER_OTLP_ENDPOINT=f"unix://{self.socket}",
            PYTHONPATH=os.pathsep.join(sys.path),
        )

    def end(self, name, number=signal.SIGTERM):
        process = self.running.pop(name)
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self):
        for name in reversed(list(self.running)):  # who sends goes before who receives
            self.end(name)
        self.prometheus.stop()
        for receiver in self.tempo:
            receiver.stop()
        self.loki.close()

    def query(self, expression):
        """The result of an instant query: a list of {metric, value}."""
        return self.prometheus.get("query", query=expression)["result"]

    def value(self, expression):
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else None

    def own_metric(self, name):
        """A number that Prometheus says of itself."""
        with urllib.request.urlopen(f"{self.prometheus.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == name
        )

    def spans(self, gateway):
        """The spans that a gateway handed to Tempo."""
        return [
            span
            for body in list(self.tempo[gateway].bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Loki:
    """Takes OTLP over HTTP, as Loki does at /otlp/v1/logs."""

    def __init__(self):
        bodies = self.bodies = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                known = self.path == "/otlp/v1/logs"
                if known:
                    bodies.append(ExportLogsServiceRequest.FromString(body))
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def records(self):
        return [
            record
            for request in list(self.bodies)
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


@pytest.fixture(scope="module")
def site(binary, tmp_path_factory):
    # Short: the address of a unix socket has 107 bytes.
    made = Site(binary, tmp_path_factory.mktemp("site"))
    try:
        made.start_all()
        made.run_agent()
        yield made
    finally:
        made.close()


def test_every_metric_of_a_node_is_in_prometheus_under_the_agents_own_names(site):
    sent = Reader(site.folder / "sent.jsonl")
    known = {metric.name: metric for metric in catalog.metrics()}
    known |= {rate.name: rate for one in catalog.metrics() if one.rates for rate in catalog.rates(one)}

    def names():
        sent.poll()
        return {exposition.name(known[point.name]) for point in sent.latest.values()}

    eventually(lambda: len(names()) > 30, "the agent exports", 30)

    def there():
        return set(site.prometheus.get("label/__name__/values"))

    eventually(lambda: names() <= there(), "all of them are in Prometheus", 40)
    # Which node, on each series; what nobody asks for is on none.
    ports = "count by (host_name) (hw_network_io_bytes_total)"
    eventually(lambda: site.query(ports), "and so are their samples", 20)
    (one,) = site.query(ports)
    assert one["metric"] == {"host_name": "simulated-hgx-h100"}
    assert site.query('{telemetry_sdk_name!=""}') == []
    assert site.value('count({host_name="simulated-hgx-h100"})') > 500
    (target,) = site.query("target_info")
    assert target["metric"]["fabrictap_simulated"] == "true"


def test_values_arrive_as_they_were_sent_and_in_order(site):
    received = 'sum(hw_network_io_bytes_total{network_io_direction="receive"})'
    first = site.value(received)
    eventually(lambda: site.value(received) > first, "the counters of the ports go on", 30)
    assert site.own_metric("prometheus_tsdb_out_of_order_samples_total") == 0
    assert site.own_metric("prometheus_target_scrapes_sample_out_of_order_total") == 0
    # A histogram of the agent is a native one there.
    assert site.value("histogram_count(sum(fabrictap_source_sample_duration_seconds))") > 0


def test_flows_reach_tempo_with_their_windows(site):
    eventually(
        lambda: any("rdma.flow" in span.name for n in (0, 1) for span in site.spans(n)), "spans came", 40
    )


def test_the_two_halves_of_a_trace_meet_at_one_gateway(site):
    """Two nodes send their span of each of 40 traces, to whichever balancer there is."""
    traces = [bytes([7]) * 15 + bytes([number]) for number in range(40)]
    with grpc.insecure_channel(f"127.0.0.1:{site.balancer}") as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        for node in (1, 2):
            request = ExportTraceServiceRequest()
            resource = request.resource_spans.add()
            resource.resource.attributes.add(key="host.name").value.string_value = f"node-{node}"
            scope = resource.scope_spans.add()
            for trace in traces:
                scope.spans.add(
                    trace_id=trace, span_id=bytes([node]) * 8, name="half", start_time_unix_nano=1
                )
            export(request.SerializeToString(), timeout=10)

    def halves():
        return [[(s.trace_id, s.span_id) for s in site.spans(n) if s.name == "half"] for n in (0, 1)]

    eventually(lambda: sum(map(len, halves())) == 80, "all spans came", 20)
    left, right = ({trace for trace, _ in some} for some in halves())
    assert left.isdisjoint(right)
    assert left | right == set(traces)
    assert len(left) >= 5  # and both have something to do
    assert len(right) >= 5


def test_log_events_reach_loki(site):
    request = ExportLogsServiceRequest()
    record = (
        request.resource_logs.add().scope_logs.add().log_records.add(event_name="fabrictap.finding.raised")
    )
    record.body.string_value = "from the test"
    with grpc.insecure_channel(f"unix:{site.socket}") as channel:
        channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")(
            request.SerializeToString(), timeout=10
        )
    eventually(
        lambda: any(r.body.string_value == "from the test" for r in site.loki.records()), "it came", 20
    )


def test_what_a_node_sends_while_the_balancer_is_away_comes_later_and_in_order(site):
    counter = "process_cpu_time_seconds_total{cpu_mode='user'}"
    eventually(lambda: site.value(counter) is not None, "it is there", 30)
    site.end("balancer", signal.SIGKILL)
    gone = time.time()
    file = Reader(site.folder / "sent.jsonl")

    file.poll()
    before = file.exports

    def sent_since():
        file.poll()
        return file.exports >= before + 5

    eventually(sent_since, "five exports while it is away", 30)
    back = time.time()
    site.start_balancer()

    def samples_of_the_gap():
        seconds = max(1, int(back - gone))
        result = site.prometheus.now(f"count_over_time({counter}[{seconds}s])", back)
        return float(result[0]["value"][1]) if result else 0

    eventually(lambda: samples_of_the_gap() >= 4, "Prometheus has the time between", 90)
    assert site.own_metric("prometheus_tsdb_out_of_order_samples_total") == 0
