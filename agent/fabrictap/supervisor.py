"""Tells the service manager how the agent is: ready, alive, reloading, stopping, and in a line of words.

The protocol of sd_notify(3): datagrams of ``NAME=value`` lines to the socket that NOTIFY_SOCKET names, a path
or, with a leading ``@``, an abstract one. Under anything but systemd the variable is not set, and nothing is
sent. With WATCHDOG_USEC (systemd.service(5), WatchdogSec=) systemd kills and restarts an agent that has not
said for so long that it is alive.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

_log = logging.getLogger(__name__)
#: A manager that does not read its socket must not hold up the agent for longer.
_SEND_SECONDS = 1.0


class Supervisor:
    """The way to the service manager. For the main thread only: its signs of life are that thread's."""

    def __init__(self, address: str | None, watchdog: float | None = None) -> None:
        """``address``: of an AF_UNIX socket, None: nobody is told; ``watchdog``: its timeout, seconds."""
        self._address = None if address is None else _unix(address)
        #: Seconds between two signs of life: half the timeout, as sd_watchdog_enabled(3) advises.
        self.interval = None if watchdog is None or self._address is None else watchdog / 2
        self._next = time.monotonic()
        self._status: str | None = None
        self._failure: str | None = None

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Supervisor:
        """The one that the environment names. The variables are taken out: children are not the service."""
        address = environ.pop("NOTIFY_SOCKET", None) or None
        usec, pid = environ.pop("WATCHDOG_USEC", None), environ.pop("WATCHDOG_PID", None)
        watchdog = None
        if usec is not None and (pid is None or pid == str(os.getpid())):
            if usec.isascii() and usec.isdigit() and int(usec) > 0:
                watchdog = int(usec) / 1e6
            else:
                _log.warning("WATCHDOG_USEC: expected microseconds, got %r: no signs of life are sent", usec)
        if address is not None and address[:1] not in ("/", "@"):
            _log.warning("NOTIFY_SOCKET: expected /path or @name, got %r: nobody is told", address)
            address = None
        return cls(address, watchdog)

    def due(self) -> float | None:
        """When the next sign of life is due (time.monotonic), None where none is wanted."""
        return None if self.interval is None else self._next

    def alive(self) -> None:
        """Say so where it is due. Call it where a hung agent would not get to."""
        if self.interval is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.interval
        self._send("WATCHDOG=1")

    def ready(self) -> None:
        """After the start, and after ``reloading``."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; ``ready`` ends it."""
        # systemd compares this with the time at which it asked (Type=notify-reload, since 253).
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line that ``systemctl status`` shows; sent where it is another than before."""
        line = " ".join(text.split())
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.settimeout(_SEND_SECONDS)
                to.sendto(message.encode(), self._address)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._failure:
                _log.warning("the service manager cannot be told %s: %s", message.partition("\n")[0], reason)
            self._failure = reason
            return False
        self._failure = None
        return True


def _unix(address: str) -> str:
    """As the socket module wants it: an abstract name begins with a zero byte (unix(7))."""
    return "\0" + address[1:] if address.startswith("@") else address
