"""Programs and libraries of Debian 11, 12 and 13, with their own libc in their own root: found and counted.

The server keeps the release's libraries mapped, as the other processes of a container do.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import require
from vm import traffic
from vm.agent import Agent
from vm.harness import REPOSITORY, Machine, Process

#: Debian's release -> that of its rdma-core.
SUITES = {"bullseye": 33, "bookworm": 44, "trixie": 56}
COUNT, SIZE = 50, 1024
TOOL = "ibv_rc_pingpong"
ARGUMENTS = ("-n", str(COUNT), "-s", str(SIZE))
#: The unpacked packages lie read-only in the guest, at the same path, but for what is mounted in them.
INSIDE = """
set -e
for directory in dev proc sys; do mount --rbind /$directory $root/$directory; done
exec chroot $root "$@"
"""


@pytest.fixture(scope="module", params=SUITES)
def root(request: pytest.FixtureRequest) -> Path:
    script = REPOSITORY / "tests" / "rdma_core.sh"
    made = subprocess.run([script, request.param], capture_output=True, text=True, timeout=280, check=False)
    how = f"{made.stderr.strip()[-300:]}; with network: {script} {request.param}"
    require("rdma-core-versions", made.returncode == 0, how)
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def agent(machine: Machine) -> Iterator[Agent]:
    """One for all releases."""
    watching = Agent(machine, "rdma-core").start()
    yield watching
    if watching.process is not None and watching.process.rc is None:
        watching.process.kill()


def inside(machine: Machine, root: Path, argv: list[str]) -> Process:
    """``argv`` in the root, in a mount namespace of its own."""
    script = f"root={shlex.quote(str(root))}\n{INSIDE}"
    return machine.start(["unshare", "-m", "bash", "-c", script, "bash", *argv])


def server(machine: Machine, root: Path, port: int) -> Process:
    process = inside(machine, root, traffic.command(machine, TOOL, ARGUMENTS, "rxe0", port, server=None))
    listens = f"grep -q ':{port:04X} .* 0A ' /proc/net/tcp /proc/net/tcp6"
    machine.run(f"until {listens}; do kill -0 {process.pid} || exit 1; sleep 0.05; done", 60).check()
    return process


def test_a_release_of_its_own_is_found_and_counted_exactly(
    machine: Machine, agent: Agent, root: Path
) -> None:
    ports = [traffic.unused_port(), traffic.unused_port()]
    keeper = server(machine, root, ports[0])
    # Its own release, or this would be about the node's three times.
    loaded = re.findall(r"/libibverbs\.so\.1\.\d+\.(\d+)\.", machine.read(f"/proc/{keeper.pid}/maps"))
    assert set(loaded) == {str(SUITES[root.name])}

    def found() -> bool:
        agent.exported.poll()
        status = agent.exported.now("rdma.qp.status", pid=keeper.pid)
        return any(p.value and p["fabrictap.coverage"] in ("since", "exact") for p in status)

    machine.wait_for(found, 60, f"its libraries are not probed\n{agent.log}")
    waiting = server(machine, root, ports[1])
    argv = traffic.command(machine, TOOL, ARGUMENTS, "rxe1", ports[1], server="rxe0")
    client = inside(machine, root, argv)
    try:
        client.wait(90).check()
        waiting.wait(60).check()
    finally:
        for process in (client, waiting, keeper):
            process.kill()

    def ended() -> bool:
        agent.exported.poll()
        return len(agent.exported.spans_named("rdma.flow", pid=client.pid)) == 2

    machine.wait_for(ended, 60, f"no flows\n{agent.log}")
    exported = agent.exports()
    for process in (client, waiting):
        for name, expected in (("rdma.verbs.operations", COUNT), ("rdma.verbs.io", COUNT * SIZE)):
            assert exported.total(name, pid=process.pid, operation="send") == expected
        assert {p["fabrictap.coverage"] for p in exported.find("rdma.verbs.operations", pid=process.pid)} == {
            "exact"
        }
    assert "Traceback" not in agent.log
