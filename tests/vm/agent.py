"""An agent in the guest, and what it exported."""

from __future__ import annotations

import sys
from pathlib import Path

from otlp_json import Reader
from vm.harness import Machine, Process

PROGRAM = Path(sys.prefix) / "bin" / "fabrictap"


class Agent:
    """``fabrictap run`` with a file exporter, for all devices or one. ``start`` returns when it watches.

    ``launch`` and ``until_watching`` are its two halves, for several agents that start side by side.
    """

    def __init__(
        self, machine: Machine, name: str, *settings: str, device: str = "*", config: Path | None = None
    ) -> None:
        self.machine = machine
        self.name = name
        self.exported = Reader(machine.share / f"{name}.jsonl")
        self.settings = (
            f"devices.allow={device}",
            f"export.file.path={self.exported.path}",
            f"ring.path=/run/fabrictap/{name}",
            "export.interval=2s",
            "export.otlp.metrics.enabled=false",
            "export.otlp.traces.enabled=false",
            "export.otlp.logs.enabled=false",
            "state.path=none",
            # An emulated processor makes probes so dear that the budget would let nearly everybody go.
            "sources.verbs.data=full",
            *settings,
        )
        self.config = config
        self.process: Process | None = None

    def start(self, *, wait_for: str = "source rdma_netlink delivers") -> Agent:
        self.launch()
        self.until_watching(wait_for)
        return self

    def launch(self) -> None:
        argv: list[str | Path] = [PROGRAM, "run"]
        if self.config is not None:
            argv += ["--config", self.config]
        for setting in self.settings:
            argv += ["--set", setting]
        self.process = self.machine.start(argv)

    def until_watching(self, wait_for: str = "source rdma_netlink delivers", timeout: float = 90) -> None:
        self.until_logged("source verbs delivers", timeout)
        self.until_logged(wait_for, timeout)

    def until_logged(self, text: str, timeout: float = 90) -> None:
        process = self.process
        assert process is not None
        self.machine.wait_for(
            lambda: text in process.stderr or process.rc is not None,
            timeout,
            f"{self.name} did not say {text!r}",
        )
        assert text in process.stderr, f"{self.name} ended with {process.rc}\n{process.stderr}"

    def exports(self, count: int = 2, timeout: float = 60) -> Reader:
        """What it exported, once ``count`` more exports have come: everything before now is in it."""

        def more() -> bool:
            self.exported.poll()
            return self.exported.exports >= before + count

        self.exported.poll()
        before = self.exported.exports
        self.machine.wait_for(more, timeout, f"{self.name} does not export")
        return self.exported

    def stop(self) -> Reader:
        """SIGTERM; all it exported."""
        assert self.process is not None
        result = self.process.stop(timeout=60)
        assert result.rc == 0, result.stderr
        self.exported.poll()
        return self.exported

    @property
    def log(self) -> str:
        return self.process.stderr if self.process else ""
