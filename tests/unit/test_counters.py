"""Kept counter descriptors: parsing, faults of real files, and that nothing leaks."""

from __future__ import annotations

import errno
import gc
import os
import threading
from pathlib import Path

import pytest

from fabrictap.ext import counters
from fabrictap.ext.counters import CounterFiles


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read_one(path: Path) -> tuple[int, int]:
    files = CounterFiles()
    slot = files.add(path)
    files.read()
    values, statuses = files.results()
    files.close()
    return values[slot], statuses[slot]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"0\n", 0),
        (b"42", 42),
        (b"  7 \n", 7),
        (b"007\n", 7),
        (b"12\n\0", 12),
        (b"9223372036854775807\n", (1 << 63) - 1),
    ],
)
def test_an_unsigned_decimal_is_read(tmp_path: Path, content: bytes, value: int):
    (tmp_path / "counter").write_bytes(content)
    assert read_one(tmp_path / "counter") == (value, counters.OK)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"-1\n",
        b"+1\n",
        b"0x10\n",
        b"N/A (no PMA)\n",
        b"1 2\n",
        b"1.5\n",
        b"\xff\n",
        b" " * 63,
        b"1" * 64,
    ],
)
def test_what_is_not_a_number_says_so(tmp_path: Path, content: bytes):
    (tmp_path / "counter").write_bytes(content)
    assert read_one(tmp_path / "counter")[1] == counters.NOT_A_NUMBER


@pytest.mark.parametrize("content", [b"18446744073709551616\n", b"99999999999999999999\n", b"1" * 40])
def test_what_does_not_fit_in_64_bits_says_so(tmp_path: Path, content: bytes):
    (tmp_path / "counter").write_bytes(content)
    assert read_one(tmp_path / "counter")[1] == counters.OVERFLOW


def test_a_kept_descriptor_sees_the_new_value(tmp_path: Path):
    path = tmp_path / "counter"
    path.write_text("1\n")
    files = CounterFiles()
    slot = files.add(path)
    for value in (5, 10**12, 3):
        path.write_text(f"{value}\n")
        files.read()
        assert files.results()[0][slot] == value


def test_real_faults_give_their_errno_and_leave_the_others_alone(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "good").write_text("11\n")
    files = CounterFiles()
    fifo, directory, good = files.add(tmp_path / "fifo"), files.add(tmp_path), files.add(tmp_path / "good")
    files.read()
    values, statuses = files.results()
    assert statuses[fifo] == errno.ESPIPE
    assert statuses[directory] == errno.EISDIR
    assert (values[good], statuses[good]) == (11, counters.OK)


def test_a_file_that_cannot_be_opened_raises_and_takes_no_slot(tmp_path: Path):
    files = CounterFiles()
    with pytest.raises(FileNotFoundError):
        files.add(tmp_path / "absent")
    assert len(files) == 0


def test_a_disabled_slot_is_not_read_until_it_is_enabled(tmp_path: Path):
    path = tmp_path / "counter"
    path.write_text("1\n")
    files = CounterFiles()
    slot = files.add(path)
    files.enable(slot, False)
    files.read()
    assert files.results()[1][slot] == counters.NOT_READ
    files.enable(slot, True)
    files.read()
    assert files.results() == ([1], [counters.OK])


def test_a_removed_slot_is_given_out_again_without_its_past(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_text(f"{ord(name)}\n")
    files = CounterFiles()
    slot = files.add(tmp_path / "a")
    files.read()
    files.remove(slot)
    assert files.results()[1][slot] == counters.NOT_READ
    assert files.add(tmp_path / "b") == slot
    assert files.results() == ([0], [counters.NOT_READ])
    files.read()
    assert files.results()[0][slot] == ord("b")


@pytest.mark.parametrize("slot", [-1, 0, 1, 1 << 40])
def test_a_slot_that_is_not_there_raises(tmp_path: Path, slot: int):
    files = CounterFiles()
    files.remove(files.add(tmp_path))
    with pytest.raises(IndexError):
        files.remove(slot)
    with pytest.raises(IndexError):
        files.enable(slot, True)


def test_no_descriptor_outlives_the_object_or_close(tmp_path: Path):
    (tmp_path / "counter").write_text("1\n")
    gc.collect()  # what other tests left
    before = descriptors()
    for _ in range(3):
        files = CounterFiles()
        slots = [files.add(tmp_path / "counter") for _ in range(200)]
        for slot in slots[::3]:
            files.remove(slot)
        assert descriptors() == before + len(files) > before
        files.close()
        assert descriptors() == before
        files.add(tmp_path / "counter")
    del files
    gc.collect()
    assert descriptors() == before


def test_a_half_built_object_is_freed():
    files = CounterFiles.__new__(CounterFiles)
    files.read()
    assert files.results() == ([], [])
    files.close()
    del files


def test_descriptors_are_not_inherited_by_children(tmp_path: Path):
    (tmp_path / "counter").write_text("1\n")
    files = CounterFiles()
    files.add(tmp_path / "counter")
    inheritable = [
        os.get_inheritable(int(entry.name))
        for entry in Path("/proc/self/fd").iterdir()
        if entry.is_symlink() and entry.readlink() == tmp_path / "counter"
    ]
    assert inheritable == [False]


def test_many_slots_read_while_another_thread_runs(tmp_path: Path):
    (tmp_path / "counter").write_text("77\n")
    files = CounterFiles()
    for _ in range(500):
        files.add(tmp_path / "counter")
    refused = []
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            try:
                files.remove(files.add(tmp_path / "counter"))
            except RuntimeError as error:
                refused.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(200):
            try:
                files.read()
            except RuntimeError as error:
                refused.append(error)
    finally:
        stop.set()
        thread.join()
    files.read()
    assert set(files.results()[0][:500]) == {77}
