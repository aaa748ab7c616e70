"""What ``fabrictap doctor`` says of GPUs: the source itself looks, for a second, into a ledger of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fabrictap.config import Config
from fabrictap.ledger import Ledger
from fabrictap.ledger.gpus import Gpu
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.nvml.fast import GPM_INTERVAL
from fabrictap.sources.nvml.source import Nvml

#: Seconds after which a driver that does not answer is given up.
_PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU. ``provided``: provider -> metrics that it delivers; ``missing``: reason -> metrics."""

    gpu: Gpu
    trouble: str | None
    provided: dict[str, list[str]]
    missing: dict[str, list[str]]


@dataclass(slots=True)
class Report:
    """``problem``: why there is nothing to say of any GPU."""

    problem: str | None = None
    gpus: list[GpuReport] = field(default_factory=list)


def look(config: Config) -> Report:
    """Look at every GPU. Never longer than some 20 s: what hangs is left behind in its thread."""
    report = Report()
    given_up = threading.Event()
    thread = threading.Thread(target=_look, args=(config, report, given_up), name="doctor-gpus", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        given_up.set()
        return Report(f"the driver has not answered for {_PATIENCE:g} s")
    return report


def on_pci(sysfs: str) -> bool:
    """Whether there is an NVIDIA display controller, driver or not."""
    for device in Path(sysfs, "bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii") for name in ("vendor", "class"))
        except (OSError, UnicodeDecodeError):
            continue
        if vendor.strip() == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def describe(one: GpuReport) -> str:
    """A GPU in one line."""
    gpu = one.gpu
    up = sum(link.up for link in gpu.links)
    parts = [
        gpu.model or "GPU",
        f"at {gpu.pci}" if gpu.pci else "",
        f"{up} of {len(gpu.links)} NVLinks up" if gpu.links else "no NVLink",
        f"{len(gpu.migs)} MIG devices" if gpu.migs else "",
        f"nearest RDMA device {', '.join(gpu.rdma)} ({gpu.rdma_distance})" if gpu.rdma else "",
    ]
    # of a provider that delivers few metrics, which
    ways = (
        f"{provider}: {', '.join(names) if len(names) < 4 else f'{len(names)} metrics'}"
        for provider, names in sorted(one.provided.items())
    )
    return "; ".join((", ".join(part for part in parts if part), *ways))


def _look(config: Config, report: Report, given_up: threading.Event) -> None:
    ledger = Ledger(config)
    # nobody waits for XIDs here
    settings = msgspec.structs.replace(config.sources.nvml, xid=False)
    source = Nvml(settings, SeriesTable(config.limits.series), ledger, config.sources.infiniband.sysfs)
    try:
        source.open()
        if given_up.is_set():
            return
        sample = source.sample()
        source.fold(sample, time.time_ns())
        for wait in (0.0, GPM_INTERVAL + 0.1):
            if given_up.wait(wait):
                return
            source.read_counters()
            source.fast.fold(time.time_ns())
        report.gpus = [_one(gpu, ledger, sample.troubles.get(gpu.id)) for gpu in ledger.gpus]
    except SourceUnavailable as error:
        report.problem = str(error)
    finally:
        source.close()


def _one(gpu: Gpu, ledger: Ledger, trouble: str | None) -> GpuReport:
    provided: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for metric, (provider, reason) in sorted(ledger.providers.of(gpu.id).items()):
        if provider is not None:
            provided.setdefault(provider, []).append(metric)
        else:
            missing.setdefault(reason, []).append(metric)
    return GpuReport(gpu, trouble, provided, missing)
