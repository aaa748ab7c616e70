"""Whose a connection is, and the series of what was posted on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from fabrictap import catalog
from fabrictap.view.recording import Connection, Recording, SeriesEntry

#: Seconds between two readings of the directory, which may have thousands of these series: where one is
#: missing, and otherwise (a connection may be used in a new way).
_PAUSE, _LONG_PAUSE = 5.0, 20.0
Key = tuple[str, int]


def name_of(attributes: Mapping[str, object]) -> str:
    """Namespace and pod, job and its user, container or unit; empty where the series names none."""
    pod = attributes.get(catalog.K8S_POD.name) or attributes.get(catalog.K8S_POD_UID.name)
    if pod:
        namespace = attributes.get(catalog.K8S_NAMESPACE.name)
        return f"{namespace}/{pod}" if namespace else str(pod)
    if job := attributes.get(catalog.SLURM_JOB.name):
        user = attributes.get(catalog.SLURM_USER.name)
        return f"job {job} ({user})" if user else f"job {job}"
    if container := attributes.get(catalog.CONTAINER_ID.name):
        return f"container {str(container)[:12]}"
    return str(attributes.get(catalog.SYSTEMD_UNIT.name, ""))


class Posts:
    """The series of posted work of some connections, found again where the directory has changed."""

    def __init__(self) -> None:
        self._known: dict[Key, list[SeriesEntry]] = {}
        self._read_at = -1e9

    def of(self, recording: Recording, connections: Iterable[Connection]) -> dict[Key, list[SeriesEntry]]:
        """(device, number) of each connection whose posts have series -> these."""
        wanted = [(one.device, one.qpn) for one in connections if one.posted]
        now = time.monotonic()
        missing = any(key not in self._known for key in wanted)
        if wanted and now - self._read_at > (_PAUSE if missing else _LONG_PAUSE):
            self._read(recording)
            self._read_at = now
        return {key: self._known[key] for key in wanted if key in self._known}

    def _read(self, recording: Recording) -> None:
        self._known = {}
        for entry in recording.series(lambda metric: metric.name == catalog.VERBS_IO.name):
            device = entry.attributes.get(catalog.RDMA_DEVICE.name)
            number = entry.attributes.get(catalog.RDMA_QPN.name)
            if not entry.ended and isinstance(device, str) and isinstance(number, int):
                self._known.setdefault((device, number), []).append(entry)
