"""What bcc makes of a real kernel's headers, held against what that kernel says of itself. Boots nothing."""

from __future__ import annotations

import json

import pytest

from fabrictap.sources.verbs.btf import _sections
from support import require
from unit.test_kernel_types import structures
from vm.headers import compiled, vmlinux
from vm.initramfs import MissingError
from vm.qemu import UnobtainableError, find_kernel


@pytest.mark.timeout(600)
def test_fields_are_where_the_kernel_itself_says() -> None:
    """Debian's 5.10 has type information of the kernel, in which most of what is read occurs."""
    try:
        kernel = find_kernel(suite="bullseye")
    except UnobtainableError as error:
        pytest.skip(f"Linux 5.10 cannot be had: {error}")
    except MissingError as error:
        require("kernels", False, str(error))
    said = json.loads(compiled(kernel, "bullseye").read_text())
    own = structures(_sections(vmlinux(kernel))[".BTF"])
    compared = 0
    for name, fields in said.items():
        if name not in own:
            continue
        size, members = own[name]
        assert fields.pop("") == [0, size], name
        for field, (offset, _) in fields.items():
            assert members[field][0] == offset, f"{name}.{field}"
            compared += 1
    assert {"ib_qp", "ib_mr", "ib_qp_attr", "task_struct", "fdtable"} <= set(own) & set(said)
    assert compared > 30
