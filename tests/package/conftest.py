"""The packages, built once for all tests, and the roots that they are installed into."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabrictap.version import VERSION
from package import roots
from package.roots import Root
from support import require

REPOSITORY = Path(__file__).parents[2]
#: Release -> the Python that it has.
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
HERE = {one.version for one in runpy.run_path(str(REPOSITORY / "packaging/building.py"))["interpreters"]()}
#: No release of Debian has the Python of another: who builds for both has brought one of them along.
BUILT = [version for version in RELEASES.values() if version in HERE]
PYTHONS = ",".join(BUILT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Building, and unpacking a release of Debian, are within the first test that needs them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


def skip_without(version: str) -> None:
    if version not in HERE:
        pytest.skip(
            f"Python {version} with headers is not here, nor in this release of Debian: nothing is built"
        )


def page(name: str) -> list[str]:
    """The lines of a block of shell in docs/install.md, by the word behind its ``sh``, without comments."""
    text = (REPOSITORY / "docs" / "install.md").read_text()
    block = text.partition(f"\n```sh {name}\n")[2].partition("\n```\n")[0]
    lines = [line.partition("  #")[0].rstrip() for line in block.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines, f"docs/install.md has no block of shell called {name}"
    return lines


def build(program: str, *arguments: str | Path) -> list[Path]:
    """What packaging/PROGRAM made; skips where it says that something is missing here."""
    argv = [sys.executable, str(REPOSITORY / "packaging" / program), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    require("packages", "is missing" not in last[0] and "no Python" not in last[0], last[0])
    assert done.returncode == 0, done.stdout + done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheels for both releases' Python, and the deb; FABRICTAP_DIST: those there."""
    require("packages", bool(BUILT), f"no Python of {', '.join(RELEASES.values())} with headers here")
    if "FABRICTAP_DIST" in os.environ:
        return Path(os.environ["FABRICTAP_DIST"]).resolve()
    directory = tmp_path_factory.mktemp("dist")
    build("wheel/build.py", "--python", PYTHONS, "--output", directory)
    build("deb/build.py", "--python", PYTHONS, "--wheels", directory, "--output", directory)
    return directory


@pytest.fixture(scope="session")
def needed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other packages' wheels, in a folder for each Python, as in cp311."""
    directory = tmp_path_factory.mktemp("needed")
    build("dependencies.py", "--python", PYTHONS, directory)
    return directory


@pytest.fixture(scope="session")
def deb(dist: Path) -> Path:
    (made,) = dist.glob(f"fabrictap_{VERSION}_*.deb")
    return made


@pytest.fixture(scope="session", params=list(RELEASES))
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """A bare root of each release, the same one for all tests, in the order of their files."""
    skip_without(RELEASES[request.param])
    require("nspawn", not roots.missing(), roots.missing())
    with Root.of(request.param, tmp_path_factory.mktemp("root")) as made:
        yield made


@pytest.fixture(scope="session")
def installed(root: Root, deb: Path) -> Root:
    """With the package; Debian 12 with systemd, Debian 13 as it is in containers, without."""
    if root.suite == "bookworm":
        root.install("systemd-sysv").check()
    for line in page("install") + page("configure"):
        done = root.shell(line, {"/w": deb.parent})
        # That a node lacks something is no mistake of its installation.
        assert done.rc in ((0, 1) if "doctor" in line else (0,)), f"{line}\n{done.stdout}{done.stderr}"
    return root


@pytest.fixture(scope="module")
def archive(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as an OCI archive."""
    require("buildah", shutil.which("buildah") is not None, "apt-get install buildah")
    require("root", os.geteuid() == 0, "the base image is made as root")
    made = dist / f"fabrictap_{VERSION}_oci.tar"
    if not made.exists():
        (deb,) = dist.glob(f"fabrictap_{VERSION}_*.deb")
        (made,) = build("container/build.py", "--deb", deb, "--output", tmp_path_factory.mktemp("image"))
    return made


@pytest.fixture(scope="module")
def unpacked(archive: Path) -> Iterator[Path]:
    """A directory with ``config.json``, the image's configuration, and ``tree``, its only layer.

    In the checkout, which the VM sees, read-only and, unlike what both sides share, kept in its memory.
    """
    (REPOSITORY / "build").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="image-", dir=REPOSITORY / "build"))
    with tarfile.open(archive) as outer:
        outer.extractall(directory / "oci")
    index = json.loads((directory / "oci" / "index.json").read_text())
    manifest = json.loads(blob(directory, index["manifests"][0]["digest"]).read_text())
    (layer,) = manifest["layers"]
    (directory / "config.json").write_text(blob(directory, manifest["config"]["digest"]).read_text())
    (directory / "tree").mkdir()
    subprocess.run(["tar", "-C", directory / "tree", "-xpf", blob(directory, layer["digest"])], check=True)
    yield directory
    shutil.rmtree(directory)


def blob(directory: Path, digest: str) -> Path:
    return directory / "oci" / "blobs" / digest.replace(":", "/")
