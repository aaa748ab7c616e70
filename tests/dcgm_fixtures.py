"""Fixtures of the DCGM tests: a stand-in of libdcgm, compiled once, and the engine behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.dcgm import double
from doubles.dcgm.node import Node
from fabrictap.ext import dcgm
from support import require


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> dict[int, Path]:
    """Major version -> the stand-in of it."""
    require("compiler", not double.missing(), double.missing())
    directory = tmp_path_factory.mktemp("dcgm")
    return {major: double.build(directory, major) for major in (3, 4)}


@pytest.fixture
def engine(libraries, tmp_path, monkeypatch) -> Iterator[double.Engine]:
    """An engine without entities. Whatever the test opened must be closed, here and there, when it ends."""
    before = dcgm.handles()
    made = double.Engine(tmp_path / "engine")
    monkeypatch.setenv(double.VARIABLE, str(made.file))
    yield made
    made.release()
    assert dcgm.handles() == before
    assert made.held() == {}
    assert {call: made.calls(call) for call in double.FORBIDDEN if made.calls(call)} == {}


@pytest.fixture
def node(engine, libraries) -> Iterator[Callable[..., Node]]:
    """Makes the node of the engine, opened and sampled once; closed when the test ends."""
    made = []

    def make(major: int = 4, **settings: object) -> Node:
        one = Node(engine, libraries[major], **settings)
        made.append(one)
        one.source.open()
        one.tick()
        return one

    yield make
    engine.release()
    for one in made:
        one.source.close()
