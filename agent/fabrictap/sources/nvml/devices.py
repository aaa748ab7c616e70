"""The GPUs that NVML lists: what they are, what their NVLinks lead to, their MIG devices."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fabrictap.catalog import GPU_PRESENT, Metric
from fabrictap.ledger.gpus import Gpu, Link, MigDevice
from fabrictap.series import AttributeValue
from fabrictap.sources.nvml import fields, pci
from fabrictap.sources.nvml.library import Library, NvmlFailed

_UUID = re.compile(r"(GPU|MIG)-[A-Za-z0-9/-]{1,80}")
#: More links than any GPU has; NVML_NVLINK_MAX_LINKS is 36.
_MAX_LINKS = 36
_MAX_GPUS = 64
_MAX_MIGS = 16


@dataclass(slots=True)
class Mig:
    """A MIG device with its handle."""

    device: MigDevice
    handle: Any


@dataclass(slots=True)
class Device:
    """A GPU with its handle. ``handle`` is nvidia-ml-py's, ``address`` the same for our own calls."""

    gpu: Gpu
    handle: Any
    address: int
    gpm: bool = False
    migs: list[Mig] = field(default_factory=list)
    #: None: the driver does not know MIG on this GPU.
    mig_mode: bool | None = None

    @property
    def id(self) -> str:
        return self.gpu.id


@dataclass(slots=True)
class Scan:
    """What was found. ``failed``: index -> reason of the GPUs that do not even say who they are."""

    devices: list[Device] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


def count(library: Library) -> int:
    """How many GPUs there are. Raises NvmlFailed."""
    return min(int(library.call(library.nvml.nvmlDeviceGetCount)), _MAX_GPUS)


def identify(library: Library, index: int) -> tuple[str, Any]:
    """hw.id and handle of the GPU at ``index``. Raises NvmlFailed."""
    handle = library.call(library.nvml.nvmlDeviceGetHandleByIndex, index)
    return _uuid(library, handle, "GPU"), handle


def describe(library: Library, index: int, gpu: str, handle: Any) -> Device:
    """All that does not change often. Raises NvmlFailed where the GPU or the driver is gone."""
    nvml = library.nvml
    ask = _Asking(library, handle)
    info = ask(nvml.nvmlDeviceGetPciInfo)
    serial = ask(nvml.nvmlDeviceGetSerial)
    mode = ask(nvml.nvmlDeviceGetMigMode)
    known = Gpu(
        id=gpu,
        index=index,
        model=_text(ask(nvml.nvmlDeviceGetName)),
        pci=None if info is None else pci.address(info.domain, info.bus, info.device),
        numa=ask(nvml.nvmlDeviceGetNumaNodeId),
        serial=_text(serial) if serial not in ("", "0") else None,
        driver=_text(ask(lambda _: nvml.nvmlSystemGetDriverVersion())),
        firmware=_text(ask(nvml.nvmlDeviceGetVbiosVersion)),
        links=_links(ask, library, handle),
    )
    support = ask(nvml.nvmlGpmQueryDeviceSupport)
    device = Device(
        gpu=known,
        handle=handle,
        address=ctypes.cast(handle, ctypes.c_void_p).value or 0,
        gpm=support is not None and bool(support.isSupportedDevice),
        mig_mode=None if mode is None else mode[0] == nvml.NVML_DEVICE_MIG_ENABLE,
    )
    if device.mig_mode:
        device.migs = _migs(ask, library, gpu)
        device.gpu = replace(known, migs=tuple(mig.device for mig in device.migs))
    return device


def place(devices: list[Device], sysfs: str) -> None:
    """Add what sysfs knows (the nearest RDMA devices, NUMA nodes), and which remote ends are GPUs here."""
    rdma = pci.rdma_places(sysfs)
    by_address = {device.gpu.pci: device.id for device in devices if device.gpu.pci is not None}
    for device in devices:
        gpu = device.gpu
        links = tuple(
            replace(link, remote_gpu=by_address.get(link.remote_pci)) if link.remote_pci is not None else link
            for link in gpu.links
        )
        device.gpu = gpu = replace(gpu, links=links)
        if gpu.pci is None:
            continue
        where = pci.place(Path(sysfs) / "bus/pci/devices" / gpu.pci)
        if where is not None:
            names, how_near = pci.nearest(where, rdma)
            numa = where.numa if where.numa is not None else gpu.numa
            device.gpu = replace(gpu, rdma=names, rdma_distance=how_near, numa=numa)


def link_attributes(gpu: Gpu, link: Link) -> dict[str, AttributeValue]:
    """The attributes that every series of a link has; what is not known is left out."""
    known: dict[str, AttributeValue | None] = {
        "hw.id": gpu.id,
        "gpu.nvlink.link": link.number,
        "gpu.nvlink.remote.type": link.remote_type,
        "gpu.nvlink.remote.pci.address": link.remote_pci,
        "gpu.nvlink.remote.gpu": link.remote_gpu,
        "gpu.nvlink.remote.link": link.remote_link,
    }
    return {name: value for name, value in known.items() if value is not None}


def present(gpu: Gpu) -> Iterator[tuple[Metric, dict[str, AttributeValue], int]]:
    """That a GPU and its MIG devices are there, with what is known of them; as values of Live.write."""
    known: dict[str, AttributeValue | None] = {
        "hw.id": gpu.id,
        "hw.model": gpu.model,
        "hw.serial_number": gpu.serial,
        "hw.firmware_version": gpu.firmware,
        "hw.driver_version": gpu.driver,
        "gpu.index": gpu.index,
        "gpu.pci.address": gpu.pci,
        "gpu.numa.node": gpu.numa,
        "gpu.rdma.devices": ",".join(gpu.rdma) or None,
        "gpu.rdma.distance": gpu.rdma_distance,
    }
    yield GPU_PRESENT, {name: value for name, value in known.items() if value is not None}, 1
    for mig in gpu.migs:
        yield GPU_PRESENT, {"hw.id": mig.id, "hw.parent": gpu.id}, 1


class _Asking:
    """Asks one GPU. What the driver does not have is None; that it or the GPU is gone raises NvmlFailed."""

    def __init__(self, library: Library, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def __call__(self, function: Any, *arguments: Any) -> Any:
        try:
            return self._library.call(function, self._handle, *arguments)
        except NvmlFailed as error:
            if error.driver_gone or error.reason == "gpu_lost":
                raise
            return None


def _links(ask: _Asking, library: Library, handle: Any) -> tuple[Link, ...]:
    nvml = library.nvml
    states: dict[int, bool] = {}
    for number in range(_MAX_LINKS):
        state = ask(nvml.nvmlDeviceGetNvLinkState, number)
        if state is None:
            if not states and number == 0:
                return ()
            continue
        states[number] = state == nvml.NVML_FEATURE_ENABLED
    up = [number for number, active in states.items() if active]
    numbers = _field_values(library, handle, [(fields.REMOTE_LINK, number) for number in up])
    links = []
    for number, active in states.items():
        link = Link(number, active)
        if active:
            kind = ask(nvml.nvmlDeviceGetNvLinkRemoteDeviceType, number)
            info = ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, number)
            remote = None
            # a switch that is hidden from this node has an address of zeros
            if info is not None and (info.domain or info.bus or info.device):
                remote = pci.address(info.domain, info.bus, info.device)
            link = replace(
                link,
                remote_type=None if kind is None else fields.REMOTE_TYPES.get(kind, "unknown"),
                remote_pci=remote,
                remote_link=numbers.get((fields.REMOTE_LINK, number)),
            )
        links.append(link)
    return tuple(links)


def _field_values(library: Library, handle: Any, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The fields that have a number; those that have none are left out."""
    if not wanted:
        return {}
    try:
        values = library.call(library.nvml.nvmlDeviceGetFieldValues, handle, wanted)
    except NvmlFailed as error:
        if error.driver_gone or error.reason == "gpu_lost":
            raise
        return {}
    return {
        key: number
        for key, value in zip(wanted, values, strict=True)
        if value.nvmlReturn == 0 and (number := number_of(value)) is not None
    }


def number_of(value: Any) -> int | None:
    """The number of an nvmlFieldValue_t; None where its type is not known."""
    read = {
        0: lambda: int(value.value.dVal),
        1: lambda: int(value.value.uiVal),
        2: lambda: int(value.value.ulVal),
        3: lambda: int(value.value.ullVal),
        4: lambda: int(value.value.sllVal),
        5: lambda: int(value.value.siVal),
        6: lambda: int(value.value.usVal),
    }.get(value.valueType)
    return None if read is None else read()


def _migs(ask: _Asking, library: Library, gpu: str) -> list[Mig]:
    nvml = library.nvml
    found = []
    most = ask(nvml.nvmlDeviceGetMaxMigDeviceCount) or 0
    for index in range(min(most, _MAX_MIGS)):
        handle = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, index)
        if handle is None:
            continue
        try:
            device = MigDevice(
                _uuid(library, handle, "MIG"),
                gpu,
                int(library.call(nvml.nvmlDeviceGetGpuInstanceId, handle)),
                int(library.call(nvml.nvmlDeviceGetComputeInstanceId, handle)),
            )
        except NvmlFailed as error:
            if error.driver_gone:
                raise
            continue  # it has just been taken apart
        found.append(Mig(device, handle))
    return found


def _uuid(library: Library, handle: Any, kind: str) -> str:
    text = _text(library.call(library.nvml.nvmlDeviceGetUUID, handle)) or ""
    match = _UUID.fullmatch(text)
    if match is None or match[1] != kind:
        raise NvmlFailed(library.nvml.NVML_ERROR_UNKNOWN)
    return text


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value[:96] if isinstance(value, str) and value else None
