"""What happens on the simulated node, as exact integrals of rates over time.

Rates are constant between two moments and whole numbers, and so are their sums: what a counter says depends
on the seed and the time alone, never on when anybody looked before.

Training goes in steps of about 2 s: load data, compute (with some tensor-parallel NVLink traffic), exchange
gradients (NVLink and the fabric at full speed), update. Every ``CYCLE`` seconds the same things go wrong.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MILLION = 10**6
SECOND = 10**9
#: What a level of 1,000,000 (all of a capacity) adds up to in one second.
WHOLE = MILLION * SECOND
#: Seconds after which all episodes come again.
CYCLE = 600


@dataclass(frozen=True, slots=True)
class Episode:
    """Something that lasts from ``start`` to ``end``, in seconds of each cycle."""

    start: float
    end: float

    def times(self, now_ns: int) -> int:
        """How often it has begun."""
        cycle, within = divmod(now_ns, CYCLE * SECOND)
        return cycle + (within >= int(self.start * SECOND))

    def ended(self, now_ns: int) -> int:
        """How often it has ended."""
        cycle, within = divmod(now_ns, CYCLE * SECOND)
        return cycle + (within >= int(self.end * SECOND))

    def on(self, now_ns: int) -> bool:
        return self.times(now_ns) > self.ended(now_ns)

    @property
    def edges(self) -> tuple[int, int]:
        """In nanoseconds of the cycle."""
        return int(self.start * SECOND), int(self.end * SECOND)


#: One NVLink has bit errors, then is down, then is recovered.
LINK_ERRORS = Episode(90, 100)
LINK_DOWN = Episode(100, 106)
#: A peer pulls a model out of memory that is open to it, with RDMA READ: no local process asked for it.
PULL = Episode(180, 220)
#: An uncorrectable memory error, contained (XID 94); its row waits for a reset.
MEMORY_ERROR = Episode(300, 400)
#: A port of the fabric loses its link and trains it anew; nothing can be exchanged meanwhile.
PORT_DOWN = Episode(480, 483)
PORT_INIT = Episode(483, 483.5)
PORT_ARMED = Episode(483.5, 484)
PORT_LOST = Episode(480, 484)
EPISODES = (LINK_ERRORS, LINK_DOWN, PULL, MEMORY_ERROR, PORT_DOWN, PORT_INIT, PORT_ARMED)
#: A checkpoint is written out every so many seconds, after so many, for so many.
CHECKPOINT_EVERY, CHECKPOINT_AFTER, CHECKPOINT_FOR = 120, 20, 8

#: What has a rate of its own, each in millionths of what can be.
CHANNELS = (
    "nvlink",  # of every NVLink of a GPU that trains
    "nvlink_faulty",  # of the one that fails
    "fabric",  # gradients, out and in, of each port of the fabric
    "load",  # training data, read from storage
    "checkpoint",  # written to storage
    "reads",  # small reads from a cache on another node, as inference makes them
    "pull",  # what a peer reads out, of one port of the fabric
    "link_errors",
    "power",  # of a GPU that trains
    "busy",  # time in which a kernel ran on it
    "memory",  # of its memory's bandwidth
)
#: Levels of reads, of a pull and of a checkpoint while they go on.
READS, PULLED, WRITTEN = 60_000, 100_000, 800_000
EXCHANGE = 850_000


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step. ``share``: of the step's time, in percent. The others are levels of the channels."""

    name: str
    share: int
    busy: int
    memory: int
    power: int
    nvlink: int = 0
    fabric: int = 0
    load: int = 0


PHASES = (
    Phase("load", 12, 350_000, 120_000, 420_000, load=500_000),
    Phase("compute", 50, 990_000, 580_000, 960_000, nvlink=120_000),
    Phase("exchange", 27, 970_000, 360_000, 640_000, nvlink=EXCHANGE, fabric=EXCHANGE),
    Phase("update", 11, 930_000, 880_000, 780_000),
)
#: While nothing can be exchanged, kernels spin.
STALLED = Phase("stalled", 0, 1_000_000, 20_000, 330_000)
_STEP_NS = 2 * SECOND
_READS_NS = 700_000_000


class Script:
    """``totals``: channel -> millionths times nanoseconds since the start. One thread at a time."""

    def __init__(self, seed: int) -> None:
        self.now_ns = 0
        self.totals = dict.fromkeys(CHANNELS, 0)
        self.phase = PHASES[0]
        self._seed = seed
        self._step = -1
        self._phases: list[tuple[Phase, int]] = []
        self._phase_end = 0
        #: How hard this step's exchange is, in millionths of EXCHANGE.
        self._effort = MILLION
        self._reads_end = 0
        self._reading = False
        self._levels: tuple[tuple[str, int], ...] = ()
        self._until = 0

    def advance(self, now_ns: int) -> None:
        """Go on to ``now_ns`` nanoseconds since the start; one that is not later changes nothing."""
        while self.now_ns < now_ns:
            if self.now_ns >= self._until:
                self._turn()
            end = min(now_ns, self._until)
            lasted = end - self.now_ns
            for channel, level in self._levels:
                self.totals[channel] += level * lasted
            self.now_ns = end

    def moved(self, channel: str, capacity: int) -> int:
        """What a channel has moved of something that can do ``capacity`` in a second."""
        return self.totals[channel] * capacity // WHOLE

    def _turn(self) -> None:
        """Find out what goes on from now on, and until when."""
        now = self.now_ns
        while now >= self._phase_end:
            if not self._phases:
                self._begin_step()
            self.phase, lasts = self._phases.pop(0)
            self._phase_end += lasts
        if now >= self._reads_end:
            self._reading = not self._reading
            self._reads_end += _READS_NS * (2 if self._reading else 1)
        levels = self._running()
        if self._reading:
            levels["reads"] = READS
        if PULL.on(now):
            levels["pull"] = PULLED
        if LINK_ERRORS.on(now):
            levels["link_errors"] = MILLION
        if _checkpoint(now):
            levels["checkpoint"] = WRITTEN
        self._levels = tuple((channel, level) for channel, level in levels.items() if level)
        self._until = min(self._phase_end, self._reads_end, _next_edge(now))

    def _running(self) -> dict[str, int]:
        phase = self.phase
        if PORT_LOST.on(self.now_ns):
            return {"power": STALLED.power, "busy": STALLED.busy, "memory": STALLED.memory}
        exchange = phase.fabric * self._effort // MILLION
        nvlink = exchange or phase.nvlink
        return {
            "nvlink": nvlink,
            "nvlink_faulty": 0 if LINK_DOWN.on(self.now_ns) else nvlink,
            "fabric": exchange,
            "load": phase.load,
            "power": phase.power,
            "busy": phase.busy,
            "memory": phase.memory,
        }

    def _begin_step(self) -> None:
        self._step += 1
        chance = random.Random(f"{self._seed}/{self._step}")
        length = _STEP_NS + chance.randrange(-_STEP_NS // 25, _STEP_NS // 25)
        self._effort = MILLION - chance.randrange(MILLION // 12)
        self._phases = [(phase, length * phase.share // 100) for phase in PHASES]


def _checkpoint(now_ns: int) -> bool:
    within = now_ns % (CHECKPOINT_EVERY * SECOND)
    return CHECKPOINT_AFTER * SECOND <= within < (CHECKPOINT_AFTER + CHECKPOINT_FOR) * SECOND


_EDGES = tuple(
    sorted(
        {
            *(edge for episode in EPISODES for edge in episode.edges),
            *(
                start + edge
                for start in range(0, CYCLE * SECOND, CHECKPOINT_EVERY * SECOND)
                for edge in (
                    CHECKPOINT_AFTER * SECOND,
                    (CHECKPOINT_AFTER + CHECKPOINT_FOR) * SECOND,
                )
            ),
            CYCLE * SECOND,
        }
    )
)


def _next_edge(now_ns: int) -> int:
    cycle, within = divmod(now_ns, CYCLE * SECOND)
    return cycle * CYCLE * SECOND + next(edge for edge in _EDGES if edge > within)


class Averages:
    """Levels of channels between two readings, parts of 1, as a driver's gauges have them."""

    def __init__(self, *channels: str) -> None:
        self._before = dict.fromkeys(channels, 0)
        self._then_ns = 0

    def take(self, script: Script) -> dict[str, float]:
        """Those since the last call; 0 where no time has passed."""
        lasted = script.now_ns - self._then_ns
        now = {channel: script.totals[channel] for channel in self._before}
        levels = {
            channel: (total - self._before[channel]) / (lasted * MILLION) if lasted else 0.0
            for channel, total in now.items()
        }
        self._before, self._then_ns = now, script.now_ns
        return levels
