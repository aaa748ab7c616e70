"""Finding a provider's functions, on real libibverbs where it is installed and on a stand-in with devices."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from doubles.provider import builder, elf
from fabrictap.sources.verbs import providers
from support import require


@pytest.fixture
def stand_in(double, monkeypatch):
    """The stand-in libibverbs in place of the system's, for programs that are started."""
    library = double.libibverbs
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    return library


def device_of(path: Path) -> str:
    status = path.stat()
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"


def test_the_offsets_read_by_hand_are_those_of_the_installed_headers():
    why = builder.missing()
    require("compiler", not why, why)
    try:
        builder.check_abi()
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr, pytrace=False)


def test_create_ah_is_found_in_the_installed_libibverbs():
    installed = ctypes.util.find_library("ibverbs")
    require("libibverbs", installed is not None, "libibverbs.so.1 is missing: apt-get install libibverbs1")
    report = providers.discover()
    (place,) = [place for place in report.places if place.function == "create_ah"]
    library = Path(place.file)
    assert library.name.startswith("libibverbs.so.1")
    assert place.offset == elf.exported(library)["ibv_create_ah"]
    assert (place.inode, place.device) == (library.stat().st_ino, device_of(library))


def test_each_function_of_each_whole_device_is_found_once(stand_in, double):
    report = providers.discover()
    real = elf.exported(double.library)
    extended = {(place.function, place.offset) for place in double.extended()}
    of_extended = [place for place in report.places if place.function in providers.EXTENDED]
    # Of one queue pair for each transport: wr_set_sge of datagrams is a function of its own.
    assert sorted((place.function, place.offset) for place in of_extended) == sorted(extended)
    found = {place.function: place for place in report.places if place not in of_extended}
    assert len(found) == len(report.places) - len(of_extended) == 7
    for function in builder.FUNCTIONS:
        place = found[function]
        assert (Path(place.file), place.offset) == (double.library, real[function])
        assert (place.inode, place.device) == (double.library.stat().st_ino, device_of(double.library))
    assert found["create_ah"].offset == elf.exported(stand_in)["ibv_create_ah"]
    assert found["modify_qp"].offset == elf.exported(stand_in)["ibv_modify_qp"]
    assert {(place.device, place.inode) for place in report.places} == {
        (device_of(path), path.stat().st_ino) for path in (double.library, stand_in)
    }


def test_a_device_that_cannot_be_looked_at_is_named_and_costs_only_itself(stand_in):
    report = providers.discover()
    assert set(report.problems) == {"refused0", "nowhere0"}
    assert "Permission denied" in report.problems["refused0"]
    assert "post_recv" in report.problems["nowhere0"]


def test_what_a_provider_leaves_out_is_not_taken_for_a_function_of_libibverbs(stand_in):
    """nosrq0: its post_srq_recv is libibverbs' own answer that there is none."""
    of_libibverbs = {place.function for place in providers.discover().places if place.file == str(stand_in)}
    assert of_libibverbs == {"create_ah", "qp_to_qp_ex", "modify_qp"}


def test_a_machine_without_libibverbs_is_a_problem_with_a_name(tmp_path, monkeypatch):
    (tmp_path / "libibverbs.so.1").write_bytes(b"no library" * 100)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    report = providers.discover()
    assert report.places == []
    assert "invalid ELF header" in report.problems["libibverbs.so.1"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo it broke >&2; exit 3", "ended with 3: it broke"),
        ("kill -SEGV $$", "ended with -11: no message"),
        ("echo no json", "not understood"),
        ("exec cat /dev/zero >/dev/null", "longer than 0.2 s"),
    ],
)
def test_a_helper_that_fails_says_how(tmp_path, monkeypatch, script, message):
    helper = tmp_path / "python"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(helper))
    with pytest.raises(providers.HelperFailed, match=message):
        providers.discover(timeout=0.2 if "zero" in script else 20)


def test_a_helper_that_cannot_be_started_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(providers.HelperFailed, match="No such file"):
        providers.discover()


@pytest.mark.parametrize(
    ("entry", "skipped", "cheap"),
    [
        ("push", 0, True),
        ("endbr64_push", 4, True),
        ("single_stepped", 0, False),
        ("endbr64_single_stepped", 4, False),
    ],
)
def test_the_probe_is_put_behind_endbr64_and_the_instruction_is_judged(doubles, entry, skipped, cheap):
    place = doubles(entry).place("post_send")
    descriptor = os.open(place.file, os.O_RDONLY)
    try:
        assert providers.entry(descriptor, place.offset) == providers.Entry(place.offset + skipped, cheap)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("code", "cheap"),
    [
        ("55", True),  # push %rbp
        ("4157", True),  # push %r15
        ("4889e5", True),  # mov %rsp,%rbp
        ("e900000000", True),  # jmp
        ("90", True),  # nop
        ("4883ec08", False),  # sub $8,%rsp
        ("31c0", False),  # xor %eax,%eax
        ("41", False),  # the file ends behind a prefix
        ("", False),
    ],
)
def test_instructions_that_the_kernel_emulates_are_cheap(tmp_path, code, cheap):
    (tmp_path / "code").write_bytes(b"\xcc" * 7 + bytes.fromhex(code))
    descriptor = os.open(tmp_path / "code", os.O_RDONLY)
    try:
        assert providers.entry(descriptor, 7) == providers.Entry(7, cheap)
    finally:
        os.close(descriptor)
