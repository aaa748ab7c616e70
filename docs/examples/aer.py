"""A source: PCIe errors of RDMA devices, as the kernel counts them (Advanced Error Reporting)."""

from __future__ import annotations

from pathlib import Path

from fabrictap import catalog
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceUnavailable

#: File (Linux, sysfs-bus-pci-devices-aer_stats) -> (line that sums it up, error.type).
_FILES = {
    "aer_dev_correctable": ("TOTAL_ERR_COR", "pcie_correctable"),
    "aer_dev_nonfatal": ("TOTAL_ERR_NONFATAL", "pcie_non_fatal"),
    "aer_dev_fatal": ("TOTAL_ERR_FATAL", "pcie_fatal"),
}
Sample = dict[tuple[str, str], int]


class Aer:
    """Reads three small files of each device."""

    name, interval, deadline, waited = "aer", 10.0, 30.0, 0.0

    def __init__(self, series: SeriesTable, sysfs: str = "/sys") -> None:
        self.errors: dict[str, int] = {}
        self._series = series
        self._root = Path(sysfs, "class/infiniband")

    def open(self) -> None:
        if not any(self._root.glob("*")):
            raise SourceUnavailable(f"no RDMA device below {self._root}")

    def sample(self) -> Sample:
        """In a thread of its own: may block, and touches nothing that others see."""
        found: Sample = {}
        for device in sorted(self._root.glob("*")):
            for file, (line, error) in _FILES.items():
                try:
                    text = (device / "device" / file).read_text(encoding="ascii")
                    found[device.name, error] = int(dict(row.split() for row in text.splitlines())[line])
                except FileNotFoundError:
                    continue  # no AER for this device, and that is no fault
                except (OSError, KeyError, ValueError) as problem:
                    kind = type(problem).__name__  # one value is lost, the others are not
                    self.errors[kind] = self.errors.get(kind, 0) + 1
        return found

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Under the node's lock: does not block. ``observe`` knows about counters that were reset."""
        for (device, error), count in sample.items():
            attributes = {"hw.id": device, "hw.type": "network", "error.type": error}
            self._series.series(catalog.ERRORS, attributes, now_ns).observe(count, now_ns)

    def close(self) -> None:
        """Nothing is kept open."""
