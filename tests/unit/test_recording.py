"""Reading a ring file from another process: living, ended, dead, damaged."""

import gc
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

import rings
from fabrictap import catalog
from fabrictap.ext import layout
from fabrictap.ext.ring import Histogram
from fabrictap.view.recording import CounterCell, GaugeCell, HistogramCell, Recording, RecordingError
from rings import S

PORT = {"hw.id": "mlx5_0/1"}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "ring")


def one(recording, metric):
    (found,) = recording.series(lambda name: name.name == metric.name)
    return found


def cells(recording, metric):
    return recording.cells(one(recording, metric), recording.rows())


def test_what_is_read_is_what_was_written(path):
    ring, table = rings.make(path, now_ns=100 * S)
    io = table.series(catalog.NETWORK_IO, PORT, 100 * S)
    up = table.series(catalog.NETWORK_UP, PORT, 100 * S)
    duration = table.series(catalog.SAMPLE_INTERVAL, {"fabrictap.source": "verbs"}, 100 * S)
    sizes = table.series(catalog.VERBS_MESSAGE_SIZE, {"rdma.qp.number": 17}, 100 * S)
    ring.tick(101 * S)
    io.observe(1000, 101 * S)
    io.observe(1500, 101 * S + S // 2)
    up.set(1, 101 * S)
    duration.set(0.5, 101 * S)
    duration.set(0.25, 102 * S)
    sizes.record(4096, 102 * S)
    ring.tick(102 * S)
    io.observe(1600, 102 * S + S // 2)
    with Recording.open(path) as recording:
        assert recording.about.resource["host.name"] == "node1"
        rows = recording.rows()
        assert [(row.number, row.start_ns, row.end_ns) for row in rows] == [
            (1, 100 * S, 101 * S),
            (2, 101 * S, 102 * S),
        ]
        assert recording.rows(101 * S) == rows[1:]
        assert cells(recording, catalog.NETWORK_IO) == [CounterCell(0, 0.0), CounterCell(500, 1000.0)]
        assert cells(recording, catalog.NETWORK_UP) == [None, GaugeCell(1, 1, 1)]
        assert cells(recording, catalog.SAMPLE_INTERVAL) == [None, GaugeCell(0.25, 0.25, 0.5)]
        assert cells(recording, catalog.VERBS_MESSAGE_SIZE) == [HistogramCell(0, 0), HistogramCell(1, 4096)]
        counter = one(recording, catalog.NETWORK_IO)
        assert (counter.value, counter.row_delta, counter.attributes) == (1600, 100, PORT)
        assert one(recording, catalog.SAMPLE_INTERVAL).value == 0.25
        histogram = one(recording, catalog.VERBS_MESSAGE_SIZE).value
        assert isinstance(histogram, Histogram)
        assert (histogram.count, histogram.sum, sum(histogram.buckets)) == (1, 4096, 1)
        assert recording.unreadable == 0


def test_rows_that_were_overwritten_are_gone_and_the_others_in_order(path):
    ring, table = rings.make(path, rows=4, now_ns=0)
    io = table.series(catalog.NETWORK_IO, PORT, 0)
    for tick in range(1, 11):
        io.add(tick, tick * S)
        ring.tick(tick * S)
    with Recording.open(path) as recording:
        assert [row.number for row in recording.rows()] == [7, 8, 9, 10]
        assert [cell.delta for cell in cells(recording, catalog.NETWORK_IO)] == [7, 8, 9, 10]


def test_a_row_that_is_overwritten_while_it_is_read_has_no_cells(path):
    ring, table = rings.make(path, rows=4, now_ns=0)
    io = table.series(catalog.NETWORK_IO, PORT, 0)
    for tick in range(1, 5):
        io.add(tick, tick * S)
        ring.tick(tick * S)
    with Recording.open(path) as recording:
        entry, rows = one(recording, catalog.NETWORK_IO), recording.rows()
        ring.tick(5 * S)
        assert [cell and cell.delta for cell in recording.cells(entry, rows)] == [None, 2, 3, 4]


def test_cells_of_a_slot_that_another_series_has_now_are_not_told(path):
    ring, table = rings.make(path, now_ns=0, grace_ns=0)
    old = table.series(catalog.NETWORK_IO, PORT, 0)
    old.add(5, 1)
    ring.tick(S)
    with Recording.open(path) as recording:
        before = one(recording, catalog.NETWORK_IO)
        table.end(old)
        ended = one(recording, catalog.NETWORK_IO)
        assert ended.ended
        assert recording.cells(ended, recording.rows()) == [CounterCell(5, 5.0)]
        table.remove(old, 2 * S)
        ring.tick(2 * S)
        # The lowest free slots are taken first, so that this takes some.
        while (new := table.series(catalog.NETWORK_IO, {"n": len(table)}, 3 * S)).slot != old.slot:
            pass
        new.add(7, 3 * S)
        ring.tick(3 * S)
        rows = recording.rows()
        assert recording.cells(before, rows) == [None] * 3
        assert recording.cells(ended, rows) == [None] * 3
        (now,) = (entry for entry in recording.series() if entry.slot == new.slot)
        assert recording.cells(now, rows) == [None, None, CounterCell(7, 7.0)]


def test_a_counter_that_is_real_is_read_as_such(path):
    ring, table = rings.make(path, now_ns=0)
    cpu = table.series(catalog.PROCESS_CPU, {"cpu.mode": "user"}, 0)
    cpu.add(0.25, S)
    ring.tick(S)
    with Recording.open(path) as recording:
        assert one(recording, catalog.PROCESS_CPU).value == 0.25
        assert cells(recording, catalog.PROCESS_CPU) == [CounterCell(0.25, 0.25)]


def test_connections_are_named_and_unknown_is_none(path):
    rings.make(path)
    rings.put_connection(
        path,
        0,
        posted={"rdma_write": (3, 300), "rdma_read": (2, 50), "recv": (9, 9000)},
        in_rate=5.0,
        out_rate=30.0,
    )
    blind = rings.COVERAGES.index("control_only")
    rings.put_connection(path, 1, coverage=blind, known=0, peer_gid=bytes(16), port=0, mtu_exponent=0)
    with Recording.open(path) as recording:
        seen, unseen = recording.connections()
    assert (seen.device, seen.port, seen.qpn, seen.type, seen.state) == ("mlx5_0", 1, 17, "rc", "rts")
    assert (seen.gid, seen.peer_gid, seen.peer_qpn) == ("::ffff:10.9.0.1", "::ffff:10.9.0.2", 99)
    assert (seen.in_bytes, seen.out_bytes, seen.in_rate, seen.out_rate) == (50, 300, 5.0, 30.0)
    assert seen.posted["recv"].operations == 9
    assert seen.mtu == 4096
    assert (unseen.port, unseen.mtu, unseen.pid, unseen.peer_gid, unseen.peer_qpn) == (None,) * 5
    assert (unseen.in_bytes, unseen.out_bytes, unseen.in_rate, unseen.out_rate) == (None,) * 4


def test_events_are_told_oldest_first_and_the_last_ones_only(path):
    ring, _ = rings.make(path, events=4)
    for number in range(1, 7):
        ring.event(0, number * S, pid=7, device="mlx5_0", text=f"ä{number}", peer_gid=bytes([1] * 16))
    with Recording.open(path) as recording:
        events = recording.events()
        assert [event.text for event in events] == ["ä3", "ä4", "ä5", "ä6"]
        assert {event.name for event in events} == {"fabrictap.agent.started"}
        assert (events[0].gid, events[0].peer_gid) == (None, ":".join(["101"] * 8))
        assert [event.number for event in recording.events(4 * S)] == [5, 6]


# --- half-written ---------------------------------------------------------------------------------


def test_what_a_killed_writer_left_half_written_is_left_out_and_counted(path):
    ring, table = rings.make(path, now_ns=0)
    table.series(catalog.NETWORK_IO, PORT, 0).add(1, 1)
    torn = table.series(catalog.NETWORK_IO, {"hw.id": "torn"}, 0)
    for tick in (1, 2, 3):
        ring.tick(tick * S)
    ring.event(0, S, text="whole")
    ring.event(0, S, text="torn")
    rings.put_connection(path, 0)
    rings.put_connection(path, 1, sequence=3)
    head = rings.header(path)
    rings.poke(path, "series", head["series_at"] + torn.slot * layout.SIZES["series"], sequence=3)
    # As ft_ring_tick leaves it between its two barriers, on its way to row 4.
    rings.poke(path, "row", head["rows_at"] + 4 * layout.SIZES["row"], number=0)
    rings.poke(path, "row", head["rows_at"] + 2 * layout.SIZES["row"], number=0)
    rings.poke(path, "event", head["events_at"] + 2 * layout.SIZES["event"], number=0)
    with Recording.open(path) as recording:
        assert [row.number for row in recording.rows()] == [1, 3]
        assert [entry.attributes for entry in recording.series()] == [PORT]
        assert recording.unreadable == 1
        assert len(recording.connections()) == 1
        assert recording.unreadable == 2
        assert [event.text for event in recording.events()] == ["whole"]


WRITER = """
import sys, time
import rings
from fabrictap import catalog
ring, table = rings.make(sys.argv[1], rows=32, series=256)
counters = [table.series(catalog.VERBS_IO, {"n": n}, 1) for n in range(200)]
gauges = [table.series(catalog.SAMPLE_INTERVAL, {"n": n}, 1) for n in range(50)]
print("ready", flush=True)
tick = 0
while True:
    tick += 1
    for one in counters:
        one.add(tick, tick)
    for one in gauges:
        one.set(tick, tick)
    ring.event(0, tick, value=tick, text=str(tick))
    if tick % 3 == 0:
        old = counters.pop(0)
        table.end(old)
        table.remove(old, time.time_ns())
        counters.append(table.series(catalog.VERBS_IO, {"n": 1000 + tick}, time.time_ns()))
        counters[-1].add(tick, tick)
    ring.tick(time.time_ns())
"""


@pytest.mark.parametrize("chance", range(25))
def test_after_a_kill_in_the_middle_of_writing_all_whole_rows_are_right(path, chance):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert writer.stdout.readline() == b"ready\n"
        with Recording.open(path) as recording:
            time.sleep(random.Random(chance).uniform(0.002, 0.05))
            _is_consistent(recording, 1)  # while it writes
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    with Recording.open(path) as recording:
        rows = recording.rows()
        # All but the row that was overwritten last.
        assert len(rows) >= min(recording.head, 31)
        assert rows[-1].number - recording.head in (0, 1)
        assert _is_consistent(recording, 150) > 0, (recording.head, rows, recording.series()[:3])
        before = recording.unreadable
        recording.series()
        assert recording.unreadable - before <= 1  # the one place that was being written
        assert recording.alive().state == "died"


def _is_consistent(recording, least):
    """Every cell that is told is what the writer put into that row."""
    rows = recording.rows()
    told = 0
    series = recording.series(lambda metric: metric.name == catalog.VERBS_IO.name)
    assert len(series) >= least
    for entry in series:
        for row, cell in zip(rows, recording.cells(entry, rows), strict=True):
            if cell is not None and not (row.number == entry.last_row and cell.delta == 0):
                assert cell.delta == row.number, (entry, row)
                told += 1
    for entry in recording.series(lambda metric: metric.name == catalog.SAMPLE_INTERVAL.name):
        for row, cell in zip(rows, recording.cells(entry, rows), strict=True):
            assert cell is None or cell.last == cell.high == row.number
    for event in recording.events():
        assert str(event.value) == event.text
    return told


# --- alive ----------------------------------------------------------------------------------------


def test_a_writer_is_running_stalled_ended_or_dead(path):
    ring, _ = rings.make(path, tick_ns=S // 100)
    ring.tick(time.time_ns())
    with Recording.open(path) as recording:
        assert recording.alive().state == "running"
        assert recording.alive().alive
        ring.tick(time.time_ns() - 3600 * S)
        assert recording.alive().state == "stalled"
        assert recording.alive().age == pytest.approx(3600, abs=5)
        ring.close(time.time_ns())
        assert recording.alive().state == "ended"


def test_a_writer_that_has_let_go_of_its_file_without_a_word_has_died(path):
    ring, table = rings.make(path)
    ring.tick(time.time_ns())
    with Recording.open(path) as recording:
        del ring, table
        gc.collect()
        assert recording.alive().state == "died"
        assert not recording.alive().alive


# --- files that cannot be read --------------------------------------------------------------------


def _forge(path, **fields):
    """Change the header and have its checksum right all the same."""
    rings.poke(path, "header", 0, **fields)
    checksum = zlib.crc32(Path(path).read_bytes()[: layout.CHECKED])
    rings.poke(path, "header", 0, checksum=checksum)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"version": 2}, "of version 2; this fabrictap reads version 1"),
        ({"byte_order": 0x04030201}, "another byte order"),
        ({"magic": b"ELF"}, "not a recording of fabrictap"),
        ({"size": 1 << 60}, "cut short"),
        ({"rows": 0}, "says what cannot be"),
        ({"rows": 1 << 31}, "section rows is where it cannot be|section kinds"),
        ({"series_at": 5}, "section series is where it cannot be"),
        ({"heap_size": 1 << 62}, "section heap"),
        ({"cells_at": (1 << 64) - 4096}, "section cells"),
    ],
)
def test_a_header_that_cannot_be_is_refused_with_a_word_about_it(path, fields, says):
    rings.make(path)
    _forge(path, **fields)
    with pytest.raises(RecordingError, match=says):
        Recording.open(path)


def test_a_header_whose_checksum_is_wrong_is_refused(path):
    rings.make(path)
    rings.poke(path, "header", 0, tick_ns=5)
    with pytest.raises(RecordingError, match="checksum is wrong"):
        Recording.open(path)


def test_a_file_that_is_not_one_of_ours_is_refused(tmp_path):
    for content, says in ((b"", "0 bytes"), (b"x" * 5000, "not a recording of fabrictap")):
        file = tmp_path / "file"
        file.write_bytes(content)
        with pytest.raises(RecordingError, match=says):
            Recording.open(str(file))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for what, says in (
        (fifo, "not a regular file"),
        (tmp_path, "not a regular file"),
        ("/dev/zero", "not a"),
    ):
        with pytest.raises(RecordingError, match=says):
            Recording.open(str(what))
    with pytest.raises(RecordingError, match="No such file"):
        Recording.open(str(tmp_path / "nothing"))


def test_a_link_is_not_followed(path, tmp_path):
    rings.make(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(RecordingError, match="symbolic link"):
        Recording.open(str(link))


def test_the_file_of_another_user_is_refused_unless_that_one_is_named(path):
    rings.make(path)
    with pytest.raises(RecordingError, match="only files of"):
        Recording.open(path, owners={65534})
    Recording.open(path, owners={os.getuid()}).close()


def test_a_file_that_is_cut_short_under_its_reader_is_an_error(path):
    _, table = rings.make(path)
    table.series(catalog.NETWORK_IO, PORT, 1).add(1, 1)
    with Recording.open(path) as recording:
        os.truncate(path, 100)
        for read in (recording.rows, recording.series, recording.connections, recording.events):
            with pytest.raises(RecordingError, match="cut short"):
                read()


@pytest.mark.parametrize(
    ("about", "says"),
    [(b"{", "cannot be read"), (b"[" * 10000, "cannot be read"), (b'{"metrics": 5}', "Expected `array`")],
)
def test_a_description_that_cannot_be_read_is_refused(path, about, says):
    ring, _ = rings.make(path, described=False)
    with pytest.raises(RecordingError, match="not described yet"):
        Recording.open(path)
    ring.describe(about)
    with pytest.raises(RecordingError, match=says):
        Recording.open(path)
    rings.poke(path, "header", 0, about_checksum=1)
    with pytest.raises(RecordingError, match="checksum of its description"):
        Recording.open(path)
    rings.poke(path, "header", 0, about_sequence=3)
    with pytest.raises(RecordingError, match="being written when its agent died"):
        Recording.open(path)


# --- fuzzed ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A small file with something of everything: its bytes."""
    path = tmp_path_factory.mktemp("fuzz") / "ring"
    ring, table = rings.make(path, series=8, rows=8, connections=4, events=4, now_ns=0)
    for number in range(3):
        table.series(catalog.NETWORK_IO, {"hw.id": f"mlx5_{number}/1"}, 0).add(number, 1)
        table.series(catalog.SAMPLE_INTERVAL, {"n": number}, 0).set(0.5, 1)
        table.series(catalog.VERBS_MESSAGE_SIZE, {"n": number}, 0).record(64, 1)
    for tick in range(1, 12):
        ring.tick(tick * S)
        ring.event(0, tick, text="x")
    for row in range(3):
        rings.put_connection(path, row, posted={"send": (1, 2)})
    return path.read_bytes()


def _exercise(path):
    with Recording.open(path) as recording:
        recording.alive()
        rows = recording.rows()
        for entry in recording.series():
            assert len(recording.cells(entry, rows)) == len(rows)
            assert entry.value is None or isinstance(entry.value, (int, float, Histogram))
        for connection in recording.connections():
            assert connection.in_rate is None or math.isfinite(connection.in_rate)
        recording.events()


@pytest.mark.parametrize("seed", range(8))
def test_no_damage_does_more_than_an_error(template, path, seed, monkeypatch):
    # What stays half-written is waited for; not here, for thousands of files.
    monkeypatch.setattr("fabrictap.view.recording.recording._PAUSE", 0)
    chance = random.Random(seed)
    fields = [
        (structure, offset, form)
        for structure in layout.FIELDS
        for offset, form in layout.FIELDS[structure].values()
    ]
    head = {
        name: struct.unpack_from("=" + form, template, offset)[0]
        for name, (offset, form) in layout.FIELDS["header"].items()
    }
    places = {
        "header": (0, 1),
        "row": (head["rows_at"], head["rows"]),
        "series": (head["series_at"], 192),
        "histogram": (head["histograms_at"], 3),
        "event": (head["events_at"], head["events"]),
        "connection": (head["connections_at"], 3),
    }
    live = [at for structure, at, _ in fields if structure == "header" and at >= layout.CHECKED]
    outcomes = {"read": 0, "refused": 0}
    messages = set()
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(file, template, 0)
    began = time.monotonic()
    for _ in range(300):
        undo = []
        for _ in range(chance.randint(1, 4)):
            structure, offset, form = chance.choice(fields)
            at, count = places[structure]
            at += chance.randrange(count) * layout.SIZES[structure] + offset
            size = struct.calcsize("=" + form)
            if chance.random() < 0.2:  # in the header's live part, the heap, the description
                at = chance.choice((*live, head["heap_at"] + chance.randrange(200), head["about_at"] + 5))
                size = 4
            bits = chance.choice((0, 1, 3, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            new = chance.choice((bytes([bits] * size), chance.randbytes(size), bits.to_bytes(size, "little")))
            undo.append((at, os.pread(file, size, at)))
            os.pwrite(file, new, at)
        if chance.random() < 0.7:  # damage that the checksum does not tell
            undo.append((layout.CHECKED, os.pread(file, 4, layout.CHECKED)))
            os.pwrite(
                file, zlib.crc32(os.pread(file, layout.CHECKED, 0)).to_bytes(4, "little"), layout.CHECKED
            )
        cut = chance.random() < 0.05
        if cut:
            os.ftruncate(file, chance.randrange(len(template)))
        try:
            _exercise(path)
            outcomes["read"] += 1
        except RecordingError as error:
            outcomes["refused"] += 1
            messages.add(str(error))
        for at, old in reversed(undo):
            os.pwrite(file, old, at)
        if cut:
            os.ftruncate(file, 0)
            os.pwrite(file, template, 0)
    os.close(file)
    assert min(outcomes.values()) > 30, outcomes
    assert all(message.startswith(path) and "\n" not in message for message in messages)
    assert time.monotonic() - began < 120
    _exercise(path)


def test_rates_of_connections_are_of_what_moves(path):
    ring, _ = rings.make(path, now_ns=0)
    rings.put_connection(
        path, 0, posted={"send": (1, 100), "rdma_read": (1, 30), "recv": (1, 10**6), "bind_mw": (1, 10**6)}
    )
    ring.tick(2 * S)
    with Recording.open(path) as recording:
        (connection,) = recording.connections()
    assert (connection.in_rate, connection.out_rate) == (15.0, 50.0)
    assert (connection.in_bytes, connection.out_bytes) == (30, 100)
