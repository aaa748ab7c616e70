"""The source ``dcgm``: a client of the DCGM host engine that runs on this node, where one does.

It adds what the driver alone does not tell (NVSwitches, memory bandwidth before Hopper, CPUs of Grace) and
stands in for what the driver does not tell here. See ledger/providers.py for who delivers what.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fabrictap import config
from fabrictap.ledger import Ledger
from fabrictap.series import SeriesTable
from fabrictap.sources import SourceAbsent, SourceUnavailable
from fabrictap.sources.dcgm.figures import Figures
from fabrictap.sources.dcgm.session import Sample, Session


class Dcgm:
    """See :class:`fabrictap.sources.Source` for who may block where."""

    name = "dcgm"

    def __init__(
        self,
        settings: config.Dcgm,
        series: SeriesTable,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval = float(settings.interval)
        self.deadline = max(10.0, settings.timeout + 5.0)
        self.waited = 0.0
        self.errors: dict[str, int] = {}
        self._settings = settings
        self._clock = clock
        self._figures = Figures(series, ledger)
        self._session: Session | None = None
        #: Whether an engine was there once: one that was and is not is missed, whatever was asked for.
        self._seen = False
        self._lost: str | None = None

    def open(self) -> None:
        """Connect. Raises SourceUnavailable, or SourceAbsent where nothing is there and nothing is missed."""
        self._lost = None
        self.interval = float(self._settings.interval)
        self._session = Session(self._settings, self.errors)
        try:
            self._session.open(self._clock())
        except SourceAbsent as error:
            if self._seen:
                raise SourceUnavailable(str(error)) from None
            raise
        self._seen = True

    def sample(self) -> Sample:
        """Read all there is. A lost connection is a sample, once, so that what it had is taken out."""
        if self._lost is not None:
            raise SourceUnavailable(self._lost)
        assert self._session is not None
        sample = self._session.read(self._clock())
        self._lost = sample.lost
        self.interval = 0.0 if sample.lost is not None else float(self._settings.interval)
        return sample

    def fold(self, sample: Sample, now_ns: int) -> None:
        """Put a sample into the series."""
        self._figures.fold(sample, now_ns)

    def hung(self, now_ns: int) -> None:
        """A call hangs: what was known is not known any more. Under the node's lock."""
        self._figures.give_up("hung", now_ns)

    def close(self) -> None:
        """Take back everything at the engine and disconnect."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
