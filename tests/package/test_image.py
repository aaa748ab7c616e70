"""The container image: small, without a shell, and watching the node that it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabrictap.version import VERSION
from otlp_json import Reader
from package.conftest import REPOSITORY, build
from support import require
from vm import traffic
from vm.containers import CAPABILITIES, Container, workload
from vm.harness import Machine

SENDER, RECEIVER = "a" * 64, "b" * 64
SENDER_POD = "11111111-2222-4333-8444-555555555555"
RECEIVER_POD = "66666666-7777-4888-8999-aaaaaaaaaaaa"
AGENT, AGENT_POD = "f" * 64, "99999999-7777-4888-8999-aaaaaaaaaaaa"


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


# --- in the VM: two pods exchange data, the agent watches from a third -----------------------------


@pytest.fixture(scope="module")
def seen(machine: Machine, unpacked: Path) -> Reader:
    """What the agent in its container exported of 200 writes of 4 KiB."""
    require("crun", shutil.which("crun") is not None, "apt-get install crun")
    tree = unpacked / "tree"
    exported = Reader(machine.share / "image.jsonl")
    settings = (
        f"export.file.path={exported.path}",
        "export.interval=2s",
        *(f"export.otlp.{signal}.enabled=false" for signal in ("metrics", "traces", "logs")),
    )
    share = str(machine.share)
    agent = Container(
        AGENT,
        AGENT_POD,
        ["fabrictap", "run", *(part for one in settings for part in ("--set", one))],
        tree,
        CAPABILITIES,
        {"/sys": "/sys", share: share},
        read_only=("/sys",),
        host_pid=True,
        memory_only=("/run/fabrictap", "/var/lib/fabrictap"),
    )
    (tree / share.lstrip("/")).mkdir(parents=True, exist_ok=True)
    watching = agent.start(machine)
    began = lambda: "source rdma_netlink delivers" in watching.stderr or watching.rc is not None  # noqa: E731
    with contextlib.suppress(TimeoutError):
        machine.wait_for(began, 240)
    assert "source rdma_netlink delivers" in watching.stderr, watching.stderr
    assert "source verbs delivers" in watching.stderr, watching.stderr
    arguments = ("-n", "200", "-s", "4096")
    for round_ in range(2):  # in the first its libraries are met: nothing is counted before they are
        port = 21000 + round_
        ends = [
            traffic.command(machine, "ib_write_bw", arguments, device, port, server=server)
            for device, server in (("rxe0", None), ("rxe1", "rxe0"))
        ]
        server = workload(machine, f"{round_}{RECEIVER[1:]}", RECEIVER_POD, ends[0]).start(machine)
        listening = f"until grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done"
        machine.run(listening, 60).check()
        client = workload(machine, f"{round_}{SENDER[1:]}", SENDER_POD, ends[1]).start(machine)
        client.wait(120).check()
        server.wait(60).check()
    exported.poll()
    before = exported.exports
    machine.wait_for(lambda: exported.poll() and exported.exports >= before + 2, 60, "no exports")
    ended = watching.stop(timeout=60)
    assert ended.rc == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    exported.poll()
    return exported


def test_the_image_names_the_container_that_sent_and_counts_what_it_sent(seen):
    sent = seen.total("rdma.verbs.io", container_id=f"1{SENDER[1:]}", operation="rdma_write")
    assert sent == 200 * 4096
    assert {point["k8s.pod.uid"] for point in seen.find("rdma.verbs.io", operation="rdma_write")} == {
        SENDER_POD
    }


def test_the_image_tells_flows_of_both_ends_with_their_pods(seen):
    spans = seen.spans_named("rdma.flow")
    assert {span["k8s.pod.uid"] for span in spans} == {SENDER_POD, RECEIVER_POD}
    assert {span["container.runtime.name"] for span in spans} == {"containerd"}
