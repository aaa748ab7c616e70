"""The one table of everything fabrictap exports: metrics, spans, events and their attributes.

Names, units, kinds and meanings stand here alone. Code refers to the constants below; documents,
dashboards and tests are generated from this table or checked against it.

Names follow OpenTelemetry semantic conventions 1.44 where one exists (``hw.*``, ``process.*``,
``network.*``, ``otel.sdk.*``). There is no convention for RDMA, nor for what a GPU's links are:
``rdma.*`` and ``gpu.*`` are ours, and ``fabrictap.*`` is what the agent says about itself.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass


class Kind(enum.Enum):
    """How the points of a metric behave. All sums are cumulative."""

    COUNTER = "Counter"
    UPDOWNCOUNTER = "UpDownCounter"
    GAUGE = "Gauge"
    HISTOGRAM = "Histogram"


class Standard(enum.Enum):
    """Who defined a name."""

    SEMCONV = "OpenTelemetry semantic conventions"
    FABRICTAP = "fabrictap"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute key. ``values`` lists the closed set of values where there is one."""

    name: str
    type: type[str] | type[int] | type[float] | type[bool]
    meaning: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``unit`` is UCUM; ``attributes`` may be absent on a point where they cannot be known.

    ``rates``: the counter is also exported as two gauges, NAME.rate.average and NAME.rate.peak, in UNIT/s.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[Attribute, ...]
    standard: Standard = Standard.FABRICTAP
    rates: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """One kind of span."""

    name: str
    description: str
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One kind of event. ``severity`` is an OTLP SeverityNumber: 9 info, 13 warning, 17 error."""

    name: str
    severity: int
    description: str
    attributes: tuple[Attribute, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of finding. ``advice`` is for the person on call; ``doubt`` says when it may be wrong."""

    name: str
    description: str
    doubt: str
    advice: str


# --- attributes -----------------------------------------------------------------------------------

HW_ID = Attribute(
    "hw.id",
    str,
    "What it is about, unique on the node: an RDMA port is DEVICE/PORT, as in mlx5_0/1, a GPU GPU-<uuid>, a "
    "MIG device MIG-<uuid>, a MIG GPU instance that is not one MIG device GPU-<uuid>/gi<number>, an NVSwitch "
    "nvswitch/<number>, a CPU that DCGM watches cpu/<number>",
)
HW_TYPE = Attribute("hw.type", str, "Kind of hardware component", ("network", "gpu", "cpu"))
HW_NAME = Attribute("hw.name", str, "Network interface that the port belongs to, where there is one")
HW_PARENT = Attribute(
    "hw.parent", str, "RDMA device that the port belongs to; of a MIG device, the hw.id of its GPU"
)
HW_MODEL = Attribute("hw.model", str, "Board id or HCA type, or product name, as the driver reports it")
HW_FIRMWARE = Attribute("hw.firmware_version", str, "Firmware (of a GPU: VBIOS) as the driver reports it")
HW_SERIAL = Attribute("hw.serial_number", str, "Serial number as the driver reports it")
HW_DRIVER = Attribute("hw.driver_version", str, "Version of the driver")
HW_STATE = Attribute(
    "hw.state",
    str,
    "ok; degraded: the GPU works but asks for a reset or has memory or links that failed; failed: it is "
    "lost, its calls hang, or it asks to be replaced",
    ("ok", "degraded", "failed"),
)
ERROR_TYPE = Attribute(
    "error.type",
    str,
    "Name of the counter file that counts this error, or of the failure; of a GPU, its kind: ecc_corrected, "
    "nvlink_replay, pcie_fatal, xid_79 and the like",
)
IO_DIRECTION = Attribute(
    "network.io.direction", str, "Direction seen from this node", ("receive", "transmit")
)

RDMA_LINK_LAYER = Attribute("rdma.link_layer", str, "Link layer of the port", ("infiniband", "ethernet"))
RDMA_PORT_STATE = Attribute("rdma.port.state", str, "Logical port state as the kernel names it, lower case")
RDMA_COUNTER_NAME = Attribute("rdma.counter.name", str, "File name below counters/ or hw_counters/")
RDMA_COUNTER_SOURCE = Attribute(
    "rdma.counter.source",
    str,
    "Where the figure was read: the port's own counters, or the network interface below a software "
    "RDMA device (which also carries all other traffic of that interface)",
    ("port", "netdev"),
)
RDMA_DEVICE = Attribute("rdma.device", str, "RDMA device name, as in mlx5_0")
RDMA_PORT = Attribute("rdma.port", int, "Port number on the device, from 1")
RDMA_GID = Attribute("rdma.gid", str, "Local GID of the connection, in IPv6 notation")
RDMA_PEER_GID = Attribute(
    "rdma.peer.gid", str, "GID of the other end, in IPv6 notation; absent where it cannot be known"
)
RDMA_PEER_QPN = Attribute("rdma.peer.qp.number", int, "Queue pair number at the other end; absent likewise")
RDMA_QPN = Attribute(
    "rdma.qp.number", int, "Local queue pair number; the SRQ handle for shared receive queues"
)
RDMA_QP_TYPE = Attribute(
    "rdma.qp.type",
    str,
    "Transport of the queue pair",
    ("rc", "uc", "ud", "xrc_ini", "xrc_tgt", "raw_packet", "driver", "srq", "unknown"),
)
RDMA_QP_STATE = Attribute(
    "rdma.qp.state",
    str,
    "State of the queue pair as software last set it",
    ("reset", "init", "rtr", "rts", "sqd", "sqe", "err", "unknown"),
)
RDMA_OPERATION = Attribute(
    "rdma.operation",
    str,
    "Opcode of the work request; recv is a posted receive buffer",
    (
        "rdma_write",
        "rdma_write_with_imm",
        "send",
        "send_with_imm",
        "rdma_read",
        "atomic_cmp_and_swp",
        "atomic_fetch_and_add",
        "local_inv",
        "bind_mw",
        "send_with_inv",
        "tso",
        "driver",
        "recv",
        "unknown",
    ),
)
RDMA_COMPLETION_STATUS = Attribute(
    "rdma.completion.status",
    str,
    "Status of a work completion with an error, enum ibv_wc_status without its prefix",
    (
        "loc_len_err",
        "loc_qp_op_err",
        "loc_eec_op_err",
        "loc_prot_err",
        "wr_flush_err",
        "mw_bind_err",
        "bad_resp_err",
        "loc_access_err",
        "rem_inv_req_err",
        "rem_access_err",
        "rem_op_err",
        "retry_exc_err",
        "rnr_retry_exc_err",
        "loc_rdd_viol_err",
        "rem_inv_rd_req_err",
        "rem_abort_err",
        "inv_eecn_err",
        "inv_eec_state_err",
        "fatal_err",
        "resp_timeout_err",
        "general_err",
        "tm_err",
        "tm_rndv_incomplete",
        "unknown",
    ),
)
RDMA_COMPLETION_UNMATCHED = Attribute(
    "rdma.completion.unmatched",
    str,
    "Why a completion has no latency. earlier: posted before the window; ambiguous: it may have been, for "
    "its wr_id is not unique; mismatched: no request is outstanding that it could complete; lost: the window "
    "lost records; overflowed: too many queue pairs to remember",
    ("earlier", "ambiguous", "mismatched", "lost", "overflowed"),
)
RDMA_MR_ACCESS = Attribute(
    "rdma.memory_region.remote_access",
    str,
    "What a peer that knows the rkey may do to the memory",
    ("none", "read", "write", "read_write", "unknown"),
)
RDMA_MR_REMOTE_ATOMIC = Attribute(
    "rdma.memory_region.remote_atomic", bool, "Whether a peer may also run atomics on the memory"
)
RDMA_CM_EVENT = Attribute("rdma.cm.event", str, "RDMA connection manager event, as in established")
RDMA_PSN = Attribute("rdma.flow.start_psn", int, "First packet sequence number of the direction (24 bits)")
RDMA_MTU = Attribute("rdma.path_mtu", int, "Path MTU in bytes")
RDMA_FLOW_ROLE = Attribute(
    "rdma.flow.role", str, "Which end of the flow this node is", ("sender", "receiver")
)
RDMA_SENDER_GID = Attribute("rdma.flow.sender.gid", str, "GID that the flow comes from")
RDMA_SENDER_QPN = Attribute("rdma.flow.sender.qp.number", int, "Queue pair that the flow comes from")
RDMA_RECEIVER_GID = Attribute("rdma.flow.receiver.gid", str, "GID that the flow goes to")
RDMA_RECEIVER_QPN = Attribute("rdma.flow.receiver.qp.number", int, "Queue pair that the flow goes to")
RDMA_FLOW_BYTES = Attribute(
    "rdma.flow.io", int, "Bytes that a local process posted in this direction, over the span's time"
)
RDMA_FLOW_OPERATIONS = Attribute(
    "rdma.flow.operations", int, "Work requests that a local process posted in this direction, likewise"
)
RDMA_FLOW_OPERATION_BYTES = Attribute(
    "rdma.flow.<operation>.io", int, "The same bytes by rdma.operation; only operations that were seen"
)
RDMA_FLOW_OPERATION_COUNT = Attribute(
    "rdma.flow.<operation>.operations", int, "The same work requests by rdma.operation, likewise"
)
RDMA_FLOW_CLOSE_REASON = Attribute(
    "rdma.flow.close_reason",
    str,
    "Why the flow ended",
    (
        "destroyed",
        "process_exited",
        "device_removed",
        "reset",
        "error",
        "vanished",
        "evicted",
        "agent_stopped",
    ),
)
RDMA_FLOW_IDENTITY = Attribute(
    "rdma.flow.identity",
    str,
    "exact: the trace id was computed from both ends and meets the peer's; local: the connection is "
    "older than the agent, its first PSN is unknown and the trace id is this node's own",
    ("exact", "local"),
)

GPU_INTERCONNECT = Attribute("gpu.interconnect", str, "What the bytes moved over", ("nvlink", "pcie", "c2c"))
GPU_LINK = Attribute("gpu.nvlink.link", int, "Number of the NVLink on its GPU, from 0")
GPU_LINK_COUNTER = Attribute(
    "gpu.nvlink.counter",
    str,
    "data: payload, no headers; port: what the NVLink 5 port counts, where the driver has no data counter",
    ("data", "port"),
)
GPU_REMOTE_TYPE = Attribute(
    "gpu.nvlink.remote.type", str, "What is at the other end of the link", ("gpu", "switch", "npu", "unknown")
)
GPU_REMOTE_PCI = Attribute("gpu.nvlink.remote.pci.address", str, "PCI address of the other end")
GPU_REMOTE_ID = Attribute(
    "gpu.nvlink.remote.gpu", str, "hw.id of the other end where it is a GPU of this node"
)
GPU_REMOTE_LINK = Attribute("gpu.nvlink.remote.link", int, "Number of the link at the other end")
GPU_INDEX = Attribute("gpu.index", int, "Number of the GPU in NVML's order, as nvidia-smi shows it")
GPU_PCI = Attribute("gpu.pci.address", str, "PCI address as sysfs writes it, 0000:1b:00.0")
GPU_NUMA = Attribute("gpu.numa.node", int, "NUMA node that the GPU is attached to")
GPU_RDMA = Attribute(
    "gpu.rdma.devices",
    str,
    "RDMA devices nearest to the GPU by PCI, separated by commas, as in mlx5_0,mlx5_1",
)
GPU_RDMA_DISTANCE = Attribute(
    "gpu.rdma.distance",
    str,
    "How near: below the same PCIe switch, the same host bridge, on the same NUMA node, or elsewhere",
    ("switch", "host_bridge", "numa", "system"),
)
GPU_MEMORY_SPAN = Attribute(
    "gpu.ecc.span",
    str,
    "volatile: since the driver was loaded; aggregate: over the life of the GPU",
    ("volatile", "aggregate"),
)
GPU_SENSOR = Attribute("hw.sensor_location", str, "Where it is measured", ("gpu", "memory"))
GPU_THROTTLE_REASON = Attribute(
    "gpu.clocks.reason",
    str,
    "Why the clocks are not higher, as NVML names it",
    (
        "gpu_idle",
        "application_clocks",
        "sw_power_cap",
        "hw_slowdown",
        "sync_boost",
        "sw_thermal",
        "hw_thermal",
        "hw_power_brake",
        "display_clocks",
    ),
)
GPU_FABRIC_STATE = Attribute(
    "gpu.fabric.state",
    str,
    "Registration of the GPU with the fabric manager",
    ("not_supported", "not_started", "in_progress", "completed"),
)
GPU_ROW_REMAP = Attribute(
    "gpu.row_remap.state",
    str,
    "pending: a reset is needed to put a row out of use; failed: no spare row was left",
    ("pending", "failed"),
)
GPU_BIT_ERROR_KIND = Attribute(
    "gpu.nvlink.bit_error.kind",
    str,
    "symbol: before error correction; effective: what is left after it",
    ("symbol", "effective"),
)
NVSWITCH_LINK = Attribute("gpu.nvswitch.link", int, "Number of the link on its NVSwitch, from 0")
GPU_PROCESS_TYPE = Attribute(
    "gpu.process.type", str, "What the process uses the GPU for", ("compute", "graphics", "mps")
)
PROVIDER = Attribute(
    "fabrictap.provider",
    str,
    "Who delivered the figure: the driver's field values and calls, its GPM samples, or a DCGM host engine. "
    "The best that can is taken, and never two of them at once",
    ("nvml", "gpm", "dcgm"),
)
METRIC_NAME = Attribute("fabrictap.metric", str, "Name of a metric of this catalog")
UNAVAILABLE = Attribute(
    "fabrictap.unavailable.reason",
    str,
    "Why the provider cannot deliver the figure",
    (
        "gpu_lost",
        "hung",
        "driver_not_loaded",
        "library_missing",
        "version_mismatch",
        "not_connected",
        "no_permission",
        "paused",
        "in_use",
        "timeout",
        "stale",
        "blank",
        "no_data",
        "not_watched",
        "function_not_found",
        "module_not_loaded",
        "error",
        "not_supported",
        "waiting",
    ),
)

PROCESS_PID = Attribute("process.pid", int, "Process id in the agent's pid namespace; absent for the kernel")
PROCESS_EXE = Attribute("process.executable.name", str, "Executable name; [kernel] for a kernel user of RDMA")

K8S_NAMESPACE = Attribute("k8s.namespace.name", str, "Namespace of the pod that the process runs in")
K8S_POD = Attribute("k8s.pod.name", str, "Name of that pod")
K8S_POD_UID = Attribute(
    "k8s.pod.uid", str, "UID of that pod; of a static pod the hash that the kubelet uses on the node"
)
K8S_CONTAINER = Attribute("k8s.container.name", str, "Name of the container in its pod")
CONTAINER_ID = Attribute("container.id", str, "Id of the container that the process runs in")
CONTAINER_RUNTIME = Attribute(
    "container.runtime.name",
    str,
    "What runs that container; absent where its cgroup does not tell (cgroupfs driver)",
    ("containerd", "cri-o", "docker", "podman"),
)
SLURM_JOB = Attribute("slurm.job.id", str, "Slurm job that the process belongs to")
SLURM_STEP = Attribute("slurm.step.id", str, "Step of that job: a number, batch, extern or interactive")
SLURM_UID = Attribute("slurm.job.uid", int, "User id that the job runs as")
SLURM_USER = Attribute("slurm.job.user", str, "User that the job runs as, where its user id agrees")
SLURM_ORIGIN = Attribute(
    "slurm.job.origin",
    str,
    "cgroup: the kernel says which job it is; environment: only the process itself does",
    ("cgroup", "environment"),
)
SYSTEMD_UNIT = Attribute(
    "systemd.unit.name", str, "Unit of systemd that the process runs in, where it is no container's or job's"
)
DEVICE_RESOURCE = Attribute(
    "fabrictap.device.resource",
    str,
    "Extended resource of Kubernetes, as in nvidia.com/gpu, or driver of Dynamic Resource Allocation",
)
DEVICE_ID = Attribute(
    "fabrictap.device.id", str, "The device plugin's id of the device: a UUID, a PCI address, POOL/DEVICE"
)

COVERAGE = Attribute(
    "fabrictap.coverage",
    str,
    "exact: every post since the queue pair was made; since: posts from fabrictap.coverage.since on; "
    "estimated: posts in a part of the time, because counting all of them would have cost the process more "
    "than sources.verbs.budget allows; what was counted stands as it is, nothing is scaled up; control_only: "
    "posts of this process cannot be seen, the connection is known from the kernel",
    ("exact", "since", "estimated", "control_only"),
)
COVERAGE_SINCE = Attribute("fabrictap.coverage.since", str, "Start of the observation, RFC 3339, UTC")
COVERAGE_FRACTION = Attribute(
    "fabrictap.coverage.fraction",
    float,
    "Where the coverage is estimated: the share of the connection's time, since fabrictap.coverage.since "
    "where that is there, in which its posts were counted. Without figures where it is 0",
)
ORIGIN = Attribute(
    "fabrictap.origin",
    str,
    "How the object became known: seen being made, or listed by the kernel when the agent came later",
    ("probe", "netlink"),
)
SOURCE = Attribute("fabrictap.source", str, "A source of the agent, as in verbs")
DETECTOR = Attribute("fabrictap.detector", str, "A detector of the agent, as in dark")
PROBE = Attribute("fabrictap.probe", str, "A BPF program of the agent")
PROBE_METHOD = Attribute(
    "fabrictap.probe.method", str, "How it is attached", ("fexit", "kprobe", "tracepoint", "uprobe", "none")
)
PROBE_ENTRY = Attribute(
    "fabrictap.probe.entry",
    str,
    "What the kernel does with the instruction that the probe replaces: emulates it, or single-steps it",
    ("emulated", "stepped"),
)
BUDGET_STATE = Attribute(
    "fabrictap.budget.state",
    str,
    "full: all posts of the process are counted; reduced: in a part of the time; detached: for a moment now "
    "and then, to see whether its rate has fallen; off: the configuration says that they are not",
    ("full", "reduced", "detached", "off"),
)
BUDGET_DECISION = Attribute(
    "fabrictap.budget.decision",
    str,
    "reduced, detached: a process was let go, for a time; window: it is counted again, to see what it "
    "costs; restored: it is counted in full again",
    ("reduced", "detached", "window", "restored"),
)
LOSS = Attribute(
    "fabrictap.loss.reason",
    str,
    "What could not be recorded: buffer_full a control record, table_full posts of a new queue pair, "
    "table_busy likewise, chain_too_long the rest of a chain of work requests, too_many_sges the rest of a "
    "scatter/gather list, memory_fault the rest of a post, wrong_size a record of another version, "
    "unknown_handle a command on an object that is older than the agent (hook level syscall), "
    "batch_too_long posts of ibv_wr_* that were counted before their batch of more than 32 was given up",
    (
        "buffer_full",
        "table_full",
        "table_busy",
        "chain_too_long",
        "too_many_sges",
        "memory_fault",
        "wrong_size",
        "unknown_handle",
        "batch_too_long",
    ),
)
WORKLOAD_LOSS = Attribute(
    "fabrictap.workload.loss.reason",
    str,
    "gone: the process ended before it was read; denied, malformed; environ_denied, environ_hung, "
    "environ_malformed, environ_gone: its environment was not read; environ_truncated: it is larger than "
    "256 KiB, and only that was searched; environ_rejected: a variable of Slurm's has no value of Slurm's; "
    "name_escaped: the name of an executable or cgroup is no printable text and is told with escapes",
    (
        "gone",
        "denied",
        "malformed",
        "environ_denied",
        "environ_hung",
        "environ_malformed",
        "environ_gone",
        "environ_truncated",
        "environ_rejected",
        "name_escaped",
    ),
)
WINDOW_END = Attribute(
    "fabrictap.window.end",
    str,
    "full: it took its time; cost: the probes were run so often that it was ended before; failed: no probe "
    "could be attached",
    ("full", "cost", "failed"),
)
IDENTITY_LEVEL = Attribute(
    "fabrictap.identity.level",
    str,
    "What was left out, in the order in which it is: process (its id), container (with the Slurm step), pod, "
    "job (with the systemd unit), name (all that is left)",
    ("process", "container", "pod", "job", "name"),
)
TABLE = Attribute(
    "fabrictap.table",
    str,
    "A bounded table of the agent",
    (
        "devices",
        "connections",
        "connection_rows",
        "memory_regions",
        "contexts",
        "processes",
        "flows",
        "spans",
        "gpus",
        "gpu_figures",
        "identities",
        "device_assignments",
    ),
)
METRIC_OVERFLOW = Attribute(
    "otel.metric.overflow",
    bool,
    "true on the one series of a counter that counts for all that limits.series refused",
)
FINDING_KIND = Attribute(
    "fabrictap.finding.kind",
    str,
    "What was found; each has a section in docs/security.md",
    (
        "remote_read_egress",
        "dark_egress",
        "exposed_memory",
        "new_peer",
        "forbidden_peer",
        "cross_tenant",
        "slow_egress",
        "resource_exhaustion",
        "probe_detached",
        "probes_blind",
        "coverage_fell",
        "file_replaced",
        "sources_down",
        "link_errors",
        "link_degraded",
        "retransmissions",
        "gpu_shared",
        "mig_changed",
        "confidential_off",
    ),
)
FINDING_SEVERITY = Attribute(
    "fabrictap.finding.severity", str, "How much it matters", ("info", "warn", "error")
)
FINDING_STATE = Attribute(
    "fabrictap.finding.state",
    str,
    "opened; worsened: many times as much as when it was last told; continuing: told again after a long "
    "time; ended",
    ("opened", "worsened", "continuing", "ended"),
)
FINDING_ID = Attribute("fabrictap.finding.id", str, "The same in everything that is told of one finding")
FINDING_SINCE = Attribute("fabrictap.finding.since", str, "When it began, RFC 3339, UTC")
FINDING_VALUE = Attribute(
    "fabrictap.finding.value", int, "What was measured, in the unit that fabrictap.finding.unit names"
)
FINDING_UNIT = Attribute("fabrictap.finding.unit", str, "Unit of value and threshold in UCUM, as in By")
FINDING_THRESHOLD = Attribute("fabrictap.finding.threshold", int, "What value may be")
FINDING_BASELINE = Attribute("fabrictap.finding.baseline", int, "What value usually is")
FINDING_WINDOW = Attribute("fabrictap.finding.window", int, "Seconds over which value was measured")
FINDING_ADVICE = Attribute("fabrictap.finding.advice", str, "What to do")
FINDING_CANDIDATES = Attribute(
    "fabrictap.finding.candidates",
    str,
    "Whom it may concern where one owner cannot be told, likeliest first, at most five",
)
FINDING_TENANT = Attribute("fabrictap.finding.tenant", str, "Tenant that the policy names for the workload")
FINDING_PEER_TENANT = Attribute("fabrictap.finding.peer.tenant", str, "Tenant of the other end, likewise")
FINDING_WORKLOAD = Attribute(
    "fabrictap.finding.workload",
    str,
    "What is kept over restarts of pods and jobs: k8s:NAMESPACE/CONTAINER, slurm:USER/EXECUTABLE, "
    "systemd:UNIT or process:EXECUTABLE",
)
FINDING_SUPPRESSED = Attribute(
    "fabrictap.finding.loss.reason",
    str,
    "rate: more events than limits.findings_per_minute; full: more open findings than limits.findings; "
    "queue: more events than wait for an export",
    ("rate", "full", "queue"),
)
STATE_ERROR = Attribute(
    "fabrictap.state.error",
    str,
    "corrupt: the file was moved aside; io: it could not be read or written; full: a workload or peer had "
    "no place any more and is counted together with others",
    ("corrupt", "io", "full"),
)
SIMULATED = Attribute(
    "fabrictap.simulated",
    str,
    "Of the resource, of everything that leaves an agent whose node is made up (run --simulate); else absent",
    ("true",),
)
COMPONENT_TYPE = Attribute("otel.component.type", str, "Kind of exporter, as in otlp_grpc_metric_exporter")
COMPONENT_NAME = Attribute("otel.component.name", str, "Name of the exporter in this process")
CPU_MODE = Attribute("cpu.mode", str, "Where the time was spent", ("user", "system"))

#: What any counter may have beside its own attributes.
ON_ANY_COUNTER = (METRIC_OVERFLOW,)
#: What the resource may have beside what OpenTelemetry defines.
ON_THE_RESOURCE = (SIMULATED,)

_PORT = (HW_ID, HW_NAME, HW_PARENT, RDMA_LINK_LAYER)
_GPU = (HW_ID, HW_PARENT, PROVIDER)
_LINK = (*_GPU, GPU_LINK, GPU_REMOTE_TYPE, GPU_REMOTE_PCI, GPU_REMOTE_ID, GPU_REMOTE_LINK)
_PROCESS = (
    PROCESS_PID,
    PROCESS_EXE,
    K8S_NAMESPACE,
    K8S_POD,
    K8S_POD_UID,
    K8S_CONTAINER,
    CONTAINER_ID,
    CONTAINER_RUNTIME,
    SLURM_JOB,
    SLURM_STEP,
    SLURM_UID,
    SLURM_USER,
    SLURM_ORIGIN,
    SYSTEMD_UNIT,
)
#: What tells whose process it is; what a policy may match.
PROCESS_IDENTITY = _PROCESS

_PEER = (RDMA_GID, RDMA_PEER_GID, RDMA_PEER_QPN)
_POSTS = (*_PROCESS, RDMA_DEVICE, RDMA_QPN, RDMA_QP_TYPE, RDMA_OPERATION, *_PEER, COVERAGE)
_COMPLETIONS = (*_PROCESS, RDMA_DEVICE, RDMA_OPERATION)
_EXPORTER = (COMPONENT_TYPE, COMPONENT_NAME)

# --- metrics: what the hardware did ---------------------------------------------------------------

NETWORK_IO = Metric(
    "hw.network.io",
    Kind.COUNTER,
    "By",
    "Bytes that the port moved. InfiniBand and RoCE hardware: port_xmit_data and port_rcv_data, 4-byte "
    "words turned into bytes. Software RDMA has no byte counter: the interface's bytes, headers and other "
    "traffic included (rdma.counter.source=netdev)",
    (*_PORT, IO_DIRECTION, RDMA_COUNTER_SOURCE),
    Standard.SEMCONV,
    rates=True,
)
NETWORK_PACKETS = Metric(
    "hw.network.packets",
    Kind.COUNTER,
    "{packet}",
    "Packets that the port moved",
    (*_PORT, IO_DIRECTION, RDMA_COUNTER_SOURCE),
    Standard.SEMCONV,
    rates=True,
)
NETWORK_LIMIT = Metric(
    "hw.network.bandwidth.limit",
    Kind.UPDOWNCOUNTER,
    "By/s",
    "Link speed of the port",
    _PORT,
    Standard.SEMCONV,
)
NETWORK_UP = Metric(
    "hw.network.up",
    Kind.UPDOWNCOUNTER,
    "1",
    "1 while the port is active, else 0",
    (*_PORT, RDMA_PORT_STATE, HW_MODEL, HW_FIRMWARE),
    Standard.SEMCONV,
)
ERRORS = Metric(
    "hw.errors",
    Kind.COUNTER,
    "{error}",
    "Errors and discards that a port or a GPU counted; hw.type says which. Of a port, error.type is the "
    "counter's file name. Of a GPU: ecc_corrected and ecc_uncorrected (gpu.ecc.span), row_remap_corrected "
    "and row_remap_uncorrected (rows put out of use), pcie_replay, pcie_correctable, pcie_non_fatal, "
    "pcie_fatal, nvlink_* by link (from DCGM: of all links), and xid_N: driver errors (XIDs) since the agent "
    "came. Of an NVSwitch: nvswitch_* by link, sxid_N and sxid_fatal_N likewise",
    (*_PORT, HW_TYPE, ERROR_TYPE, IO_DIRECTION, GPU_MEMORY_SPAN, GPU_LINK, NVSWITCH_LINK, PROVIDER),
    Standard.SEMCONV,
)
PORT_COUNTER = Metric(
    "rdma.port.counter",
    Kind.COUNTER,
    "{count}",
    "Every other file of counters/ and hw_counters/, as the driver defines it",
    (*_PORT, RDMA_COUNTER_NAME),
)

PORT_ATTRIBUTED = Metric(
    "rdma.port.attributed.io",
    Kind.COUNTER,
    "By",
    "Payload of the port that posts of local processes explain: sends and writes out, reads in",
    (HW_ID, HW_PARENT, IO_DIRECTION),
)
PORT_DARK = Metric(
    "rdma.port.dark.io",
    Kind.COUNTER,
    "By",
    "Dark traffic: payload that the port surely moved and that no post seen on this node explains, such as "
    "memory that a peer pulls out with RDMA READ; posts that go unseen (kernel users, coverage control_only) "
    "are in it, but none while posts of a process are counted in a part of the time: that is uncertain then. "
    "Headers are taken off at their longest",
    (HW_ID, HW_PARENT, IO_DIRECTION),
)
PORT_UNCERTAIN = Metric(
    "rdma.port.uncertain.io",
    Kind.COUNTER,
    "By",
    "Bytes of the port that may be headers, other traffic of its interface, payload of processes whose posts "
    "are counted in a part of the time, or payload that nobody asked for",
    (HW_ID, HW_PARENT, IO_DIRECTION),
)

# --- GPUs -----------------------------------------------------------------------------------------

GPU_IO = Metric(
    "hw.gpu.io",
    Kind.COUNTER,
    "By",
    "Bytes that the GPU moved: transmit leaves it, receive comes in. NVLink: the sum over its links of "
    "gpu.nvlink.io",
    (*_GPU, GPU_INTERCONNECT, IO_DIRECTION),
    Standard.SEMCONV,
    rates=True,
)
NVLINK_IO = Metric(
    "gpu.nvlink.io",
    Kind.COUNTER,
    "By",
    "Bytes that one NVLink moved, without headers where gpu.nvlink.counter is data",
    (*_LINK, IO_DIRECTION, GPU_LINK_COUNTER),
    rates=True,
)
NVLINK_RAW_IO = Metric(
    "gpu.nvlink.raw.io",
    Kind.COUNTER,
    "By",
    "Bytes that one NVLink moved, headers included",
    (*_LINK, IO_DIRECTION),
)
NVLINK_PACKETS = Metric(
    "gpu.nvlink.packets",
    Kind.COUNTER,
    "{packet}",
    "Packets that one NVLink moved (NVLink 5 and later)",
    (*_LINK, IO_DIRECTION),
)
GPU_THROUGHPUT = Metric(
    "gpu.throughput",
    Kind.GAUGE,
    "By/s",
    "What hw.gpu.io counts, as a rate that the provider measured, where nobody has the counter",
    (*_GPU, GPU_INTERCONNECT, IO_DIRECTION),
)
NVLINK_THROUGHPUT = Metric(
    "gpu.nvlink.throughput",
    Kind.GAUGE,
    "By/s",
    "What gpu.nvlink.io counts, as a rate that the provider measured, where nobody has the counter",
    (*_LINK, IO_DIRECTION),
)
NVLINK_UP = Metric(
    "gpu.nvlink.up", Kind.UPDOWNCOUNTER, "{link}", "1 while the NVLink is active, else 0", _LINK
)
NVLINK_LIMIT = Metric(
    "gpu.nvlink.bandwidth.limit",
    Kind.UPDOWNCOUNTER,
    "By/s",
    "Speed of an active NVLink, in each direction",
    _LINK,
)
NVLINK_BIT_ERRORS = Metric(
    "gpu.nvlink.bit_error.ratio",
    Kind.GAUGE,
    "1",
    "Bit errors over bits, over all NVLinks of the GPU (NVLink 5 and later)",
    (*_GPU, GPU_BIT_ERROR_KIND),
)
NVSWITCH_TRAFFIC = Metric(
    "gpu.nvswitch.traffic",
    Kind.COUNTER,
    "{count}",
    "The NVSwitch's own throughput counter, summed over its links. What one count is worth depends on the "
    "library below DCGM and is not documented: good to compare links and times, not for bytes",
    (HW_ID, PROVIDER, IO_DIRECTION),
)
NVSWITCH_LINK_TRAFFIC = Metric(
    "gpu.nvswitch.link.traffic",
    Kind.COUNTER,
    "{count}",
    "The same of one link of the NVSwitch",
    (HW_ID, PROVIDER, NVSWITCH_LINK, IO_DIRECTION),
)
NVSWITCH_LINK_UP = Metric(
    "gpu.nvswitch.link.up",
    Kind.UPDOWNCOUNTER,
    "{link}",
    "1 while the link of the NVSwitch is active, else 0; links that were never active are left out",
    (HW_ID, PROVIDER, NVSWITCH_LINK),
)
PCIE_LIMIT = Metric(
    "gpu.pcie.bandwidth.limit",
    Kind.UPDOWNCOUNTER,
    "By/s",
    "What the GPU's PCIe link carries in each direction at its current generation and width (idle GPUs go to "
    "a lower generation), line code taken off, packet headers not",
    _GPU,
)
GPU_MEMORY_LIMIT = Metric(
    "hw.gpu.memory.limit", Kind.UPDOWNCOUNTER, "By", "Memory of the GPU", _GPU, Standard.SEMCONV
)
GPU_MEMORY_USAGE = Metric(
    "hw.gpu.memory.usage", Kind.UPDOWNCOUNTER, "By", "Memory in use", _GPU, Standard.SEMCONV
)
GPU_MEMORY_UTILIZATION = Metric(
    "hw.gpu.memory.utilization", Kind.GAUGE, "1", "Memory in use, of all", _GPU, Standard.SEMCONV
)
GPU_MEMORY_BANDWIDTH = Metric(
    "gpu.memory.bandwidth.utilization",
    Kind.GAUGE,
    "1",
    "Memory (DRAM) bandwidth in use, of the most that it has: traffic of the GPU's own and of others alike",
    _GPU,
)
GPU_BAR1_LIMIT = Metric(
    "gpu.bar1.limit",
    Kind.UPDOWNCOUNTER,
    "By",
    "Size of BAR1, the window through which other PCIe devices (GPUDirect RDMA) and the CPU reach GPU memory",
    _GPU,
)
GPU_BAR1_USAGE = Metric("gpu.bar1.usage", Kind.UPDOWNCOUNTER, "By", "BAR1 in use", _GPU)
GPU_UTILIZATION = Metric(
    "hw.gpu.utilization",
    Kind.GAUGE,
    "1",
    "Part of the driver's last sample period in which a kernel ran",
    _GPU,
    Standard.SEMCONV,
)
GPU_POWER = Metric("hw.power", Kind.GAUGE, "W", "Power drawn", (*_GPU, HW_TYPE), Standard.SEMCONV)
GPU_ENERGY = Metric(
    "hw.energy",
    Kind.COUNTER,
    "J",
    "Energy used since the driver was loaded",
    (*_GPU, HW_TYPE),
    Standard.SEMCONV,
)
GPU_TEMPERATURE = Metric(
    "hw.temperature", Kind.GAUGE, "Cel", "Temperature", (*_GPU, HW_TYPE, GPU_SENSOR), Standard.SEMCONV
)
HW_STATUS = Metric(
    "hw.status",
    Kind.UPDOWNCOUNTER,
    "1",
    "1 for the state that the GPU is in, 0 for the others",
    (HW_ID, HW_TYPE, HW_STATE, PROVIDER),
    Standard.SEMCONV,
)
GPU_PRESENT = Metric(
    "gpu.present",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "1 for each GPU and each MIG device, with what is known of it",
    (
        HW_ID,
        HW_PARENT,
        HW_MODEL,
        HW_SERIAL,
        HW_FIRMWARE,
        HW_DRIVER,
        GPU_INDEX,
        GPU_PCI,
        GPU_NUMA,
        GPU_RDMA,
        GPU_RDMA_DISTANCE,
    ),
)
GPU_CLOCKS_REASON = Metric(
    "gpu.clocks.limited",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "1 while the reason keeps the clocks down, else 0",
    (*_GPU, GPU_THROTTLE_REASON),
)
GPU_ROW_REMAPPING = Metric(
    "gpu.row_remap",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "1 while rows of memory are in this state, else 0",
    (*_GPU, GPU_ROW_REMAP),
)
GPU_FABRIC = Metric(
    "gpu.fabric",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "1 for the GPU, in its current state; until it is completed, NVLink through switches does not work",
    (*_GPU, GPU_FABRIC_STATE),
)
GPU_MIG_MODE = Metric(
    "gpu.mig.mode", Kind.UPDOWNCOUNTER, "{gpu}", "1 while the GPU is split by MIG, else 0", _GPU
)
GPU_CONFIDENTIAL = Metric(
    "gpu.confidential_computing",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "1 while confidential computing is on, else 0: peer traffic is then encrypted or not possible",
    _GPU,
)
GPU_PROCESS_MEMORY = Metric(
    "gpu.process.memory.usage",
    Kind.UPDOWNCOUNTER,
    "By",
    "Memory that a process holds on a GPU or MIG device",
    (HW_ID, HW_PARENT, *_PROCESS, GPU_PROCESS_TYPE),
)
GPU_PROCESSES = Metric(
    "gpu.process.count",
    Kind.UPDOWNCOUNTER,
    "{process}",
    "Processes that use the GPU or MIG device",
    (HW_ID, HW_PARENT),
)
GPU_CONTAINERS = Metric(
    "gpu.container.count",
    Kind.UPDOWNCOUNTER,
    "{container}",
    "Containers whose processes use the GPU or MIG device: above 1, they share it",
    (HW_ID, HW_PARENT),
)
GPU_MPS = Metric(
    "gpu.mps.server",
    Kind.UPDOWNCOUNTER,
    "{server}",
    "MPS servers on the GPU: with one, processes share its address space and errors",
    (HW_ID, HW_PARENT),
)

# --- metrics: what software asked for -------------------------------------------------------------

VERBS_OPERATIONS = Metric(
    "rdma.verbs.operations",
    Kind.COUNTER,
    "{operation}",
    "Work requests posted by a process to a queue pair, by opcode; those that the provider refused are "
    "counted too, unless sources.verbs.refused is subtract",
    _POSTS,
)
VERBS_IO = Metric(
    "rdma.verbs.io",
    Kind.COUNTER,
    "By",
    "Payload bytes that posted send-queue work requests ask for: the sum of their SGE lengths. "
    "rdma_read and atomics bring bytes in (receive), all others send them out (transmit)",
    (*_POSTS, IO_DIRECTION),
)
VERBS_RECEIVE_CAPACITY = Metric(
    "rdma.verbs.receive.capacity",
    Kind.COUNTER,
    "By",
    "Size of the receive buffers posted; an upper bound of what can arrive in them, not traffic",
    _POSTS,
)
VERBS_SGES = Metric(
    "rdma.verbs.sges", Kind.COUNTER, "{sge}", "Scatter/gather elements of posted work requests", _POSTS
)
VERBS_INLINE = Metric(
    "rdma.verbs.inline",
    Kind.COUNTER,
    "{operation}",
    "Posted work requests with IBV_SEND_INLINE: the CPU copies the payload",
    _POSTS,
)
VERBS_SIGNALED = Metric(
    "rdma.verbs.signaled",
    Kind.COUNTER,
    "{operation}",
    "Posted work requests with IBV_SEND_SIGNALED; queue pairs made with sq_sig_all signal all of them",
    _POSTS,
)
VERBS_MESSAGE_SIZE = Metric(
    "rdma.verbs.message.size",
    Kind.HISTOGRAM,
    "By",
    "Payload size of posted work requests; exponential histogram of scale 0 (powers of two)",
    _POSTS,
)
COMPLETION_OPERATIONS = Metric(
    "rdma.completion.operations",
    Kind.COUNTER,
    "{completion}",
    "Successful work completions that a process polled, by operation; recv also stands for a receive that a "
    "write with immediate data used up. Sampled: seen in windows only (sources.verbs.completions). Its "
    "increase divided by that of fabrictap.completion.observed.time is a rate",
    _COMPLETIONS,
)
COMPLETION_ERRORS = Metric(
    "rdma.completion.errors",
    Kind.COUNTER,
    "{completion}",
    "Work completions with an error that a process polled, by status. Sampled: seen in windows only, so none "
    "here does not say that there was none",
    (*_PROCESS, RDMA_DEVICE, RDMA_QPN, RDMA_COMPLETION_STATUS),
)
COMPLETION_RECEIVE_IO = Metric(
    "rdma.completion.receive.io",
    Kind.COUNTER,
    "By",
    "Payload bytes that arrived in receive buffers, by their completions, headers (GRH) left out; not what "
    "peers read or write past the CPU. Sampled, likewise",
    (*_PROCESS, RDMA_DEVICE),
)
COMPLETION_LATENCY = Metric(
    "rdma.completion.latency",
    Kind.HISTOGRAM,
    "s",
    "Time from the post of a work request to the poll that returned its completion: the wait in the send "
    "queue and until the process polls is in it. Exponential histogram of scale 2 or 3. Sampled, likewise; "
    "only completions whose request is known",
    _COMPLETIONS,
)
COMPLETION_UNMATCHED = Metric(
    "rdma.completion.unmatched",
    Kind.COUNTER,
    "{completion}",
    "Successful completions of send queues that rdma.completion.latency does not have, by reason. Sampled, "
    "likewise",
    (*_PROCESS, RDMA_DEVICE, RDMA_COMPLETION_UNMATCHED),
)
QP_STATUS = Metric(
    "rdma.qp.status",
    Kind.UPDOWNCOUNTER,
    "{qp}",
    "1 for each live queue pair, in its current state",
    (
        *_PROCESS,
        RDMA_DEVICE,
        RDMA_PORT,
        RDMA_QPN,
        RDMA_QP_TYPE,
        RDMA_QP_STATE,
        *_PEER,
        ORIGIN,
        COVERAGE,
        COVERAGE_SINCE,
    ),
)
CONTEXT_COUNT = Metric(
    "rdma.context.count",
    Kind.UPDOWNCOUNTER,
    "{context}",
    "RDMA devices held open by a process",
    (*_PROCESS, RDMA_DEVICE, ORIGIN),
)
MR_COUNT = Metric(
    "rdma.memory_region.count",
    Kind.UPDOWNCOUNTER,
    "{memory_region}",
    "Memory regions registered now",
    (*_PROCESS, RDMA_DEVICE, RDMA_MR_ACCESS, RDMA_MR_REMOTE_ATOMIC),
)
MR_SIZE = Metric(
    "rdma.memory_region.size",
    Kind.UPDOWNCOUNTER,
    "By",
    "Memory registered now; regions that overlap are counted each",
    (*_PROCESS, RDMA_DEVICE, RDMA_MR_ACCESS, RDMA_MR_REMOTE_ATOMIC),
)
PROCESS_IO = Metric(
    "rdma.process.io",
    Kind.COUNTER,
    "By",
    "What the hardware counted for the queue pairs of a process, whoever posted it: bytes of RDMA packets "
    "(sources.process_counters; optional counters of mlx5)",
    (*_PROCESS, RDMA_DEVICE, RDMA_PORT, RDMA_QP_TYPE, IO_DIRECTION),
)
PROCESS_COUNTER = Metric(
    "rdma.process.counter",
    Kind.COUNTER,
    "{count}",
    "The same for every other counter, by the driver's name for it (sources.process_counters)",
    (*_PROCESS, RDMA_DEVICE, RDMA_PORT, RDMA_QP_TYPE, RDMA_COUNTER_NAME),
)
CM_EVENTS = Metric(
    "rdma.cm.events",
    Kind.COUNTER,
    "{event}",
    "Events of the RDMA connection manager on this node",
    (RDMA_CM_EVENT, ERROR_TYPE),
)

DEVICE_ASSIGNMENT = Metric(
    "fabrictap.device.assignment",
    Kind.UPDOWNCOUNTER,
    "{device}",
    "1 for each device that the kubelet has given to a container; a shared device has one for each",
    (DEVICE_RESOURCE, DEVICE_ID, K8S_NAMESPACE, K8S_POD, K8S_CONTAINER),
)

# --- metrics: the agent itself --------------------------------------------------------------------

SOURCE_UP = Metric(
    "fabrictap.source.up",
    Kind.UPDOWNCOUNTER,
    "{source}",
    "1 while the source delivers, else 0; none where what it reads is not here and was not asked for",
    (SOURCE,),
)
SOURCE_DURATION = Metric(
    "fabrictap.source.sample.duration",
    Kind.HISTOGRAM,
    "s",
    "How long the samples took, waiting for events not counted; exponential histogram of scale 8 or less",
    (SOURCE,),
)
SOURCE_ERRORS = Metric(
    "fabrictap.source.errors",
    Kind.COUNTER,
    "{error}",
    "Reads that failed: each costs its own value, nothing else",
    (SOURCE, ERROR_TYPE),
)
PROBE_ATTACHED = Metric(
    "fabrictap.probe.attached",
    Kind.UPDOWNCOUNTER,
    "{probe}",
    "Attachments of each BPF program; 0 where it could not be attached",
    (PROBE, PROBE_METHOD),
)
PROBE_HITS = Metric(
    "fabrictap.probe.hits",
    Kind.COUNTER,
    "{hit}",
    "How often probes of the data path stopped the process; of a long chain of requests every eighth counts "
    "besides. Only where there is a budget, as are the next six",
    _PROCESS,
)
PROBE_COST = Metric(
    "fabrictap.probe.cost",
    Kind.COUNTER,
    "s",
    "CPU time that these took from the process: hits times what one was measured to cost on this machine",
    _PROCESS,
)
PROBE_HIT_COST = Metric(
    "fabrictap.probe.hit.cost",
    Kind.GAUGE,
    "s",
    "CPU time of one hit, measured at the start and every ten minutes at a function of the agent's own",
    (PROBE_ENTRY,),
)
PROBE_RUN_TIME = Metric(
    "fabrictap.probe.run.time",
    Kind.COUNTER,
    "s",
    "Run time of each program of the data path by the kernel's own statistics, without the trap into it; "
    "only where kernel.bpf_stats_enabled is set",
    (PROBE,),
)
BUDGET_USED = Metric(
    "fabrictap.budget.used",
    Kind.GAUGE,
    "{cpu}",
    "Cores that probes of the data path take on this node now; the limit is sources.verbs.budget.node",
    (),
)
BUDGET_PROCESSES = Metric(
    "fabrictap.budget.processes",
    Kind.UPDOWNCOUNTER,
    "{process}",
    "Processes that use RDMA, by how their posts are counted",
    (BUDGET_STATE,),
)
BUDGET_DECISIONS = Metric(
    "fabrictap.budget.decisions",
    Kind.COUNTER,
    "{decision}",
    "What was decided of processes, to keep within the budget",
    (BUDGET_DECISION,),
)
COVERAGE_RATIO = Metric(
    "fabrictap.coverage.ratio",
    Kind.GAUGE,
    "1",
    "Share of the time since the agent met the process in which its posts were counted; absent where that is "
    "all of it. Of several processes in one series the least",
    _PROCESS,
)
METRIC_AVAILABLE = Metric(
    "fabrictap.gpu.metric.available",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "GPUs and MIG devices for which the provider can deliver the metric",
    (PROVIDER, METRIC_NAME),
)
METRIC_UNAVAILABLE = Metric(
    "fabrictap.gpu.metric.unavailable",
    Kind.UPDOWNCOUNTER,
    "{gpu}",
    "GPUs and MIG devices for which it cannot, and why",
    (PROVIDER, METRIC_NAME, UNAVAILABLE),
)
RECORDS = Metric(
    "fabrictap.record.received", Kind.COUNTER, "{record}", "Records read from the BPF ring buffer", (SOURCE,)
)
LOST = Metric(
    "fabrictap.record.lost",
    Kind.COUNTER,
    "{record}",
    "What the probes saw but could not record",
    (SOURCE, LOSS),
)
WORKLOAD_LOST = Metric(
    "fabrictap.workload.lost",
    Kind.COUNTER,
    "{read}",
    "What could not be read of a process, its container or its pod: the identity lacks that part",
    (WORKLOAD_LOSS,),
)
COMPLETION_OBSERVED_TIME = Metric(
    "fabrictap.completion.observed.time",
    Kind.COUNTER,
    "s",
    "Time for which completions were watched, in windows: what rdma.completion.* was seen in",
    (),
)
COMPLETION_OBSERVED_SHARE = Metric(
    "fabrictap.completion.observed.share",
    Kind.GAUGE,
    "1",
    "The same of the last window but one, as a share of the time until the next began; a window ends early "
    "where its probes would cost more than sources.verbs.completions.cost",
    (),
)
COMPLETION_WINDOWS = Metric(
    "fabrictap.completion.windows",
    Kind.COUNTER,
    "{window}",
    "Windows in which completions were watched, by how they ended",
    (WINDOW_END,),
)
COMPLETION_LOST = Metric(
    "fabrictap.completion.lost",
    Kind.COUNTER,
    "{record}",
    "Records of posts and completions that a window lost: what it counted is less than there was",
    (),
)
IDENTITY_DROPPED = Metric(
    "fabrictap.identity.dropped",
    Kind.COUNTER,
    "{attribute_set}",
    "Processes whose series lack a level of detail, because limits.identities was reached",
    (IDENTITY_LEVEL,),
)
SAMPLE_INTERVAL = Metric(
    "fabrictap.source.fast.interval",
    Kind.GAUGE,
    "s",
    "Time between two fast samples; longer than configured where they would cost too much",
    (SOURCE,),
)
RING_SIZE = Metric(
    "fabrictap.ring.size", Kind.UPDOWNCOUNTER, "By", "Memory or disk that the ring's file takes now", ()
)
SERIES_COUNT = Metric("fabrictap.series.count", Kind.UPDOWNCOUNTER, "{series}", "Series exported now", ())
SERIES_REFUSED = Metric(
    "fabrictap.series.refused",
    Kind.COUNTER,
    "{series}",
    "How often a series was asked for that limits.series left no room for: the newest are refused",
    (),
)
TABLE_ENTRIES = Metric(
    "fabrictap.table.entries", Kind.UPDOWNCOUNTER, "{entry}", "Entries in a bounded table now", (TABLE,)
)
TABLE_EVICTED = Metric(
    "fabrictap.table.dropped",
    Kind.COUNTER,
    "{entry}",
    "Entries dropped because a table was full",
    (TABLE,),
)
POINTS_EXPORTED = Metric(
    "otel.sdk.exporter.metric_data_point.exported",
    Kind.COUNTER,
    "{data_point}",
    "Metric points handed over; with error.type, those that were not",
    (*_EXPORTER, ERROR_TYPE),
    Standard.SEMCONV,
)
SPANS_EXPORTED = Metric(
    "otel.sdk.exporter.span.exported",
    Kind.COUNTER,
    "{span}",
    "Spans handed over; with error.type, those that were not",
    (*_EXPORTER, ERROR_TYPE),
    Standard.SEMCONV,
)
LOGS_EXPORTED = Metric(
    "otel.sdk.exporter.log.exported",
    Kind.COUNTER,
    "{log_record}",
    "Log events handed over; with error.type, those that were not",
    (*_EXPORTER, ERROR_TYPE),
    Standard.SEMCONV,
)
FINDING_COUNT = Metric(
    "fabrictap.finding.count",
    Kind.COUNTER,
    "{finding}",
    "Findings that were opened, whether or not an event was sent",
    (FINDING_KIND, FINDING_SEVERITY),
)
FINDING_OPEN = Metric(
    "fabrictap.finding.open",
    Kind.UPDOWNCOUNTER,
    "{finding}",
    "Findings that are open now",
    (FINDING_KIND, FINDING_SEVERITY),
)
FINDING_DROPPED = Metric(
    "fabrictap.finding.dropped",
    Kind.COUNTER,
    "{event}",
    "Events of findings, or findings, that were not told",
    (FINDING_SUPPRESSED,),
)
DETECTOR_DURATION = Metric(
    "fabrictap.detector.duration",
    Kind.HISTOGRAM,
    "s",
    "CPU time of one look of a detector; exponential histogram of scale 8 or less",
    (DETECTOR,),
)
DETECTOR_ERRORS = Metric(
    "fabrictap.detector.errors",
    Kind.COUNTER,
    "{error}",
    "Looks of a detector that failed: a fault of fabrictap",
    (DETECTOR, ERROR_TYPE),
)
STATE_ROWS = Metric(
    "fabrictap.state.rows",
    Kind.UPDOWNCOUNTER,
    "{row}",
    "Pairs of a workload and a peer that are remembered over restarts",
    (),
)
STATE_ERRORS = Metric(
    "fabrictap.state.errors", Kind.COUNTER, "{error}", "Trouble with what is remembered", (STATE_ERROR,)
)
PROCESS_CPU = Metric(
    "process.cpu.time", Kind.COUNTER, "s", "CPU time of the agent itself", (CPU_MODE,), Standard.SEMCONV
)
PROCESS_MEMORY = Metric(
    "process.memory.usage",
    Kind.UPDOWNCOUNTER,
    "By",
    "Resident memory of the agent itself",
    (),
    Standard.SEMCONV,
)

# --- spans ----------------------------------------------------------------------------------------

_FLOW = (
    RDMA_DEVICE,
    RDMA_PORT,
    RDMA_QPN,
    RDMA_QP_TYPE,
    RDMA_GID,
    RDMA_PEER_GID,
    RDMA_PEER_QPN,
    RDMA_FLOW_ROLE,
    IO_DIRECTION,
    RDMA_SENDER_GID,
    RDMA_SENDER_QPN,
    RDMA_RECEIVER_GID,
    RDMA_RECEIVER_QPN,
    RDMA_PSN,
    RDMA_MTU,
    RDMA_FLOW_IDENTITY,
    RDMA_FLOW_BYTES,
    RDMA_FLOW_OPERATIONS,
    RDMA_FLOW_OPERATION_BYTES,
    RDMA_FLOW_OPERATION_COUNT,
    *_PROCESS,
    COVERAGE,
    COVERAGE_SINCE,
    COVERAGE_FRACTION,
)
FLOW_SPAN = Span(
    "rdma.flow",
    "One direction of one connection, from ready-to-send (sender) or ready-to-receive (receiver) to its "
    "end. Both ends compute the same trace id from the connection's own identity, and the receiver's span "
    "is a child of the sender's, with no propagation",
    (*_FLOW, RDMA_FLOW_CLOSE_REASON),
)
FLOW_WINDOW_SPAN = Span(
    "rdma.flow.window",
    "What a flow moved in one window (default 60 s) while it lives; a child of this node's rdma.flow span",
    _FLOW,
)


# --- findings -------------------------------------------------------------------------------------

REMOTE_READ_EGRESS = Finding(
    "remote_read_egress",
    "A port sent more payload than any process of this node asked for, and a process there has memory that a "
    "peer may read: RDMA READ by the peer leaves no other trace here",
    "UCX rendezvous, NVMe over Fabrics and NFS over RDMA read like this in normal work; a policy may say so",
    "Find out whether the peer is meant to read this memory. If not: end the process or its queue pair, "
    "fence off the peer, make new rkeys. If so: set remote_read and peers for this workload in the policy.",
)
DARK_EGRESS = Finding(
    "dark_egress",
    "A port sent more payload than any process of this node asked for, and no single explanation is known",
    "Processes with RDMA libraries of their own or GPU-initiated transports post unseen: see coverage",
    "Look at the candidates and at processes with coverage control_only on this port; capture at the switch.",
)
EXPOSED_MEMORY = Finding(
    "exposed_memory",
    "A process has registered more memory that peers may read or write than its policy allows",
    "Caches and parameter servers do so on purpose; regions that overlap are counted each",
    "Check that the workload needs remote access to this much memory; if so, set exposed_memory for it.",
)
NEW_PEER = Finding(
    "new_peer",
    "A workload talks to a peer that it has never talked to before, after its time of learning",
    "A job that is scheduled on other nodes has new peers",
    "Check who has this address. List the networks of the cluster as peers of this workload in the policy.",
)
FORBIDDEN_PEER = Finding(
    "forbidden_peer",
    "A workload talks to a peer that is not among those that the policy lists for it",
    "The policy may be older than the network",
    "Find out who has this address and what is sent there; end the connection, or list the peer.",
)
CROSS_TENANT = Finding(
    "cross_tenant",
    "Two workloads of different tenants on this node are connected",
    "Shared services serve several tenants: list them in talks_to",
    "Find out who made the connection; isolate the tenants by partition key or VLAN.",
)
SLOW_EGRESS = Finding(
    "slow_egress",
    "A workload has sent a peer more, over days or weeks, than its budget or its own past allows, or the "
    "same small amount hour after hour",
    "A job that has grown, or a new replication; a baseline knows the past only",
    "Compare with what the workload is meant to send there; set egress_budget for it in the policy.",
)
RESOURCE_EXHAUSTION = Finding(
    "resource_exhaustion",
    "One process or workload holds, makes or uses so many RDMA objects or operations that others may suffer",
    "Large MPI jobs without dynamic connections need thousands of queue pairs",
    "Look whether it leaks; limit it with the rdma cgroup controller; raise the limit if this is normal.",
)
PROBE_DETACHED = Finding(
    "probe_detached",
    "A BPF program of the agent is attached to the kernel at fewer places than before",
    "A kernel module of RDMA that was unloaded",
    "Look who may load or detach BPF programs on this node; restart the agent.",
)
PROBES_BLIND = Finding(
    "probes_blind",
    "The kernel lists connections that the probes should have seen being made, and nothing was lost",
    "A kernel with a hook that does not cover all drivers",
    "Look whether somebody has detached the probes or whether this kernel lacks a hook; restart the agent.",
)
COVERAGE_FELL = Finding(
    "coverage_fell",
    "Posts of most connections were seen, and suddenly those of few are",
    "A large job that brings its own RDMA libraries",
    "Look which processes have coverage control_only, and whether they should.",
)
FILE_REPLACED = Finding(
    "file_replaced",
    "The recording or the configuration was replaced or changed while the agent runs",
    "An administrator or a configuration management tool did it: the agent goes on with what it has read",
    "Find out who changed it; send SIGHUP for a new policy, restart the agent for all else.",
)
SOURCES_DOWN = Finding(
    "sources_down",
    "Several sources that delivered have stopped at the same time",
    "Unloading the RDMA drivers takes several down at once",
    "Look at the agent's log for the reasons, and for who unloaded modules or took capabilities away.",
)
LINK_ERRORS = Finding(
    "link_errors",
    "A port counts errors or discards faster than it should, or its link went down and came back",
    "Counters jump when a cable is plugged",
    "Look at cable, transceiver and switch port; where only congestion drops count, look at flow control.",
)
LINK_DEGRADED = Finding(
    "link_degraded",
    "A port that was active is down, or runs slower than it did",
    "An administrator may have set it so",
    "Look at cable, transceiver and switch port.",
)
RETRANSMISSIONS = Finding(
    "retransmissions",
    "A port repeats packets, or asks for repeats, faster than it should",
    "Short bursts happen when paths change",
    "Look for loss in the fabric: priority flow control, ECN, a bad cable; a peer that is too slow (RNR).",
)
GPU_SHARED = Finding(
    "gpu_shared",
    "A GPU that MIG does not split is used by several tenants, or by pods or jobs that no policy calls one",
    "Time slicing and MPS share a GPU on purpose",
    "Check that those who share it may: memory and timing of one can be probed by the other. Use MIG.",
)
MIG_CHANGED = Finding(
    "mig_changed",
    "The MIG devices of a GPU are others than before",
    "A scheduler that makes MIG devices on demand does this with each job",
    "Find out who split the GPU anew, and whether workloads still have the isolation they were promised.",
)
CONFIDENTIAL_OFF = Finding(
    "confidential_off",
    "Confidential computing was on for a GPU and is off",
    "An administrator may have set it so",
    "Take workloads that need it off the node; find out who changed it. It takes a reset of the GPU.",
)

_FINDING = (
    FINDING_KIND,
    FINDING_SEVERITY,
    FINDING_STATE,
    FINDING_ID,
    FINDING_SINCE,
    FINDING_VALUE,
    FINDING_UNIT,
    FINDING_THRESHOLD,
    FINDING_BASELINE,
    FINDING_WINDOW,
    FINDING_ADVICE,
    FINDING_CANDIDATES,
    FINDING_TENANT,
    FINDING_PEER_TENANT,
    FINDING_WORKLOAD,
    HW_ID,
    IO_DIRECTION,
    RDMA_DEVICE,
    RDMA_PORT,
    RDMA_QPN,
    RDMA_GID,
    RDMA_PEER_GID,
    RDMA_PEER_QPN,
    RDMA_COUNTER_NAME,
    ERROR_TYPE,
    GPU_LINK,
    NVSWITCH_LINK,
    SOURCE,
    PROBE,
    PROBE_METHOD,
    *_PROCESS,
)


# --- events, kept in the recording ----------------------------------------------------------------

AGENT_STARTED = Event("fabrictap.agent.started", 9, "The agent began to watch")
AGENT_STOPPED = Event("fabrictap.agent.stopped", 9, "The agent ended in order")
SOURCE_DELIVERS = Event("fabrictap.source.delivers", 9, "A source delivers, for the first time or again")
SOURCE_OFF = Event("fabrictap.source.off", 13, "A source does not deliver; the text says why")
SOURCE_HANGS = Event("fabrictap.source.hangs", 17, "A source's call does not return")
QP_CREATED = Event("rdma.qp.created", 9, "A queue pair was made")
QP_READY = Event("rdma.qp.ready", 9, "A queue pair can receive (rtr) or send (rts); the text says which")
QP_ERROR = Event("rdma.qp.error", 13, "A queue pair went into the error state")
QP_DESTROYED = Event("rdma.qp.destroyed", 9, "A queue pair is no more; the text says why")
MR_REGISTERED = Event("rdma.memory_region.registered", 9, "Memory was registered; value: bytes")
MR_DEREGISTERED = Event("rdma.memory_region.deregistered", 9, "A memory region is no more; value: bytes")
CONTEXT_OPENED = Event("rdma.context.opened", 9, "A process opened an RDMA device")
CONTEXT_CLOSED = Event("rdma.context.closed", 9, "A process closed an RDMA device")
BUDGET_REDUCED = Event(
    "fabrictap.budget.reduced",
    9,
    "Posts of a process are counted in a part of the time, for its probes cost it more than the budget "
    "allows; value: hits in a second",
)
BUDGET_DETACHED = Event(
    "fabrictap.budget.detached",
    13,
    "Posts of a process are counted for moments only; value: hits in a second",
)
BUDGET_RESTORED = Event("fabrictap.budget.restored", 9, "Posts of a process are counted in full again")
PROCESS_EXITED = Event("process.exited", 9, "A process that used RDMA ended")
FINDING_RAISED = Event(
    "fabrictap.finding.raised",
    13,
    "An operator or security engineer should look; the severity is the finding's",
    _FINDING,
)
FINDING_ENDED = Event("fabrictap.finding.ended", 9, "What was found is no longer so", _FINDING)


# A copy in each of these: a warning from the garbage collector adds a name to the globals it comes upon.


def events() -> Iterator[Event]:
    """Every event of the catalog, in the order of this file."""
    return (value for value in tuple(globals().values()) if isinstance(value, Event))


def findings() -> Iterator[Finding]:
    """Every kind of finding, in the order of this file."""
    return (value for value in tuple(globals().values()) if isinstance(value, Finding))


def metrics() -> Iterator[Metric]:
    """Every metric of the catalog, in the order of this file."""
    return (value for value in tuple(globals().values()) if isinstance(value, Metric))


def rates(metric: Metric) -> tuple[Metric, Metric]:
    """The gauges that a counter with ``rates`` is exported as besides: its average and its peak rate."""
    what = metric.description.partition(". ")[0]
    average = Metric(
        f"{metric.name}.rate.average",
        Kind.GAUGE,
        f"{metric.unit}/s",
        f"{what}: rate over the export interval",
        metric.attributes,
    )
    peak = Metric(
        f"{metric.name}.rate.peak",
        Kind.GAUGE,
        f"{metric.unit}/s",
        f"{what}: the largest rate between two samples of the export interval",
        metric.attributes,
    )
    return average, peak


def exported() -> Iterator[Metric]:
    """Every metric that leaves the agent: the catalog's own and the rates of those that have them."""
    for metric in metrics():
        yield metric
        if metric.rates:
            yield from rates(metric)


def spans() -> Iterator[Span]:
    """Every span of the catalog, in the order of this file."""
    return (value for value in tuple(globals().values()) if isinstance(value, Span))


def attributes() -> Iterator[Attribute]:
    """Every attribute key of the catalog, in the order of this file."""
    return (value for value in tuple(globals().values()) if isinstance(value, Attribute))
