"""What the service manager is told: the datagrams of sd_notify, from the module and from a whole agent."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from fabrictap.supervisor import Supervisor


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(address as in NOTIFY_SOCKET, bound socket) of a service manager's stand-in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(30)
        name = (
            str(tmp_path / "notify") if request.param == "path" else f"@fabrictap-{os.getpid()}-{id(bound)}"
        )
        bound.bind("\0" + name[1:] if name[0] == "@" else name)
        yield name, bound


def told(bound):
    """All that has come, without waiting."""
    bound.setblocking(False)
    messages = []
    try:
        while True:
            messages.append(bound.recv(4096).decode())
    except BlockingIOError:
        return messages
    finally:
        bound.settimeout(30)


def test_each_word_is_a_datagram(manager):
    address, bound = manager
    supervisor = Supervisor(address)
    supervisor.status("two\nlines")
    supervisor.ready()
    before = time.monotonic_ns() // 1000
    supervisor.reloading()
    supervisor.stopping()
    status, ready, reloading, stopping = told(bound)
    assert (status, ready, stopping) == ("STATUS=two lines", "READY=1", "STOPPING=1")
    word, _, moment = reloading.partition("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert before <= int(moment) <= time.monotonic_ns() // 1000


def test_a_status_is_told_when_it_changes(manager):
    address, bound = manager
    supervisor = Supervisor(address)
    for text in ("a", "a", "b", "a"):
        supervisor.status(text)
    assert told(bound) == ["STATUS=a", "STATUS=b", "STATUS=a"]


def test_signs_of_life_come_twice_in_the_timeout(manager, monkeypatch):
    address, bound = manager
    now = 100.0
    monkeypatch.setattr("fabrictap.supervisor.time.monotonic", lambda: now)
    supervisor = Supervisor(address, 30.0)
    for _ in range(60):
        supervisor.alive()
        assert supervisor.due() > now
        now += 1
    assert told(bound) == ["WATCHDOG=1"] * 4


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),  # another process is meant
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_environment_says_how_often(manager, environ, interval):
    environ = {"NOTIFY_SOCKET": manager[0], "HOME": "/", **environ}
    assert Supervisor.from_environ(environ).interval == interval
    assert environ == {"HOME": "/"}, "children must not speak for the service"


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1"])
def test_without_a_socket_nobody_is_told(address, caplog):
    environ = {"WATCHDOG_USEC": "1000000"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    supervisor = Supervisor.from_environ(environ)
    supervisor.ready()
    supervisor.alive()
    supervisor.status("x")
    assert supervisor.due() is None
    assert [record.message for record in caplog.records] == (
        [f"NOTIFY_SOCKET: expected /path or @name, got {address!r}: nobody is told"] if address else []
    )


def test_a_manager_that_has_gone_is_said_once_and_told_again_when_it_is_back(tmp_path, caplog):
    path = str(tmp_path / "notify")
    supervisor = Supervisor(path, 1.0)
    supervisor.status("a")
    supervisor.ready()
    assert [record.message for record in caplog.records] == [
        "the service manager cannot be told STATUS=a: No such file or directory"
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(path)
        supervisor.status("a")  # was not delivered, so it is news
        assert told(bound) == ["STATUS=a"]


def test_a_manager_that_does_not_read_holds_nobody_up_for_long(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.sendto(b"x", path)
        supervisor = Supervisor(path)
        began = time.monotonic()
        supervisor.ready()
        assert time.monotonic() - began < 5


# --- a whole agent --------------------------------------------------------------------------------

#: Runs a node; a line on its standard input makes one of its threads keep the lock that the main loop needs.
HANGS = """
import sys, threading
from fabrictap.config import load
from fabrictap.node import Node
node = Node(load(sys.argv[1]), lambda: load(sys.argv[1]))
def keep():
    sys.stdin.readline()
    with node._lock:
        threading.Event().wait()
threading.Thread(target=keep, daemon=True).start()
node.run()
"""


@pytest.fixture
def agent(manager, tmp_path):
    """(process, manager's socket) of an agent that is ready."""
    address, bound = manager
    path = tmp_path / "fabrictap.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "ring": {"path": None, "tick": "100ms"},
                "state": {"path": None},
                "sources": {"simulated": {"profile": "l40s"}},
                "export": {"otlp": {name: {"enabled": False} for name in ("metrics", "traces", "logs")}},
            }
        )
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, path],
        env=env | {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        said = [until(bound, "READY=1")]
        assert said == [["STATUS=watching: simulated"]], "the status comes before, and no sign of life"
        yield process, bound
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def until(bound, message):
    """What comes before ``message``."""
    before = []
    while (came := bound.recv(4096).decode()) != message:
        before.append(came)
    return before


def test_an_agent_says_that_it_is_ready_alive_reloading_and_stopping(agent):
    process, bound = agent
    began = time.monotonic()
    for _ in range(4):
        until(bound, "WATCHDOG=1")
    assert time.monotonic() - began < 8, "every half second"
    process.send_signal(signal.SIGHUP)
    before = until(bound, "READY=1")
    assert before[-1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    process.terminate()
    until(bound, "STOPPING=1")
    assert process.wait(30) == 0


def test_an_agent_whose_main_loop_hangs_gives_no_sign_of_life(agent):
    process, bound = agent
    until(bound, "WATCHDOG=1")
    process.stdin.write(b"\n")
    process.stdin.flush()
    bound.settimeout(2)
    try:
        while True:
            came = bound.recv(4096)
            assert came == b"WATCHDOG=1"
    except TimeoutError:
        pass
    assert process.poll() is None, "it runs, only it hangs"
