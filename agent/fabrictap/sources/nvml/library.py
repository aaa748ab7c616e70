"""libnvidia-ml.so.1, loaded once for nvidia-ml-py and for our own fast calls, and unloaded again.

Unloading matters: after an upgrade of the driver the old library, still mapped, refuses to talk to the new
kernel module (LIB_RM_VERSION_MISMATCH) until it is loaded afresh.
"""

from __future__ import annotations

import _ctypes
import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fabrictap.sources import SourceAbsent, SourceUnavailable

_log = logging.getLogger(__name__)
T = TypeVar("T")

SUCCESS = 0
NOT_SUPPORTED = 3
FUNCTION_NOT_FOUND = 13

#: nvmlReturn_t -> one of fabrictap.ledger.providers.REASONS.
_REASONS = {
    1: "driver_not_loaded",  # UNINITIALIZED: somebody shut the library down, or the driver went
    2: "not_supported",  # INVALID_ARGUMENT: an older driver does not know the field
    3: "not_supported",
    4: "no_permission",
    6: "no_data",  # NOT_FOUND
    9: "driver_not_loaded",
    10: "timeout",
    12: "library_missing",
    13: "function_not_found",
    15: "gpu_lost",
    16: "gpu_lost",  # RESET_REQUIRED
    18: "version_mismatch",
    19: "in_use",
    21: "no_data",
    25: "not_supported",  # ARGUMENT_VERSION_MISMATCH: an older driver does not know the structure
    26: "not_supported",  # DEPRECATED
    27: "no_data",  # NOT_READY
    28: "gpu_lost",  # GPU_NOT_FOUND
}
#: What is said of the driver as a whole: the library must be loaded anew.
_DRIVER_GONE = frozenset({1, 9, 12, 18})
_MEND = {
    "driver_not_loaded": "load the NVIDIA driver (modprobe nvidia)",
    "version_mismatch": "the driver was upgraded while the old one is loaded: reload it or reboot",
    "no_permission": "run as a user who may open /dev/nvidiactl",
}


class NvmlFailed(Exception):  # noqa: N818 - what NVML answered, not a fault of the program
    """A call was refused. ``reason`` is one of fabrictap.ledger.providers.REASONS."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML error {code}")
        self.code = code
        self.reason = reason_of(code)

    @property
    def driver_gone(self) -> bool:
        """Whether nothing will work until the library is loaded anew."""
        return self.code in _DRIVER_GONE


def reason_of(code: int) -> str:
    """The reason for an nvmlReturn_t that is not SUCCESS."""
    return _REASONS.get(code, "error")


class Library:
    """The loaded and initialised library.

    Raises SourceUnavailable where it cannot be, SourceAbsent where there is neither it nor the driver.
    """

    def __init__(self, path: str, sysfs: str = "/sys") -> None:
        # 5.6 MiB that nodes without GPUs need not pay
        import pynvml  # noqa: PLC0415

        try:
            self._handle = ctypes.CDLL(path)
        except OSError as error:
            if not Path(sysfs, "module", "nvidia").exists():
                raise SourceAbsent("no NVIDIA driver on this node") from None
            raise SourceUnavailable(f"no library of the NVIDIA driver, which is loaded: {error}") from None
        self.nvml: Any = pynvml
        # nvidia-ml-py knows one name of the library only, and keeps pointers into the last one
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml.nvmlLib = self._handle
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.unload()
            reason = reason_of(error.value)
            mend = f"; {_MEND[reason]}" if reason in _MEND else ""
            raise SourceUnavailable(f"NVML of {path} does not start: {error}{mend}") from None

    def address(self, name: str) -> int:
        """Where a function is; 0 where this version of the library has none."""
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            return 0
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call one of nvidia-ml-py's functions. Raises NvmlFailed."""
        try:
            return function(*arguments)
        except self.nvml.NVMLError as error:
            raise NvmlFailed(error.value) from None
        except UnicodeDecodeError:
            raise NvmlFailed(self.nvml.NVML_ERROR_UNKNOWN) from None

    def restart(self) -> None:
        """Shut down and initialise, without unloading. Raises NvmlFailed. Handles from before are void."""
        self.call(self.nvml.nvmlShutdown)
        self.call(self.nvml.nvmlInit)

    def close(self) -> None:
        """Shut down and unload. Not while a call has not returned."""
        try:
            self.nvml.nvmlShutdown()
        except self.nvml.NVMLError as error:
            _log.debug("nvmlShutdown: %s", error)
        self.unload()

    def unload(self) -> None:
        """Unload without another word to the library."""
        if self.nvml.nvmlLib is self._handle:
            self.nvml.nvmlLib = None
            self.nvml._nvmlGetFunctionPointer_cache.clear()
        _ctypes.dlclose(self._handle._handle)
