"""The VM itself: what every other test in this folder leans on."""

from __future__ import annotations

import re
import signal
import time

import pytest

from vm.harness import CommandTimeoutError, Machine, MachineError
from vm.traffic import Traffic, gid_index, netdev_bytes, perftest


def test_two_devices_are_active_and_a_second_setup_changes_nothing(machine: Machine) -> None:
    before = machine.run("rdma link; ip rule").check().stdout
    active = re.findall(r"link (\w+)/1 state ACTIVE .* netdev (\w+)", before)
    assert active == [("rxe0", "d0"), ("rxe1", "d1")]
    machine.devices()
    assert machine.run("rdma link; ip rule").check().stdout == before
    assert gid_index(machine, "rxe0") >= 0
    assert gid_index(machine, "rxe1") >= 0


def test_write_crosses_the_wire(machine: Machine) -> None:
    client, server = netdev_bytes(machine, "rxe1"), netdev_bytes(machine, "rxe0")
    traffic = perftest(machine, "ib_write_bw", "-n", "50", "-s", "65536")
    client_after, server_after = netdev_bytes(machine, "rxe1"), netdev_bytes(machine, "rxe0")
    payload, sent = 50 * 65536, client_after[0] - client[0]
    # A packet may be sent again when the emulated CPU is late, but not for nothing.
    assert payload < sent < 2 * payload
    assert server_after[1] - server[1] == sent
    assert server_after[0] - server[0] < payload / 10  # acknowledgements
    assert traffic.server_pid != traffic.client_pid


@pytest.mark.parametrize(
    "command",
    [
        "ib_read_bw -n 50 -s 65536",
        "ib_send_bw -n 48 -s 4096 -q 4 -l 8",
        "ib_write_bw -n 50 -s 4096 -R",
        "ib_atomic_bw -n 50",
        "ibv_rc_pingpong -n 50",
        "ibv_ud_pingpong -n 50 -s 1024",
        "rping -C 20 -S 1000",
    ],
)
def test_every_kind_of_traffic_crosses_the_wire(machine: Machine, command: str) -> None:
    tool, *args = command.split()
    before = netdev_bytes(machine, "rxe1")
    assert isinstance(perftest(machine, tool, *args), Traffic)
    after = netdev_bytes(machine, "rxe1")
    least = 1000  # both ways: what does not carry data acknowledges it
    assert after[0] - before[0] > least
    assert after[1] - before[1] > least


def test_a_traffic_tool_that_fails_says_why(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="--no-such-option"):
        perftest(machine, "ib_write_bw", "--no-such-option")


def test_rc_and_both_outputs_of_a_failing_command_come_back(machine: Machine) -> None:
    result = machine.run("echo to stdout; echo to stderr >&2; exit 7")
    assert (result.rc, result.stdout, result.stderr) == (7, "to stdout\n", "to stderr\n")
    with pytest.raises(AssertionError, match="ended with 7"):
        result.check()


def test_arguments_environment_and_directory_arrive_unchanged(machine: Machine) -> None:
    odd = "a 'b' \"c\" $HOME\n\\d é"
    result = machine.run(["sh", "-c", 'printf %s "$1$ODD$PWD"', "sh", odd], env={"ODD": odd}, cwd="/usr")
    assert result.stdout == odd + odd + "/usr"


def test_a_hanging_command_dies_at_its_timeout_with_all_it_started(machine: Machine) -> None:
    began = time.monotonic()
    with pytest.raises(CommandTimeoutError) as caught:
        machine.run("echo before; sleep 1234 & sleep 1234", timeout=2)
    assert time.monotonic() - began < 30
    assert caught.value.result.stdout == "before\n"
    assert caught.value.result.rc == 128 + 9
    assert machine.run(["pgrep", "-f", "sleep 1234"]).rc == 1
    assert machine.run("echo still here").stdout == "still here\n"


def test_a_background_process_is_read_live_and_stopped(machine: Machine) -> None:
    process = machine.start("trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done")
    assert process.wait_output("hello") == "hello\n"
    assert process.rc is None
    assert machine.run(["kill", "-0", str(process.pid)]).rc == 0
    result = process.stop()
    assert (result.rc, result.stdout) == (3, "hello\nbye\n")


def test_signals_arrive_as_they_would_from_a_terminal(machine: Machine) -> None:
    process = machine.start(["sleep", "100"])
    machine.wait_for(lambda: "sleep" in machine.read(f"/proc/{process.pid}/comm"), 30)
    process.signal(signal.SIGINT)
    assert process.wait(30).rc == 128 + signal.SIGINT


def test_a_process_that_ignores_sigterm_is_killed(machine: Machine) -> None:
    process = machine.start("trap '' TERM; echo hello; while :; do sleep 0.1; done")
    process.wait_output("hello")
    assert process.stop(timeout=1).rc == 128 + 9


def test_the_share_is_one_place_on_both_sides(machine: Machine) -> None:
    path = machine.share / "from-host"
    path.write_text("host\n")
    assert machine.run(["cat", path]).check().stdout == "host\n"
    path.write_text("host again\n")
    assert machine.run(["cat", path]).check().stdout == "host again\n"
    machine.run(f"echo guest >{machine.share}/from-guest").check()
    assert (machine.share / "from-guest").read_text() == "guest\n"


def test_the_guest_cannot_change_the_host(machine: Machine) -> None:
    result = machine.run("touch /usr/fabrictap-was-here")
    assert result.rc != 0
    assert "Read-only" in result.stderr


def test_a_panic_is_reported_with_its_reason() -> None:
    # A second guest, small: it is the one that dies.
    with Machine(memory="512M", cpus=1) as victim:
        process = victim.start("echo c >/proc/sysrq-trigger; sleep 100")
        with pytest.raises(MachineError, match=r"sysrq|panic"):
            process.wait(60)
        with pytest.raises(MachineError):
            victim.run("true")
    assert not victim.share.exists()
