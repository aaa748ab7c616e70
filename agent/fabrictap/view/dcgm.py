"""What ``fabrictap doctor`` says of DCGM: a client of its own looks, as the source would, and goes again."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from fabrictap.config import Config
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.dcgm.entities import KINDS, Entity, describe
from fabrictap.sources.dcgm.fields import GPU, LINK, LINK_STATUS, SETS
from fabrictap.sources.dcgm.session import Reading, Session

#: Seconds after which an engine that does not answer is given up.
_PATIENCE = 20.0
#: Seconds that a new watch may take to its first value.
_FIRST_VALUE = 2.0


@dataclass(slots=True)
class Report:
    """``problem``: why there is nothing to say; ``absent``: and that nothing is wrong with that.

    ``missing``: reason -> field sets that some entity does not have for it, each with the fields.
    ``refused``: what the engine did not want to watch, in its own words.
    """

    problem: str | None = None
    absent: bool = False
    found: str = ""
    missing: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def look(config: Config) -> Report:
    """Ask the engine for all that the source would. Never longer than some 20 s."""
    report = Report()
    thread = threading.Thread(target=_look, args=(config, report), name="doctor-dcgm", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        return Report(f"the engine at {config.sources.dcgm.address} has not answered for {_PATIENCE:g} s")
    return report


def _look(config: Config, report: Report) -> None:
    errors: dict[str, int] = {}
    session = Session(config.sources.dcgm, errors)
    try:
        session.open(time.monotonic())
        sample = session.read(time.monotonic())
        end = time.monotonic() + _FIRST_VALUE
        while sample.lost is None and _waits(sample.readings) and time.monotonic() < end:
            time.sleep(0.1)
            sample = session.read(time.monotonic())
        if sample.lost is not None:
            report.problem = sample.lost
            return
        report.found = (
            f"host engine {session.version or 'of unknown version'} at {config.sources.dcgm.address}, "
            f"{session.path}: {describe(session.inventory)}"
        )
        report.missing = _missing(sample.readings)
        assert session.watches is not None
        report.refused = sorted(
            {f"{name}: {session.text(code)} ({code})" for name, code in session.watches.refusals()}
            | {
                f"{KINDS[group]}: {session.text(code)} ({code})"
                for group, code in session.inventory.absent.items()
            }
        )
    except SourceAbsent as error:
        report.problem, report.absent = str(error), True
    except SourceUnavailable as error:
        report.problem = str(error)
    finally:
        session.close()


def _waits(readings: dict[Entity, dict[int, Reading]]) -> bool:
    """Whether no GPU has any value yet."""
    return any(
        all(reading.value is None for reading in mine.values())
        for entity, mine in readings.items()
        if entity.group == GPU
    )


def _missing(readings: dict[Entity, dict[int, Reading]]) -> dict[str, list[str]]:
    found: dict[str, dict[str, set[int]]] = {}
    for entity, mine in readings.items():
        if entity.group == LINK and not mine[LINK_STATUS].value:
            continue  # nothing is at it
        for each in SETS[entity.group]:
            for bundle in each.bundles:
                for point in bundle.points:
                    if (reason := mine[point.field].reason) is not None:
                        found.setdefault(reason, {}).setdefault(each.name, set()).add(point.field)
    return {
        reason: [f"{name} ({_ranges(fields)})" for name, fields in sorted(sets.items())]
        for reason, sets in sorted(found.items())
    }


def _ranges(numbers: set[int]) -> str:
    """{1, 2, 3, 7} -> 1-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
