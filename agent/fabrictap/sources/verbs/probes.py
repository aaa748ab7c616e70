"""Loading and attaching the BPF objects: what the kernel refuses costs one program, with its reason kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fabrictap.ext.bpf import BpfError, KernelTypes, Link, Object, RingBuffer, has_bpf_loop, possible_cpus
from fabrictap.ext.completions import WORK_SIZE
from fabrictap.ext.fold import KeyedFold
from fabrictap.ext.records import LOSSES, POST_KEY_SIZE, POST_SIZE, RECORD_SIZE, sum_per_cpu
from fabrictap.sources.verbs import returns as return_probes
from fabrictap.sources.verbs.budget import WINDOW_SECONDS
from fabrictap.sources.verbs.detach import Detaching
from fabrictap.sources.verbs.kernel_types import HeaderTypes, TypesUnavailable
from fabrictap.sources.verbs.providers import DATA_PATH, EXPORTED, EXTENDED, WINDOWED, Place, entry

_log = logging.getLogger(__name__)
_OBJECTS = Path(__file__).parents[2] / "probes"
#: Hook levels of the control path, best first.
LEVELS = ("fexit", "kprobe", "syscall")
#: Programs without which a level tells nothing worth having.
_ESSENTIAL = {
    "fexit": ("fexit_modify_qp",),
    "kprobe": ("kprobe_modify_qp",),
    "syscall": ("syscall_ioctl_enter", "syscall_ioctl_exit"),
}
#: Capacity of the map of posted work, where the memory for it is enough.
MAX_POST_KEYS = 16384
_CLOSE_SECONDS = 2.0


class ProbesUnavailable(Exception):  # noqa: N818 - a state of the node
    """No program of the set could be attached; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Which programs of the data path this kernel and the configuration want; see :func:`load_data`."""

    bounded: bool = False
    returns: bool = True
    subtract: bool = True

    def programs(self, name: str) -> list[tuple[str, bool]]:
        """(program, on return) of what is attached to the function ``name``."""
        if name in DATA_PATH:
            walk = "_bounded" if self.bounded else ""
            if self.subtract:
                return [(name, False), (f"{name}_return{walk}", True)]
            return [(f"{name}_entry{walk}", False)]
        if name == "wr_complete":
            return [(name, False), (f"{name}_return", True)] if self.subtract else [(f"{name}_entry", False)]
        if name == "create_ah":  # tells nothing at its entry alone
            return [(name, False), (f"{name}_return", True)] if self.returns else []
        if name == "qp_to_qp_ex":
            return [(name, True)] if self.returns else [(f"{name}_entry", False)]
        return [(name, False)] if name not in WINDOWED else []


@dataclass
class Probes:
    """A loaded object. ``attached``: program -> attachments; ``refused``: program -> reason."""

    object: Object
    method: str
    records: RingBuffer
    kind: Kind = field(default_factory=Kind)
    #: Attach for this process only; 0: as the caller says.
    pid: int = 0
    attached: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def losses(self) -> dict[str, int]:
        """What could not be recorded since the load, by the catalog's fabrictap.loss.reason."""
        losses = self.object.map("losses")
        found = {}
        for index, reason in enumerate(LOSSES):
            value = losses.get(index.to_bytes(4, "little"))
            found[reason] = sum_per_cpu(value) if value is not None else 0
        return found

    def close(self) -> None:
        """Detach everything; what takes long goes on by itself."""
        Detaching(self.links).wait(_CLOSE_SECONDS)
        self.links.clear()


def module_loaded(module: str) -> bool:
    return Path("/sys/module", module).exists()


def load_control(level: str, event_buffer: int, types: HeaderTypes | None = None) -> Probes:
    """Load and attach the control path. ``level`` is one of LEVELS or auto. Raises ProbesUnavailable.

    With ``types`` the kernel's structures are as these say, not as the kernel itself does.
    """
    if not module_loaded("ib_core"):
        raise ProbesUnavailable("ib_core is not loaded: no RDMA driver on this node")
    reasons = []
    for candidate in LEVELS if level == "auto" else (level,):
        try:
            if candidate == "syscall":
                probes = _syscalls(event_buffer, types)
            else:
                probes = _hooks(candidate, event_buffer, types)
        except (BpfError, TypesUnavailable) as error:
            reasons.append(f"{candidate}: {error}")
            continue
        if all(name in probes.attached for name in _ESSENTIAL[candidate]):
            if reasons:
                _log.info("control path by %s, because %s", candidate, "; ".join(reasons))
            return probes
        reasons.append(f"{candidate}: {'; '.join(probes.refused.values())}")
        probes.close()
    raise ProbesUnavailable("; ".join(reasons))


def _hooks(level: str, event_buffer: int, own: HeaderTypes | None) -> Probes:
    """The functions of ib_core and ib_uverbs; needs the types of these modules, or their headers."""
    if own is not None and level == "fexit":
        raise TypesUnavailable("the kernel itself must have the types of the functions' arguments")
    functions: list[KernelTypes | HeaderTypes] = [own] if own is not None else []
    if own is None:
        functions += [KernelTypes(module) for module in ("ib_core", "ib_uverbs") if module_loaded(module)]
    wanted = {}
    missing = {}
    for name, section in Object(str(_OBJECTS / "verbs_control.bpf.o")).programs().items():
        if name.startswith(f"{level}_"):
            function = section.partition("/")[2]
            if any(types.has_function(function) for types in functions):
                wanted[name] = section
            else:
                missing[name] = f"the kernel has no function {function}"
    probes = _load("verbs_control", wanted, level, event_buffer, types=own, agent_tgid=os.getpid())
    probes.refused.update(missing)
    _attach_all(probes, wanted)
    return probes


def _syscalls(event_buffer: int, types: HeaderTypes | None) -> Probes:
    """The system calls of verbs; needs the type information of the kernel proper, or its headers."""
    wanted = Object(str(_OBJECTS / "verbs_syscall.bpf.o")).programs()
    probes = _load("verbs_syscall", wanted, "tracepoint", event_buffer, types=types)
    _attach_all(probes, wanted)
    return probes


def load_connection_manager(event_buffer: int, events: KeyedFold, types: HeaderTypes | None = None) -> Probes:
    """Load and attach the tracepoints of rdma_cm; records go to ``events``. Raises ProbesUnavailable."""
    wanted = {
        name: section
        for name, section in Object(str(_OBJECTS / "verbs_control.bpf.o")).programs().items()
        if name.startswith("tracepoint_")
    }
    try:
        if types is None:
            known = KernelTypes("rdma_cm").has_struct("trace_event_raw_cm_event_handler")
        else:
            known = types.has_event("cm_event_handler")
        if not known:
            raise ProbesUnavailable("rdma_cm of this kernel has no tracepoints")
        probes = _load("verbs_control", wanted, "tracepoint", event_buffer, into=events, types=types)
    except (BpfError, TypesUnavailable) as error:
        raise ProbesUnavailable(str(error)) from None
    _attach_all(probes, wanted)
    return probes


def load_data(
    post_memory: int,
    event_buffer: int,
    *,
    bounded: bool = False,
    returns: bool | None = None,
    subtract: bool = True,
    functions: Iterable[str] = (*DATA_PATH, *EXTENDED, *EXPORTED),
    quota: int | None = None,
) -> Probes:
    """Load the data path; nothing is attached yet. Raises ProbesUnavailable.

    ``post_memory`` bounds the per-CPU map, which the kernel allocates at once. ``bounded`` takes the
    programs for kernels without bpf_loop on any kernel, ``returns=False`` those for kernels whose return
    probes are not safe (:mod:`returns`); otherwise that is tried. ``subtract``: posts are counted when they
    return, without what the provider refused; else at the entry, which costs the poster half. With a
    ``quota`` each process is charged what it is hit (:mod:`meter`), and has that many hits in a window to
    begin with.
    """
    path = str(_OBJECTS / "verbs_data.bpf.o")
    if returns is None:
        returns = return_probes.safe(path)
    bounded = bounded or not has_bpf_loop()
    kind = Kind(bounded, returns, subtract and returns)
    wanted = [program for name in functions for program, _ in kind.programs(name)]
    entries = max(16, min(MAX_POST_KEYS, post_memory // (POST_KEY_SIZE + POST_SIZE * possible_cpus())))
    try:
        probes = _load(
            "verbs_data", wanted, "uprobe", event_buffer, configure=lambda o: _configure(o, entries, quota)
        )
    except BpfError as error:
        raise ProbesUnavailable(str(error)) from None
    probes.kind = kind
    return probes


def returns_safe() -> bool:
    """Whether return probes may be used here, which is tried (:mod:`returns`)."""
    return return_probes.safe(str(_OBJECTS / "verbs_data.bpf.o"))


def load_work(kind: Kind, functions: Iterable[str], event_buffer: int, *, pid: int = 0) -> Probes:
    """Load the probes of single requests and completions; nothing is attached yet. Raises ProbesUnavailable.

    With ``pid`` they are for that process only, and tell of requests without completions too.
    """
    wanted = [program for name in functions for program, _ in kind.programs(name)]
    try:
        probes = _load(
            "verbs_work",
            wanted,
            "uprobe",
            event_buffer,
            # With a pid by perf events: until Linux 6.10 the others know the first thread of a process only.
            configure=None if pid else _prefer_uprobe_multi,
            record_size=WORK_SIZE,
            only_tgid=pid,
            tell_all=int(bool(pid)),
        )
    except BpfError as error:
        raise ProbesUnavailable(str(error)) from None
    if probes.refused:
        probes.close()
        raise ProbesUnavailable("; ".join(probes.refused.values()))
    probes.kind = kind
    probes.pid = pid
    return probes


def _configure(loading: Object, entries: int, quota: int | None) -> None:
    loading.resize("posts", entries)
    if quota is not None:
        loading.set_constant("metered", 1)
        loading.set_constant("meter_quota", quota)
        loading.set_constant("meter_window_ns", int(WINDOW_SECONDS * 1e9))
    _prefer_uprobe_multi(loading)


def _prefer_uprobe_multi(loading: Object) -> None:
    loading.prefer_uprobe_multi()


@dataclass(frozen=True, slots=True)
class Attachment:
    """One program at one instruction, for one process, or for all where ``pid`` is 0."""

    program: str
    link: Link
    pid: int = 0


def attach_function(
    probes: Probes, name: str, descriptor: int, offset: int, pid: int = 0
) -> list[Attachment]:
    """Attach what belongs to one function of a library; all of it or nothing. Raises BpfError, OSError.

    ``offset`` is the function's first byte in the file behind ``descriptor``, which may be closed
    afterwards. With ``pid``, for that process only.
    """
    # Through the descriptor: the file that was looked at is the file that is probed.
    path = f"/proc/self/fd/{descriptor}"
    start = entry(descriptor, offset)
    if not start.cheap:
        _log.info("%s at +%#x starts with an instruction that the kernel single-steps", name, offset)
    made: list[Attachment] = []
    try:
        for program, on_return in probes.kind.programs(name):
            # On return too: behind endbr64 the return address is still where the call put it.
            only = pid or probes.pid
            link = probes.object.attach_uprobe(program, path, start.offset, on_return, only or -1)
            made.append(Attachment(program, link, pid))
            probes.attached[program] = probes.attached.get(program, 0) + 1
    except BpfError as error:
        for link in detach(probes, made):
            link.close()
        probes.refused[name] = str(error)
        raise
    return made


def detach(probes: Probes, attachments: Iterable[Attachment]) -> list[Link]:
    """What is left to be closed of ``attachments``. The kernel takes some 100 ms for each, on 6.18."""
    links = []
    for attachment in attachments:
        probes.attached[attachment.program] -= 1
        links.append(attachment.link)
    return links


def forget_threads(probes: Probes) -> int:
    """Delete the entries of threads that have ended from the maps that are kept by thread; how many."""
    deleted = 0
    # The thread's id is the lower half of bpf_get_current_pid_tgid(): struct ft_call_key and ft_batch_key.
    for name, at in (("calls", 0), ("batches", 8)):
        table = probes.object.map(name)
        for keys, _, count in table.batches():
            for index in range(count):
                key = keys[16 * index : 16 * index + 16]
                thread = int.from_bytes(key[at : at + 4], "little")
                if not Path(f"/proc/{thread}").exists():
                    deleted += table.delete(key)
    return deleted


def attach_place(probes: Probes, place: Place) -> bool:
    """Attach to a function by path, until ``probes`` is closed. False: see ``refused`` for the reason."""
    try:
        descriptor = os.open(place.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        probes.refused[place.function] = f"{place.file}: {error.strerror}"
        return False
    try:
        made = attach_function(probes, place.function, descriptor, place.offset)
    except (BpfError, OSError):
        return False
    finally:
        os.close(descriptor)
    probes.links += [attachment.link for attachment in made]
    return True


def _load(
    name: str,
    wanted: Iterable[str],
    method: str,
    event_buffer: int,
    *,
    configure: Callable[[Object], None] | None = None,
    into: KeyedFold | None = None,
    record_size: int = RECORD_SIZE,
    types: HeaderTypes | None = None,
    **constants: int,
) -> Probes:
    """Load an object with the ``wanted`` programs; one that the kernel refuses is left out."""
    programs = set(wanted)
    refused: dict[str, str] = {}
    while True:
        path = _OBJECTS / f"{name}.bpf.o"
        loading = Object(str(path), None if types is None else types.file(path))
        for program in loading.programs():
            loading.autoload(program, program in programs)
        loading.resize("records", event_buffer)
        for constant, value in constants.items():
            loading.set_constant(constant, value)
        if configure is not None:
            configure(loading)
        try:
            loading.load()
        except BpfError as error:
            if error.program not in programs or len(programs) == 1:
                raise
            programs.discard(error.program)
            refused[error.program] = str(error)
            continue
        size = record_size if into is None else into.record_size
        probes = Probes(loading, method, RingBuffer(loading, "records", size, into=into))
        probes.refused.update(refused)
        return probes


def _attach_all(probes: Probes, wanted: Iterable[str]) -> None:
    for name in wanted:
        if name in probes.refused:
            continue
        try:
            probes.links.append(probes.object.attach(name))
            probes.attached[name] = 1
        except BpfError as error:
            probes.refused[name] = str(error)
            _log.info("program %s is not attached: %s", name, error)
