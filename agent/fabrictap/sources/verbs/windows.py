"""Windows in which completions are watched: for a second in thirty, by default.

Each window attaches its own probes beside those that count, in a thread of its own, which also takes what
they record, and detaches them when it ends: outside of windows poll_cq has no probe. Places and descriptors
are copied when it begins, so that the source may let go of files meanwhile.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from fabrictap.config import Completions as WindowsConfig
from fabrictap.ext.bpf import BpfError, Link
from fabrictap.ext.completions import Completions, Group
from fabrictap.sources.verbs.attach import File
from fabrictap.sources.verbs.detach import Detaching
from fabrictap.sources.verbs.probes import Probes, ProbesUnavailable, attach_function, detach
from fabrictap.sources.verbs.work import Reader, device_name, drain, hits, open_probes

_log = logging.getLogger(__name__)
_NS = 10**9
#: Records are taken so often: the kernel's buffer must not be full before.
_READ_MS = 10
#: CPU nanoseconds that a probed call takes longer, entry, return and record (Linux 6.18, virtual machine: an
#: empty poll 2.0 us, a post 2.4 us; make bench B=completions).
CALL_NS = 2200
#: The buffer for records; what they take in 10 ms of the fastest programs.
_BUFFER = 4 << 20
_CLOSE_SECONDS = 5.0
#: Processes that are watched of a file that is attached for each by itself (:mod:`attach`).
_MOST_DIVIDED = 8
#: Detached first.
_BUSY = ("post_send", "poll_cq")


@dataclass(frozen=True, slots=True)
class Target:
    """One function. ``descriptor`` is the window's own; ``pid`` 0: in every process."""

    name: str
    descriptor: int
    offset: int
    pid: int


@dataclass(frozen=True, slots=True)
class Window:
    """What one window saw. Times are CLOCK_MONOTONIC ns; ``attached`` is how many probes it had."""

    began_ns: int
    ended_ns: int
    end: str
    attached: int = 0
    groups: list[Group] = field(default_factory=list)
    #: (pid, address of the context) -> device.
    devices: dict[tuple[int, int], str] = field(default_factory=dict)
    lost: int = 0
    hits: int = 0
    problem: str | None = None


def targets(files: Iterable[File]) -> list[Target]:
    """Every place that is known in files that processes use, the busiest last; descriptors are duplicated.

    For those processes only whose posts are counted now: who must not be stopped there must not be here.
    """
    found = []
    for file in files:
        counted = {one.pid for probed in list(file.places.values()) for one in probed.attachments}
        if not file.users or not counted:
            continue
        for pid in sorted(counted)[:_MOST_DIVIDED]:
            found += [
                Target(name, os.dup(file.descriptor), offset, pid or file.key[2])
                for name, offset in file.places
            ]
    return sorted(found, key=lambda target: target.name in _BUSY)


class Windows:
    """``step`` and ``take`` belong to one thread, the source's."""

    def __init__(self, config: WindowsConfig) -> None:
        self._config = config
        self._probes: Probes | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._done: queue.SimpleQueue[Window] = queue.SimpleQueue()
        #: Calls that may be probed in one window.
        self._most = max(1, int(config.cost * config.every * _NS / CALL_NS))
        self._next = time.monotonic() + min(config.every, 1.0)
        self._refused = False
        #: Whether the probes of a window are attached.
        self.watching = False
        #: Why there are no windows; said once.
        self.problem: str | None = None

    @property
    def open(self) -> bool:
        """Whether a window is open, or being closed."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def hits(self) -> int:
        """How many calls were probed, in all windows."""
        return hits(self._probes) if self._probes is not None else 0

    def step(self, files: Iterable[File]) -> None:
        """Open a window where it is time for one."""
        now = time.monotonic()
        if not self._config.enabled or self._refused or self.open or now < self._next:
            return
        wanted = targets(files)
        if not any(target.name == "poll_cq" for target in wanted):
            close(wanted)
            self._next = now + 1.0  # nobody uses RDMA yet
            return
        self._next = now + self._config.every
        self._thread = threading.Thread(
            target=self._watch, args=(wanted,), name="fabrictap-completions", daemon=True
        )
        self._thread.start()

    def take(self) -> list[Window]:
        """The windows that have ended since the last call."""
        found = []
        while not self._done.empty():
            found.append(self._done.get_nowait())
        return found

    def close(self) -> None:
        """End the window that is open, and let go of everything."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                _log.error("a window did not end within %g s", _CLOSE_SECONDS)
                return
        if self._probes is not None:
            self._probes.close()
            self._probes = None

    # --- in a thread of its own -------------------------------------------------------------------

    def _watch(self, wanted: list[Target]) -> None:
        began = time.monotonic_ns()
        try:
            if self._probes is None:
                self._probes = open_probes(_BUFFER)
            self._done.put(self._window(self._probes, wanted))
        except ProbesUnavailable as error:
            self._refused = True
            self._fail(began, f"{error}: completions are not watched")
        except (BpfError, OSError) as error:
            self._fail(began, f"completions could not be watched: {error}")
        finally:
            close(wanted)

    def _fail(self, began: int, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            _log.warning("%s", problem)
        self._done.put(Window(began, began, "failed", problem=problem))

    def _window(self, probes: Probes, wanted: list[Target]) -> Window:
        links: list[Link] = []
        refused = []
        began, before = time.monotonic(), hits(probes)
        try:
            for target in wanted:
                try:
                    made = attach_function(probes, target.name, target.descriptor, target.offset, target.pid)
                except (BpfError, OSError) as error:
                    refused.append(f"{target.name}: {error}")
                    continue
                links += detach(probes, made)
            if not links:
                raise OSError(0, "; ".join(refused) or "nothing to attach to")
            drain(probes)
            self.watching = True
            _log.debug("a window is open: %d probes", len(links))
            return self._read(probes, len(links))
        finally:
            Detaching(links[::-1]).wait()
            self.watching = False
            # They are run until they are detached: what that took beyond what it may delays the next window.
            taken = (hits(probes) - before) / self._most
            self._next = max(self._next, began + self._config.every * taken)
            _log.debug("the window has ended, its probes are detached")

    def _read(self, probes: Probes, attached: int) -> Window:
        began = time.monotonic_ns()
        completions = Completions(began)
        reader = Reader(probes, completions)
        deadline = began + int(self._config.window * _NS)
        end = "full"
        while not self._stop.is_set() and time.monotonic_ns() < deadline:
            reader.read(_READ_MS)
            if reader.hits > self._most:
                end = "cost"
                break
        ended = time.monotonic_ns()
        reader.read(0)
        groups = completions.groups()
        users = {(group.pid, group.context) for group in groups}
        devices = {user: name for user in users if (name := device_name(*user)) is not None}
        return Window(
            began, ended, end, attached, groups, devices, reader.lost + completions.refused, reader.hits
        )


def close(wanted: Iterable[Target]) -> None:
    for target in wanted:
        os.close(target.descriptor)
