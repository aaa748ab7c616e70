"""State, rate and MTU of every port: small texts that hardly ever change, looked at with every sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fabrictap.ext.texts import TextFiles
from fabrictap.sources.infiniband.sysfs import DeviceTree, PortTree, clean, parse_rate, parse_state
from fabrictap.sources.infiniband.troubles import Backoff, Troubles, word


@dataclass(frozen=True, slots=True)
class Link:
    """Link of a port: ``state`` as the kernel names it, lower case; ``rate`` in bytes per second."""

    device: DeviceTree
    port: PortTree
    state: str | None
    rate: int | None
    #: Of the interface that counts for a software device, in bytes.
    mtu: int | None = None


@dataclass(slots=True, eq=False)
class _Text:
    """A small file, open while it has a slot, and what it says; None where that cannot be had now."""

    path: str
    parse: Callable[[str], str | int | None]
    backoff: Backoff = field(default_factory=Backoff)
    slot: int | None = None
    value: str | int | None = None


class Links:
    """The link files of all ports. One thread at a time."""

    def __init__(self, troubles: Troubles) -> None:
        self._troubles = troubles
        self._files = TextFiles()
        self._texts: dict[str, _Text] = {}
        self._of_slot: dict[int, _Text] = {}
        #: Those that say nothing usable, to be tried again.
        self._failing: dict[_Text, None] = {}
        self._devices: tuple[DeviceTree, ...] = ()
        self._links: tuple[Link, ...] = ()

    def read(self, devices: tuple[DeviceTree, ...], now: float) -> tuple[Link, ...]:
        """The links of all ports. While nothing changes this is the same object."""
        changed = devices is not self._devices
        if changed:
            self._take(devices)
        looked_at = dict.fromkeys(self._of_slot[slot] for slot in self._files.read())
        looked_at |= {text: None for text in self._failing if text.backoff.due(now)}
        for text in looked_at:
            before = text.value
            self._look(text, now)
            changed = changed or text.value != before
        if changed:
            self._links = tuple(self._link(device, port) for device in devices for port in device.ports)
        return self._links

    def close(self) -> None:
        """Close every file."""
        self._files.close()
        for held in (self._texts, self._of_slot, self._failing):
            held.clear()
        self._devices, self._links = (), ()

    def _take(self, devices: tuple[DeviceTree, ...]) -> None:
        """Let go of the files of ports that have gone, and come to know those of new ones."""
        self._devices = devices
        wanted: dict[str, Callable[[str], str | int | None]] = {}
        for device in devices:
            for port in device.ports:
                wanted[f"{port.path}/state"] = parse_state
                wanted[f"{port.path}/rate"] = parse_rate
                if port.statistics is not None:
                    wanted[_mtu(port.statistics)] = _parse_number
        for path in self._texts.keys() - wanted.keys():
            text = self._texts.pop(path)
            self._failing.pop(text, None)
            self._let_go(text)
        for path, parse in wanted.items():
            if path not in self._texts:
                text = self._texts[path] = _Text(path, parse)
                self._failing[text] = None

    def _look(self, text: _Text, now: float) -> None:
        try:
            if text.slot is None:
                text.slot = self._files.add(text.path)
                self._of_slot[text.slot] = text
            text.value = text.parse(clean(self._files.content(text.slot)))
        except OSError as error:
            text.value = None
            self._let_go(text)
            problem = word(error.errno or 0)
        else:
            problem = "not_understood" if text.value is None else ""
        if problem:
            self._failing[text] = None
            self._troubles.failed(text.backoff, text.path, problem, now)
        else:
            self._failing.pop(text, None)
            self._troubles.succeeded(text.backoff, text.path)

    def _let_go(self, text: _Text) -> None:
        if text.slot is not None:
            self._files.remove(text.slot)
            del self._of_slot[text.slot]
            text.slot = None

    def _link(self, device: DeviceTree, port: PortTree) -> Link:
        state, rate = self._texts[f"{port.path}/state"].value, self._texts[f"{port.path}/rate"].value
        mtu = None if port.statistics is None else self._texts[_mtu(port.statistics)].value
        return Link(
            device,
            port,
            state if isinstance(state, str) else None,
            rate if isinstance(rate, int) else None,
            mtu if isinstance(mtu, int) else None,
        )


def _mtu(statistics: str) -> str:
    """The file with the MTU of the interface whose counters are in ``statistics``."""
    return f"{statistics.rpartition('/')[0]}/mtu"


def _parse_number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None
