"""The Debian package goes as it came: an upgrade keeps what is the administrator's, a purge leaves nothing.

In this order, and after the other tests of the installed package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fabrictap.version import VERSION
from package.conftest import page
from package.roots import Root

CONFIG = "etc/fabrictap/config.yaml"


@pytest.fixture(scope="module")
def newer(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with a later version and another default configuration."""
    tree = tmp_path_factory.mktemp("newer") / "tree"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace(f"Version: {VERSION}", "Version: 99.0"))
    with (tree / CONFIG).open("a") as file:
        file.write("# of the newer version\n")
    made = tree.parent / "fabrictap_99.0_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, made], check=True)
    shutil.rmtree(tree)
    return made


def traces(root: Root) -> set[str]:
    """Every path of the root that has to do with fabrictap, without what apt and dpkg say of the past."""
    found = set()
    for directory, directories, files in os.walk(root.path):
        place = Path(directory)
        found |= {
            str((place / name).relative_to(root.path))
            for name in (*directories, *files)
            if "fabrictap" in name
        }
        directories[:] = [name for name in directories if "fabrictap" not in name]
    return found


def test_an_upgrade_keeps_state_and_the_administrators_configuration(installed: Root, newer: Path):
    (installed.path / CONFIG).write_text("export: {interval: 3s}\n")
    state = installed.path / "var/lib/fabrictap/state.db"
    state.write_bytes(b"what was learned")
    options = ["-o", "Dpkg::Options::=--force-confold"]
    installed.install(*options, f"/w/{newer.name}", binds={"/w": newer.parent}).check()
    version = installed.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "fabrictap"])
    assert version.stdout == "99.0 installed"
    assert (installed.path / CONFIG).read_text() == "export: {interval: 3s}\n"
    assert state.read_bytes() == b"what was learned"
    assert installed.run(["fabrictap", "version"]).check().stdout == f"fabrictap {VERSION}\n"


def test_removal_keeps_configuration_and_state(installed: Root):
    installed.shell(page("remove")[0]).check()
    assert traces(installed) - {"var/lib/dpkg"} >= {"etc/fabrictap", "var/lib/fabrictap"}
    left = traces(installed)
    assert not [path for path in left if path.startswith("usr/")], left


def test_a_purge_leaves_nothing(installed: Root):
    installed.shell(page("remove")[1]).check()
    assert traces(installed) == set()
    for database in ("passwd", "group", "shadow"):
        assert "fabrictap" not in (installed.path / "etc" / database).read_text()
