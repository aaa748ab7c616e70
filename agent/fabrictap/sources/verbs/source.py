"""The source ``verbs``: queue pairs and memory from the kernel, posted work from the provider libraries.

One thread waits on the BPF ring buffers and reads the counters of posted work at every tick, and at once
when a queue pair was destroyed, reset or failed, so that its last posts are counted before its flows end and
its counters go.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap import catalog
from fabrictap.config import Verbs as VerbsConfig
from fabrictap.ext.bpf import BpfError, Map
from fabrictap.ext.posts import Posts
from fabrictap.ext.records import (
    CONTEXT_OPENED,
    MR_DEREGISTERED,
    MR_REGISTERED,
    PROCESS_EXITED,
    QP_CREATED,
    QP_DESTROYED,
    QP_EXTENDED,
    QP_MODIFIED,
    Record,
    context_device,
    context_key,
    divide,
)
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection
from fabrictap.ledger.processes import Process, host_pids
from fabrictap.ledger.processes import read as read_process
from fabrictap.ledger.workloads.selector import matches
from fabrictap.series import AttributeValue, SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.verbs import kernel_types, providers
from fabrictap.sources.verbs.attach import Attachments
from fabrictap.sources.verbs.budget import Limits, Mode, first_quota
from fabrictap.sources.verbs.completions import CompletionFold
from fabrictap.sources.verbs.connection_manager import ConnectionManagerFold
from fabrictap.sources.verbs.control import ControlFold, ends_flows, unbinds
from fabrictap.sources.verbs.discovery import Discovery
from fabrictap.sources.verbs.duty import Duty
from fabrictap.sources.verbs.estimates import Estimates
from fabrictap.sources.verbs.posts import PostFold
from fabrictap.sources.verbs.probes import (
    MAX_POST_KEYS,
    Probes,
    ProbesUnavailable,
    load_connection_manager,
    load_control,
    load_data,
    module_loaded,
)
from fabrictap.sources.verbs.uverbs import Uverbs
from fabrictap.sources.verbs.windows import Window, Windows

_log = logging.getLogger(__name__)
_REAP_SECONDS = 10.0
_RETRY_SECONDS = 30.0
_MEMORY = (MR_REGISTERED, MR_DEREGISTERED)
#: Records from which a process becomes known.
_NEW_PROCESS = (CONTEXT_OPENED, QP_CREATED, QP_MODIFIED)


@dataclass(slots=True)
class Sample:
    """What one wait brought. ``posts``: the counters of posted work were read too, into their table."""

    records: list[Record] = field(default_factory=list)
    posts: bool = False
    #: All that was posted before this was read, in nanoseconds since the epoch; None where posts go unseen.
    posts_ns: int | None = None
    #: Records of memory regions, one after the other as the probes wrote them.
    regions: bytes = b""
    #: Records that were taken, those that were folded on the way among them.
    received: int = 0
    processes: list[Process] = field(default_factory=list)
    #: pid -> since when (epoch ns) its provider library is probed; None where it is not.
    instrumented: dict[int, int | None] = field(default_factory=dict)
    #: (device, qpn) -> since when (epoch ns) its posts by ibv_wr_* are seen.
    extended: dict[tuple[str, int], int] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    losses: dict[str, int] = field(default_factory=dict)
    #: Windows of completions that have ended.
    windows: list[Window] = field(default_factory=list)
    #: The probes were loaded anew before this sample: their counters start at 0.
    anew: bool = False


class Verbs:
    """See the module's docstring; implements :class:`fabrictap.sources.Source`."""

    name = "verbs"
    #: Waiting is done inside ``sample``.
    interval = 0.0

    def __init__(self, config: VerbsConfig, series: SeriesTable, ledger: Ledger) -> None:
        self.deadline = config.interval + 30.0
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        self._config = config
        self._series = series
        self._ledger = ledger
        self._host_pids = host_pids()
        self._control: Probes | None = None
        self._connection_manager: Probes | None = None
        self._data: Probes | None = None
        self._types: kernel_types.HeaderTypes | None = None
        self._uverbs = Uverbs(self.errors)
        self._posts = Posts(series.ring, MAX_POST_KEYS)
        self._control_fold = ControlFold(series, ledger)
        self._post_fold = PostFold(series, ledger, self._posts)
        self._connection_manager_fold = ConnectionManagerFold(series)
        self._completion_fold = CompletionFold(series, ledger)
        self._windows: Windows | None = None
        self._post_map: Map | None = None
        self._contexts: Map | None = None
        self._devices: set[str] = set()
        self._discovery: Discovery | None = None
        #: Whether anybody's posts are not to be counted at any cost.
        self._budgeted = config.data == "budget" or bool(config.budget.workloads)
        self._duty: Duty | None = None
        self._estimates: Estimates | None = None
        #: Those before the probes were loaded anew: what they export is to be ended.
        self._former: Estimates | None = None
        #: The helper process: what it opened and made is not told.
        self._helper: int | None = None
        self._known: dict[int, int | None] = {}
        self._unresolved: set[int] = set()
        self._anew = False
        self._next_tick = 0.0
        self._next_reap = 0.0
        self._next_discovery = 0.0
        #: Why a part does not work, by part: said once.
        self.problems: dict[str, str] = {}

    # --- in the source's own thread ---------------------------------------------------------------

    def open(self) -> None:
        if not Path("/sys/class/infiniband_verbs").exists():
            raise SourceUnavailable(
                "no RDMA device: ib_uverbs is not loaded (a driver such as mlx5_ib loads it)"
            )
        limits = Limits(self._config.budget.process, self._config.budget.node)
        if self._budgeted and not self._host_pids:
            self._trouble("data path", "the agent is in a pid namespace of its own: posts are not counted")
        elif self._config.data != "off":
            try:
                self._data = load_data(
                    self._config.post_memory,
                    self._config.event_buffer,
                    subtract=self._config.refused == "subtract",
                    quota=first_quota(limits) if self._budgeted else None,
                )
                attachments = Attachments(self._data, self.errors)
                self._discovery = Discovery(attachments, self.errors)
                if self._budgeted:
                    self._duty = self._budget(self._data, attachments)
                self._windows = Windows(self._config.completions)
            except ProbesUnavailable as error:
                self._trouble("data path", f"{error}: posts are not counted")
        if self._config.control != "off":
            try:
                self._types = kernel_types.choose(self._config.loader, self._config.kernel_headers)
                self._control = load_control(self._config.control, self._config.event_buffer, self._types)
            except (ProbesUnavailable, kernel_types.TypesUnavailable) as error:
                self._trouble("control path", f"{error}: connections are known from netlink only")
        if self._control is None and self._data is None:
            reasons = "; ".join(self.problems.values()) or "both paths are off in the configuration"
            raise SourceUnavailable(reasons)
        self._look_for_news()
        if self._discovery is not None:
            self._unresolved |= self._discovery.running()
        if self._duty is not None:
            self._duty.start()
        self._next_tick = time.monotonic() + self._config.interval

    def sample(self) -> Sample:
        sample = Sample(anew=self._anew)
        self._anew = False
        if not sample.anew:
            # What ended in a map that is no more is not to be taken for what has its key in the new one.
            self._post_fold.delete_retired(self._delete)
        began = time.monotonic()
        self._wait(max(0.0, self._next_tick - began), sample)
        self.waited = time.monotonic() - began
        tick = time.monotonic() >= self._next_tick
        if tick:
            self._next_tick = max(self._next_tick + self._config.interval, time.monotonic())
            self._look_for_news()
            if self._duty is not None:
                self._duty.calibrate()
        if tick or any(ends_flows(record) for record in sample.records):
            sample.posts = True
            sample.posts_ns = time.time_ns() if self._data is not None else None
            self._read_posts()
            # A queue pair is recorded before its first post: with what has come meanwhile, all are known.
            known = len(sample.records)
            self._wait(0, sample)
            if any(ends_flows(record) for record in sample.records[known:]):
                self._read_posts()
            sample.losses = self._losses()
        self._resolve(sample)
        if self._windows is not None and self._discovery is not None:
            self._windows.step(self._discovery.attachments)
            sample.windows = self._windows.take()
        return sample

    def _budget(self, probes: Probes, attachments: Attachments) -> Duty:
        limits = Limits(self._config.budget.process, self._config.budget.node)
        duty = Duty(probes, attachments, limits, self._mode({}), self.errors)
        self._estimates = Estimates(self._series, self._ledger, self._post_fold, duty, attachments.missed)
        return duty

    def _mode(self, identity: Mapping[str, AttributeValue]) -> Mode:
        """How posts of a process are counted, as the configuration says."""
        for rule in self._config.budget.workloads:
            if matches(rule.match, identity):
                return rule.data
        return self._config.data

    def close(self) -> None:
        if self._windows is not None:
            self._windows.close()
            self._windows = None
        if self._duty is not None:
            self._duty.close()
        self._former, self._duty, self._estimates = self._estimates or self._former, None, None
        if self._discovery is not None:
            self._discovery.close()
            self._discovery = None
        for probes in (self._control, self._connection_manager, self._data):
            if probes is not None:
                probes.close()
        if self._types is not None:
            self._types.close()
        self._control = self._connection_manager = self._data = self._types = None
        self._post_map = self._contexts = None
        # What comes next is loaded, attached and counted from the beginning.
        self._posts = Posts(self._series.ring, MAX_POST_KEYS)
        for learned in (self._known, self._devices):
            learned.clear()
        self.problems.pop("connection manager", None)
        self._anew = True

    def _wait(self, seconds: float, sample: Sample) -> None:
        """Add to ``sample`` what has been recorded, or will be within ``seconds``."""
        loaded = [p for p in (self._control, self._connection_manager, self._data) if p is not None]
        before = sum(probes.records.received for probes in loaded)
        try:
            batches = [loaded[0].records.poll(int(seconds * 1000) + 1)]
            batches += [probes.records.poll(0) for probes in loaded[1:]]
        except BpfError as error:
            raise SourceUnavailable(f"the BPF ring buffer cannot be read: {error}") from None
        sample.received += sum(probes.records.received for probes in loaded) - before
        found, regions = divide(b"".join(batches))
        found = [record for record in found if record.pid != self._helper]
        # Of several buffers; and an end is told when it is done, with the time at which it began.
        found.sort(key=lambda record: record.time_ns)
        placed = self._uverbs.place(found)
        sample.records += [record for record in placed if record.kind not in _MEMORY]
        # Here are left those whose device was a number.
        sample.regions += regions + b"".join(record.raw for record in placed if record.kind in _MEMORY)

    def _look_for_news(self) -> None:
        """Devices and modules may come while the agent runs."""
        self._helper = None  # all that it did is read; its number may be another's next
        self._uverbs.forget()
        wanted = self._control is not None and "connection manager" not in self.problems
        if wanted and self._connection_manager is None and module_loaded("rdma_cm"):
            try:
                self._connection_manager = load_connection_manager(
                    self._config.event_buffer, self._connection_manager_fold.events, self._types
                )
            except ProbesUnavailable as error:
                self._trouble("connection manager", str(error))
        try:
            devices = {path.name for path in Path("/sys/class/infiniband").iterdir()}
        except OSError:
            devices = set()
        if devices - self._devices and time.monotonic() >= self._next_discovery and not self._discover():
            self._next_discovery = time.monotonic() + _RETRY_SECONDS
            devices = devices & self._devices
        self._devices = devices

    def _discover(self) -> bool:
        """Find the provider functions and attach to those that are new. False: to be tried again."""
        if self._discovery is None:
            return True
        try:
            report = providers.discover()
        except providers.HelperFailed as error:
            self._trouble("providers", str(error))
            return False
        for device, problem in report.problems.items():
            self._trouble(f"provider of {device}", f"{problem}: its posts are not counted")
        self._helper = report.pid or None
        self._discovery.host(report.places)
        return True

    def _read_posts(self) -> None:
        """Read the map of posted work. A counter is placed at once: its context is surely still that one."""
        if self._data is None:
            return
        if self._post_map is None or self._contexts is None:
            self._post_map = self._data.object.map("posts")
            self._contexts = self._data.object.map("contexts")
        try:
            self._posts.read(self._post_map)
        except BpfError as error:
            self._count_error(error)
        for number in self._posts.strangers():
            key = self._posts.key(number)
            context = self._contexts.get(context_key(key.context, key.pid))
            if context is not None:
                self._posts.place(number, context_device(context))

    def _delete(self, raw: bytes) -> None:
        if self._post_map is not None:
            self._post_map.delete(raw)
        self._posts.forget(raw)

    def _losses(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for probes in (self._control, self._connection_manager, self._data):
            if probes is not None:
                for reason, count in probes.losses().items():
                    total[reason] = total.get(reason, 0) + count
                total["wrong_size"] = total.get("wrong_size", 0) + probes.records.misfits
        # Beyond what the probes lost: what had no room in the tables here.
        refused = self._posts.refused + self._connection_manager_fold.events.refused
        total["table_full"] = total.get("table_full", 0) + refused
        return total

    def _resolve(self, sample: Sample) -> None:
        """Read /proc of the processes that are new here, and notice those that have gone."""
        comms = {record.pid: record.comm for record in sample.records if record.kind in _NEW_PROCESS}
        for pid in (*self._posters(), *self._unresolved):
            comms.setdefault(pid, "")
        self._unresolved = set()
        # A process that opens a device may be another one than had its pid before.
        opened = {record.pid for record in sample.records if record.kind == CONTEXT_OPENED}
        for pid, comm in comms.items():
            if pid not in opened and self._known.get(pid) is not None:
                continue
            process = self._process(pid, comm)
            sample.processes.append(process)
            self._known[pid] = sample.instrumented[pid] = self._instrumented_since(process)
        if self._discovery is not None and self._host_pids:
            for record in sample.records:
                if record.kind == QP_EXTENDED:
                    since = self._discovery.extended(record.pid, record.qp_ex_functions)
                    if since is not None:
                        sample.extended[record.device, record.qpn] = since
            if sample.posts:
                self._discovery.sweep()
        now = time.monotonic()
        if now >= self._next_reap:
            self._next_reap = now + _REAP_SECONDS
            sample.gone = [pid for pid in self._known if not Path(f"/proc/{pid}").exists()]
            for pid in sample.gone:
                del self._known[pid]
                if self._duty is not None:
                    self._duty.forget(pid)

    def _posters(self) -> set[int]:
        """The processes that post and of which not everything is known."""
        return {self._posts.key(number).pid for number in self._posts.arrived()}

    def _process(self, pid: int, comm: str) -> Process:
        if not self._host_pids:
            return Process(pid, comm or "unknown", None)
        return read_process(pid, comm, self._ledger.workloads.resolver)

    def _instrumented_since(self, process: Process) -> int | None:
        if self._discovery is None or not self._host_pids:
            return None
        if self._duty is None:
            return self._discovery.look(process.pid)
        identity = self._ledger.workloads.full_identity(process.pid, process.name, process.workload)
        mode = self._mode(identity)
        self._duty.meet(process.pid, mode)
        since = self._discovery.look(process.pid)
        return None if mode == "off" else since

    def _count_error(self, error: BpfError) -> None:
        name = errno.errorcode.get(error.errno, str(error.errno))
        self.errors[name] = self.errors.get(name, 0) + 1

    def _trouble(self, part: str, reason: str) -> None:
        if self.problems.get(part) != reason:
            self.problems[part] = reason
            _log.warning("%s: %s", part, reason)

    # --- under the node's lock --------------------------------------------------------------------

    def fold(self, sample: Sample, now_ns: int) -> None:
        if sample.anew:
            self._begin_anew(now_ns)
        for process in sample.processes:
            self._ledger.processes.put(process)
        self._control_fold.learn(sample.instrumented)
        self._control_fold.extended = sample.extended
        if self._discovery is not None:
            self._post_fold.probed_since_ns = self._discovery.attachments.newest_ns
        self._post_fold.admit()
        offset = now_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._ledger.memory.fold(sample.regions, offset)
        self._connection_manager_fold.fold(now_ns)
        for record in sample.records:
            self._fold_record(record, now_ns, offset)
        if sample.posts:
            arrived = self._ledger.connections.take_arrived()
            self._unresolved |= self._control_fold.complete(arrived)
            self._post_fold.fold(arrived, now_ns)
            if not self._post_fold.owing:
                self._ledger.traffic.posted = self._post_fold.posted()
                self._ledger.traffic.posted_until_ns = sample.posts_ns
        if self._estimates is not None:
            self._estimates.fold(now_ns, figures=sample.posts)
        self._completion_fold.fold(sample.windows, now_ns)
        for pid in sample.gone:
            self._completion_fold.process_gone(pid)
            self._post_fold.process_gone(pid, now_ns)
            self._control_fold.process_gone(pid, now_ns)
        self._export(sample, now_ns)

    def _ending(self, record: Record) -> Iterable[Connection | None]:
        """The connections whose flows end with a record."""
        if record.kind == PROCESS_EXITED:
            return self._ledger.connections.of_process(record.pid)
        return (self._ledger.connections.get(record.device, record.qpn),)

    def _fold_record(self, record: Record, now_ns: int, offset: int) -> None:
        if ends_flows(record):
            self._estimate(self._ending(record), now_ns)
        if record.kind == QP_DESTROYED:
            # Its last posts first: what they moved belongs to the flows that end now.
            self._post_fold.finish(record.device, record.qpn, now_ns)
        elif record.kind == PROCESS_EXITED:
            for connection in self._ledger.connections.of_process(record.pid):
                self._post_fold.finish(connection.device, connection.qpn, now_ns)
        elif ends_flows(record):
            self._post_fold.settle(record.device, record.qpn, now_ns)
            if unbinds(record):
                self._post_fold.unbind(record.device, record.qpn, now_ns)
        self._control_fold.fold(record, record.time_ns + offset)
        self._post_fold.learn(record)

    def _begin_anew(self, now_ns: int) -> None:
        self._post_fold.restart(self._posts, now_ns)
        if self._former is not None:
            self._former.close()
            self._former = None

    def _estimate(self, connections: Iterable[Connection | None], now_ns: int) -> None:
        if self._estimates is not None:
            for connection in connections:
                if connection is not None:
                    self._estimates.settle(connection, now_ns)

    def _export(self, sample: Sample, now_ns: int) -> None:
        attributes = {catalog.SOURCE.name: self.name}
        if sample.received:
            self._series.series(catalog.RECORDS, attributes, now_ns).add(sample.received, now_ns)
        for reason, count in sample.losses.items():
            labels = {**attributes, catalog.LOSS.name: reason}
            self._series.series(catalog.LOST, labels, now_ns).observe(count, now_ns)
        if not sample.posts:
            return
        for probes in (self._control, self._connection_manager, self._data):
            if probes is None:
                continue
            for program in {**dict.fromkeys(probes.refused, 0), **probes.attached}:
                labels = {catalog.PROBE.name: program, catalog.PROBE_METHOD.name: probes.method}
                count = probes.attached.get(program, 0)
                self._series.series(catalog.PROBE_ATTACHED, labels, now_ns).set(count, now_ns)
