"""The binding of libdcgm, on a stand-in of it."""

from __future__ import annotations

import ctypes
import random
import struct
import subprocess
import sys
import threading

import pytest

from doubles.dcgm import double
from doubles.dcgm.double import BLANK, BLANK_FP64, GPU, GPU_CI, GPU_I, LINK, SWITCH
from fabrictap.ext import dcgm
from support import eventually

pytest_plugins = ["dcgm_fixtures"]

_VALUE = struct.Struct("<IIIHHiIq")
_SIZE = 4128


@pytest.fixture
def library(engine, libraries):
    made = dcgm.Library(str(libraries[4]))
    yield made
    made.close()


@pytest.fixture
def connection(library):
    made = library.connect("localhost:5555", 1000)
    yield made
    made.close()


def packed(type_: str, payload: bytes, *, version: int = 0x02001020, status: int = 0) -> bytes:
    head = _VALUE.pack(version, 1, 2, 3, ord(type_), status, 0, 1234)
    return (head + payload).ljust(_SIZE, b"\0")


def one(type_: str, payload: bytes, **how):
    (value,) = dcgm.decode(packed(type_, payload, **how))
    return value


def test_both_sides_agree_on_every_version_word_of_the_public_headers():
    # the stand-in asserts the same words on structures of its own
    assert dcgm.LAYOUTS == {
        "dcgmConnectV2Params_v2": 0x02000010,
        "dcgmConnectV3Params_v1": 0x0100000C,
        "dcgmFieldValue_v2": 0x02001020,
        "dcgmMigHierarchy_v2": 0x02000000 | 73480,
        "dcgmVersionInfo_v2": 0x02000204,
    }


def test_the_test_and_the_stand_in_agree_on_what_they_share(libraries):
    standin = ctypes.CDLL(str(libraries[4]))
    standin.standin_control_size.restype = ctypes.c_size_t
    assert standin.standin_control_size() == ctypes.sizeof(double.Control)
    assert b"stand-in" in ctypes.string_at(
        ctypes.addressof(ctypes.c_char.in_dll(standin, "fabrictap_standin"))
    )


@pytest.mark.parametrize(
    ("type_", "payload", "value", "blank"),
    [
        ("i", struct.pack("<q", 42), 42, None),
        ("i", struct.pack("<q", -1), -1, None),
        ("t", struct.pack("<q", 7), 7, None),
        ("i", struct.pack("<q", BLANK - 1), BLANK - 1, None),
        ("i", struct.pack("<q", BLANK), None, "blank"),
        ("i", struct.pack("<q", BLANK + 1), None, "not_found"),
        ("i", struct.pack("<q", BLANK + 2), None, "not_supported"),
        ("i", struct.pack("<q", BLANK + 3), None, "not_permitted"),
        ("i", struct.pack("<q", BLANK + 9), None, "blank"),
        ("d", struct.pack("<d", 0.25), 0.25, None),
        ("d", struct.pack("<d", BLANK_FP64), None, "blank"),
        ("d", struct.pack("<d", BLANK_FP64 + 2), None, "not_supported"),
        ("d", struct.pack("<d", 1e300), None, "blank"),
        ("d", struct.pack("<d", float("inf")), None, "blank"),
        ("d", struct.pack("<d", float("nan")), None, "blank"),
        ("s", b"GPU-1\0", "GPU-1", None),
        ("s", b"<<<NULL>>>\0", None, "blank"),
        ("s", b"<<<NOT_SUPPORTED>>>\0", None, "not_supported"),
        ("s", b"x" * 300, "x" * 256, None),
        ("s", b"\xff\0", "\ufffd", None),
        ("b", b"anything", None, "unknown_type"),
        ("\0", b"", None, "unknown_type"),
    ],
)
def test_values_are_told_from_blanks(type_, payload, value, blank):
    made = one(type_, payload)
    assert (made.value, made.blank, made.status) == (value, blank, 0)
    assert (made.group, made.entity, made.field, made.time_us) == (1, 2, 3, 1234)


def test_a_value_with_a_status_is_no_value():
    made = one("i", struct.pack("<q", 42), status=-14)
    assert (made.value, made.blank, made.status) == (None, None, -14)


def test_a_value_of_another_version_is_no_value():
    assert one("i", struct.pack("<q", 42), version=0x01001020).status == -12


def test_no_bytes_crash_the_decoder():
    dice = random.Random(20261123)
    for size in (0, 1, _SIZE - 1, _SIZE, 3 * _SIZE + 17):
        assert len(dcgm.decode(bytes(size))) == size // _SIZE
    for _ in range(500):
        raw = bytearray(dice.randbytes(2 * _SIZE))
        for start in (0, _SIZE):
            if dice.random() < 0.9:  # else nearly all would end at the version
                raw[start : start + 4] = struct.pack("<I", 0x02001020)
                raw[start + 14 : start + 16] = struct.pack("<H", ord(dice.choice("idstb")))
                raw[start + 16 : start + 20] = bytes(4)
        for value in dcgm.decode(raw):
            assert value.value is None or isinstance(value.value, (int, float, str))
            assert (value.value is None) == (value.status != 0 or value.blank is not None)


def test_a_library_that_is_not_there_says_which():
    with pytest.raises(dcgm.LibraryMissingError, match=r"/nowhere/libdcgm\.so\.4"):
        dcgm.Library("/nowhere/libdcgm.so.4")


def test_a_library_that_is_another_one_says_what_it_lacks():
    before = dcgm.handles()
    with pytest.raises(dcgm.LibraryMissingError, match=r"libm\.so\.6 has no function dcgmInit"):
        dcgm.Library("libm.so.6")
    assert dcgm.handles() == before


@pytest.mark.parametrize("major", [3, 4])
def test_it_is_found_by_name_the_newest_first(libraries, tmp_path, major):
    for there in range(3, major + 1):
        (tmp_path / f"libdcgm.so.{there}").symlink_to(libraries[there])
    made = double.Engine(tmp_path / "engine")
    program = "from fabrictap.ext import dcgm; made = dcgm.Library(); print(made.path); made.close()"
    # the loader reads LD_LIBRARY_PATH when a program starts
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "LD_LIBRARY_PATH": str(tmp_path),
            double.VARIABLE: str(made.file),
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout.strip() == f"libdcgm.so.{major}"


@pytest.mark.parametrize(
    ("major", "given", "got"),
    [
        (4, "localhost:5555", ("tcp://localhost:5555", 0)),
        (4, "tcp://10.0.0.1", ("tcp://10.0.0.1", 0)),
        (4, "unix:///tmp/nv-hostengine", ("unix:///tmp/nv-hostengine", 0)),
        (4, "vsock://2:5555", ("vsock://2:5555", 0)),
        (3, "localhost:5555", ("localhost:5555", 0)),
        (3, "tcp://10.0.0.1:5556", ("10.0.0.1:5556", 0)),
        (3, "unix:///tmp/nv-hostengine", ("/tmp/nv-hostengine", 1)),
    ],
)
def test_an_address_is_given_as_the_version_wants_it(engine, libraries, major, given, got):
    library = dcgm.Library(str(libraries[major]))
    connection = library.connect(given, 1500)
    assert (engine.control.address.decode(), engine.control.is_unix) == got
    assert (engine.control.timeout_ms, engine.control.persist) == (1500, 0)
    assert engine.calls("connect_v3" if major == 4 else "connect_v2") == 1
    connection.close()
    library.close()


def test_vsock_takes_dcgm_4(engine, libraries):
    library = dcgm.Library(str(libraries[3]))
    with pytest.raises(ValueError, match="DCGM 4"):
        library.connect("vsock://2:5555", 1000)
    library.close()


@pytest.mark.parametrize("address", ["", "http://here", "tcp://", "unix://", "a\0b"])
def test_what_is_no_address_is_refused_before_the_library_sees_it(library, engine, address):
    with pytest.raises(ValueError, match="not the address"):
        library.connect(address, 1000)
    assert engine.calls("connect_v3") == 0


def test_a_refused_connection_leaves_nothing(library, engine):
    engine.control.refuse = -21
    with pytest.raises(dcgm.DcgmError, match=r"dcgmConnect: Host engine connection invalid.* \(-21\)"):
        library.connect("localhost", 1000)
    assert dcgm.handles()["connections"] == 0


def test_a_failing_init_leaves_nothing(engine, libraries):
    engine.answer("init", -7)
    before = dcgm.handles()
    with pytest.raises(dcgm.DcgmError) as caught:
        dcgm.Library(str(libraries[4]))
    assert caught.value.code == -7
    assert dcgm.handles() == before


def test_entities_instances_and_version(connection, engine):
    assert connection.version() == "4.6.0 stand-in"
    assert connection.entities(GPU) == []
    engine.gpu(0, "GPU-0")
    engine.gpu(5, "GPU-5")
    engine.add(GPU_I, 7, uuid="GPU-0", parent=(GPU, 0), gpu_instance=3)
    engine.add(GPU_CI, 9, uuid="GPU-0", parent=(GPU_I, 7), gpu_instance=3, compute_instance=1)
    assert connection.entities(GPU) == [0, 5]
    assert connection.instances() == [
        dcgm.Instance(GPU_I, 7, GPU, 0, "GPU-0", 3, 0xFFFFFFFF),
        dcgm.Instance(GPU_CI, 9, GPU_I, 7, "GPU-0", 3, 1),
    ]
    for i in range(1100):  # more than one call has room for at first
        engine.add(LINK, i)
    assert connection.entities(LINK) == list(range(1100))


def test_a_watched_field_is_read_and_an_unwatched_one_is_not(connection, engine):
    engine.gpu(0, "GPU-0")
    engine.set(GPU, 0, 252, 1234)
    assert [value.status for value in connection.latest([(GPU, 0)], [252])] == [-16]
    group, fields = connection.group("g", [(GPU, 0)])[0], connection.fields("f", [252, 250])
    connection.watch(group, fields, 10.0, 600.0, 2)
    control = engine.control
    assert (control.last_interval_us, control.last_keep, control.last_samples) == (10_000_000, 600.0, 2)
    values = {value.field: value for value in connection.latest([(GPU, 0)], [252, 250])}
    assert (values[252].value, values[252].status) == (1234, 0)
    assert (values[250].value, values[250].status) == (None, -14)
    connection.unwatch(group, fields)
    assert [value.status for value in connection.latest([(GPU, 0)], [252])] == [-16]
    assert [value.value for value in connection.latest([(GPU, 0)], [54], live=True)] == ["GPU-0"]


def test_values_that_the_engine_leaves_out_are_left_out(connection, engine):
    engine.gpu(0, "GPU-0")
    engine.set(GPU, 0, 252, 1, foreign=True)
    engine.set(GPU, 0, 250, 2, foreign=True)
    assert {value.field for value in connection.latest([(GPU, 0)], [252, 250])} == {250, 252}
    engine.control.short_by = 1
    assert [value.field for value in connection.latest([(GPU, 0)], [252, 250])] == [252]


def test_close_releases_everything_at_the_engine(library, engine):
    engine.gpu(0, "GPU-0")
    connection = library.connect("localhost", 1000)
    for name in "abc":
        connection.watch(connection.group(name, [(GPU, 0)])[0], connection.fields(name, [252]), 1.0, 60.0, 2)
    assert engine.held() == {"libraries": 1, "connections": 1, "groups": 3, "field_groups": 3, "watches": 3}
    assert dcgm.handles() == engine.held()
    assert connection.close() == 0
    assert engine.held() == {"libraries": 1}
    assert engine.control.abandoned == 0
    assert connection.close() == 0
    with pytest.raises(ValueError, match="closed"):
        connection.entities(GPU)


def test_a_connection_that_is_dropped_is_closed(library, engine):
    engine.gpu(0, "GPU-0")
    connection = library.connect("localhost", 1000)
    connection.group("g", [(GPU, 0)])
    del connection
    assert engine.held() == {"libraries": 1}
    assert dcgm.handles()["groups"] == 0


def test_closing_after_the_engine_went_away_does_not_ask_it_again_and_again(library, engine):
    engine.gpu(0, "GPU-0")
    connection = library.connect("localhost", 1000)
    for name in "abc":
        connection.watch(connection.group(name, [(GPU, 0)])[0], connection.fields(name, [252]), 1.0, 60.0, 2)
    engine.restart()
    assert connection.close() == -21
    assert engine.calls("unwatch") == 1
    assert engine.calls("disconnect") == 1
    assert dcgm.handles()["watches"] == 0


def test_a_group_says_which_entities_the_engine_did_not_take(connection, engine):
    engine.gpu(0, "GPU-0")
    group, refused = connection.group("g", [(GPU, 0), (GPU, 1)])
    assert refused == [((GPU, 1), -1)]
    connection.drop_group(group)


def test_a_group_of_entities_that_are_not_there_is_no_group(connection, engine):
    with pytest.raises(dcgm.DcgmError, match="dcgmGroupAddEntity"):
        connection.group("g", [(GPU, 0), (GPU, 1)])
    assert "groups" not in engine.held()
    assert dcgm.handles()["groups"] == 0


def test_a_refused_watch_is_taken_back(connection, engine):
    engine.gpu(0, "GPU-0")
    engine.refuse_watch(1005, -37)
    group, fields = connection.group("g", [(GPU, 0)])[0], connection.fields("f", [1005])
    with pytest.raises(dcgm.DcgmError) as caught:
        connection.watch(group, fields, 1.0, 60.0, 2)
    assert caught.value.code == -37
    assert "watches" not in engine.held()
    assert dcgm.handles()["watches"] == 0


def test_a_field_that_the_engine_does_not_know_is_refused(connection):
    with pytest.raises(dcgm.DcgmError) as caught:
        connection.fields("f", [252, 9999])
    assert caught.value.code == -1


def test_names_of_field_groups_are_unique(connection):
    connection.fields("f", [252])
    with pytest.raises(dcgm.DcgmError) as caught:
        connection.fields("f", [250])
    assert caught.value.code == -26


@pytest.mark.parametrize(
    ("pairs", "fields"),
    [([], [1]), ([(1, 0)], []), ([(1, 0)], [1] * 129), ([(1, i) for i in range(129)], [1, 2])],
)
def test_more_than_there_is_room_for_is_refused_here(connection, engine, pairs, fields):
    with pytest.raises(ValueError, match="from 1 to"):
        connection.latest(pairs, fields)
    assert engine.calls("latest") == 0


@pytest.mark.parametrize("call", ["entities", "hierarchy", "group_create", "fields_create", "latest"])
def test_every_call_that_fails_says_which_and_why(connection, engine, call):
    engine.answer(call, -33)
    attempts = {
        "entities": lambda: connection.entities(SWITCH),
        "hierarchy": connection.instances,
        "group_create": lambda: connection.group("g", [(GPU, 0)]),
        "fields_create": lambda: connection.fields("f", [252]),
        "latest": lambda: connection.latest([(GPU, 0)], [252]),
    }
    with pytest.raises(dcgm.DcgmError, match=r"module of DCGM.*\(-33\)"):
        attempts[call]()


def test_a_call_that_hangs_lets_other_threads_run_and_keeps_them_out(connection, library, engine):
    engine.hang("entities")
    found = []
    thread = threading.Thread(target=lambda: found.append(connection.entities(GPU)))
    thread.start()
    try:
        eventually(lambda: engine.control.hanging == 1, "the call hangs")
        with pytest.raises(RuntimeError, match="another thread"):
            connection.entities(GPU)
        with pytest.raises(RuntimeError, match="another thread"):
            connection.close()
        with pytest.raises(RuntimeError, match="in use"):
            library.close()
    finally:
        engine.release()
        thread.join(10)
    assert found == [[]]


def test_engines_are_not_made_by_hand():
    with pytest.raises(TypeError, match=r"Library\.connect"):
        dcgm.Engine()


def test_a_thousand_connections_leave_nothing_behind(library, engine):
    engine.gpu(0, "GPU-0")
    for _ in range(1000):
        connection = library.connect("localhost", 1000)
        connection.watch(connection.group("g", [(GPU, 0)])[0], connection.fields("f", [252]), 1.0, 60.0, 2)
        connection.latest([(GPU, 0)], [252])
        connection.close()
    assert engine.held() == {"libraries": 1}
    assert engine.control.abandoned == 0
