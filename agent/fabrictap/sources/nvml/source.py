"""The source ``nvml``: NVLink, PCIe, memory, health and processes of NVIDIA GPUs.

Two threads call the driver. One makes the slow tier's calls, while the runner's thread waits for each, and
the fast tier's by itself. It can be left behind, so that a GPU whose calls hang costs itself only: it is left
out until its call has returned. The other waits for XIDs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from fabrictap import catalog, config
from fabrictap.ext.calls import Calls, Task
from fabrictap.ledger import Ledger
from fabrictap.ledger.providers import NVML
from fabrictap.series import AttributeValue, Series, SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.nvml import devices, processes
from fabrictap.sources.nvml.batches import Batches
from fabrictap.sources.nvml.devices import Device
from fabrictap.sources.nvml.events import Xids
from fabrictap.sources.nvml.fast import Fast
from fabrictap.sources.nvml.figures import Figures, Live, Reading
from fabrictap.sources.nvml.health import Health, status
from fabrictap.sources.nvml.library import Library, NvmlFailed
from fabrictap.sources.nvml.patience import Hung, Patience

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two looks for GPUs, MIG devices and links that came or went.
_SCAN_INTERVAL = 60.0
#: Seconds until NVML is started anew because a GPU is lost: doubling from the first to the last.
_RESTART_FIRST = 60.0
_RESTART_LAST = 3600.0
#: Threads that may be left behind in the driver.
_THREADS = 32


@dataclass(slots=True)
class Sample:
    """One pass of the slow tier. ``gone``: the driver does not answer any more, and why."""

    devices: tuple[Device, ...] = ()
    readings: dict[str, Reading] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    usage: dict[str, processes.Usage] = field(default_factory=dict)
    xids: list[tuple[str, int]] = field(default_factory=list)
    gone: str | None = None


class Nvml:
    """See :class:`fabrictap.sources.Source` for who may block where, and runner.py for the fast tier."""

    name = "nvml"

    def __init__(
        self,
        config: config.Nvml,
        series: SeriesTable,
        ledger: Ledger,
        sysfs: str = "/sys",
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.interval = float(config.interval)
        self.deadline = max(30.0, 2 * self.interval)
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        #: Seconds that the calls of one GPU may take in the slow tier.
        self.limit = 2.0
        #: Seconds of one wait for XIDs: how long the thread takes to end.
        self.wait = 1.0
        self._calls = Calls(_THREADS)
        self.fast = Fast(
            series.ring, self._calls, self.errors, clock, wall,
            interval=float(config.fast_interval), longest=self.interval / 2,
        )  # fmt: skip
        self._config = config
        self._table = series
        self._ledger = ledger
        self._sysfs = sysfs
        self._clock = clock
        self._library: Library | None = None
        #: Closed while a call was in it: still loaded and initialised.
        self._left: list[Library] = []
        self._health: Health | None = None
        self._patience = Patience(self._calls)
        self._batches = Batches(config.gpm, series, ledger.providers, clock)
        self._xids: Xids | None = None
        self._xids_tried: frozenset[str] = frozenset()
        self._devices: tuple[Device, ...] = ()
        self._hung: dict[str, Task[Any] | None] = {}
        self._lost: set[str] = set()
        self._hung_index: dict[int, Task[Any] | None] = {}
        self._gone: str | None = None
        self._scan_at = 0.0
        self._processes_at = 0.0
        self._restart_at: float | None = None
        self._restart_pause = _RESTART_FIRST
        #: NVML was started anew: handles from before are not to be used.
        self._void = False
        #: Held while it is decided what the fast tier makes, and while the library is opened or closed.
        self._in_library = threading.Lock()
        self._ready = False
        self._leave_out: frozenset[str] = frozenset()
        # what fold has put where
        self._figures = Figures(NVML, series, ledger.providers)
        self._known: dict[str, Device] = {}
        self._present = Live(series)
        self._used: dict[str, Live] = {}
        self._xid_series: dict[tuple[str, int], Series] = {}

    # --- the slow tier ----------------------------------------------------------------------------

    def open(self) -> None:
        """Load the library. Raises SourceUnavailable, or SourceAbsent where the node has no driver."""
        with self._in_library:
            self._unload()
        self._library = Library(self._config.library, self._sysfs)
        self._health = Health(self._library, self._clock)
        self._gone = None
        self._scan_at = self._processes_at = 0.0
        self._restart_at = None
        self._restart_pause = _RESTART_FIRST

    def sample(self) -> Sample:
        """Read every GPU once. Raises SourceUnavailable where there is none or the driver is gone."""
        if self._gone is not None:
            raise SourceUnavailable(f"the NVIDIA driver does not answer any more: {self._gone}")
        had = bool(self._known)
        sample = Sample()
        try:
            self._read(sample)
        except NvmlFailed as error:
            if not had:
                raise SourceUnavailable(f"NVML does not answer: {error.reason} ({error})") from None
            self._gone = error.reason
            return Sample(gone=error.reason)  # fold takes out what there was
        if not sample.devices and not had:
            raise SourceUnavailable("no NVIDIA GPU: the driver is loaded and lists none")
        if not self._config.fast_interval:
            self.read_counters()
        return sample

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put a sample into series and ledger."""
        if sample.gone is not None:
            self._fold_gone(now_ns)
            return
        self._fold_devices(sample, now_ns)
        for device in sample.devices:
            if (trouble := sample.troubles.get(device.id)) is not None:
                self._figures.write(device.id, Reading(status("failed")), now_ns, missing=trouble)
                for mig in device.migs:
                    self._figures.fail(mig.device.id, trouble, now_ns)
        for hw_id, reading in sample.readings.items():
            self._figures.write(hw_id, reading, now_ns)
        for gpu, usage in sample.usage.items():
            for process in usage.processes.values():
                self._ledger.processes.put(process)
            self._ledger.gpus.use(gpu, usage.processes)
            values = processes.values(usage, self._ledger.identity)
            self._used.setdefault(gpu, Live(self._table)).write(values, now_ns)
        self._fold_xids(sample.xids, now_ns)
        self._present.write([one for device in sample.devices for one in devices.present(device.gpu)], now_ns)
        self.fast.recheck(now_ns)
        self._leave_out = frozenset(sample.troubles) | frozenset(self._hung)
        self._ready = True
        if not self._config.fast_interval:
            self.fast.fold(now_ns)

    def close(self) -> None:
        """Unload the library, unless a call has not returned from it: then it stays where it is."""
        self._ready = False
        xids, self._xids = self._xids, None
        self._xids_tried = frozenset()
        waiting = xids is not None and not xids.close(self.limit)
        with self._in_library:
            self.fast.pause()
            library, self._library = self._library, None
            if library is not None:
                self._left.append(library)
            if not waiting:
                self._unload()
            self._calls.park()
        self._health = None
        self._devices = ()
        self._hung.clear()
        self._hung_index.clear()

    def _unload(self) -> None:
        """Unload what is not used any more, once no call is left in it."""
        while self._left and not self._calls.stuck:
            library = self._left.pop()
            try:
                self._patience.run(partial(self._batches.free, library), self.limit)
                self._patience.run(library.close, self.limit)
            except Hung:
                self._count("hung")

    # --- the fast tier ----------------------------------------------------------------------------

    @property
    def sampled_every(self) -> float:
        """Seconds between two reads of the counters, as their cost lets it be; 0: there is no thread."""
        return self.fast.interval

    def tick(self, now_ns: int) -> None:
        """Fold the counters of NVLink and PCIe, and have them read until the next tick."""
        # whoever holds it opens or closes the library: then there is nothing to read
        if self._config.fast_interval and self._in_library.acquire(blocking=False):
            try:
                if self._ready:
                    self.fast.tick(now_ns, self._leave_out)
            finally:
                self._in_library.release()

    def read_counters(self) -> None:
        """Read the counters of NVLink and PCIe once, where nothing reads them by itself. May block."""
        if not self._ready:
            return
        with self._in_library:
            if self._ready:
                self.fast.sample(self._leave_out)

    # --- reading ----------------------------------------------------------------------------------

    def _read(self, sample: Sample) -> None:
        now = self._clock()
        self._hung = {gpu: call for gpu, call in self._hung.items() if call is not None and not call.returned}
        if any(call is None or call.returned for call in self._hung_index.values()):
            self._scan_at = 0.0
        if self._restart_at is not None and now >= self._restart_at:
            self._restart(now)
        if now >= self._scan_at:
            self._scan(now)
        list_processes = now >= self._processes_at
        if list_processes:
            self._processes_at = now + float(self._config.process_interval)
        assert self._health is not None
        in_fast_tier = self.fast.hung()
        lost = set()
        for device in self._devices:
            if device.id in self._hung or device.id in in_fast_tier:
                sample.troubles[device.id] = "hung"
                continue
            try:
                self._read_one(device, list_processes, sample)
            except Hung as hung:
                self._left_behind(device.id, hung)
                sample.troubles[device.id] = "hung"
            except NvmlFailed as error:
                if error.driver_gone:
                    raise
                self._count(error.reason)
                if device.id not in self._lost:
                    _log.warning("%s (GPU %d): %s", device.id, device.gpu.index, error.reason)
                lost.add(device.id)
                sample.troubles[device.id] = error.reason
        for gpu in self._lost - lost - sample.troubles.keys():
            _log.warning("%s answers again", gpu)
            self._scan_at = 0.0
        self._lost = lost
        self._plan_restart(now)
        sample.devices = self._devices
        sample.xids = self._take_xids(sample.troubles)

    def _read_one(self, device: Device, list_processes: bool, sample: Sample) -> None:
        library, health = self._library, self._health
        assert library is not None
        assert health is not None
        if device.handle is None:
            raise NvmlFailed(library.nvml.NVML_ERROR_GPU_IS_LOST)
        resolver = self._ledger.workloads.resolver
        readings = {device.id: self._patience.run(lambda: health.read(device), self.limit)}
        for mig in device.migs:
            try:
                readings[mig.device.id] = self._patience.run(partial(health.read_mig, mig), self.limit)
            except NvmlFailed as error:
                if error.driver_gone:
                    raise
                self._scan_at = 0.0  # it has been taken apart
        if list_processes:
            try:
                usage = self._patience.run(partial(processes.read, library, device, resolver), self.limit)
                sample.usage[device.id] = usage
            except NvmlFailed as error:
                if error.driver_gone or error.reason == "gpu_lost":
                    raise
                self._count(error.reason)
        sample.readings |= readings

    def _scan(self, now: float) -> None:
        """Look for GPUs. One that does not say who it is any more stays who it was."""
        self._scan_at = now + _SCAN_INTERVAL
        library = self._library
        assert library is not None
        self._hung_index = {i: c for i, c in self._hung_index.items() if c is not None and not c.returned}
        try:
            count = self._patience.run(lambda: devices.count(library), self.limit)
        except Hung:
            self._count("hung")
            return
        before = {device.gpu.index: device for device in self._devices}
        if self._void:
            before = {index: replace(device, handle=None, address=0) for index, device in before.items()}
            self._void = False
        found = []
        hung_gpus = self._hung.keys() | self.fast.hung()
        for index in range(count):
            known = before.get(index)
            if index in self._hung_index or (known is not None and known.id in hung_gpus):
                found += [known] if known is not None else []
                continue
            try:
                found.append(self._patience.run(partial(self._describe, library, index), self.limit))
            except Hung as hung:
                self._hung_index[index] = hung.call
                if known is not None:
                    self._left_behind(known.id, hung)
                    found.append(known)
                else:
                    self._count("hung")
            except NvmlFailed as error:
                if error.driver_gone:
                    raise
                self._count(error.reason)
                if known is not None:
                    found.append(known)
        devices.place(found, self._sysfs)
        if self._health is not None:
            self._health.forget({device.id for device in self._devices} - {device.id for device in found})
        self._devices = tuple(found)

    def _describe(self, library: Library, index: int) -> Device:
        gpu, handle = devices.identify(library, index)
        device = devices.describe(library, index, gpu, handle)
        self._batches.prepare(library, device)
        return device

    def _left_behind(self, gpu: str, hung: Hung) -> None:
        self._hung[gpu] = hung.call
        self._count("hung")
        _log.error("%s: a call into the driver does not return; it is left out until it does", gpu)

    def _plan_restart(self, now: float) -> None:
        """A GPU that was lost and reset is known to NVML only when it is started anew."""
        if not self._lost:
            self._restart_at = None
            self._restart_pause = _RESTART_FIRST
        elif self._restart_at is None:
            self._restart_at = now + self._restart_pause

    def _restart(self, now: float) -> None:
        self._restart_pause = min(2 * self._restart_pause, _RESTART_LAST)
        self._restart_at = now + self._restart_pause
        library = self._library
        if library is None or self._calls.stuck:
            return
        if self._xids is not None and not self._xids.close(self.limit):
            return
        self._xids = None
        self._xids_tried = frozenset()
        with self._in_library:
            self._ready = False  # until fold has renewed what points into the library
            self.fast.pause()
            self._batches.free(library)
            try:
                self._patience.run(library.restart, self.limit)
            except Hung:
                self._count("hung")
        self._void = True
        self._scan_at = 0.0

    def _take_xids(self, troubles: dict[str, str]) -> list[tuple[str, int]]:
        if not self._config.xid or self._library is None:
            return []
        found = []
        if self._xids is not None:
            found = self._xids.take()
            if self._xids.failed is not None:
                self._count(self._xids.failed)
                self._xids_tried = frozenset()
        healthy = [one for one in self._devices if one.id not in troubles and one.handle is not None]
        wanted = frozenset(device.id for device in self._devices)
        if healthy and wanted != self._xids_tried:
            if self._xids is not None:
                self._xids.stop()  # the old one goes on until its wait is over; it finds nothing more
            self._xids_tried = wanted
            library = self._library
            try:
                self._xids = self._patience.run(lambda: Xids(library, healthy, self.wait), self.limit)
            except Hung:
                self._count("hung")
            except NvmlFailed as error:
                if error.driver_gone:
                    raise
                self._xids = None
                _log.info("no XID events: %s", error.reason)
        return found

    def _count(self, word: str) -> None:
        self.errors[word] = self.errors.get(word, 0) + 1

    # --- folding ----------------------------------------------------------------------------------

    def _fold_devices(self, sample: Sample, now_ns: int) -> None:
        current = {device.id: device for device in sample.devices}
        for gpu in self._known.keys() - current.keys():
            self._drop(gpu, now_ns)
        for gpu, device in current.items():
            known = self._known.get(gpu)
            if known is device:
                continue
            if not self._ledger.gpus.put(device.gpu):
                _log.warning("%s: limits.gpus is reached; it is left out", gpu)
                continue
            for mig in known.migs if known is not None else ():
                if mig.device not in device.gpu.migs:
                    self._figures.drop(mig.device.id, now_ns)
            assert self._library is not None
            self._batches.update(self.fast, self._library, known, device, now_ns)
            self._known[gpu] = device

    def _drop(self, gpu: str, now_ns: int) -> None:
        device = self._known.pop(gpu)
        self.fast.replace(gpu, ())
        for hw_id in (gpu, *(mig.device.id for mig in device.migs)):
            self._figures.drop(hw_id, now_ns)
        self._ledger.gpus.remove(gpu)
        if gpu in self._used:
            self._used.pop(gpu).end(now_ns)
        for key in [key for key in self._xid_series if key[0] == gpu]:
            self._table.end(self._xid_series.pop(key))

    def _fold_gone(self, now_ns: int) -> None:
        for gpu in list(self._known):
            self._drop(gpu, now_ns)
        self._present.end(now_ns)
        self._ready = False

    def _fold_xids(self, xids: list[tuple[str, int]], now_ns: int) -> None:
        for gpu, xid in xids:
            series = self._xid_series.get((gpu, xid))
            if series is None:
                labels: dict[str, AttributeValue] = {
                    "hw.id": gpu,
                    "hw.type": "gpu",
                    "error.type": f"xid_{xid}",
                    "fabrictap.provider": NVML,
                }
                series = self._xid_series[gpu, xid] = self._table.series(catalog.ERRORS, labels, now_ns)
            series.add(1, now_ns)
