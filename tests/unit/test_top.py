"""``fabrictap top`` without a terminal: what is read, how it fits, what keys do."""

import fcntl
import json
import os
import pty
import re
import struct
import termios
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

import rings
from command import fabrictap
from fabrictap import catalog
from fabrictap.journal import Journal
from fabrictap.view import recorder, text
from fabrictap.view.recording import Recording
from fabrictap.view.top import page, spark, state
from fabrictap.view.top.follow import Follower
from fabrictap.view.top.look import Way, total
from fabrictap.view.top.past import TICKS, Pasts
from fabrictap.view.top.read import Reader
from fabrictap.view.top.screen import Screen, has_unicode, split
from fabrictap.view.top.state import PAGES, State
from fabrictap.view.top.table import Column, Manner, Order, arrange
from rings import S
from simulated_agent import Agent

HOSTILE = {
    "control": ("evil\x1b[2J\r\nx", r"evil\x1b[2J\x0d\x0ax"),
    "turned round": ("a\u202eb\u05d0\u0627", r"a\u202eb\u05d0\u0627"),
    "piled up": ("e\u0301\u0489", r"e\u0301\u0489"),
    "wide": ("訓練", "訓練"),
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The recording of a made-up node whose agent has just ended."""
    agent = Agent(tmp_path_factory.mktemp("top") / "ring", "hgx-h100", 8)
    agent.stop()
    return agent.path


@pytest.fixture
def rdma(tmp_path):
    """(path, ring, table) of a living recording of ten ticks: a port, and connections with hostile names."""
    path = tmp_path / "ring"
    now = time.time_ns() - 10 * S
    memory, table = rings.make(path, rows=32, now_ns=now, events=16)
    port = {"hw.id": "mlx5_0/1", "hw.name": "ib0"}
    table.series(catalog.NETWORK_UP, port | {"rdma.port.state": "active"}, now).set(1, now)
    table.series(catalog.NETWORK_LIMIT, port, now).set(50 << 30, now)
    ways = [
        table.series(catalog.NETWORK_IO, port | {"network.io.direction": way}, now)
        for way in ("receive", "transmit")
    ]
    dark = table.series(catalog.PORT_DARK, {"hw.id": "mlx5_0/1", "network.io.direction": "transmit"}, now)
    posted = {"process.pid": 1000, "rdma.device": "mlx5_0", "rdma.qp.number": 17, "k8s.pod.name": "pod-a",
              "k8s.namespace.name": "train", "rdma.operation": "rdma_write"}  # fmt: skip
    writes = table.series(catalog.VERBS_IO, posted, now)
    for tick in range(1, 11):
        for way in ways:
            way.observe(tick << 30, now + tick * S)
        dark.observe(tick << 20, now + tick * S)
        writes.observe(tick * tick << 20, now + tick * S)
        memory.tick(now + tick * S)
    for row, (name, _) in enumerate(HOSTILE.values()):
        rings.put_connection(
            path,
            row,
            pid=1000 + row,
            process=name.encode(),
            posted={"rdma_write": (3, (row + 1) << 20)},
            out_rate=1024.0 * row,
            in_rate=0.0,
        )
    return path, memory, table


def look_at(path, flows=60):
    reader = Reader(Follower(str(path), recorder.opener(str(path), None)))
    try:
        return reader.look(flows)
    finally:
        reader.follower.close()


def shown(look, chosen, width, height, **manner):
    lines = page.frame(look, chosen, width, height, Manner(now_ns=look.time_ns, **manner))
    return ["".join(part for part, _ in line) for line in lines]


@pytest.mark.parametrize("ascii_only", [False, True], ids=["unicode", "ascii"])
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60), (72, 12), (500, 200)])
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("which", ["simulated", "rdma"])
def test_every_page_fits_every_size(request, which, name, size, ascii_only):
    width, height = size
    made = request.getfixturevalue(which)
    look = look_at(made if which == "simulated" else made[0])
    lines = shown(look, State(page=name), width, height, ascii_only=ascii_only)
    assert len(lines) == height
    for line in lines:
        assert text.width(line) <= width, line
        assert all(one.isprintable() for one in line), line
        assert not ascii_only or line.isascii(), line
    assert f"{name} {PAGES.index(name) + 1}/7" in lines[-1]


def test_an_overview_of_80_columns_has_a_part_of_everything(simulated):
    lines = shown(look_at(simulated), State(), 80, 24)
    assert lines[0].startswith(" fabrictap top  simulated-hgx-h100  ended, tick")
    assert lines[1].startswith("STALE: the agent has ended")
    assert lines[2].startswith("SIMULATED NODE")
    said = "\n".join(lines)
    for head in ("GPU ", "PORT ", "PROCESS", "FINDINGS"):
        assert head in said
    assert re.search(r"and \d more: key 2", said)
    assert re.search(r"and \d+ more: key 5", said)


def test_a_large_screen_has_all_of_it(simulated):
    lines = shown(look_at(simulated), State(), 200, 70)
    said = "\n".join(lines)
    assert "more: key" not in said
    assert len([line for line in lines if "NVIDIA H100" in line]) == 8
    assert len([line for line in lines if re.match(r"mlx5_\d/1 +active", line)]) == 9
    flows = [line for line in lines if "sim-trainer" in line]
    assert len(flows) == 32
    assert all("/sim-pretrain-worker-0" in line for line in flows)
    # Each link of each GPU has a sign.
    links = lines[next(n for n, line in enumerate(lines) if "LINKS" in line)].index("LINKS")
    for line in lines:
        if "NVIDIA H100" in line:
            assert re.fullmatch("[▁▂▃▄▅▆▇█]{18}", line[links : links + 18]), line


def test_a_terminal_that_is_too_small_says_so(simulated):
    look = look_at(simulated)
    assert shown(look, State(), 40, 10)[0] == "40x10 is too small: 72x12 at least"
    for width, height in ((1, 1), (10, 3), (71, 200), (400, 11)):
        lines = shown(look, State(), width, height)
        assert len(lines) == height
        assert all(len(line) <= width for line in lines)


def test_rates_peaks_and_the_past_are_those_of_the_recording(rdma):
    look = look_at(rdma[0])
    (port,) = look.ports
    assert (port.name, port.up, port.state, port.limit) == ("mlx5_0/1", True, "active", 50 << 30)
    assert port.receive.rate == pytest.approx(1 << 30)
    assert port.dark_transmit.rate == pytest.approx(1 << 20)
    assert port.dark_receive.rate is None, "never counted is not zero"
    flow = next(one for one in look.flows if one.connection.qpn == 17)
    assert flow.workload == "train/pod-a"
    # What a counter has before it is looked at for the first time is nobody's.
    assert [round(value / (1 << 20)) for value in flow.past if value is not None] == [
        0,
        *(tick * tick - (tick - 1) ** 2 for tick in range(2, 11)),
    ]


def test_hostile_names_cannot_touch_the_terminal(rdma):
    look = look_at(rdma[0])
    lines = shown(look, State(page="flows"), 200, 30)
    said = "\n".join(lines)
    for wanted in HOSTILE.values():
        assert wanted[1] in said
    ends = {text.width(line[: line.index("10.9.0.2")]) for line in lines if "10.9.0.2" in line}
    assert len(ends) == 1, "columns stand below each other, whatever the names"
    assert r"\u8a13\u7df4" in "\n".join(shown(look, State(page="flows"), 200, 30, ascii_only=True))


def test_a_filter_is_seen_while_it_is_typed(rdma):
    look = look_at(rdma[0])
    for typed in ("x", "訓練", "e\u0301", "x" * 64):
        lines = shown(look, State(filter=typed, typing=True), 72, 12)
        assert text.width(lines[-1]) == 72
        assert lines[-1].startswith(f" filter: {text.steady(typed)}"[:70])
        assert all(text.width(line) <= 72 for line in shown(look, State(filter=typed), 72, 12))


def test_bits_are_eight_times_bytes(rdma):
    look = look_at(rdma[0])
    said = "\n".join(shown(look, State(page="ports", bits=True), 120, 20, bits=True))
    assert "8.59 Gbit" in said
    assert "1.00 GiB" not in said


@pytest.mark.parametrize("life", ["died", "ended", "stalled"])
def test_an_agent_that_is_gone_is_stale(tmp_path, life):
    path = tmp_path / "ring"
    now = time.time_ns() - 300 * S
    memory, _ = rings.make(path, now_ns=now)
    memory.tick(now + S)
    if life == "ended":
        memory.close(now + 2 * S)
    elif life == "died":
        path = tmp_path / "copy"
        path.write_bytes((tmp_path / "ring").read_bytes())
    lines = shown(look_at(path), State(), 100, 20)
    assert lines[0].startswith(f" fabrictap top  node1  {life}, tick 4m5")
    assert lines[1].startswith("STALE: ")
    assert rings.RESOURCE["host.name"] in lines[0]
    said = fabrictap("top", "--once", "--json", "--file", path).stdout
    assert json.loads(said)["stale"] is True


def test_what_is_new_of_the_past_is_enough(tmp_path):
    """Looked at tick by tick, the same is known as by one who comes at the end."""
    path = tmp_path / "ring"
    now = time.time_ns() - 500 * S
    memory, table = rings.make(path, rows=256, now_ns=now)
    counter = table.series(catalog.NETWORK_IO, {"hw.id": "a/1", "network.io.direction": "receive"}, now)
    gauge = table.series(catalog.GPU_THROUGHPUT, {"hw.id": "GPU-1"}, now)
    followed = Pasts()
    with Recording.open(str(path)) as recording:
        for tick in range(1, TICKS + 30):
            counter.observe(tick * tick, now + tick * S)
            if tick > 5:
                gauge.set(tick / 2, now + tick * S)
            memory.tick(now + tick * S)
            if tick % 7 == 0 or tick > TICKS:
                entries = recording.series()
                followed.update(recording, entries, recording.rows())
        late = Pasts()
        late.update(recording, entries, recording.rows())
        for entry in entries:
            one, other = followed.of(entry), late.of(entry)
            assert list(one.rates) == list(other.rates)
            assert list(one.peaks) == list(other.peaks)
            assert len(one.rates) == TICKS
            assert one.peak(60) == other.peak(60)
        assert late.of(entries[0]).rate == pytest.approx((TICKS + 29) ** 2 - (TICKS + 28) ** 2)


def test_a_place_that_is_given_to_another_series_has_no_past(tmp_path):
    path = tmp_path / "ring"
    now = time.time_ns() - 100 * S
    memory, table = rings.make(path, now_ns=now)
    first = table.series(catalog.NETWORK_IO, {"hw.id": "a/1", "network.io.direction": "receive"}, now)
    first.observe(1, now)
    first.observe(100, now + S)
    memory.tick(now + S)
    pasts = Pasts()
    with Recording.open(str(path)) as recording:
        (entry,) = recording.series()
        pasts.update(recording, [entry], recording.rows())
        assert pasts.of(entry).rate == pytest.approx(99)
        for tick in range(2, 200):
            moment = now + tick * S
            table.end(first)
            table.remove(first, moment)
            memory.tick(moment)
            # One after the other until the place is used again.
            name = {"hw.id": f"b/{tick}", "network.io.direction": "receive"}
            first = table.series(catalog.NETWORK_IO, name, moment)
            if first.slot == entry.slot:
                break
        first.observe(0, moment)
        memory.tick(moment + S)
        fresh = next(one for one in recording.series() if not one.ended)
        assert fresh.slot == entry.slot
        assert fresh.attributes["hw.id"] == f"b/{tick}", "its name is read again, too"
        pasts.update(recording, [fresh], recording.rows())
        assert 99 not in [rate and round(rate) for rate in pasts.of(fresh).rates]


@pytest.fixture
def told(rdma):
    """(write an event of a finding, what is known of findings, the table of series)."""
    path, memory, table = rdma
    journal = Journal(memory)
    reader = Reader(Follower(str(path), recorder.opener(str(path), None)))

    def tell(event, what, severity=13, **about):
        journal.write(event, time.time_ns(), text=what, severity=severity, **about)

    def known():
        reader._slow_at = -1e9
        return [(one.kind, one.severity, one.ended) for one in reader.look(5).findings]

    yield tell, known, table, reader
    reader.follower.close()


def test_findings_are_told_and_end(told):
    tell, known, _, reader = told
    tell(catalog.FINDING_RAISED, "remote_read_egress: 3 MiB left", 17, device="mlx5_0")
    tell(catalog.FINDING_RAISED, "new_peer: a peer", 9, pid=8, process="x")
    assert known() == [("remote_read_egress", 17, False), ("new_peer", 9, False)]
    # Worse, and it is known by now who it is: the same finding.
    tell(catalog.FINDING_RAISED, "new_peer: two peers", 13, pid=8, process="x")
    assert known() == [("remote_read_egress", 17, False), ("new_peer", 13, False)]
    ended = {"pid": 7, "process": "thief", "device": "mlx5_0"}
    tell(catalog.FINDING_ENDED, "remote_read_egress: Ended: 9 MiB left", 9, **ended)
    assert known() == [("new_peer", 13, False), ("remote_read_egress", 17, True)]
    # More than the recording keeps: what was read before stays known.
    for number in range(40):
        tell(catalog.QP_CREATED, f"noise {number}", 9)
    tell(catalog.FINDING_RAISED, "link_errors: many", 13, device="mlx5_1")
    assert [one[0] for one in known()] == ["link_errors", "new_peer", "remote_read_egress"]
    lines = shown(reader.look(5), State(page="findings"), 120, 20)
    assert any(line.startswith("WARN") and "link_errors" in line for line in lines)
    assert any(line.startswith("ended") and "9 MiB left" in line and "Ended" not in line for line in lines)


def test_the_agents_own_count_of_findings_is_believed(told):
    tell, known, table, reader = told
    now = time.time_ns()
    count = table.series(
        catalog.FINDING_OPEN,
        {"fabrictap.finding.kind": "mig_changed", "fabrictap.finding.severity": "warn"},
        now,
    )
    count.set(2, now)
    assert known() == [("mig_changed", 13, False)], "told of before what is kept"
    assert "2 open, told of before" in "\n".join(shown(reader.look(5), State(), 100, 30))
    tell(catalog.FINDING_RAISED, "mig_changed: a GPU", 13)
    assert known() == [("mig_changed", 13, False)]
    count.set(0, now)
    assert known() == [("mig_changed", 13, False)], "the count is some seconds behind"
    for key, one in reader._findings._found.items():
        reader._findings._found[key] = replace(one, time_ns=one.time_ns - 100 * S)
    assert known() == [("mig_changed", 13, True)], "its end was overwritten before it was read"


def test_new_events_are_read_and_no_other(tmp_path):
    path = tmp_path / "ring"
    memory, _ = rings.make(path, events=16)
    with Recording.open(str(path)) as recording:
        after, all_read = 0, []
        for batch in (1, 3, 12, 5, 16, 40, 0, 7):
            for _ in range(batch):
                memory.event(0, time.time_ns(), text="x")
            fresh = recording.events(after=after)
            assert [one.number for one in fresh] == [
                one.number for one in recording.events() if one.number > after
            ]
            assert len(fresh) == min(batch, 16)
            all_read += fresh
            after = max([after, *(one.number for one in fresh)])
        assert after == 84


def test_a_file_that_replaces_the_recording_is_followed(tmp_path):
    path = tmp_path / "ring"
    first, _ = rings.make(path)
    follower = Follower(str(path), recorder.opener(str(path), None))
    reader = Reader(follower)
    first.tick(time.time_ns())
    assert reader.look(5).life.state == "running"
    path.rename(tmp_path / "ring.1")
    assert reader.look(5).life.state == "running", "the old one stays open"
    path.write_bytes(b"not a recording")
    assert reader.look(5).life.state == "running"
    assert "not a recording" in follower.news
    path.unlink()
    second, _ = rings.make(path)
    second.tick(time.time_ns())
    reader.look(5)
    assert follower.generation == 1
    assert "started anew" in follower.news
    follower.close()


def test_rows_are_sorted_with_what_is_unknown_last():
    columns = [
        Column("NAME", lambda one, _: one.name, lambda one: one.name),
        Column("RATE", lambda one, _: str(one.rate), lambda one: one.rate, down=True),
    ]
    rows = [
        SimpleNamespace(name=name, rate=rate)
        for name, rate in (("b", 1.0), ("a", None), ("c", 5.0), ("d", 0.0))
    ]

    def names(order, wanted=""):
        return "".join(one.name for one in arrange(columns, rows, order, wanted, Manner()))

    assert names(Order()) == "bacd"
    assert names(Order("NAME")) == "abcd"
    assert names(Order("NAME", reverse=True)) == "dcba"
    assert names(Order("RATE")) == "cbda"
    assert names(Order("RATE", reverse=True)) == "dbca"
    assert names(Order("RATE"), "5.0") == "c"
    assert names(Order(), "B") == "b"
    assert names(Order(), "nothing") == ""


def test_sums_are_of_what_is_known():
    ways = [Way(1.0, 9.0, [1.0, None, 3.0]), Way(None, None, [None, 2.0]), Way()]
    made = total(ways)
    assert (made.rate, list(made.past), made.peak) == (1.0, [1.0, None, 5.0], 5.0)
    assert total([Way(), Way()]) == Way(None, None, [])


def test_sparklines_scale_and_leave_blank_what_is_unknown():
    assert spark.line([0, None, 4, 8], 6, 8.0, ascii_only=False) == "  ▁ ▅█"
    assert spark.line([1, 2, 3, 4], 2, None, ascii_only=True) == "#@"
    assert spark.line([], 3, None, ascii_only=True) == "   "
    assert spark.line([0.0, 0.0], 2, None, ascii_only=True) == "__"
    assert spark.level(7.0, ascii_only=True) == "@"


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("q", ["q"]),
        ("\x1b", ["escape"]),
        ("\x1b[A\x1b[6~", ["up", "pagedown"]),
        ("\x1bOB\x1b[Z", ["down", "backtab"]),
        ("\x1b[1;5Ax", ["x"]),
        ("\x1b[200~", []),
        ("é\r", ["é", "enter"]),
        ("\x03", ["interrupt"]),
        ("\x1bq", ["escape", "q"]),
    ],
)
def test_keys_are_told_apart(typed, keys):
    assert split(typed) == keys


def test_the_last_letter_of_a_full_line_is_not_erased(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 3, 20, 0, 0))
    try:
        with Screen(theirs, theirs, colour=False) as screen:
            screen.paint([[("x" * 20, "")], [("訓" * 10, "bar")], [("short", "")]])
            first = os.read(ours, 4096).decode()
            screen.paint([[("x" * 20, "")], [("y" * 19, "")], [("short", "")]])
            second = os.read(ours, 4096).decode()
        assert re.findall(r"(x|訓|short)(?:\x1b\[0m)*(\x1b\[K)?(?=\x1b\[\d;1H|$)", first) == [
            ("x", ""),
            ("訓", ""),
            ("short", "\x1b[K"),
        ]
        assert second == f"\x1b[2;1H\x1b[0m{'y' * 19}\x1b[0m\x1b[K", "what has not changed is not painted"
    finally:
        os.close(ours)
        os.close(theirs)


def test_keys_change_what_was_chosen():
    chosen = State()
    for key in ("tab", "s", "s", "r", "u", "+", "/", "a", "q", "enter"):
        chosen.key(key)
    assert chosen.page == state.GPUS
    assert chosen.order() == Order("STATE", reverse=True)
    assert (chosen.bits, chosen.interval, chosen.filter, chosen.quit) == (True, 0.5, "aq", False)
    chosen.key("backtab")
    chosen.key("backtab")
    assert chosen.page == PAGES[-1]
    for key in ("s", "r", "up", "x", "9", "0", "²"):
        chosen.key(key)
    chosen.key("?")
    chosen.key("2")
    assert (chosen.page, chosen.help) == (PAGES[-1], False)
    chosen.key("q")
    assert chosen.quit


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LC_ALL": "de_DE.UTF-8"}, True),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "en_US.utf8", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_CTYPE": "C.UTF-8", "LANG": "C"}, False),
        ({"LC_ALL": "C", "LANG": "C.UTF-8"}, False),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "de_DE.UTF-8", "TERM": "linux"}, False),
        ({}, False),
    ],
)
def test_unicode_is_used_where_the_locale_says_so(environment, expected):
    assert has_unicode(environment) is expected


def test_once_prints_everything_without_control_sequences(simulated):
    said = fabrictap("top", "--once", "--file", simulated, COLUMNS="200", LANG="C.UTF-8").stdout
    assert "\x1b" not in said
    assert len([line for line in said.splitlines() if "sim-trainer" in line]) == 32
    assert "█" in said
    narrow = fabrictap("top", "--file", simulated, "--ascii", "--page", "links", COLUMNS="80").stdout
    assert narrow.isascii()
    assert max(map(len, narrow.splitlines())) <= 80
    assert len([line for line in narrow.splitlines() if " switch 0000" in line]) == 8 * 18


def test_json_has_what_the_pages_have(simulated):
    found = json.loads(fabrictap("top", "--once", "--json", "--file", simulated).stdout)
    assert (found["node"], found["simulated"], found["stale"]) == ("simulated-hgx-h100", True, True)
    assert len(found["gpus"]) == 8
    assert all(len(gpu["links"]) == 18 for gpu in found["gpus"])
    assert len(found["ports"]) == 9
    assert len(found["flows"]) == 36
    assert {flow["workload"] for flow in found["flows"]} >= {"sim-training/sim-pretrain-worker-0"}
    assert (
        found["gpus"][0]["nvlink_receive"]["ticks"][-1]
        == found["gpus"][0]["nvlink_receive"]["bytes_per_second"]
    )
    assert found["sources"] == [{"source": "simulated", "up": True, "sample_seconds": None}]


def test_a_mistake_in_its_options_is_one_line(simulated):
    for options, said in (
        (("--sort", "colour"), "--sort colour: expected one of PORT, PROCESS"),
        (("--sort", "port", "--page", "node"), "that page has no table"),
        (("--page", "gpu"), "did you mean gpus?"),
        (("--interval", "5"), "--interval: "),
    ):
        done = fabrictap("top", *options, "--file", simulated, code=2)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
