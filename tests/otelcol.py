"""The real OpenTelemetry Collector, started by tests: a pytest plugin with the fixture ``collector``.

Its binary comes from FABRICTAP_OTELCOL or from the cache that tests/e2e/collector/build.sh fills.
"""

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from support import eventually, require

BUILD = Path(__file__).parent / "e2e" / "collector" / "build.sh"


def find_collector():
    if given := os.environ.get("FABRICTAP_OTELCOL"):
        return Path(given)
    return Path(subprocess.run([BUILD, "--path"], capture_output=True, text=True, check=True).stdout.strip())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Collector:
    """The Collector with OTLP receivers on TCP and a unix socket, writing all it gets to ``output``."""

    def __init__(self, binary, folder):
        self.binary = binary
        self.folder = folder
        self.output = folder / "collector.jsonl"
        self.lines = folder / "fabrictap.jsonl"
        self.socket = folder / "otlp.sock"
        self.port = free_port()
        self.health = free_port()
        self.process = None

    def configuration(self, receivers):
        pipeline = {"receivers": list(receivers), "exporters": ["file"]}
        return {
            "receivers": receivers,
            "exporters": {"file": {"path": str(self.output), "append": True, "flush_interval": "50ms"}},
            "extensions": {"health_check": {"endpoint": f"127.0.0.1:{self.health}"}},
            "service": {
                "extensions": ["health_check"],
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"metrics": pipeline, "traces": pipeline, "logs": pipeline},
            },
        }

    def listen(self):
        """Start with the OTLP receivers."""
        tcp = {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{self.port}"}}}
        unix = {"protocols": {"grpc": {"endpoint": str(self.socket), "transport": "unix"}}}
        self.start({"otlp": tcp, "otlp/unix": unix})

    def read_lines(self):
        """Start with the receiver of OTLP/JSON lines files."""
        self.start({"otlpjsonfile": {"include": [f"{self.lines}*"], "start_at": "beginning"}})

    def start(self, receivers):
        file = self.folder / "collector.yaml"
        file.write_text(yaml.safe_dump(self.configuration(receivers)))
        log = self.folder / "collector.log"
        with log.open("ab") as stream:
            self.process = subprocess.Popen([self.binary, "--config", file], stdout=stream, stderr=stream)
        eventually(self.is_ready, f"the Collector is ready; see {log}", 30)

    def is_ready(self):
        if self.process.poll() is not None:
            pytest.fail(f"the Collector ended:\n{(self.folder / 'collector.log').read_text()}", pytrace=False)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def requests(self):
        """Every request that the Collector wrote, whole lines only."""
        if not self.output.exists():
            return []
        text = self.output.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def metrics(self):
        """Of each request: metric name -> (metric, kind of data, points)."""
        found = []
        for request in self.requests():
            for resource in request.get("resourceMetrics", ()):
                metrics = {}
                for metric in resource["scopeMetrics"][0]["metrics"]:
                    kind = next(key for key in ("sum", "gauge", "exponentialHistogram") if key in metric)
                    metrics[metric["name"]] = (metric, kind, metric[kind]["dataPoints"])
                found.append(metrics)
        return found

    def spans(self):
        return [
            span
            for request in self.requests()
            for resource in request.get("resourceSpans", ())
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


@pytest.fixture
def collector(tmp_path):
    binary = find_collector()
    require("collector", binary.is_file(), f"{binary} does not exist; build it with {BUILD}")
    made = Collector(binary, tmp_path)
    yield made
    made.stop()
