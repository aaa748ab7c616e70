"""The Python packages that go into the deb and the image: versions and hashes are in dependencies.txt.

    python packaging/dependencies.py --lock     write dependencies.txt anew, from pyproject.toml and the index
    python packaging/dependencies.py DIR        fetch them for every Python of this machine into DIR

Wheels only, and such as work with the C library of 2.34 (Ubuntu 22.04, RHEL 9): what is in a package does not
depend on where it was built.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from building import ROOT, SUPPORTED, fail, interpreters, run, say

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

LOCK = Path(__file__).resolve().parent / "dependencies.txt"
_MANYLINUX = ("1", "2010", "2014", *(f"_2_{minor}" for minor in (12, 17, 24, 26, 27, 28, 31, 34)))
_HEAD = """\
# The Python packages in the deb and the image. Written by: python packaging/dependencies.py --lock
# Hashes of their wheels for CPython {versions} on x86-64 Linux.
"""


def fetch(version: str, folder: Path) -> list[Path]:
    """The wheels of dependencies.txt for a version of Python, as in 3.11; kept in ``folder``."""
    mark = folder / "complete"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        say(f"fetching what the agent needs, for Python {version}")
        for old in folder.glob("*.whl"):
            old.unlink()
        _download(version, folder, ["--no-deps", "--require-hashes", "-r", str(LOCK)])
        mark.write_text(digest)
    return sorted(folder.glob("*.whl"))


def lock() -> None:
    """Write dependencies.txt: what pip chooses for the oldest Python, and the hashes for all."""
    wanted: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    hashes: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        chosen = _resolve(wanted, Path(directory) / "first")
        for version in SUPPORTED:
            folder = Path(directory) / version
            _download(version, folder, ["--no-deps", *chosen])
            for wheel in sorted(folder.glob("*.whl")):
                name, number = wheel.name.split("-")[:2]
                pin = f"{re.sub(r'[-_.]+', '-', name).lower()}=={number}"
                hashes.setdefault(pin, set()).add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = [_HEAD.format(versions=", ".join(SUPPORTED))]
    for pin in sorted(hashes):
        lines.append(" \\\n    ".join([pin, *(f"--hash=sha256:{one}" for one in sorted(hashes[pin]))]) + "\n")
    LOCK.write_text("".join(lines))


def _resolve(wanted: list[str], folder: Path) -> list[str]:
    """``wanted`` and what it needs in turn, as name==version, for the oldest Python that is supported."""
    _download(SUPPORTED[0], folder, wanted)
    return ["==".join(wheel.name.split("-")[:2]) for wheel in sorted(folder.glob("*.whl"))]


def _download(version: str, folder: Path, what: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    machine = platform.machine()
    tags = [f"--platform=manylinux{one}_{machine}" for one in _MANYLINUX]
    abis = [f"--abi=cp{version.replace('.', '')}", "--abi=abi3", "--abi=none"]
    run([
        sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation=cp",
        f"--python-version={version}", *tags, *abis, "--dest", folder, *what,
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", action="store_true")
    parser.add_argument("--python", metavar="VERSIONS", help="as in 3.11,3.13; default: all that are here")
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path)
    options = parser.parse_args()
    if options.lock == (options.directory is not None):
        fail("expected either --lock or a directory")
    if options.lock:
        lock()
        return
    for interpreter in interpreters(options.python):
        for wheel in fetch(interpreter.version, options.directory / interpreter.tag):
            print(wheel)


if __name__ == "__main__":
    main()
