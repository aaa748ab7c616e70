"""The kernel that this runs on, in the table of docs/kernels.md: what it has, and that posts are exact."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import kernel_table
from doubles.provider.application import Application
from doubles.provider.builder import Double
from fabrictap.ext.bpf import has_bpf_loop, has_uprobe_multi
from fabrictap.sources.verbs import returns
from fabrictap.sources.verbs.headers import OBJECTS
from host.tap import Tap
from host.test_data_path import BOUNDED_CHAIN_LIMIT, CHAIN_LIMIT, SGE_LIMIT, a_cluster_node, assert_equal

DATA = OBJECTS / "verbs_data.bpf.o"


def test_posts_are_exact_on_this_kernel_as_recorded(bpf: None, double: Double) -> None:
    """What it has beside is a matter of its configuration: recorded of one, not asked of others."""
    has = {
        "types": Path("/sys/kernel/btf/vmlinux").exists(),
        "module_types": Path("/sys/kernel/btf/ib_core").exists(),
        "bpf_loop": has_bpf_loop(),
        "uprobe_multi": has_uprobe_multi(),
        "return_probes": returns.safe(str(DATA)),
    }
    with Tap(double, returns=has["return_probes"]) as tap, Application(double.driver) as application:
        contexts = a_cluster_node(application)
        application.tell("limits", CHAIN_LIMIT if has["bpf_loop"] else BOUNDED_CHAIN_LIMIT, SGE_LIMIT)
        application.tell("mixed", 3, 1, 300)
        assert_equal(tap, application, contexts)
    match = re.match(r"(\d+\.\d+)[.\d]*", platform.release())
    assert match is not None
    seen = {"hooked": None, "missing": [name for name in kernel_table.GIVES if name != "posts"]}
    record = {"release": match[0], "about": has, "refused": {}, "levels": {kernel_table.STAND_IN: seen}}
    if "kernels" in os.environ.get("RECORD", ""):
        kernel_table.write(match[1], record)
    for recorded in kernel_table.read().values():
        assert recorded["levels"].get(kernel_table.STAND_IN, seen) == seen
