"""Compiles the NVML stand-in and the library that controls it, and shows either to nvidia-ml-py."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
#: Named before its first call by whoever plays in a node: the file that driver.Node made.
VARIABLE = "FABRICTAP_NVML_DOUBLE"
SONAME = "libnvidia-ml.so.1"
_SOURCES = (
    "call", "confidential", "device", "events", "fields", "gpm",
    "memory", "mig", "nvlink", "processes", "system",
)  # fmt: skip
_FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden")


def missing() -> str:
    """What is needed and not here, with the command that provides it; empty if nothing is."""
    return "" if shutil.which("cc") else "a C compiler: apt-get install build-essential"


@dataclass(frozen=True)
class Built:
    """Compiled stand-ins, each libnvidia-ml.so.1 in a directory of its own for LD_LIBRARY_PATH.

    ``library`` has every symbol; ``r535`` and ``legacy`` (branch 470) lack those that the real libraries of
    their branches lack (found in the symbol tables of 535.261 and 470.256). ``control`` is what driver.Node
    writes nodes with.
    """

    library: Path
    r535: Path
    legacy: Path
    control: Path


def build(directory: Path) -> Built:
    """Compile into ``directory``. Raises CalledProcessError, with what the compiler said on stderr."""
    branches = {"current": 595, "r535": 535, "r470": 470}
    libraries = [directory / name / SONAME for name in branches]
    for library in libraries:
        library.parent.mkdir(parents=True, exist_ok=True)
    control = directory / "libnvml_control.so"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_compile, control, ("control",))]
        for library, branch in zip(libraries, branches.values(), strict=True):
            jobs.append(
                pool.submit(_compile, library, _SOURCES, f"-Wl,-soname,{SONAME}", f"-DBRANCH={branch}")
            )
    for job in jobs:
        job.result()
    current, r535, legacy = libraries
    return Built(current, r535, legacy, control)


def _compile(target: Path, sources: tuple[str, ...], *flags: str) -> None:
    """All sources as one translation unit: that takes half the time."""
    unit = "".join(f'#include "{name}.c"\n' for name in (*sources, "node"))
    subprocess.run(
        ["cc", *_FLAGS, *flags, f"-I{HERE}", "-x", "c", "-", "-pthread", "-o", str(target)],
        input=unit, text=True, check=True,
    )  # fmt: skip


def check_abi(assertions: list[str]) -> None:
    """Compile C static assertions against abi.h. Raises CalledProcessError with those that do not hold."""
    text = "\n".join(('#include "abi.h"', *assertions, ""))
    subprocess.run(
        ["cc", "-std=gnu11", f"-I{HERE}", "-x", "c", "-fsyntax-only", "-"],
        input=text, check=True, capture_output=True, text=True,
    )  # fmt: skip


def bind(pynvml: ModuleType, library: Path) -> None:
    """Let nvidia-ml-py, as it is, use ``library`` in this process.

    It would load libnvidia-ml.so.1 by name and only once; what it has loaded is a variable of the module.
    A process that sets LD_LIBRARY_PATH before it starts needs none of this.
    """
    vars(pynvml)["nvmlLib"] = ctypes.CDLL(str(library))
    pynvml._nvmlGetFunctionPointer_cache.clear()
