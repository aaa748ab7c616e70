"""Debian's prometheus-node-exporter with nothing but its infiniband collector.

The installed one, or what ``packaging/setup/packages.sh`` has unpacked into the cache.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from bench.process import Watched
from support import eventually

NAME = "node_exporter, infiniband collector alone"
_SAMPLE = re.compile(rb"^node_infiniband_(?!info|scrape)", re.M)
_NAME = "prometheus-node-exporter"


def _cache() -> Path:
    """As in packages.sh."""
    home = os.environ.get("HOME") or f"/var/tmp/fabrictap-{os.getuid()}"
    above = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return Path(os.environ.get("FABRICTAP_CACHE") or f"{above}/fabrictap") / "packages"


def _program() -> str | None:
    unpacked = _cache() / _NAME / "usr" / "bin"
    return shutil.which(_NAME) or shutil.which("node_exporter") or shutil.which(_NAME, path=str(unpacked))


def missing() -> str:
    return "" if _program() else "no node_exporter: packaging/setup/packages.sh install"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class NodeExporter:
    """Runs on ``sysfs`` until it is closed; ``scrape`` is a GET of /metrics on a kept connection."""

    def __init__(self, sysfs: Path) -> None:
        program = _program()
        if program is None:
            raise RuntimeError(missing())
        port = _free_port()
        self._process = subprocess.Popen(
            [
                program, "--collector.disable-defaults", "--collector.infiniband", f"--path.sysfs={sysfs}",
                f"--web.listen-address=127.0.0.1:{port}", "--web.disable-exporter-metrics",
                "--log.level=error",
            ],
        )  # fmt: skip
        self.watched = Watched(self._process.pid)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        eventually(self._listens, "node_exporter listens")

    @property
    def version(self) -> str:
        said = subprocess.run(
            [f"/proc/{self._process.pid}/exe", "--version"], capture_output=True, text=True, check=True
        )
        return (said.stdout or said.stderr).split()[2]

    def scrape(self) -> int:
        """Scrape once. Returns the number of values of ports."""
        self._connection.request("GET", "/metrics")
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200 or b'node_scrape_collector_success{collector="infiniband"} 1' not in body:
            raise RuntimeError(f"node_exporter answered {answer.status}: {body[:200]!r}")
        return len(_SAMPLE.findall(body))

    def close(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.wait(10)

    def __enter__(self) -> NodeExporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _listens(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"node_exporter ended with {self._process.returncode}")
        try:
            self.scrape()
        except OSError:
            self._connection.close()
            return False
        return True
