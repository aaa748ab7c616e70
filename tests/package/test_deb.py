"""The Debian package on bare Debian 12 and 13: installed, it runs."""

from __future__ import annotations

import json
import stat

from fabrictap.version import VERSION
from package.roots import Root

CONFIG = "etc/fabrictap/config.yaml"
AS_AGENT = ("setpriv", "--reuid=fabrictap", "--regid=fabrictap", "--clear-groups", "--")


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
    done = installed.run(
        [*AS_AGENT, *argv, "--set", f"export.file.path={out}", "--set", "ring.path=/tmp/ring"]
    ).check()
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
