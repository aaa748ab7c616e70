"""What a host engine has: GPUs, MIG GPU instances, NVSwitches, their links, CPUs, and what each is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fabrictap.ext.dcgm import ROOM, DcgmError, Engine, Instance
from fabrictap.sources.dcgm import fields, states
from fabrictap.sources.dcgm.fields import COMPUTE_INSTANCE, CPU, GPU, INSTANCE, LINK, SWITCH

#: Group -> what it is called.
KINDS = {GPU: "GPUs", INSTANCE: "MIG instances", SWITCH: "NVSwitches", LINK: "NVSwitch links", CPU: "CPUs"}
#: More than any node has; what is beyond is left out and counted.
MOST_ENTITIES = 4096
_GPU_NAME = re.compile(r"GPU-[A-Za-z0-9-]{1,80}")
_MIG_NAME = re.compile(r"MIG-[A-Za-z0-9/-]{1,80}")
#: Versions whose dcgm_link_t has 32 bits of number, which leave none of its 32 to the owner.
_NO_OWNER = ("4.0.", "4.1.", "4.2.")


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing of the engine. ``hw_id`` is the catalog's, ``link`` the number of a link on its switch.

    ``shared``: watching profiling fields of it takes nothing from a profiler, as from Hopper on.
    """

    group: int
    number: int
    hw_id: str
    parent: str | None = None
    link: int | None = None
    shared: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """How the engine knows it."""
        return self.group, self.number


@dataclass(slots=True)
class Inventory:
    """``absent``: group -> DCGM_ST_ code that the engine answered to the question for it."""

    entities: list[Entity] = field(default_factory=list)
    absent: dict[int, int] = field(default_factory=dict)
    #: Entities without a name of their own: a GPU that does not tell its UUID, a link of what is no switch.
    nameless: int = 0


def split_link(number: int) -> tuple[int, int, int]:
    """A link's entity id -> (group of its owner, the owner's id, the link's number).

    dcgm_link_t has the group in its low 8 bits. Then follow 8 bits of number and 16 of owner (3.x), or 16 of
    number and 8 of owner (4.3 and later); none of them is above 255, so only one reading makes sense.
    """
    if number >> 24:
        return number & 0xFF, number >> 24, number >> 8 & 0xFFFF
    return number & 0xFF, number >> 16, number >> 8 & 0xFF


def describe(found: Inventory) -> str:
    """What an engine has, in one line."""
    counts = {group: sum(entity.group == group for entity in found.entities) for group in KINDS}
    parts = [f"{count} {KINDS[group]}" for group, count in counts.items() if count]
    if found.nameless:
        parts.append(f"{found.nameless} without a name, left out")
    return ", ".join(parts) or "nothing that is watched"


def discover(engine: Engine) -> Inventory:
    """Ask the engine for all of it. Raises DcgmError where the connection is lost."""
    found = Inventory()
    listed = {group: _list(engine, group, found) for group in KINDS}
    gpus = _gpus(engine, listed[GPU], found)
    found.entities += gpus.values()
    if listed[INSTANCE]:
        found.entities += _instances(engine, listed[INSTANCE], gpus, found)
    found.entities += [Entity(SWITCH, number, f"nvswitch/{number}") for number in listed[SWITCH]]
    ambiguous = len(listed[SWITCH]) > 1 and (engine.version() or "").startswith(_NO_OWNER)
    for number in listed[LINK]:
        owner, switch, link = split_link(number)
        if owner == SWITCH and not ambiguous:
            found.entities.append(Entity(LINK, number, f"nvswitch/{switch}", link=link))
        else:
            found.nameless += 1
    found.entities += [Entity(CPU, number, f"cpu/{number}") for number in listed[CPU]]
    del found.entities[MOST_ENTITIES:]
    return found


def _list(engine: Engine, group: int, found: Inventory) -> list[int]:
    try:
        return sorted(set(engine.entities(group)))
    except DcgmError as error:
        if error.code in states.FATAL:
            raise
        found.absent[group] = error.code
        return []


def _once(
    engine: Engine, group: int, numbers: Sequence[int], wanted: Sequence[int]
) -> dict[tuple[int, int], object]:
    """(entity, field) -> value of fields that never change, asked of the driver: they need no watch."""
    values: dict[tuple[int, int], object] = {}
    step = max(1, min(ROOM // len(wanted), 64))
    for start in range(0, len(numbers), step):
        pairs = [(group, number) for number in numbers[start : start + step]]
        for value in engine.latest(pairs, wanted, live=True):
            if states.reason_of(value) is None:
                values[value.entity, value.field] = value.value
    return values


def _gpus(engine: Engine, numbers: Sequence[int], found: Inventory) -> dict[int, Entity]:
    values = _once(engine, GPU, numbers, (fields.UUID, fields.CAPABILITY))
    made: dict[int, Entity] = {}
    for number in numbers:
        uuid = values.get((number, fields.UUID))
        taken = any(entity.hw_id == uuid for entity in made.values())
        if not isinstance(uuid, str) or not _GPU_NAME.fullmatch(uuid) or taken:
            found.nameless += 1
            continue
        capability = values.get((number, fields.CAPABILITY))
        shared = isinstance(capability, int) and capability >= fields.SHARED_PROFILING
        made[number] = Entity(GPU, number, uuid, shared=shared)
    return made


def _instances(
    engine: Engine, numbers: Sequence[int], gpus: dict[int, Entity], found: Inventory
) -> list[Entity]:
    """The GPU instances of MIG.

    DCGM gives as the UUID of one that of its first MIG device. That is its name only where it has no other
    device beside it; else it is GPU-<uuid>/gi<number of the instance>.
    """
    try:
        hierarchy = engine.instances()
    except DcgmError as error:
        if error.code in states.FATAL:
            raise
        found.absent[INSTANCE] = error.code
        return []
    places: dict[int, Instance] = {one.entity: one for one in hierarchy if one.group == INSTANCE}
    devices: dict[int, int] = {}
    for one in hierarchy:
        if one.group == COMPUTE_INSTANCE:
            devices[one.parent] = devices.get(one.parent, 0) + 1
    try:
        values = _once(engine, INSTANCE, numbers, (fields.UUID,))
    except DcgmError as error:
        if error.code in states.FATAL:
            raise
        values = {}  # the documented form is a name as well
    made = []
    for number in numbers:
        place = places.get(number)
        gpu = gpus.get(place.parent) if place is not None else None
        if place is None or gpu is None:
            found.nameless += 1
            continue
        uuid = values.get((number, fields.UUID))
        alone = devices.get(number) == 1 and isinstance(uuid, str) and _MIG_NAME.fullmatch(uuid)
        name = str(uuid) if alone else f"{gpu.hw_id}/gi{place.gpu_instance}"
        made.append(Entity(INSTANCE, number, name, parent=gpu.hw_id, shared=gpu.shared))
    return made
