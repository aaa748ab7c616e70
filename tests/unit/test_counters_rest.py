"""What a rest between two passes reads, and which counters a pass leaves out."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fabrictap import catalog
from fabrictap.ext.counters import CounterFiles
from fabrictap.series import Series, SeriesTable

_STILL_PASSES, _TURNS = 15, 5


class Counter:
    """A file, its slot in ``files`` and the series that it feeds."""

    def __init__(self, path: Path, files: CounterFiles, table: SeriesTable, metric: catalog.Metric) -> None:
        self.path = path
        self.put(0)
        self.series: Series = table.series(metric, {"hw.id": path.name}, 1)
        files.bind(files.add(path), self.series, metric.rates)

    def put(self, value: int) -> None:
        self.path.write_text(f"{value}\n")


@pytest.fixture
def table() -> SeriesTable:
    return SeriesTable(64)


@pytest.fixture
def files() -> CounterFiles:
    return CounterFiles()


def take(files: CounterFiles, table: SeriesTable) -> None:
    files.read()
    files.fold(table.ring, time.time_ns())


def test_a_burst_in_a_rest_is_in_the_peak_and_only_its_sum_in_the_value(
    tmp_path: Path, files: CounterFiles, table: SeriesTable
):
    counter = Counter(tmp_path / "words", files, table, catalog.NETWORK_IO)
    take(files, table)
    table.ring.interval(time.time_ns())
    burst = threading.Timer(0.12, counter.put, (10**6,))
    burst.start()
    readings = files.rest(time.monotonic() + 0.5, 0.05)
    burst.join()
    assert 5 <= readings <= 9
    take(files, table)
    assert counter.series.value == 10**6
    table.ring.interval(time.time_ns())
    # Read every 50 ms at best: 20e6 a second. The average over the rest is 2e6.
    assert 5e6 < counter.series.peak <= 10**6 / 0.045
    take(files, table)
    table.ring.interval(time.time_ns())
    assert counter.series.peak == 0


def test_a_counter_that_falls_in_a_rest_makes_no_peak(
    tmp_path: Path, files: CounterFiles, table: SeriesTable
):
    counter = Counter(tmp_path / "words", files, table, catalog.NETWORK_IO)
    counter.put(10**9)
    take(files, table)
    table.ring.interval(time.time_ns())
    reset = threading.Timer(0.05, counter.put, (0,))
    reset.start()
    files.rest(time.monotonic() + 0.2, 0.02)
    reset.join()
    take(files, table)
    table.ring.interval(time.time_ns())
    assert counter.series.peak == 0


def test_a_rest_ends_when_it_is_woken_and_the_pass_after_it_is_complete(
    tmp_path: Path, files: CounterFiles, table: SeriesTable
):
    counters = [Counter(tmp_path / str(n), files, table, catalog.PORT_COUNTER) for n in range(_TURNS)]
    for _ in range(_STILL_PASSES + 2):
        take(files, table)
    for counter in counters:
        counter.put(7)
    files.wake()
    began = time.monotonic()
    files.rest(began + 30, 0.1)
    assert time.monotonic() - began < 5
    take(files, table)
    assert [counter.series.value for counter in counters] == [7] * _TURNS


def test_a_still_counter_is_read_in_turns_and_one_that_moves_in_every_pass(
    tmp_path: Path, files: CounterFiles, table: SeriesTable
):
    still = Counter(tmp_path / "still", files, table, catalog.PORT_COUNTER)
    moves = Counter(tmp_path / "moves", files, table, catalog.PORT_COUNTER)
    for number in range(_STILL_PASSES + 2):
        moves.put(number)
        take(files, table)
    still.put(1)
    late = 0
    for number in range(100, 100 + _TURNS):
        moves.put(number)
        take(files, table)
        assert moves.series.value == number
        late += still.series.value == 0
    assert 0 <= late < _TURNS
    assert still.series.value == 1
    # It has moved: read in every pass again.
    for number in range(2, 2 + _TURNS):
        still.put(number)
        take(files, table)
        assert still.series.value == number


def test_traffic_counters_are_never_still(tmp_path: Path, files: CounterFiles, table: SeriesTable):
    traffic = Counter(tmp_path / "words", files, table, catalog.NETWORK_IO)
    for _ in range(_STILL_PASSES + _TURNS):
        take(files, table)
    traffic.put(5)
    take(files, table)
    assert traffic.series.value == 5


def test_a_rest_without_an_interval_is_refused(files: CounterFiles):
    with pytest.raises(ValueError, match="interval"):
        files.rest(time.monotonic() + 1, 0)
