"""Links between GPUs: NVLink, NVSwitch and xGMI; and memory shared across nodes over them (IMEX)."""

from __future__ import annotations

import re

from fabrictap.audit import gpus
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Sight, Way, doubt, many, some

_SWITCH = re.compile(r"nvidia-nvswitch\d+")
_CHANNEL = re.compile(r"channel\d+")
#: HSA_IOLINKTYPE_XGMI, drivers/gpu/drm/amd/amdkfd/kfd_topology.h and include/uapi/linux/kfd_sysfs.h.
_XGMI = "type 11"
_MOST_LINKS = 4096


def ways(node: Node) -> list[Way]:
    return [_nvlink(node), _imex(node), _xgmi(node)]


def _hardware(node: Node) -> Sight:
    for source in ("nvml", "dcgm"):
        seen = node.watch.sight(source, Observed.HARDWARE, "bytes by GPU and link; not whose")
        if seen.how is Observed.HARDWARE:
            return seen
    return node.watch.sight("nvml", Observed.HARDWARE, "bytes by GPU and link; not whose")


def _nvlink(node: Node) -> Way:
    key, name = "gpu.nvlink", "NVLink and NVSwitch"
    found = gpus.find(node)
    files = [one for one in node.names(node.dev).names if _SWITCH.fullmatch(one)]
    switches = found.bus.of("nvswitch")
    manager = node.processes.named("nv-fabricmanager")
    if files or switches:
        why = many(max(len(files), len(switches)), "NVSwitch", "NVSwitches")
        why += f", fabric manager runs ({manager[0]})" if manager else ", no fabric manager is seen"
        return Way(
            key, name, Present.YES, why, _hardware(node), tuple(_switch_findings(node, files, bool(manager)))
        )
    if not found.nvidia:
        if found.present is Present.UNKNOWN:
            return Way(key, name, Present.UNKNOWN, found.why)
        return Way(key, name, Present.NO, "no GPU of NVIDIA")
    if found.nvidia == 1:
        return Way(
            key, name, Present.UNKNOWN, "one GPU; whether it has links only NVML tells", _hardware(node)
        )
    why = f"{found.nvidia} GPUs without a switch on this node; whether they are linked only NVML tells"
    worst = doubt(
        Severity.MEDIUM,
        "GPUs may be linked directly (NVLink bridges, or switches outside of the node)",
        "nvidia-smi nvlink --status; nvidia-smi topo -m",
    )
    return Way(key, name, Present.UNKNOWN, why, _hardware(node), (worst,))


def _switch_findings(node: Node, files: list[str], managed: bool) -> list[Finding]:
    found = []
    open_ = []
    for file in files:
        mode = node.mode(f"{node.dev}/{file}")
        if isinstance(mode, int) and mode & 0o002:
            open_.append(f"{file} {mode & 0o777:04o}")
    if open_:
        found.append(
            Finding(
                Severity.LOW,
                "any user may open the NVSwitches; what they may do is left to the driver",
                "options nvidia NVreg_DeviceFileMode=0660 NVreg_DeviceFileGID=GID in /etc/modprobe.d",
                some(open_),
            )
        )
    if managed and not node.processes.doubts:
        partitions = "in a node of one tenant all GPUs reach each other over NVSwitch"
        holders = node.processes.gpu
        if len({one.group for one in holders}) > 1:
            found.append(
                Finding(
                    Severity.LOW,
                    f"workloads that share the node share the fabric: {partitions}",
                    "fabricmanager.cfg: FABRIC_MODE=1 with a partition for each tenant (VMs), or whole nodes",
                    some(sorted({one.place or str(one) for one in holders})),
                )
            )
    return found


def _imex(node: Node) -> Way:
    key, name = "gpu.imex", "GPU memory across nodes (IMEX)"
    root = f"{node.dev}/nvidia-caps-imex-channels"
    listed = node.names(root)
    daemon = node.processes.named("nvidia-imex")
    if listed.denied is not None:
        worst = doubt(
            Severity.HIGH, f"who may use IMEX channels is not known: {listed.denied}", "run as root"
        )
        return Way(key, name, Present.UNKNOWN, str(listed.denied), _hardware(node), (worst,))
    channels = [one for one in listed.names if _CHANNEL.fullmatch(one)]
    if not channels and not daemon:
        found = gpus.find(node)
        if found.present is not Present.NO and not node.devices_listed:
            worst = doubt(
                Severity.HIGH, "IMEX channels are not known: this is not the node's /dev", "run on the node"
            )
            return Way(key, name, Present.UNKNOWN, "not the node's /dev", _hardware(node), (worst,))
        return Way(key, name, Present.NO, "no IMEX channel and no nvidia-imex")
    open_ = []
    for channel in channels:
        mode = node.mode(f"{root}/{channel}")
        if isinstance(mode, int) and mode & 0o006:
            open_.append(f"{channel} {mode & 0o777:04o}")
    users = node.processes.holding("nvidia-caps-imex-channels")
    findings = []
    if open_:
        findings.append(
            Finding(
                Severity.HIGH,
                "any user of the node may import GPU memory that other nodes of the IMEX domain export on "
                "a channel",
                "one channel for each tenant (ComputeDomain of NVIDIA's DRA driver), chmod 0660 "
                "/dev/nvidia-caps-imex-channels/channel*; not NVreg_CreateImexChannel0=1 on shared nodes",
                some(open_),
            )
        )
    groups = {one.group for one in users}
    if len(groups) > 1:
        findings.append(
            Finding(
                Severity.HIGH,
                f"IMEX channels are open in {len(groups)} workloads",
                "one channel for each tenant",
                some([str(one) for one in users]),
            )
        )
    why = f"{many(len(channels), 'channel')}, nvidia-imex {'runs' if daemon else 'is not seen'}"
    return Way(key, name, Present.YES, why, _hardware(node), tuple(findings))


def _xgmi(node: Node) -> Way:
    key, name = "gpu.xgmi", "xGMI (AMD)"
    root = f"{node.sys}/class/kfd/kfd/topology/nodes"
    listed = node.names(root, 1024)
    if not listed.exists:
        found = gpus.find(node)
        if found.amd:
            return Way(key, name, Present.UNKNOWN, "GPUs of AMD without amdkfd: links are not told")
        present = Present.UNKNOWN if found.present is Present.UNKNOWN else Present.NO
        return Way(key, name, present, found.why if present is Present.UNKNOWN else "no GPU of AMD")
    links, looked = 0, 0
    for one in listed.names:
        for link in node.names(f"{root}/{one}/io_links", 256).names:
            text = node.read(f"{root}/{one}/io_links/{link}/properties")
            looked += 1
            if isinstance(text, Denied):
                worst = doubt(Severity.LOW, f"links of AMD's GPUs: {text}", "run as root")
                return Way(key, name, Present.UNKNOWN, str(text), findings=(worst,))
            links += isinstance(text, str) and _XGMI in text.splitlines()
            if looked >= _MOST_LINKS:
                return Way(key, name, Present.UNKNOWN, f"more than {_MOST_LINKS} links")
    if not links:
        return Way(key, name, Present.NO, f"no xGMI among {looked} links")
    seen = Sight(Observed.NOT, "this version has no source for GPUs of AMD")
    return Way(key, name, Present.YES, f"{links} links", seen)
