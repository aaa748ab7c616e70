"""What the builders of the wheel, the deb and the image share: version, date, sources, interpreters."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "package"
#: The versions of CPython that packages are made for, where the machine has them.
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
#: What an sdist of it would hold.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "agent", "ext", "probes")
_BUILT = shutil.ignore_patterns("*.so", "*.bpf.o", "__pycache__", "*.egg-info")
_ASK = """
import json, pathlib, sys, sysconfig
header = pathlib.Path(sysconfig.get_paths()["include"], "Python.h")
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "compiles": header.exists(),
}))
"""


def fail(text: str) -> NoReturn:
    """End with one line for the person at the terminal."""
    raise SystemExit(f"packaging: {text}")


def say(text: str) -> None:
    """What is being done, on standard error."""
    print(f"packaging: {text}", file=sys.stderr, flush=True)


def version() -> str:
    """As agent/fabrictap/version.py has it."""
    return str(runpy.run_path(str(ROOT / "agent" / "fabrictap" / "version.py"))["VERSION"])


def epoch() -> int:
    """SOURCE_DATE_EPOCH: as the environment says, or the time of the last commit, or of the version."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isdigit():
            fail(f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {given!r}")
        return int(given)
    git = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
    )
    if git.returncode == 0 and git.stdout.strip().isdigit():
        return int(git.stdout)
    return int((ROOT / "agent" / "fabrictap" / "version.py").stat().st_mtime)


def tools() -> str:
    """PATH with the programs that pip has put beside this Python in front."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def run(command: Iterable[str | Path], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Its output; ends with all that it said where it fails."""
    argv = [str(part) for part in command]
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={
            **os.environ,
            "PATH": tools(),
            "PYTHONPATH": "",
            "SOURCE_DATE_EPOCH": str(epoch()),
            **(env or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        fail(f"{argv[0]} ended with {done.returncode}; what it said stands above")
    return done.stdout


def sources() -> Path:
    """A copy of the sources without anything built, in which to build; what was compiled there stays."""
    target = WORK / "source"
    target.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        there = target / name
        if there.is_dir():
            shutil.rmtree(there)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, there, ignore=_BUILT)
        else:
            shutil.copy2(ROOT / name, there)
    # What `make setup` has translated already: Cython takes it where it is newer than its source.
    translated = target / "build" / "cython"
    if not translated.exists() and (ROOT / "build" / "cython").exists():
        shutil.copytree(ROOT / "build" / "cython", translated)
    return target


@dataclass(frozen=True)
class Interpreter:
    """A CPython to build for. ``version``: as in 3.11."""

    version: str
    path: str

    @property
    def tag(self) -> str:
        """As in cp311."""
        return "cp" + self.version.replace(".", "")


def interpreters(wanted: str | None = None) -> list[Interpreter]:
    """One of each supported version that is here; ``wanted``, as in ``3.11,3.13``, must be."""
    versions = SUPPORTED if not wanted else tuple(wanted.replace(",", " ").split())
    for one in versions:
        if not re.fullmatch(r"3\.\d+", one):
            fail(f"expected versions of Python as in 3.11,3.13, got {one!r}")
    found = [one for one in (_find(version) for version in versions) if one is not None]
    missing = sorted(set(versions) - {one.version for one in found})
    if missing and wanted:
        fail(
            f"no Python {', '.join(missing)} with headers here: apt-get install python3-dev, or pyenv install"
        )
    if not found:
        fail(
            f"no Python of {', '.join(versions)} with headers here: apt-get install python3-dev python3-venv"
        )
    if missing:
        say(f"no Python {', '.join(missing)} with headers here: nothing is built for it")
    return found


def _find(version: str) -> Interpreter | None:
    digits = version.replace(".", "")
    pyenv = shutil.which("pyenv")  # in its bin/, whoever's home it lies in
    homes = {Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))}
    homes |= {Path(pyenv).resolve().parents[1]} if pyenv is not None else set()
    candidates = [
        f"/usr/bin/python{version}",
        shutil.which(f"python{version}"),
        *sorted(
            str(path) for home in homes for path in home.glob(f"versions/{version}.*/bin/python{version}")
        ),
        f"/opt/python/cp{digits}-cp{digits}/bin/python",  # the manylinux images
    ]
    for candidate in candidates:
        if candidate is None or not Path(candidate).exists():
            continue
        asked = subprocess.run([candidate, "-Ic", _ASK], capture_output=True, text=True, check=False)
        if asked.returncode != 0:
            continue
        about = json.loads(asked.stdout)
        if about == {"version": version, "free_threaded": False, "compiles": True}:
            return Interpreter(version, candidate)
    return None


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def environment(interpreter: Interpreter) -> Path:
    """A Python of that version with what building takes: this one, or one that is kept for the next time."""
    if interpreter.version == _version() and all(map(find_spec, ("setuptools", "Cython"))):
        return Path(sys.executable)
    directory = WORK / f"python-{interpreter.version}"
    python, stamp = directory / "bin" / "python", directory / "complete"
    if not stamp.exists():
        say(f"tools for Python {interpreter.version}")
        shutil.rmtree(directory, ignore_errors=True)
        run([interpreter.path, "-m", "venv", directory])
        run([python, "-m", "pip", "install", "--quiet", "setuptools>=77", "cython>=3.1"])
        stamp.touch()
    return python
