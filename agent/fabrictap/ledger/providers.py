"""Who delivers which figure of a GPU: one meaning, several providers, and never two of them at once.

A provider makes an :class:`Offer` for each figure that it may deliver and says from time to time whether it
can. Of those that can, the best is ``chosen``, and only that one writes series, named in their attribute
``fabrictap.provider``. Better: a counter than a rate, then the order of ``RANK``. An offer that is chosen no
longer is told at once, so that it ends its series before the better one makes its own.

Guarded by the node's lock, like all of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

NVML = "nvml"
GPM = "gpm"
DCGM = "dcgm"
#: Best first. NVML and GPM are the driver itself; DCGM is a daemon in between.
RANK = (NVML, GPM, DCGM)

#: Why a figure cannot be had, the one worth telling first where GPUs or links differ. All but the last few
#: are NVML's and DCGM's own codes in the words that both share.
REASONS = (
    "gpu_lost",
    "hung",
    "driver_not_loaded",
    "library_missing",
    "version_mismatch",
    "not_connected",
    "no_permission",
    "paused",
    "in_use",
    "timeout",
    "stale",
    "blank",
    "no_data",
    "not_watched",
    "function_not_found",
    "module_not_loaded",
    "error",
    "not_supported",
    "waiting",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What is offered: a metric of a GPU or MIG instance.

    ``gpu``: its hw.id. ``metric``: name in the catalog; a rate is offered under its counter's name.
    ``part``: what is delivered or not by itself, a link's number or an interconnect; None for all of it.
    """

    gpu: str
    metric: str
    part: int | str | None = None


class Offer:
    """What one provider says of one figure. Made by :meth:`Providers.offer`."""

    __slots__ = ("_lost", "_providers", "chosen", "figure", "provider", "rank", "reason")

    def __init__(
        self,
        providers: Providers,
        provider: str,
        figure: Figure,
        rank: tuple[bool, int],
        lost: Callable[[], None],
    ) -> None:
        self.provider = provider
        self.figure = figure
        self.rank = rank
        #: Whether this one writes the series.
        self.chosen = False
        #: Why the figure cannot be had from this provider, one of REASONS; None while it can.
        self.reason: str | None = "waiting"
        self._providers = providers
        self._lost = lost

    def available(self) -> bool:
        """Say that the figure can be had. Returns whether this provider is the one to write it."""
        if self.reason is not None:
            self.reason = None
            self._providers.choose(self.figure)
        return self.chosen

    def unavailable(self, reason: str) -> None:
        """Say that it cannot be had now, and why (one of REASONS): the next best takes over."""
        had = self.reason is None
        self.reason = reason
        if had:
            self._providers.choose(self.figure)

    def withdraw(self) -> None:
        """Take the offer back, as when the GPU has gone. Safe twice."""
        self._providers.withdraw(self)

    def choose(self, chosen: bool) -> None:
        """Called by the table alone."""
        had, self.chosen = self.chosen, chosen
        if had and not chosen:
            self._lost()


@dataclass(slots=True)
class Providers:
    """All offers, of at most ``capacity`` figures; those of others are never chosen, and are ``dropped``."""

    capacity: int
    dropped: int = 0
    #: Changes when a figure is offered that nobody offered before.
    version: int = 0
    _figures: dict[Figure, list[Offer]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._figures)

    def offer(self, provider: str, figure: Figure, lost: Callable[[], None], *, rate: bool = False) -> Offer:
        """Announce that ``provider`` may deliver ``figure``; ``available`` then says that it does.

        ``lost`` ends the provider's series of the figure: it is called, under the node's lock, whenever the
        offer stops being the chosen one, and must not call back. ``rate``: only a rate, not a counter.
        """
        made = Offer(self, provider, figure, (rate, RANK.index(provider)), lost)
        offers = self._figures.get(figure)
        if offers is None:
            if len(self._figures) >= self.capacity:
                self.dropped += 1
                return made
            offers = self._figures[figure] = []
            self.version += 1
        offers.append(made)
        offers.sort(key=lambda offer: offer.rank)
        return made

    def choose(self, figure: Figure) -> None:
        """Let the best of those that can deliver do so; the one before ends its series first."""
        offers = self._figures.get(figure, [])
        best = next((offer for offer in offers if offer.reason is None), None)
        for offer in offers:
            if offer is not best:
                offer.choose(False)
        if best is not None:
            best.choose(True)

    def withdraw(self, offer: Offer) -> None:
        """See :meth:`Offer.withdraw`."""
        offers = self._figures.get(offer.figure, [])
        if offer in offers:
            offers.remove(offer)
            offer.choose(False)
            if offers:
                self.choose(offer.figure)
            else:
                del self._figures[offer.figure]

    def known(self, figure: Figure) -> bool:
        """Whether anybody offers ``figure``."""
        return figure in self._figures

    def chosen(self, figure: Figure) -> str | None:
        """The provider that writes ``figure`` now."""
        return next((offer.provider for offer in self._figures.get(figure, ()) if offer.chosen), None)

    def of(self, gpu: str) -> dict[str, tuple[str | None, str]]:
        """Metric -> (provider that writes it, ""), or (None, the reason of the best provider there is)."""
        found: dict[str, tuple[str | None, str]] = {}
        for figure, offers in self._figures.items():
            if figure.gpu != gpu:
                continue
            chosen = next((offer.provider for offer in offers if offer.chosen), None)
            known = found.get(figure.metric)
            if chosen is not None and (known is None or known[0] is None):
                found[figure.metric] = (chosen, "")
            elif known is None:
                reasons = [offer.reason for offer in offers if offer.reason is not None]
                found[figure.metric] = (None, min(reasons, key=REASONS.index, default="no_data"))
        return found

    def availability(self) -> dict[tuple[str, str, str | None], int]:
        """(provider, metric, reason) -> number of GPUs and MIG instances; reason None: delivered.

        A metric that has parts counts as delivered where one of them is; else the first of REASONS is told.
        """
        best: dict[tuple[str, str, str], int] = {}
        for figure, offers in self._figures.items():
            for offer in offers:
                key = (offer.provider, figure.metric, figure.gpu)
                weight = -1 if offer.reason is None else REASONS.index(offer.reason)
                best[key] = min(best.get(key, weight), weight)
        counts: dict[tuple[str, str, str | None], int] = {}
        for (provider, metric, _), weight in best.items():
            counted = (provider, metric, None if weight < 0 else REASONS[weight])
            counts[counted] = counts.get(counted, 0) + 1
        return counts
