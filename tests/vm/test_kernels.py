"""The kernels of three Debian releases: every level of the hooks gives what the record says, no less."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import kernel_table
from support import require
from vm.harness import Machine, MissingError
from vm.kernels import LEVELS, Scenario, Seen, about
from vm.qemu import UnobtainableError, find_kernel

#: The kernel's version -> the Debian release that has it.
KERNELS = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
#: Fetching a kernel, booting it and the whole scenario are within the first test of each.
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Kernel:
    """What was seen on one, and what is recorded of it."""

    version: str
    release: str
    about: dict[str, bool]
    seen: dict[str, Seen]
    recorded: dict[str, Any]


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    version: str = request.param
    try:
        own = find_kernel()
        directory = own if _is(own.name, version) else find_kernel(suite=KERNELS[version])
    except UnobtainableError as error:
        pytest.skip(f"Linux {version} cannot be had: {error}")
    except MissingError as error:
        require("kernels", False, str(error))
    assert _is(directory.name, version), f"{KERNELS[version]} has {directory.name}, not {version}"
    if directory == own:
        yield _observe(version, request.getfixturevalue("machine"))
        return
    request.getfixturevalue("vm_packages")
    with Machine(directory) as machine:
        machine.devices()
        yield _observe(version, machine)


def _observe(version: str, machine: Machine) -> Kernel:
    began = time.monotonic()
    found = about(machine)
    with Scenario(machine) as scenario:
        seen = scenario.play()
    print(f"{machine.version}, {machine.accelerator}: {machine.boot_seconds:.0f} s to boot, then", end=" ")
    print(f"{time.monotonic() - began:.0f} s")
    record = {
        "release": machine.version,
        "about": found,
        "levels": {level: one.row() for level, one in seen.items()},
    }
    if "kernels" in os.environ.get("RECORD", ""):
        kernel_table.write(version, record)
    return Kernel(version, machine.version, found, seen, kernel_table.read()[version])


def _is(release: str, version: str) -> bool:
    return release.startswith(f"{version}.")


def test_the_kernel_has_what_the_record_says(kernel: Kernel) -> None:
    assert kernel.about == kernel.recorded["about"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_gives_what_the_record_says(kernel: Kernel, level: str) -> None:
    assert kernel.seen[level].row() == kernel.recorded["levels"][level]


@pytest.mark.parametrize("level", LEVELS)
def test_posts_are_counted_exactly_whatever_the_level(kernel: Kernel, level: str) -> None:
    assert "posts" in kernel.seen[level].gives, kernel.seen[level].agent.log


def test_by_itself_it_takes_the_best_that_there_is(kernel: Kernel) -> None:
    hooked = [kernel.seen[level].hooked for level in ("fexit", "kprobe", "syscall")]
    assert kernel.seen["auto"].hooked == next(level for level in hooked if level)
    assert kernel.seen["auto"].gives >= {"posts", "flows", "memory", "older", "ends"}


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_breaks_and_nothing_is_lost(kernel: Kernel, level: str) -> None:
    agent = kernel.seen[level].agent
    assert "Traceback" not in agent.log
    assert {point.value for point in agent.exported.find("fabrictap.record.lost")} <= {0}
