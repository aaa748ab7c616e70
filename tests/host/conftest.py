"""Real eBPF on this kernel: what these tests need, and the stand-ins that they probe."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.provider import builder
from doubles.provider.application import Application
from doubles.provider.builder import Double
from fabrictap.ext.bpf import BpfError, Object
from fabrictap.sources.verbs import probes
from host.tap import Tap
from support import require

PROBES = Path(__file__).parents[2] / "probes" / "include"


def _why_no_bpf() -> str:
    """Why the kernel does not let us load and attach; empty if it does."""
    if os.geteuid() != 0:
        return "loading BPF programs takes root: sudo make test T=tests/host"
    try:
        probed = Object(str(probes._OBJECTS / "verbs_data.bpf.o"))
        for name in probed.programs():
            probed.autoload(name, name == "create_ah")
        probed.load()
    except BpfError as error:
        return f"{error}; a kernel with CONFIG_BPF_SYSCALL, CONFIG_UPROBE_EVENTS and BTF, not locked down"
    return ""


@pytest.fixture(scope="session")
def bpf() -> None:
    why = _why_no_bpf()
    require("bpf", not why, why)


@pytest.fixture(scope="session")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Double]:
    """The stand-in provider by its first instruction, compiled once."""
    why = builder.missing()
    require("compiler", not why, why)
    require("x86_64", platform.machine() == "x86_64", "the stand-in's entry points are x86-64 instructions")
    built: dict[str, Double] = {}

    def get(entry: str) -> Double:
        if entry not in built:
            built[entry] = builder.build(tmp_path_factory.mktemp("provider") / entry, entry)
        return built[entry]

    return get


@pytest.fixture(scope="session")
def double(doubles: Callable[[str], Double]) -> Double:
    return doubles("push")


@pytest.fixture
def application(double: Double) -> Iterator[Application]:
    with Application(double.driver) as running:
        yield running


@pytest.fixture
def tap(bpf: None, double: Double) -> Iterator[Tap]:
    """The data path, loaded and attached to the stand-in."""
    with Tap(double) as attached:
        yield attached


@pytest.fixture(scope="session")
def tiny(bpf: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.bpf.c, compiled."""
    require("compiler", shutil.which("clang") is not None, "clang is missing: apt-get install clang")
    target = tmp_path_factory.mktemp("tiny") / "tiny.bpf.o"
    subprocess.run(
        [
            "clang", "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v2", "-D__TARGET_ARCH_x86",
            f"-I{PROBES}", f"-I/usr/include/{platform.machine()}-linux-gnu",
            "-c", str(Path(__file__).parent / "tiny.bpf.c"), "-o", str(target),
        ],
        check=True,
    )  # fmt: skip
    return target
