"""The series table."""

from fabrictap import catalog
from fabrictap.series import SeriesTable

ATTRIBUTES = {"rdma.device": "mlx5_0"}


def test_the_same_attributes_give_the_same_series():
    table = SeriesTable(10)
    one = table.series(catalog.VERBS_IO, {"a": 1, "b": "x"}, 5)
    assert table.series(catalog.VERBS_IO, {"b": "x", "a": 1}, 9) is one
    assert table.series(catalog.VERBS_OPERATIONS, {"a": 1, "b": "x"}, 9) is not one
    assert len(table) == 2


def test_the_newest_series_of_a_full_table_is_refused_counted_and_still_writable():
    table = SeriesTable(1)
    kept = table.series(catalog.VERBS_IO, {"n": 1}, 1)
    refused = table.series(catalog.VERBS_IO, {"n": 2}, 1)
    refused.add(5, 2)
    assert list(table) == [kept]
    assert table.refused == 1


def test_a_removed_refused_series_does_not_take_another_one_along():
    table = SeriesTable(1)
    kept = table.series(catalog.VERBS_IO, {"n": 1}, 1)
    table.remove(table.series(catalog.VERBS_IO, {"n": 2}, 1))
    assert list(table) == [kept]


def test_an_ended_series_that_comes_back_starts_anew_even_in_a_full_table():
    table = SeriesTable(1)
    old = table.series(catalog.VERBS_IO, ATTRIBUTES, 1)
    old.add(7, 2)
    table.end(old)
    new = table.series(catalog.VERBS_IO, ATTRIBUTES, 3)
    assert (new is not old, new.value, new.start_ns) == (True, None, 3)
    table.remove(old)
    assert list(table) == [new]


def test_the_version_changes_when_a_series_comes_or_goes_and_not_with_its_values():
    table = SeriesTable(10)
    series = table.series(catalog.VERBS_IO, ATTRIBUTES, 1)
    version = table.version
    series.add(1, 2)
    table.series(catalog.VERBS_IO, ATTRIBUTES, 3)
    assert table.version == version
    table.end(series)
    table.remove(series)
    assert table.version > version
    assert len(table) == 0


def test_a_counter_that_falls_was_reset_after_its_last_observation():
    series = SeriesTable(1).series(catalog.NETWORK_IO, ATTRIBUTES, 10)
    series.observe(100, 20)
    series.observe(150, 30)
    assert (series.value, series.start_ns) == (150, 10)
    series.observe(3, 40)
    assert (series.value, series.start_ns, series.time_ns) == (3, 30, 40)


def test_adding_starts_from_nothing():
    series = SeriesTable(1).series(catalog.VERBS_IO, ATTRIBUTES, 10, start_ns=4)
    series.add(2, 20)
    series.add(3, 30)
    assert (series.value, series.start_ns, series.time_ns) == (5, 4, 30)


def test_what_is_told_of_refused_counters_again_and_again_is_not_added_up():
    table = SeriesTable(1)
    table.series(catalog.VERBS_IO, {"n": 1}, 1)
    for now in range(2, 12):  # as the agent's own counters are: asked for at each export
        table.series(catalog.SOURCE_ERRORS, {"n": 2}, now).observe(1000, now)
        table.series(catalog.PROCESS_CPU, {"n": 3}, now).set(50.0, now)
    kept = table.series(catalog.SOURCE_ERRORS, {"n": 4}, 12)
    for now, count in ((12, 70), (13, 75), (14, 2)):
        kept.observe(count, now)
    overflow = {series.metric.name: series for series in table.take_new() if "otel" in str(series.attributes)}
    assert overflow["fabrictap.source.errors"].value == 5 + 2
    assert not overflow["process.cpu.time"].known


def test_a_clock_that_is_set_back_makes_no_rate():
    table = SeriesTable(4)
    series = table.series(catalog.NETWORK_IO, ATTRIBUTES, 10**12)
    table.ring.interval(10**12)
    table.ring.tick(10**12)
    series.add(1000, 10**12 - 10**9)
    table.ring.tick(10**12 - 10**9)
    table.ring.interval(10**12 - 10**9)
    assert (series.average, series.peak) == (0, 0)
    series.add(1000, 10**12 + 10**9)
    table.ring.tick(10**12 + 10**9)
    table.ring.interval(10**12 + 10**9)
    assert (series.average, series.peak) == (1000, 1000)
