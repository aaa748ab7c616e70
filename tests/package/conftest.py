"""The packages, built once for all tests, and the roots that they are installed into."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from package import roots
from package.roots import Root
from support import require

REPOSITORY = Path(__file__).parents[2]
#: Release -> the Python that it has.
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}


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
    """A directory with the wheels for both releases' Python, the deb, and ``needed/`` with other wheels."""
    directory = tmp_path_factory.mktemp("dist")
    versions = ("--python", ",".join(RELEASES.values()))
    build("wheel/build.py", *versions, "--output", directory)
    build("deb/build.py", *versions, "--wheels", directory, "--output", directory)
    build("dependencies.py", *versions, directory / "needed")
    return directory


@pytest.fixture(scope="module", params=list(RELEASES))
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """A bare root of each release."""
    require("nspawn", not roots.missing(), roots.missing())
    with Root.of(request.param, tmp_path_factory.mktemp("root")) as made:
        yield made
