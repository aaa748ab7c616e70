"""Processes that play in a node of the NVML stand-in: of old drivers, killed, or without a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml as nvml
import pytest

from doubles.nvml import builder
from doubles.nvml.attach import attached
from doubles.nvml.driver import Node
from support import eventually

POWER = "nvmlDeviceGetPowerUsage"


@pytest.fixture
def node(nvml_built: builder.Built, tmp_path: Path) -> Iterator[Node]:
    with attached(nvml_built, tmp_path / "node", "hgx-h100") as made:
        yield made


def missing(library: Path, node: Path) -> set[str]:
    """Functions of nvidia-ml-py that answer FUNCTION_NOT_FOUND in a process with ``library``."""
    script = """
import pynvml, re
pynvml.nvmlInit()
print(pynvml.nvmlDeviceGetCount())
for name in NAMES:
    try: pynvml._nvmlGetFunctionPointer(name)
    except pynvml.NVMLError_FunctionNotFound: print(name)
"""
    names = [
        "nvmlDeviceGetFieldValues", "nvmlGpmSampleGet", "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetNumaNodeId", "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetMigMode",
    ]  # fmt: skip
    environment = {**os.environ, builder.VARIABLE: str(node), "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script.replace("NAMES", repr(names))],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    count, *absent = done.stdout.split()
    assert count == "8"
    return set(absent)


def test_old_drivers_lack_functions(node: Node, nvml_built: builder.Built) -> None:
    newest = {"nvmlDeviceGetNumaNodeId", "nvmlDeviceGetGpuFabricInfoV"}
    assert missing(nvml_built.library, node.path) == set()
    assert missing(nvml_built.r535, node.path) == newest
    assert missing(nvml_built.legacy, node.path) == newest | {
        "nvmlGpmSampleGet", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3",
    }  # fmt: skip


HANGS = "import pynvml as n; n.nvmlInit(); n.nvmlDeviceGetPowerUsage(n.nvmlDeviceGetHandleByIndex(5))"


def test_a_process_that_is_killed_in_a_hung_call_harms_nobody(node: Node, nvml_built: builder.Built) -> None:
    rule = node.hang(POWER, gpu=5)
    environment = {**os.environ, **node.environment(nvml_built.library)}
    with subprocess.Popen([sys.executable, "-c", HANGS], env=environment) as process:
        eventually(lambda: node.inside(POWER) == 1, "the process hangs")
        assert process.poll() is None
        calls = {one.pid: one.calls for one in node.threads()}[process.pid]
        assert calls[POWER] == 1
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    rule.withdraw()
    assert nvml.nvmlDeviceGetPowerUsage(nvml.nvmlDeviceGetHandleByIndex(5)) == 653000


@pytest.mark.parametrize("content", [None, "", "no node"])
def test_without_a_node_there_is_no_driver(
    nvml_built: builder.Built, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "broken"
    if content is not None:
        path.write_text(content)
    script = "import pynvml as n\ntry: n.nvmlInit()\nexcept n.NVMLError as error: print(error.value)"
    environment = {
        **os.environ, builder.VARIABLE: str(path), "LD_LIBRARY_PATH": str(nvml_built.library.parent)
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str(nvml.NVML_ERROR_DRIVER_NOT_LOADED)
    assert ("is no node of this build" in done.stderr) == (content is not None)


def test_the_stand_in_is_played_with_by_hand(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "doubles.nvml", "gb200", str(tmp_path / "play")],
        cwd=builder.HERE.parents[1], capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    settings = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    script = (
        "import pynvml as n; n.nvmlInit(); d = n.nvmlDeviceGetHandleByIndex(0)\n"
        "read = lambda: n.nvmlDeviceGetFieldValues(d, [(202, 0)])[0].value.ullVal\n"
        "first = read()\nwhile read() == first: pass\n"
        "print(n.nvmlDeviceGetName(d))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert seen.stdout.strip() == "NVIDIA GB200"
