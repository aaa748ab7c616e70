"""GPUDirect RDMA: GPU memory registered with an adapter, by nvidia-peermem or as a dma-buf."""

from __future__ import annotations

from fabrictap.audit import gpus, verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import NOTHING, Finding, Present, Severity, Way, doubt
from fabrictap.view.text import amount

_KEY, _NAME = "gpudirect.rdma", "GPUDirect RDMA"
#: Peer memory modules: NVIDIA's, its name before 2021, and AMD's.
_PEER = frozenset({"nvidia_peermem", "nv_peer_mem", "amdp2p", "amd_peer_direct"})


def ways(node: Node) -> list[Way]:
    return [_peermem(node), _dmabuf(node)]


def _needs(node: Node) -> tuple[Present, str]:
    """It takes a GPU and an adapter; the less certain of the two decides."""
    gpu, rdma = gpus.find(node), verbs.devices(node)
    for present, why in ((gpu.present, gpu.why), rdma):
        if present is Present.NO:
            return present, why
    for present, why in ((gpu.present, gpu.why), rdma):
        if present is Present.UNKNOWN:
            return present, why
    return Present.YES, "GPUs and RDMA devices"


def _peermem(node: Node) -> Way:
    key, name = f"{_KEY}.peermem", f"{_NAME} by peer memory"
    modules = node.modules
    if isinstance(modules, Denied):
        return Way(key, name, Present.UNKNOWN, str(modules), findings=(_doubt(str(modules)),))
    loaded = sorted(_PEER & modules)
    clients = node.names(f"{node.sys}/kernel/mm/memory_peers", 64)
    if clients.denied is not None:
        return Way(key, name, Present.UNKNOWN, str(clients.denied), findings=(_doubt(str(clients.denied)),))
    if not loaded and not clients.names:
        return Way(key, name, Present.NO, "no peer memory module (nvidia_peermem) is loaded")
    seen = verbs.port(
        node,
        "bytes of the port; a region of GPU memory is not told from the host's",
    )
    registered, readable = 0, False
    for client in clients.names:
        path = f"{node.sys}/kernel/mm/memory_peers/{client}"
        made, gone = node.number(f"{path}/num_reg_bytes"), node.number(f"{path}/num_dereg_bytes")
        if made is not None and gone is not None:
            registered, readable = registered + max(0, made - gone), True
    what = "GPU memory can be registered for RDMA by any process that opens a GPU and an RDMA device"
    if registered:
        what = f"{amount(registered, 'By')} of GPU memory is registered for RDMA now; by whom is not seen"
    fix = (
        "where NCCL is to use dma-buf (kernel 5.12, driver 515 open): modprobe -r nvidia_peermem, and keep "
        "it out: echo blacklist nvidia_peermem > /etc/modprobe.d/peermem.conf"
    )
    why = f"{', '.join(loaded) or 'a peer memory client'} is loaded"
    why += (
        f", {amount(registered, 'By')} registered now" if readable else "; what is registered now is not told"
    )
    return Way(key, name, Present.YES, why, seen, (Finding(Severity.MEDIUM, what, fix),))


def _doubt(why: str, fix: str = "run as root") -> Finding:
    return doubt(Severity.MEDIUM, f"whether GPU memory can be registered for RDMA is not known: {why}", fix)


def _dmabuf(node: Node) -> Way:
    key, name = f"{_KEY}.dmabuf", f"{_NAME} by dma-buf"
    present, why = _needs(node)
    if present is Present.NO:
        return Way(key, name, present, why)
    if node.kernel is None or node.kernel < (5, 12):
        state = Present.NO if node.kernel else Present.UNKNOWN
        return Way(key, name, state, f"Linux {node.release}: 5.12 is the first that can")
    symbols = node.symbols
    seen = verbs.port(
        node,
        "bytes of the port; a region of GPU memory is not told from the host's",
    )
    if isinstance(symbols, Denied):
        return Way(key, name, Present.UNKNOWN, str(symbols), seen, (_doubt(str(symbols)),))
    if "ib_umem_dmabuf_get" not in symbols:
        return Way(key, name, Present.NO, "this kernel has no ib_umem_dmabuf_get", NOTHING)
    text = node.read(f"{node.proc}/driver/nvidia/version")
    kind = "open kernel module" if isinstance(text, str) and "Open Kernel Module" in text else None
    if present is Present.YES and (kind or gpus.find(node).amd):
        finding = Finding(
            Severity.MEDIUM,
            "GPU memory can be registered for RDMA as a dma-buf, and no source of this version tells whose",
            "alert on rdma.port.dark.io; give RDMA devices only to the pods that need them",
        )
        why = f"Linux {node.release} and the driver ({kind or 'amdgpu'}) can; who does so is not listed"
        return Way(key, name, Present.YES, why, seen, (finding,))
    why = f"the kernel can; whether the GPU's driver exports dma-bufs is not known ({why})"
    return Way(
        key,
        name,
        Present.UNKNOWN,
        why,
        seen,
        (_doubt(why, "cat /proc/driver/nvidia/version: the open kernel module can"),),
    )
