"""RDMA netlink: messages from a real kernel, malformed ones, and what the ledger makes of them."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fabrictap.config import Config, Devices
from fabrictap.ledger import Ledger
from fabrictap.ledger.connections import Connection, Coverage
from fabrictap.ledger.devices import Device, Port
from fabrictap.ledger.memory import MemoryRegion
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.rdma_netlink import client as nldev
from fabrictap.sources.rdma_netlink import messages
from fabrictap.sources.rdma_netlink.source import RdmaNetlink

CAPTURE = json.loads((Path(__file__).parent / "fixtures/nldev/rxe-6.1.json").read_text())
COMMANDS = {1: "dev", 10: "qp", 11: "cm", 13: "mr", 22: "ctx"}
PORT_ID = 4711
GONE = 0x3FFFFF  # above kernel.pid_max everywhere: nobody has it


def attribute(kind: int, value: int | bytes | str, size: int = 4) -> bytes:
    if isinstance(value, int):
        value = value.to_bytes(size, "little")
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, payload: bytes, sequence: int = 1, port_id: int = PORT_ID, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, port_id) + payload


def queue_pair(qpn: int, state: int = 3, tid: int | None = None, kind: int = 2, peer: int = 99) -> bytes:
    owner = attribute(29, "nvme_rdma") if tid is None else attribute(28, tid)
    return attribute(
        20,
        attribute(3, 1)
        + attribute(21, qpn)
        + attribute(22, peer)
        + attribute(26, kind, 1)
        + attribute(27, state, 1)
        + owner,
    )


def region(lkey: int | None, tid: int, length: int = 4096) -> bytes:
    keys = b"" if lkey is None else attribute(43, lkey) + attribute(42, lkey)
    return attribute(41, keys + attribute(45, length, 8) + attribute(28, tid))


class Kernel:
    """Stands for the kernel's end of the socket: answers each dump with the payloads it was given."""

    def __init__(self) -> None:
        self.devices = {0: "rxe0"}
        self.queue_pairs: list[bytes] = []
        self.cm_ids: list[bytes] = []
        self.regions: list[bytes] = []
        self.contexts: list[int] | None = []
        self.mangle: Callable[[bytes], list[bytes | Exception | tuple[bytes, int, int]]] = lambda data: [data]
        self.dumps = 0
        self.closed = 0
        self._waiting: list[bytes | Exception | tuple[bytes, int, int]] = []

    def answers(self, command: int) -> list[bytes] | int:
        if command == 1:
            return [attribute(1, index) + attribute(2, name) for index, name in self.devices.items()]
        if command == 22 and self.contexts is None:
            return -errno.EINVAL
        table, entries = {
            10: (19, self.queue_pairs),
            11: (30, self.cm_ids),
            13: (40, self.regions),
            22: (86, [attribute(87, attribute(28, tid)) for tid in self.contexts or ()]),
        }[command]
        head = attribute(1, 0) + attribute(2, "rxe0")
        # two at a time: a table comes in several messages
        return [head + attribute(table, b"".join(entries[i : i + 2])) for i in range(0, len(entries), 2)]

    def send(self, request: bytes) -> None:
        length, kind, flags, sequence, port_id = struct.unpack_from("=IHHII", request)
        assert (length, flags, kind >> 10) == (len(request), 0x301, 5)
        self.dumps += 1
        answers = self.answers(kind & 1023)
        if isinstance(answers, int):
            data = message(2, struct.pack("=i", answers) + request[:16], sequence, port_id, 0)
        else:
            data = b"".join(message(kind, payload, sequence, port_id) for payload in answers)
            data += message(3, struct.pack("=i", 0), sequence, port_id)
        self._waiting = self.mangle(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[object], int, tuple[int, int]]:
        if not self._waiting:
            raise TimeoutError("timed out")
        data = self._waiting.pop(0)
        if isinstance(data, Exception):
            raise data
        data, flags, sender = data if isinstance(data, tuple) else (data, 0, 0)
        assert len(data) <= size
        return data, [], flags, (sender, 0)

    def getsockname(self) -> tuple[int, int]:
        return PORT_ID, 0

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def close(self) -> None:
        self.closed += 1


class Replay(Kernel):
    """Answers with what a real kernel said."""

    def send(self, request: bytes) -> None:
        _, kind, _, sequence, port_id = struct.unpack_from("=IHHII", request)
        name = COMMANDS[kind & 1023]
        device = "" if name == "dev" else str(struct.unpack_from("=I", request, 20)[0])
        self._waiting = []
        for text in CAPTURE[name + device]:
            data = bytearray.fromhex(text)
            offset = 0
            while offset < len(data):
                struct.pack_into("=II", data, offset + 8, sequence, port_id)
                offset += (struct.unpack_from("=I", data, offset)[0] + 3) & ~3
            self._waiting.append(bytes(data))


def client_of(kernel: Kernel) -> nldev.Client:
    client = nldev.Client(timeout=1.0)
    client._socket = kernel  # type: ignore[assignment]
    return client


class Node:
    """A source on a stand-in kernel, and the ledger that it fills."""

    def __init__(self, kernel: Kernel, config: Config | None = None) -> None:
        config = config or Config()
        self.kernel = kernel
        self.ledger = Ledger(config)
        self.source = RdmaNetlink(config.sources.rdma_netlink, SeriesTable(100), self.ledger)

    def tick(self) -> int:
        self.source._client._socket = self.kernel  # type: ignore[assignment]
        now = time.time_ns()
        self.source.fold(self.source.sample(), now)
        return now

    def probed(self, qpn: int, **fields: object) -> Connection:
        """A connection that the verbs source has put there."""
        known = {
            "type": "rc",
            "state": "rts",
            "pid": os.getpid(),
            "process": "x",
            "created_ns": 1,
            "origin": "probe",
        }
        connection = Connection("rxe0", qpn, coverage=Coverage("exact"), **(known | fields))  # type: ignore[arg-type]
        assert self.ledger.connections.put(connection)
        return connection


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


# --- messages ----------------------------------------------------------------------------------------


def test_a_real_kernel_s_queue_pairs_are_read():
    client = client_of(Replay())
    assert client.devices() == {0: "rxe0", 1: "rxe1"}
    pairs = {pair.qpn: pair for pair in client.queue_pairs(0).entries}
    assert sorted(pairs) == [1, 17, 18, 19, 20]
    assert pairs[17] == messages.QueuePair(17, 2, 3, 1, 17, messages.Owner(543, None))
    assert (pairs[18].type, pairs[18].state, pairs[18].peer_qpn) == (4, 1, None)
    assert pairs[1].owner == messages.Owner(None, "ib_core")


def test_a_real_kernel_s_other_objects_are_read():
    client = client_of(Replay())
    source = messages.Endpoint("::ffff:10.9.0.1", ip=True)
    assert client.cm_ids(0).entries == [
        messages.CmId(19, 1, source, source),
        messages.CmId(20, 1, source, source),
    ]
    assert client.memory_regions(0).entries[0] == messages.MemoryRegion(
        534, 0, None, 4096, messages.Owner(543, None)
    )
    assert [owner.tid for owner in client.contexts(1).entries] == [546]


@pytest.mark.parametrize(
    ("address", "gid", "ip"),
    [
        (
            struct.pack("=H", socket.AF_INET) + b"\x12\x34" + bytes([10, 0, 0, 1]) + bytes(8),
            "::ffff:10.0.0.1",
            True,
        ),
        (
            struct.pack("=H", socket.AF_INET6)
            + bytes(6)
            + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
            + bytes(4),
            "2001:db8::1",
            True,
        ),
        (
            struct.pack("=H", 27) + bytes(6) + socket.inet_pton(socket.AF_INET6, "fe80::1") + bytes(24),
            "fe80::1",
            False,
        ),
    ],
)
def test_addresses_become_gids(address: bytes, gid: str, ip: bool):
    assert messages.parse_endpoint(address) == messages.Endpoint(gid, ip)


@pytest.mark.parametrize(
    "address",
    [
        b"",
        b"\x02",
        struct.pack("=H", socket.AF_INET) + bytes(14),
        struct.pack("=H", socket.AF_INET6) + bytes(26),
        struct.pack("=H", socket.AF_INET6) + bytes([1] * 10),
        struct.pack("=H", 99) + bytes([1] * 30),
    ],
)
def test_addresses_that_say_nothing_are_none(address: bytes):
    assert messages.parse_endpoint(address) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        struct.pack("=IHHII", 0, 1, 0, 0, 0),
        struct.pack("=IHHII", 15, 1, 0, 0, 0),
        struct.pack("=IHHII", 17, 1, 0, 0, 0),
        struct.pack("=IHHII", 0xFFFFFFFF, 1, 0, 0, 0),
        message(1, b"abcd") + b"\0\0\0",
    ],
)
def test_a_message_with_a_wrong_length_is_malformed(data: bytes):
    with pytest.raises(messages.MalformedError):
        list(messages.parse_messages(data))


@pytest.mark.parametrize(
    "data", [b"\x04", b"\0\0\0\0", b"\x03\0\x01\0", b"\x09\0\x01\0abcd", b"\x04\0\x01\0\x01"]
)
def test_an_attribute_with_a_wrong_length_is_malformed(data: bytes):
    with pytest.raises(messages.MalformedError):
        list(messages.iter_attributes(data))


def test_attributes_that_are_short_or_unknown_cost_their_own_value():
    parsed = messages.parse_queue_pair(
        messages.parse_attributes(
            attribute(21, 7)
            + attribute(26, 2, 1)
            + attribute(27, 3, 1)
            + attribute(28, b"\1\1")
            + attribute(500, 1)
        )
    )
    assert parsed == messages.QueuePair(7, 2, 3, None, None, messages.Owner(None, None))
    assert messages.parse_queue_pair(messages.parse_attributes(attribute(21, 7))) is None


def test_flags_of_the_attribute_type_are_ignored():
    assert list(messages.iter_attributes(attribute(0x8000 | 21, 7))) == [(21, b"\x07\0\0\0")]


def test_whatever_arrives_ends_in_a_value_or_in_malformed():
    chance = random.Random(20)
    seeds = [bytes.fromhex(text) for texts in CAPTURE.values() for text in texts]
    parsers = [
        messages.parse_queue_pair,
        messages.parse_memory_region,
        messages.parse_cm_id,
        messages.parse_owner,
    ]
    refused = accepted = 0
    end = time.monotonic() + 3.0
    while refused + accepted < 20000 and time.monotonic() < end:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 4, 255, chance.randrange(256)))
        data = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.3 else data
        try:
            for one in messages.parse_messages(bytes(data)):
                for _, table in messages.iter_attributes(one.payload):
                    for _, entry in messages.iter_attributes(table):
                        for parse in parsers:
                            parse(messages.parse_attributes(entry))
            accepted += 1
        except messages.MalformedError:
            refused += 1
    assert min(refused, accepted) > 100


# --- dumps -------------------------------------------------------------------------------------------


def test_a_dump_in_many_messages_and_datagrams_is_one_list(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(qpn) for qpn in range(2, 40)]

    def split(data: bytes) -> list[bytes]:
        return [message(m.type, m.payload, m.sequence, m.port_id) for m in messages.parse_messages(data)]

    kernel.mangle = split
    listing = client_of(kernel).queue_pairs(0)
    assert [pair.qpn for pair in listing.entries] == list(range(2, 40))
    assert listing.complete


def test_answers_to_others_are_left_alone(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(5)]

    def mix(data: bytes) -> list[bytes | tuple[bytes, int, int]]:
        (first, *_) = messages.parse_messages(data)
        forged = attribute(1, 0) + attribute(19, queue_pair(666))
        end = struct.pack("=i", 0)
        return [
            message(first.type, forged, first.sequence - 1) + message(3, end, first.sequence - 1),
            message(first.type, forged, first.sequence, PORT_ID + 1),
            (message(first.type, forged, first.sequence) + message(3, end, first.sequence), 0, 1234),
            message(first.type + 1, forged, first.sequence),
            data,
        ]

    kernel.mangle = mix
    assert [pair.qpn for pair in client_of(kernel).queue_pairs(0).entries] == [5]


def test_a_dump_that_changed_under_way_is_taken_again(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(5)]

    def interrupt(data: bytes) -> list[bytes]:
        flags = 0x12 if kernel.dumps < 3 else 2
        return [
            message(m.type, m.payload, m.sequence, m.port_id, flags) for m in messages.parse_messages(data)
        ]

    kernel.mangle = interrupt
    assert [pair.qpn for pair in client_of(kernel).queue_pairs(0).entries] == [5]
    assert kernel.dumps == 3


def test_a_dump_that_never_holds_still_is_an_error(kernel: Kernel):
    kernel.mangle = lambda data: [
        message(m.type, m.payload, m.sequence, m.port_id, 0x12) for m in messages.parse_messages(data)
    ]
    with pytest.raises(OSError, match="changed under way"):
        client_of(kernel).devices()
    assert kernel.dumps == 4


@pytest.mark.parametrize(
    ("mangle", "error"),
    [
        (lambda data: [(data, socket.MSG_TRUNC, 0)], messages.MalformedError),
        (lambda data: [data[:-3]], messages.MalformedError),
        (
            lambda data: [message(2, b"", m.sequence, m.port_id) for m in messages.parse_messages(data)],
            OSError,
        ),
        (lambda data: [], TimeoutError),
        (lambda data: [OSError(errno.ENOBUFS, "no room")], OSError),
        (
            lambda data: [
                message(3, struct.pack("=i", -errno.EIO), m.sequence, m.port_id)
                for m in messages.parse_messages(data)
            ],
            OSError,
        ),
    ],
)
def test_after_a_fault_the_socket_is_made_anew(kernel: Kernel, mangle: Callable, error: type[OSError]):
    kernel.mangle = mangle
    client = client_of(kernel)
    with pytest.raises(error):
        client.devices()
    assert kernel.closed == 1
    assert client._socket is None


def test_an_answer_without_end_ends_with_the_time(kernel: Kernel):
    def endless(data: bytes) -> list[bytes]:
        first = next(messages.parse_messages(data))
        return [message(first.type, first.payload, first.sequence)] * 300_000

    kernel.mangle = endless
    client = client_of(kernel)
    client.timeout = 0.05
    with pytest.raises(TimeoutError):
        client.devices()


def test_more_than_is_kept_is_cut_off_and_said(kernel: Kernel, monkeypatch: pytest.MonkeyPatch):
    kernel.queue_pairs = [queue_pair(qpn) for qpn in range(2, 40)]
    monkeypatch.setattr(nldev, "MAX_ENTRIES", 10)
    listing = client_of(kernel).queue_pairs(0)
    assert (len(listing.entries), listing.complete) == (10, False)
    monkeypatch.setattr(nldev, "MAX_ENTRIES", 1000)
    monkeypatch.setattr(nldev, "MAX_BYTES", 500)
    listing = client_of(kernel).queue_pairs(0)
    assert 0 < len(listing.entries) < 38
    assert not listing.complete


def test_this_kernel_answers_or_says_what_to_load():
    config = Config()
    source = RdmaNetlink(config.sources.rdma_netlink, SeriesTable(10), Ledger(config))
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nldev.NETLINK_RDMA).close()
    except OSError:
        with pytest.raises(SourceUnavailable, match="modprobe ib_core"):
            source.open()
    else:
        source.open()
    source.close()
    source.close()


# --- the ledger --------------------------------------------------------------------------------------


def test_what_existed_before_the_agent_is_in_the_ledger_after_one_sample():
    node = Node(Replay())
    node.ledger.devices.put(
        Device(
            "rxe0", None, None, None, None, {1: Port(1, "ethernet", "active", "d0", {1: "::ffff:10.9.0.1"})}
        )
    )
    now = node.tick()
    assert {(c.device, c.qpn) for c in node.ledger.connections} == {
        ("rxe0", 17),
        ("rxe0", 18),
        ("rxe0", 19),
        ("rxe0", 20),
        ("rxe1", 17),
    }
    pingpong = node.ledger.connections.get("rxe0", 17)
    assert (pingpong.type, pingpong.state, pingpong.peer_qpn, pingpong.port) == ("rc", "rts", 17, 1)
    assert (pingpong.origin, pingpong.coverage.kind, pingpong.created_ns) == ("netlink", "control_only", now)
    assert (pingpong.gid, pingpong.peer_gid, pingpong.sq_psn, pingpong.rq_psn) == (None, None, None, None)
    assert pingpong.sender is not None
    assert not pingpong.sender.id.exact
    rping = node.ledger.connections.get("rxe0", 19)
    assert (rping.gid, rping.peer_gid) == ("::ffff:10.9.0.1", "::ffff:10.9.0.1")
    assert len(node.ledger.memory) == 10
    assert node.ledger.memory.get("rxe0", 1536).length == 64
    assert node.ledger.contexts.get("rxe0", 543).count == 1
    assert node.ledger.contexts.get("rxe0", 543).origin == "netlink"


def test_an_ip_address_is_a_gid_only_where_the_port_has_it():
    node = Node(Replay())
    node.ledger.devices.put(
        Device("rxe0", None, None, None, None, {1: Port(1, "infiniband", "active", "ib0", {0: "fe80::1"})})
    )
    node.tick()
    assert node.ledger.connections.get("rxe0", 19).gid is None


def test_what_the_probes_know_is_left_as_it_is(kernel: Kernel):
    node = Node(kernel)
    connection = node.probed(7, gid="fe80::1", peer_qpn=3, sq_psn=5)
    region_ = MemoryRegion("rxe0", 40, 41, 1, 2, 3, 7)
    node.ledger.memory.put(region_)
    node.ledger.contexts.opened("rxe0", os.getpid(), "probe")
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    kernel.regions = [region(40, os.getpid())]
    kernel.contexts = [os.getpid()] * 3
    node.tick()
    assert node.ledger.connections.get("rxe0", 7) is connection
    assert (connection.peer_qpn, connection.coverage.kind, connection.origin) == (3, "exact", "probe")
    assert node.ledger.memory.get("rxe0", 40) == region_
    assert node.ledger.contexts.get("rxe0", os.getpid()).count == 1


def test_a_thread_is_resolved_to_its_process(kernel: Kernel):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        kernel.queue_pairs = [queue_pair(7, tid=thread.native_id)]
        node = Node(kernel)
        node.tick()
    finally:
        done.set()
        thread.join()
    assert thread.native_id != os.getpid()
    connection = node.ledger.connections.get("rxe0", 7)
    assert connection.pid == os.getpid()
    assert (
        connection.process
        == node.ledger.processes.get(os.getpid()).name
        == Path("/proc/self/exe").readlink().name
    )


def test_a_kernel_user_has_no_pid_and_management_pairs_are_left_out(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(0, kind=0), queue_pair(1, kind=1), queue_pair(9)]
    node = Node(kernel)
    node.tick()
    (connection,) = node.ledger.connections
    assert (connection.qpn, connection.pid, connection.process) == (9, None, "[kernel]")


def test_unknown_types_and_states_are_unknown(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(9, kind=77, state=66)]
    node = Node(kernel)
    node.tick()
    connection = node.ledger.connections.get("rxe0", 9)
    assert (connection.type, connection.state) == ("unknown", "unknown")


def test_a_vanished_queue_pair_goes_at_the_second_dump_without_it(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid()), queue_pair(8, tid=os.getpid())]
    node = Node(kernel)
    node.tick()
    kernel.queue_pairs = [queue_pair(8, tid=os.getpid())]
    node.tick()
    assert node.ledger.connections.get("rxe0", 7) is not None
    node.tick()
    assert node.ledger.connections.get("rxe0", 7) is None
    assert node.ledger.connections.get("rxe0", 8) is not None
    reasons = {span.attributes.get("rdma.flow.close_reason") for span in node.ledger.flows.take_finished()}
    assert reasons == {"vanished"}


def test_a_queue_pair_that_was_missing_once_stays(kernel: Kernel):
    node = Node(kernel)
    for present in (True, False, True, False, True):
        kernel.queue_pairs = [queue_pair(7, tid=os.getpid())] if present else []
        node.tick()
    assert node.ledger.connections.get("rxe0", 7) is not None


def test_a_connection_that_the_kernel_never_listed_is_no_proof_while_its_process_lives(kernel: Kernel):
    node = Node(kernel)
    node.source._reconciler._host_pids = True
    alive = node.probed(7)
    dead = node.probed(8, pid=GONE)
    kernel_user = node.probed(9, pid=None)
    for _ in range(4):
        node.tick()
    assert list(node.ledger.connections) == [alive, kernel_user]
    assert dead not in node.ledger.connections


def test_from_another_pid_namespace_a_pid_proves_nothing(kernel: Kernel):
    node = Node(kernel)
    node.source._reconciler._host_pids = False
    node.probed(8, pid=GONE)
    for _ in range(4):
        node.tick()
    assert len(node.ledger.connections) == 1


def test_a_queue_pair_hidden_because_its_thread_exited_stays_while_the_process_lives(kernel: Kernel):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    kernel.queue_pairs = [queue_pair(7, tid=thread.native_id)]
    node = Node(kernel)
    node.tick()
    done.set()
    thread.join()
    while Path(f"/proc/{thread.native_id}").exists():
        time.sleep(0.01)
    kernel.queue_pairs = []
    for _ in range(4):
        node.tick()
    assert node.ledger.connections.get("rxe0", 7) is not None


def test_the_connections_of_a_process_that_is_gone_go(kernel: Kernel):
    with subprocess.Popen(["sleep", "60"]) as process:
        kernel.queue_pairs = [queue_pair(7, tid=process.pid)]
        kernel.contexts = [process.pid, process.pid]
        node = Node(kernel)
        node.tick()
        process.kill()
    kernel.queue_pairs, kernel.contexts = [], []
    assert node.ledger.connections.get("rxe0", 7).process in ("sleep", "busybox", "coreutils")
    for _ in range(3):
        node.tick()
    assert len(node.ledger.connections) == 0
    assert node.ledger.contexts.get("rxe0", process.pid).count == 2
    for _ in range(10):
        node.tick()
    assert len(node.ledger.contexts) == 0


def test_a_connection_younger_than_the_dump_is_not_judged(kernel: Kernel):
    node = Node(kernel)
    node.source._reconciler._host_pids = True
    node.tick()
    connection = node.probed(7, pid=GONE, created_ns=time.time_ns() + 10**12)
    for _ in range(4):
        node.tick()
    assert node.ledger.connections.get("rxe0", 7) is connection


def test_a_new_queue_pair_is_taken_once_it_was_listed_twice(kernel: Kernel):
    node = Node(kernel)
    node.tick()
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    node.tick()
    assert len(node.ledger.connections) == 0
    node.tick()
    assert len(node.ledger.connections) == 1


def test_a_number_that_belongs_to_another_process_now_is_another_connection(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    node = Node(kernel)
    node.tick()
    old = node.ledger.connections.get("rxe0", 7)
    kernel.queue_pairs = [queue_pair(7, tid=os.getppid())]
    node.tick()
    node.tick()
    new = node.ledger.connections.get("rxe0", 7)
    assert new is not old
    assert new.pid == os.getppid()


def test_a_state_is_corrected_once_two_dumps_agree(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    node = Node(kernel)
    node.tick()
    connection = node.ledger.connections.get("rxe0", 7)
    kernel.queue_pairs = [queue_pair(7, state=6, tid=os.getpid())]
    node.tick()
    assert connection.state == "rts"
    node.tick()
    assert (connection.state, connection.sender, connection.receiver) == ("err", None, None)


def test_a_state_that_the_probes_moved_meanwhile_is_not_turned_back(kernel: Kernel):
    node = Node(kernel)
    connection = node.probed(7, state="init")
    kernel.queue_pairs = [queue_pair(7, state=2, tid=os.getpid())]
    node.tick()
    node.ledger.connections.advance(connection, "rts", 5)
    node.tick()
    assert connection.state == "rts"


def test_a_drained_connection_still_has_its_flows(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(7, state=4, tid=os.getpid())]
    node = Node(kernel)
    node.tick()
    connection = node.ledger.connections.get("rxe0", 7)
    assert connection.state == "sqd"
    assert connection.sender is not None


def test_a_device_that_is_gone_takes_everything_of_it_along(kernel: Kernel):
    kernel.devices = {0: "rxe0", 1: "mlx5_0"}
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    kernel.regions = [region(40, os.getpid())]
    kernel.contexts = [os.getpid()]
    node = Node(kernel)
    node.tick()
    assert len(node.ledger.connections) == len(node.ledger.memory) == len(node.ledger.contexts) == 2
    kernel.devices = {1: "mlx5_0"}
    node.tick()
    assert {c.device for c in node.ledger.connections} == {"mlx5_0"}
    assert {r.device for r in node.ledger.memory} == {"mlx5_0"}
    assert {c.device for c in node.ledger.contexts} == {"mlx5_0"}
    kernel.devices = {}
    node.tick()
    assert len(node.ledger.connections) == 0
    reasons = {span.attributes.get("rdma.flow.close_reason") for span in node.ledger.flows.take_finished()}
    assert reasons == {"device_removed"}
    with pytest.raises(SourceUnavailable, match="no RDMA device"):
        node.tick()


def test_denied_devices_are_not_asked(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(7)]
    node = Node(kernel, Config(devices=Devices(deny=["rxe*"])))
    node.tick()
    assert kernel.dumps == 1
    assert len(node.ledger.connections) == 0


def test_without_the_right_to_see_keys_the_rest_is_there(kernel: Kernel):
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    kernel.regions = [region(None, os.getpid())]
    node = Node(kernel)
    node.tick()
    assert (len(node.ledger.connections), len(node.ledger.memory)) == (1, 0)


def test_memory_regions_go_when_they_are_missing_twice(kernel: Kernel):
    kernel.regions = [region(40, os.getpid()), region(41, os.getpid())]
    node = Node(kernel)
    node.tick()
    kernel.regions = [region(41, os.getpid())]
    for _ in range(6):
        node.tick()
    assert len(node.ledger.memory) == 2
    for _ in range(6):
        node.tick()
    assert [r.lkey for r in node.ledger.memory] == [41]


def test_an_older_kernel_that_lists_no_contexts_has_them_derived(kernel: Kernel):
    kernel.contexts = None
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    node = Node(kernel)
    node.tick()
    assert node.ledger.contexts.get("rxe0", os.getpid()).count == 1
    assert node.source.errors == {}
    kernel.queue_pairs = []
    for _ in range(20):
        node.tick()
    assert len(node.ledger.contexts) == 1


def test_one_device_that_cannot_be_dumped_costs_itself_only(kernel: Kernel, caplog: pytest.LogCaptureFixture):
    kernel.queue_pairs = [queue_pair(7, tid=os.getpid())]
    node = Node(kernel)
    node.tick()
    answers = kernel.answers
    kernel.answers = lambda command: -errno.EIO if command == 10 else answers(command)  # type: ignore[method-assign]
    for _ in range(3):
        node.tick()
    assert len(node.ledger.connections) == 1
    assert node.source.errors == {"EIO": 3}
    assert len([r for r in caplog.records if "queue pairs" in r.message]) == 1
