"""Makes the fast tier's batches of each GPU, and owns the GPM samples that they use."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fabrictap.ext.nvml import Fields, Gpm
from fabrictap.ledger.providers import GPM, NVML, Providers
from fabrictap.series import SeriesTable
from fabrictap.sources.nvml import wanted
from fabrictap.sources.nvml.batch import Batch, Desk
from fabrictap.sources.nvml.devices import Device
from fabrictap.sources.nvml.fast import GPM_INTERVAL, Fast
from fabrictap.sources.nvml.library import Library, NvmlFailed

_log = logging.getLogger(__name__)
Make = Callable[[Sequence[Any], int], Any]


class Batches:
    """``prepare`` and ``free`` in the source's thread, ``update`` under the node's lock."""

    def __init__(
        self, gpm: bool, table: SeriesTable, providers: Providers, clock: Callable[[], float]
    ) -> None:
        self._gpm = gpm
        self._table = table
        self._providers = providers
        self._clock = clock
        #: (GPU, GPU instance or None) -> two samples, as nvidia-ml-py's handles.
        self._samples: dict[tuple[str, int | None], tuple[Any, Any]] = {}
        #: How often the samples were given back, and what each GPU's batches point to.
        self._generation = 0
        self._made_of: dict[str, tuple[int, int]] = {}

    def update(
        self, fast: Fast, library: Library, before: Device | None, device: Device, now_ns: int
    ) -> None:
        """Ask ``device`` for what it has."""
        if not device.address:
            fast.replace(device.id, ())
            return
        made_of = (self._generation, device.address)
        if before is not None and (before.gpu, before.gpm) == (device.gpu, device.gpm):
            if self._made_of.get(device.id) == made_of:
                return
            if fast.renew(device.id, self._makes(library, device), now_ns):
                self._made_of[device.id] = made_of
                return
        self._made_of[device.id] = made_of
        batches = []
        makes = self._makes(library, device)
        for key, make in makes.items():
            provider, instance = key
            if provider == NVML:
                figures = wanted.by_field_values(device.gpu)
            elif instance is None:
                figures = list(wanted.by_gpm(device.gpu))
            else:
                mig = next(mig for mig in device.gpu.migs if mig.gpu_instance == instance)
                figures = [wanted.memory_bandwidth(mig.id, {"hw.parent": device.id})]
            interval = GPM_INTERVAL if provider == GPM else 0.0
            desk = Desk(self._table, self._providers, self._clock)
            batches.append(Batch(key, device.id, figures, make, desk, interval=interval))
        fast.replace(device.id, batches)

    def prepare(self, library: Library, device: Device) -> None:
        """Take the GPM samples that the device needs. In the source's thread, beside nothing else."""
        if not (self._gpm and device.gpm):
            return
        if not (library.address("nvmlGpmSampleGet") and library.address("nvmlGpmMetricsGet")):
            return
        # of several compute instances in one GPU instance the first stands for all
        instances: list[int | None] = [None, *dict.fromkeys(mig.gpu_instance for mig in device.gpu.migs)]
        for instance in instances:
            key = (device.id, instance)
            if key in self._samples:
                continue
            try:
                one, other = (library.call(library.nvml.nvmlGpmSampleAlloc) for _ in range(2))
            except NvmlFailed as error:
                _log.warning("%s: no GPM sample: %s", device.id, error.reason)
                return
            self._samples[key] = (one, other)

    def free(self, library: Library) -> None:
        """Give all GPM samples back. Not while a call has not returned."""
        for pair in self._samples.values():
            for sample in pair:
                try:
                    library.call(library.nvml.nvmlGpmSampleFree, sample)
                except NvmlFailed as error:
                    _log.debug("nvmlGpmSampleFree: %s", error.reason)
        self._samples.clear()
        self._generation += 1

    def _makes(self, library: Library, device: Device) -> dict[tuple[str, int | None], Make]:
        makes: dict[tuple[str, int | None], Make] = {}
        get = library.address("nvmlDeviceGetFieldValues")
        if get:
            makes[NVML, None] = lambda keys, totals: Fields(get, device.address, keys, totals)
        names = ("nvmlGpmSampleGet", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet")
        functions = tuple(library.address(name) for name in names)
        for (gpu, instance), samples in self._samples.items():
            first, second = (ctypes.cast(sample, ctypes.c_void_p).value for sample in samples)
            if gpu == device.id and first and second and (instance is None or functions[1]):
                makes[GPM, instance] = _gpm(functions, device.address, instance, (first, second))
        return makes


def _gpm(functions: tuple[int, ...], device: int, instance: int | None, pair: tuple[int, int]) -> Make:
    sample, mig_sample, compare = functions
    return lambda keys, totals: Gpm(sample, mig_sample, compare, device, instance, pair, keys, totals)
