"""The container image: small, without a shell, and told to scanners."""

from __future__ import annotations

import json

from fabrictap.version import VERSION


def test_it_starts_the_agent(unpacked):
    config = json.loads((unpacked / "config.json").read_text())["config"]
    assert config["Entrypoint"] == ["/usr/bin/fabrictap"]
    assert config["Cmd"] == ["run", "--config", "/etc/fabrictap/config.yaml"]
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION


def test_it_is_small_and_holds_no_shell_no_compiler_and_no_package_manager(archive, unpacked):
    assert archive.stat().st_size < 40 << 20
    programs = {path.name for path in (unpacked / "tree/usr/bin").iterdir()}
    assert programs == {"fabrictap", "python3", "python3.11"}
    assert not any((unpacked / "tree/usr/sbin").iterdir())
    files = [path for path in (unpacked / "tree").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o6000] == [], "set-user-id"


def test_scanners_find_what_it_is_made_of(unpacked):
    status = unpacked / "tree/var/lib/dpkg/status.d"
    assert {"fabrictap", "libc6", "libssl3", "python3.11-minimal"} <= {path.name for path in status.iterdir()}
    assert f"Version: {VERSION}\n" in (status / "fabrictap").read_text()
