"""The configuration: one typed tree, read strictly.

Later wins: defaults, the YAML file, the standard ``OTEL_*`` variables, ``FABRICTAP_SECTION__KEY``
variables, ``--set section.key=value``. Every mistake is a :class:`ConfigError` of one line that names
the key, where it came from, what is wrong, and the nearest thing that would be right.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from fabrictap import catalog, otelenv


class ConfigError(Exception):
    """A configuration that cannot be used; the message is for the person who wrote it."""


class Duration(float):
    """Seconds. Written as a number with a unit: ``100ms``, ``10s``, ``5m``, ``2h``, ``1d``."""


class Size(int):
    """Bytes. Written as a number with a unit: ``512KiB``, ``64MiB``, ``2GiB``."""


#: Where a simulated node is recorded, unless ring.path says otherwise.
SIMULATED_RING = "/run/fabrictap/simulated"
_DURATION_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of every part of the tree."""


class Agent(Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Devices(Section):
    """Which RDMA devices this agent stands for, by name; shell patterns. ``deny`` wins."""

    allow: list[str] = msgspec.field(default_factory=lambda: ["*"])
    deny: list[str] = []


class Ring(Section):
    """The flight recorder: a file in which everything is aggregated and which outlives the agent."""

    #: null keeps the ring in memory only: no recording, nothing for the commands that read it.
    path: str | None = "/run/fabrictap/ring"
    #: How much of the past a file holds, in ticks.
    span: Duration = Duration(300.0)
    tick: Duration = Duration(1.0)
    #: Files of earlier runs that are kept, as path.1, path.2 ...
    keep: int = 3
    events: int = 8192
    #: How long what has ended can still be read before its place is given away.
    grace: Duration = Duration(10.0)


class Infiniband(Section):
    enabled: bool = True
    interval: Duration = Duration(1.0)
    #: Traffic counters are read this often besides, for peak rates; 0s: with the others only.
    fast_interval: Duration = Duration(0.1)
    sysfs: str = "/sys"


class RdmaNetlink(Section):
    enabled: bool = True
    interval: Duration = Duration(10.0)


class Completions(Section):
    """Windows in which completions are watched; poll_cq is probed in them only."""

    enabled: bool = True
    #: How long a window is, and how often one begins.
    window: Duration = Duration(1.0)
    every: Duration = Duration(30.0)
    #: CPU time that the probes of a window may take, as a share of one CPU over ``every``: a window ends
    #: before its time where programs post and poll so often that it would be more.
    cost: float = 0.001


class WorkloadData(Section):
    """How posts of the workloads that match are counted. The first rule that matches a process is its."""

    #: Attribute of the process -> shell pattern, as in k8s.namespace.name: train-*; all must match.
    match: dict[str, str] = {}
    data: Literal["off", "budget", "full"] = "budget"


class VerbsBudget(Section):
    """What counting posts may cost those who post. See docs/operator.md, Budget."""

    #: Of one process, as a share of the CPU time that it uses itself.
    process: float = 0.01
    #: Of the node, in cores, all processes together that are not counted in full by a rule.
    node: float = 0.01
    workloads: list[WorkloadData] = []


class Verbs(Section):
    enabled: bool = True
    interval: Duration = Duration(1.0)
    #: How the control path is hooked; ``auto`` takes the first of fexit, kprobe, syscall that works.
    control: Literal["auto", "fexit", "kprobe", "syscall", "off"] = "auto"
    #: Who describes the kernel's structures: the kernel itself (libbpf reads its BTF), or its headers,
    #: compiled by bcc's library; ``auto``: bcc where the kernel has no BTF.
    loader: Literal["auto", "libbpf", "bcc"] = "auto"
    #: For bcc: a directory as /lib/modules/RELEASE, or a file that fabrictap.sources.verbs.headers printed
    #: elsewhere with the headers of this kernel; the running kernel's directory without.
    kernel_headers: str | None = None
    #: Whether posts are counted by uprobes in the provider libraries (about 1 us of the poster's CPU each):
    #: all of them, as many as ``budget`` allows, or none.
    data: Literal["budget", "full", "off"] = "budget"
    budget: VerbsBudget = msgspec.field(default_factory=VerbsBudget)
    #: What becomes of work requests that the provider refuses (a full queue): counted like the others, or
    #: subtracted, for which each post is stopped on its return too (twice the cost).
    refused: Literal["count", "subtract"] = "count"
    #: Size of the BPF ring buffer; a power of two and at least a page.
    event_buffer: Size = Size(1 << 20)
    #: Kernel memory for the counters of posted work: one for each process, queue pair and opcode (and
    #: datagram peer), 32 bytes plus 176 for each CPU. Allocated at once; at most 16384 counters.
    post_memory: Size = Size(64 << 20)
    completions: Completions = msgspec.field(default_factory=Completions)


class ProcessCounters(Section):
    """What the hardware counts for each process by itself (mlx5), bound by the kernel to new queue pairs."""

    enabled: bool = False
    interval: Duration = Duration(10.0)
    #: Where it is remembered on which ports it was turned on, so that it is turned off again also after a
    #: crash; a reboot must empty it.
    state: str = "/run/fabrictap/process-counters.json"


class Nvml(Section):
    enabled: bool = True
    #: The driver's library, a name that the loader finds or a path.
    library: str = "libnvidia-ml.so.1"
    #: How often the counters of NVLink and PCIe are read; 0 with ``interval`` only. Stretched by itself
    #: where reading costs more than it may.
    fast_interval: Duration = Duration(0.1)
    #: Everything else: memory, links, errors, power, states.
    interval: Duration = Duration(10.0)
    #: Processes and their memory: the driver takes milliseconds and its global lock to list them.
    process_interval: Duration = Duration(30.0)
    #: GPM samples (Hopper and later): memory bandwidth, and counters that the driver has there only.
    gpm: bool = True
    #: Wait for driver errors (XIDs).
    xid: bool = True


class Dcgm(Section):
    #: auto: where there is a library and an engine; on: it is missed where there is none.
    enabled: Literal["auto", "on", "off"] = "auto"
    #: Of the host engine: ``host``, ``host:port``, ``tcp://...``, ``unix:///path`` or ``vsock://...``.
    address: str = "localhost:5555"
    #: libdcgm, a name that the loader finds or a path; libdcgm.so.4, then libdcgm.so.3 without.
    library: str | None = None
    interval: Duration = Duration(10.0)
    #: For connecting.
    timeout: Duration = Duration(5.0)
    #: Whether profiling fields are watched; ``auto``: on GPUs whose counters several may use (Hopper and
    #: later). What another client of the engine watches is read in any case.
    profiling: Literal["auto", "on", "off"] = "auto"


class Kubelet(Section):
    """Names of pods and containers and who has which device."""

    #: ``auto``: where a kubelet has its directories when the agent starts.
    enabled: Literal["auto", "on", "off"] = "auto"
    interval: Duration = Duration(15.0)
    #: The PodResources API.
    socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    #: Names are read here and in ``containers`` beside it.
    pods_log_dir: str = "/var/log/pods"
    #: The kubelet's list of pods, as https://127.0.0.1:10250/pods; not asked where null.
    url: str | None = None
    token_file: str | None = None
    certificate: str | None = None
    #: Do not verify the kubelet's certificate.
    insecure: bool = False


class Simulated(Section):
    """A made-up node in place of this one, to look at metrics, flows and dashboards without hardware."""

    #: Which node; null: none, and the real sources watch this one. With it they are off.
    profile: str | None = None
    interval: Duration = Duration(1.0)
    fast_interval: Duration = Duration(0.1)
    #: The same seed makes the same data.
    seed: int = 1


class Sources(Section):
    infiniband: Infiniband = msgspec.field(default_factory=Infiniband)
    rdma_netlink: RdmaNetlink = msgspec.field(default_factory=RdmaNetlink)
    verbs: Verbs = msgspec.field(default_factory=Verbs)
    process_counters: ProcessCounters = msgspec.field(default_factory=ProcessCounters)
    nvml: Nvml = msgspec.field(default_factory=Nvml)
    dcgm: Dcgm = msgspec.field(default_factory=Dcgm)
    kubelet: Kubelet = msgspec.field(default_factory=Kubelet)
    simulated: Simulated = msgspec.field(default_factory=Simulated)


class FindingSettings(Section):
    """What detectors look at and from where on they speak. See docs/security.md."""

    enabled: bool = True
    interval: Duration = Duration(5.0)
    #: Kinds of findings that are not wanted.
    ignore: list[str] = []
    #: Events of one kind in a minute; more are counted.
    per_minute: int = 20
    #: Dark egress of a port: this much within ``dark_window``, and this share of what it sent then.
    dark_bytes: Size = Size(1 << 20)
    dark_window: Duration = Duration(10.0)
    dark_share: float = 0.01
    #: Memory that peers may read or write, of one process, where no policy says otherwise.
    exposed_memory: Size = Size(256 << 30)
    #: Days (whole ones) in which peers and daily egress of a workload are learned before they are judged.
    learn_days: int = 7
    #: Egress of a workload to one peer below which a day is never judged by its past; a week may have twice,
    #: four weeks four times as much.
    egress_floor: Size = Size(256 << 20)
    #: Of one process.
    queue_pairs: int = 8192
    memory_regions: int = 32768
    contexts: int = 64
    #: Queue pairs that one process makes in a second, over ten seconds.
    queue_pair_rate: float = 200.0
    #: Work requests of one workload in a second, where they are small and crowd out others'.
    operation_rate: float = 2e6
    #: Errors, and repeated packets, of a port in a second, over a minute.
    link_error_rate: float = 1.0
    retransmission_rate: float = 100.0


class State(Section):
    """What detectors must remember over restarts: peers and egress of workloads."""

    #: An SQLite file; null keeps it in memory only.
    path: str | None = "/var/lib/fabrictap/state.db"


class WorkloadPolicy(Section):
    """What is allowed for the workloads that match. The first rule that matches a process is its rule."""

    #: Attribute of the process -> shell pattern, as in k8s.namespace.name: train-*; all must match.
    match: dict[str, str] = {}
    tenant: str | None = None
    #: Other tenants that it may be connected to on this node.
    talks_to: list[str] = []
    #: Addresses, networks (10.1.0.0/16, fe80::/64) and GIDs that it may talk to; null: they are learned.
    peers: list[str] | None = None
    #: Bytes a day to one peer; null: its own past decides.
    egress_budget: Size | None = None
    #: Bytes of memory that peers may read or write, of one process; null: findings.exposed_memory.
    exposed_memory: Size | None = None
    #: Peers among ``peers`` may read its memory: no finding of remote_read_egress for it.
    remote_read: bool = False
    #: Of one process; null: findings.queue_pairs.
    queue_pairs: int | None = None


class Policy(Section):
    """What is allowed. Read again on SIGHUP."""

    workloads: list[WorkloadPolicy] = []
    #: Attribute of the identity that names the tenant where no rule does, as in k8s.namespace.name.
    tenant_by: str | None = None


class Limits(Section):
    """Fixed memory: the most of each kind that the agent keeps."""

    series: int = 20000
    devices: int = 256
    connections: int = 16384
    memory_regions: int = 65536
    contexts: int = 4096
    processes: int = 4096
    #: GPUs and MIG instances together.
    gpus: int = 128
    finished_spans: int = 4096
    #: Different sets of process and workload attributes on series; beyond it detail is left out.
    identities: int = 2048
    pods: int = 10000
    device_assignments: int = 4096
    #: Findings open at a time.
    findings: int = 1024
    #: Pairs of a workload and a peer whose egress is remembered; 1300 bytes each.
    egress_pairs: int = 4096


class Flows(Section):
    #: Length of a window span while a flow lives.
    window: Duration = Duration(60.0)


class Workloads(Section):
    #: Search the environment of processes outside of pods for Slurm's variables.
    environment: bool = True


class Signal(Section):
    """Where one signal goes over OTLP/gRPC. The fields are those of the OTEL_EXPORTER_OTLP_* variables."""

    enabled: bool = True
    endpoint: str = "http://localhost:4317"
    headers: dict[str, str] = {}
    timeout: Duration = Duration(10.0)
    #: auto: gzip, but none to this machine, where bytes cost less than packing them.
    compression: Literal["auto", "gzip", "none"] = "auto"
    insecure: bool = False
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None


class Otlp(Section):
    metrics: Signal = msgspec.field(default_factory=Signal)
    traces: Signal = msgspec.field(default_factory=Signal)
    logs: Signal = msgspec.field(default_factory=Signal)
    #: Requests kept in memory while the receiver is away; the oldest go first.
    queue: int = 64


class File(Section):
    """OTLP/JSON lines, one export request a line, as the Collector's otlpjsonfile receiver reads them."""

    path: str | None = None
    max_size: Size = Size(64 << 20)
    max_files: int = 4


class Prometheus(Section):
    """A page of all metrics as text, for whoever scrapes: at an address, or on a unix socket."""

    #: As in 127.0.0.1:9435 or unix:/run/fabrictap/metrics.sock; null: nobody listens.
    listen: str | None = None
    #: Whether ``listen`` may be an address that other machines can reach.
    allow_remote: bool = False


class Export(Section):
    interval: Duration = Duration(10.0)
    otlp: Otlp = msgspec.field(default_factory=Otlp)
    file: File = msgspec.field(default_factory=File)
    prometheus: Prometheus = msgspec.field(default_factory=Prometheus)


class Resource(Section):
    service_name: str = "fabrictap"
    attributes: dict[str, str] = {}


class Config(Section):
    agent: Agent = msgspec.field(default_factory=Agent)
    devices: Devices = msgspec.field(default_factory=Devices)
    ring: Ring = msgspec.field(default_factory=Ring)
    sources: Sources = msgspec.field(default_factory=Sources)
    limits: Limits = msgspec.field(default_factory=Limits)
    flows: Flows = msgspec.field(default_factory=Flows)
    workloads: Workloads = msgspec.field(default_factory=Workloads)
    findings: FindingSettings = msgspec.field(default_factory=FindingSettings)
    policy: Policy = msgspec.field(default_factory=Policy)
    state: State = msgspec.field(default_factory=State)
    export: Export = msgspec.field(default_factory=Export)
    resource: Resource = msgspec.field(default_factory=Resource)


def load(
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    settings: Iterable[str] = (),
) -> Config:
    """Read the configuration.

    ``file`` is the path of a YAML file, ``settings`` are ``section.key=value`` texts. Raises
    :class:`ConfigError`.
    """
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if file is not None:
        _merge(tree, _read_yaml(file), (), file, origin)
    try:
        _merge(tree, otelenv.read(environ), (), "environment", origin)
    except otelenv.OtelVariableError as error:
        raise ConfigError(str(error)) from None
    for name, text in sorted(environ.items()):
        # Every key is in a section. Kubernetes sets FABRICTAP_PORT and the like for a Service of that name.
        if name.startswith("FABRICTAP_") and "__" in name:
            path = name.removeprefix("FABRICTAP_").lower().split("__")
            _put(tree, path, text, name, origin)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {setting}: expected section.key=value, as in --set export.interval=5s")
        # Headers carry credentials, and a message may end in a log.
        said = f"{key}=***" if "headers" in key else setting
        _put(tree, key.split("."), text, f"--set {said}", origin)
    config = typing.cast(Config, _build(Config, tree, (), origin))
    _check(config)
    if config.sources.simulated.profile is not None:
        _simulate(config, origin.keys())
    return config


def check_profile(name: str, source: str) -> None:
    """Raises ConfigError where no simulated node has this name; ``source``: where the name is from."""
    from fabrictap.sources.simulated.profiles import NAMES  # noqa: PLC0415 - few need it

    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}{hint}")


def _simulate(config: Config, given: Collection[str]) -> None:
    """Nothing real is mixed with what is made up: no source, no recording, nothing that detectors remember.

    ``given``: the keys that somebody has set.
    """
    sources = config.sources
    real = (sources.infiniband, sources.rdma_netlink, sources.verbs, sources.process_counters, sources.nvml)
    for source in real:
        source.enabled = False
    sources.dcgm.enabled = "off"
    sources.kubelet.enabled = "off"
    if "ring.path" not in given:
        config.ring.path = SIMULATED_RING
    if "state.path" not in given:
        config.state.path = None


def parse_duration(text: str) -> Duration:
    """``10s`` -> 10.0. Raises ValueError with a message that says what would be right."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text.strip())
    if match is None:
        raise ValueError(f"expected a duration as in 500ms, 10s, 5m or 1h, got {text!r}")
    return Duration(float(match[1]) * _DURATION_UNITS[match[2]])


def parse_size(text: str) -> Size:
    """``64MiB`` -> 67108864. Raises ValueError with a message that says what would be right."""
    match = re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)", text.strip())
    if match is None:
        raise ValueError(f"expected a size as in 512KiB or 64MiB, got {text!r}")
    return Size(int(match[1]) * _SIZE_UNITS[match[2]])


def as_written(config: Config) -> dict[str, Any]:
    """The configuration as a file could hold it, units and all; header values as ``***``."""
    tree: dict[str, Any] = _written(config)
    for signal in tree["export"]["otlp"].values():
        if isinstance(signal, dict):
            signal["headers"] = dict.fromkeys(signal["headers"], "***")
    return tree


def policy_as_written(policy: Policy) -> dict[str, Any]:
    """A policy as a file could hold it, what is as by default left out."""
    usual = _written(WorkloadPolicy())
    rules = [
        {key: value for key, value in _written(rule).items() if value != usual[key]}
        for rule in policy.workloads
    ]
    by = {} if policy.tenant_by is None else {"tenant_by": policy.tenant_by}
    return {"workloads": rules, **by}


def _written(value: Any) -> Any:
    if isinstance(value, Section):
        return {name: _written(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [_written(one) for one in value]
    if isinstance(value, Duration):
        scales = sorted(_DURATION_UNITS.items(), key=lambda item: -item[1])
        unit, scale = next((u for u in scales if value and value / u[1] == int(value / u[1])), ("ms", 1e-3))
        return f"{value / scale:.12g}{unit}"
    if isinstance(value, Size):
        unit, size = next(u for u in reversed(_SIZE_UNITS.items()) if value % u[1] == 0)
        return f"{value // size}{unit}"
    return value


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        with Path(file).open(encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}:{where} not YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected sections such as 'export:', got a {type(content).__name__}")
    return content


def _merge(
    tree: dict[str, Any], more: Mapping[Any, Any], path: tuple[str, ...], source: str, origin: dict[str, str]
) -> None:
    for key, value in more.items():
        here = (*path, str(key))
        if isinstance(value, Mapping):
            below = tree.get(str(key))
            if below is None:
                below = tree[str(key)] = {}
            elif not isinstance(below, dict):
                dotted = ".".join(here)
                raise ConfigError(f"{origin[dotted]}: {dotted}: expected a section, got {below!r}")
            _merge(below, value, here, source, origin)
        else:
            tree[str(key)] = value
            origin[".".join(here)] = source
        origin.setdefault(".".join(here), source)


def _put(tree: dict[str, Any], path: list[str], text: str, source: str, origin: dict[str, str]) -> None:
    """Set one key from text; ``_build`` turns the text into the key's own type."""
    for depth, part in enumerate(path[:-1]):
        below = tree.get(part)
        if below is None:
            below = tree[part] = {}
        elif not isinstance(below, dict):
            raise ConfigError(f"{source}: {'.'.join(path[: depth + 1])} is a value, not a section")
        origin.setdefault(".".join(path[: depth + 1]), source)
        tree = below
    tree[path[-1]] = _Text(text)
    origin[".".join(path)] = source


class _Text(str):
    """A value that came as text and may stand for any scalar, or a comma-separated list."""

    __slots__ = ()


def _build(
    kind: type[Section], tree: Mapping[str, Any], path: tuple[str, ...], origin: dict[str, str]
) -> Section:
    """Make a section of ``kind`` from a raw tree, one key at a time, so that an error names its key."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, raw in tree.items():
        here = (*path, key)
        dotted = ".".join(here)
        source = _source(origin, here)
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            where = ".".join(path) or "the top level"
            hint = (
                f"did you mean {'.'.join((*path, near[0]))}?"
                if near
                else f"{where} has: {', '.join(sorted(hints))}"
            )
            raise ConfigError(f"{source}: unknown key {dotted}; {hint}")
        wanted = hints[key]
        try:
            if isinstance(wanted, type) and issubclass(wanted, Section):
                if not isinstance(raw, Mapping):
                    if raw is None:
                        continue
                    raise ValueError(f"expected a section with {', '.join(typing.get_type_hints(wanted))}")
                values[key] = _build(wanted, raw, here, origin)
            elif (item := _item(wanted)) is not None:
                values[key] = [
                    _build(item, one, (*path, f"{key}[{number}]"), origin)
                    for number, one in enumerate(_mappings(item, raw))
                ]
            else:
                values[key] = _value(wanted, raw)
        except ValueError as error:
            raise ConfigError(f"{source}: {dotted}: {error}") from None
    return kind(**values)


def _source(origin: Mapping[str, str], path: tuple[str, ...]) -> str:
    """Where a key came from: what is in a list came with the list."""
    whole = ".".join(path)
    return origin.get(whole) or origin.get(whole.partition("[")[0], "configuration")


def _item(wanted: Any) -> type[Section] | None:
    """The section that ``wanted`` is a list of, if it is one."""
    kinds = typing.get_args(wanted) if typing.get_origin(wanted) is list else ()
    return kinds[0] if kinds and isinstance(kinds[0], type) and issubclass(kinds[0], Section) else None


def _mappings(item: type[Section], raw: Any) -> list[Mapping[str, Any]]:
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(one, Mapping) for one in raw):
        raise ValueError(f"expected a list, each entry with some of {', '.join(typing.get_type_hints(item))}")
    return [{str(key): value for key, value in one.items()} for one in raw]


def _value(wanted: Any, raw: Any) -> Any:
    if wanted is Duration:
        return parse_duration(raw) if isinstance(raw, str) else _unitless("duration", "10s", raw)
    if wanted in (Size, Size | None):
        return _size(raw, optional=wanted is not Size)
    if isinstance(raw, bool) and typing.get_origin(wanted) is Literal:
        word = "on" if raw else "off"  # YAML 1.1 reads a bare on or off as a boolean
        raw = word if word in typing.get_args(wanted) else raw
    text = isinstance(raw, _Text)
    if text:
        members = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else ()
        if type(None) in members and str(raw) in ("", "null", "none"):
            return None
        if typing.get_origin(wanted) is list:
            raw = [part.strip() for part in raw.split(",") if part.strip()]
        elif typing.get_origin(wanted) is dict:
            try:
                raw = otelenv.parse_pairs(raw)
            except ValueError as error:
                raise ValueError(f"expected key=value,key=value: {error}") from None
        else:
            raw = str(raw)
    try:
        return msgspec.convert(raw, wanted, strict=not text)
    except msgspec.ValidationError as error:
        message = str(error)
        if typing.get_origin(wanted) is Literal:
            choices = typing.get_args(wanted)
            near = difflib.get_close_matches(str(raw), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"expected one of {', '.join(choices)}, got {raw!r}{hint}"
        else:
            message = f"{message[:1].lower()}{message[1:]}, got {raw!r}"
        raise ValueError(message) from None


def _size(raw: Any, *, optional: bool) -> Size | None:
    if optional and (raw is None or str(raw) in ("", "null", "none")):
        return None
    return parse_size(raw) if isinstance(raw, str) else _unitless("size", "64MiB", raw)


def _unitless(what: str, example: str, raw: Any) -> Any:
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        raise ValueError(f"a {what} needs a unit, as in {example}, got {raw!r}")
    raise ValueError(f"expected a {what} as in {example}, got {raw!r}")


def _check(config: Config) -> None:
    """Limits that a type cannot say."""
    sources = config.sources
    for key, seconds, least in (
        ("ring.tick", config.ring.tick, 0.1),
        ("ring.span", config.ring.span, 1.0),
        ("ring.grace", config.ring.grace, 0.1),
        ("sources.infiniband.interval", sources.infiniband.interval, 0.01),
        ("sources.rdma_netlink.interval", sources.rdma_netlink.interval, 0.1),
        ("sources.verbs.interval", sources.verbs.interval, 0.01),
        ("sources.process_counters.interval", sources.process_counters.interval, 0.1),
        ("sources.nvml.interval", sources.nvml.interval, 0.1),
        ("sources.nvml.process_interval", sources.nvml.process_interval, 1.0),
        ("sources.dcgm.interval", sources.dcgm.interval, 0.1),
        ("sources.dcgm.timeout", sources.dcgm.timeout, 0.001),
        ("sources.kubelet.interval", sources.kubelet.interval, 1.0),
        ("sources.simulated.interval", sources.simulated.interval, 0.1),
        ("export.interval", config.export.interval, 0.1),
        ("flows.window", config.flows.window, 1.0),
        ("findings.interval", config.findings.interval, 0.1),
        ("findings.dark_window", config.findings.dark_window, 1.0),
        ("export.otlp.metrics.timeout", config.export.otlp.metrics.timeout, 0.001),
        ("export.otlp.traces.timeout", config.export.otlp.traces.timeout, 0.001),
        ("export.otlp.logs.timeout", config.export.otlp.logs.timeout, 0.001),
    ):
        if not least <= seconds <= 86400:
            raise ConfigError(f"{key}: expected between {least}s and 1d, got {seconds:g}s")
    _check_nvml(sources.nvml)
    if sources.simulated.profile is not None:
        check_profile(sources.simulated.profile, "sources.simulated.profile")
    url = sources.kubelet.url
    if url is not None and not re.fullmatch(r"https?://[^/@\s]+(/[^\s]*)?", url):
        raise ConfigError(f"sources.kubelet.url: expected as in https://127.0.0.1:10250/pods, got {url!r}")
    _check_ring(config)
    _check_findings(config)
    _check_dcgm(sources.dcgm)
    _check_budget(sources.verbs)
    size = sources.verbs.event_buffer
    if not 4096 <= size <= 1 << 30 or size & (size - 1):
        raise ConfigError(
            f"sources.verbs.event_buffer: expected a power of two from 4KiB to 1GiB, got {size} bytes"
        )
    for key in Limits.__struct_fields__:
        if not 1 <= getattr(config.limits, key) <= 1 << 24:
            raise ConfigError(
                f"limits.{key}: expected between 1 and {1 << 24}, got {getattr(config.limits, key)}"
            )
    completions = sources.verbs.completions
    if not 0.05 <= completions.window <= completions.every / 2 or completions.every > 86400:
        raise ConfigError(
            "sources.verbs.completions: expected window from 50ms to half of every, and every up to 1d, got "
            f"window {completions.window:g}s and every {completions.every:g}s"
        )
    if not 0 < completions.cost <= 1:
        raise ConfigError(
            f"sources.verbs.completions.cost: expected a share from 0 to 1, as 0.001, "
            f"got {completions.cost:g}"
        )
    if not 65536 <= sources.verbs.post_memory <= 1 << 34:
        raise ConfigError(
            f"sources.verbs.post_memory: expected from 64KiB to 16GiB, got {sources.verbs.post_memory} bytes"
        )
    if config.export.otlp.queue < 1:
        raise ConfigError(f"export.otlp.queue: expected at least 1, got {config.export.otlp.queue}")
    if config.export.file.max_files < 1 or config.export.file.max_size < 4096:
        raise ConfigError("export.file: max_files must be at least 1 and max_size at least 4KiB")


def _check_findings(config: Config) -> None:
    settings = config.findings
    if settings.interval > 30:
        # The board takes for ended what no look confirms within a minute.
        raise ConfigError(f"findings.interval: expected at most 30s, got {settings.interval:g}s")
    if settings.dark_window < settings.interval or settings.dark_window > 600:
        raise ConfigError(
            f"findings.dark_window: expected from findings.interval to 10m, got {settings.dark_window:g}s"
        )
    for key, least, most in (
        ("per_minute", 1, 10_000),
        ("dark_bytes", 1, 1 << 50),
        ("dark_share", 0, 1),
        ("exposed_memory", 0, 1 << 60),
        ("learn_days", 1, 27),
        ("egress_floor", 0, 1 << 60),
        ("queue_pairs", 1, 1 << 24),
        ("memory_regions", 1, 1 << 24),
        ("contexts", 1, 1 << 24),
        ("queue_pair_rate", 0.1, 1e9),
        ("operation_rate", 1, 1e12),
        ("link_error_rate", 0.001, 1e9),
        ("retransmission_rate", 0.001, 1e9),
    ):
        if not least <= getattr(settings, key) <= most:
            raise ConfigError(
                f"findings.{key}: expected from {least} to {most}, got {getattr(settings, key)}"
            )
    kinds = [finding.name for finding in catalog.findings()]
    for name in settings.ignore:
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise ConfigError(f"findings.ignore: no kind of finding is {name!r}; {hint}")
    _check_policy(config.policy)


def _check_policy(policy: Policy) -> None:
    known = {attribute.name for attribute in catalog.PROCESS_IDENTITY}
    for number, rule in enumerate(policy.workloads):
        where = f"policy.workloads[{number}]"
        for name in rule.match:
            _check_attribute(f"{where}.match", name, known)
        for peer in rule.peers or ():
            try:
                ipaddress.ip_network(peer, strict=False)
            except ValueError:
                raise ConfigError(
                    f"{where}.peers: expected addresses or networks as in 10.1.0.0/16, got {peer!r}"
                ) from None
        if rule.remote_read and rule.peers is None:
            raise ConfigError(f"{where}.remote_read: who may read is said by peers, which is missing")
        if rule.queue_pairs is not None and rule.queue_pairs < 1:
            raise ConfigError(f"{where}.queue_pairs: expected at least 1, got {rule.queue_pairs}")
        if rule.match == {} and number < len(policy.workloads) - 1:
            raise ConfigError(f"{where} has no match and so is for all: the rules behind it are never used")
    if policy.tenant_by is not None:
        _check_attribute("policy.tenant_by", policy.tenant_by, known)


def _check_budget(verbs: Verbs) -> None:
    where = "sources.verbs.budget"
    for key, most in (("process", 1.0), ("node", 1024.0)):
        if not 0.0001 <= getattr(verbs.budget, key) <= most:
            raise ConfigError(
                f"{where}.{key}: expected from 0.0001 to {most:g}, got {getattr(verbs.budget, key):g}"
            )
    rules = verbs.budget.workloads
    if rules and verbs.data == "off":
        raise ConfigError(
            f"{where}.workloads: nothing is counted for anybody while sources.verbs.data is off"
        )
    known = {attribute.name for attribute in catalog.PROCESS_IDENTITY}
    for number, rule in enumerate(rules):
        for name in rule.match:
            _check_attribute(f"{where}.workloads[{number}].match", name, known)
        if rule.match == {} and number < len(rules) - 1:
            raise ConfigError(
                f"{where}.workloads[{number}] has no match and so is for all: "
                "the rules behind it are never used"
            )


def _check_attribute(key: str, name: str, known: set[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise ConfigError(f"{key}: no attribute of a process is {name!r}; {hint}")


def _check_ring(config: Config) -> None:
    ring = config.ring
    if not 1 <= ring.span / ring.tick <= 86400:
        raise ConfigError(f"ring.span: expected from 1 to 86400 times ring.tick ({ring.tick:g}s)")
    if not 0 <= ring.keep <= 100:
        raise ConfigError(f"ring.keep: expected from 0 to 100, got {ring.keep}")
    if not 16 <= ring.events <= 1 << 20:
        raise ConfigError(f"ring.events: expected from 16 to {1 << 20}, got {ring.events}")
    for name, fast, slow in (
        ("infiniband", config.sources.infiniband.fast_interval, config.sources.infiniband.interval),
        ("simulated", config.sources.simulated.fast_interval, config.sources.simulated.interval),
    ):
        if fast and not 0.01 <= fast <= slow:
            raise ConfigError(
                f"sources.{name}.fast_interval: expected 0s (off) or from 10ms to the interval, got {fast:g}s"
            )


def _check_dcgm(dcgm: Dcgm) -> None:
    if not re.fullmatch(r"(?:tcp://|vsock://)?[^\s/\0]+|unix:///[^\0]+", dcgm.address):
        raise ConfigError(
            "sources.dcgm.address: expected host, host:port, unix:///path or vsock://cid:port, got "
            f"{dcgm.address!r}"
        )
    if dcgm.library == "":
        raise ConfigError("sources.dcgm.library: expected a file name or a path, got nothing")


def _check_nvml(nvml: Nvml) -> None:
    if nvml.fast_interval and not 0.01 <= nvml.fast_interval <= 60:
        raise ConfigError(
            f"sources.nvml.fast_interval: expected 0s (off) or from 0.01s to 60s, got {nvml.fast_interval:g}s"
        )
    if not nvml.library:
        raise ConfigError("sources.nvml.library: expected a file name or a path, got nothing")
