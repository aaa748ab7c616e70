"""The stand-ins of make bench are what the sources take for a node."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from doubles.sysfs import COUNTERS, HW_COUNTERS, MAX_HCAS, Sysfs
from doubles.verbs_traffic import SERIES_OF_CONNECTION, VerbsTraffic
from fabrictap import catalog
from fabrictap.config import Config
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources.infiniband.sysfs import scan


def test_the_sysfs_of_hcas_is_read_as_that_of_mlx5(tmp_path):
    Sysfs(tmp_path, 3)
    found = scan(str(tmp_path), lambda _: True)
    assert not found.problems
    assert [device.name for device in found.devices] == ["mlx5_0", "mlx5_1", "mlx5_2"]
    device = found.devices[1]
    assert (device.driver, device.model, device.firmware) == ("mlx5_core", "MT_0000000838", "28.39.1002")
    (port,) = device.ports
    assert (port.link_layer, port.netdev, port.statistics) == ("ethernet", "ens2np0", None)
    assert port.gids[2] == "::ffff:10.0.0.2"
    assert len(port.files) == len(COUNTERS) + len(HW_COUNTERS) == 50


def test_time_that_passes_moves_traffic_and_never_an_error(tmp_path):
    tree = Sysfs(tmp_path, 1)
    before = {path: int(Path(path).read_text()) for path in tree.counters}
    tree.advance(2.0)
    gained = {Path(path).name: int(Path(path).read_text()) - value for path, value in before.items()}
    assert gained["port_rcv_data"] == 22_000_000_000
    assert gained["symbol_error"] == gained["packet_seq_err"] == 0
    assert min(gained.values()) == 0


@pytest.mark.parametrize("hcas", [0, MAX_HCAS + 1])
def test_a_number_of_hcas_that_no_node_has_is_refused(tmp_path, hcas):
    with pytest.raises(ValueError, match=f"1 to {MAX_HCAS} HCAs"):
        Sysfs(tmp_path, hcas)


def test_made_up_connections_are_connected_then_counted_every_second():
    config, table = Config(), SeriesTable(1000)
    ledger = Ledger(config, table.ring)
    traffic = VerbsTraffic(config.sources.verbs, table, ledger, connections=5, devices=2)
    traffic.open()

    def second() -> None:
        traffic.fold(traffic.sample(), time.time_ns())

    second()  # the records
    for _ in range(3):
        second()
    states = {(one.device, one.qpn): one.state for one in ledger.connections}
    assert states == {(f"mlx5_{number % 2}", 100 + number): "rts" for number in range(5)}
    verbs = [series for series in table if series.metric.name.startswith("rdma.verbs.")]
    assert len(verbs) == 5 * SERIES_OF_CONNECTION
    counted = {series.value for series in table if series.metric is catalog.VERBS_OPERATIONS}
    assert counted == {3000}
    assert {series.attributes["fabrictap.coverage"] for series in verbs} == {"exact"}
