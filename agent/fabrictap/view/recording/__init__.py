"""A ring file read from another process: with the agent alive, ended or dead. docs/ring.md has the rules.

Nothing is mapped: a file that is cut short under its reader then costs an error, not the reader's life.
Whatever the file says is checked before it is used; what cannot be used is a :class:`RecordingError`.
"""

from fabrictap.view.recording.about import About
from fabrictap.view.recording.file import AbsentError, RecordingError
from fabrictap.view.recording.recording import Recording
from fabrictap.view.recording.records import (
    Cell,
    Connection,
    CounterCell,
    Event,
    GaugeCell,
    HistogramCell,
    Life,
    Posted,
    Row,
    SeriesEntry,
)

__all__ = [
    "About",
    "AbsentError",
    "Cell",
    "Connection",
    "CounterCell",
    "Event",
    "GaugeCell",
    "HistogramCell",
    "Life",
    "Posted",
    "Recording",
    "RecordingError",
    "Row",
    "SeriesEntry",
]
