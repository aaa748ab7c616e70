"""Who uses the simulated node: processes with their pods or jobs, and the connections they have.

All names say that they are simulated, and process ids are above those that Linux gives out (PID_MAX_LIMIT,
4194304), so that nothing here is taken for a process of the machine that the agent runs on.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

from fabrictap.ledger.memory import REMOTE_ATOMIC, REMOTE_READ, REMOTE_WRITE
from fabrictap.ledger.processes import Process
from fabrictap.ledger.workloads import Workload
from fabrictap.sources.simulated.profiles import Profile

FIRST_PID = 4_200_000
_LOCAL_WRITE = 1 << 0
_GIB = 1 << 30
_NAMESPACE = uuid.UUID("51300000-0000-4000-8000-000000000000")
_FIRST_QPN = 0x151
#: Queue pairs of each rank to the node after it, and from the one before.
CHANNELS = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What is posted to a queue pair. ``share`` of what ``channel`` moves of ``rate`` bytes per second, in
    messages of ``message`` bytes; ``every``: one for so many messages, and then of 0 bytes."""

    operation: str
    channel: str
    rate: int
    message: int
    every: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One queue pair to be. ``qpn``: as long as it lives; GIDs in IPv6 notation."""

    process: Process
    device: str
    qpn: int
    gid: str
    peer_gid: str
    peer_qpn: int
    works: tuple[Work, ...] = ()


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that is registered. ``access``: enum ibv_access_flags."""

    process: Process
    device: str
    length: int
    access: int


@dataclass(frozen=True, slots=True)
class Applications:
    """``on_gpu``: hw.id of a GPU or MIG device's place, as (GPU, slice or None) -> process and its memory."""

    processes: tuple[Process, ...]
    queue_pairs: tuple[Wanted, ...]
    regions: tuple[Region, ...]
    on_gpu: dict[tuple[int, int | None], tuple[Process, int]]


def fabric_gid(profile: Profile, node: int, port: int) -> str:
    """GID of a port of the fabric, of this node (1) or another: the name Sim in letters, or RFC 5737."""
    if profile.network.infiniband:
        return f"fe80::5369:6d00:{node:x}:{port + 1:x}"
    return f"::ffff:198.51.100.{16 * node + port}"


def storage_gid(host: int) -> str:
    """GID on the storage network."""
    return f"::ffff:192.0.2.{host}"


def training_port(profile: Profile, index: int) -> int:
    """Number of the device of the fabric that is nearest to a GPU."""
    return index * profile.network.fabric // profile.count


def pull_port(profile: Profile) -> int:
    """Number of the device of the fabric whose memory a peer pulls out."""
    return min(1, profile.network.fabric - 1)


def make(profile: Profile, started: float) -> Applications:
    """Everybody. ``started``: seconds since the epoch."""
    return _Making(profile, started).run()


class _Making:
    def __init__(self, profile: Profile, started: float) -> None:
        self._profile = profile
        self._started = started
        self._processes: list[Process] = []
        self._queue_pairs: list[Wanted] = []
        self._regions: list[Region] = []
        self._on_gpu: dict[tuple[int, int | None], tuple[Process, int]] = {}
        self._qpns: dict[str, int] = {}

    def run(self) -> Applications:
        self._training()
        self._storage()
        self._inference()
        self._model_store()
        return Applications(
            tuple(self._processes), tuple(self._queue_pairs), tuple(self._regions), self._on_gpu
        )

    def _training(self) -> None:
        """One rank for each GPU: a ring over the nodes, over the adapter that is nearest to the GPU."""
        profile, network = self._profile, self._profile.network
        ranks = len(profile.trainers)
        of_port = [training_port(profile, index) for index in profile.trainers]
        for rank, (index, port) in enumerate(zip(profile.trainers, of_port, strict=True)):
            process = self._process("sim-trainer", _trainer(profile, rank))
            self._on_gpu[index, None] = process, profile.memory_used
            device = f"mlx5_{port}"
            # Adapters that serve several GPUs are shared by their ranks; all of one serve one alone.
            sharing = of_port.count(port)
            rate = network.fabric_rate // sharing // CHANNELS
            for channel in range(CHANNELS):
                other = 0x151 + rank * CHANNELS + channel
                self._connect(
                    process,
                    device,
                    fabric_gid(profile, 2, port),
                    other,
                    Work("rdma_write", "fabric", rate, 512 << 10),
                    Work("rdma_write_with_imm", "fabric", rate, 512 << 10, every=8),
                )
            for channel in range(CHANNELS):
                other = 0x151 + (ranks + rank) * CHANNELS + channel
                self._connect(
                    process,
                    device,
                    fabric_gid(profile, 3, port),
                    other,
                    Work("recv", "fabric", rate, 512 << 10, every=8),
                )
            everything = _LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ | REMOTE_ATOMIC
            self._regions += [Region(process, device, 4 << 20, everything)] * CHANNELS
            self._regions.append(Region(process, device, 8 * _GIB, _LOCAL_WRITE))

    def _storage(self) -> None:
        profile = self._profile
        device, rate = storage_device(profile), profile.network.storage_rate
        loader = self._process("sim-dataloader", _trainer(profile, 0))
        self._connect(loader, device, storage_gid(100), 0x2A1, Work("rdma_read", "load", rate, 1 << 20))
        self._regions.append(Region(loader, device, 64 * _GIB, _LOCAL_WRITE))
        writer = self._process("sim-checkpoint", _trainer(profile, 0))
        self._connect(
            writer,
            device,
            storage_gid(101),
            0x2A2,
            Work("rdma_write", "checkpoint", rate, 4 << 20),
            Work("send", "checkpoint", rate // (1 << 14), 256),
        )
        self._regions.append(Region(writer, device, 32 * _GIB, _LOCAL_WRITE))

    def _inference(self) -> None:
        """A cache on another node is read in small pieces; on each slice of a split GPU is a process."""
        profile = self._profile
        device, rate = storage_device(profile), profile.network.storage_rate
        pod = _pod("sim-serving", "sim-decode-0", "decode")
        reader = self._process("sim-kv-reader", pod)
        self._connect(reader, device, storage_gid(110), 0x311, Work("rdma_read", "reads", rate, 64 << 10))
        self._regions.append(Region(reader, device, 16 * _GIB, _LOCAL_WRITE))
        for index, slices in (profile.migs or {}).items():
            for number, one in enumerate(slices):
                if one.memory_used:
                    pod = _pod("sim-serving", f"sim-server-{index}-{number}", "server")
                    self._on_gpu[index, number] = self._process("sim-server", pod), one.memory_used

    def _model_store(self) -> None:
        """Holds a model for others to read, and posts nothing itself."""
        port = pull_port(self._profile)
        device = f"mlx5_{port}"
        store = self._process("sim-model-store", _pod("sim-serving", "sim-model-store-0", "store"))
        self._connect(store, device, fabric_gid(self._profile, 6, 1), 0x6661)
        self._regions.append(Region(store, device, 140 * _GIB, _LOCAL_WRITE | REMOTE_READ))

    def _process(self, name: str, workload: Workload) -> Process:
        pid = FIRST_PID + len(self._processes)
        # Ticks are those of no clock of this machine: the pid alone tells these processes apart.
        process = Process(pid, name, self._started, pid, workload)
        self._processes.append(process)
        return process

    def _connect(self, process: Process, device: str, peer_gid: str, peer_qpn: int, *works: Work) -> None:
        gid = storage_gid(1)
        if device != storage_device(self._profile):
            gid = fabric_gid(self._profile, 1, int(device.removeprefix("mlx5_")))
        qpn = self._qpns[device] = self._qpns.get(device, _FIRST_QPN - 1) + 1
        self._queue_pairs.append(Wanted(process, device, qpn, gid, peer_gid, peer_qpn, works))


def storage_device(profile: Profile) -> str:
    """Name of the adapter that leads to storage."""
    return f"mlx5_{profile.network.fabric}"


def _trainer(profile: Profile, rank: int) -> Workload:
    if profile.slurm:
        return Workload(
            slurm_job="900001",
            slurm_step="0",
            slurm_task=str(rank),
            slurm_uid=60001,
            slurm_user="sim-user",
            slurm_origin="cgroup",
        )
    return _pod("sim-training", "sim-pretrain-worker-0", "trainer")


def _pod(namespace: str, pod: str, container: str) -> Workload:
    return Workload(
        container_id=hashlib.sha256(f"simulated/{namespace}/{pod}/{container}".encode()).hexdigest(),
        runtime="containerd",
        pod_uid=str(uuid.uuid5(_NAMESPACE, f"{namespace}/{pod}")),
        qos="guaranteed",
        pod_name=pod,
        namespace=namespace,
        container_name=container,
    )
