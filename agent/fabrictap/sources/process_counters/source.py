"""Per process, what the hardware counts by itself: no probe, and also what a GPU or another library posts.

Opt-in, for it changes how the driver binds queue pairs to counters, and a device has a limited number of
them. Where it was off it is turned on, and off again when the agent ends; where somebody else has it on, it
is only read. Not yet run on hardware.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap import catalog, config
from fabrictap.ledger import Ledger, processes
from fabrictap.ledger.processes import Process
from fabrictap.series import Series, SeriesTable
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.process_counters.messages import MANUAL, Counter, Statistics
from fabrictap.sources.process_counters.switched import Switched
from fabrictap.sources.rdma_netlink.reconcile import QP_TYPE_NAMES
from fabrictap.sources.rdma_netlink.threads import process_of

_log = logging.getLogger(__name__)

#: Optional counters of mlx5 (drivers/infiniband/hw/mlx5/counters.c) that are bytes.
_BYTES = {"rdma_tx_bytes": "transmit", "rdma_rx_bytes": "receive"}
_MAX_SAID = 256

#: Device, port, the kernel's number of the counter.
_Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Reading:
    """One counter of the kernel's: the queue pairs of one type of one process."""

    pid: int
    qp_type: int | None
    values: dict[str, int]
    #: It was there when its port was first read: what it had counted until then may be older than the agent.
    older: bool


@dataclass(slots=True)
class Sample:
    """What one round of the ports brought."""

    counted: dict[_Key, Reading] = field(default_factory=dict)
    processes: dict[int, Process] = field(default_factory=dict)


class ProcessCounters:
    """The source ``process_counters``. With ``enabled`` false it turns off what a killed agent left on."""

    name = "process_counters"

    def __init__(
        self, config: config.ProcessCounters, series: SeriesTable, ledger: Ledger, sysfs: str = "/sys"
    ) -> None:
        self.interval = float(config.interval)
        self.deadline = max(30.0, 2 * self.interval)
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        self._enabled = config.enabled
        self._sysfs = sysfs
        self._wanted = ledger.filter
        self._resolver = ledger.workloads.resolver
        self._ledger = ledger
        self._table = series
        self._client = Statistics()
        self._switched = Switched(config.state)
        #: Ports that are read, by device and number; and those that cannot be, with the reason.
        self._ports: set[tuple[str, int]] = set()
        self._refused: dict[tuple[str, int], str] = {}
        #: Ports whose counters have been read before.
        self._read: set[tuple[str, int]] = set()
        #: In ``fold``: what was there last, and the series that it goes to, by the counter's name.
        self._last: dict[_Key, Reading] = {}
        self._series: dict[_Key, dict[str, Series]] = {}
        self._said: set[str] = set()

    # --- in the source's own thread ---------------------------------------------------------------

    def open(self) -> None:
        if not self._enabled:
            self._restore()
            raise SourceAbsent("off; what an agent that was killed had turned on is off again")
        self._switch_on(self._devices())

    def sample(self) -> Sample:
        devices = self._devices()
        self._switch_on(devices)
        if not self._ports:
            reasons = "; ".join(sorted(self._refused.values())) or "no RDMA device"
            raise SourceUnavailable(f"no port counts by process: {reasons}")
        sample = Sample()
        numbers = {name: index for index, name in devices.items()}
        for device, port in sorted(self._ports):
            if device not in numbers:
                self._ports.discard((device, port))
                self._read.discard((device, port))
                continue
            try:
                counters = self._client.counters(numbers[device], port)
            except OSError as error:
                self._failed(f"{device}/{port}: counters of processes cannot be read", error)
                continue
            for counter in counters:
                self._add(sample, device, port, counter)
            self._read.add((device, port))
        return sample

    def close(self) -> None:
        self._restore()
        self._client.close()
        for learned in (self._ports, self._read):
            learned.clear()
        self._refused.clear()

    def _devices(self) -> dict[int, str]:
        try:
            return {index: name for index, name in self._client.devices().items() if self._wanted(name)}
        except OSError as error:
            raise SourceUnavailable(f"RDMA netlink cannot list the devices: {error}") from None

    def _switch_on(self, devices: dict[int, str]) -> None:
        """On the ports that are new."""
        for index, device in devices.items():
            for port in self._ports_of(device):
                if (device, port) in self._ports or (device, port) in self._refused:
                    continue
                try:
                    self._switch_port_on(index, device, port)
                except OSError as error:
                    reason = f"{device}/{port}: {_why(error)}"
                    self._refused[device, port] = reason
                    self._failed(f"not counted by process: {reason}", error)

    def _switch_port_on(self, index: int, device: str, port: int) -> None:
        label = f"{device}/{port}"
        mode = self._client.mode(index, port)
        if mode.by_process:
            self._ports.add((device, port))
            if label not in self._switched.ports:
                _log.info("%s: counts by process already; it is read, and left on", label)
            return
        if mode.mode == MANUAL:
            raise OSError(errno.EBUSY, "queue pairs are bound to counters by hand")
        self._switched.add(label)
        try:
            optional = self._client.count_by_process(index, port)
        except OSError:
            self._switched.remove(label)
            raise
        self._ports.add((device, port))
        more = "with" if optional else "without"
        _log.info(
            "%s: queue pairs made from now on are counted by process, %s optional counters", label, more
        )

    def _restore(self) -> None:
        """Off where it was turned on, by this agent or by one that was killed."""
        if not self._switched.ports:
            return
        try:
            numbers = {name: index for index, name in self._client.devices().items()}
        except OSError as error:
            self._failed("counting by process stays on: the devices cannot be listed", error)
            return
        for label in sorted(self._switched.ports):
            device, _, port = label.rpartition("/")
            try:
                if device in numbers and port.isdigit():
                    self._client.count_no_more(numbers[device], int(port))
            except OSError as error:
                # EINVAL: somebody else has turned it off.
                if error.errno != errno.EINVAL:
                    self._failed(f"{label}: counting by process stays on", error)
                    continue
            try:
                self._switched.remove(label)
            except OSError as error:
                self._failed("what was turned off is still in the file", error)

    def _ports_of(self, device: str) -> list[int]:
        try:
            found = [path.name for path in Path(self._sysfs, "class/infiniband", device, "ports").iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in found if name.isdigit())

    def _add(self, sample: Sample, device: str, port: int, counter: Counter) -> None:
        if counter.tid is None:
            return
        pid = process_of(counter.tid)
        if pid not in sample.processes:
            sample.processes[pid] = processes.read(pid, "", self._resolver)
        older = (device, port) not in self._read
        reading = Reading(pid, counter.qp_type, counter.values, older)
        sample.counted[device, port, counter.number] = reading

    def _failed(self, what: str, error: OSError) -> None:
        word = errno.errorcode.get(error.errno or 0, "unknown")
        self.errors[word] = self.errors.get(word, 0) + 1
        text = f"{what}: {error.strerror or error}"
        if text not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(text)
            _log.warning("%s", text)

    # --- under the node's lock --------------------------------------------------------------------

    def fold(self, sample: Sample, now_ns: int) -> None:
        for process in sample.processes.values():
            self._ledger.processes.put(process)
        gone: list[Series] = []
        for key, reading in [*self._last.items()]:
            now = sample.counted.get(key)
            # A number may have been given out again.
            if now is None or (now.pid, now.qp_type) != (reading.pid, reading.qp_type):
                gone += self._series.pop(key, {}).values()
                del self._last[key]
        for key, reading in sample.counted.items():
            last = self._last.get(key)
            before = reading.values if last is None and reading.older else last.values if last else {}
            known = self._series.setdefault(key, {})
            for name, value in reading.values.items():
                if name not in known:
                    known[name] = self._make(key, reading, name, now_ns)
                # Added, not set: processes that are told apart no more share a series.
                then = before.get(name, 0)
                known[name].add(value - then if value >= then else value, now_ns)
            self._last[key] = reading
        kept = {id(series) for of_counter in self._series.values() for series in of_counter.values()}
        for series in gone:
            if id(series) not in kept:
                self._table.end(series)

    def _make(self, key: _Key, reading: Reading, name: str, now_ns: int) -> Series:
        device, port, _ = key
        attributes = {
            **self._ledger.identity(reading.pid),
            catalog.RDMA_DEVICE.name: device,
            catalog.RDMA_PORT.name: port,
        }
        if reading.qp_type is not None:
            attributes[catalog.RDMA_QP_TYPE.name] = QP_TYPE_NAMES.get(reading.qp_type, "unknown")
        if name in _BYTES:
            attributes[catalog.IO_DIRECTION.name] = _BYTES[name]
            return self._table.series(catalog.PROCESS_IO, attributes, now_ns)
        attributes[catalog.RDMA_COUNTER_NAME.name] = name
        return self._table.series(catalog.PROCESS_COUNTER, attributes, now_ns)


def _why(error: OSError) -> str:
    """For whoever reads ``doctor`` or the log."""
    if error.errno == errno.EOPNOTSUPP:
        return "its driver has no counters for queue pairs"
    if error.errno == errno.EINVAL:
        return "the kernel refuses: queue pairs are bound to counters already"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "it needs CAP_NET_ADMIN"
    return error.strerror or str(error)
