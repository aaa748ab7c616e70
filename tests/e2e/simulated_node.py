"""A simulated node whose clock runs ahead: the agent of `run --simulate`, exporting minutes in seconds.

    python simulated_node.py PROFILE HOST ENDPOINT START_NS SECONDS BEGIN RING

Everything is the agent's own, its exporter included, but the clock: what happened from START_NS on, for
SECONDS, goes out with the times at which it would have happened. BEGIN: second of the simulation's
cycle to begin in.
"""

from __future__ import annotations

import sys
import time
from unittest import mock

from fabrictap import node as node_module
from fabrictap.config import load
from fabrictap.node import Node
from fabrictap.sources.simulated.source import Simulated

S = 10**9
EXPORT_EVERY = 15
#: Samples in a second: the agent takes ten.
SAMPLES = 2


class Clock:
    """Stands for the module time in the node: nanoseconds since the epoch that the loop below moves."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / S


def main() -> None:
    profile, host, endpoint, start, seconds, begin, ring = sys.argv[1:]
    start_ns, begin_ns = int(start), int(begin) * S
    config = load(
        environ={},
        settings=[
            f"sources.simulated.profile={profile}",
            f"sources.simulated.seed={int(begin) + 1}",
            f"ring.path={ring}",
            "state.path=none",
            f"export.otlp.metrics.endpoint={endpoint}",
            "export.otlp.traces.enabled=false",
            "export.otlp.logs.enabled=false",
            # Nothing may be dropped: more comes in a second than an agent sends in a minute.
            "export.otlp.queue=10000",
        ],
    )
    config.resource.attributes.update({"host.name": host, "k8s.cluster.name": "simulated"})
    clock = Clock(start_ns)
    with mock.patch.object(node_module, "time", clock):
        node = Node(config)
        (runner,) = node.runners
        source = runner.source
        assert isinstance(source, Simulated)
        source._clock = lambda: clock.now_ns - start_ns + begin_ns
        source._wall = clock.time_ns
        # It began with the cycle: counters and episodes are those of `begin` seconds later.
        source._began = 0
        runner.reason = None
        for second in range(1, int(seconds) + 1):
            for part in range(1, SAMPLES):
                clock.now_ns = start_ns + (second - 1) * S + part * S // SAMPLES
                if second > 1:
                    source.sample_fast()
                    source.fold_fast(clock.now_ns)
            clock.now_ns = start_ns + second * S
            began = time.monotonic()
            sample = source.sample()
            runner._durations.append(time.monotonic() - began)
            source.fold(sample, clock.now_ns)
            node.reconciler.fold(clock.now_ns)
            node._look(clock.now_ns)
            node.ring.tick(clock.now_ns)
            if second == 1:
                # What lies before the beginning is no peak.
                node.ring.interval(clock.now_ns)
            if second % EXPORT_EVERY == 0:
                node._export()
        if not node._exporter.flush(120):
            sys.exit(f"{host}: not everything could be delivered to {endpoint}")
        node._exporter.close()
        node.detectors.close()
        node.ring.close(clock.now_ns)


if __name__ == "__main__":
    main()
