"""``fabrictap top`` on a terminal: keys, sizes, signals, an agent that dies and comes again."""

import os
import signal
import subprocess
import sys
import time

import pytest

from simulated_agent import Agent
from terminal import Terminal

TOP = [sys.executable, "-m", "fabrictap", "top", "--interval", "200ms", "--file"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    made = Agent(tmp_path_factory.mktemp("top") / "ring", "hgx-h100", 5)
    yield made
    made.kill()


def cell(terminal, line, word):
    """The style of the first letter of ``word`` in a line of the screen."""
    column = terminal.screen.display[line].index(word)
    return terminal.screen.buffer[line][column]


def test_the_overview_fills_a_small_terminal_and_is_left_as_it_was(agent):
    with Terminal([*TOP, agent.path]) as terminal:
        terminal.until("? help  q quit", "the last line")
        lines = terminal.screen.display
        assert lines[0].startswith(" fabrictap top  simulated-hgx-h100  running, tick")
        assert lines[1].startswith("SIMULATED NODE")
        assert "NVLink in" in lines[2]
        assert "dark in" in lines[3]
        # The last line is painted last.
        for head in ("GPU STATE BUSY MEM", "PORT", "PROCESS", "FINDINGS"):
            assert head in terminal.text
        assert "more: key 2" in terminal.text
        assert cell(terminal, 0, "fabrictap").reverse
        assert cell(terminal, 1, "SIMULATED").fg == "brown"
        terminal.type("q")
        assert terminal.end() == 0
        assert terminal.restored


def test_pages_are_a_key_away(agent):
    with Terminal([*TOP, agent.path], 120, 40) as terminal:
        terminal.until("overview 1/7", "the overview")
        for key, seen in (
            ("2", "gpus 2/7"),
            ("3", "links 3/7"),
            ("\t", "ports 4/7"),
            ("\t", "flows 5/7"),
            ("\x1b[Z", "ports 4/7"),
            ("7", "MEMORY REGISTERED"),
            ("6", "findings 6/7"),
        ):
            terminal.type(key)
            terminal.until(seen, f"the page of {key!r}")
        terminal.type("?")
        terminal.until("turn the order round", "the help")
        terminal.type("x")
        terminal.until("findings 6/7", "the page again")


def test_rows_are_sorted_filtered_and_scrolled(agent):
    def column(name, width):
        """The cells below a head."""
        lines = terminal.screen.display
        number, at = next((n, line.index(name)) for n, line in enumerate(lines) if name in line)
        return [line[at : at + width].strip() for line in lines[number + 1 : -1] if line.strip()]

    with Terminal([*TOP, agent.path, "--page", "flows", "--sort", "process"], 160, 50) as terminal:
        terminal.until("PROCESS▲", "sorted by the process")
        terminal.until(lambda: len(column("PROCESS▲", 22)) == 36, "all flows")
        names = [process.partition("/")[2] for process in column("PROCESS▲", 22)]
        assert names == sorted(names)
        terminal.type("r")
        terminal.until("PROCESS▼", "the other way round")
        wanted = sorted(names)[::-1]
        terminal.until(
            lambda: [process.partition("/")[2] for process in column("PROCESS▼", 22)] == wanted,
            "the rows too",
        )
        terminal.type(">")
        terminal.until("WORKLOAD▲", "sorted by the next column")
        terminal.type("/KV-read")
        terminal.until("filter: KV-read_", "the filter while it is typed")
        terminal.type("X\x7f\r")
        terminal.until("filter 'KV-read'", "the filter")
        terminal.until(lambda: len(column("PROCESS", 22)) == 1, "one flow")
        assert "sim-kv-reader" in terminal.text
        terminal.type("\x1b")
        terminal.until(lambda: len(column("PROCESS", 22)) == 36, "all flows again")
        terminal.resize(160, 20)
        terminal.until("lines 1-", "a part of them")
        first = column("PROCESS", 22)[0]
        terminal.type("\x1b[6~")
        terminal.until(lambda: "lines 1-" not in terminal.text and "lines" in terminal.text, "the next part")
        terminal.type("\x1b[H")
        terminal.until(lambda: "lines 1-" in terminal.text and column("PROCESS", 22)[0] == first, "the first")


def test_units_change_and_the_picture_can_be_held(agent):
    with Terminal([*TOP, agent.path]) as terminal:
        terminal.until("B/s", "bytes")
        terminal.type("u")
        terminal.until("bit/s", "bits")
        terminal.type("p")
        terminal.until("PAUSED", "the picture is held")
        while terminal.read(0.3):
            pass
        held = terminal.text
        terminal.read(1.5)
        assert terminal.text == held
        terminal.type("p")
        terminal.until(lambda: terminal.screen.display[0] != held.splitlines()[0], "it goes on")


def test_another_size_is_filled_at_once(agent):
    with Terminal([*TOP, agent.path]) as terminal:
        terminal.until("more: key 2", "part of the GPUs")
        terminal.resize(200, 60)
        terminal.until("LINKS", "more columns")
        terminal.until(lambda: "more: key 2" not in terminal.text, "all GPUs")
        terminal.until(lambda: terminal.screen.display[0].endswith("Z "), "the whole width is used")
        terminal.resize(40, 10)
        terminal.until("40x10 is too small: 72x12 at least", "that it is too small")
        terminal.resize(80, 24)
        terminal.until("more: key 2", "as before")


@pytest.mark.parametrize(
    ("options", "environment"),
    [(("--no-color",), {}), ((), {"NO_COLOR": "1"})],
    ids=["option", "variable"],
)
def test_without_colours_what_matters_is_bold(agent, options, environment):
    with Terminal([*TOP, agent.path, *options], **environment) as terminal:
        terminal.until("SIMULATED NODE", "the page")
        assert cell(terminal, 1, "SIMULATED").bold
        colours = {one.fg for line in terminal.screen.buffer.values() for one in line.values()}
        assert colours == {"default"}


def test_without_unicode_all_is_ascii(agent):
    with Terminal([*TOP, agent.path], LC_ALL="", LANG="C", LC_CTYPE="") as terminal:
        terminal.until("? help  q quit", "the page")
        terminal.type("q")
        terminal.end()
        assert terminal.said.isascii()


def test_a_dumb_terminal_gets_page_after_page(agent):
    with Terminal([*TOP, agent.path], TERM="dumb") as terminal:
        terminal.until(lambda: terminal.said.count(b"fabrictap top  simulated") >= 2, "two pages")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        assert b"\x1b" not in terminal.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(agent, number):
    with Terminal([*TOP, agent.path]) as terminal:
        terminal.until("? help  q quit", "the page")
        terminal.process.send_signal(number)
        assert terminal.end() == 0
        assert terminal.restored


def test_a_stop_gives_the_terminal_back_and_going_on_takes_it_again(agent):
    # A shell with job control around it: a process without one is not stopped by the terminal.
    script = (
        f"set -m; {' '.join(map(str, TOP))} {agent.path}; echo stopped; stty -a; fg >/dev/null; echo over"
    )
    with Terminal(["bash", "--norc", "-c", script]) as terminal:
        terminal.until("? help  q quit", "the page")
        terminal.type("\x1a")
        terminal.until(lambda: b"stopped" in terminal.said, "it has stopped")
        terminal.until(lambda: b"\x1b[?1049h" in terminal.said.rpartition(b"stopped")[2], "it goes on")
        assert b" icanon" in terminal.said.rpartition(b"stopped")[2]
        terminal.until("? help  q quit", "the page again")
        terminal.type("q")
        terminal.until(lambda: b"over" in terminal.said, "it ends")
        terminal.end()
        assert terminal.restored


def test_a_fault_leaves_the_terminal_as_it_was(agent, tmp_path):
    program = (
        "import sys; from fabrictap.view.top import page; from fabrictap import cli\n"
        "def frame(*_, **__): raise ZeroDivisionError('on purpose')\n"
        "page.frame = frame\n"
        f"sys.exit(cli.main(['top', '--file', {str(agent.path)!r}]))"
    )
    with Terminal([sys.executable, "-c", program]) as terminal:
        assert terminal.end() == 70
        assert terminal.restored
        assert b"this should not have happened: ZeroDivisionError" in terminal.said.rpartition(b"1049l")[2]


def test_a_terminal_that_goes_away_ends_it(agent):
    terminal = Terminal([*TOP, agent.path])
    terminal.until("? help  q quit", "the page")
    os.close(terminal._theirs)
    os.close(terminal._ours)
    try:
        assert terminal.process.wait(10) == 0
    finally:
        terminal.process.kill()


def test_a_dead_agent_is_stale_and_a_new_one_is_taken(tmp_path):
    first = Agent(tmp_path / "ring", "l40s", 3)
    second = None
    try:
        with Terminal([*TOP, first.path], 100, 30) as terminal:
            terminal.until("running, tick", "the agent runs")
            assert "STALE" not in terminal.text
            first.kill()
            terminal.until("STALE: no agent writes this file", "that it is dead")
            terminal.until(lambda: "the agent has died" in terminal.screen.display[-1], "the news")
            assert "mlx5_0/1" in terminal.text, "what it saw last stays"
            second = Agent(tmp_path / "ring", "gb200", 3)
            terminal.until(f"the agent was started anew (pid {second.process.pid})", "the new agent")
            terminal.until("simulated-gb200", "the new node")
            terminal.until(lambda: "STALE" not in terminal.text, "that it is alive")
            second.stop()
            terminal.until("STALE: the agent has ended", "that it has ended")
            terminal.type("q")
            assert terminal.end() == 0
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_it_costs_little(agent):
    with Terminal([*TOP[:-3], "--file", agent.path], 120, 40) as terminal:
        terminal.until("? help  q quit", "the page")
        began, spent = time.monotonic(), cpu(terminal.process.pid)
        terminal.until(lambda: time.monotonic() > began + 6, "six seconds")
        share = (cpu(terminal.process.pid) - spent) / (time.monotonic() - began)
        # A look a second, and never more than a tenth of a core.
        assert share < 0.15


def cpu(pid):
    return time.clock_gettime((~pid << 3) | 2)


def test_a_missing_recording_is_one_line(tmp_path):
    done = subprocess.run([*TOP, tmp_path / "none"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr
