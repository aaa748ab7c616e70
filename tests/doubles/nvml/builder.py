"""Compiles the NVML stand-in and the library that controls it, and shows either to nvidia-ml-py."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
#: Named before its first call by whoever plays in a node: the file that driver.Node made.
VARIABLE = "FABRICTAP_NVML_DOUBLE"
SONAME = "libnvidia-ml.so.1"
_SOURCES = ("call", "device", "events", "fields", "memory", "mig", "nvlink", "processes", "system")
#: What a driver of the R470 branch does not have.
_NEWER = ("confidential", "gpm")
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden")


def missing() -> str:
    """What is needed and not here, with the command that provides it; empty if nothing is."""
    return "" if shutil.which("cc") else "a C compiler: apt-get install build-essential"


@dataclass(frozen=True)
class Built:
    """Compiled stand-ins.

    ``library`` is today's libnvidia-ml.so.1, ``legacy`` one without the symbols that an R470 driver lacks
    (both in directories of their own, for LD_LIBRARY_PATH), ``control`` what driver.Node writes nodes with.
    """

    library: Path
    legacy: Path
    control: Path


def build(directory: Path) -> Built:
    """Compile into ``directory``. Raises CalledProcessError, with what the compiler said on stderr."""
    for name in ("current", "legacy"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    built = Built(
        directory / "current" / SONAME, directory / "legacy" / SONAME, directory / "libnvml_control.so"
    )
    shared = f"-Wl,-soname,{SONAME}"
    _compile(built.library, (*_SOURCES, *_NEWER), shared)
    _compile(built.legacy, _SOURCES, shared, "-DLEGACY")
    _compile(built.control, ("control",))
    return built


def _compile(target: Path, sources: tuple[str, ...], *flags: str) -> None:
    files = [str(HERE / f"{name}.c") for name in (*sources, "node")]
    subprocess.run(["cc", *_FLAGS, *flags, *files, "-pthread", "-o", str(target)], check=True)


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
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    pynvml._nvmlGetFunctionPointer_cache.clear()
