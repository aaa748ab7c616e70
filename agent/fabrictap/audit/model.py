"""What an audit consists of: ways, how well each is observed, and what is exposed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Severity(IntEnum):
    """``HIGH``: data is within reach of somebody who should not have it, or may go unseen through a setting
    that nobody needs. ``MEDIUM``: within reach by a default, or nothing observes it. ``LOW``: known and
    limited."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3


class Present(Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Observed(Enum):
    """How well what takes this way is seen now. ``HARDWARE``: counted by the hardware, nobody knows whose."""

    EXACT = "exact"
    SINCE = "since"
    ESTIMATED = "estimated"
    HARDWARE = "hardware only"
    NOT = "not observed"
    UNKNOWN = "unknown"
    #: There is nothing to observe.
    NOTHING = "-"


#: From the best to the worst.
ORDER = (
    Observed.NOTHING,
    Observed.EXACT,
    Observed.SINCE,
    Observed.ESTIMATED,
    Observed.HARDWARE,
    Observed.UNKNOWN,
    Observed.NOT,
)


@dataclass(frozen=True, slots=True)
class Sight:
    """How well, and by what."""

    how: Observed
    by: str


#: Of a way that is not there.
NOTHING = Sight(Observed.NOTHING, "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is exposed, or, where it is not ``certain``, may be: ``severity`` is then the worst "
    "case.

    ``fix`` is a command or a setting. ``evidence`` are a few examples, most telling first.
    """

    severity: Severity
    what: str
    fix: str
    evidence: tuple[str, ...] = ()
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Way:
    """One way. ``why`` says by what it is known to be there, or not, or why that cannot be known."""

    key: str
    name: str
    present: Present
    why: str
    seen: Sight = NOTHING
    findings: tuple[Finding, ...] = ()


def doubt(worst: Severity, what: str, fix: str) -> Finding:
    """What could not be looked at, and what it could be at worst."""
    return Finding(worst, what, fix, certain=False)


def many(number: int, noun: str, plural: str = "") -> str:
    """As in 1 process, 2 processes."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def some(things: list[str], most: int = 4) -> tuple[str, ...]:
    """The first few, and how many more there are."""
    if len(things) <= most:
        return tuple(things)
    return (*things[:most], f"and {len(things) - most} more")
