"""The infiniband source on trees of /sys from real machines, and on trees that go wrong."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabrictap.catalog import (
    ERRORS,
    NETWORK_IO,
    NETWORK_LIMIT,
    NETWORK_PACKETS,
    NETWORK_UP,
    PORT_COUNTER,
    Metric,
)
from fabrictap.config import Config, Devices
from fabrictap.ledger import Ledger
from fabrictap.series import Series, SeriesTable
from fabrictap.sources import SourceUnavailable
from fabrictap.sources.infiniband.counters import (
    COUNTERS,
    COUNTERS_EXT,
    HW_COUNTERS,
    File,
    classify,
    direction_of,
    is_error,
)
from fabrictap.sources.infiniband.source import Infiniband
from fabrictap.sources.infiniband.sysfs import parse_rate, parse_state

FIXTURES = Path(__file__).parent / "fixtures" / "sysfs"
ARCHIVES = ["procfs.ttar", "rxe.ttar", "efa.ttar", "mlx5_roce.ttar"]


def expand(archive: str, root: Path) -> None:
    """Unpack one of the small text archives below ``root``."""
    for block in re.split(r"^# ttar[ -]*\n", (FIXTURES / archive).read_text(), flags=re.M):
        match = re.match(r"Path: (\S+)\n(?:SymlinkTo: (\S+)|Lines: (\d+)\n)", block)
        if match is None:
            continue
        path = root / match[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if match[2] is not None:
            path.symlink_to(match[2])
        else:
            lines = block[match.end() :].splitlines(keepends=True)
            path.write_text("".join(lines[: int(match[3])]))


class Node:
    """A source with its series, ledger, and a clock and a time that the test moves."""

    def __init__(self, sysfs: Path, devices: Devices | None = None) -> None:
        config = Config(devices=devices or Devices())
        config.sources.infiniband.sysfs = str(sysfs)
        self.sysfs = sysfs
        self.series = SeriesTable(config.limits.series)
        self.ledger = Ledger(config)
        self.now = 100.0
        self.source = Infiniband(config.sources.infiniband, self.series, self.ledger, clock=lambda: self.now)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.source.fold(self.source.sample(), int(self.now * 1e9))

    def find(self, metric: Metric, **attributes: object) -> list[Series]:
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        return [
            series
            for series in self.series
            if series.metric is metric and not series.ended and wanted.items() <= series.attributes.items()
        ]

    def value(self, metric: Metric, **attributes: object) -> object:
        (found,) = self.find(metric, **attributes)
        return found.value

    def path(self, path: str) -> Path:
        return self.sysfs / "class/infiniband" / path


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for archive in ARCHIVES:
        expand(archive, tmp_path)
    return tmp_path


@pytest.fixture
def node(sysfs: Path) -> Iterator[Node]:
    node = Node(sysfs)
    node.source.open()
    node.tick()
    yield node
    node.source.close()


def test_data_words_become_bytes_on_every_hardware_port(node: Node):
    words = {"hfi1_0/1": (273558326543, 345091702026), "mlx5_bond_0/1": ((1 << 61) - 1, 250000000)}
    for port, (sent, received) in words.items():
        where = {"hw__id": port, "rdma__counter__source": "port"}
        assert node.value(NETWORK_IO, network__io__direction="transmit", **where) == 4 * sent
        assert node.value(NETWORK_IO, network__io__direction="receive", **where) == 4 * received


def test_efa_bytes_are_bytes(node: Node):
    where = {"hw__id": "rdmap0s6/1", "rdma__counter__source": "port"}
    assert node.value(NETWORK_IO, network__io__direction="transmit", **where) == 1000
    assert node.value(NETWORK_IO, network__io__direction="receive", **where) == 1002
    assert node.value(NETWORK_PACKETS, network__io__direction="transmit", **where) == 1001


def test_a_software_device_counts_the_bytes_of_its_interface_and_says_so(node: Node):
    where = {"hw__id": "rxe0/1", "hw__name": "d0"}
    assert node.value(NETWORK_IO, network__io__direction="transmit", **where) == 1489
    assert node.value(NETWORK_IO, network__io__direction="receive", **where) == 2211
    assert {s.attributes["rdma.counter.source"] for s in node.find(NETWORK_IO, hw__id="rxe0/1")} == {"netdev"}
    assert {s.attributes["rdma.counter.source"] for s in node.find(NETWORK_PACKETS, hw__id="rxe0/1")} == {
        "port"
    }


def test_the_interface_of_a_hardware_device_never_stands_for_its_port(sysfs: Path):
    shutil.rmtree(sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters")
    node = Node(sysfs)
    node.tick()
    assert node.find(NETWORK_IO, hw__id="mlx5_bond_0/1") == []


def test_every_file_is_one_series_and_lifespan_is_none(node: Node):
    for device in node.path("").iterdir():
        for port in (device / "ports").iterdir():
            files = [
                file.name
                for group in (COUNTERS, HW_COUNTERS)
                if (port / group).is_dir()
                for file in (port / group).iterdir()
                if file.name != "lifespan"
            ]
            found = [
                series
                for metric in (NETWORK_IO, NETWORK_PACKETS, ERRORS, PORT_COUNTER)
                for series in node.find(metric, hw__id=f"{device.name}/{port.name}")
                if series.attributes.get("rdma.counter.source") != "netdev"
                and not str(series.attributes.get("rdma.counter.name")).startswith("netdev/")
            ]
            assert len(found) == len(files), device.name
    assert node.find(PORT_COUNTER, rdma__counter__name="lifespan") == []


def test_points_carry_only_attributes_of_the_catalog(node: Node):
    for series in node.series:
        assert series.attributes.keys() <= {a.name for a in series.metric.attributes}, series.metric.name


@pytest.mark.parametrize(
    ("name", "error", "direction"),
    [
        ("port_rcv_errors", True, "receive"),
        ("port_xmit_discards", True, "transmit"),
        ("symbol_error", True, None),
        ("VL15_dropped", True, None),
        ("packet_seq_err", True, None),
        ("rnr_nak_retry_err", True, None),
        ("req_cqe_flush_error", True, None),
        ("out_of_buffer", True, None),
        ("link_downed", True, None),
        ("rx_drops", True, "receive"),
        ("send_rnr_err", True, "transmit"),
        ("rcvd_seq_err", True, "receive"),
        ("ip4InDiscards", True, "receive"),
        ("ip6OutNoRoutes", False, "transmit"),
        ("port_xmit_wait", False, "transmit"),
        ("out_of_sequence", False, None),
        ("np_cnp_sent", False, "transmit"),
        ("roce_adp_retrans", False, None),
        ("duplicate_request", False, None),
    ],
)
def test_names_tell_errors_and_directions(name: str, error: bool, direction: str | None):
    assert (is_error(name), direction_of(name)) == (error, direction)


def test_the_64_bit_counters_win_over_the_32_bit_ones():
    files = [File(COUNTERS, "port_xmit_data"), File(COUNTERS_EXT, "port_xmit_data_64")]
    meanings = classify(files)
    assert meanings[files[1]].metric is NETWORK_IO
    assert meanings[files[0]].metric is PORT_COUNTER


def test_the_same_name_in_two_directories_is_two_series():
    files = [File(COUNTERS, "link_downed"), File(HW_COUNTERS, "link_downed")]
    names = {dict(meaning.attributes)["error.type"] for meaning in classify(files).values()}
    assert names == {"link_downed", "hw_counters/link_downed"}


def test_counters_of_a_device_belong_to_the_device(node: Node):
    assert node.value(ERRORS, hw__id="rdmap0s6", error__type="cmds_err") == 2002
    assert node.value(PORT_COUNTER, hw__id="rdmap0s6", rdma__counter__name="submitted_cmds") == 2000


def test_port_counters_shown_again_on_the_device_are_not_counted_twice(sysfs: Path):
    device = sysfs / "class/infiniband/rdmap0s6"
    for name in ("tx_bytes", "rx_drops"):
        shutil.copy(device / "ports/1/hw_counters" / name, device / "hw_counters" / name)
    node = Node(sysfs)
    node.tick()
    assert len(node.find(NETWORK_IO, network__io__direction="transmit", hw__parent="rdmap0s6")) == 1
    assert node.find(ERRORS, hw__id="rdmap0s6", error__type="rx_drops") == []
    assert node.value(PORT_COUNTER, hw__id="rdmap0s6", rdma__counter__name="tx_bytes") == 1000


def test_link_state_rate_and_device_facts(node: Node):
    (up,) = node.find(NETWORK_UP, hw__id="mlx5_bond_0/1")
    assert up.value == 1
    assert up.attributes["rdma.port.state"] == "active"
    assert up.attributes["rdma.link_layer"] == "ethernet"
    assert up.attributes["hw.name"] == "bond0"
    assert up.attributes["hw.model"] == "MT_0000000359"
    assert up.attributes["hw.firmware_version"] == "22.35.2000"
    assert node.value(NETWORK_LIMIT, hw__id="mlx5_bond_0/1") == 25_000_000_000
    assert "rdma.link_layer" not in node.find(NETWORK_UP, hw__id="rdmap0s6/1")[0].attributes


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100 Gb/sec (4X EDR)", 12_500_000_000),
        ("2.5 Gb/sec (1X SDR)", 312_500_000),
        ("", None),
        ("fast", None),
    ],
)
def test_rates(text: str, rate: int | None):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "state"),
    [("4: ACTIVE", "active"), ("5: ACTIVE_DEFER", "active_defer"), ("ACTIVE", None), ("4: ", None)],
)
def test_states(text: str, state: str | None):
    assert parse_state(text) == state


def test_a_link_that_goes_down_is_another_series_with_0(node: Node):
    node.path("mlx5_bond_0/ports/1/state").write_text("1: DOWN\n")
    node.tick()
    (up,) = node.find(NETWORK_UP, hw__id="mlx5_bond_0/1")
    assert (up.value, up.attributes["rdma.port.state"]) == (0, "down")
    assert node.ledger.devices.get("mlx5_bond_0").ports[1].state == "down"


def test_the_ledger_knows_devices_and_ports(node: Node):
    device = node.ledger.devices.get("mlx5_bond_0")
    assert (device.driver, device.node_guid) == ("mlx5_core", "b8ce:f603:00a1:b2c3")
    port = device.ports[1]
    assert (port.link_layer, port.state, port.netdev) == ("ethernet", "active", "bond0")
    assert port.gids[2] == "::ffff:192.168.10.11"
    assert sorted(port.gids) == [0, 1, 2, 3]
    assert node.ledger.devices.get("rxe0").ports[1].gids[1] == "::ffff:10.9.0.1"
    assert sorted(node.ledger.devices.get("mlx4_0").ports) == [1, 2]


def test_a_counter_goes_on_and_a_smaller_value_is_a_reset(node: Node):
    path = node.path("mlx5_bond_0/ports/1/counters/symbol_error")
    (series,) = node.find(ERRORS, hw__id="mlx5_bond_0/1", error__type="symbol_error")
    started = series.start_ns
    path.write_text("5000\n")
    node.tick()
    assert (series.value, series.start_ns) == (5000, started)
    before = series.time_ns
    path.write_text("3\n")
    node.tick()
    assert (series.value, series.start_ns) == (3, before)


def test_traffic_is_read_between_samples_and_its_peak_is_right_to_one_of_these(node: Node):
    def peak() -> float:
        (series,) = node.find(NETWORK_IO, hw__id="mlx4_0/1", network__io__direction="transmit")
        return series.peak

    words = node.path("mlx4_0/ports/1/counters/port_xmit_data")
    other = node.path("mlx4_0/ports/1/counters/symbol_error")
    total, errors = int(words.read_text()), int(other.read_text())
    node.series.ring.interval(int(node.now * 1e9))
    other.write_text(f"{errors + 1}\n")
    for words_in_a_tenth in (0, 10**6, 25 * 10**6, 0):
        total += words_in_a_tenth
        words.write_text(f"{total}\n")
        node.now += 0.1
        node.source.sample_fast()
        node.source.fold_fast(int(node.now * 1e9))
    assert node.value(ERRORS, hw__id="mlx4_0/1", error__type="symbol_error") == errors
    node.tick(0.6)
    assert node.value(ERRORS, hw__id="mlx4_0/1", error__type="symbol_error") == errors + 1
    assert node.value(NETWORK_IO, hw__id="mlx4_0/1", network__io__direction="transmit") == total * 4
    node.series.ring.interval(int(node.now * 1e9))
    assert peak() == pytest.approx(1e9, rel=1e-3)
    node.tick()
    node.series.ring.interval(int(node.now * 1e9))
    assert peak() == 0


def test_denied_devices_are_not_touched(sysfs: Path):
    node = Node(sysfs, Devices(deny=["mlx5*"]))
    os.mkfifo(sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters/zzz")
    node.tick()
    assert {s.attributes.get("hw.parent") for s in node.find(NETWORK_UP)} == {
        "hfi1_0",
        "mlx4_0",
        "rdmap0s6",
        "rxe0",
    }
    assert node.ledger.devices.get("mlx5_bond_0") is None
    with pytest.raises(SourceUnavailable, match="allow"):
        Node(sysfs, Devices(allow=["none*"])).source.open()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: (root / "class/infiniband").mkdir(parents=True), "empty"),
    ],
)
def test_a_node_without_devices_says_what_to_do(tmp_path: Path, prepare: Callable[[Path], None], words: str):
    prepare(tmp_path)
    node = Node(tmp_path)
    for call in (node.source.open, node.source.sample):
        with pytest.raises(SourceUnavailable, match=words) as caught:
            call()
        assert "rdma link add" in str(caught.value)


def test_the_empty_end_of_a_gid_table_is_not_read(sysfs: Path):
    gids = sysfs / "class/infiniband/rxe0/ports/1/gids"
    for index in range(2, 40):
        (gids / str(index)).write_text("0000:0000:0000:0000:0000:0000:0000:0000\n")
    (gids / "12").write_text("fe80:0000:0000:0000:0000:0000:0000:0012\n")
    (gids / "39").write_text("not reached\n")
    node = Node(sysfs)
    node.tick()
    assert sorted(node.ledger.devices.get("rxe0").ports[1].gids) == [0, 1, 12]
    assert node.source.errors == {}


# --- things that go wrong -------------------------------------------------------------------------


def put_fault(path: Path) -> None:
    """In the place of a counter a FIFO: opening works, pread answers ESPIPE."""
    path.unlink()
    os.mkfifo(path)


def test_a_failing_file_costs_its_own_value_only_and_is_said_once(
    sysfs: Path, caplog: pytest.LogCaptureFixture
):
    put_fault(sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters/symbol_error")
    (sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters/port_xmit_wait").write_text("N/A (no PMA)\n")
    node = Node(sysfs)
    for _ in range(30):
        node.tick()
    assert node.find(ERRORS, hw__id="mlx5_bond_0/1", error__type="symbol_error") == []
    assert node.find(PORT_COUNTER, hw__id="mlx5_bond_0/1", rdma__counter__name="port_xmit_wait") == []
    assert len(node.find(ERRORS, hw__id="mlx5_bond_0/1")) > 10
    assert len([r for r in caplog.records if "symbol_error" in r.message]) == 1
    # 1, 2, 4, 8, 16 s apart
    assert node.source.errors == {"ESPIPE": 5, "not_a_number": 5}


def test_a_series_ends_after_a_few_failures_and_comes_back_as_new(node: Node):
    path = node.path("mlx5_bond_0/ports/1/counters/symbol_error")
    (old,) = node.find(ERRORS, hw__id="mlx5_bond_0/1", error__type="symbol_error")
    good = path.read_text()
    path.write_text("broken\n")
    node.tick()
    assert not old.ended
    for _ in range(10):
        node.tick()
    assert old.ended
    path.write_text(good)
    for _ in range(20):
        node.tick()
    (new,) = node.find(ERRORS, hw__id="mlx5_bond_0/1", error__type="symbol_error")
    assert new is not old
    assert new.start_ns > old.time_ns


def test_the_wait_between_tries_ends_at_five_minutes(sysfs: Path):
    put_fault(sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters/symbol_error")
    node = Node(sysfs)
    for _ in range(40):
        node.tick(100.0)
    before = node.source.errors["ESPIPE"]
    for _ in range(30):
        node.tick(100.0)
    assert node.source.errors["ESPIPE"] == before + 10


def test_a_value_that_otlp_cannot_carry_is_absent(sysfs: Path):
    (sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters/port_xmit_data").write_text(f"{1 << 61}\n")
    node = Node(sysfs)
    node.tick()
    assert node.find(NETWORK_IO, hw__id="mlx5_bond_0/1", network__io__direction="transmit") == []
    assert node.source.errors == {"overflow": 1}


def test_a_state_that_cannot_be_read_is_absent_not_down(node: Node):
    node.path("mlx5_bond_0/ports/1/rate").write_text("fast\n")
    node.path("mlx5_bond_0/ports/1/state").write_text("what?\n")
    node.tick()
    assert node.find(NETWORK_UP, hw__id="mlx5_bond_0/1") == []
    assert node.find(NETWORK_LIMIT, hw__id="mlx5_bond_0/1") == []
    assert node.source.errors == {"not_understood": 2}


def test_files_and_devices_come_and_go(node: Node, sysfs: Path):
    (path := node.path("rxe0/ports/1/hw_counters/fresh")).write_text("9\n")
    hidden = sysfs / "hidden"
    node.path("hfi1_0").rename(hidden)
    (old,) = node.find(NETWORK_UP, hw__parent="hfi1_0")
    node.tick(6.0)
    assert node.value(PORT_COUNTER, rdma__counter__name="fresh") == 9
    assert old.ended
    assert node.find(NETWORK_IO, hw__parent="hfi1_0") == []
    assert node.ledger.devices.get("hfi1_0") is None
    hidden.rename(node.path("hfi1_0"))
    path.unlink()
    node.tick(6.0)
    assert len(node.find(NETWORK_IO, hw__parent="hfi1_0")) == 2
    assert node.find(PORT_COUNTER, rdma__counter__name="fresh") == []
    assert node.ledger.devices.get("hfi1_0") is not None


def test_a_device_that_was_removed_and_made_again_is_read_anew(node: Node, sysfs: Path):
    device = node.path("rxe0")
    (old,) = node.find(PORT_COUNTER, hw__id="rxe0/1", rdma__counter__name="rdma_sends")
    shutil.copytree(device, sysfs / "copy", symlinks=True)
    device.rename(sysfs / "away")
    (sysfs / "copy").rename(device)
    (device / "ports/1/hw_counters/rdma_sends").write_text("12\n")
    node.tick(6.0)
    (new,) = node.find(PORT_COUNTER, hw__id="rxe0/1", rdma__counter__name="rdma_sends")
    assert old.ended
    assert (new.value, new is old) == (12, False)


def test_the_last_device_going_ends_everything_before_the_source_is_unavailable(node: Node, sysfs: Path):
    shutil.rmtree(sysfs / "class/infiniband")
    node.tick(6.0)
    assert all(series.ended for series in node.series)
    assert len(node.ledger.devices) == 0
    with pytest.raises(SourceUnavailable):
        node.tick(6.0)


def test_a_closed_source_can_be_opened_again(node: Node):
    node.source.close()
    node.source.close()
    node.source.open()
    node.tick()
    assert len(node.find(NETWORK_IO, hw__id="mlx5_bond_0/1")) == 2


def test_odd_names_are_left_out_with_a_count(sysfs: Path):
    counters = sysfs / "class/infiniband/mlx5_bond_0/ports/1/counters"
    for name in ("a b", 'quote"', "neu\nline", "x" * 65, ".hidden", "umlaut_ä"):
        (counters / name).write_text("1\n")
    (sysfs / "class/infiniband/mlx5 evil/ports/1/counters").mkdir(parents=True)
    node = Node(sysfs)
    node.tick()
    node.tick(6.0)
    assert node.source.errors == {"odd_name": 7}
    assert len(node.find(PORT_COUNTER, hw__id="mlx5_bond_0/1", rdma__counter__name="a b")) == 0


def test_a_directory_without_end_is_cut_off(sysfs: Path):
    counters = sysfs / "class/infiniband/mlx5_bond_0/ports/1/hw_counters"
    for number in range(1100):
        (counters / f"n{number}").write_text("1\n")
    node = Node(sysfs)
    node.tick()
    assert node.source.errors == {"too_many": 1}
    assert len(node.find(PORT_COUNTER, hw__id="mlx5_bond_0/1")) <= 1100


def test_a_fifo_in_the_place_of_a_text_file_does_not_hold_the_source(sysfs: Path):
    for name in ("fw_ver", "board_id", "ports/1/state", "ports/1/gids/0"):
        put_fault(sysfs / "class/infiniband/mlx5_bond_0" / name)
    node = Node(sysfs)
    node.tick()
    assert node.find(NETWORK_UP, hw__id="mlx5_bond_0/1") == []
    assert node.ledger.devices.get("mlx5_bond_0").model == "MT4125"


def test_descriptors_are_closed_with_the_source(sysfs: Path):
    def kept() -> int:
        links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum(link.is_relative_to(sysfs) for link in links)

    node = Node(sysfs)
    node.tick()
    before = kept()
    assert before > 150
    shutil.rmtree(sysfs / "class/infiniband/mlx4_0")
    node.tick(6.0)
    assert 0 < kept() < before
    node.source.close()
    assert kept() == 0
