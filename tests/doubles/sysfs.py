"""A stand-in for /sys of a node with mlx5 HCAs on RoCE: one port each, about 50 counter files a port.

Laid out as Linux does it: devices/ holds the directories, class/infiniband, class/net and the PCI driver are
symbolic links. Names and formats: Documentation/ABI/stable/sysfs-class-infiniband,
drivers/infiniband/core/sysfs.c, drivers/infiniband/hw/mlx5/counters.c. Values are made up; files of a real
sysfs cost more to read, because the kernel asks the device.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_HCAS = 16
#: What mlx5 offers; all but the first few entries are empty.
GID_ENTRIES = 256
EMPTY_GID = ":".join(["0000"] * 8)

COUNTERS = (
    "VL15_dropped", "excessive_buffer_overrun_errors", "link_downed", "link_error_recovery",
    "local_link_integrity_errors", "multicast_rcv_packets", "multicast_xmit_packets",
    "port_rcv_constraint_errors", "port_rcv_data", "port_rcv_errors", "port_rcv_packets",
    "port_rcv_remote_physical_errors", "port_rcv_switch_relay_errors", "port_xmit_constraint_errors",
    "port_xmit_data", "port_xmit_discards", "port_xmit_packets", "port_xmit_wait", "symbol_error",
    "unicast_rcv_packets", "unicast_xmit_packets",
)  # fmt: skip
HW_COUNTERS = (
    "duplicate_request", "implied_nak_seq_err", "lifespan", "local_ack_timeout_err", "np_cnp_sent",
    "np_ecn_marked_roce_packets", "out_of_buffer", "out_of_sequence", "packet_seq_err", "req_cqe_error",
    "req_cqe_flush_error", "req_remote_access_errors", "req_remote_invalid_request", "resp_cqe_error",
    "resp_cqe_flush_error", "resp_local_length_error", "resp_remote_access_errors", "rnr_nak_retry_err",
    "roce_adp_retrans", "roce_adp_retrans_to", "roce_slow_restart", "roce_slow_restart_cnps",
    "roce_slow_restart_trans", "rp_cnp_handled", "rp_cnp_ignored", "rx_atomic_requests",
    "rx_icrc_encapsulated", "rx_read_requests", "rx_write_requests",
)  # fmt: skip
#: Of a port at about 45 GB/s: what the traffic counters gain in a second (data in words of 4 bytes).
_PER_SECOND = {
    "port_rcv_data": 11_000_000_000,
    "port_xmit_data": 11_500_000_000,
    "port_rcv_packets": 10_700_000,
    "port_xmit_packets": 11_200_000,
    "unicast_rcv_packets": 10_700_000,
    "unicast_xmit_packets": 11_200_000,
    "port_xmit_wait": 40_000,
    "rx_write_requests": 700_000,
    "rx_read_requests": 90_000,
    "np_cnp_sent": 300,
    "np_ecn_marked_roce_packets": 300,
    "rp_cnp_handled": 250,
}


class Sysfs:
    """The tree below ``root``: ``hcas`` HCAs named mlx5_0 and so on, all active."""

    def __init__(self, root: Path, hcas: int) -> None:
        if not 1 <= hcas <= MAX_HCAS:
            raise ValueError(f"1 to {MAX_HCAS} HCAs, not {hcas}")
        self.root = root
        self.hcas = hcas
        #: Counter files, each with its value and what it gains in a second.
        self._counters: dict[str, tuple[int, int]] = {}
        for number in range(hcas):
            self._hca(number)

    @property
    def counters(self) -> list[str]:
        """The paths of all counter files; ``lifespan``, a setting, is not one."""
        return list(self._counters)

    def advance(self, seconds: float) -> None:
        """Let traffic of ``seconds`` pass. A counter never gets shorter, so each write is one call."""
        for path, (value, rate) in self._counters.items():
            if rate:
                value += int(rate * seconds)  # noqa: PLW2901 - goes back into the table
                self._counters[path] = (value, rate)
                fd = os.open(path, os.O_WRONLY)
                os.pwrite(fd, b"%d\n" % value, 0)
                os.close(fd)

    def _hca(self, number: int) -> None:
        name, netdev, bus = f"mlx5_{number}", f"ens{number + 1}np0", 0x10 + 8 * number
        parent = f"devices/pci{bus - 1:04x}:00/{bus - 1:04x}:00:01.1"
        address = f"{bus:04x}:01:00.0"
        pci, device = f"{parent}/{address}", f"{parent}/{address}/infiniband/{name}"
        port = f"{device}/ports/1"
        self._write(f"{pci}/vendor", "0x15b3")
        self._write(f"{pci}/device", "0x1021")
        self._write(f"{pci}/numa_node", str(number * 2 // self.hcas))
        self._link(f"{pci}/driver", "bus/pci/drivers/mlx5_core")
        self._write(f"{pci}/net/{netdev}/dev_port", "0")
        self._write(f"{pci}/net/{netdev}/operstate", "up")
        self._link(f"class/net/{netdev}", f"{pci}/net/{netdev}")
        self._link(f"class/infiniband/{name}", device)
        self._link(f"{device}/device", pci)
        guid = f"b8ce:f603:00a1:{0xB000 + number:04x}"
        for file, text in (
            ("node_guid", guid),
            ("sys_image_guid", guid),
            ("fw_ver", "28.39.1002"),
            ("hca_type", "MT4129"),
            ("board_id", "MT_0000000838"),
            ("hw_rev", "0x0"),
            ("node_type", "1: CA"),
            ("node_desc", f"node1 {name}"),
        ):
            self._write(f"{device}/{file}", text)
        for file, text in (
            ("state", "4: ACTIVE"),
            ("phys_state", "5: LinkUp"),
            ("rate", "400 Gb/sec (4X NDR)"),
            ("link_layer", "Ethernet"),
            ("lid", "0x0"),
            ("lid_mask_count", "0"),
            ("sm_lid", "0x0"),
            ("sm_sl", "0"),
            ("cap_mask", "0x04010000"),
        ):
            self._write(f"{port}/{file}", text)
        local = f"fe80:0000:0000:0000:bace:f6ff:fea1:{0xB000 + number:04x}"
        mapped = f"0000:0000:0000:0000:0000:ffff:0a00:{number + 1:04x}"
        gids = [local, local, mapped, mapped]
        for index, gid in enumerate([*gids, *[EMPTY_GID] * (GID_ENTRIES - len(gids))]):
            self._write(f"{port}/gids/{index}", gid)
        # The kernel answers EINVAL for the attributes of an empty entry; here the file is not there.
        for index in range(len(gids)):
            self._write(f"{port}/gid_attrs/ndevs/{index}", netdev)
            self._write(f"{port}/gid_attrs/types/{index}", "RoCE v2" if index % 2 else "IB/RoCE v1")
        for group, names in (("counters", COUNTERS), ("hw_counters", HW_COUNTERS)):
            for file in names:
                rate = _PER_SECOND.get(file, 0)
                value = rate * 86_400 * (number + 1)
                path = self._write(f"{port}/{group}/{file}", "10" if file == "lifespan" else str(value))
                if file != "lifespan":
                    self._counters[str(path)] = (value, rate)

    def _write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
        return path

    def _link(self, name: str, target: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.root / target).mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(self.root / target, path.parent))
