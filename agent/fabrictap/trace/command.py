"""Runs a trace: reads, prints at a bounded rate, and ends with the summary, whatever ends it."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from types import FrameType
from typing import TextIO

from fabrictap.ext.bpf import BpfError
from fabrictap.trace import lines, summary
from fabrictap.trace.session import Session, Taken
from fabrictap.trace.summary import Summary
from fabrictap.trace.whom import TraceError, Whom, check_uses_rdma, connection, process
from fabrictap.view.text import duration, plain

_READ_MS = 20
_SECOND = 1.0


def find(pid: int | None, qp: str | None) -> Whom:
    """Who was asked for. Raises TraceError."""
    whom = process(pid) if pid is not None else connection(str(qp))
    check_uses_rdma(whom)
    return whom


def main(whom: Whom, seconds: float, *, rate: int, as_json: bool, returns: bool | None = None) -> int:
    """Trace for ``seconds``, until Ctrl-C, SIGTERM or the end of the process. Raises TraceError."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - fixed by signal
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    session = Session(whom, returns=returns)
    try:
        return Trace(session, rate=rate, as_json=as_json).run(seconds, stop)
    finally:
        session.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class Trace:
    """Prints what a session takes: at most ``rate`` lines in a second, and says how many were left out."""

    def __init__(self, session: Session, *, rate: int, as_json: bool, out: TextIO | None = None) -> None:
        self._session = session
        self._rate = rate
        self._json = as_json
        self._out = out or sys.stdout
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._left = rate
        self._second = 0.0
        self._not_shown = 0
        self._control: dict[str, int] = {}
        self._made = Summary(0.0)

    def run(self, seconds: float, stop: threading.Event) -> int:
        whom, began = self._session.whom, time.monotonic()
        what = f"{whom.device}/{whom.qpn} of " if whom.qpn is not None else ""
        self._say(f"tracing {what}{plain(whom.name)} ({whom.pid}) for {duration(seconds)}; Ctrl-C ends it")
        for note in self._session.notes:
            self._say(note)
        if not self._session.attached:
            self._say("no provider library yet: posts and completions are told when it is loaded")
        if not self._json:
            print(lines.titles(), file=self._out, flush=True)
        why = "interrupted"
        while not stop.is_set():
            alive = whom.alive
            self._read(0 if self._session.busy else _READ_MS)
            if not alive and not self._session.busy:
                why = f"process {whom.pid} has ended"
                break
            if time.monotonic() >= began + seconds:
                why = ""
                break
        ended = time.monotonic()
        # What was recorded until now and is not read yet; a process that goes on makes more all the time.
        self._read(0)
        while self._session.busy and time.monotonic() < ended + _SECOND:
            self._read(0)
        self._end(ended - began, why)
        return 0

    def _read(self, timeout_ms: int) -> None:
        self._turn(time.monotonic())
        try:
            taken, more = self._session.read(timeout_ms, most=self._left)
        except BpfError as error:
            raise TraceError(f"the probes cannot be read any more: {error}") from None
        self._print(taken)
        self._not_shown += more

    def _turn(self, now: float) -> None:
        """A new second: what the last one left out is told, and there is room again."""
        if now < self._second + _SECOND:
            return
        self._second = now
        self._left = self._rate
        if self._not_shown:
            self._made.not_shown += self._not_shown
            if self._rate and not self._json:
                print(f"... {self._not_shown:,} more are not shown", file=self._out, flush=True)
            self._not_shown = 0

    def _print(self, taken: Taken) -> None:
        found = []
        for work in taken.works:
            one = lines.of_work(work, self._session.device(work.context), self._offset_ns)
            if one is not None:
                found.append(one)
        for record in taken.records:
            one = lines.of_record(record, self._offset_ns)
            if one is not None:
                found.append(one)
                self._control[one["event"]] = self._control.get(one["event"], 0) + 1
        found.sort(key=lambda one: int(one["time_ns"]))
        self._not_shown += len(found[self._left :])
        shown = found[: self._left]
        self._left -= len(shown)
        for one in shown:
            print(json.dumps(one) if self._json else lines.line(one), file=self._out)
        if shown:
            self._out.flush()

    def _end(self, seconds: float, why: str) -> None:
        session, made = self._session, self._made
        made.seconds = seconds
        made.not_shown += self._not_shown
        made.control = self._control
        made.lost = session.lost + session.control_lost + session.completions.refused
        summary.summarize(
            session.completions.groups(), session.device, session.wanted, made, session.datagrams
        )
        if why:
            self._say(why)
        if self._json:
            print(json.dumps(summary.as_json(made)), file=self._out)
        else:
            print("\n".join(summary.text(made)), file=self._out)
        self._out.flush()
        if not session.attached:
            self._say("no provider library was found: posts and completions could not be seen")

    def _say(self, line: str) -> None:
        """What is no part of the output."""
        print(line, file=sys.stderr, flush=True)
