"""What tests share and what is dear: one VM with two RDMA devices, and the compiled NVML stand-in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from doubles.nvml import builder as nvml_builder
from support import require
from vm.harness import Machine, MissingError

# What runs inside the guest, and what QEMU itself needs: (program, Debian package).
PROGRAMS = (
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("rdma", "iproute2"),
    ("ibv_rc_pingpong", "ibverbs-utils"),
    ("rping", "rdmacm-utils"),
    ("ib_write_bw", "perftest"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "machine" in getattr(item, "fixturenames", ()):
            item.add_marker("vm")


@pytest.fixture(scope="session")
def nvml_built(tmp_path_factory: pytest.TempPathFactory) -> nvml_builder.Built:
    """The NVML stand-in, compiled once for all tests."""
    require("cc", not nvml_builder.missing(), nvml_builder.missing())
    return nvml_builder.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def vm_packages() -> None:
    """Skips where the machine lacks what a VM is made of (REQUIRE=vm makes that a failure)."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = [package for program, package in PROGRAMS if shutil.which(program, path=path) is None]
    require("vm", not packages, f"apt-get install {' '.join(packages)}")


@pytest.fixture(scope="session")
def machine(vm_packages: None) -> Iterator[Machine]:
    """The running VM; skips where it cannot be (REQUIRE=vm makes that a failure)."""
    vm = Machine()
    try:
        vm.__enter__()
    except MissingError as error:
        require("vm", False, str(error))
    try:
        vm.devices()
        yield vm
    finally:
        vm.close()
