"""The kubelet as a source: names of pods and containers, and who has which device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fabrictap import catalog
from fabrictap.config import Kubelet as KubeletConfig
from fabrictap.config import Limits
from fabrictap.ledger import Ledger
from fabrictap.ledger.workloads import Container, Device
from fabrictap.ledger.workloads.podlogs import Listing, PodLogs
from fabrictap.series import Series, SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.kubelet import podresources

_log = logging.getLogger(__name__)
_SECONDS = 5.0
#: Intervals for which devices stay assigned while the kubelet does not answer: a restart takes some seconds.
_PATIENCE = 3

Owners = dict[Device, tuple[Container, ...]]


@dataclass(slots=True)
class Sample:
    """What was read at once; None is what was not read."""

    devices: Owners | None = None
    dropped: int = 0
    names: Listing | None = None


class Kubelet:
    """Asks the PodResources socket, the log directories and, where it has an address, the list of pods.

    Each that fails costs itself; the source is unavailable when none delivers.
    """

    name = "kubelet"
    waited = 0.0

    def __init__(
        self,
        config: KubeletConfig,
        limits: Limits,
        series: SeriesTable,
        ledger: Ledger,
        seconds: float = _SECONDS,
    ) -> None:
        self.interval = float(config.interval)
        self.deadline = 3 * seconds
        self.errors: dict[str, int] = {}
        self._config = config
        self._limits = limits
        self._table = series
        self._ledger = ledger
        self._seconds = seconds
        self._logs = ledger.workloads.resolver.logs or PodLogs(config.pods_log_dir, limits.pods)
        self._said: dict[str, str] = {}
        self._listed: Listing | None = None
        self._missed = 0
        self._live: dict[tuple[Device, Container], Series] = {}

    @staticmethod
    def wanted(config: KubeletConfig) -> bool:
        """Whether to run. ``auto``: where a kubelet has its directories."""
        if config.enabled != "auto":
            return config.enabled == "on"
        return Path(config.socket).parent.is_dir() or Path(config.pods_log_dir).is_dir()

    def open(self) -> None:
        """Nothing is kept open: the kubelet may be restarted at any time."""

    def sample(self) -> Sample:
        """Ask once. Raises SourceUnavailable where nobody answers."""
        assigned = self._devices()
        sample = Sample(names=self._names())
        if assigned is not None:
            sample.devices, sample.dropped = assigned.devices, assigned.dropped
        if sample.devices is None and sample.names is None:
            raise SourceUnavailable("; ".join(self._said[part] for part in sorted(self._said)))
        return sample

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put a sample into the ledger and the series."""
        workloads = self._ledger.workloads
        if sample.names is not None:
            workloads.name(sample.names.pods, sample.names.containers)
        if sample.devices is not None:
            self._missed = 0
            workloads.assign(sample.devices, sample.dropped)
        else:
            self._missed += 1
            if self._missed > _PATIENCE:
                workloads.assign({})
        self._fold_devices(now_ns)

    def close(self) -> None:
        """Nothing is open."""

    def _devices(self) -> podresources.Assigned | None:
        try:
            answer = podresources.fetch(self._config.socket, self._seconds)
            assigned = podresources.decode(answer, self._limits.pods, self._limits.device_assignments)
        except podresources.PodResourcesError as error:
            self._failed("pod resources", error.word, str(error))
            return None
        self._said.pop("pod resources", None)
        self._count("rejected_name", assigned.rejected)
        self._count("too_many", assigned.dropped)
        return assigned

    def _names(self) -> Listing | None:
        listings = []
        try:
            listing = self._logs.listing()
            listings.append(listing)
            self._said.pop("pod logs", None)
            if listing is not self._listed:
                self._listed = listing
                self._count("rejected_name", listing.rejected)
                self._count("too_many", listing.dropped)
        except OSError as error:
            self._failed("pod logs", "unreadable", f"{self._logs.directory} cannot be read: {error.strerror}")
        if self._config.url is not None and (listed := self._pod_list(self._config.url)) is not None:
            listings.append(listed)
        if not listings:
            return None
        # the kubelet's own word is complete: it also has the pod's uid with the container
        pods, containers = dict(listings[0].pods), dict(listings[0].containers)
        for listing in listings[1:]:
            pods.update(listing.pods)
            containers.update(listing.containers)
        return Listing(pods, containers)

    def _pod_list(self, url: str) -> Listing | None:
        from fabrictap.sources.kubelet import podlist  # noqa: PLC0415 - TLS is for those who ask for it

        config = self._config
        address = podlist.Address(url, config.token_file, config.certificate, config.insecure)
        try:
            listing = podlist.decode(podlist.fetch(address, self._seconds), self._limits.pods)
        except podlist.PodListError as error:
            self._failed("pod list", error.word, str(error))
            return None
        self._said.pop("pod list", None)
        self._count("rejected_name", listing.rejected)
        self._count("too_many", listing.dropped)
        return listing

    def _fold_devices(self, now_ns: int) -> None:
        live: dict[tuple[Device, Container], Series] = {}
        for device, containers in self._ledger.workloads.devices.items():
            for container in containers:
                series = self._live.get((device, container))
                if series is None:
                    attributes = {
                        catalog.DEVICE_RESOURCE.name: device.resource,
                        catalog.DEVICE_ID.name: device.id,
                        catalog.K8S_NAMESPACE.name: container.namespace,
                        catalog.K8S_POD.name: container.pod,
                        catalog.K8S_CONTAINER.name: container.name,
                    }
                    series = self._table.series(catalog.DEVICE_ASSIGNMENT, attributes, now_ns)
                series.set(1, now_ns)
                live[(device, container)] = series
        for key, series in self._live.items():
            if key not in live:
                series.set(0, now_ns)
                self._table.end(series)
        self._live = live

    def _failed(self, part: str, word: str, message: str) -> None:
        self._count(word, 1)
        if self._said.get(part) != message:
            self._said[part] = message
            _log.warning("%s: %s", part, message)

    def _count(self, word: str, number: int) -> None:
        if number:
            self.errors[word] = self.errors.get(word, 0) + number
