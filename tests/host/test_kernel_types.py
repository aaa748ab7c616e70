"""Our own description of the kernel's structures in place of the kernel's, given to the real libbpf."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fabrictap.ext.bpf import Object
from fabrictap.sources.verbs import headers, probes
from fabrictap.sources.verbs.kernel_types import KERNELS_OWN, HeaderTypes, TypesUnavailable
from support import require
from unit.test_kernel_types import SYSCALL, structures


@pytest.fixture(scope="module")
def places() -> dict[str, dict[str, tuple[int, int]]]:
    """What headers of the running kernel would say, read from its own type information."""
    require("bpf", KERNELS_OWN.exists(), "a kernel with CONFIG_DEBUG_INFO_BTF")
    kernels = structures(KERNELS_OWN.read_bytes())
    found = {}
    for name, fields in headers.wanted().items():
        size, members = kernels.get(name, (64, {}))
        # Those of ib_core are in a module, or not here: any place will do for what is not loaded.
        found[name] = {"": (0, size)}
        for field in fields:
            offset, integer = members.get(field, (0, 0))
            found[name][field] = (offset, integer or 8)
    return found


def test_programs_are_placed_without_the_kernels_type_information(
    bpf: None, places: dict[str, dict[str, tuple[int, int]]], tmp_path: Path
) -> None:
    path = tmp_path / "places.json"
    path.write_text(json.dumps(places))
    types = HeaderTypes(path)
    wanted = Object(str(SYSCALL)).programs()
    made = probes._load("verbs_syscall", wanted, "tracepoint", 1 << 16, types=types)
    try:
        # The verifier has let all of them read where the file says.
        assert made.refused == {}
        assert made.object.map("calls").value_size == 32
    finally:
        made.close()
        types.close()


def test_fexit_needs_the_kernels_own(tmp_path: Path) -> None:
    with pytest.raises(TypesUnavailable, match="the kernel itself must have"):
        probes._hooks("fexit", 1 << 16, HeaderTypes(tmp_path))
