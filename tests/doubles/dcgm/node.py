"""The dcgm source on a made-up engine, with its series and ledger, and what such an engine may have."""

from __future__ import annotations

import threading
from pathlib import Path

from doubles.dcgm import double
from doubles.dcgm.double import GPU
from fabrictap.catalog import Metric
from fabrictap.config import Config, Dcgm
from fabrictap.ledger import Ledger
from fabrictap.ledger.providers import Figure
from fabrictap.series import Series, SeriesTable
from fabrictap.sources.dcgm import source
from fabrictap.sources.dcgm.fields import SETS
from fabrictap.sources.dcgm.session import Sample


class Node:
    """The source on an engine, with its series and ledger, and a clock that the test moves."""

    def __init__(self, engine: double.Engine, library: Path, **settings: object) -> None:
        self.engine = engine
        self.config = Config()
        self.config.sources.dcgm = Dcgm(library=str(library), **settings)
        self.series = SeriesTable(self.config.limits.series)
        self.ledger = Ledger(self.config)
        self.now = 100.0
        #: Guards series and ledger where a runner drives the source.
        self.lock = threading.Lock()
        self.source = source.Dcgm(self.config.sources.dcgm, self.series, self.ledger, clock=lambda: self.now)

    def tick(self, seconds: float = 10.0) -> Sample:
        self.now += seconds
        sample = self.source.sample()
        self.source.fold(sample, int(self.now * 1e9))
        return sample

    def find(self, metric: Metric, **attributes: object) -> list[Series]:
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        with self.lock:
            return [
                series
                for series in self.series
                if series.metric is metric
                and not series.ended
                and wanted.items() <= series.attributes.items()
            ]

    def value(self, metric: Metric, **attributes: object) -> object:
        (found,) = self.find(metric, **attributes)
        return found.value

    def live(self) -> list[Series]:
        return [series for series in self.series if not series.ended]

    def reason(self, gpu: str, metric: Metric | str, part: str | int | None = None) -> str | None:
        """Why DCGM does not deliver a figure; None while it does."""
        name = metric if isinstance(metric, str) else metric.name
        offers = self.ledger.providers._figures[Figure(gpu, name, part)]
        reasons = [offer.reason for offer in offers if offer.provider == "dcgm"]
        return None if None in reasons else reasons[0]


def hopper(engine: double.Engine, entity: int = 0, uuid: str = "GPU-h0") -> None:
    """A GPU of Hopper's kind with a value for every field that is read; n reads n, or n/1e5."""
    engine.gpu(entity, uuid)
    fill(engine, GPU, entity)
    engine.set(GPU, entity, 230, 0, status=-14)


def fill(engine: double.Engine, group: int, entity: int) -> None:
    ratios = {1005, 1110, 1130, 1216, 1218}
    for each in SETS[group]:
        for field in each.fields:
            engine.set(group, entity, field, field / 1e5 if field in ratios else field)
