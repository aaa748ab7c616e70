"""The probes of one trace: attached for one process, and what they recorded."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from itertools import islice

from fabrictap.ext.bpf import BpfError
from fabrictap.ext.completions import COMPLETED, EMPTY, RESET, WORK_SIZE, Completions, Work, decode
from fabrictap.ext.records import Record
from fabrictap.ext.records import decode as decode_records
from fabrictap.sources.verbs import providers
from fabrictap.sources.verbs.attach import Attachments
from fabrictap.sources.verbs.discovery import Discovery
from fabrictap.sources.verbs.probes import Probes, ProbesUnavailable, load_control
from fabrictap.sources.verbs.uverbs import Uverbs
from fabrictap.sources.verbs.work import Reader, device_name, open_probes
from fabrictap.trace.whom import TraceError, Whom

_BUFFER = 8 << 20
_CONTROL_BUFFER = 1 << 20
_ESSENTIAL = ("work_post_send", "work_poll_cq")
#: How often libraries that the process loads later are looked for.
_LOOK_SECONDS = 0.5
#: Records that one reading takes at the most (ext/bpf.pyx), and where in each its kind stands (work.h).
_FULL, _KIND_AT = 4096, 84
_UD = 4


@dataclass(slots=True)
class Taken:
    """What one reading brought, each in the order of time."""

    works: list[Work] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


class Session:
    """Attached when it is made; close it. Raises TraceError where nothing can be traced."""

    def __init__(self, whom: Whom, *, returns: bool | None = None) -> None:
        self.whom = whom
        #: What is not traced, and why.
        self.notes: list[str] = []
        #: Reasons of what could not be looked at -> how often.
        self.errors: dict[str, int] = {}
        self._devices: dict[int, str | None] = {}
        self._uverbs = Uverbs(self.errors)
        self._control: Probes | None = None
        self._discovery: Discovery | None = None
        self._next_look = 0.0
        #: Whether there may be more to read at once.
        self.busy = False
        #: (context, number) of queue pairs that were seen to be of type UD.
        self.datagrams: set[tuple[int, int]] = set()
        if os.geteuid() != 0:
            raise TraceError(
                "tracing takes root: it loads BPF programs and reads the traced process's memory"
            )
        try:
            self._probes = open_probes(_BUFFER, pid=whom.pid, receives=True, returns=returns)
        except ProbesUnavailable as error:
            raise TraceError(f"the probes cannot be loaded: {error}") from None
        try:
            self._attach()
            self.completions = Completions(time.monotonic_ns())
            self._reader = Reader(self._probes, self.completions)
        except BaseException:
            self.close()
            raise

    @property
    def attached(self) -> bool:
        """Whether posts and polls of the process are seen."""
        return all(self._probes.attached.get(name, 0) for name in _ESSENTIAL)

    @property
    def lost(self) -> int:
        """Records of posts and completions that are missing."""
        return self._reader.lost

    @property
    def control_lost(self) -> int:
        return self._control.losses()["buffer_full"] if self._control is not None else 0

    def read(self, timeout_ms: int, *, most: int) -> tuple[Taken, int]:
        """What was recorded, at most ``most`` works of it, and how many more there were. Raises BpfError.

        All of it is matched and summed; what is beyond ``most`` is not told of one by one.
        """
        batch = self._reader.read(timeout_ms)
        self.busy = len(batch) >= _FULL * WORK_SIZE
        if self.whom.qpn is None:
            kinds = batch[_KIND_AT::WORK_SIZE]
            told = len(kinds) - kinds.count(EMPTY) - kinds.count(RESET)
            # Where the first ``most`` end: not all of what is recorded is told of.
            ends = (at for at, kind in enumerate(kinds, 1) if kind not in (EMPTY, RESET))
            batch = batch[: next(islice(ends, max(0, most - 1), None), len(kinds)) * WORK_SIZE]
        works = [
            work
            for work in decode(batch)
            if work.kind not in (EMPTY, RESET) and self.wanted(work.context, work.qpn)
        ]
        self.datagrams |= {
            (work.context, work.qpn) for work in works if work.kind != COMPLETED and work.qp_type == _UD
        }
        if self.whom.qpn is not None:
            told = len(works)
        taken = Taken(works[:most])
        if self._control is not None:
            found = decode_records(self._control.records.poll(0))
            taken.records = [
                one for one in self._uverbs.place(found) if one.pid == self.whom.pid and self._wanted(one)
            ]
        self._look_again()
        return taken, told - len(taken.works)

    def device(self, context: int) -> str | None:
        """The name of the device behind a struct ibv_context of the process."""
        if context not in self._devices:
            self._devices[context] = device_name(self.whom.pid, context)
        return self._devices[context]

    def wanted(self, context: int, qpn: int) -> bool:
        """Whether a queue pair is the one that was asked for, or any was."""
        whom = self.whom
        return whom.qpn is None or (qpn == whom.qpn and self.device(context) == whom.device)

    def _wanted(self, record: Record) -> bool:
        whom = self.whom
        return whom.qpn is None or (record.qpn, record.device) == (whom.qpn, whom.device)

    def close(self) -> None:
        if self._discovery is not None:
            self._discovery.close()
        if self._control is not None:
            self._control.close()
        self._probes.close()

    def _attach(self) -> None:
        try:
            self._control = load_control("auto", _CONTROL_BUFFER)
        except (ProbesUnavailable, BpfError) as error:
            self.notes.append(f"no control path (queue pairs, memory): {error}")
        self._discovery = Discovery(Attachments(self._probes, self.errors), self.errors)
        self._discovery.older({self.whom.pid})
        try:
            self._discovery.host(providers.discover().places)
        except providers.HelperFailed as error:
            self.notes.append(f"the host's own libraries are not known: {error}")
        self._discovery.look(self.whom.pid)
        if not self.attached and self.errors:
            reasons = ", ".join(sorted(self.errors))
            raise TraceError(
                f"the provider library of process {self.whom.pid} ({self.whom.name}) is not understood: "
                f"{reasons}"
            )

    def _look_again(self) -> None:
        """A process may load its provider, or open its first device, later."""
        now = time.monotonic()
        if self.attached or self._discovery is None or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        self._discovery.look(self.whom.pid)
