"""A stand-in for /sys, /proc and /dev of a node, for what only reads them: files, directories, links.

Layouts: Documentation/ABI/testing/sysfs-bus-pci, drivers/infiniband/core/sysfs.c, proc(5), namespaces(7),
NVIDIA's driver README (/proc/driver/nvidia). Device nodes are plain files of the same names and modes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

#: The kernel's own numbers (include/linux/proc_ns.h).
FIRST = {"pid": 4026531836, "user": 4026531837, "ipc": 4026531839, "mnt": 4026531841, "net": 4026531840}
#: As in a node where everything is the kernel's default.
SYMBOLS = ("ib_umem_dmabuf_get", "ib_umem_odp_get", "pci_p2pdma_add_resource")


def port_config(*, port: int = 6, acs: int | None = 0x1D, size: int = 4096) -> bytes:
    """Configuration space of a PCIe port: type 4 is a root port, 6 a downstream port of a switch.

    ``acs``: the ACS control register, None where there is no such capability. A vendor's own capability
    stands first in both lists, so that they have to be walked.
    """
    raw = bytearray(4096)
    raw[0x34] = 0x40
    struct.pack_into("<BB", raw, 0x40, 0x09, 0x50)
    struct.pack_into("<BBH", raw, 0x50, 0x10, 0x00, 2 | port << 4)
    struct.pack_into("<I", raw, 0x100, 0x000B | 1 << 16 | (0x140 if acs is not None else 0) << 20)
    if acs is not None:
        struct.pack_into("<IHH", raw, 0x140, 0x000D | 1 << 16, 0x5F, acs)
    return bytes(raw[:size])


class NodeTree:
    """The three trees below ``root``: a node with a kernel, an init process and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys, self.proc, self.dev = root / "sys", root / "proc", root / "dev"
        for path in ("sys/class", "sys/module", "sys/bus/pci/devices", "sys/kernel/iommu_groups"):
            (root / path).mkdir(parents=True)
        self.device("null", 0o666)
        self.file("sys/kernel/security/lockdown", "[none] integrity confidentiality")
        self.file("sys/kernel/btf/vmlinux", "")
        self.file("sys/kernel/btf/ib_core", "")
        self.file("proc/sys/kernel/perf_event_paranoid", "2")
        self.file("proc/sys/kernel/hostname", "node1")
        self.file("proc/sys/kernel/osrelease", "6.8.0-60-generic")
        self.file("proc/mounts", "/dev/vda1 / ext4 rw 0 0")
        self.file("proc/modules", "")
        self.symbols(*SYMBOLS)
        self.process(1, "systemd", cgroup="/init.scope")
        self.link("proc/self", "1")

    def file(self, path: str, text: str | bytes) -> Path:
        made = self.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())
        return made

    def link(self, path: str, target: str) -> None:
        made = self.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.symlink_to(target)

    def device(self, name: str, mode: int, *, below: str = "") -> None:
        """A device file in /dev, or in that of a container whose root is ``below``."""
        self.file(f"{below}dev/{name}", "").chmod(mode)

    def symbols(self, *names: str) -> None:
        self.file("proc/kallsyms", "".join(f"0000000000000000 T {name}\t[ib_uverbs]\n" for name in names))

    def module(self, name: str, **parameters: str) -> None:
        with (self.proc / "modules").open("a") as file:
            file.write(f"{name} 16384 0 - Live 0x0000000000000000\n")
        (self.sys / "module" / name).mkdir(exist_ok=True)
        for parameter, value in parameters.items():
            self.file(f"sys/module/{name}/parameters/{parameter}", value)

    def pci(
        self,
        address: str,
        vendor: int,
        device: int,
        class_: int,
        *,
        below: str = "",
        driver: str | None = None,
        group: str | None = None,
        domain: str = "DMA",
        functions: int | None = None,
        config: bytes = bytes(256),
    ) -> str:
        """A function below the bridges ``below`` (a path of addresses); its own path for what is below it."""
        path = f"{below}/{address}".lstrip("/")
        at = f"sys/devices/pci0000:00/{path}"
        for file, number in (("vendor", vendor), ("device", device), ("class", class_ << 8)):
            self.file(f"{at}/{file}", f"{number:#06x}")
        self.file(f"{at}/config", config)
        if driver:
            self.link(f"{at}/driver", f"/bus/pci/drivers/{driver}")
        if group is not None:
            self.link(f"{at}/iommu_group", f"/kernel/iommu_groups/{group}")
            self.file(f"sys/kernel/iommu_groups/{group}/type", domain)
        if functions is not None:
            self.file(f"{at}/sriov_numvfs", str(functions))
        self.link(f"sys/bus/pci/devices/{address}", f"../../../devices/pci0000:00/{path}")
        return path

    def rdma(self, name: str, number: int, *, mode: int = 0o666, shared: bool = True) -> None:
        """An RDMA device of mlx5 and its files in /dev."""
        self.link(f"sys/class/infiniband/{name}/device", "/bus/pci")
        self.device(f"infiniband/uverbs{number}", mode)
        self.device(f"infiniband/umad{number}", 0o600)
        self.device("infiniband/rdma_cm", mode)
        if number == 0:
            self.module("ib_core", netns_mode="Y" if shared else "N")
            self.module("mlx5_ib")
            self.module("ib_uverbs")

    def process(
        self,
        pid: int,
        name: str,
        *,
        uid: int = 0,
        cgroup: str = "/system.slice/x.service",
        devices: tuple[str, ...] = (),
        libraries: tuple[str, ...] = (),
        root: str | None = None,
        root_outside: int = 0,
        **spaces: int,
    ) -> None:
        """``devices``: what its descriptors link to; ``libraries``: files that it has mapped executable.

        ``root``: a directory of the tree that is its root, the node's own where None; ``spaces``: its
        namespaces by kind, the node's first where not given.
        """
        at = f"proc/{pid}"
        self.file(f"{at}/comm", name)
        self.file(f"{at}/status", f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}")
        self.file(f"{at}/cgroup", f"0::{cgroup}")
        self.file(f"{at}/uid_map", f"         0 {root_outside:>10} 4294967295")
        maps = [
            f"7f0000{number:03x}000-7f0000{number:03x}800 r-xp 00001000 fe:01 {100 + number} {file}"
            for number, file in enumerate(libraries)
        ]
        self.file(f"{at}/maps", "\n".join(maps))
        (self.proc / str(pid) / "fd").mkdir()
        for number, target in enumerate(("/dev/null", "socket:[99]", *devices)):
            self.link(f"{at}/fd/{number}", target)
        for kind, first in FIRST.items():
            self.link(f"{at}/ns/{kind}", f"{kind}:[{spaces.get(kind, first)}]")
        (self.root / (root or ".")).mkdir(parents=True, exist_ok=True)
        self.link(f"{at}/root", os.path.relpath(self.root / (root or "."), self.proc / str(pid)))


def clean_cpu_node(root: Path) -> NodeTree:
    """A server without GPU and without RDMA: an Ethernet adapter, a drive, some services."""
    tree = NodeTree(root)
    bridge = tree.pci("0000:00:01.0", 0x8086, 0x2030, 0x0604, group="1", config=port_config(port=4))
    tree.pci("0000:01:00.0", 0x8086, 0x1572, 0x0200, below=bridge, driver="i40e", group="2")
    tree.pci("0000:00:02.0", 0x1A03, 0x2000, 0x0300, driver="ast", group="3")
    tree.process(2, "kthreadd", cgroup="/")
    tree.process(700, "sshd", cgroup="/system.slice/ssh.service")
    # A service with mounts of its own on the node's root is no container.
    tree.process(701, "systemd-udevd", cgroup="/system.slice/systemd-udevd.service", mnt=4026532300)
    return tree


def hgx_node(root: Path) -> NodeTree:
    """Eight GPUs, four NVSwitches, eight adapters, well kept: one pod of one tenant, devices of a group."""
    tree = NodeTree(root)
    for number in range(8):
        bridge = tree.pci(
            f"0000:{0x10 + number:02x}:01.0",
            0x1000,
            0xC030,
            0x0604,
            group=str(40 + number),
            config=port_config(),
        )
        gpu, adapter = f"0000:{0x20 + number:02x}:00.0", f"0000:{0x30 + number:02x}:00.0"
        tree.pci(gpu, 0x10DE, 0x2330, 0x0302, below=bridge, driver="nvidia", group=str(number))
        tree.pci(adapter, 0x15B3, 0x1021, 0x0207, below=bridge, driver="mlx5_core", group=str(20 + number))
        tree.rdma(f"mlx5_{number}", number, mode=0o660, shared=False)
        tree.device(f"nvidia{number}", 0o666)
        tree.file(f"proc/driver/nvidia/gpus/{gpu}/information", "Model: NVIDIA H100 80GB HBM3")
    for number in range(4):
        tree.pci(f"0000:{0x50 + number:02x}:00.0", 0x10DE, 0x22A3, 0x0680, driver="nvidia-nvswitch")
        tree.device(f"nvidia-nvswitch{number}", 0o660)
    tree.device("nvidiactl", 0o666)
    tree.module("nvidia")
    tree.file(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build",
    )
    tree.file("proc/driver/nvidia/capabilities/mig/config", "DeviceFileMinor: 1\nDeviceFileMode: 256")
    tree.process(900, "nv-fabricmanager"[:15], cgroup="/system.slice/nvidia-fabricmanager.service")
    container(tree, 5000, "trainer", POD_A, "a" * 64, gpu=0, verbs=0)
    return tree


POD_A = "11111111-2222-4333-8444-555555555555"
POD_B = "66666666-7777-4888-8999-aaaaaaaaaaaa"
_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/libibverbs.so.1.14.44.0",
    "/usr/lib/x86_64-linux-gnu/libibverbs/libmlx5-rdmav34.so",
)


def container(
    tree: NodeTree,
    pid: int,
    name: str,
    pod: str,
    identity: str,
    *,
    gpu: int | None = None,
    verbs: int | None = None,
    umad: bool = False,
    libraries: tuple[str, ...] = _LIBRARIES,
    renamed: bool = False,
    uid: int = 1000,
    **spaces: int,
) -> None:
    """The process of a pod's only container, with a root, mounts, IPC and network of its own."""
    root = f"containers/{identity[:12]}/"
    (tree.root / root / "dev").mkdir(parents=True)
    devices: tuple[str, ...] = ()
    if gpu is not None:
        devices += (f"/dev/nvidia{gpu}", "/dev/nvidia-uvm")
    if verbs is not None:
        tree.device(f"infiniband/uverbs{verbs}", 0o666, below=root)
        # A device node that the container made under another name is told by the event file alone.
        devices += ("/tmp/x" if renamed else f"/dev/infiniband/uverbs{verbs}", "anon_inode:[infinibandevent]")
    if umad:
        tree.device(f"infiniband/umad{verbs}", 0o600, below=root)
    slice_ = f"kubepods-pod{pod.replace('-', '_')}.slice"
    tree.process(
        pid,
        name,
        uid=uid,
        cgroup=f"/kubepods.slice/{slice_}/cri-containerd-{identity}.scope",
        devices=devices,
        libraries=libraries if verbs is not None else (),
        root=root,
        **{"mnt": 4026540000 + pid, "ipc": 4026550000 + pid, "net": 4026560000 + pid, **spaces},
    )


def misconfigured_node(root: Path) -> NodeTree:
    """Everything that an audit is to find, on one node; two pods of different tenants."""
    tree = NodeTree(root)
    bridge = tree.pci("0000:10:01.0", 0x1000, 0xC030, 0x0604, group="1", config=port_config(acs=0))
    for number in range(2):
        tree.pci(
            f"0000:2{number}:00.0",
            0x10DE,
            0x20B2,
            0x0302,
            below=bridge,
            driver="nvidia",
            group="1",
            domain="identity",
        )
        tree.device(f"nvidia{number}", 0o666)
    tree.pci(
        "0000:30:00.0",
        0x15B3,
        0xA2D6,
        0x0200,
        below=bridge,
        driver="mlx5_core",
        group="1",
        domain="identity",
        functions=2,
    )
    tree.pci(
        "0000:30:00.3", 0x15B3, 0x101E, 0x0200, below=bridge, driver="vfio-pci", group="9", domain="unmanaged"
    )
    tree.rdma("mlx5_0", 0)
    tree.device("infiniband/umad0", 0o666)
    tree.file("sys/class/net/pf0vf0/phys_port_name", "pf0vf0")
    tree.module("nvidia")
    tree.module("nvidia_peermem")
    for file, value in (("num_reg_bytes", 3 << 30), ("num_dereg_bytes", 1 << 30)):
        tree.file(f"sys/kernel/mm/memory_peers/nv_mem/{file}", str(value))
    tree.module("nvidia_fs")
    tree.file("proc/driver/nvidia-fs/version", "version: 2.17")
    tree.module("gdrdrv")
    tree.device("gdrdrv", 0o666)
    tree.module("nvme_rdma", register_always="N")
    tree.file("sys/class/nvme/nvme3/transport", "rdma")
    tree.file("proc/mounts", "server:/data /data nfs4 rw,vers=4.2,proto=rdma,port=20049 0 0")
    tree.device("nvidia-caps-imex-channels/channel0", 0o666)
    tree.file("proc/driver/nvidia/capabilities/mig/config", "DeviceFileMinor: 1\nDeviceFileMode: 438")
    tree.file("sys/kernel/security/lockdown", "none integrity [confidentiality]")
    tree.file("proc/sys/kernel/perf_event_paranoid", "4")
    tree.process(800, "nvidia-cuda-mps-control"[:15], cgroup="/system.slice/mps.service")
    first = 4026531839
    container(tree, 5000, "trainer", POD_A, "a" * 64, gpu=0, verbs=0, umad=True, ipc=first, uid=0)
    ucx = (*_LIBRARIES, "/opt/ucx/lib/ucx/libuct_ib_mlx5.so.0")
    container(
        tree, 6000, "evil\x1b[2J", POD_B, "b" * 64, gpu=0, verbs=0, libraries=ucx, ipc=first, renamed=True
    )
    return tree
