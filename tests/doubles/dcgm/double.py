"""Compiles the stand-in of libdcgm and plays the node behind it through a file that both have mapped."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
#: Names the file to the library.
VARIABLE = "FABRICTAP_DCGM_DOUBLE"
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden")

GPU, SWITCH, GPU_I, GPU_CI, LINK, CPU = 1, 3, 4, 5, 6, 7
#: enum call of control.h, in its order.
CALLS = (
    "init",
    "shutdown",
    "connect_v2",
    "connect_v3",
    "disconnect",
    "entities",
    "group_create",
    "group_add",
    "group_destroy",
    "fields_create",
    "fields_destroy",
    "watch",
    "unwatch",
    "latest",
    "hierarchy",
    "version",
    "prof_pause",
    "prof_resume",
    "start_embedded",
    "engine_run",
)
#: What a client of a running engine never calls.
FORBIDDEN = ("prof_pause", "prof_resume", "start_embedded", "engine_run")
BLANK, BLANK_FP64 = 0x7FFFFFFFFFFFFFF0, 140737488355328.0
_MAX_CALLS, _MAX_ENTITIES, _MAX_VALUES, _MAX_REFUSED = 24, 2048, 16384, 64


class _Entity(ctypes.Structure):
    _fields_ = (
        ("group", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("parent_group", ctypes.c_uint32),
        ("parent", ctypes.c_uint32),
        ("gpu_instance", ctypes.c_uint32),
        ("compute_instance", ctypes.c_uint32),
        ("uuid", ctypes.c_char * 96),
    )


class _Value(ctypes.Structure):
    _fields_ = (
        ("group", ctypes.c_uint32),
        ("entity", ctypes.c_uint32),
        ("field", ctypes.c_uint16),
        ("type", ctypes.c_uint16),
        ("status", ctypes.c_int32),
        ("foreign", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("time_us", ctypes.c_int64),
        ("i64", ctypes.c_int64),
        ("dbl", ctypes.c_double),
        ("str", ctypes.c_char * 96),
    )


class _Refused(ctypes.Structure):
    _fields_ = (("field", ctypes.c_uint32), ("code", ctypes.c_int32))


class Control(ctypes.Structure):
    """struct control of control.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("generation", ctypes.c_uint32),
        ("refuse", ctypes.c_int32),
        ("profiling_paused", ctypes.c_uint32),
        ("known_fields", ctypes.c_uint32),
        ("unknown_first", ctypes.c_uint32),
        ("unknown_last", ctypes.c_uint32),
        ("entity_limit", ctypes.c_uint32),
        ("value_limit", ctypes.c_uint32),
        ("hang", ctypes.c_uint32),
        ("hanging", ctypes.c_uint32),
        ("shuffle", ctypes.c_uint32),
        ("garbage", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("short_by", ctypes.c_uint32),
        ("answer", ctypes.c_int32 * _MAX_CALLS),
        ("answers", ctypes.c_uint32 * _MAX_CALLS),
        ("calls", ctypes.c_uint64 * _MAX_CALLS),
        ("libraries", ctypes.c_int32),
        ("connections", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("field_groups", ctypes.c_int32),
        ("watches", ctypes.c_int32),
        ("abandoned", ctypes.c_uint32),
        ("address", ctypes.c_char * 256),
        ("timeout_ms", ctypes.c_uint32),
        ("is_unix", ctypes.c_uint32),
        ("persist", ctypes.c_uint32),
        ("last_name", ctypes.c_char * 256),
        ("last_interval_us", ctypes.c_int64),
        ("last_keep", ctypes.c_double),
        ("last_samples", ctypes.c_int32),
        ("refused_count", ctypes.c_uint32),
        ("refused", _Refused * _MAX_REFUSED),
        ("entity_count", ctypes.c_uint32),
        ("value_count", ctypes.c_uint32),
        ("entities", _Entity * _MAX_ENTITIES),
        ("values", _Value * _MAX_VALUES),
    )


def missing() -> str:
    """What is needed and not here, with the command that provides it; empty if nothing is."""
    return "" if shutil.which("cc") else "a C compiler: apt-get install build-essential"


def build(directory: Path, major: int = 4) -> Path:
    """Compile the stand-in of libdcgm.so.MAJOR into ``directory``."""
    library = directory / f"libdcgm.so.{major}"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        command = [
            "cc",
            *_FLAGS,
            f"-DMAJOR={major}",
            f"-Wl,-soname,libdcgm.so.{major}",
            str(HERE / "libdcgm.c"),
        ]
        subprocess.run([*command, "-o", str(library)], check=True)
    return library


class Engine:
    """A made-up host engine. What is set here is what the very next call of the library sees.

    A STAND-IN: nothing in it comes from a GPU. ``major`` 3 knows fewer fields and takes fewer entities.
    """

    def __init__(self, file: Path, major: int = 4) -> None:
        file.write_bytes(bytes(ctypes.sizeof(Control)))
        self.file = file
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self.control = Control.from_buffer(self._map)
        self.control.size = ctypes.sizeof(Control)
        self.control.generation = 1
        self.control.known_fields = 1600 if major >= 4 else 1142
        if major < 4:
            self.control.unknown_first, self.control.unknown_last = 1076, 1099
        self.control.entity_limit = 1024 if major >= 4 else 64
        self.control.value_limit = 1 << 20
        self._places: dict[tuple[int, int, int], int] = {}

    # --- what there is

    def add(
        self,
        group: int,
        entity: int,
        *,
        uuid: str = "",
        parent: tuple[int, int] = (0, 0),
        gpu_instance: int = 0xFFFFFFFF,
        compute_instance: int = 0xFFFFFFFF,
    ) -> None:
        """An entity that was not there; ``uuid`` of its GPU."""
        count = self.control.entity_count
        self.control.entities[count] = _Entity(
            group, entity, *parent, gpu_instance, compute_instance, uuid.encode()
        )
        self.control.entity_count = count + 1

    def remove(self, group: int, entity: int) -> None:
        kept = [e for e in self._entities() if (e.group, e.id) != (group, entity)]
        for i, one in enumerate([_Entity.from_buffer_copy(e) for e in kept]):
            self.control.entities[i] = one
        self.control.entity_count = len(kept)

    def _entities(self) -> Iterator[_Entity]:
        return (self.control.entities[i] for i in range(self.control.entity_count))

    def set(
        self,
        group: int,
        entity: int,
        field: int,
        value: float | str = 0,
        *,
        status: int = 0,
        time_us: int = 0,
        foreign: bool = False,
        kind: str = "",
    ) -> None:
        """What a field of an entity reads; its type follows from the value unless ``kind`` says it."""
        key = (group, entity, field)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = self.control.value_count
        made = _Value(
            group=group, entity=entity, field=field, status=status, foreign=foreign, time_us=time_us
        )
        natural = "s" if isinstance(value, str) else "d" if isinstance(value, float) else "i"
        made.type = ord(kind or natural)
        if isinstance(value, str):
            made.str = value.encode()
        elif isinstance(value, float):
            made.dbl = value
        else:
            made.i64 = value
        self.control.values[place] = made
        self.control.value_count = max(self.control.value_count, place + 1)

    def gpu(self, entity: int, uuid: str, *, capability: tuple[int, int] = (9, 0)) -> None:
        """A GPU with its identity, and nothing else."""
        self.add(GPU, entity, uuid=uuid)
        self.set(GPU, entity, 54, uuid)
        self.set(GPU, entity, 63, capability[0] << 16 | capability[1])

    # --- how it behaves

    def answer(self, call: str, code: int, times: int = 0) -> None:
        """Have a call answer ``code`` the next ``times`` times; 0: until told otherwise."""
        self.control.answers[CALLS.index(call)] = times
        self.control.answer[CALLS.index(call)] = code

    def refuse_watch(self, field: int, code: int) -> None:
        """A watch that has this field answers ``code``, until :meth:`allow_watches`."""
        self.control.refused[self.control.refused_count] = _Refused(field, code)
        self.control.refused_count += 1

    def allow_watches(self) -> None:
        self.control.refused_count = 0

    def restart(self) -> None:
        """Connections of before are not valid any more; nothing that they held is there."""
        self.control.generation += 1

    def hang(self, call: str) -> None:
        self.control.hang = CALLS.index(call) + 1

    def release(self) -> None:
        self.control.hang = 0

    # --- what it was asked

    def calls(self, call: str) -> int:
        return int(self.control.calls[CALLS.index(call)])

    def held(self) -> dict[str, int]:
        """What clients hold at this engine now, by kind; what is 0 is left out."""
        kinds = ("libraries", "connections", "groups", "field_groups", "watches")
        return {kind: getattr(self.control, kind) for kind in kinds if getattr(self.control, kind)}
