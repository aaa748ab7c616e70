"""A real Prometheus, started by tests on loopback, and what it answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from otelcol import free_port
from support import eventually, require


class Prometheus:
    """Takes remote writes, native histograms among them. ``scrapes``: a part of its configuration."""

    def __init__(self, folder: Path, scrapes: str = "scrape_configs: []") -> None:
        program = shutil.which("prometheus")
        require("prometheus", program is not None, "apt-get install prometheus")
        assert program is not None
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self._program = program
        self._scrapes = scrapes
        self._configure([])
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def evaluate(self, rules: list[Path]) -> None:
        """Evaluate these files of rules from now on."""
        self._configure(rules)
        urllib.request.urlopen(f"{self.url}/-/reload", data=b"", timeout=60).close()

    def _configure(self, rules: list[Path]) -> None:
        files = json.dumps([str(one) for one in rules])
        (self.folder / "prometheus.yaml").write_text(
            "global: {evaluation_interval: 5s, scrape_interval: 1s}\n"
            f"rule_files: {files}\n{self._scrapes}\n"
        )

    def _start(self) -> None:
        log = self.folder / "prometheus.log"
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={self.folder}/prometheus.yaml",
                    f"--storage.tsdb.path={self.folder}/data",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--web.enable-remote-write-receiver",
                    "--web.enable-lifecycle",
                    "--enable-feature=native-histograms,promql-at-modifier,promql-negative-offset",
                ],
                stdout=stream,
                stderr=stream,
            )
        eventually(self._ready, f"Prometheus is ready; see {log}", 60)

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            text = (self.folder / "prometheus.log").read_text()
            pytest.fail(f"Prometheus ended:\n{text[-2000:]}", pytrace=False)
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def get(self, path: str, **parameters: object) -> Any:
        """What the API answers; an error of Prometheus is one of the test."""
        text = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        request = urllib.request.Request(f"{self.url}/api/v1/{path}", data=text.encode() or None)
        if path in ("alerts", "rules", "status/tsdb"):
            request = urllib.request.Request(f"{self.url}/api/v1/{path}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path} {parameters}: {error.read().decode()}", pytrace=False)

    def now(self, query: str, at: float) -> list[Any]:
        """Series of an instant query. ``at``: seconds since the epoch."""
        return list(self.get("query", query=query, time=at)["result"])

    def over(self, query: str, start: float, end: float, step: float) -> list[Any]:
        """Series of a range query, times in seconds."""
        return list(self.get("query_range", query=query, start=start, end=end, step=step)["result"])
