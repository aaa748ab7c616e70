"""Work that is posted past the verbs library: DEVX, UCX, DPDK, DOCA, GPU-initiated transports; and ODP."""

from __future__ import annotations

from fabrictap.audit import verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Way, doubt, many, some
from fabrictap.audit.process import LIBRARIES, Process

_WHAT = frozenset(what for _, what in LIBRARIES)


def ways(node: Node) -> list[Way]:
    return [_direct(node), _odp(node)]


def _direct(node: Node) -> Way:
    key, name = "rdma.direct", "queue entries written past the library"
    present, why = verbs.devices(node)
    if present is Present.NO:
        return Way(key, name, present, why)
    mlx5 = isinstance(node.modules, Denied) or "mlx5_ib" in node.modules
    users = [one for one in node.processes.rdma if _WHAT & one.libraries.keys()]
    seen = verbs.port(node, "bytes and packets of the port; not whose")
    if users:
        finding = Finding(
            Severity.MEDIUM,
            "processes with libraries that may write queue entries themselves: not counted, and theirs to "
            "hide",
            "UCX: UCX_TLS=rc_v (the verbs transport) in place of rc_x, dc_x; NVSHMEM: "
            "NVSHMEM_IB_ENABLE_IBGDA=0; alert on rdma.port.dark.io",
            some([f"{one}: {_told(one)}" for one in users]),
        )
        return Way(
            key, name, Present.YES, f"{many(len(users), 'process', 'processes')} could", seen, (finding,)
        )
    if not mlx5:
        return Way(key, name, Present.NO, "no driver with DEVX (mlx5_ib) is loaded")
    why = (
        "mlx5 offers DEVX to any user; whether a process does so cannot be seen, and none has a known library"
    )
    found = doubt(
        Severity.MEDIUM,
        "processes on mlx5 may write queue entries themselves (DEVX, mlx5dv): no probe would see that",
        "compare hardware with software: alert on rdma.port.dark.io",
    )
    return Way(key, name, Present.UNKNOWN, why, seen, (found,) if node.processes.rdma else ())


def _told(one: Process) -> str:
    return ", ".join(sorted(_WHAT & one.libraries.keys()))


def _odp(node: Node) -> Way:
    key, name = "rdma.odp", "on-demand paging (whole address spaces)"
    present, why = verbs.devices(node)
    if present is Present.NO:
        return Way(key, name, present, why)
    symbols = node.symbols
    if isinstance(symbols, Denied):
        return Way(key, name, Present.UNKNOWN, str(symbols))
    if "ib_umem_odp_get" not in symbols:
        return Way(
            key, name, Present.NO, "this kernel cannot (no ib_umem_odp_get; ib_uverbs may not be loaded)"
        )
    return Way(
        key,
        name,
        Present.UNKNOWN,
        "the kernel can; whether the adapter can, and who uses it, is not listed anywhere (ibv_devinfo -v: "
        "ODP)",
        node.watch.sight("verbs", Observed.ESTIMATED, "a region as long as the address space stands out"),
    )
