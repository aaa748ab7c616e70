"""What a look at a tree goes by: any change is seen, and nothing else."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fabrictap.ext.traces import Traces


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "names").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "names" / name).write_text("1\n")
    (tmp_path / "gid").write_text("fe80::1\n")
    return tmp_path


@pytest.fixture
def traces(tree: Path) -> Traces:
    made = Traces()
    made.identity(tree / "names")
    made.directory(tree / "names")
    made.directory(tree / "absent")
    made.content(tree / "gid")
    made.content(tree / "none")
    return made


def made_again(tree: Path) -> None:
    shutil.copytree(tree / "names", tree / "copy")
    (tree / "names").rename(tree / "away")
    (tree / "copy").rename(tree / "names")


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "names/d").write_text(""),
        lambda tree: (tree / "names/a").unlink(),
        lambda tree: (tree / "names/a").rename(tree / "names/A"),
        lambda tree: (tree / "absent").mkdir(),
        lambda tree: shutil.rmtree(tree / "names"),
        lambda tree: (tree / "gid").write_text("fe80::2\n"),
        lambda tree: (tree / "gid").write_text("fe80::1\n\n"),
        lambda tree: (tree / "gid").unlink(),
        lambda tree: (tree / "none").write_text(""),
        made_again,
    ],
    ids=["more", "fewer", "renamed", "appeared", "gone", "other", "longer", "removed", "empty", "again"],
)
def test_a_change_is_seen(tree: Path, traces: Traces, change: Callable[[Path], object]):
    assert traces.still_hold()
    change(tree)
    assert not traces.still_hold()


def test_what_is_not_traced_may_change(tree: Path, traces: Traces):
    (tree / "names/a").write_text("2\n")
    (tree / "other").write_text("x")
    assert traces.still_hold()
    assert len(traces) == 5


def test_a_fifo_does_not_hold_it(tmp_path: Path):
    os.mkfifo(tmp_path / "gid")
    traces = Traces()
    traces.content(tmp_path / "gid")
    assert traces.still_hold()


def test_a_directory_is_looked_at_up_to_the_limit(tmp_path: Path):
    for number in range(50):
        (tmp_path / str(number)).touch()
    traces = Traces(most=10)
    traces.directory(tmp_path)
    assert traces.still_hold()


def test_looking_keeps_nothing_open(tree: Path, traces: Traces):
    gc.collect()
    before = descriptors()
    for _ in range(100):
        assert traces.still_hold()
    assert descriptors() == before
