"""Names of pods and containers from the node's own log directories, without any API.

The kubelet makes ``/var/log/pods/NAMESPACE_NAME_UID/CONTAINER/`` before it starts a container, and a link
``/var/log/containers/NAME_NAMESPACE_CONTAINER-ID.log`` after (kubernetes.io/docs/concepts/cluster-
administration/logging; pkg/kubelet/kuberuntime: BuildPodLogsDirectory, legacyLogSymlink). No underscore
may be in any of these names. Only names are read: nothing is opened, no link is followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from fabrictap.ledger.workloads.model import Container, Pod
from fabrictap.ledger.workloads.text import LABEL, POD_UID, SUBDOMAIN

_LOG = re.compile(r"(?P<pod>[^_]+)_(?P<namespace>[^_]+)_(?P<container>[^_]+)-(?P<id>[0-9a-f]{64})\.log")
NamedT = TypeVar("NamedT", Pod, Container)
#: A directory that changed less than this before it was listed may have changed again unnoticed: its time
#: has the resolution of the kernel's tick.
_SETTLED_NS = 50_000_000
_MAX_CONTAINERS_OF_POD = 64


def parse_pod(name: str) -> Pod | None:
    """NAMESPACE_NAME_UID, or None where it cannot be one."""
    parts = name.split("_")
    if len(parts) != 3:
        return None
    namespace, pod, uid = parts
    if not (LABEL.fullmatch(namespace) and SUBDOMAIN.fullmatch(pod) and POD_UID.fullmatch(uid)):
        return None
    return Pod(uid, namespace, pod)


def parse_container(name: str) -> tuple[str, Container] | None:
    """Container id and container of NAME_NAMESPACE_CONTAINER-ID.log, or None where it cannot be one."""
    match = _LOG.fullmatch(name)
    if match is None:
        return None
    pod, namespace, container = match["pod"], match["namespace"], match["container"]
    if not (SUBDOMAIN.fullmatch(pod) and LABEL.fullmatch(namespace) and LABEL.fullmatch(container)):
        return None
    return match["id"], Container(namespace, pod, container)


@dataclass(frozen=True, slots=True)
class Listing:
    """What the directories name. ``rejected``: entries that are no names; ``dropped``: beyond the limit."""

    pods: dict[str, Pod] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    rejected: int = 0
    dropped: int = 0


class PodLogs:
    """The listing of ``directory`` (/var/log/pods) and ``containers`` beside it, kept until they change.

    From any thread. ``capacity``: the most pods; of containers four times as many.
    """

    def __init__(self, directory: str, capacity: int) -> None:
        self.directory = Path(directory)
        self.links = self.directory.parent / "containers"
        self._capacity = capacity
        self._lock = threading.Lock()
        self._listing = Listing()
        self._stamp: tuple[int, int] | None = None

    def present(self) -> bool:
        """Whether this node has such a directory, as every node with a kubelet."""
        return self.directory.is_dir()

    def listing(self) -> Listing:
        """What is there now. Raises OSError where the directory cannot be read."""
        with self._lock:
            stamp = (self.directory.stat().st_mtime_ns, _mtime(self.links))
            if stamp != self._stamp:
                settled = time.time_ns() - max(stamp) > _SETTLED_NS
                self._listing = self._list()
                self._stamp = stamp if settled else None
            return self._listing

    def find(self, pod_uid: str, container_id: str | None) -> tuple[Pod | None, Container | None]:
        """Names of a pod and of a container in it. Nothing is known where the directory cannot be read."""
        try:
            listing = self.listing()
        except OSError:
            return None, None
        pod = listing.pods.get(pod_uid)
        container = listing.containers.get(container_id) if container_id is not None else None
        if pod is None or container is not None or container_id is None:
            return pod, container
        only = self._only_container(pod)
        return pod, Container(pod.namespace, pod.name, only, pod.uid) if only is not None else None

    def _only_container(self, pod: Pod) -> str | None:
        """The container of a pod that has had just one: its link may be missing (names cut short)."""
        try:
            names = list(
                islice(
                    _names(self.directory / f"{pod.namespace}_{pod.name}_{pod.uid}"), _MAX_CONTAINERS_OF_POD
                )
            )
        except OSError:
            return None
        return names[0] if len(names) == 1 and LABEL.fullmatch(names[0]) else None

    def _list(self) -> Listing:
        pods, lost = _collect(map(_pod_entry, _names(self.directory)), self._capacity)
        containers: dict[str, Container] = {}
        with contextlib.suppress(OSError):  # a node may have none: pods are named all the same
            containers, more = _collect(map(parse_container, _names(self.links)), 4 * self._capacity)
            lost = (lost[0] + more[0], lost[1] + more[1])
        return Listing(pods, containers, *lost)


def _pod_entry(name: str) -> tuple[str, Pod] | None:
    pod = parse_pod(name)
    return (pod.uid, pod) if pod is not None else None


def _collect(
    entries: Iterable[tuple[str, NamedT] | None], capacity: int
) -> tuple[dict[str, NamedT], tuple[int, int]]:
    """What is named, by id, and how many were rejected and dropped.

    An id with two names has none: whoever may write here (a pod with the directory as a hostPath) could
    otherwise give his name to another's.
    """
    found: dict[str, NamedT | None] = {}
    rejected = dropped = 0
    for entry in entries:
        if entry is None:
            rejected += 1
        elif entry[0] in found:
            if found[entry[0]] != entry[1]:
                found[entry[0]] = None
                rejected += 1
        elif len(found) >= capacity:
            dropped += 1
        else:
            found[entry[0]] = entry[1]
    return {key: value for key, value in found.items() if value is not None}, (rejected, dropped)


def _names(directory: Path) -> Iterator[str]:
    """Names in a directory that is one itself and no link to one. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name
    finally:
        os.close(fd)


def _mtime(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0
