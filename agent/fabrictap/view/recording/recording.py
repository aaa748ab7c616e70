"""One recording: what a ring file says, taken under the rules of docs/ring.md."""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from struct import Struct
from typing import Any, TypeVar

from fabrictap.ext import layout, ring
from fabrictap.ext.ring import Histogram, decode_attributes
from fabrictap.view.recording import decode, life
from fabrictap.view.recording.about import KINDS, About, MetricName, parse
from fabrictap.view.recording.cells import Block, cells_of
from fabrictap.view.recording.file import RingFile, record
from fabrictap.view.recording.records import Cell, Connection, Event, HistogramCell, Life, Row, SeriesEntry

#: How often something that is being written is looked at again, and the pause between.
_TRIES = 6
_PAUSE = 0.002
#: Records read at once.
_BATCH = 1024
_LARGEST_ABOUT = 1 << 24

_ROW, _ROW_AT = record("row")
_SERIES, _S = record("series")
_HISTOGRAM, _H = record("histogram")
_CONNECTION, _C = record("connection")
_EVENT, _E = record("event")

_Made = TypeVar("_Made")


class Recording:
    """A ring file. Reads the file as it is at each call, so that a living one can be followed.

    ``unreadable`` counts what the last calls had to leave out: records that stayed half-written, as the last
    one of a killed writer may, or that say what cannot be.
    """

    def __init__(self, file: RingFile, about: About) -> None:
        self._file = file
        self._fixed = file.fixed
        self.path = file.path
        self.about = about
        self.unreadable = 0
        self._block: Block | None = None

    @staticmethod
    def open(path: str, owners: Collection[int] | None = None) -> Recording:
        """Open the file at ``path``. Raises RecordingError with one line for the operator.

        ``owners`` are the users whose files are believed: root and the reader by default.
        """
        file = RingFile(path, {0, os.geteuid()} if owners is None else owners)
        try:
            return Recording(file, _about(file))
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def created_ns(self) -> int:
        return int(self._fixed["created_ns"])

    @property
    def tick_ns(self) -> int:
        return int(self._fixed["tick_ns"])

    @property
    def capacity(self) -> dict[str, int]:
        """The most of each kind that the file can hold."""
        return {name: self._fixed[name] for name in ("rows", "series", "connections", "events")}

    @property
    def allocated(self) -> int:
        """Bytes of memory or disk that the file takes."""
        return self._file.allocated

    @property
    def head(self) -> int:
        """Number of the last whole row, 0 before the first."""
        return int(self._file.header()["head"])

    def alive(self) -> Life:
        """Whether the writer is still there."""
        locked = self._file.locked
        rows = self.rows()
        return life.of(self._file.header(), rows[-1].end_ns if rows else None, time.time_ns(), locked=locked)

    def rows(self, since_ns: int = 0) -> list[Row]:
        """The whole rows that ended after ``since_ns``, oldest first."""
        count, at = self._fixed["rows"], self._fixed["rows_at"]
        table = self._file.read(at, count * _ROW.size)
        head = self.head  # after the table; a row is whole a moment before it is the head
        found = []
        for index, (number, start_ns, end_ns, _) in enumerate(_ROW.iter_unpack(table)):
            kept = max(0, head - count) < number <= head + 1
            if kept and number % count == index and end_ns > since_ns:
                found.append(Row(number, start_ns, end_ns))
        found.sort()
        return found

    def series(self, wanted: Callable[[MetricName], bool] | None = None) -> list[SeriesEntry]:
        """The series that live or have ended and can still be read, of the ``wanted`` metrics."""
        header = self._file.header()
        used = header["segments_used"] * ring.SEGMENT
        if used > self._fixed["series"]:
            raise self._file.error(f"damaged: {header['segments_used']} segments are in use")
        metrics = [wanted is None or wanted(metric) for metric in self.about.metrics]

        def make(slot: int, values: tuple[Any, ...]) -> SeriesEntry | None:
            metric = values[_S["metric"]]
            if values[_S["state"]] not in (layout.LIVE, layout.ENDED):
                return None
            if metric < len(metrics) and not metrics[metric]:
                return None
            return self._entry(slot, values)

        return list(self._records(self._fixed["series_at"], _SERIES, used, make))

    def cells(self, series: SeriesEntry, rows: Sequence[Row]) -> list[Cell | None]:
        """What ``series`` did in each of ``rows``, which are in order; None where that is not known.

        That is where a row is not the series' own, or has been overwritten since, and before a gauge's first
        value. All are None if the series' slot belongs to another by now.
        """
        segment = series.slot // ring.SEGMENT
        block = self._block
        if block is None or block.segment != segment or block.kind != series.kind or block.rows is not rows:
            block = self._block = self._read_block(segment, series.kind, rows)
        sequence = self._file.read(self._fixed["series_at"] + series.slot * _SERIES.size, 4)
        if int.from_bytes(sequence, sys.byteorder) != series.sequence:
            return [None] * len(rows)
        return cells_of(block, series)

    def connections(self) -> list[Connection]:
        """The queue pairs of the table: those that live, and those that have ended a while ago."""
        used = self._file.header()["connections_used"]
        if used > self._fixed["connections"]:
            raise self._file.error(f"damaged: {used} connections are in use")

        def make(row: int, values: tuple[Any, ...]) -> Connection | None:
            if values[_C["state"]] not in (layout.LIVE, layout.ENDED):
                return None
            return decode.connection(row, values, _C, self.about)

        return list(self._records(self._fixed["connections_at"], _CONNECTION, used, make))

    def events(self, since_ns: int = 0) -> list[Event]:
        """The events that are kept, oldest first."""
        count, at = self._fixed["events"], self._fixed["events_at"]
        found = {}
        for first in range(0, count, _BATCH):
            many = min(_BATCH, count - first)
            blocks = [self._file.read(at + first * _EVENT.size, many * _EVENT.size) for _ in range(2)]
            one, two = (_EVENT.iter_unpack(block) for block in blocks)
            for index, (values, again) in enumerate(zip(one, two, strict=True), first):
                number = values[_E["number"]]
                if number and number % count == index and number == again[_E["number"]]:
                    found[number] = decode.event(values, _E, self.about)
        last = max(found, default=0)
        return [
            event
            for number, event in sorted(found.items())
            if number > last - count and event.time_ns > since_ns
        ]

    def _records(
        self, at: int, form: Struct, count: int, make: Callable[[int, tuple[Any, ...]], _Made | None]
    ) -> Iterator[_Made]:
        """What ``make`` makes of each record that is whole; the sequence is its first field."""
        again: list[int] = []
        for first in range(0, count, _BATCH):
            many = min(_BATCH, count - first)
            made, torn = self._batch(at, form, first, many, make)
            yield from made
            again += torn
        for _ in range(_TRIES):
            if not again:
                break
            time.sleep(_PAUSE)
            torn_still: list[int] = []
            for index in again:
                made, torn = self._batch(at, form, index, 1, make)
                yield from made
                torn_still += torn
            again = torn_still
        self.unreadable += len(again)

    def _batch(
        self,
        at: int,
        form: Struct,
        first: int,
        many: int,
        make: Callable[[int, tuple[Any, ...]], _Made | None],
    ) -> tuple[list[_Made], list[int]]:
        """(what was made, indices of records that were being written)."""
        size = form.size
        made: list[tuple[int, int, _Made | None]] = []
        torn = []
        for index, values in enumerate(
            form.iter_unpack(self._file.read(at + first * size, many * size)), first
        ):
            if values[0] & 1:
                torn.append(index)
                continue
            try:
                made.append((index, values[0], make(index, values)))
            except ValueError:
                # Half-written after all, or damaged; the sequence will tell.
                made.append((index, values[0], None))
                if not self._changed(at, size, index, values[0]):
                    self.unreadable += 1
        after = self._file.read(at + first * size, many * size)
        whole = []
        for index, sequence, one in made:
            offset = (index - first) * size
            if int.from_bytes(after[offset : offset + 4], sys.byteorder) != sequence:
                torn.append(index)
            elif one is not None:
                whole.append(one)
        return whole, torn

    def _changed(self, at: int, size: int, index: int, sequence: int) -> bool:
        now = self._file.read(at + index * size, 4)
        return int.from_bytes(now, sys.byteorder) != sequence

    def _entry(self, slot: int, values: tuple[Any, ...]) -> SeriesEntry:
        """Raises ValueError for what cannot be."""
        metric, kind = values[_S["metric"]], values[_S["kind"]]
        at, size = values[_S["attributes"]], values[_S["attributes_size"]]
        if metric >= len(self.about.metrics) or kind not in KINDS:
            raise ValueError("no such metric")
        name = self.about.metrics[metric]
        if name.kind != KINDS[kind] or at + size > self._fixed["heap_size"]:
            raise ValueError("of another kind, or its attributes are nowhere")
        number = values[_S["number"]]
        value: int | float | Histogram | None = None
        row_delta: int | float | HistogramCell | None = None
        real = number == layout.REAL
        if number not in (layout.UNKNOWN, layout.INTEGER, layout.REAL):
            raise ValueError("no such number")
        if number != layout.UNKNOWN:
            if kind == ring.HISTOGRAM:
                value, row_delta = self._histogram(values[_S["histogram"]])
            else:
                value = decode.number(values[_S["value"]], real)
        return SeriesEntry(
            slot=slot,
            sequence=values[0],
            metric=name,
            kind=kind,
            attributes=decode_attributes(self._file.read(self._fixed["heap_at"] + at, size)),
            ended=values[_S["state"]] == layout.ENDED,
            overflow=bool(values[_S["overflow"]]),
            real=real,
            value=value,
            row_delta=decode.number(values[_S["row_delta"]], real) if kind == ring.COUNTER else row_delta,
            average=decode.finite(values[_S["average"]]) if values[_S["rates"]] else None,
            peak=decode.finite(values[_S["peak"]]) if values[_S["rates"]] else None,
            first_row=values[_S["first_row"]],
            last_row=values[_S["last_row"]],
            start_ns=values[_S["start_ns"]],
            time_ns=values[_S["time_ns"]],
        )

    def _histogram(self, index: int) -> tuple[Histogram | None, HistogramCell | None]:
        """A histogram and what no row has of it yet; None where it is not whole. Raises ValueError."""
        if index >= self._fixed["histograms"]:
            raise ValueError("its histogram is nowhere")
        at = self._fixed["histograms_at"] + index * _HISTOGRAM.size
        for _ in range(_TRIES):
            values = _HISTOGRAM.unpack(self._file.read(at, _HISTOGRAM.size))
            if not values[0] & 1 and not self._changed(at, _HISTOGRAM.size, 0, values[0]):
                return decode.histogram(values, _H)
        return None, None

    def _read_block(self, segment: int, kind: int, rows: Sequence[Row]) -> Block:
        """The cells of a segment in all of ``rows``, less those that were overwritten meanwhile."""
        stride, count = layout.stride(kind), self._fixed["rows"]
        base = self._fixed["cells_at"] + segment * count * layout.STRIDE_MAX
        pieces: dict[int, memoryview] = {}
        for run in _runs([row.number for row in rows], count):
            data = memoryview(self._file.read(base + run[0] % count * stride, len(run) * stride))
            for index, number in enumerate(run):
                pieces[number] = data[index * stride : (index + 1) * stride]
        whole = set()
        for run in _runs([row.number for row in rows], count):
            at = self._fixed["rows_at"] + run[0] % count * _ROW.size
            headers = _ROW.iter_unpack(self._file.read(at, len(run) * _ROW.size))
            whole |= {
                number
                for number, values in zip(run, headers, strict=True)
                if values[_ROW_AT["number"]] == number
            }
        return Block(segment, kind, rows, {number: pieces[number] for number in whole})


def _runs(numbers: Sequence[int], count: int) -> Iterator[list[int]]:
    """Numbers that follow one another in the file."""
    run: list[int] = []
    for number in numbers:
        if run and (number != run[-1] + 1 or number % count == 0):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _about(file: RingFile) -> About:
    for _ in range(_TRIES):
        header = file.header()
        length = header["about_length"]
        if length > min(header["about_size"], _LARGEST_ABOUT):
            raise file.error("damaged: its description is longer than it can be")
        text = file.read(header["about_at"], length)
        again = file.header()["about_sequence"]
        if not header["about_sequence"] & 1 and again == header["about_sequence"]:
            if not length:
                raise file.error("not described yet: its agent has just begun, or died at once")
            if zlib.crc32(text) != header["about_checksum"]:
                raise file.error("damaged: the checksum of its description is wrong")
            try:
                return parse(text)
            except ValueError as error:
                raise file.error(f"damaged: {error}") from None
        time.sleep(_PAUSE)
    raise file.error("its description was being written when its agent died")
