"""flows, snapshot and recorder, as people and programs read them: in a process of their own."""

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time

import pytest

import rings
from command import fabrictap
from fabrictap import catalog, cli
from fabrictap.view import flows, text
from rings import S

GID = bytes.fromhex("fe80000000000000506b4b0300a1b2c3")
PORT = {"hw.id": "mlx5_0/1", "hw.name": "ib0"}


@pytest.fixture
def ring(tmp_path):
    """(path, ring, table) of a living recording of ten ticks with three connections."""
    path = tmp_path / "ring"
    now = time.time_ns() - 100 * S
    memory, table = rings.make(path, rows=32, now_ns=now)
    io_ = table.series(catalog.NETWORK_IO, PORT | {"network.io.direction": "receive"}, now)
    up = table.series(catalog.NETWORK_UP, PORT | {"rdma.port.state": "active"}, now)
    access = {"rdma.memory_region.remote_access": "read_write", "process.pid": 7}
    table.series(catalog.MR_SIZE, access | {"process.executable.name": "a\x1b[2J"}, now).set(3 << 30, now)
    table.series(catalog.MR_COUNT, access | {"process.executable.name": "a\x1b[2J"}, now).set(12, now)
    table.series(catalog.ERRORS, PORT | {"error.type": "symbol_error"}, now).set(12, now)
    table.series(catalog.LOST, {"fabrictap.loss.reason": "buffer_full"}, now).set(4, now)
    table.series(catalog.SOURCE_UP, {"fabrictap.source": "verbs"}, now).set(0, now)
    table.series(catalog.SERIES_REFUSED, {}, now).set(0, now)
    up.set(1, now)
    for tick in range(1, 11):
        io_.observe(tick << 20, now + tick * S)
        memory.event(1, now + tick * S, severity=13, text=f"event {tick} \x1b[31m")
        memory.tick(now + tick * S)
    rings.put_connection(
        path, 0, posted={"rdma_write": (3, 3 << 20), "rdma_read": (2, 50)}, out_rate=2048.0, pid=4242
    )
    blind = rings.COVERAGES.index("control_only")
    rings.put_connection(
        path, 1, coverage=blind, process=b"evil\x1b[2J\r\nname", gid=GID, peer_gid=GID, pid=777
    )
    rings.put_connection(
        path, 2, state=2, device=b"mlx5_1", ended_ns=time.time_ns(), known=0, peer_gid=bytes(16)
    )
    return path, memory, table


@pytest.fixture
def path(ring):
    return ring[0]


def test_flows_lists_who_with_whom_and_how_much(path):
    head, one, other = fabrictap("flows", "--file", path).stdout.splitlines()
    assert head.split()[:5] == ["STATE", "TYPE", "PORT", "PROCESS", "LOCAL"]
    row = re.split(r" {2,}", one)
    assert row[:6] == ["rts", "rc", "mlx5_0/1", "4242/trainer", "10.9.0.1/17", "10.9.0.2/99"]
    assert row[6:11] == ["0 B", "2.00 KiB", "50 B", "3.00 MiB", "exact"]
    # What is not known is no zero, and what a process calls itself does nothing to the terminal.
    row = re.split(r" {2,}", other)
    assert row[3:6] == [
        r"777/evil\x1b[2J\x0d\x0aname",
        "fe80::506b:4b03:a1:b2c3/18",
        "fe80::506b:4b03:a1:b2c3/99",
    ]
    assert row[6:11] == ["-", "-", "-", "-", "control_only"]


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_flows_fits_into_the_terminal(path, columns):
    lines = fabrictap("flows", "--all", "--file", path, COLUMNS=str(columns)).stdout.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= columns
    assert all(line.rstrip() == line for line in lines)
    assert ("COVERAGE" in lines[0]) == (columns >= 100)
    assert all("/99" in line for line in (lines[1], lines[3]))


@pytest.mark.parametrize(
    ("arguments", "qpns"),
    [
        ((), [17, 18]),
        (("--all",), [17, 19, 18]),  # what is not known comes last
        (("--pid", "4242"), [17]),
        (("--process", "ev*"), [18]),
        (("--device", "mlx5_1", "--all"), [19]),
        (("--device", "mlx5_0/1"), [17, 18]),
        (("--peer", "10.9.0.2"), [17]),
        (("--peer", "10.9.0.2/99"), [17]),
        (("--peer", "fe80:*"), [18]),
        (("--state", "rt?"), [17, 18]),
        (("--state", "ended", "--all"), [19]),
        (("--type", "ud"), []),
        (("--coverage", "control_only"), [18]),
        (("--sort", "pid"), [18, 17]),
        (("--sort", "process"), [18, 17]),
        (("--sort", "bytes"), [17, 18]),
    ],
)
def test_flows_filters_and_sorts(path, arguments, qpns):
    lines = fabrictap("flows", "--json", "--file", path, *arguments).stdout.splitlines()
    assert [json.loads(line)["qpn"] for line in lines] == qpns


def test_flows_in_json_has_null_for_what_is_not_known(path):
    seen, blind = map(json.loads, fabrictap("flows", "--json", "--file", path).stdout.splitlines())
    assert seen["posted"] == {
        "rdma_write": {"operations": 3, "bytes": 3 << 20},
        "rdma_read": {"operations": 2, "bytes": 50},
    }
    assert (seen["in_bytes"], seen["out_bytes_per_second"], seen["agent"]) == (50, 2048.0, "stalled")
    assert (blind["in_bytes"], blind["out_bytes"], blind["in_bytes_per_second"], blind["posted"]) == (
        None,
        None,
        None,
        {},
    )


def test_flows_tells_operations_and_leaves_the_head_out(path):
    lines = fabrictap("flows", "-v", "--no-header", "--file", path).stdout.splitlines()
    assert lines[1].split() == ["rdma_write", "3", "3.00", "MiB"]
    assert lines[2].split() == ["rdma_read", "2", "50", "B"]
    assert lines[4].strip() == "operations are not seen"


def test_flows_tells_what_was_counted_in_a_part_of_the_time_with_its_share(path):
    estimated = rings.COVERAGES.index("estimated")
    written = {"posted": {"send": (3, 300)}, "coverage": estimated}
    rings.put_connection(path, 3, **written, fraction=0.0131, process=b"busy")
    rings.put_connection(path, 4, **written, fraction=0.0, process=b"unseen")
    _, one, other = fabrictap("flows", "--file", path, "--coverage", "estimated").stdout.splitlines()
    found = {re.split(r" {2,}", line)[3].partition("/")[2]: re.split(r" {2,}", line) for line in (one, other)}
    assert found["busy"][9:11] == ["300 B", "estimated 1.31 %"]
    # Not seen at all is not nothing.
    assert found["unseen"][6:11] == ["-", "-", "-", "-", "estimated 0 %"]
    lines = fabrictap("flows", "--file", path, "--coverage", "estimated", "--json").stdout.splitlines()
    told = {one["process"]: one for one in map(json.loads, lines)}
    assert told["busy"]["coverage_fraction"] == pytest.approx(0.0131)
    assert (told["unseen"]["coverage_fraction"], told["unseen"]["out_bytes"]) == (0, None)


def test_flows_watches_until_interrupted(path):
    # Whoever runs the tests in the background ignores SIGINT, and so would it.
    argv = ["env", "--default-signal=INT", sys.executable, "-m", "fabrictap", "flows"]
    argv += ["--watch", "100ms", "--file", str(path)]
    leader, follower = pty.openpty()
    watch = subprocess.Popen(argv, stdout=follower, stderr=subprocess.PIPE)
    os.close(follower)
    seen = b""
    try:
        while seen.count(b"\x1b[H\x1b[J") < 3:
            seen += os.read(leader, 65536)
        watch.send_signal(2)
        assert watch.wait(10) == 130
    finally:
        watch.kill()
        watch.stderr.close()
        os.close(leader)
    assert seen.count(b"4242/trainer") >= 2


def test_the_command_line_offers_every_way_to_sort():
    assert flows.SORTS == cli._SORTS


# --- alive, dead, never there ---------------------------------------------------------------------


@pytest.mark.parametrize("command", [("flows",), ("snapshot",), ("recorder", "dump"), ("recorder", "list")])
def test_where_no_agent_ever_ran_one_line_says_so(tmp_path, command):
    done = fabrictap(*command, "--file", tmp_path / "ring", code=1)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "does not exist: no agent has run here" in done.stderr


@pytest.mark.parametrize("command", [("flows",), ("snapshot",), ("recorder", "dump")])
def test_a_file_that_is_no_recording_is_one_line_and_no_more(tmp_path, command):
    (tmp_path / "ring").write_bytes(b"x" * 10000)
    done = fabrictap(*command, "--file", tmp_path / "ring", code=1)
    assert done.stderr == f"fabrictap: {tmp_path}/ring: not a recording of fabrictap\n"


def test_the_path_is_the_configurations_and_null_is_said(path, tmp_path):
    assert "4242/trainer" in fabrictap("flows", "--set", f"ring.path={path}").stdout
    assert "ring.path is null" in fabrictap("flows", "--set", "ring.path=null", code=2).stderr
    assert "no such user" in fabrictap("flows", "--owner", "nobody-at-all", code=2).stderr


def test_a_dead_agent_is_told_and_what_it_saw(path, tmp_path):
    dead = tmp_path / "dead"
    shutil.copy(path, dead)  # nobody holds the copy
    done = fabrictap("flows", "--file", dead)
    assert "4242/trainer" in done.stdout
    assert done.stderr.startswith("the agent died; this is what it saw last, 20")
    assert re.match(r"agent +DIED, last tick 20", fabrictap("snapshot", "--file", dead).stdout)


def test_snapshot_has_all_of_the_node(ring):
    path, memory, _ = ring
    page = fabrictap("snapshot", "--file", path).stdout
    assert page.startswith(f"agent    STALLED, pid {os.getpid()}")
    assert re.search(r"mlx5_0/1 +ib0 +active +- +1\.00 MiB +- +1\.00 MiB +- +symbol_error 12", page)
    assert "2 live (2 rc; coverage 1 control_only, 1 exact)" in page
    assert re.search(r"read_write +3\.00 GiB +12 +7/a\\x1b\[2J 3\.00 GiB", page)
    assert re.search(r"fabrictap\.record\.lost +4 +fabrictap\.loss\.reason=buffer_full", page)
    assert re.search(r"verbs +DOWN", page)
    assert "\x1b" not in page
    memory.tick(time.time_ns())
    assert fabrictap("snapshot", "--file", path).stdout.startswith("agent    running")
    memory.close(time.time_ns())
    assert fabrictap("snapshot", "--file", path).stdout.startswith("agent    ended")


def test_snapshot_in_json(path):
    picture = json.loads(fabrictap("snapshot", "--json", "--file", path).stdout)
    (port,) = picture["ports"]
    assert port["receive"] == {"bytes": 10 << 20, "rate": 1 << 20, "peak": 1 << 20, "source": "-"}
    assert (port["transmit"], port["up"], port["errors"]) == (None, True, {"symbol_error": 12})
    assert picture["connections"]["live"] == 2
    assert picture["sources"] == [{"source": "verbs", "up": False, "sample_seconds": None}]
    assert picture["agent"]["state"] == "stalled"


# --- recorder -------------------------------------------------------------------------------------


def test_list_has_all_files_the_newest_first_and_how_they_ended(path, tmp_path):
    for number in (1, 2, 10):
        shutil.copy(path, tmp_path / f"ring.{number}")
    (tmp_path / "ring.2").write_bytes(b"")
    (tmp_path / "ring.new").write_bytes(b"")
    done = fabrictap("recorder", "list", "--file", path, code=1)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        [str(path), "stalled"],
        [f"{path}.1", "died"],
        [f"{path}.2", "unreadable"],
        [f"{path}.10", "died"],
    ]
    assert lines[5] == f"{path}.2: not a recording: 0 bytes"
    first = json.loads(fabrictap("recorder", "list", "--json", "--file", path, code=1).stdout.splitlines()[0])
    assert (first["rows"], first["events"], first["pid"]) == (10, 8, os.getpid())


def test_events_are_told_in_order_and_escaped(path):
    lines = fabrictap("recorder", "events", "--file", path).stdout.splitlines()
    assert len(lines) == 8
    assert lines[-1].endswith(r"warning  fabrictap.agent.stopped  event 10 \x1b[31m")
    last = fabrictap("recorder", "events", "--since", "2s", "--json", "--file", path).stdout.splitlines()
    assert [json.loads(line)["text"][:8] for line in last] == ["event 9 ", "event 10"]


def test_dump_as_a_table_leaves_out_what_stood_still(path):
    page = fabrictap("recorder", "dump", "--file", path).stdout
    block = page[page.index("hw.network.io{") :].splitlines()
    assert block[0] == "hw.network.io{hw.id=mlx5_0/1, hw.name=ib0, network.io.direction=receive}"
    assert len([line for line in block if "+1.00 MiB  1.00 MiB/s  peak 1.00 MiB/s" in line]) == 9
    assert len([line for line in page.splitlines() if line.startswith("hw.network.up")]) == 1
    assert page.splitlines()[-1] == "1 series did nothing in this time"


def test_dump_as_csv_and_json_has_every_tick(path):
    arguments = ("recorder", "dump", "--metric", "hw.network.*", "--file", path)
    rows = list(csv.DictReader(io.StringIO(fabrictap(*arguments, "--format", "csv").stdout)))
    counted = [row for row in rows if row["metric"] == "hw.network.io"]
    assert [row["delta"] for row in counted] == ["0"] + [str(1 << 20)] * 9
    assert float(counted[-1]["rate"]) == 1 << 20
    assert json.loads(counted[0]["attributes"])["hw.id"] == "mlx5_0/1"
    assert {row["last"] for row in rows if row["metric"] == "hw.network.up"} == {"1"}
    series = [json.loads(line) for line in fabrictap(*arguments, "--format", "json").stdout.splitlines()]
    assert [len(one["rows"]) for one in series] == [10, 10]
    since = fabrictap(*arguments, "--format", "json", "--since", "3s").stdout.splitlines()
    assert [len(json.loads(line)["rows"]) for line in since] == [3, 3]


def points(page, name, kind):
    found = []
    for line in page.splitlines():
        (resource,) = json.loads(line)["resourceMetrics"]
        (metric,) = resource["scopeMetrics"][0]["metrics"]
        if metric["name"] == name:
            found += metric[kind]["dataPoints"]
    return found


def test_dump_as_otlp_rebuilds_the_sums_that_were_exported(tmp_path):
    path, now = tmp_path / "ring", 1000 * S
    memory, table = rings.make(path, rows=8, now_ns=now)
    counter = table.series(catalog.NETWORK_IO, PORT, now)
    real = table.series(catalog.PROCESS_CPU, {"cpu.mode": "user"}, now)
    sizes = table.series(catalog.VERBS_MESSAGE_SIZE, {}, now)
    expected = []
    for tick in range(1, 13):  # more than the ring has rows
        counter.observe(10**15 + tick * tick, now + tick * S)
        real.add(0.25, now + tick * S)
        sizes.record(10, now + tick * S)
        memory.tick(now + tick * S)
        expected.append(10**15 + tick * tick)
    counter.observe(10**15 + 999, now + 13 * S)  # in no row yet
    page = fabrictap("recorder", "dump", "--format", "otlp", "--file", path).stdout
    found = points(page, "hw.network.io", "sum")
    assert [int(point["asInt"]) for point in found] == expected[-8:]
    assert {point["startTimeUnixNano"] for point in found} == {str(now)}
    assert [point["timeUnixNano"] for point in found] == [str(now + tick * S) for tick in range(5, 13)]
    assert [point["asDouble"] for point in points(page, "process.cpu.time", "sum")] == [
        0.25 * tick for tick in range(5, 13)
    ]
    sums = points(page, "rdma.verbs.message.size", "histogram")
    assert [(point["count"], point["sum"]) for point in sums] == [(str(t), 10.0 * t) for t in range(5, 13)]
    peaks = points(page, "hw.network.io.rate.peak", "gauge")
    assert [point["asDouble"] for point in peaks] == [2 * tick - 1 for tick in range(5, 13)]


def test_dump_as_otlp_starts_anew_where_the_counter_was_reset(tmp_path):
    path, now = tmp_path / "ring", 1000 * S
    memory, table = rings.make(path, rows=8, now_ns=now)
    counter = table.series(catalog.NETWORK_IO, PORT, now)
    for tick, value in enumerate((100, 150, 3, 5), 1):
        counter.observe(value, now + tick * S)
        memory.tick(now + tick * S)
    page = fabrictap("recorder", "dump", "--format", "otlp", "--file", path).stdout
    found = points(page, "hw.network.io", "sum")
    assert [int(point["asInt"]) for point in found] == [0, 50, 3, 5]
    starts = [int(point["startTimeUnixNano"]) for point in found]
    assert starts == [now, now, now + 2 * S, now + 2 * S]


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0, "By", "0 B"),
        (1023, "By", "1023 B"),
        (1023.9, "By", "1.00 KiB"),
        (1536, "By/s", "1.50 KiB/s"),
        (5 << 30, "By", "5.00 GiB"),
        (250 << 40, "By", "250 TiB"),
        (999, "{packet}", "999"),
        (123456, "{packet}/s", "123 k/s"),
        (7, "{packet}/s", "7/s"),
        (0.0013, "s", "1.3ms"),
        (None, "By", "-"),
        (float("nan"), "By", "-"),
        (float("inf"), "By", "-"),
        (2**64, "By", "16.0 EiB"),
        (-5, "By", "-5 B"),
    ],
)
def test_amounts(value, unit, said):
    assert text.amount(value, unit) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0s"),
        (59, "59s"),
        (61, "1m01s"),
        (3600, "1h00m"),
        (90061, "1d01h"),
        (2.5e-7, "250ns"),
        (-3, "-3s"),
    ],
)
def test_durations(seconds, said):
    assert text.duration(seconds) == said


def test_columns_are_aligned_with_wide_and_combining_characters():
    lines = text.columns([["日本", "1"], ["abcd", "22"], ["e\u0301", "3"]], (1,))
    assert [text.width(line) for line in lines] == [8, 8, 8]
    assert text.clip("日本語", 5) == "日本…"
    assert text.plain("a\u202eb\ud800\u2028") == r"a\u202eb\ud800\u2028"
    assert text.moment(1 << 62) != text.moment(0) == "1970-01-01T00:00:00Z"
    assert text.moment((1 << 64) - 1) in ("-", text.moment((1 << 64) - 1))


def test_snapshot_has_a_line_for_each_gpu_and_says_which_links_are_down(tmp_path):
    path = tmp_path / "ring"
    now = time.time_ns()
    memory, table = rings.make(path, now_ns=now)
    parent = {"hw.id": "GPU-1"}
    named = parent | {"fabrictap.provider": "nvml"}
    of_gpu = named | {"hw.type": "gpu"}
    present = parent | {"gpu.index": 3, "hw.model": "H\x1b[2J"}
    table.series(catalog.GPU_PRESENT, present, now).set(1, now)
    table.series(catalog.GPU_PRESENT, {"hw.id": "MIG-1", "hw.parent": "GPU-1"}, now).set(1, now)
    table.series(catalog.HW_STATUS, of_gpu | {"hw.state": "degraded"}, now).set(1, now)
    table.series(catalog.GPU_POWER, of_gpu, now).set(312.5, now)
    table.series(catalog.ERRORS, of_gpu | {"error.type": "xid_79"}, now).set(2, now)
    for link, up in enumerate((1, 0, 1, 0)):
        table.series(catalog.NVLINK_UP, named | {"gpu.nvlink.link": link}, now).set(up, now)
    memory.tick(now + S)
    page = fabrictap("snapshot", "--file", path).stdout
    assert re.search(r"ports\n  none seen\n", page)  # errors of a GPU are no port's
    assert re.search(
        r"\n  3 +H\\x1b\[2J +degraded +312W +xid_79 2 +GPU-1\n  3 +MIG device +- +- +none +MIG-1\n", page
    )
    assert "  GPU 3: NVLink 1, 3 of 4 down\n" in page
    picture = json.loads(fabrictap("snapshot", "--json", "--file", path).stdout)
    assert [(gpu["gpu"], gpu["index"], gpu["parent"]) for gpu in picture["gpus"]] == [
        ("GPU-1", 3, None),
        ("MIG-1", None, "GPU-1"),
    ]
    assert picture["gpus"][0]["errors"] == {"xid_79": 2}
    assert picture["simulated"] is False
