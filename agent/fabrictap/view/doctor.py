"""``fabrictap doctor``: what can be seen on this node, what is missing, what that costs, how to mend it."""

from __future__ import annotations

import _ctypes
import json
import logging
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fabrictap.config import Config
from fabrictap.ext.bpf import BpfError, KernelTypes, has_bpf_loop
from fabrictap.ledger.devices import DeviceFilter
from fabrictap.ledger.workloads.podlogs import PodLogs
from fabrictap.sources.infiniband import sysfs as ib_sysfs
from fabrictap.sources.kubelet import podresources
from fabrictap.sources.kubelet.source import Kubelet
from fabrictap.sources.verbs import providers
from fabrictap.version import VERSION
from fabrictap.view import budget, dcgm, gpus, headers


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. ``status``: ok; missing: costs what ``cost`` says; absent: not on this node."""

    what: str
    status: str
    found: str
    cost: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class _Capability:
    name: str
    number: int
    cost: str


# include/uapi/linux/capability.h
_SYS_ADMIN = 21
_CAPABILITIES = (
    # Measured on 6.1: bpf_btf_get_fd_by_id (type information of modules) and perf_event_open of a uprobe ask
    # for it whatever else is held; Debian, with kernel.perf_event_paranoid above 2, for all probes.
    _Capability(
        "CAP_SYS_ADMIN",
        _SYS_ADMIN,
        "kernels such as 6.1 then refuse probes in libraries (no posted bytes) and fentry, and with "
        "kernel.perf_event_paranoid above 2 kprobes as well (no connections)",
    ),
    _Capability("CAP_BPF", 39, "no BPF program can be loaded: no connections, no posted bytes"),
    _Capability("CAP_PERFMON", 38, "no BPF program can be attached: no connections, no posted bytes"),
    _Capability(
        "CAP_NET_ADMIN", 12, "netlink hides the owners and the memory keys of what is older than the agent"
    ),
    _Capability(
        "CAP_SYS_PTRACE", 19, "processes of other users have no executable name and no exact coverage"
    ),
    _Capability("CAP_DAC_READ_SEARCH", 2, "libraries that only their owner may read are not probed"),
    _Capability(
        "CAP_SYS_RESOURCE", 24, "the limit of locked memory may refuse the BPF maps (Linux before 5.11)"
    ),
)
# What CAP_SYS_ADMIN implies, and did alone before Linux 5.8.
_IMPLIED = ("CAP_BPF", "CAP_PERFMON")


def examine(config: Config, *, quick: bool = False) -> Iterator[Check]:
    """All checks. ``quick`` leaves out what opens devices or the network."""
    yield _kernel()
    yield _btf()
    if (found := headers.look(config.sources.verbs)) is not None:
        yield Check(
            "kernel headers",
            "missing" if found.missing else "ok",
            found.missing or found.found,
            found.cost,
            found.fix,
        )
    yield from _capabilities()
    yield from _devices(config)
    if not quick:
        yield from _providers()
        yield Check("cost of a counted post", "ok", budget.cost(config))
        if (seen := budget.coverage(config.ring.path)) is not None:
            yield Check("connections of the agent", "ok", *seen)
        yield from _kubelet(config)
        yield from _gpus(config)
        yield from _dcgm(config)
    else:
        yield _gpu_library(config)


def main(config: Config, *, as_json: bool) -> int:
    """Print the checks; 1 if something is missing, else 0."""
    checks = list(examine(config))
    missing = sum(check.status == "missing" for check in checks)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
        return int(missing > 0)
    width = max(len(check.what) for check in checks)
    marks = {"ok": "ok     ", "missing": "MISSING", "absent": "absent "}
    for check, following in zip(checks, [*checks[1:], None], strict=True):
        print(f"{marks[check.status]}  {check.what:<{width}}  {check.found}")
        # What mends several in a row is said once, below the last.
        fix = "" if following is not None and following.fix == check.fix else check.fix
        for label, text in (("costs", check.cost), ("mend", fix)):
            if text:
                print(f"{'':<{width + 11}}{label}: {text}")
    print()
    print(f"{missing} missing: each costs what stands below it." if missing else "Nothing is missing.")
    return int(missing > 0)


def summary(config: Config) -> Iterator[tuple[int, str]]:
    """What the agent is about to watch and where it sends it: a few lines, each with its logging level."""
    yield logging.INFO, f"fabrictap {VERSION} (pid {os.getpid()}) on Linux {platform.release()}"
    costs: dict[tuple[str, str], list[str]] = {}
    if (profile := config.sources.simulated.profile) is not None:
        yield logging.WARNING, f"  SIMULATED NODE {profile}: all that follows is made up, nothing is measured"
    for check in examine(config, quick=True) if profile is None else ():
        if check.status == "missing":
            costs.setdefault((check.found, check.cost), []).append(check.what)
        elif check.status == "absent" and check.what == "RDMA devices":
            yield logging.INFO, f"  RDMA devices: {check.found}; one that comes later will be watched"
        elif check.what.startswith(("RDMA device", "GPUs")):
            yield logging.INFO, f"  {check.what}: {check.found}"
    for (found, cost), names in costs.items():
        yield logging.WARNING, f"  missing: {', '.join(names)} ({found}): {cost}"
    otlp = config.export.otlp
    signals: dict[str, list[str]] = {}
    for name, signal in (("metrics", otlp.metrics), ("traces", otlp.traces), ("logs", otlp.logs)):
        if signal.enabled:
            signals.setdefault(signal.endpoint, []).append(name)
    ways = [f"{_list(names)} to {endpoint}" for endpoint, names in signals.items()]
    if config.export.file.path is not None:
        ways.append(f"all to the file {config.export.file.path}")
    if ways:
        yield logging.INFO, f"  exports every {config.export.interval:g}s: {'; '.join(ways)}"
    else:
        yield logging.WARNING, "  exports nothing: export.otlp is off and export.file.path is not set"


def _list(names: list[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])


def _kernel() -> Check:
    release = platform.release()
    found = f"Linux {release} {platform.machine()}"
    if has_bpf_loop():
        return Check("kernel", "ok", f"{found}, with bpf_loop")
    cost = "of a post, 64 chained work requests are counted; a longer chain is counted as lost"
    return Check("kernel", "ok", f"{found}, no bpf_loop (or no right to ask)", cost)


def _btf() -> Check:
    what = "type information (BTF)"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return Check(
            what,
            "missing",
            "/sys/kernel/btf/vmlinux does not exist",
            "the control path cannot be hooked: connections are known from netlink only",
            "a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    if not Path("/sys/module/ib_core").exists():
        return Check(what, "ok", "the kernel's; ib_core is not loaded")
    try:
        KernelTypes("ib_core")
    except BpfError as error:
        return Check(
            what,
            "missing",
            f"the kernel's, but not ib_core's: {error}",
            "hooks at the system call: no kernel users, no peers of connections older than the agent, no "
            "connection manager; about 0.1 us on every system call of the node",
            "a kernel with CONFIG_DEBUG_INFO_BTF_MODULES (5.11 and later)",
        )
    return Check(what, "ok", "the kernel's and ib_core's")


def _held() -> int:
    """The effective capabilities of this process, one bit each."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def _capabilities() -> Iterator[Check]:
    held = _held()
    old = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) < (5, 11)
    for capability in _CAPABILITIES:
        if capability.name == "CAP_SYS_RESOURCE" and not old:
            continue
        by_admin = capability.name in _IMPLIED and held >> _SYS_ADMIN & 1
        if held >> capability.number & 1 or by_admin:
            yield Check(capability.name, "ok", "held")
        else:
            fix = "run as root, or AmbientCapabilities= of the unit, or capabilities.add of the container"
            yield Check(capability.name, "missing", f"not held by uid {os.geteuid()}", capability.cost, fix)


def _devices(config: Config) -> Iterator[Check]:
    sysfs = config.sources.infiniband.sysfs
    wanted = DeviceFilter(config.devices.allow, config.devices.deny)
    try:
        found = ib_sysfs.scan(sysfs, wanted)
    except FileNotFoundError:
        found = ib_sysfs.Scan()
    except OSError as error:
        yield Check("RDMA devices", "missing", f"{error.filename}: {error.strerror}", "no port counters")
        return
    if found.denied:
        yield Check("RDMA devices", "ok", f"{found.denied} left out by devices.allow and devices.deny")
    elif not found.devices:
        yield Check(
            "RDMA devices",
            "absent",
            f"none below {sysfs}/class/infiniband",
            "nothing to watch: no port counters, no connections, no posted bytes",
            "load the adapter's driver (modprobe mlx5_ib); to try: rdma link add rxe0 type rxe netdev eth0",
        )
    for device in found.devices:
        yield Check(f"RDMA device {device.name}", "ok", _describe(device))


def _describe(device: ib_sysfs.DeviceTree) -> str:
    parts = [f"driver {device.driver or 'none (software device)'}"]
    for port in device.ports:
        try:
            state = ib_sysfs.parse_state(ib_sysfs.read_text(f"{port.path}/state")) or "of unknown state"
        except OSError as error:
            state = f"state unreadable: {error.strerror}"
        counters = f"{len(port.files)} counters" if port.files else "no counters"
        parts.append(
            f"port {port.number} {state}, {port.link_layer}, {port.netdev or 'no netdev'}, {counters}"
        )
    return "; ".join(parts)


def _providers() -> Iterator[Check]:
    try:
        report = providers.discover()
    except providers.HelperFailed as error:
        yield Check("provider libraries", "missing", str(error), "posted bytes are not counted")
        return
    for subject, problem in report.problems.items():
        fix = "apt-get install ibverbs-providers" if subject.startswith("lib") else ""
        yield Check(f"provider of {subject}", "missing", problem, "its posted bytes are not counted", fix)
    extended = [place for place in report.places if place.function in providers.EXTENDED]
    for library in sorted({place.file for place in extended}):
        count = len([place for place in extended if place.file == library])
        yield Check("ibv_wr_*", "ok", f"{library}, {count} functions")
    for place in report.places:
        if place in extended:
            continue
        found = f"{place.file} + {place.offset:#x}"
        cost = ""
        try:
            with Path(place.file).open("rb") as file:
                if not providers.entry(file.fileno(), place.offset).cheap:
                    cost = "its first instruction is single-stepped by the kernel: about 9 us a call"
        except OSError as error:
            yield Check(place.function, "missing", f"{found}: {error.strerror}", "its calls are not counted")
            continue
        yield Check(place.function, "ok", found, cost)


def _gpu_library(config: Config) -> Check:
    library = config.sources.nvml.library
    try:
        _ctypes.dlclose(_ctypes.dlopen(library, 0))
    except OSError:
        return Check("GPUs", "absent", f"no {library} here")
    if not config.sources.nvml.enabled:
        return Check("GPUs", "absent", f"not watched: sources.nvml.enabled is false; {library} is there")
    return Check("GPUs", "ok", f"watched by {library}")


def _gpus(config: Config) -> Iterator[Check]:
    library = _gpu_library(config)
    if not library.ok:
        yield library
        return
    report = gpus.look(config)
    if report.problem is not None and not gpus.on_pci(config.sources.infiniband.sysfs):
        yield Check("GPUs", "absent", f"none on PCI, though {config.sources.nvml.library} is there")
    elif report.problem is not None:
        yield Check("GPUs", "missing", report.problem, "no NVLink, PCIe and memory figures of any GPU")
    for one in report.gpus:
        what = f"GPU {one.gpu.index} {one.gpu.id}"
        if one.trouble is not None:
            fix = "nvidia-smi -q and dmesg say more; what it asks for is a reset or a reboot"
            yield Check(what, "missing", one.trouble, "no figures of this GPU", fix)
            continue
        lacks = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in sorted(one.missing.items()))
        yield Check(what, "ok", gpus.describe(one), f"does not have: {lacks}" if lacks else "")


def _dcgm(config: Config) -> Iterator[Check]:
    settings = config.sources.dcgm
    if settings.enabled == "off":
        yield Check("DCGM", "absent", "not watched: sources.dcgm.enabled is off")
        return
    report = dcgm.look(config)
    cost = "no NVSwitches, no memory bandwidth of GPUs before Hopper, no CPUs of Grace"
    if report.problem is not None:
        fix = "systemctl status nvidia-dcgm; another address or library: sources.dcgm in the configuration"
        if report.absent:
            yield Check("DCGM", "absent", report.problem, cost)
        else:
            yield Check("DCGM", "missing", report.problem, cost, fix)
        return
    lacks = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in report.missing.items())
    yield Check("DCGM", "ok", report.found, f"does not have: {lacks}" if lacks else "")
    for words in report.refused:
        yield Check("DCGM refuses", "ok", words)


def _kubelet(config: Config) -> Iterator[Check]:
    kubelet, limits = config.sources.kubelet, config.limits
    if not Kubelet.wanted(kubelet):
        found = "switched off" if kubelet.enabled == "off" else "no kubelet on this node"
        yield Check("kubelet", "absent", f"{found}; Slurm jobs and plain containers are named without")
        return
    what = "kubelet: devices of pods"
    try:
        answer = podresources.fetch(kubelet.socket, 5.0)
        assigned = podresources.decode(answer, limits.pods, limits.device_assignments)
    except podresources.PodResourcesError as error:
        fix = f"mount {Path(kubelet.socket).parent} into the agent's container, or sources.kubelet.socket"
        yield Check(what, "missing", str(error), "it is not known which pod has which device", fix)
    else:
        yield Check(what, "ok", f"{assigned.pods} pods, {len(assigned.devices)} devices given to them")
    what = "kubelet: names of pods"
    try:
        names = PodLogs(kubelet.pods_log_dir, limits.pods).listing()
    except OSError as error:
        found = f"{kubelet.pods_log_dir} cannot be read: {error.strerror}"
        fix = "mount the node's /var/log into the container, read-only, or set sources.kubelet.pods_log_dir"
        yield Check(what, "missing", found, "pods are told by uid, containers by id, without names", fix)
    else:
        yield Check(what, "ok", f"{len(names.pods)} pods and {len(names.containers)} containers named")
