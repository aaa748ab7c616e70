"""Compiles the stand-in provider, its libibverbs and its application."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from doubles.provider import elf
from fabrictap.sources.verbs import provider_helper
from fabrictap.sources.verbs.providers import EXTENDED, Place

HERE = Path(__file__).parent
INCLUDE = HERE.parents[2] / "probes" / "include"
HEADER = Path("/usr/include/infiniband/verbs.h")
#: As providers are named; its application finds it and libibverbs beside each other.
PROVIDER = "libstandin-rdmav34.so"
COUNTED = ("post_send", "post_recv", "post_srq_recv")
#: What the agent looks for in a provider.
FUNCTIONS = ("poll_cq", *COUNTED)
#: First instructions of a provider's functions, by what a uprobe there costs.
ENTRIES = {
    "push": r"push %rbp\n\tpop %rbp",
    "endbr64_push": r"endbr64\n\tpush %rbp\n\tpop %rbp",
    "single_stepped": r"xor %eax,%eax",
    "endbr64_single_stepped": r"endbr64\n\txor %eax,%eax",
}
_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Werror",
    "-fcf-protection=none",
)


def missing() -> str:
    """What is needed and not here, with the command that provides it; empty if nothing is."""
    if shutil.which("cc") is None:
        return "a C compiler: apt-get install build-essential"
    return "" if HEADER.exists() else "libibverbs' headers: apt-get install libibverbs-dev"


@dataclass(frozen=True)
class Double:
    """A compiled stand-in: ``library`` is the provider, ``driver`` the application."""

    library: Path
    libibverbs: Path
    driver: Path

    def place(self, function: str) -> Place:
        """A function as the helper process would report it."""
        status = self.library.stat()
        return Place(function, str(self.library), "", status.st_ino, elf.exported(self.library)[function])

    def modify_qp(self) -> Place:
        """ibv_modify_qp of its libibverbs."""
        offset = elf.exported(self.libibverbs)["ibv_modify_qp"]
        return Place("modify_qp", str(self.libibverbs), "", self.libibverbs.stat().st_ino, offset)

    def extended(self) -> list[Place]:
        """The functions of the extended API."""
        symbols = _symbols(self.library)
        inode = self.library.stat().st_ino
        return [
            Place(name, str(self.library), "", inode, symbols[symbol])
            for name, symbol in (*_EXTENDED.items(), *_ALSO.items())
        ]


#: The stand-in's functions of the extended API (extended.c), which are not exported, by our program's name.
_EXTENDED = {
    **{name: name.removeprefix("wr_") for name in EXTENDED},
    "wr_send": "send_",
    "wr_abort": "abort_",
}
_ALSO = {"wr_set_sge": "set_sge_of_ud"}


def _compile(*arguments: str | Path) -> None:
    subprocess.run(["cc", *_FLAGS, *map(str, arguments)], check=True)


def _symbols(library: Path) -> dict[str, int]:
    """Address of every function, exported or not, which is its file offset too in this library's text."""
    listed = subprocess.run(["nm", str(library)], check=True, capture_output=True, text=True).stdout
    fields = [line.split() for line in listed.splitlines()]
    return {field[2]: int(field[0], 16) for field in fields if len(field) == 3 and field[1] in "tT"}


def build(directory: Path, entry: str = "push") -> Double:
    """The provider with first instructions ``entry`` (of ENTRIES), libibverbs, and the application."""
    directory.mkdir(parents=True, exist_ok=True)
    double = Double(directory / PROVIDER, directory / "libibverbs.so.1", directory / "driver")
    rpath = f"-Wl,-rpath,{directory}"
    _compile(
        f'-DENTRY="{ENTRIES[entry]}"', "-shared", "-fPIC", f"-Wl,-soname,{PROVIDER}",
        HERE / "provider.c", HERE / "extended.c", "-o", double.library,
    )  # fmt: skip
    _compile(
        "-shared", "-fPIC", "-Wl,-soname,libibverbs.so.1", HERE / "libibverbs.c", double.library, rpath,
        "-o", double.libibverbs,
    )  # fmt: skip
    sources = [HERE / name for name in ("driver.c", "workload.c", "batch.c", "tally.c")]
    _compile(*sources, double.library, double.libibverbs, "-pthread", rpath, "-o", double.driver)
    return double


def check_abi() -> None:
    """Compile abi.c. Raises CalledProcessError where an offset of ours is not the header's."""
    offsets = {f"HELPER_{name.upper()}": offset for name, offset in provider_helper._OPS.items()}
    for name in ("DEVICE_NAME", "CONTEXT_SIZE", "ABI_COMPAT", "CREATE_QP_EX"):
        offsets[f"HELPER_{name}"] = getattr(provider_helper, f"_{name}")
    defines = [f"-D{name}={value}" for name, value in offsets.items()]
    subprocess.run(
        ["cc", *_FLAGS, f"-I{INCLUDE}", *defines, "-fsyntax-only", str(HERE / "abi.c")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
