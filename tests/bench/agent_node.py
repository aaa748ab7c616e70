"""``fabrictap run`` with stand-ins in the place of hardware, for bench/agent.py.

``agent_node.py CONNECTIONS DEVICES GPUS ARGUMENT...``: the arguments are those of ``fabrictap run``. The
verbs source is the stand-in of doubles/verbs_traffic.py; what is exported says "synthetic" in its resource
attributes. On SIGUSR1 the threads take the names in the kernel that they have in Python.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from doubles.verbs_traffic import LABEL, VerbsTraffic
from fabrictap import cli, node
from fabrictap.config import Config
from fabrictap.runner import Runner

_TASK_COMM_LEN = 15


def _name_threads(*_: object) -> None:
    for thread in threading.enumerate():
        with contextlib.suppress(OSError):  # ended just now
            path = Path(f"/proc/self/task/{thread.native_id}/comm")
            path.write_text(thread.name.removeprefix("fabrictap-")[:_TASK_COMM_LEN])


class _Node(node.Node):
    """The node with one more source."""

    connections: int
    devices: int
    gpus: int

    def __init__(self, config: Config, *rest: Any) -> None:
        said = f"sysfs of {self.devices} HCAs, verbs of {self.connections} connections"
        if self.gpus:
            said += f", NVML of {self.gpus} GPUs"
        config.resource.attributes = {**config.resource.attributes, LABEL: said}
        super().__init__(config, *rest)
        traffic = VerbsTraffic(config.sources.verbs, self.series, self.ledger, self.connections, self.devices)
        self.runners.append(Runner(traffic, self._lock, self.journal))
        self._traffic = traffic

    def run(self, duration: float | None = None) -> None:
        signal.signal(signal.SIGUSR1, _name_threads)
        super().run(duration)
        print(f"stand-in seconds: {self._traffic.stand_in_seconds:.6f}", flush=True)


def main() -> int:
    _Node.connections, _Node.devices, _Node.gpus = map(int, sys.argv[1:4])
    node.Node = _Node  # type: ignore[misc]
    return cli.main(["run", *sys.argv[4:]])


if __name__ == "__main__":
    sys.exit(main())
