"""What RDMA objects exist, from RDMA netlink: the start of the ledger, and its correction later."""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path

from fabrictap import config
from fabrictap.ledger import Ledger, processes
from fabrictap.ledger.processes import Process
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.rdma_netlink import client as nldev
from fabrictap.sources.rdma_netlink.reconcile import DeviceDump, Reconciler, Sample
from fabrictap.sources.rdma_netlink.threads import process_of

_log = logging.getLogger(__name__)

#: Memory regions and contexts are many and change what is exported little: every so many samples.
_SLOW = 6
#: Different faults that are said; all are counted.
_MAX_SAID = 256


class RdmaNetlink:
    """The source ``rdma_netlink``. See :class:`fabrictap.sources.Source` for who may block where."""

    name = "rdma_netlink"

    def __init__(self, config: config.RdmaNetlink, series: SeriesTable, ledger: Ledger) -> None:  # noqa: ARG002 - every source is made alike
        self.interval = float(config.interval)
        self.deadline = max(30.0, 2 * self.interval)
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        self._wanted = ledger.filter
        self._client = nldev.Client()
        self._rounds = 0
        self._said: set[str] = set()
        self._processes: dict[int, Process] = {}
        self._resolver = ledger.workloads.resolver
        self._had_devices = False
        # sample reads only its suspects, which fold replaces and never changes
        self._reconciler = Reconciler(ledger)

    def open(self) -> None:
        """See whether the kernel answers. Raises SourceUnavailable."""
        self._rounds = 0
        self._list_devices()

    def sample(self) -> Sample:
        """Dump every device. Raises SourceUnavailable without RDMA netlink or any device."""
        started_ns = time.time_ns()
        slow = self._rounds % _SLOW == 0
        names = self._list_devices()
        if not names and not self._had_devices:
            raise SourceUnavailable("no RDMA device: RDMA netlink lists none; load a driver such as mlx5_ib")
        self._had_devices = bool(names)
        dumps = [
            dump
            for index, name in sorted(names.items())
            if self._wanted(name) and (dump := self._dump(index, name, slow=slow)) is not None
        ]
        self._rounds += 1
        suspects = self._reconciler.suspects
        return Sample(
            started_ns,
            frozenset(names.values()),
            dumps,
            self._read_processes(dumps),
            frozenset(pid for pid in suspects if not Path(f"/proc/{pid}").exists()),
        )

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put what is new into the ledger and take out what is gone."""
        self._reconciler.fold(sample, now_ns)

    def close(self) -> None:
        """Close the socket."""
        self._client.close()

    # --- sample: blocking, nothing shared -----------------------------------------------------------

    def _list_devices(self) -> dict[int, str]:
        try:
            return self._client.devices()
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ECONNREFUSED):
                raise SourceUnavailable(
                    "RDMA netlink is not there: the kernel has no ib_core; run 'modprobe ib_core'"
                ) from None
            self._count(error)
            raise SourceUnavailable(f"RDMA netlink cannot list the devices: {error}") from None

    def _dump(self, index: int, name: str, *, slow: bool) -> DeviceDump | None:
        try:
            queue_pairs = self._client.queue_pairs(index)
        except OSError as error:
            self._failed(name, "queue pairs", error)
            return None
        try:
            cm_ids = {cm.qpn: cm for cm in self._client.cm_ids(index).entries}
        except OSError as error:
            self._failed(name, "connection manager ids", error)
            cm_ids = {}
        regions = None
        contexts = None
        derived = False
        if slow:
            try:
                regions = self._client.memory_regions(index)
            except OSError as error:
                self._failed(name, "memory regions", error)
            try:
                contexts = self._client.contexts(index).entries
            except OSError as error:
                derived = True
                if error.errno != errno.EINVAL:
                    self._failed(name, "contexts", error)
                entries = [*queue_pairs.entries, *(regions.entries if regions is not None else ())]
                owners = {entry.owner.tid: entry.owner for entry in entries}
                contexts = list(owners.values())
        return DeviceDump(name, queue_pairs, cm_ids, regions, contexts, derived)

    def _read_processes(self, dumps: list[DeviceDump]) -> dict[int, Process]:
        tids = {entry.owner.tid for dump in dumps for entry in dump.queue_pairs.entries}
        tids |= {entry.owner.tid for dump in dumps if dump.regions for entry in dump.regions.entries}
        tids |= {owner.tid for dump in dumps for owner in dump.contexts or ()}
        found = {}
        for tid in tids:
            if tid is not None:
                pid = process_of(tid)
                found[tid] = self._process(pid, self._processes.get(tid))
        self._processes = found
        return found

    def _process(self, pid: int, known: Process | None) -> Process:
        """Read again where the pid has become another process's, or the process has moved."""
        if known is not None and known.pid == pid:
            now = self._resolver.resolve(pid)
            if now.start_ticks is None or (now.start_ticks, now.workload) == (
                known.start_ticks,
                known.workload,
            ):
                return known
        return processes.read(pid, "", self._resolver)

    def _failed(self, device: str, what: str, error: OSError) -> None:
        self._count(error)
        text = f"{device}: RDMA netlink does not list {what}: {error}"
        if text not in self._said and len(self._said) < _MAX_SAID:
            self._said.add(text)
            _log.warning("%s", text)

    def _count(self, error: OSError) -> None:
        word = (
            "ETIMEDOUT"
            if isinstance(error, TimeoutError)
            else errno.errorcode.get(error.errno or 0, "unknown")
        )
        self.errors[word] = self.errors.get(word, 0) + 1
