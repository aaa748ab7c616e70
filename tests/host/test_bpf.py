"""The contract of ext/bpf.pyx with a small object of our own: configure, load, attach, consume, let go."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fabrictap import catalog
from fabrictap.ext import records
from fabrictap.ext.bpf import BpfError, Link, Map, Object, RingBuffer
from fabrictap.ext.fold import KeyedFold
from fabrictap.ext.records import RECORD_SIZE, decode
from fabrictap.series import SeriesTable

KIND = records.CM_EVENT
#: Of ft_record.qp.qpn.
QPN_AT = 112


class Watch:
    """The good program, attached to this process; :meth:`trigger` makes one record."""

    def __init__(self, path: Path, buffer: int = 1 << 16, batch: int = 4096) -> None:
        self.object = Object(str(path))
        for name in self.object.programs():
            self.object.autoload(name, name == "good")
        self.object.set_constant("watched_tgid", os.getpid())
        self.object.set_constant("record_kind", KIND)
        self.object.resize("records", buffer)
        self.object.load()
        self.records = RingBuffer(self.object, "records", RECORD_SIZE, batch)
        self.link = self.object.attach("good")

    def trigger(self, number: int) -> None:
        with pytest.raises(ProcessLookupError):
            os.getpgid(number)

    def numbers(self, timeout_ms: int = 0) -> list[int]:
        return [record.qpn for record in decode(self.records.poll(timeout_ms))]


#: Process ids that cannot be: beyond PID_MAX_LIMIT.
BASE = 1 << 23


@pytest.fixture
def watch(tiny: Path) -> Iterator[Watch]:
    made = Watch(tiny)
    yield made
    made.link.close()


# --- configure and load ---------------------------------------------------------------------------


def test_a_missing_object_is_named_with_the_systems_reason(tmp_path):
    with pytest.raises(BpfError, match="No such file or directory") as caught:
        Object(str(tmp_path / "none.bpf.o"))
    assert caught.value.errno == errno.ENOENT
    assert "none.bpf.o" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no object at all" * 100])
def test_what_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "bad.bpf.o").write_bytes(content)
    with pytest.raises(BpfError, match=r"bad\.bpf\.o"):
        Object(str(tmp_path / "bad.bpf.o"))


def test_programs_and_their_sections_are_listed(tiny):
    section = "raw_tp/sys_enter"
    programs = Object(str(tiny)).programs()
    assert programs == {"good": section, "refused_for_null": section, "refused_for_bounds": section}


def test_names_that_the_object_does_not_have_are_refused(tiny):
    one = Object(str(tiny))
    for call in (
        lambda: one.autoload("none", True),
        lambda: one.resize("none", 1),
        lambda: one.set_constant("none", 1),
        lambda: one.attach("none"),
        lambda: one.attach_uprobe("none", "/proc/self/exe", 0),
        lambda: one.map("none"),
        lambda: RingBuffer(one, "none", RECORD_SIZE),
    ):
        with pytest.raises(BpfError, match="none") as caught:
            call()
        assert caught.value.errno == errno.ENOENT


def test_a_refused_program_is_named_with_the_verifiers_verdict(tiny, bpf):
    one = Object(str(tiny))
    for name in one.programs():
        one.autoload(name, name == "refused_for_null")
    with pytest.raises(BpfError, match="map_value_or_null") as caught:
        one.load()
    assert caught.value.program == "refused_for_null"
    assert not one.loaded


def test_configuration_after_load_is_refused(watch):
    with pytest.raises(BpfError, match="loaded"):
        watch.object.set_constant("watched_tgid", 1)
    with pytest.raises(BpfError) as caught:
        watch.object.resize("numbers", 128)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(BpfError, match="autoload"):
        watch.object.autoload("good", False)


def test_a_map_has_the_size_it_was_given(tiny):
    one = Object(str(tiny))
    for name in one.programs():
        one.autoload(name, name == "good")
    one.resize("numbers", 1000)
    one.load()
    found = one.map("numbers")
    assert (found.max_entries, found.value_size, found.cpus) == (1000, 8, 1)


def test_what_is_not_loaded_can_neither_be_attached_nor_read(tiny):
    one = Object(str(tiny))
    with pytest.raises(BpfError):
        one.attach("good")
    with pytest.raises(BpfError):
        one.attach_uprobe("good", "/proc/self/exe", 0)
    with pytest.raises(BpfError, match="not loaded"):
        one.map("numbers")
    with pytest.raises(BpfError):
        RingBuffer(one, "records", RECORD_SIZE)


def test_a_program_left_out_of_the_load_cannot_be_attached(watch):
    with pytest.raises(BpfError, match="refused_for_null"):
        watch.object.attach("refused_for_null")


def test_links_and_maps_are_made_by_their_object_only():
    for made in (Link, Map):
        with pytest.raises(TypeError):
            made()


def test_an_object_cannot_be_loaded_twice(watch):
    with pytest.raises(BpfError):
        watch.object.load()
    watch.trigger(BASE)
    assert watch.numbers() == [BASE]


# --- consume --------------------------------------------------------------------------------------


def test_records_arrive_as_the_probe_wrote_them(watch):
    watch.trigger(BASE + 1)
    (record,) = decode(watch.records.poll(1000))
    assert (record.kind, record.qpn, record.pid, record.tid) == (
        KIND, BASE + 1, os.getpid(), threading.get_native_id(),
    )  # fmt: skip
    assert record.comm == Path("/proc/self/comm").read_text().rstrip("\n")
    assert (watch.records.received, watch.records.misfits) == (1, 0)


def test_a_batch_that_is_full_loses_nothing_and_keeps_the_order(tiny):
    watch = Watch(tiny, batch=8)
    for number in range(100):
        watch.trigger(BASE + number)
    batches = [watch.numbers() for _ in range(14)]
    assert [len(batch) for batch in batches] == [8] * 12 + [4, 0]
    assert [number for batch in batches for number in batch] == list(range(BASE, BASE + 100))


def test_records_of_another_size_are_counted_and_not_taken(tiny):
    watch = Watch(tiny)
    others = RingBuffer(watch.object, "records", RECORD_SIZE + 8)
    watch.trigger(BASE)
    assert others.poll(0) == b""
    assert (others.received, others.misfits) == (0, 1)


def test_other_threads_run_while_a_poll_waits(watch):
    """The poll can only end because this thread runs meanwhile and triggers the probe."""
    waiting = threading.Event()
    found: list[int] = []

    def wait() -> None:
        waiting.set()
        found.extend(watch.numbers(timeout_ms=60_000))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    watch.trigger(BASE)
    thread.join(30)
    assert not thread.is_alive()
    assert found == [BASE]


def test_a_poll_without_records_ends_at_its_timeout(watch):
    assert watch.records.poll(1) == b""


def test_records_go_into_a_fold_one_by_one(tiny):
    watch = Watch(tiny)
    table = SeriesTable(10)
    fold = KeyedFold(table.ring, record_size=RECORD_SIZE, key_at=QPN_AT, key_size=4)
    buffer = RingBuffer(watch.object, "records", RECORD_SIZE, into=fold)
    for number in (BASE, BASE + 1, BASE, BASE):
        watch.trigger(number)
    assert buffer.poll(1000) == b""
    assert (buffer.received, buffer.misfits) == (4, 0)
    counts = {}
    for key in fold.fold(1):
        number = int.from_bytes(key, "little")
        counts[number] = table.series(catalog.VERBS_OPERATIONS, {"rdma.qp.number": number}, 1)
        fold.bind(key, counts[number], None, 1)
    watch.trigger(BASE + 1)
    buffer.poll(1000)
    assert fold.fold(2) == []
    assert {number: series.value for number, series in counts.items()} == {BASE: 3, BASE + 1: 2}
    with pytest.raises(ValueError, match="records of 64 bytes"):
        RingBuffer(watch.object, "records", 64, into=fold)
    watch.link.close()


def test_a_map_is_read_by_key_and_deleted_from(watch):
    watch.trigger(BASE)
    numbers = watch.object.map("numbers")
    key = BASE.to_bytes(4, "little")
    assert numbers.get(key) == BASE.to_bytes(8, "little")
    assert numbers.delete(key)
    assert numbers.get(key) is None
    for wrong in (b"", b"12345"):
        with pytest.raises(ValueError, match="a key has 4 bytes"):
            numbers.get(wrong)
        with pytest.raises(ValueError, match="a key has 4 bytes"):
            numbers.delete(wrong)


def test_a_ring_buffer_and_a_map_outlive_the_last_reference_to_their_object(tiny):
    watch = Watch(tiny)
    watch.trigger(BASE)
    numbers, ring, link = watch.object.map("numbers"), watch.records, watch.link
    del watch
    gc.collect()
    assert len(decode(ring.poll(0))) == 1
    assert numbers.get(BASE.to_bytes(4, "little")) is not None
    link.close()


# --- let go ---------------------------------------------------------------------------------------


def test_a_link_may_be_closed_twice_and_detaches_once(watch):
    watch.trigger(BASE)
    watch.link.close()
    watch.link.close()
    watch.trigger(BASE + 1)
    assert watch.numbers() == [BASE]


def test_a_link_that_is_collected_detaches(tiny):
    watch = Watch(tiny)
    del watch.link
    gc.collect()
    watch.trigger(BASE)
    assert watch.numbers() == []


def test_nothing_is_left_open_after_many_lives(tiny, tmp_path):
    (tmp_path / "bad.bpf.o").write_bytes(b"\x7fELF")

    def life() -> None:
        watch = Watch(tiny, buffer=4096)
        watch.trigger(BASE)
        assert watch.numbers() == [BASE]
        watch.link.close()
        refused = Object(str(tiny))
        with pytest.raises(BpfError):
            refused.load()
        with pytest.raises(BpfError):
            Object(str(tmp_path / "bad.bpf.o"))

    process = psutil.Process()
    life()
    gc.collect()
    descriptors, mappings = process.num_fds(), len(process.memory_maps(grouped=False))
    for _ in range(200):
        life()
    gc.collect()
    assert process.num_fds() == descriptors
    assert len(process.memory_maps(grouped=False)) <= mappings + 5  # the allocator may take some
