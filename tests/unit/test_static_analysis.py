"""Providers' functions from their files alone: real rdma-core of three releases, and files made to hurt."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.provider import builder
from doubles.provider import elf as reference
from fabrictap.sources.verbs import elf, libraries, static
from fabrictap.sources.verbs.elf import Elf, Refused
from support import require

SCRIPT = Path(__file__).parents[1] / "rdma_core.sh"
SUITES = {"bullseye": 33, "bookworm": 44, "trixie": 56}
#: Its table is made at run time: no file tells.
UNKNOWN = {"hns"}
#: Calls verbs_set_ops of the library in argv[1] with a table of numbers, and prints which came where.
CALL = """
import ctypes, json, struct, sys
own = ctypes.CDLL(sys.argv[1])
table = (ctypes.c_uint64 * 256)(*range(0x1000, 0x1100))
private = (ctypes.c_uint64 * 8192)()
context = (ctypes.c_uint64 * 512)()
for index in range(40):  # wherever its private pointer lies
    context[index] = ctypes.addressof(private)
own.verbs_set_ops(ctypes.byref(context), ctypes.byref(table))
public = json.loads(sys.argv[2])
print(json.dumps({name: (context[(320 + offset) // 8] - 0x1000) * 8 for name, offset in public.items()}))
"""


@pytest.fixture(scope="session", params=SUITES)
def rdma_core(request: pytest.FixtureRequest) -> tuple[int, Path]:
    """The release, and the directory in which its libibverbs lies."""
    require("x86_64", platform.machine() == "x86_64", "machine code of x86-64 is analysed")
    made = subprocess.run([SCRIPT, request.param], capture_output=True, text=True, timeout=280, check=False)
    require(
        "rdma-core-versions", made.returncode == 0, f"{made.stderr.strip()[-300:]}; with network: {SCRIPT}"
    )
    (library,) = Path(made.stdout.strip()).glob("usr/lib/*/libibverbs.so.1")
    return SUITES[request.param], library.parent


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> builder.Double:
    why = builder.missing()
    require("compiler", not why, why)
    require("x86_64", platform.machine() == "x86_64", "machine code of x86-64 is analysed")
    return builder.build(tmp_path_factory.mktemp("static"))


def opened(path: Path) -> Iterator[Elf]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield Elf(descriptor)
    finally:
        os.close(descriptor)


def slots_of(directory: Path) -> dict[str, int]:
    (own,) = opened_slots(directory / "libibverbs.so.1")
    return own


def opened_slots(path: Path) -> Iterator[dict[str, int]]:
    for library in opened(path):
        yield static.slots(library)


def providers(directory: Path) -> list[Path]:
    return sorted((directory / "libibverbs").glob("*-rdmav*.so"))


# --- real libraries -------------------------------------------------------------------------------


def test_every_provider_but_the_known_ones_tells_its_functions(rdma_core):
    _, directory = rdma_core
    at = slots_of(directory)
    for path in providers(directory):
        for provider in opened(path):
            name = libraries.provider_name(path.name)
            if name in UNKNOWN:
                with pytest.raises(Refused) as refusal:
                    static.functions(provider, at)
                assert refusal.value.reason == "no_table"
                continue
            found = static.functions(provider, at)
            assert {"post_send", "post_recv"} <= set(found) <= set(static.OPS), name
            starts = {provider.offset(address) for address in provider.function_starts()}
            offsets = [offset for several in found.values() for offset in several]
            assert starts.issuperset(offsets), name
            assert len(set(offsets)) == len(offsets), name
    assert len(providers(directory)) > 10


def test_the_order_read_from_machine_code_is_the_one_that_running_it_shows(rdma_core):
    _, directory = rdma_core
    library = directory / "libibverbs.so.1"
    argv = [sys.executable, "-c", CALL, str(library), json.dumps(static.OPS)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if "GLIBC_" in ran.stderr:
        # Made for a newer libc than this system's: its own, which runs older programs too, came with it.
        loader = directory.parents[2] / "lib64" / "ld-linux-x86-64.so.2"
        places = f"{directory}:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu"
        argv = [str(loader), "--library-path", places, *argv]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert ran.returncode == 0, ran.stderr
    assert slots_of(directory) == json.loads(ran.stdout)


def test_the_entry_points_of_libibverbs_are_the_default_versions(rdma_core):
    _, directory = rdma_core
    exported = reference.exported(directory / "libibverbs.so.1")
    for library in opened(directory / "libibverbs.so.1"):
        assert static.entry_points(library) == {
            "create_ah": exported["ibv_create_ah"], "qp_to_qp_ex": exported["ibv_qp_to_qp_ex"],
            "modify_qp": exported["ibv_modify_qp"],
        }  # fmt: skip
        note = subprocess.run(
            ["readelf", "-n", str(directory / "libibverbs.so.1")], capture_output=True, text=True, check=True
        ).stdout
        assert f"Build ID: {library.build_id()}" in note


def test_an_analysis_of_the_largest_provider_takes_little(rdma_core):
    _, directory = rdma_core
    at = slots_of(directory)
    for provider in opened(
        directory / "libibverbs" / next(p.name for p in providers(directory) if "mlx5" in p.name)
    ):
        began = time.process_time()
        static.functions(provider, at)
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/lib/x86_64-linux-gnu/libmlx5.so.1.24.44.0", "mlx5"),
        ("/usr/lib64/libibverbs/libmlx5-rdmav34.so", "mlx5"),
        ("/opt/x/libbnxt_re-rdmav34.so (deleted)", "bnxt_re"),
        ("/usr/lib/libc.so.6", None),
        ("/usr/lib/x86_64-linux-gnu/libibverbs.so.1.14.44.0", None),
        ("libmlx5.txt", None),
        ("", None),
    ],
)
def test_providers_are_known_by_name(path, name):
    assert libraries.provider_name(path) == name


# --- the stand-in ---------------------------------------------------------------------------------


def test_the_stand_in_is_analysed_as_a_real_provider(stand_in):
    exported = reference.exported(stand_in.library)
    (at,) = opened_slots(stand_in.libibverbs)
    assert at == {"poll_cq": 416, "post_recv": 432, "post_send": 440, "post_srq_recv": 456}
    for provider in opened(stand_in.library):
        assert static.functions(provider, at) == {name: [exported[name]] for name in builder.FUNCTIONS}


def test_what_is_no_provider_is_refused_with_a_reason(stand_in, tmp_path):
    (at,) = opened_slots(stand_in.libibverbs)
    for path, reason in ((stand_in.libibverbs, "not_a_provider"), (Path(sys.executable), "not_a_provider")):
        for library in opened(path):
            with pytest.raises(Refused) as refusal:
                static.functions(library, at)
            assert refusal.value.reason in (reason, "not_dynamic")
    for library in opened(stand_in.library):
        with pytest.raises(Refused) as refusal:
            static.slots(library)
        assert refusal.value.reason == "no_verbs_set_ops"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\0" * 58, b"\x7fELF\x01\x01" + b"\0" * 58, b"#!/bin/sh\n" * 50,
     b"\x7fELF\x02\x01" + b"\xff" * 58],
)  # fmt: skip
def test_what_is_no_library_is_refused(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(Refused):
        list(opened(tmp_path / "bad"))


def analyse(path: Path, at: dict[str, int]) -> str:
    """Everything that is done with a file of unknown origin; how it ended."""
    try:
        for library in opened(path):
            library.build_id()
            library.function_starts()
            static.entry_points(library)
            static.slots(library)
    except Refused as refusal:
        if not str(refusal):
            return "refused without a word"
    try:
        for library in opened(path):
            static.functions(library, at)
    except Refused as refusal:
        return refusal.reason
    return "found"


REASONS = {
    "found", "malformed", "too_large", "unreadable", "not_elf64", "not_dynamic", "not_a_provider", "no_table",
    "architecture",
}  # fmt: skip


def mutated(random_: random.Random, raw: bytes) -> bytes:
    """Changed where it hurts: headers, dynamic section, relocations, tables; or cut, or anywhere."""
    data = bytearray(raw)
    (table,) = struct.unpack_from("<Q", raw, 32)
    (count,) = struct.unpack_from("<H", raw, 56)
    hot = [(0, 64), (table, 56 * count)]
    for index in range(count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", raw, table + 56 * index)
        if kind in (2, 4, 0x6474E550):
            hot.append((offset, size))
    kind = random_.randrange(8)
    if kind == 0:
        return bytes(data[: random_.randrange(len(data))])
    for _ in range(random_.choice((1, 1, 2, 4, 32))):
        start, size = random_.choice(hot) if kind < 6 else (0, len(data))
        at = start + random_.randrange(max(1, size))
        width = random_.choice((1, 2, 4, 8))
        value = random_.choice(
            (0, 1, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, (1 << 63), (1 << 64) - 1, random_.getrandbits(64))
        )
        data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_no_file_crashes_the_analysis_or_exceeds_its_limits(stand_in, tmp_path, seed):
    """Mutations by a seed, so that what fails can be had again."""
    random_ = random.Random(seed)
    raws = [stand_in.library.read_bytes(), stand_in.libibverbs.read_bytes()]
    (at,) = opened_slots(stand_in.libibverbs)
    seen = set()
    tracemalloc.start()
    try:
        for number in range(400):
            path = tmp_path / "mutated"
            path.write_bytes(mutated(random_, random_.choice(raws)))
            tracemalloc.reset_peak()
            began = time.process_time()
            seen.add(analyse(path, at))
            assert time.process_time() - began < 2, f"mutation {number} of seed {seed}"
            assert tracemalloc.get_traced_memory()[1] < 4 * elf.MAX_READ, f"mutation {number} of seed {seed}"
    finally:
        tracemalloc.stop()
    assert seen <= REASONS
    assert len(seen) > 3


@pytest.mark.parametrize("seed", range(4))
def test_no_machine_code_crashes_the_reading_of_verbs_set_ops(stand_in, seed):
    random_ = random.Random(seed)
    for library in opened(stand_in.libibverbs):
        symbol = library.exported("verbs_set_ops")
        code = library.at(symbol.address, symbol.size)
    for _ in range(3000):
        changed = bytearray(code)
        for _ in range(random_.choice((1, 2, 8))):
            changed[random_.randrange(len(changed))] = random_.getrandbits(8)
        with contextlib.suppress(Refused):
            static._copies(bytes(changed[: random_.randrange(1, len(changed) + 1)]))


def test_a_file_that_claims_a_million_relocations_is_refused(stand_in, tmp_path):
    raw = bytearray(stand_in.library.read_bytes())
    for library in opened(stand_in.library):
        at, _ = library._dynamic_at
    while struct.unpack_from("<Q", raw, at)[0] != 8:  # DT_RELASZ
        at += 16
    struct.pack_into("<Q", raw, at + 8, 24 * (1 << 20))
    (tmp_path / "many").write_bytes(raw)
    (slots,) = opened_slots(stand_in.libibverbs)
    assert analyse(tmp_path / "many", slots) in ("too_large", "malformed")


def test_a_sparse_giant_is_refused_without_being_read(stand_in, tmp_path):
    giant = tmp_path / "libgiant-rdmav34.so"
    shutil.copy2(stand_in.library, giant)
    os.truncate(giant, 1 << 40)
    descriptor = os.open(giant, os.O_RDONLY)
    try:
        with pytest.raises(Refused, match="MiB"):
            libraries._digest(descriptor)
    finally:
        os.close(descriptor)
