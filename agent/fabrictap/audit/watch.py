"""What a running agent knows, from its recording, and what this build can see at all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

from fabrictap.audit.model import Observed, Sight
from fabrictap.view.recording import AbsentError, Connection, Recording, RecordingError

#: Sources that do not exist in every build.
_KNOWN = ("infiniband", "rdma_netlink", "verbs", "nvml", "dcgm", "gpudirect", "collectives")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory registered by one process on one device with one kind of access."""

    pid: int | None
    process: str
    device: str
    access: str
    atomic: bool
    bytes: int

    def __str__(self) -> str:
        who = self.process or "a process without a name"
        return f"{self.pid}/{who}" if self.pid is not None else who


def in_build(module: str) -> bool:
    """Whether this build has ``fabrictap.sources.MODULE``."""
    try:
        return importlib.util.find_spec(f"fabrictap.sources.{module}") is not None
    except ModuleNotFoundError:
        return False


@dataclass
class Watch:
    """``state``: running, absent (no agent runs here), unknown (its recording cannot be read)."""

    state: str = "absent"
    why: str = "no recording was looked for"
    #: Source -> whether it delivers.
    sources: dict[str, bool] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    #: Dark bytes of all ports since the agent began; None where no port is reconciled.
    dark: int | None = None
    #: What the agent saw and could not keep.
    lost: int = 0
    build: frozenset[str] = field(
        default_factory=lambda: frozenset(name for name in _KNOWN if in_build(name))
    )

    @staticmethod
    def take(open_recording: Callable[[], Recording]) -> Watch:
        """From the recording that ``open_recording`` opens. Raises nothing: what fails is said."""
        try:
            with open_recording() as recording:
                life = recording.alive()
                if life.state != "running":
                    how = {"stalled": "hangs", "ended": "has ended"}.get(life.state, "has died")
                    return Watch("absent", f"the agent of {recording.path} {how}")
                made = Watch("running", f"agent {life.pid}, recording {recording.path}")
                made._read(recording)
                return made
        except AbsentError as error:
            return Watch("absent", f"no recording: {error}")
        except RecordingError as error:
            return Watch("unknown", str(error))

    def _read(self, recording: Recording) -> None:
        names = {
            "fabrictap.source.up",
            "rdma.memory_region.size",
            "rdma.port.dark.io",
            "fabrictap.record.lost",
            "fabrictap.table.dropped",
            "fabrictap.series.refused",
        }
        for one in recording.series(lambda metric: metric.name in names):
            value = one.value
            if one.ended or not isinstance(value, (int, float)):
                continue
            at = one.attributes.get
            match one.metric.name:
                case "fabrictap.source.up":
                    self.sources[str(at("fabrictap.source", ""))] = value > 0
                case "rdma.port.dark.io":
                    self.dark = (self.dark or 0) + int(value)
                case "rdma.memory_region.size":
                    pid = at("process.pid")
                    self.memory.append(
                        Memory(
                            pid if isinstance(pid, int) else None,
                            str(at("process.executable.name", "")),
                            str(at("rdma.device", "")),
                            str(at("rdma.memory_region.remote_access", "unknown")),
                            at("rdma.memory_region.remote_atomic") is True,
                            int(value),
                        )
                    )
                case _:
                    self.lost += int(value)
        self.connections = [one for one in recording.connections() if not one.ended]

    def sight(self, source: str, how: Observed, by: str) -> Sight:
        """``how`` well ``source`` sees something, where it is there, runs and delivers."""
        if source not in self.build:
            return Sight(Observed.NOT, f"this version has no source for it ({source})")
        if self.state == "unknown":
            return Sight(Observed.UNKNOWN, f"whether an agent runs is not known: {self.why}")
        if self.state != "running":
            return Sight(Observed.NOT, f"no agent runs; one would see it ({how.value}): {by}")
        if not self.sources.get(source, False):
            return Sight(Observed.NOT, f"the agent's source {source} is down or off; it would give: {by}")
        return Sight(how, f"{source}: {by}")
