"""A pytest plugin: the nvml source on the stand-in, a node that the test moves, both on the node's clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.nvml import builder
from doubles.nvml.driver import Node
from fabrictap.catalog import Metric
from fabrictap.config import Config
from fabrictap.ledger import Ledger
from fabrictap.series import Series, SeriesTable
from fabrictap.sources.nvml.source import Nvml
from support import require


class Watched:
    """A stand-in's node and the source that reads it, both on the node's clock."""

    def __init__(self, built: builder.Built, directory: Path, profile: str, **settings: object) -> None:
        self.node = Node.create(
            built, directory / f"node-{profile}-{len(list(directory.iterdir()))}", profile
        )
        os.environ[builder.VARIABLE] = str(self.node.path)
        config = Config()
        config.sources.nvml.library = str(settings.pop("library", built.library))
        sysfs = str(settings.pop("sysfs", directory / "no-sysfs"))
        for name, value in settings.items():
            setattr(config.sources.nvml, name, value)
        self.table = SeriesTable(config.limits.series)
        self.ledger = Ledger(config)
        self.source = Nvml(
            config.sources.nvml,
            self.table,
            self.ledger,
            sysfs,
            clock=lambda: self.node.now_ns / 1e9,
            wall=lambda: self.node.now_ns,
        )
        self.source.wait = 0.05
        # on a busy machine the stand-in may take longer than its clock says
        self.source.limit = self.source.fast.limit = 10.0
        self.source.fast.share = float("inf")

    def slow(self, seconds: float = 0.0) -> None:
        self.node.advance(seconds)
        self.source.fold(self.source.sample(), self.node.now_ns)

    def fast(self, seconds: float = 0.1) -> None:
        self.node.advance(seconds)
        self.source.read_counters()
        self.source.fast.fold(self.node.now_ns)

    def start(self) -> None:
        """Open, one slow sample, and as many fast ones as it takes to settle what is asked for."""
        self.source.open()
        self.slow()
        self.fast()
        self.fast()

    def find(self, metric: Metric, **attributes: object) -> list[Series]:
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        return [
            series
            for series in self.table
            if series.metric is metric and not series.ended and wanted.items() <= series.attributes.items()
        ]

    def value(self, metric: Metric, **attributes: object) -> int | float:
        (found,) = self.find(metric, **attributes)
        assert isinstance(found.value, (int, float))
        return found.value

    def values(self, metric: Metric, *by: str, **attributes: object) -> dict[object, object]:
        """Value by one attribute, or by several as a tuple."""
        keys = [name.replace("__", ".") for name in by]
        return {
            tuple(one.attributes[key] for key in keys)
            if len(keys) > 1
            else one.attributes[keys[0]]: one.value
            for one in self.find(metric, **attributes)
        }

    def gpu(self, index: int) -> str:
        return next(gpu.id for gpu in self.ledger.gpus if gpu.index == index)

    def close(self) -> None:
        self.source.close()
        self.source.fast.close()
        os.environ.pop(builder.VARIABLE, None)
        self.node.close()


@pytest.fixture(scope="session")
def built_nvml(tmp_path_factory: pytest.TempPathFactory) -> builder.Built:
    """The compiled stand-ins."""
    require("cc", not builder.missing(), builder.missing())
    return builder.build(tmp_path_factory.mktemp("nvml-double"))


@pytest.fixture
def watch(built_nvml: builder.Built, tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Makes watched nodes: ``watch(profile, **settings of sources.nvml)``; they are closed after the test."""
    made: list[Watched] = []

    def make(profile: str, **settings: object) -> Watched:
        made.append(Watched(built_nvml, tmp_path, profile, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
