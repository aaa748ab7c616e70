"""What the syscall level leaves to the agent: naming devices and GIDs, and the end of whole processes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from doubles import raw_records as raw
from doubles.verbs_node import read, sampled
from fabrictap.config import Config
from fabrictap.ext import records
from fabrictap.ext.records import Record, decode
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources.verbs import probes
from fabrictap.sources.verbs.control import ends_flows
from fabrictap.sources.verbs.source import Sample, Verbs
from fabrictap.sources.verbs.uverbs import Uverbs

UVERBS, GID_INDEX = 0x10, 0x20
SECOND = 10**9


def numbered(kind: int, major: int, minor: int, *, gid_index: int | None = None, port: int = 1) -> Record:
    """A record as the syscall probes write it: the device is a dev_t, the own GID an index."""
    flags = UVERBS | (0 if gid_index is None else GID_INDEX)
    number = (major << 20 | minor).to_bytes(4, "little")
    head = raw._HEAD.pack(1, 7, kind, flags, 9, 9, b"app", number)
    body = raw._QP.pack(17, 2, 2, raw.STATE | raw.AV, 0, port, 34, 0, 0, 3, bytes(16), bytes(16))
    body += (gid_index or 0).to_bytes(4, "little")
    (record,) = decode(head + body.ljust(raw._UNION, b"\0"))
    return record


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two devices, and what else lies in these directories."""
    for number, (name, gids) in enumerate((("mlx5_0", ("fe80::1", "::ffff:10.0.0.1", "::")), ("rxe1", ()))):
        verbs = tmp_path / "class" / "infiniband_verbs" / f"uverbs{number}"
        verbs.mkdir(parents=True)
        (verbs / "dev").write_text(f"231:{192 + number}\n")
        (verbs / "ibdev").write_text(f"{name}\n")
        table = tmp_path / "class" / "infiniband" / name / "ports" / "1" / "gids"
        table.mkdir(parents=True)
        for index, gid in enumerate(gids):
            text = socket.inet_pton(socket.AF_INET6, gid).hex(":", 2)
            (table / str(index)).write_text(f"{text}\n")
    (tmp_path / "class" / "infiniband_verbs" / "abi_version").write_text("6\n")
    going = tmp_path / "class" / "infiniband_verbs" / "uverbs9"
    going.mkdir()
    (going / "dev").write_text("")
    return tmp_path


def test_device_and_gid_are_named(sysfs: Path) -> None:
    errors: dict[str, int] = {}
    record = numbered(records.QP_MODIFIED, 231, 192, gid_index=1)
    assert (record.device, record.uverbs, record.qp_gid_index, record.qp_gid) == (
        "",
        231 << 20 | 192,
        1,
        None,
    )
    assert Uverbs(errors, str(sysfs)).place([record]) == [record]
    assert (record.device, record.uverbs, record.qp_gid) == ("mlx5_0", None, "::ffff:10.0.0.1")
    assert (record.qpn, record.qp_peer_qpn, record.pid) == (17, 34, 9)
    assert errors == {}


@pytest.mark.parametrize(("index", "port"), [(2, 1), (7, 1), (0, 2), (None, 1)])
def test_gid_that_is_not_in_the_table_is_unknown(sysfs: Path, index: int | None, port: int) -> None:
    record = numbered(records.QP_MODIFIED, 231, 192, gid_index=index, port=port)
    (placed,) = Uverbs({}, str(sysfs)).place([record])
    assert (placed.device, placed.qp_gid) == ("mlx5_0", None)


@pytest.mark.parametrize("number", [(231, 200), (1, 3), (0, 0), (4095, 0xFFFFF)])
def test_record_of_no_verbs_device_is_left_out_and_counted(sysfs: Path, number: tuple[int, int]) -> None:
    errors: dict[str, int] = {}
    kept = numbered(records.QP_CREATED, 231, 193)
    assert Uverbs(errors, str(sysfs)).place([numbered(records.QP_CREATED, *number), kept]) == [kept]
    assert errors == {"unknown_uverbs_device": 1}


def test_records_that_name_their_device_are_not_touched(tmp_path: Path) -> None:
    record = raw.qp(records.QP_CREATED, "mlx5_0", 17)
    errors: dict[str, int] = {}
    assert Uverbs(errors, str(tmp_path / "nothing")).place([record]) == [record]
    assert (record.device, errors) == ("mlx5_0", {})


def test_device_that_comes_or_is_renamed_is_found_after_forgetting(sysfs: Path) -> None:
    uverbs = Uverbs({}, str(sysfs))
    assert [r.device for r in uverbs.place([numbered(records.QP_CREATED, 231, 193)])] == ["rxe1"]
    (sysfs / "class" / "infiniband_verbs" / "uverbs1" / "ibdev").write_text("roce1\n")
    assert [r.device for r in uverbs.place([numbered(records.QP_CREATED, 231, 193)])] == ["rxe1"]
    uverbs.forget()
    assert [r.device for r in uverbs.place([numbered(records.QP_CREATED, 231, 193)])] == ["roce1"]


class Node:
    """The source with its ledger; process 1 and 2 each have a connection, memory and a context."""

    def __init__(self) -> None:
        config = Config()
        self.ledger = Ledger(config)
        self.verbs = Verbs(config.sources.verbs, SeriesTable(1000), self.ledger)
        self.now = 10**18
        since = dict.fromkeys((1, 2), self.now)
        self.verbs.fold(Sample(instrumented={**since}), self.now)
        rts: dict[str, Any] = {"state": 3, "mask": raw.STATE}
        for pid in (1, 2):
            self.fold(
                raw.plain(records.CONTEXT_OPENED, "mlx5_0", pid=pid),
                raw.mr(records.MR_REGISTERED, "mlx5_0", 100 + pid, 4096, pid=pid),
                raw.qp(records.QP_CREATED, "mlx5_0", pid, pid=pid),
                raw.qp(records.QP_MODIFIED, "mlx5_0", pid, pid=pid, **rts),
            )

    def fold(self, *happened: Record, posts: Any = None) -> None:
        self.now += SECOND
        read(self.verbs, [(post, "mlx5_0") for post in posts or ()])
        self.verbs.fold(sampled(happened, posts=posts is not None), self.now)

    def holders(self) -> tuple[set[int | None], set[int | None], set[int]]:
        return (
            {connection.pid for connection in self.ledger.connections},
            {region.pid for region in self.ledger.memory},
            {context.pid for context in self.ledger.contexts},
        )


def test_process_that_exits_takes_all_it_had_with_it() -> None:
    node = Node()
    assert node.holders() == ({1, 2}, {1, 2}, {1, 2})
    exited = raw.plain(records.PROCESS_EXITED, "", pid=1, flags=raw.EXITING)
    assert ends_flows(exited)
    node.fold(exited, posts=[raw.post(1, operations=5)])
    assert node.holders() == ({2}, {2}, {2})
    spans = {span.attributes["rdma.flow.role"]: span.attributes for span in node.ledger.flows.take_finished()}
    assert {span["rdma.flow.close_reason"] for span in spans.values()} == {"process_exited"}
    # What it posted last belongs to its flows.
    assert spans["sender"]["rdma.flow.send.operations"] == 5
    assert not node.verbs._post_fold._of_qp


def test_exit_and_the_ends_of_its_objects_may_come_in_any_order_and_twice() -> None:
    node = Node()
    ends = (
        raw.qp(records.QP_DESTROYED, "mlx5_0", 1, pid=1, flags=raw.EXITING),
        raw.mr(records.MR_DEREGISTERED, "mlx5_0", 101, pid=1),
        raw.plain(records.CONTEXT_CLOSED, "mlx5_0", pid=1),
    )
    exited = raw.plain(records.PROCESS_EXITED, "", pid=1)
    node.fold(exited, *ends, exited, raw.plain(records.PROCESS_EXITED, "", pid=77))
    assert node.holders() == ({2}, {2}, {2})
    assert len(node.ledger.flows.take_finished()) == 2


class Loads:
    """Stands for loading: the levels in ``refused`` raise, the others attach all they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *refused: str) -> None:
        self.tried: list[str] = []
        self.refused = refused
        monkeypatch.setattr(probes, "module_loaded", lambda module: True)
        monkeypatch.setattr(probes, "_hooks", self.load)
        monkeypatch.setattr(probes, "_syscalls", lambda buffer, types: self.load("syscall", buffer, types))

    def load(self, level: str, event_buffer: int, types: object) -> Any:
        self.tried.append(level)
        if level in self.refused:
            raise probes.BpfError("/sys/kernel/btf/ib_core", 2)
        made = object.__new__(probes.Probes)
        made.method = level
        made.attached = dict.fromkeys(probes._ESSENTIAL[level], 1)
        return made


@pytest.mark.parametrize(
    ("level", "refused", "taken"),
    [("auto", (), "fexit"), ("auto", ("fexit",), "kprobe"), ("auto", ("fexit", "kprobe"), "syscall"),
     ("syscall", (), "syscall")],
)  # fmt: skip
def test_first_level_that_works_is_taken(
    monkeypatch: pytest.MonkeyPatch, level: str, refused: tuple[str, ...], taken: str
) -> None:
    loads = Loads(monkeypatch, *refused)
    assert probes.load_control(level, 4096).method == taken
    assert loads.tried == [*refused, taken]


def test_when_no_level_works_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    Loads(monkeypatch, *probes.LEVELS)
    with pytest.raises(probes.ProbesUnavailable) as raised:
        probes.load_control("auto", 4096)
    assert all(f"{level}: /sys/kernel/btf/ib_core" in str(raised.value) for level in probes.LEVELS)


def test_a_level_that_was_asked_for_is_the_only_one_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch, "kprobe")
    with pytest.raises(probes.ProbesUnavailable):
        probes.load_control("kprobe", 4096)
    assert loads.tried == ["kprobe"]
