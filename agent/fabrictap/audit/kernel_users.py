"""Kernel services that move data over RDMA without any program's verbs: storage, file systems, sockets."""

from __future__ import annotations

from fabrictap.audit import verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import NOTHING, Finding, Present, Severity, Way, doubt, some

_KEY, _NAME = "rdma.kernel", "kernel services over RDMA"
#: Module -> what it carries.
_MODULES = {
    "nvme_rdma": "NVMe over RDMA, client",
    "nvmet_rdma": "NVMe over RDMA, target",
    "ib_iser": "iSER client",
    "ib_isert": "iSER target",
    "ib_srp": "SRP client",
    "ib_srpt": "SRP target",
    "rpcrdma": "NFS over RDMA",
    "smc": "SMC-R sockets",
    "rds_rdma": "RDS",
    "ko2iblnd": "Lustre",
    "ib_ipoib": "IP over InfiniBand",
    "rtrs_client": "RNBD client",
    "rtrs_server": "RNBD server",
}
#: (module, parameter, value) with which every peer may read and write all memory: IB_PD_UNSAFE_GLOBAL_RKEY in
#: drivers/nvme/host/rdma.c, drivers/infiniband/ulp/srp/ib_srp.c, drivers/infiniband/ulp/iser/iser_verbs.c.
_GLOBAL_KEY = (
    ("nvme_rdma", "register_always", "N"),
    ("ib_iser", "always_register", "N"),
    ("ib_srp", "register_always", "N"),
    ("ib_srp", "never_register", "Y"),
)


def ways(node: Node) -> list[Way]:
    modules = node.modules
    if isinstance(modules, Denied):
        found = doubt(Severity.MEDIUM, f"kernel services over RDMA are not known: {modules}", "run as root")
        return [Way(_KEY, _NAME, Present.UNKNOWN, str(modules), findings=(found,))]
    loaded = [name for name in _MODULES if name in modules]
    mounts = _mounts(node)
    findings: list[Finding] = []
    global_ = [
        f"{name}.{parameter}={value}"
        for name, parameter, value in _GLOBAL_KEY
        if node.read(f"{node.sys}/module/{name}/parameters/{parameter}", 16) == value
    ]
    if global_:
        findings.append(
            Finding(
                Severity.HIGH,
                "storage clients give their peers one key to all memory of this node",
                "options nvme_rdma register_always=Y (ib_srp register_always=Y, ib_iser always_register=Y) "
                "in /etc/modprobe.d, and load the module anew",
                tuple(global_),
            )
        )
    if isinstance(mounts, Denied):
        findings.append(doubt(Severity.LOW, f"file systems over RDMA are not known: {mounts}", "run as root"))
        mounts = []
    used = [*(f"mount {one}" for one in mounts), *(f"drive {one}" for one in _drives(node))]
    if not loaded and not used:
        why = "none of their modules is loaded, no mount and no drive uses it"
        return [Way(_KEY, _NAME, Present.NO, why, NOTHING, tuple(findings))]
    seen = verbs.port(
        node,
        "bytes of the port; verbs lists the kernel's queue pairs, not their posts",
    )
    if used or "ko2iblnd" in loaded:
        findings.append(
            Finding(
                Severity.LOW,
                "kernel services move data over RDMA now; their connections are listed, their posts are "
                "not counted",
                "it is dark traffic to the agent: subtract /proc/self/mountstats and "
                "/sys/block/nvme*/stat, or give storage a port of its own",
                some(used),
            )
        )
    told = ", ".join(some([_MODULES[name] for name in loaded], 6)) or "file systems"
    return [Way(_KEY, _NAME, Present.YES, f"loaded: {told}", seen, tuple(findings))]


def _mounts(node: Node) -> list[str] | Denied:
    mounts = node.mounts
    if isinstance(mounts, Denied):
        return mounts
    found = []
    for _, place, kind, options, *_ in mounts:
        words = options.split(",")
        if (kind.startswith("nfs") and "proto=rdma" in words) or (
            kind in ("cifs", "smb3") and "rdma" in words
        ):
            found.append(place[:128])
        elif kind == "lustre":
            found.append(f"{place[:128]} (Lustre)")
    return found


def _drives(node: Node) -> list[str]:
    return [
        name
        for name in node.names(f"{node.sys}/class/nvme", 4096).names
        if node.read(f"{node.sys}/class/nvme/{name}/transport", 32) == "rdma"
    ]
