"""Builds the Debian package from the wheels in dist/, into dist/fabrictap_VERSION_ARCHITECTURE.deb.

    python packaging/deb/build.py [--python 3.11,3.13]

One package for several releases of Debian and Ubuntu: compiled modules carry the version of their Python
in their names, so those for all versions lie side by side in one directory, /usr/lib/fabrictap/site, and a
virtual environment, /usr/lib/fabrictap, offers it to whichever python3 the distribution has. The packages
that fabrictap needs lie there too, as packaging/dependencies.txt pins them: nothing is fetched on the node,
and nothing that the node has installed is touched or used.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from building import ROOT, WORK, epoch, fail, interpreters, run, version
from dependencies import fetch

HERE = Path(__file__).resolve().parent
SYSTEMD = HERE.parent / "systemd"
SITE = "usr/lib/fabrictap/site"
PAGES = ("operator.md", "install.md", "security.md", "hardware.md", "catalog.md", "ring.md", "developer.md")
#: Where each file of packaging/ goes: (source, place in the tree, mode).
FILES = (
    (HERE / "fabrictap", "usr/bin/fabrictap", 0o755),
    (HERE / "config.yaml", "etc/fabrictap/config.yaml", 0o644),
    (HERE / "copyright", "usr/share/doc/fabrictap/copyright", 0o644),
    (HERE / "fabrictap.rtupdate", "usr/share/python3/runtime.d/fabrictap.rtupdate", 0o755),
    (SYSTEMD / "fabrictap.service", "usr/lib/systemd/system/fabrictap.service", 0o644),
    (SYSTEMD / "90-fabrictap.preset", "usr/lib/systemd/system-preset/90-fabrictap.preset", 0o644),
    (SYSTEMD / "sysusers.conf", "usr/lib/sysusers.d/fabrictap.conf", 0o644),
    (SYSTEMD / "tmpfiles.conf", "usr/lib/tmpfiles.d/fabrictap.conf", 0o644),
)
#: Tests and examples of other packages, and what only pip reads, of which the wheels of a version each have
#: their own.
_LEFT_OUT = re.compile(r"/tests/|^example\.py$|\.dist-info/(RECORD|WHEEL|sboms/.*)$")


def unpack(wheel: Path, site: Path) -> None:
    """Lay a wheel's files into ``site``; what two wheels of one version share must be the same."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename
            if name.endswith("/") or _LEFT_OUT.search(name):
                continue
            if ".data/" in name:
                fail(
                    f"{wheel.name} has {name}: packages with data outside of themselves are not provided for"
                )
            target = site / name
            content = archive.read(entry)
            if target.exists() and target.read_bytes() != content and not name.endswith(".bpf.o"):
                fail(f"{wheel.name} and a wheel for another Python differ in {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def python_dependency(versions: list[str]) -> str:
    """``versions``, as in 3.11 and 3.13, as relations to Debian's python3; gaps between them are excluded."""
    minors = sorted(int(one.split(".")[1]) for one in versions)
    clauses = [f"python3 (>= 3.{minors[0]})"]
    clauses += [
        f"python3 (<< 3.{low + 1}) | python3 (>= 3.{high})"
        for low, high in itertools.pairwise(minors)
        if high > low + 1
    ]
    # Pre-releases sort before.
    return ", ".join([*clauses, f"python3 (<< 3.{minors[-1] + 1}~)"])


def stage(tree: Path, wheels: list[Path], versions: list[str]) -> None:
    """Everything but DEBIAN/."""
    site = tree / SITE
    for wheel in wheels:
        unpack(wheel, site)
    environment_root = tree / "usr/lib/fabrictap"
    (environment_root / "bin").mkdir()
    (environment_root / "bin/python3").symlink_to("/usr/bin/python3")
    (environment_root / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for one in versions:
        library = environment_root / "lib" / f"python{one}"
        library.mkdir(parents=True)
        (library / "site-packages").symlink_to("../../site")
    for source, place, mode in FILES:
        target = tree / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode)
    documents = tree / "usr/share/doc/fabrictap"
    for page in PAGES:
        if (ROOT / "docs" / page).exists():
            shutil.copyfile(ROOT / "docs" / page, documents / page)
    changelog = gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), 9, mtime=0)
    (documents / "changelog.gz").write_bytes(changelog)


def control(tree: Path, versions: list[str], glibc: str) -> None:
    """DEBIAN/: what dpkg reads and runs."""
    directory = tree / "DEBIAN"
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    directory.mkdir()
    text = (HERE / "control.in").read_text()
    for name, value in (
        ("VERSION", version()),
        ("ARCHITECTURE", run(["dpkg", "--print-architecture"]).strip()),
        ("SIZE", str(sum(-(-path.stat().st_size // 1024) for path in files))),
        ("GLIBC", glibc),
        ("PYTHON", python_dependency(versions)),
        ("VERSIONS", ", ".join(versions)),
    ):
        text = text.replace(f"@{name}@", value)
    (directory / "control").write_text(text)
    (directory / "conffiles").write_text("/etc/fabrictap/config.yaml\n")
    sums = "".join(
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
        if not path.is_relative_to(tree / "etc")
    )
    (directory / "md5sums").write_text(sums)
    for script in ("postinst", "prerm", "postrm"):
        shutil.copyfile(HERE / script, directory / script)
        (directory / script).chmod(0o755)


def settle(tree: Path) -> None:
    """Modes and times that do not depend on who builds, and when."""
    moment = epoch()
    for path in sorted(tree.rglob("*"), reverse=True):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (moment, moment), follow_symlinks=False)
    tree.chmod(0o755)
    os.utime(tree, (moment, moment))


def glibc_floor(wheels: list[Path]) -> str:
    """The oldest C library that all wheels work with, by their tags, as in 2.34."""
    floors = [(2, 17)]
    for wheel in wheels:
        tags = re.findall(r"manylinux_(\d+)_(\d+)_", wheel.name)
        if tags:  # of several the least is what it needs
            floors.append(min((int(major), int(minor)) for major, minor in tags))
    return "{}.{}".format(*max(floors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", metavar="VERSIONS", help="as in 3.11,3.13; default: all that are here")
    parser.add_argument("--wheels", metavar="DIR", type=Path, default=ROOT / "dist", help="where wheels are")
    parser.add_argument("--output", metavar="DIR", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        fail("dpkg-deb is missing: apt-get install dpkg")
    wheels: list[Path] = []
    versions: list[str] = []
    for interpreter in interpreters(options.python):
        own = sorted(options.wheels.glob(f"fabrictap-{version()}-{interpreter.tag}-*manylinux*.whl"))
        if not own:
            fail(f"no wheel for Python {interpreter.version} in {options.wheels}: make wheel")
        wheels += [own[-1], *fetch(interpreter.version, WORK / "dependencies" / interpreter.tag)]
        versions.append(interpreter.version)
    tree = WORK / "deb"
    shutil.rmtree(tree, ignore_errors=True)
    stage(tree, wheels, versions)
    control(tree, versions, glibc_floor(wheels))
    settle(tree)
    options.output.mkdir(parents=True, exist_ok=True)
    architecture = run(["dpkg", "--print-architecture"]).strip()
    made = options.output / f"fabrictap_{version()}_{architecture}.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--build", tree, made])
    print(made)


if __name__ == "__main__":
    main()
