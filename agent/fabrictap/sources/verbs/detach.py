"""Closing links without waiting for each.

The kernel waits for every processor before it gives a probe back (about 100 ms for a uprobe on Linux 6.18),
but for several at once where several threads ask. The threads are daemons and end when nothing is to do:
what is not closed when the agent ends, the kernel closes with the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from fabrictap.ext.bpf import Link

#: As many as a library has probes: the last to be removed must not wait for the first.
_THREADS = 32


class Detaching:
    """Links that are being closed."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._waiting: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self._left = len(links)
        self._lock = threading.Lock()
        self._finished = threading.Event()
        for link in links:
            self._waiting.put(link)
        if not links:
            self._finished.set()
        for _ in range(min(_THREADS, len(links))):
            threading.Thread(target=self._close, name="fabrictap-detach", daemon=True).start()

    def _close(self) -> None:
        while True:
            try:
                link = self._waiting.get_nowait()
            except queue.Empty:
                return
            link.close()
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Until all are closed; False where that took longer."""
        return self._finished.wait(seconds)
