"""Builds what pyproject.toml cannot say: BPF objects (clang) and Cython extensions (libbpf, static)."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, ClassVar

from Cython.Build import cythonize
from setuptools import Command, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
PROBES = ROOT / "probes"
# The BPF target's name of each machine, and of its user-space headers.
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


class BuildProbes(Command):
    """Compile probes/*.bpf.c to CO-RE objects inside the package."""

    description = "compile the BPF programs"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.editable_mode = False

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        machine = platform.machine()
        if machine not in ARCHITECTURES:
            raise SystemExit(f"fabrictap: no BPF programs for {machine}; known: {', '.join(ARCHITECTURES)}")
        clang = shutil.which("clang")
        if clang is None:
            raise SystemExit("fabrictap: clang is missing; on Debian or Ubuntu: apt-get install clang")
        target = ROOT / "agent" / "fabrictap" / "probes"
        target.mkdir(exist_ok=True)
        for source in sorted(PROBES.glob("*.bpf.c")):
            output = target / source.name.replace(".bpf.c", ".bpf.o")
            subprocess.run(
                [
                    clang, "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v2",
                    f"-D__TARGET_ARCH_{ARCHITECTURES[machine]}",
                    f"-ffile-prefix-map={ROOT}=.",
                    f"-I{PROBES / 'include'}",
                    f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH') or machine + '-linux-gnu'}",
                    "-c", str(source), "-o", str(output),
                ],
                check=True,
            )  # fmt: skip

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted(PROBES.rglob("*.[ch]"))]

    def get_outputs(self) -> list[str]:
        return []


def position_independent_libbpf(target: Path) -> Path:
    """A copy of the system's libbpf.a that can be linked into a shared object.

    Debian compiles it as position-independent *executable*: its one reference to data of another library,
    libc's ``stderr``, cannot be resolved in a shared object. It is renamed to a variable of ours
    (ext/libbpf_log.h).
    """
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    found = Path(subprocess.check_output([*compiler, "-print-file-name=libbpf.a"], text=True).strip())
    if not found.is_absolute():
        raise SystemExit("fabrictap: libbpf.a is missing; on Debian or Ubuntu: apt-get install libbpf-dev")
    target.mkdir(parents=True, exist_ok=True)
    copy = target / "libbpf.a"
    subprocess.run(
        ["objcopy", "--redefine-sym", "stderr=fabrictap_stderr", str(found), str(copy)], check=True
    )
    return copy


class BuildExtensions(build_ext):
    """Links libbpf statically, so that nodes need none."""

    def run(self) -> None:
        # An editable install builds extensions only: make sure that it has the probes too.
        self.run_command("build_probes")
        archive = position_independent_libbpf(Path(self.build_temp))
        for extension in self.extensions:
            if extension.name == "fabrictap.ext.bpf":
                extension.extra_objects = [str(archive)]
        super().run()


class Build(build):
    """Probes first: the package data is collected after them."""

    sub_commands: ClassVar[list[Any]] = [("build_probes", None), *build.sub_commands]


def declarations() -> Path:
    """Where Cython finds ext/*.pxd: below the full names of the modules that they declare."""
    root = ROOT / "build" / "declarations"
    package = root / "fabrictap" / "ext"
    shutil.rmtree(root, ignore_errors=True)
    package.mkdir(parents=True)
    for directory in (package.parent, package):
        (directory / "__init__.pxd").touch()
    for source in (ROOT / "ext").glob("*.pxd"):
        (package / source.name).symlink_to(source)
    return root


# Every extension is made anew when one of them changes: few, and safe.
_DECLARATIONS = [
    *(ROOT / "ext").glob("*.h"),
    *(ROOT / "ext").glob("*.pxd"),
    ROOT / "probes" / "include" / "records.h",
    ROOT / "probes" / "include" / "work.h",
    ROOT / "probes" / "include" / "verbs_abi.h",
]


def extension(name: str, libraries: list[str]) -> Extension:
    """``ext/NAME.pyx`` as fabrictap.ext.NAME."""
    return Extension(
        f"fabrictap.ext.{name}",
        [f"ext/{name}.pyx"],
        include_dirs=["ext", "probes/include"],
        depends=sorted(str(path.relative_to(ROOT)) for path in _DECLARATIONS),
        libraries=libraries,
        extra_compile_args=["-O2", "-Wall", "-Wno-unused-function", "-D_GNU_SOURCE"],
    )


setup(
    ext_modules=cythonize(
        [
            extension("bpf", ["elf", "z"]),
            extension("records", []),
            extension("counters", []),
            extension("texts", []),
            extension("traces", []),
            extension("ring", ["m"]),
            extension("points", []),
            extension("calls", []),
            extension("nvml", []),
            extension("dcgm", ["dl"]),
            extension("connections", []),
            extension("posts", []),
            extension("completions", ["m"]),
            extension("fold", []),
            extension("regions", []),
            extension("layout", []),
            extension("exposition", ["m"]),
            extension("calibrate", []),
        ],
        include_path=["ext", str(declarations())],
        build_dir="build/cython",
        language_level=3,
    ),
    cmdclass={"build_probes": BuildProbes, "build_ext": BuildExtensions, "build": Build},
)
