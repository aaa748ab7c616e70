"""A bounded queue of serialized requests with one thread that delivers them in order.

The queue belongs to one signal. ``put`` never blocks on the other side. While that is away the requests stay
in the queue, kept compressed; while it takes them they only pass through. When the queue is full the oldest
goes and is counted. One request is under way at a time, so order holds. The thread lives while there is
something to deliver: most signals have nothing for most of the time.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: error.type of requests that were dropped because the queue was full, or because the agent stopped.
QUEUE_FULL = "queue_full"
SHUTDOWN = "shutdown"
#: Seconds that one delivery takes at most where the other side is there; from then on what waits is packed.
PROMPT = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One serialized OTLP export request and the number of points or spans in it."""

    body: bytes
    items: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """The other side has the request, less ``rejected`` items."""

    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The request can never be delivered; ``error_type`` goes into the attribute error.type."""

    error_type: str


@dataclass(frozen=True, slots=True)
class Later:
    """To be tried again after ``delay`` seconds."""

    delay: float


Outcome = Delivered | Refused | Later


class Stats:
    """What became of the items of one signal: handed over, or failed by error.type."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exported = 0
        self._failed: Counter[str] = Counter()

    def add(self, items: int, error_type: str | None = None) -> None:
        if items:
            with self._lock:
                if error_type is None:
                    self._exported += items
                else:
                    self._failed[error_type] += items

    @property
    def exported(self) -> int:
        return self._exported

    @property
    def failed(self) -> dict[str, int]:
        with self._lock:
            return dict(self._failed)


@dataclass(slots=True)
class _Held:
    """A request in the queue; ``packed`` once it had to wait."""

    body: bytes
    items: int
    packed: bool = False

    def pack(self) -> None:
        # Metrics of successive intervals differ little from zeros: level 1 makes them about a tenth.
        if not self.packed:
            self.body, self.packed = zlib.compress(self.body, 1), True

    def request(self) -> Request:
        return Request(zlib.decompress(self.body) if self.packed else self.body, self.items)


class Outbox:
    """See the module's docstring. ``deliver`` runs in the outbox's thread and returns an outcome.

    ``deliver`` must be bounded in time; ``interrupt`` makes a delivery under way return at once.
    Call ``start`` once before ``put``; after ``close`` whatever is put is counted as dropped.
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        deliver: Callable[[Request], Outcome],
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.stats = Stats()
        self._deliver = deliver
        self._interrupt = interrupt
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: deque[_Held] = deque()
        self._under_way: _Held | None = None
        self._not_before = 0.0
        #: Since when one is under way, and whether the last one came back.
        self._began = 0.0
        self._away = False
        self._closed = False
        self._name = f"fabrictap-{name}"
        self._started = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._changed:
            self._started = True
            self._need_thread()

    def _need_thread(self) -> None:
        """Under the lock. A system without room for a thread is asked again with the next request."""
        if self._thread is not None or not self._started or not self._waiting:
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:
            self._thread = None
            log.error("%s: %s", self._name, error)

    @property
    def pending(self) -> int:
        """Requests that are not delivered yet."""
        with self._changed:
            return len(self._waiting) + (self._under_way is not None)

    def put(self, request: Request) -> None:
        held = _Held(request.body, request.items)
        if slow := self._slow:
            held.pack()
        with self._changed:
            if slow:
                # Those of the export whose delivery began to take long.
                for other in self._waiting:
                    other.pack()
            if self._closed:
                self.stats.add(held.items, SHUTDOWN)
                return
            self._waiting.append(held)
            while len(self._waiting) > self._capacity:
                self.stats.add(self._waiting.popleft().items, QUEUE_FULL)
            self._changed.notify_all()
            self._need_thread()

    @property
    def _slow(self) -> bool:
        """Whether what is put now is going to wait for longer than a delivery."""
        with self._changed:
            stuck = self._under_way is not None and time.monotonic() - self._began > PROMPT
            return self._away or stuck

    def flush(self, timeout: float) -> bool:
        """Try what waits at once, back-off or not, for at most ``timeout`` seconds. True when all is out."""
        with self._changed:
            self._not_before = 0.0
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: self._closed or (not self._waiting and self._under_way is None), max(timeout, 0.0)
            )

    def close(self, timeout: float = 2.0) -> None:
        """Stop the thread, within about ``timeout`` seconds; what is not delivered is counted as dropped."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self.stats.add(self._waiting.popleft().items, SHUTDOWN)
            self._changed.notify_all()
            thread = self._thread
        self._interrupt()
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        while (held := self._next()) is not None:
            try:
                outcome = self._deliver(held.request())
            except Exception as error:
                # Whatever went wrong with this request must not end the delivery of all later ones.
                log.exception("a request was dropped: delivering it failed in an unforeseen way")
                outcome = Refused(type(error).__name__)
            self._settle(held, outcome)

    def _next(self) -> _Held | None:
        with self._changed:
            while self._waiting and not self._closed:
                wait = self._not_before - time.monotonic()
                if wait <= 0:
                    self._under_way = self._waiting.popleft()
                    self._began = time.monotonic()
                    return self._under_way
                self._changed.wait(wait)
            self._thread = None
            return None

    def _settle(self, held: _Held, outcome: Outcome) -> None:
        away = isinstance(outcome, Later)
        if away:
            held.pack()
        with self._changed:
            self._under_way = None
            if away and not self._away:
                for other in self._waiting:
                    other.pack()
            self._away = away
            if isinstance(outcome, Delivered):
                self.stats.add(held.items - outcome.rejected)
                self.stats.add(outcome.rejected, "rejected")
            elif isinstance(outcome, Refused):
                self.stats.add(held.items, outcome.error_type)
            elif self._closed:
                self.stats.add(held.items, SHUTDOWN)
            else:
                self._not_before = time.monotonic() + outcome.delay
                if len(self._waiting) < self._capacity:
                    self._waiting.appendleft(held)
                else:
                    self.stats.add(held.items, QUEUE_FULL)
            self._changed.notify_all()


def flush_all(outboxes: Collection[Outbox], timeout: float) -> bool:
    """Flush several outboxes in the same ``timeout`` seconds. True when all is out."""
    deadline = time.monotonic() + timeout
    for outbox in outboxes:
        outbox.flush(0.0)  # none has to wait for its turn before it tries
    return all(outbox.flush(deadline - time.monotonic()) for outbox in outboxes)
