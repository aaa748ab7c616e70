"""XIDs: errors that the driver reports as they happen. A thread of its own waits for them."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from typing import Any

from fabrictap.sources.nvml.devices import Device
from fabrictap.sources.nvml.library import Library, NvmlFailed

_log = logging.getLogger(__name__)
#: XIDs that wait to be counted; the oldest go, counted.
_MOST = 1024


class Xids:
    """Waits for XIDs of a set of GPUs until it is closed. ``take`` and ``close`` from the source's thread."""

    def __init__(self, library: Library, devices: list[Device], wait: float = 1.0) -> None:
        """``wait``: seconds that the thread takes to notice that it is to end. Raises NvmlFailed."""
        self.gpus = frozenset(device.id for device in devices)
        self.dropped = 0
        self._wait_ms = int(wait * 1000)
        self._library = library
        self._by_address = {device.address: device.id for device in devices}
        self._found: deque[tuple[str, int]] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failed: str | None = None
        nvml = library.nvml
        self._set = library.call(nvml.nvmlEventSetCreate)
        self._kind = nvml.nvmlEventTypeXidCriticalError
        registered = 0
        try:
            for device in devices:
                registered += self._register(device)
            if not registered:
                raise NvmlFailed(nvml.NVML_ERROR_NOT_SUPPORTED)
        except NvmlFailed:
            self._free()
            raise
        self._thread = threading.Thread(target=self._wait, name="nvml-xid", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> str | None:
        """Why it does not wait any more; None while it does."""
        return self._failed

    def take(self) -> list[tuple[str, int]]:
        """(hw.id, XID) of each that came since the last call."""
        with self._lock:
            found = list(self._found)
            self._found.clear()
        return found

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()

    def close(self, seconds: float) -> bool:
        """End the thread. False where it hangs in the driver; it is then left behind."""
        self._stop.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _register(self, device: Device) -> int:
        nvml = self._library.nvml
        try:
            if self._library.call(nvml.nvmlDeviceGetSupportedEventTypes, device.handle) & self._kind:
                self._library.call(nvml.nvmlDeviceRegisterEvents, device.handle, self._kind, self._set)
                return 1
        except NvmlFailed as error:
            if error.driver_gone:
                raise
            _log.debug("%s: no XID events: %s", device.id, error.reason)
        return 0

    def _wait(self) -> None:

        nvml = self._library.nvml
        while not self._stop.is_set():
            try:
                event = self._library.call(nvml.nvmlEventSetWait_v2, self._set, self._wait_ms)
            except NvmlFailed as error:
                if error.reason == "timeout":
                    continue
                self._failed = error.reason
                break
            if event.eventType == self._kind:
                address: Any = ctypes.cast(event.device, ctypes.c_void_p).value
                self._put(self._by_address.get(address), int(event.eventData))
        self._free()

    def _put(self, gpu: str | None, xid: int) -> None:
        if gpu is None:
            return
        with self._lock:
            if len(self._found) >= _MOST:
                self._found.popleft()
                self.dropped += 1
            self._found.append((gpu, xid))

    def _free(self) -> None:
        try:
            self._library.call(self._library.nvml.nvmlEventSetFree, self._set)
        except NvmlFailed as error:
            _log.debug("nvmlEventSetFree: %s", error.reason)
