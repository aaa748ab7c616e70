"""The agent on one node: wires sources, series, ledger, insight and export; the only place that knows all."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fabrictap import catalog, ringfile
from fabrictap.config import Config, ConfigError
from fabrictap.export import resource
from fabrictap.export.exporter import Exporter
from fabrictap.export.prometheus import Endpoint
from fabrictap.insight.detection import Detectors
from fabrictap.insight.detectors import SourceState
from fabrictap.insight.filewatch import WatchedFile
from fabrictap.insight.identities import Identities
from fabrictap.insight.inventory import Inventory
from fabrictap.insight.reconcile import Reconciler
from fabrictap.journal import Journal
from fabrictap.ledger import Ledger, names
from fabrictap.runner import Runner
from fabrictap.selfwatch import SelfWatch
from fabrictap.series import SeriesTable
from fabrictap.sources import Expiring
from fabrictap.sources.dcgm.source import Dcgm
from fabrictap.sources.infiniband.source import Infiniband
from fabrictap.sources.kubelet.source import Kubelet
from fabrictap.sources.nvml.source import Nvml
from fabrictap.sources.rdma_netlink.source import RdmaNetlink
from fabrictap.sources.verbs.source import Verbs
from fabrictap.supervisor import Supervisor

_log = logging.getLogger(__name__)
_STOP_SECONDS = 5.0
_FLUSH_SECONDS = 5.0


class Node:
    """One agent. ``run`` once, from the main thread."""

    def __init__(
        self, config: Config, reread: Callable[[], Config] | None = None, config_file: str | None = None
    ) -> None:
        """Raises ConfigError where the configuration cannot work here (an endpoint, a certificate).

        ``reread`` reads the configuration again, for SIGHUP; ``config_file`` is where it is.
        """
        self._config = config
        self._reread = reread
        self._hangup = threading.Event()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.ring = ringfile.create(config.ring, config.limits, names.LISTS)
        attributes = resource.attributes(config.resource, simulated=config.sources.simulated.profile)
        self.ring.describe(ringfile.about(attributes, names.LISTS))
        self.journal = Journal(self.ring)
        self.series = SeriesTable(config.limits.series, self.ring)
        self.ledger = Ledger(config, self.ring)
        kubelet = config.sources.kubelet
        self.runners = [
            Runner(source, self._lock, self.journal)
            for wanted, source in (
                # Netlink after verbs: its dump also makes the kernel tell the probes of older connections.
                (
                    config.sources.infiniband.enabled,
                    Infiniband(config.sources.infiniband, self.series, self.ledger),
                ),
                (config.sources.verbs.enabled, Verbs(config.sources.verbs, self.series, self.ledger)),
                (
                    config.sources.rdma_netlink.enabled,
                    RdmaNetlink(config.sources.rdma_netlink, self.series, self.ledger),
                ),
                (
                    config.sources.nvml.enabled,
                    Nvml(config.sources.nvml, self.series, self.ledger, config.sources.infiniband.sysfs),
                ),
                (
                    config.sources.dcgm.enabled != "off",
                    Dcgm(config.sources.dcgm, self.series, self.ledger),
                ),
                # Last: a kubelet that hangs keeps nobody waiting.
                (
                    Kubelet.wanted(kubelet),
                    Kubelet(kubelet, config.limits, self.series, self.ledger),
                ),
            )
            if wanted
        ]
        counted = config.sources.process_counters
        if counted.enabled or Path(counted.state).exists():
            from fabrictap.sources.process_counters.source import (  # noqa: PLC0415 - few turn it on
                ProcessCounters,
            )

            hardware = ProcessCounters(counted, self.series, self.ledger, config.sources.infiniband.sysfs)
            self.runners.append(Runner(hardware, self._lock, self.journal))
        if config.sources.simulated.profile is not None:
            from fabrictap.sources.simulated.source import Simulated  # noqa: PLC0415 - few need it

            simulated = Simulated(config.sources.simulated, self.series, self.ledger)
            self.runners.append(Runner(simulated, self._lock, self.journal))
        self.reconciler = Reconciler(self.series, self.ledger)
        self._inventory = Inventory(self.series, self.ledger)
        self._identities = Identities(self.series, self.ledger)
        self._selfwatch = SelfWatch(self.series)
        watched = [
            WatchedFile(what, path, content=content)
            for what, path, content in (
                ("recording", self.ring.path, False),
                ("configuration", config_file, True),
            )
            if path is not None
        ]
        self.detectors = Detectors(
            config, self.series, self.ledger, self.journal, self._lock, watched=watched
        )
        self._exporter = Exporter(config, attributes, self.series, self.ledger.flows, self.detectors.findings)
        self._prometheus = Endpoint(config.export.prometheus, self.ring, attributes, self._lock)
        self._supervisor = Supervisor.from_environ(os.environ)

    def stop(self) -> None:
        """Ask ``run`` to end; from any thread or signal handler."""
        self._stop.set()
        for runner in self.runners:
            runner.settled.set()  # nobody waits for it any more

    def run(self, duration: float | None = None) -> None:
        """Watch and export until SIGTERM, SIGINT or for ``duration`` seconds, then export once more."""

        def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - fixed by signal
            self.stop()

        def on_hangup(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - likewise
            self._hangup.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        signal.signal(signal.SIGHUP, on_hangup)
        end = None if duration is None else time.monotonic() + duration
        with self._lock:
            self.journal.write(catalog.AGENT_STARTED, time.time_ns())
        self.detectors.start()
        for runner in self.runners:
            runner.start()
            runner.settled.wait(_STOP_SECONDS)
        self._prometheus.open()
        next_tick = time.monotonic() + self._config.ring.tick
        next_export = time.monotonic() + self._config.export.interval
        said_hung: set[str] = set()
        self._supervisor.status(self._state())
        self._supervisor.ready()
        while not self._stop.is_set():
            wake = min(next_tick, next_export, *(t for t in (end, self._supervisor.due()) if t is not None))
            self._stop.wait(max(0.0, wake - time.monotonic()))
            self._supervisor.alive()
            now = time.monotonic()
            if end is not None and now >= end:
                break
            if now >= next_tick:
                with self._lock:
                    now_ns = time.time_ns()
                    for runner in self.runners:
                        runner.tick(now_ns)
                    self.reconciler.fold(now_ns)
                    self._look(now_ns)
                    self.ring.tick(now_ns)
                self._reload()
                for runner in self.runners:
                    runner.revive(now)
                self._supervisor.status(self._state())
                next_tick = max(next_tick + self._config.ring.tick, now)
            if now >= next_export:
                self._export()
                self._prometheus.open()
                next_export = max(next_export + self._config.export.interval, now)
                self._watch_for_hangs(said_hung)
        self._end()

    def _look(self, now_ns: int) -> None:
        sources = [SourceState(one.source.name, one.up, one.reason) for one in self.runners]
        self.detectors.look(now_ns, self.reconciler.balances(), sources)

    def _state(self) -> str:
        """The agent in a line, for the service manager."""
        up = [runner.source.name for runner in self.runners if runner.up]
        off = [runner.source.name for runner in self.runners if not runner.up and not runner.absent]
        watching = f"watching: {', '.join(up) or 'nothing'}"
        return f"{watching}; off: {', '.join(off)}" if off else watching

    def _reload(self) -> None:
        """After SIGHUP: put the policy of the configuration into force, and nothing else of it."""
        if not self._hangup.is_set():
            return
        self._hangup.clear()
        if self._reread is None:
            return
        self._supervisor.reloading()
        try:
            self._put_policy_into_force(self._reread)
        finally:
            self._supervisor.ready()

    def _put_policy_into_force(self, reread: Callable[[], Config]) -> None:
        try:
            fresh = reread()
        except ConfigError as error:
            _log.error("the policy stays as it is: %s", error)
            return
        with self._lock:
            self.detectors.reload(fresh.policy)
        self.detectors.accept_files()
        _log.info("policy read again: rules for workloads: %d", len(fresh.policy.workloads))
        fresh.policy, policy = self._config.policy, fresh.policy
        if fresh != self._config:
            _log.warning("only the policy is read again; what else has changed takes a restart")
        self._config.policy = policy

    def _export(self) -> None:
        with self._lock:
            now_ns = time.time_ns()
            self.ledger.flows.roll(now_ns)
            for runner in self.runners:
                if runner.hung is not None and isinstance(runner.source, Expiring):
                    runner.source.hung(now_ns)
            self._inventory.fold(now_ns)
            self.detectors.fold(now_ns)
            self._identities.fold(now_ns)
            self._selfwatch.fold(self.runners, self._exporter.stats, now_ns)
            self._exporter.collect(now_ns)
        self._exporter.ship()

    def _watch_for_hangs(self, said: set[str]) -> None:
        for runner in self.runners:
            name = runner.source.name
            if (seconds := runner.hung) is not None and name not in said:
                said.add(name)
                _log.error("source %s hangs for %.0f s; the others go on", name, seconds)
                with self._lock:
                    self.journal.write(catalog.SOURCE_HANGS, time.time_ns(), text=name)
            elif seconds is None:
                said.discard(name)

    def _end(self) -> None:
        _log.info("stopping")
        self._supervisor.stopping()
        self._prometheus.close()
        for runner in self.runners:
            runner.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for runner in self.runners:
            if not runner.join(max(0.0, deadline - time.monotonic())):
                _log.error("source %s did not stop", runner.source.name)
        with self._lock:
            self.ledger.flows.close_all("agent_stopped", time.time_ns())
        self._export()
        if not self._exporter.flush(_FLUSH_SECONDS):
            _log.warning("not everything could be delivered before the end")
        self._exporter.close()
        self.detectors.close()
        with self._lock:
            now_ns = time.time_ns()
            self.journal.write(catalog.AGENT_STOPPED, now_ns)
            self.ring.tick(now_ns)
            self.ring.close(now_ns)
