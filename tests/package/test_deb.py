"""The Debian package on bare Debian 12 and 13: installs, runs, upgrades, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from fabrictap.version import VERSION
from package.roots import Root

CONFIG = "etc/fabrictap/config.yaml"
AS_AGENT = ("setpriv", "--reuid=fabrictap", "--regid=fabrictap", "--clear-groups", "--")


@pytest.fixture(scope="module")
def deb(dist: Path) -> Path:
    (made,) = dist.glob(f"fabrictap_{VERSION}_*.deb")
    return made


@pytest.fixture(scope="module")
def installed(root: Root, deb: Path) -> Root:
    done = root.install(f"/w/{deb.name}", binds={"/w": deb.parent})
    done.check()
    return root


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


def test_it_runs_where_there_is_no_compiler(installed: Root):
    for program in ("gcc", "cc", "clang", "ld"):
        assert installed.run(["which", program]).rc != 0
    assert installed.run(["fabrictap", "--version"]).check().stdout == f"fabrictap {VERSION}\n"
    doctor = installed.run(["fabrictap", "doctor", "--json"])
    assert doctor.rc in (0, 1), doctor.stderr
    assert doctor.stderr == ""
    looked_at = {check["what"] for check in json.loads(doctor.stdout)}
    assert {"kernel", "type information (BTF)", "CAP_BPF", "GPUs"} <= looked_at


def test_a_simulated_node_runs_as_the_agents_own_user(installed: Root):
    out = "/var/lib/fabrictap/out.jsonl"
    argv = ["fabrictap", "run", "--simulate", "hgx-h100", "--duration", "10s", "--set", "export.interval=2s"]
    done = installed.run([*AS_AGENT, *argv, "--set", f"export.file.path={out}"]).check()
    assert "SIMULATED NODE hgx-h100" in done.stderr
    assert "Traceback" not in done.stderr
    text = (installed.path / out.lstrip("/")).read_text()
    for metric in ("hw.network.io", "rdma.verbs.operations", "fabrictap.source.up"):
        assert metric in text


def test_the_nodes_own_python_packages_are_neither_used_nor_seen(installed: Root):
    places = installed.run(
        [
            "/usr/lib/fabrictap/bin/python3",
            "-Ic",
            "import sys, msgspec; print(msgspec.__file__); print(sys.path)",
        ]
    ).check()
    first, path = places.stdout.splitlines()
    assert first.startswith("/usr/lib/fabrictap/")
    assert "dist-packages" not in path
    assert installed.run(["python3", "-c", "import fabrictap"]).rc == 1


def test_what_the_agent_writes_belongs_to_it_alone(installed: Root):
    user = installed.run(["getent", "passwd", "fabrictap"]).check().stdout.split(":")
    assert user[6].strip() == "/usr/sbin/nologin"
    state = (installed.path / "var/lib/fabrictap").stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid) == (0o700, int(user[2]), int(user[3]))
    assert installed.run(["fabrictap", "check-config", "--config", f"/{CONFIG}"]).check().stdout


def test_the_service_is_enabled(installed: Root):
    link = installed.path / "etc/systemd/system/multi-user.target.wants/fabrictap.service"
    assert str(link.readlink()).endswith("/lib/systemd/system/fabrictap.service")


# What follows changes the root, in this order.


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
    installed.run(["apt-get", "-qq", "remove", "-y", "fabrictap"]).check()
    assert traces(installed) - {"var/lib/dpkg"} >= {"etc/fabrictap", "var/lib/fabrictap"}
    left = traces(installed)
    assert not [path for path in left if path.startswith("usr/")], left


def test_a_purge_leaves_nothing(installed: Root):
    installed.run(["apt-get", "-qq", "purge", "-y", "fabrictap"]).check()
    assert traces(installed) == set()
    for database in ("passwd", "group", "shadow"):
        assert "fabrictap" not in (installed.path / "etc" / database).read_text()
