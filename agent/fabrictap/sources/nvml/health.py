"""The slow tier: memory, links, errors, power and states of one GPU, each read by itself.

What fails costs its own figure and says why. That the GPU or the driver is gone ends the reading.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fabrictap import catalog
from fabrictap.catalog import Metric
from fabrictap.ledger.gpus import Link
from fabrictap.series import AttributeValue
from fabrictap.sources.nvml import fields
from fabrictap.sources.nvml.devices import Device, Mig, link_attributes, number_of
from fabrictap.sources.nvml.figures import Part, Point, Reading
from fabrictap.sources.nvml.library import Library, NvmlFailed

_GPU: dict[str, AttributeValue] = {"hw.type": "gpu"}
#: Seconds until fields that were not supported are asked for again.
_RETRY = 600.0

_GPU_FIELDS = (
    *fields.GPU_ERRORS,
    fields.MEMORY_TEMPERATURE,
    fields.REMAPPED_PENDING,
    fields.REMAPPED_FAILURE,
    fields.RECOVERY_ACTION,
    fields.LINK_SPEED_COMMON,
)
_LINK_FIELDS = (*fields.LINK_ERRORS, fields.LINK_SPEED)
Key = tuple[int, int]


@dataclass(slots=True)
class Answer:
    """One field: its number, or the reason why there is none."""

    number: int | None
    reason: str = ""


class Health:
    """Reads GPUs. Remembers which fields each has, so that it asks for no others. One thread at a time."""

    def __init__(self, library: Library, clock: Callable[[], float]) -> None:
        self._library = library
        self._nvml = library.nvml
        self._clock = clock
        self._without: dict[str, tuple[float, dict[Key, Answer]]] = {}

    def forget(self, gpus: Iterable[str]) -> None:
        """These GPUs have gone."""
        for gpu in gpus:
            self._without.pop(gpu, None)

    def read(self, device: Device) -> Reading:
        """All figures of a GPU, its state included. Raises NvmlFailed where it or the driver is gone."""
        reading = Reading()
        answers = self._fields(device)
        self._memory(device.handle, reading)
        self._bar1(device.handle, reading)
        self._activity(device, reading, answers)
        self._errors(device, reading, answers)
        links_down = self._links(device, reading, answers)
        self._states(device, reading, answers)
        self._status(reading, answers, degraded=links_down)
        return reading

    def read_mig(self, mig: Mig) -> Reading:
        """The figures of a MIG device. Raises NvmlFailed where it, its GPU or the driver is gone."""
        reading = Reading()
        self._memory(mig.handle, reading, {"hw.parent": mig.device.gpu})
        return reading

    # --- one thing each ---------------------------------------------------------------------------

    def _memory(self, handle: Any, reading: Reading, labels: dict[str, Any] | None = None) -> None:
        metrics = (catalog.GPU_MEMORY_LIMIT, catalog.GPU_MEMORY_USAGE, catalog.GPU_MEMORY_UTILIZATION)
        nvml = self._nvml
        with_reserve = getattr(nvml, "nvmlMemory_v2", None)
        info, reason = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle, with_reserve)
        if info is None:
            # before R510 what the driver keeps for itself counts as used
            info, reason = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        if info is None or not info.total:
            _fail(reading, metrics, reason or "no_data")
            return
        values = (info.total, info.used, info.used / info.total)
        reading.points += [Point(m, v, labels or {}) for m, v in zip(metrics, values, strict=True)]

    def _bar1(self, handle: Any, reading: Reading) -> None:
        info, reason = self._ask(self._nvml.nvmlDeviceGetBAR1MemoryInfo, handle)
        if info is None:
            _fail(reading, (catalog.GPU_BAR1_LIMIT, catalog.GPU_BAR1_USAGE), reason)
            return
        reading.points.append(Point(catalog.GPU_BAR1_LIMIT, info.bar1Total))
        reading.points.append(Point(catalog.GPU_BAR1_USAGE, info.bar1Used))

    def _activity(self, device: Device, reading: Reading, answers: dict[Key, Answer]) -> None:
        nvml, handle = self._nvml, device.handle

        def one(metric: Metric, function: Any, *arguments: Any, worth: Callable[[Any], float | int],
                labels: dict[str, AttributeValue] | None = None, part: Part = None) -> None:  # fmt: skip
            value, reason = self._ask(function, handle, *arguments)
            if value is None:
                reading.failed[metric, part] = reason
            else:
                reading.points.append(Point(metric, worth(value), labels or {}, part))

        one(catalog.GPU_UTILIZATION, nvml.nvmlDeviceGetUtilizationRates, worth=lambda rates: rates.gpu / 100)
        one(catalog.GPU_POWER, nvml.nvmlDeviceGetPowerUsage, worth=lambda mw: mw / 1000, labels=_GPU)
        # whole joules: a counter of integers stays exact
        one(
            catalog.GPU_ENERGY,
            nvml.nvmlDeviceGetTotalEnergyConsumption,
            worth=lambda mj: int(mj) // 1000,
            labels=_GPU,
        )
        one(
            catalog.GPU_TEMPERATURE,
            nvml.nvmlDeviceGetTemperature,
            nvml.NVML_TEMPERATURE_GPU,
            worth=int,
            labels=_GPU | {"hw.sensor_location": "gpu"},
            part="gpu",
        )
        memory = answers[fields.MEMORY_TEMPERATURE, 0]
        if memory.number:  # 0: the board has no such sensor
            labels = _GPU | {"hw.sensor_location": "memory"}
            reading.points.append(Point(catalog.GPU_TEMPERATURE, memory.number, labels, "memory"))
        else:
            reading.failed[catalog.GPU_TEMPERATURE, "memory"] = memory.reason or "not_supported"
        generation, reason = self._ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle)
        width, reason_too = self._ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle)
        speed = None
        if generation is not None and width is not None:
            speed = fields.pcie_bandwidth(generation, width)
        if speed is None:
            reading.failed[catalog.PCIE_LIMIT, None] = reason or reason_too or "no_data"
        else:
            reading.points.append(Point(catalog.PCIE_LIMIT, speed))
        function = nvml.nvmlDeviceGetCurrentClocksEventReasons
        bits, reason = self._ask(function, handle)
        if bits is None and reason == "function_not_found":  # before R535 it has another name
            bits, reason = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        if bits is None:
            reading.failed[catalog.GPU_CLOCKS_REASON, None] = reason
        else:
            reading.points += [
                Point(catalog.GPU_CLOCKS_REASON, int(bool(bits & bit)), {"gpu.clocks.reason": name})
                for bit, name in fields.CLOCK_REASONS.items()
            ]

    def _errors(self, device: Device, reading: Reading, answers: dict[Key, Answer]) -> None:
        for number, (kind, span) in fields.GPU_ERRORS.items():
            answer = answers[number, 0]
            if answer.number is None and span is not None:
                answer = self._ecc(device, kind, span)
            part = kind if span is None else f"{kind}.{span}"
            if answer.number is None:
                reading.failed[catalog.ERRORS, part] = answer.reason
            else:
                labels = _GPU | {"error.type": kind} | ({} if span is None else {"gpu.ecc.span": span})
                reading.points.append(Point(catalog.ERRORS, answer.number, labels, part))

    def _ecc(self, device: Device, kind: str, span: str) -> Answer:
        nvml = self._nvml
        count, reason = self._ask(
            nvml.nvmlDeviceGetTotalEccErrors,
            device.handle,
            nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED
            if kind == "ecc_corrected"
            else nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC if span == "volatile" else nvml.NVML_AGGREGATE_ECC,
        )
        return Answer(count, reason)

    def _links(self, device: Device, reading: Reading, answers: dict[Key, Answer]) -> bool:
        """Returns whether links are down while others are up."""
        states: list[bool] = []
        for link in device.gpu.links:
            labels = link_attributes(device.gpu, link)
            state, reason = self._ask(self._nvml.nvmlDeviceGetNvLinkState, device.handle, link.number)
            if state is None:
                _fail(reading, (catalog.NVLINK_UP, catalog.NVLINK_LIMIT), reason, link.number)
                continue
            states.append(bool(state))
            reading.points.append(Point(catalog.NVLINK_UP, int(bool(state)), labels, link.number))
            speed = answers[fields.LINK_SPEED, link.number]
            if not speed.number:
                speed = answers[fields.LINK_SPEED_COMMON, 0]
            if state and speed.number:
                megabyte = 10**6
                reading.points.append(
                    Point(catalog.NVLINK_LIMIT, speed.number * megabyte, labels, link.number)
                )
            else:
                reading.failed[catalog.NVLINK_LIMIT, link.number] = speed.reason or "no_data"
            self._link_errors(device, link, reading, answers)
        return any(states) and not all(states)

    def _link_errors(self, device: Device, link: Link, reading: Reading, answers: dict[Key, Answer]) -> None:
        found: dict[str, Answer] = {}
        for number, kind in fields.LINK_ERRORS.items():
            found[kind] = _better(found.get(kind), answers[number, link.number])
        if all(answer.number is None for answer in found.values()):
            for number, kind in fields.LEGACY_LINK_ERRORS.items():
                count, reason = self._ask(
                    self._nvml.nvmlDeviceGetNvLinkErrorCounter, device.handle, link.number, number
                )
                found[kind] = _better(found.get(kind), Answer(count, reason))
        for kind, answer in found.items():
            part = f"{kind}.{link.number}"
            if answer.number is None:
                reading.failed[catalog.ERRORS, part] = answer.reason
            else:
                labels: dict[str, AttributeValue] = {"error.type": kind, "gpu.nvlink.link": link.number}
                reading.points.append(Point(catalog.ERRORS, answer.number, _GPU | labels, part))

    def _states(self, device: Device, reading: Reading, answers: dict[Key, Answer]) -> None:
        nvml = self._nvml
        for state, field in (("pending", fields.REMAPPED_PENDING), ("failed", fields.REMAPPED_FAILURE)):
            answer = answers[field, 0]
            if answer.number is None:
                reading.failed[catalog.GPU_ROW_REMAPPING, state] = answer.reason
            else:
                labels = {"gpu.row_remap.state": state}
                value = int(bool(answer.number))
                reading.points.append(Point(catalog.GPU_ROW_REMAPPING, value, labels, state))
        info = nvml.c_nvmlGpuFabricInfo_v2_t()  # since R545
        done, reason = self._ask(nvml.nvmlDeviceGetGpuFabricInfoV, device.handle, ctypes.byref(info))
        name = fields.FABRIC_STATES.get(info.state) if done is not None else None
        if name is None:
            reading.failed[catalog.GPU_FABRIC, None] = reason or "no_data"
        else:
            reading.points.append(Point(catalog.GPU_FABRIC, 1, {"gpu.fabric.state": name}))
        if device.mig_mode is None:
            reading.failed[catalog.GPU_MIG_MODE, None] = "not_supported"
        else:
            reading.points.append(Point(catalog.GPU_MIG_MODE, int(device.mig_mode)))
        state, reason = self._ask(nvml.nvmlSystemGetConfComputeState)
        if state is None:
            reading.failed[catalog.GPU_CONFIDENTIAL, None] = reason
        else:
            reading.points.append(Point(catalog.GPU_CONFIDENTIAL, int(bool(state.ccFeature))))

    @staticmethod
    def _status(reading: Reading, answers: dict[Key, Answer], *, degraded: bool) -> None:
        action = answers[fields.RECOVERY_ACTION, 0].number or 0
        if answers[fields.REMAPPED_FAILURE, 0].number or action in fields.RECOVERY_FAILED:
            now = "failed"
        elif degraded or action or answers[fields.REMAPPED_PENDING, 0].number:
            now = "degraded"
        else:
            now = "ok"
        reading.points += status(now)

    # --- asking -----------------------------------------------------------------------------------

    def _ask(self, function: Any, *arguments: Any) -> tuple[Any, str]:
        """(what it returned, ""), or (None, the reason)."""
        try:
            return self._library.call(function, *arguments), ""
        except NvmlFailed as error:
            if error.driver_gone or error.reason == "gpu_lost":
                raise
            return None, error.reason

    def _fields(self, device: Device) -> dict[Key, Answer]:
        """Every field that is wanted of the GPU and of its links."""
        wanted: list[Key] = [(field, 0) for field in _GPU_FIELDS]
        wanted += [(field, link.number) for link in device.gpu.links for field in _LINK_FIELDS]
        now = self._clock()
        retry_at, without = self._without.get(device.id, (0.0, {}))
        if now >= retry_at:
            without = {}
        answers: dict[Key, Answer] = {key: without.get(key, Answer(None, "no_data")) for key in wanted}
        asked = [key for key in wanted if key not in without]
        values, reason = self._ask(self._nvml.nvmlDeviceGetFieldValues, device.handle, asked)
        if values is None:
            return {key: Answer(None, reason) for key in wanted}
        for key, value in zip(asked, values, strict=True):
            if value.nvmlReturn:
                failed = NvmlFailed(value.nvmlReturn)
                if failed.reason == "gpu_lost":
                    raise failed
                answers[key] = Answer(None, failed.reason)
                if failed.reason == "not_supported":
                    without[key] = answers[key]
            else:
                number = number_of(value)
                answers[key] = Answer(number, "" if number is not None else "error")
        self._without[device.id] = (retry_at if now < retry_at else now + _RETRY, without)
        return answers


def status(now: str) -> list[Point]:
    """The state of a GPU: one point for each."""
    return [
        Point(catalog.HW_STATUS, int(now == state), _GPU | {"hw.state": state})
        for state in catalog.HW_STATE.values
    ]


def _better(one: Answer | None, other: Answer) -> Answer:
    if one is None or (one.number is None and (other.number is not None or one.reason == "not_supported")):
        return other
    return one


def _fail(reading: Reading, metrics: Iterable[Metric], reason: str, part: Part = None) -> None:
    for metric in metrics:
        reading.failed[metric, part] = reason
