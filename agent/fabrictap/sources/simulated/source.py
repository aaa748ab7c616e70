"""The source ``simulated``: see the package's docstring."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from fabrictap import catalog, config
from fabrictap.journal import Journal
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.memory import MemoryRegion
from fabrictap.ledger.processes import Process
from fabrictap.ledger.providers import GPM, NVML
from fabrictap.series import AttributeValue, SeriesTable
from fabrictap.sources.nvml import processes
from fabrictap.sources.nvml.devices import present
from fabrictap.sources.nvml.figures import Figures, Live
from fabrictap.sources.simulated import applications, gpus, script
from fabrictap.sources.simulated.applications import Applications, Wanted
from fabrictap.sources.simulated.counters import Counters
from fabrictap.sources.simulated.ports import Ports, faulty_port
from fabrictap.sources.simulated.posts import SimulatedPosts
from fabrictap.sources.simulated.profiles import PROFILES

_log = logging.getLogger(__name__)
#: Seconds between two readings of what changes slowly; at once when something has gone wrong or is mended.
_HEALTH_INTERVAL = 5.0
_SLOW_EPISODES = (script.LINK_ERRORS, script.LINK_DOWN, script.MEMORY_ERROR)
_MTU = 4096
_PSN = 0x51000


@dataclass(frozen=True, slots=True)
class Sample:
    """The moment for which everything was computed. ``wall_ns``: nanoseconds since the epoch."""

    wall_ns: int
    health: bool


class Simulated:
    """See :class:`fabrictap.sources.Source`; nothing here blocks, and nothing is read from the machine."""

    name = "simulated"

    def __init__(
        self,
        settings: config.Simulated,
        series: SeriesTable,
        ledger: Ledger,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        """``clock``: nanoseconds that only grow. ``settings.profile`` is not None."""
        self.interval = float(settings.interval)
        self.fast_interval = float(settings.fast_interval)
        self.deadline = max(30.0, 2 * self.interval)
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        self.profile = PROFILES[settings.profile or ""]
        self.script = script.Script(settings.seed)
        self._table = series
        self._ledger = ledger
        self._clock = clock
        self._wall = wall
        self._began: int | None = None
        self._started = False
        self._read_ns = 0
        self._health_at = 0
        self._episodes: tuple[int, ...] = ()
        self._journal = Journal(series.ring)
        self._gpus = gpus.make(self.profile)
        self._counters = Counters(self.profile, self._gpus, series, ledger.providers)
        self._ports = Ports(self.profile, series, ledger.devices, ledger.traffic)
        self._posts = SimulatedPosts(series, ledger)
        self._figures = Figures(NVML, series, ledger.providers)
        self._gpm = Figures(GPM, series, ledger.providers)
        self._of_health = script.Averages("busy", "power")
        self._of_gpm = script.Averages("memory", "load")
        self._present = Live(series)
        self._used = Live(series)
        self._xids = 0
        self._ports_lost = 0
        self._failed: list[tuple[Wanted, Connection]] = []
        self._applications: Applications | None = None

    # --- in the source's own thread ---------------------------------------------------------------

    def open(self) -> None:
        """Begin; a second time it goes on."""
        if self._began is None:
            self._began = self._clock()

    def sample(self) -> Sample:
        """Go on to now."""
        self._advance()
        now = self.script.now_ns
        episodes = tuple(count for one in _SLOW_EPISODES for count in (one.times(now), one.ended(now)))
        health = now >= self._health_at or episodes != self._episodes
        if health:
            # The first has nothing to take an average of.
            self._health_at = now + int((_HEALTH_INTERVAL if self._started else self.interval) * 1e9)
            self._episodes = episodes
        return Sample(self._read_ns, health)

    def sample_fast(self) -> None:
        """Go on to now, as far as counters are concerned."""
        self._advance()

    def close(self) -> None:
        """There is nothing to let go of."""

    def _advance(self) -> None:
        assert self._began is not None
        # The time of the machine is taken beside the script's: what lies between them would be a peak that
        # never was.
        self.script.advance(self._clock() - self._began)
        self._read_ns = self._wall()
        self._counters.read(self.script)
        self._ports.read(self.script)

    # --- under the node's lock --------------------------------------------------------------------

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put everything into series and ledger."""
        now_ns = sample.wall_ns
        if not self._started:
            self._start(now_ns)
        self._counters.fold(now_ns, all_of_them=True)
        self._ports.fold(now_ns, all_of_them=True)
        self._fold_gpus(now_ns, health=sample.health)
        self._fold_xids(now_ns)
        self._fold_lost_port(now_ns)
        arrived = self._ledger.connections.take_arrived()
        self._posts.fold(arrived, self.script, now_ns)

    def fold_fast(self, now_ns: int) -> None:  # noqa: ARG002 - likewise
        """Put the counters into their series."""
        self._counters.fold(self._read_ns, all_of_them=False)
        self._ports.fold(self._read_ns, all_of_them=False)

    def _start(self, now_ns: int) -> None:
        self._started = True
        self._applications = applications.make(self.profile, now_ns / 1e9)
        for process in self._applications.processes:
            self._ledger.processes.put(process)
        for gpu in self._gpus:
            if not self._ledger.gpus.put(gpu):
                _log.warning("%s: limits.gpus is reached", gpu.id)
        self._counters.start(now_ns)
        self._ports.start(now_ns)
        for wanted in self._applications.queue_pairs:
            self._connect(wanted, wanted.qpn, now_ns)
        for number, region in enumerate(self._applications.regions):
            key = 0x5100 + number * 0x100
            address = 0x7F0000000000 + (number << 38)
            self._ledger.memory.put(
                MemoryRegion(
                    region.device, key, key, region.process.pid, address, region.length, region.access
                )
            )
            self._write(catalog.MR_REGISTERED, region.process, region.device, now_ns, value=region.length)
        _log.warning(
            "SIMULATED NODE %s: %d GPUs, %d RDMA ports, %d connections, all made up; nothing is measured",
            self.profile.name,
            self.profile.count,
            self.profile.network.fabric + 1,
            len(self._applications.queue_pairs),
        )

    def _write(
        self, event: catalog.Event, process: Process, device: str, now_ns: int, *, value: int = 0
    ) -> None:
        self._journal.write(event, now_ns, pid=process.pid, process=process.name, device=device, value=value)

    # --- GPUs -------------------------------------------------------------------------------------

    def _fold_gpus(self, now_ns: int, *, health: bool) -> None:
        if self.profile.gpm:
            average = self._of_gpm.take(self.script)
            for gpu in self._gpus:
                self._gpm.write(gpu.id, gpus.read_gpm(self.profile, gpu, average), now_ns)
        if not health:
            return
        average = self._of_health.take(self.script)
        for gpu in self._gpus:
            self._figures.write(gpu.id, gpus.read(self.profile, gpu, self.script, average), now_ns)
            slices = (self.profile.migs or {}).get(gpu.index, ())
            for mig, one in zip(gpu.migs, slices, strict=True):
                self._figures.write(mig.id, gpus.read_mig(gpu, one), now_ns)
        self._present.write([value for gpu in self._gpus for value in present(gpu)], now_ns)
        values: list[processes.Value] = []
        for gpu in self._gpus:
            usage = self._usage(gpu.index)
            self._ledger.gpus.use(gpu.id, usage.processes)
            values += processes.values(usage, self._ledger.identity)
        self._used.write(values, now_ns)

    def _usage(self, index: int) -> processes.Usage:
        assert self._applications is not None
        gpu = self._gpus[index]
        usage = processes.Usage()
        places: list[tuple[int | None, str, str | None]] = [(None, gpu.id, None)]
        if gpu.migs:
            places = [(number, mig.id, gpu.id) for number, mig in enumerate(gpu.migs)]
        for number, hw_id, parent in places:
            usage.where.append((hw_id, parent))
            found = self._applications.on_gpu.get((index, number))
            if found is not None:
                process, memory = found
                usage.uses.append(processes.Use(hw_id, parent, process.pid, "compute", memory))
                usage.processes[process.pid] = process
        return usage

    def _fold_xids(self, now_ns: int) -> None:
        count = script.MEMORY_ERROR.times(self.script.now_ns)
        if count == self._xids:
            return
        labels: dict[str, AttributeValue] = {
            "hw.id": self._gpus[gpus.worn_gpu(self.profile)].id,
            "hw.type": "gpu",
            "error.type": gpus.XID,
            "fabrictap.provider": NVML,
        }
        series = self._table.series(catalog.ERRORS, labels, now_ns)
        series.add(count - self._xids, now_ns)
        self._xids = count

    # --- connections ------------------------------------------------------------------------------

    def _connect(self, wanted: Wanted, qpn: int, now_ns: int) -> None:
        connection = Connection(
            wanted.device,
            qpn,
            "rc",
            "init",
            wanted.process.pid,
            wanted.process.name,
            now_ns,
            "probe",
            Coverage("exact"),
            1,
            wanted.gid,
            wanted.peer_gid,
            wanted.peer_qpn,
            _PSN + qpn,
            _PSN + wanted.peer_qpn,
            _MTU,
        )
        ledger = self._ledger
        if not ledger.connections.put(connection):
            return
        if ledger.contexts.get(wanted.device, wanted.process.pid) is None:
            ledger.contexts.opened(wanted.device, wanted.process.pid, "probe")
            self._write(catalog.CONTEXT_OPENED, wanted.process, wanted.device, now_ns)
        self._tell(catalog.QP_CREATED, connection, now_ns, connection.type)
        for state in ("rtr", "rts"):
            ledger.connections.advance(connection, state, now_ns)
            self._tell(catalog.QP_READY, connection, now_ns, state)
        self._posts.begin(wanted, qpn, self.script)

    def _fold_lost_port(self, now_ns: int) -> None:
        """One queue pair of the port does not outlive the loss of its link, and is made anew after it."""
        assert self._applications is not None
        now = self.script.now_ns
        if script.PORT_LOST.times(now) > self._ports_lost:
            self._ports_lost = script.PORT_LOST.times(now)
            device = f"mlx5_{faulty_port(self.profile)}"
            for wanted in self._applications.queue_pairs:
                qpn = wanted.qpn + 0x1000 * (self._ports_lost - 1)
                connection = self._ledger.connections.get(wanted.device, qpn)
                if wanted.device == device and connection is not None:
                    self._ledger.connections.advance(connection, "err", now_ns)
                    self._tell(catalog.QP_ERROR, connection, now_ns, "err")
                    self._failed.append((wanted, connection))
                    break
        if self._failed and not script.PORT_LOST.on(now):
            for wanted, connection in self._failed:
                self._posts.finish(connection.device, connection.qpn, self.script, now_ns)
                self._ledger.connections.remove(connection, "destroyed", now_ns)
                self._tell(catalog.QP_DESTROYED, connection, now_ns, "destroyed")
                self._connect(wanted, connection.qpn + 0x1000, now_ns)
            self._failed.clear()

    def _tell(self, event: catalog.Event, connection: Connection, now_ns: int, text: str) -> None:
        self._journal.write(
            event,
            now_ns,
            pid=connection.pid,
            process=connection.process,
            device=connection.device,
            qpn=connection.qpn,
            gid=connection.gid,
            peer_gid=connection.peer_gid,
            peer_qpn=connection.peer_qpn,
            text=text,
        )
