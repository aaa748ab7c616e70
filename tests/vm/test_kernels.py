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
from vm.headers import compiled
from vm.kernels import LEVELS, Scenario, Seen, about, settings
from vm.qemu import UnobtainableError, find_kernel

KERNELS = kernel_table.DEBIAN
#: The one on which bcc's compiler is tried.
COMPILED = "5.10"
#: Fetching a kernel, booting it and the whole scenario are within the first test of each.
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Kernel:
    """What was seen on one, and what is recorded of it."""

    version: str
    release: str
    about: dict[str, bool]
    refused: dict[str, str]
    seen: dict[str, Seen]
    _recorded: dict[str, Any] | None

    @property
    def recorded(self) -> dict[str, Any]:
        """Skips the test where nothing was recorded yet."""
        if self._recorded is None:
            pytest.skip(f"nothing is recorded of Linux {self.version}: run this with RECORD=kernels")
        return self._recorded


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
    has, refused = about(machine)
    headers = machine.put(compiled(machine.kernel, KERNELS[version])) if version == COMPILED else None
    with Scenario(machine, settings(refused, headers)) as scenario:
        seen = scenario.play()
    print(f"{machine.version}, {machine.accelerator}: {machine.boot_seconds:.0f} s to boot, then", end=" ")
    print(f"{time.monotonic() - began:.0f} s")
    record = {
        "release": machine.version,
        "about": has,
        "refused": refused,
        "levels": {level: one.row() for level, one in seen.items()},
    }
    if "kernels" in os.environ.get("RECORD", ""):
        kernel_table.write(version, record)
    return Kernel(version, machine.version, has, refused, seen, kernel_table.read().get(version))


def _is(release: str, version: str) -> bool:
    return release.startswith(f"{version}.")


def test_the_kernel_has_what_the_record_says(kernel: Kernel) -> None:
    assert kernel.about == kernel.recorded["about"]
    assert kernel.refused == kernel.recorded["refused"]


def test_every_level_gives_what_the_record_says(kernel: Kernel) -> None:
    assert {level: seen.row() for level, seen in kernel.seen.items()} == kernel.recorded["levels"]


def test_posts_are_counted_exactly_whatever_the_level(kernel: Kernel) -> None:
    assert "netlink" in kernel.seen
    for level, seen in kernel.seen.items():
        assert "posts" in seen.gives, f"{level}\n{seen.agent.log}"


def test_by_itself_it_takes_the_best_that_there_is(kernel: Kernel) -> None:
    """The first agent was told nothing."""
    best = next(level for level in LEVELS if level not in kernel.refused)
    assert kernel.seen[best].hooked == best
    assert kernel.seen[best].gives >= {"posts", "flows", "memory", "older", "ends"}


def test_headers_give_a_kernel_without_types_what_one_with_types_has(kernel: Kernel) -> None:
    if kernel.version != COMPILED:
        pytest.skip(f"tried on {COMPILED}, whose modules have no types")
    assert kernel.seen["bcc"].hooked == "kprobe"
    assert kernel.seen["bcc"].gives == set(kernel_table.GIVES)


def test_nothing_breaks_and_nothing_is_lost(kernel: Kernel) -> None:
    for seen in kernel.seen.values():
        assert "Traceback" not in seen.agent.log
        assert {point.value for point in seen.agent.exported.find("fabrictap.record.lost")} <= {0}
