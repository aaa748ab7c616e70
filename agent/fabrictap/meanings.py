"""What each key of the configuration means; docs/configuration.md is made of this and of config.py.

``{metrics,traces,logs}`` in a key stands for each of these. Texts are Markdown, links as from docs/.
"""

from __future__ import annotations

MEANINGS = {
    "agent.log_level": "`debug`, `info`, `warning`, `error`; the log goes to stderr",
    "devices.allow": "RDMA devices to watch, shell patterns",
    "devices.deny": "devices to leave alone; wins over `allow`",
    "ring.path": (
        "The flight recorder: a file in which everything is aggregated and which outlives the agent; null"
        " keeps it in memory only. Of a simulated node `/run/fabrictap/simulated`"
    ),
    "ring.span": "How much of the past the file holds",
    "ring.tick": "Length of a row",
    "ring.keep": "Files of earlier runs that are kept, as `ring.1`, `ring.2` ...",
    "ring.events": "Events that the file holds, 256 B each; the oldest are overwritten",
    "ring.grace": "How long what has ended can still be read before its place is given away",
    "sources.infiniband.enabled": "port counters and link state, from sysfs",
    "sources.infiniband.interval": (
        "how often they are read; one that has not moved in 15 samples, every fifth time until it does"
    ),
    "sources.infiniband.fast_interval": (
        "Traffic counters are read this often besides, for peak rates; stretched where that takes more "
        "than 1 % of a core; `0s` turns it off"
    ),
    "sources.infiniband.sysfs": "where sysfs is, as in a container that has the host's elsewhere",
    "sources.rdma_netlink.enabled": "what existed before the agent, and what the probes missed",
    "sources.rdma_netlink.interval": "how often it is listed; memory regions every sixth time",
    "sources.verbs.enabled": "eBPF: connections, memory, posted work",
    "sources.verbs.interval": "how often the counters of posted work are read",
    "sources.verbs.control": (
        "how the kernel is hooked: `auto` (the first of these that works), `fexit`, `kprobe`, `syscall`, "
        "`off`"
    ),
    "sources.verbs.data": (
        "count posted work in the provider libraries (about 1 us a post): `full` (all of it), "
        "`budget` (as much as the [budget](operator.md#budget) allows), `off`"
    ),
    "sources.verbs.budget.process": (
        "what that may cost a process, as a share of the CPU time that it uses itself"
    ),
    "sources.verbs.budget.node": (
        "what it may cost all of them together, in cores; those that a rule counts in `full` are not in it"
    ),
    "sources.verbs.budget.workloads": "rules for some workloads; the first that matches a process holds",
    "sources.verbs.refused": (
        "`count`: a post is counted when the application makes it, even if the provider refuses it (queue"
        " full: rare, as applications keep count). `subtract`: it is looked at again when it returns, and"
        " what was refused is not counted; a post then costs about twice as much"
    ),
    "sources.verbs.event_buffer": "BPF ring buffer, a power of two",
    "sources.verbs.post_memory": (
        "kernel memory for counters of posted work: 32 bytes and 176 for each CPU, for each process, "
        "queue pair and opcode; at most 16384 counters"
    ),
    "sources.verbs.completions.enabled": "watch completions [in windows](operator.md#completions)",
    "sources.verbs.completions.window": "how long a window is",
    "sources.verbs.completions.every": "how often one begins",
    "sources.verbs.completions.cost": (
        "a window ends before its time where its probes would take more: CPU time, as a share of one CPU "
        "over `every`"
    ),
    "sources.verbs.loader": (
        "who describes the kernel's structures: `libbpf`, the kernel itself; `bcc`, its headers, compiled by "
        "bcc's library ([kernels.md](kernels.md#a-kernel-without-type-information)); `auto`, bcc where the "
        "kernel has no BTF"
    ),
    "sources.verbs.kernel_headers": (
        "for bcc: a directory as `/lib/modules/RELEASE`, the running kernel's without; or a file made by "
        "`fabrictap.sources.verbs.headers`"
    ),
    "sources.process_counters.enabled": (
        "let the hardware count for each process, on mlx5 ([hardware.md](hardware.md#counters-of-processes))"
    ),
    "sources.process_counters.interval": "how often these counters are read",
    "sources.process_counters.state": (
        "on which ports it was turned on, to turn it off again, also after a crash"
    ),
    "sources.nvml.enabled": "NVIDIA GPUs, from the driver's own library",
    "sources.nvml.library": "that library: a name that the loader finds, or a path",
    "sources.nvml.fast_interval": (
        "how often the counters of NVLink and PCIe are read; `0s`: with `interval` only"
    ),
    "sources.nvml.interval": "how often everything else is: memory, links, errors, power, states",
    "sources.nvml.process_interval": "how often the processes on the GPUs are listed",
    "sources.nvml.gpm": "take GPM samples (Hopper and later): memory bandwidth",
    "sources.nvml.xid": "wait for driver errors (XIDs)",
    "sources.dcgm.enabled": (
        "a DCGM host engine that runs: `auto` (where there is one), `on` (it is missed where there is "
        "none), `off`. See [hardware.md](hardware.md#dcgm)"
    ),
    "sources.dcgm.address": "of the engine: `host`, `host:port`, `unix:///path`, `vsock://cid:port`",
    "sources.dcgm.library": (
        "libdcgm, a name that the loader finds or a path; without it `libdcgm.so.4`, then `libdcgm.so.3`"
    ),
    "sources.dcgm.interval": "how often the engine reads its fields, and how often it is asked for them",
    "sources.dcgm.timeout": "for connecting",
    "sources.dcgm.profiling": (
        "have the engine watch profiling fields: `auto` (on Hopper and later), `on` (before Hopper too: "
        "profilers such as Nsight then fail), `off`. What others have watched is read in any case"
    ),
    "sources.simulated.profile": (
        "a made-up node instead of this one ([which](operator.md#without-hardware)): `hgx-h100`, "
        "`a100-mig`, `gb200`, `l40s`; all other sources are then off"
    ),
    "sources.simulated.interval": "how often everything is brought up to date",
    "sources.simulated.fast_interval": "how often byte counters are, for peak rates",
    "sources.simulated.seed": "the same seed makes the same data",
    "sources.kubelet.enabled": (
        "names of pods and containers, and who has which device: `on`, `off`, `auto` (where a kubelet has"
        " its directories when the agent starts)"
    ),
    "sources.kubelet.interval": "how often the kubelet is asked",
    "sources.kubelet.socket": "its PodResources API",
    "sources.kubelet.pods_log_dir": (
        "names of pods are read here, those of containers in `containers` beside it; no log is opened"
    ),
    "sources.kubelet.url": (
        "the kubelet's list of pods, as `https://127.0.0.1:10250/pods`, where the log directories do not "
        "name all; takes the right `nodes/proxy`"
    ),
    "sources.kubelet.token_file": "token for it; goes out over https only",
    "sources.kubelet.certificate": (
        "PEM file of the authorities that vouch for the kubelet; the system's where it is null"
    ),
    "sources.kubelet.insecure": "do not verify its certificate",
    "limits.series": "most series exported; more are refused and counted",
    "limits.devices": "most RDMA devices",
    "limits.connections": "most live queue pairs; more are refused and counted",
    "limits.memory_regions": "most memory regions; likewise",
    "limits.contexts": "most (process, open device) pairs; likewise",
    "limits.processes": "most processes whose names are kept; the oldest goes",
    "limits.gpus": "most GPUs and MIG instances; more are left out and counted",
    "limits.finished_spans": "most spans that wait for the next export; the oldest goes",
    "limits.identities": (
        "most different sets of process and workload attributes on series; beyond it the process id is "
        "left out, then the container, the pod, the job, and it is counted"
    ),
    "limits.pods": "most pods whose names are kept; more are counted",
    "limits.device_assignments": "most (device, container) pairs; more are counted",
    "limits.findings": "most findings open at a time; more are counted",
    "limits.egress_pairs": (
        "most pairs of a workload and a peer whose egress is remembered, 1300 bytes each; what has no "
        "place is counted together"
    ),
    "flows.window": "length of a window span while a flow lives",
    "workloads.environment": "search the environment of processes outside of pods for Slurm's job and user",
    "findings.enabled": "look for what an operator should look at: [security.md](security.md#findings)",
    "findings.interval": "how often; stretched where all detectors together take more than 1 % of a core",
    "findings.ignore": "kinds of findings that are not wanted, as in `new_peer`",
    "findings.per_minute": "most events of one kind in a minute; more are counted",
    "findings.dark_bytes": "dark egress of a port within `dark_window` from which on it is a finding",
    "findings.dark_window": "over which it is measured",
    "findings.dark_share": "and share of what the port sent that it must be",
    "findings.exposed_memory": (
        "memory of one process that peers may read or write, where no policy says otherwise"
    ),
    "findings.learn_days": "days in which peers and egress of a new workload are learned and not judged",
    "findings.egress_floor": (
        "egress of a workload to one peer in a day that is never judged by its past; a week may have "
        "twice, four weeks four times as much"
    ),
    "findings.queue_pairs": "of one process",
    "findings.memory_regions": "of one process",
    "findings.contexts": "open devices of one process",
    "findings.queue_pair_rate": "queue pairs that one process makes in a second, over ten seconds",
    "findings.operation_rate": (
        "small work requests of one workload in a second, where they crowd out others'"
    ),
    "findings.link_error_rate": "errors of a port in a second, over a minute",
    "findings.retransmission_rate": "repeated packets of a port in a second, over a minute",
    "policy.workloads": "what is allowed, by workload: [Policy](operator.md#policy)",
    "policy.tenant_by": "attribute that names the tenant where no rule does, as in `k8s.namespace.name`",
    "state.path": "SQLite file for what detectors remember over restarts; null keeps it in memory only",
    "export.interval": "how often everything is exported",
    "export.otlp.{metrics,traces,logs}.enabled": "send this signal over OTLP/gRPC",
    "export.otlp.{metrics,traces,logs}.endpoint": "where to",
    "export.otlp.{metrics,traces,logs}.headers": "gRPC metadata, as for authorization",
    "export.otlp.{metrics,traces,logs}.timeout": "for one request",
    "export.otlp.{metrics,traces,logs}.compression": (
        "`gzip`, `none`, or `auto`: `none` to this machine (loopback, a unix socket), else `gzip`"
    ),
    "export.otlp.{metrics,traces,logs}.insecure": (
        "plain text, for an endpoint without `http://` or `https://`"
    ),
    "export.otlp.{metrics,traces,logs}.certificate": (
        "PEM file of the authorities that vouch for the receiver; the system's where it is null"
    ),
    "export.otlp.{metrics,traces,logs}.client_key": "PEM file of the agent's own key",
    "export.otlp.{metrics,traces,logs}.client_certificate": "PEM file of the agent's own certificate",
    "export.otlp.queue": "requests kept in memory while the receiver is away; the oldest goes",
    "export.file.path": "write OTLP/JSON lines here as well",
    "export.file.max_size": "size at which the file is rotated",
    "export.file.max_files": "files kept, the current one included",
    "export.prometheus.listen": (
        "address and port, or `unix:` and a path, at which all metrics can be scraped as text; null: "
        "nobody listens"
    ),
    "export.prometheus.allow_remote": "whether that may be an address that other machines can reach",
    "resource.service_name": "`service.name`",
    "resource.attributes": "further resource attributes; they win over detected ones",
}
#: Of each entry of a list of rules.
RULES = {
    "sources.verbs.budget.workloads": {
        "match": "as in a [policy](operator.md#policy)",
        "data": "how its posts are counted",
    },
    "policy.workloads": {
        "match": (
            "attribute of the process -> shell pattern, as in `k8s.namespace.name: train-*`; all must match; "
            "none: every process"
        ),
        "tenant": "whose it is, where that is not what `policy.tenant_by` says",
        "talks_to": "other tenants that it may be connected to on this node",
        "peers": (
            "addresses, networks (`10.1.0.0/16`, `fe80::/64`) and GIDs that it may talk to; null: they are "
            "learned"
        ),
        "egress_budget": "a day, to one peer; null: its own past decides",
        "exposed_memory": (
            "memory of one process that peers may read or write; null: `findings.exposed_memory`"
        ),
        "remote_read": (
            "peers among `peers` may read its memory: no finding of "
            "[remote_read_egress](security.md#remote_read_egress-dark_egress)"
        ),
        "queue_pairs": "of one process; null: `findings.queue_pairs`",
    },
}
