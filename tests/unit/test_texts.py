"""Small files that are kept open: what has changed is said once, and nothing leaks."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest

from fabrictap.ext import texts
from fabrictap.ext.texts import TextFiles


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_change_of_content_or_length_is_said_once(tmp_path: Path):
    (state := tmp_path / "state").write_bytes(b"4: ACTIVE\n")
    (rate := tmp_path / "rate").write_bytes(b"400 Gb/sec (4X NDR)\n")
    files = TextFiles()
    first, second = files.add(state), files.add(rate)
    assert files.read() == [first, second]
    assert files.read() == []
    assert files.content(first) == b"4: ACTIVE\n"
    state.write_bytes(b"1: DOWN\n")
    assert files.content(first) == b"4: ACTIVE\n", "content is what the last read found"
    assert files.read() == [first]
    assert files.content(first) == b"1: DOWN\n"
    state.write_bytes(b"1: DOWN\n\n")
    assert files.read() == [first]
    assert files.read() == []


def test_content_reads_where_nothing_has_been_read(tmp_path: Path):
    (tmp_path / "mtu").write_bytes(b"9000\n")
    files = TextFiles()
    slot = files.add(tmp_path / "mtu")
    assert files.content(slot) == b"9000\n"
    assert files.read() == []


def test_a_file_that_fails_says_so_once_and_its_error_is_raised(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    files = TextFiles()
    slot = files.add(tmp_path / "fifo")
    assert files.read() == [slot]
    assert files.read() == []
    with pytest.raises(OSError, match="seek") as caught:
        files.content(slot)
    assert caught.value.errno == errno.ESPIPE


def test_what_is_longer_than_the_buffer_is_cut_off(tmp_path: Path):
    (tmp_path / "long").write_bytes(b"x" * 1000)
    files = TextFiles()
    assert files.content(files.add(tmp_path / "long")) == b"x" * texts.LENGTH


def test_a_removed_slot_is_given_out_again_without_its_past(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    files = TextFiles()
    slot = files.add(tmp_path / "a")
    files.read()
    files.remove(slot)
    with pytest.raises(IndexError):
        files.content(slot)
    assert files.add(tmp_path / "b") == slot
    assert files.read() == [slot]
    assert len(files) == 1


def test_no_descriptor_outlives_the_object_or_close(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"a")
    gc.collect()
    before = descriptors()
    files = TextFiles()
    for _ in range(100):
        files.add(tmp_path / "a")
    assert descriptors() == before + 100
    files.close()
    assert (descriptors(), len(files)) == (before, 0)
    files.add(tmp_path / "a")
    del files
    gc.collect()
    assert descriptors() == before


def test_a_file_that_cannot_be_opened_raises_and_takes_no_slot(tmp_path: Path):
    files = TextFiles()
    with pytest.raises(FileNotFoundError):
        files.add(tmp_path / "none")
    assert len(files) == 0
