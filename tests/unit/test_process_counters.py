"""Counters of processes, on a stand-in of a kernel with an mlx5 (doubles/rdma_statistics.py)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from pathlib import Path

import pytest

from doubles.rdma_statistics import AUTO, MANUAL, NONE, Counted, Kernel, Port
from fabrictap.config import Config
from fabrictap.config import ProcessCounters as Settings
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.process_counters.messages import Statistics, parse_counter
from fabrictap.sources.process_counters.source import ProcessCounters
from fabrictap.sources.rdma_netlink.messages import MalformedError, parse_attributes

RC = 2
ME = os.getpid()


class OnStandIn(Statistics):
    """Keeps what stands for its socket."""

    def close(self) -> None:
        pass


def client_of(kernel: Kernel) -> Statistics:
    client = OnStandIn()
    client._socket = kernel  # type: ignore[assignment]
    return client


class Node:
    """A source on such a kernel."""

    def __init__(self, tmp_path: Path, kernel: Kernel, *, enabled: bool = True) -> None:
        for device, ports in kernel.devices.items():
            for port in ports:
                (tmp_path / f"class/infiniband/{device}/ports/{port}").mkdir(parents=True, exist_ok=True)
        self.kernel = kernel
        self.state = tmp_path / "run" / "process-counters.json"
        self.series = SeriesTable(100)
        settings = Settings(enabled=enabled, state=str(self.state))
        self.source = ProcessCounters(settings, self.series, Ledger(Config()), str(tmp_path))
        self.source._client = client_of(kernel)
        self.now = 0

    def look(self) -> None:
        self.now += 1
        self.source.fold(self.source.sample(), self.now)

    def values(self) -> dict[tuple[str, object], object]:
        """(metric, counter or direction) -> value, of the series that have not ended."""
        found = {}
        for series in self.series:
            attributes = dict(series.attributes)
            which = attributes.get("rdma.counter.name") or attributes.get("network.io.direction")
            if not series.ended and series.metric.name.startswith("rdma.process."):
                found[series.metric.name, which] = series.value
        return found


def mlx5(**more: object) -> Kernel:
    return Kernel({"mlx5_0": {1: Port()}}, **more)  # type: ignore[arg-type]


def test_it_is_turned_on_and_what_a_process_moves_is_counted(tmp_path: Path) -> None:
    node = Node(tmp_path, mlx5())
    port = node.kernel.devices["mlx5_0"][1]
    node.source.open()
    assert (port.mode, port.mask, port.optional) == (AUTO, 3, True)
    assert json.loads(node.state.read_text()) == ["mlx5_0/1"]
    node.look()
    port.counters[4] = Counted(ME, RC, {"rx_write_requests": 7, "rdma_tx_bytes": 1000, "rdma_rx_bytes": 10})
    node.look()
    port.counters[4].values = {"rx_write_requests": 9, "rdma_tx_bytes": 3000, "rdma_rx_bytes": 10}
    node.look()
    assert node.values() == {
        ("rdma.process.counter", "rx_write_requests"): 9,
        ("rdma.process.io", "transmit"): 3000,
        ("rdma.process.io", "receive"): 10,
    }
    (series,) = [one for one in node.series if dict(one.attributes).get("rdma.counter.name")]
    attributes = dict(series.attributes)
    assert attributes["process.pid"] == ME
    assert (attributes["rdma.device"], attributes["rdma.port"], attributes["rdma.qp.type"]) == (
        "mlx5_0",
        1,
        "rc",
    )


def test_two_counters_of_one_process_add_up_also_when_one_ends(tmp_path: Path) -> None:
    node = Node(tmp_path, mlx5())
    port = node.kernel.devices["mlx5_0"][1]
    node.source.open()
    node.look()
    port.counters = {1: Counted(ME, RC, {"a": 10}), 2: Counted(ME, RC, {"a": 100})}
    node.look()
    assert node.values() == {("rdma.process.counter", "a"): 110}
    del port.counters[2]
    port.counters[1].values["a"] = 11
    node.look()
    assert node.values() == {("rdma.process.counter", "a"): 111}
    # The kernel gives the number out again: it counts from 0, and nothing is taken back.
    port.counters[1] = Counted(ME, RC, {"a": 5})
    node.look()
    assert node.values() == {("rdma.process.counter", "a"): 116}
    port.counters.clear()
    node.look()
    assert node.values() == {}


@pytest.mark.parametrize("killed", [False, True])
def test_it_is_turned_off_at_the_end_also_of_an_agent_that_was_killed(tmp_path: Path, killed: bool) -> None:
    kernel = mlx5()
    port = kernel.devices["mlx5_0"][1]
    node = Node(tmp_path, kernel)
    node.source.open()
    port.counters[1] = Counted(ME, RC, {"a": 1})
    if killed:
        later = Node(tmp_path, kernel, enabled=False)
        with pytest.raises(SourceAbsent):
            later.source.open()
    else:
        node.source.close()
    assert (port.mode, port.mask) == (MANUAL, 0)  # with what is still bound, the kernel goes to manual
    assert not node.state.exists()
    assert kernel.set == [("mlx5_0", 1, 3), ("mlx5_0", 1, 0)]


def test_the_next_agent_goes_on_where_one_was_killed_and_turns_it_off(tmp_path: Path) -> None:
    kernel = mlx5()
    Node(tmp_path, kernel).source.open()
    kernel.devices["mlx5_0"][1].counters[1] = Counted(ME, RC, {"a": 50})
    node = Node(tmp_path, kernel)
    node.source.open()
    node.look()
    # What was counted before this agent is not its own to tell.
    assert node.values() == {("rdma.process.counter", "a"): 0}
    node.source.close()
    assert kernel.set == [("mlx5_0", 1, 3), ("mlx5_0", 1, 0)]


def test_what_somebody_else_turned_on_is_read_and_left_on(tmp_path: Path) -> None:
    kernel = mlx5()
    port = kernel.devices["mlx5_0"][1]
    port.mode, port.mask = AUTO, 3
    node = Node(tmp_path, kernel)
    node.source.open()
    node.look()
    port.counters[1] = Counted(ME, RC, {"a": 2})
    node.look()
    node.source.close()
    assert kernel.set == []
    assert (port.mode, port.mask) == (AUTO, 3)
    assert not node.state.exists()


def test_an_older_kernel_counts_without_the_optional_counters(tmp_path: Path) -> None:
    node = Node(tmp_path, mlx5(optional=False))
    node.source.open()
    port = node.kernel.devices["mlx5_0"][1]
    assert (port.mode, port.mask, port.optional) == (AUTO, 3, False)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Kernel({"rxe0": {1: Port(supported=False)}}), "rxe0/1: its driver has no counters for queue pairs"),
        (mlx5(capable=False), "mlx5_0/1: it needs CAP_NET_ADMIN"),
        (Kernel({"mlx5_0": {1: Port(MANUAL)}}), "bound to counters by hand"),
        (Kernel({}), "no RDMA device"),
    ],
)
def test_where_it_cannot_be_the_reason_is_told_and_nothing_is_left(
    tmp_path: Path, kernel: Kernel, reason: str
) -> None:
    node = Node(tmp_path, kernel)
    node.source.open()
    with pytest.raises(SourceUnavailable, match=reason):
        node.look()
    assert not node.state.exists()
    assert not [one for ports in kernel.devices.values() for one in ports.values() if one.mode == AUTO]


def test_one_port_that_refuses_does_not_cost_the_others(tmp_path: Path) -> None:
    node = Node(tmp_path, Kernel({"rxe0": {1: Port(supported=False)}, "mlx5_0": {1: Port(), 2: Port()}}))
    node.source.open()
    node.look()
    assert node.source.errors == {
        "ENOTSUP" if errno.errorcode[errno.EOPNOTSUPP] == "ENOTSUP" else "EOPNOTSUPP": 1
    }
    assert node.kernel.set == [("mlx5_0", 1, 3), ("mlx5_0", 2, 3)]


def test_what_cannot_be_remembered_is_not_turned_on(tmp_path: Path) -> None:
    kernel = mlx5()
    node = Node(tmp_path, kernel)
    (tmp_path / "run").write_text("no directory")
    node.source.open()
    assert kernel.set == []
    assert kernel.devices["mlx5_0"][1].mode == NONE


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", "\x00", '["../../x/1"]', '["mlx5_0"]'])
def test_a_broken_state_file_does_no_harm(tmp_path: Path, text: str) -> None:
    node = Node(tmp_path, mlx5(), enabled=False)
    node.state.parent.mkdir()
    node.state.write_text(text)
    later = Node(tmp_path, node.kernel, enabled=False)
    with pytest.raises(SourceAbsent):
        later.source.open()
    assert node.kernel.set == []


def test_answers_that_are_cut_off_or_changed_are_refused_or_read(tmp_path: Path) -> None:
    kernel = mlx5()
    kernel.devices["mlx5_0"][1].counters[1] = Counted(ME, RC, {"a": 2, "b": 3})
    client = client_of(kernel)
    (counter,) = client.counters(0, 1)
    assert counter.values == {"a": 2, "b": 3}
    entry = kernel._entry(1, kernel.devices["mlx5_0"][1].counters[1])[4:]
    rng = random.Random(4)
    for _ in range(2000):
        data = bytearray(entry)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(MalformedError):
            parse_counter(parse_attributes(bytes(data[: rng.randint(0, len(data))])))
