"""Type information for kernels that have none: made of our own objects and of what the headers say."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fabrictap.config import Verbs
from fabrictap.sources.verbs import headers, kernel_types
from fabrictap.sources.verbs.btf import Btf, Place
from fabrictap.sources.verbs.headers import OBJECTS, Refused, compile_places
from fabrictap.sources.verbs.kernel_types import HeaderTypes, TypesUnavailable, choose
from fabrictap.view import headers as doctors

CONTROL = OBJECTS / "verbs_control.bpf.o"
SYSCALL = OBJECTS / "verbs_syscall.bpf.o"
FORMAT = """name: cm_event_handler
ID: 1710
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned long event;\toffset:24;\tsize:8;\tsigned:0;
\tfield:int status;\toffset:32;\tsize:4;\tsigned:1;
\tfield:unsigned char srcaddr[sizeof(struct sockaddr_in6)];\toffset:36;\tsize:28;\tsigned:0;
"""


def structures(raw: bytes) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """Name -> (size, {field: (offset, its integer's size or 0)}); read without the code under test."""
    _, _, _, header, at, length, strings, _ = struct.unpack_from("<HBBIIIII", raw)
    fixed = {1: 4, 3: 12, 14: 4, 17: 4}
    each = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}

    def text(offset: int) -> str:
        begin = header + strings + offset
        return raw[begin : raw.index(b"\0", begin)].decode()

    types: list[tuple[int, str, int, int]] = [(0, "", 0, 0)]
    position, end = header + at, header + at + length
    while position < end:
        name, info, size = struct.unpack_from("<III", raw, position)
        types.append((info >> 24 & 31, text(name), size, position + 12))
        position += 12 + fixed.get(info >> 24 & 31, 0) + each.get(info >> 24 & 31, 0) * (info & 0xFFFF)
    assert position == end

    def integer(number: int) -> int:
        while types[number][0] in (8, 9, 10, 11):
            number = types[number][2]
        return types[number][2] if types[number][0] == 1 else 0

    found = {}
    for kind, name, size, place in types:
        if kind in (4, 5) and name:
            (info,) = struct.unpack_from("<I", raw, place - 8)
            members = [struct.unpack_from("<III", raw, place + 12 * i) for i in range(info & 0xFFFF)]
            found[name] = (size, {text(n): (bits // 8, integer(t)) for n, t, bits in members})
    return found


def everything(size: int = 8) -> dict[str, dict[str, Place]]:
    """A place for whatever is read, each at another offset."""
    wanted = {**Btf(CONTROL).wanted(), **Btf(SYSCALL).wanted(), **headers.wanted()}
    return {
        name: {"": Place(0, 4096), **{field: Place(100 + 16 * i, size) for i, field in enumerate(fields)}}
        for name, fields in wanted.items()
    }


def test_what_is_read_of_the_kernel_is_what_the_programs_relocate() -> None:
    wanted = Btf(SYSCALL).wanted()
    assert wanted["file"] == ["f_inode"]
    assert wanted["fdtable"] == ["max_fds", "fd"]
    assert Btf(OBJECTS / "verbs_data.bpf.o").wanted() == {}
    control = Btf(CONTROL).wanted()
    assert {"qp_num", "port", "av_sgid_attr"} <= set(control["ib_qp"])
    # Through a structure within another, both are placed.
    assert "grh" in control["rdma_ah_attr"]
    assert "dgid" in control["ib_global_route"]


@pytest.mark.parametrize("path", [CONTROL, SYSCALL], ids=["control", "syscall"])
def test_every_field_is_where_the_headers_say(path: Path) -> None:
    places = everything()
    found = structures(Btf(path).placed(places))
    for name, fields in Btf(path).wanted().items():
        size, members = found[name]
        assert size == 4096
        for field in fields:
            assert members[field][0] == places[name][field].offset, (name, field)


def test_a_number_that_is_narrower_in_this_kernel_is_read_as_it_is() -> None:
    places = everything(size=4)
    places["ib_qp"]["port"] = Place(208, 1)
    _, members = structures(Btf(CONTROL).placed(places))["ib_qp"]
    assert members["port"] == (208, 1)
    assert members["qp_num"][1] == 4


def test_what_was_compiled_elsewhere_is_read_from_a_file(tmp_path: Path) -> None:
    said = {
        name: {field: [place.offset, place.size] for field, place in fields.items()}
        for name, fields in everything().items()
        if not name.startswith(headers.TRACED)
    }
    path = tmp_path / "places.json"
    path.write_text(json.dumps(said))
    types = HeaderTypes(path)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    members = structures(Path(types.file(SYSCALL)).read_bytes())
    assert members["fdtable"][1]["fd"][0] == said["fdtable"]["fd"][0]
    # Those of system calls are in no header.
    assert members["trace_event_raw_sys_enter"][1]["args"][0] == 16
    assert types.file(SYSCALL) == types.file(SYSCALL)
    types.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not what"),
        ("[]", "is not what"),
        ('{"file": 1}', "is not what"),
        ('{"file": {"f_inode": "x"}}', "is not what"),
        ('{"file": {"f_inode": [8, 8]}}', "places that no structure has"),
        ('{"file": {"": [0, 8], "f_inode": [-8, 8]}}', "places that no structure has"),
        ('{"file": {"": [0, 99999999], "f_inode": [8, 8]}}', "places that no structure has"),
        ('{"file": {"": [0, 8], "another": [8, 8]}}', "nothing is said of 'f_inode'"),
    ],
)
def test_a_file_that_is_not_that_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "places.json"
    path.write_text(text)
    with pytest.raises(TypesUnavailable, match=complaint) as refusal:
        HeaderTypes(path).file(SYSCALL)
    assert "\n" not in str(refusal.value)


def test_without_headers_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(TypesUnavailable, match=r"no kernel headers in .*linux-headers"):
        HeaderTypes(tmp_path).file(SYSCALL)


def test_without_bccs_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build" / "include").mkdir(parents=True)
    monkeypatch.setattr(headers, "LIBRARY", "libbcc.so.none")
    with pytest.raises(Refused, match="install bcc's library"):
        compile_places(tmp_path, {"file": ["f_inode"]})


def test_a_constant_is_read_from_what_was_compiled() -> None:
    ending = bytes.fromhex("9500000000000000")
    assert headers._returned(bytes.fromhex("b700000020000000") + ending) == 0x20
    load = bytes.fromhex("1800000008000000000000002c010000")
    assert headers._returned(load + ending) == 300 << 32 | 8
    with pytest.raises(Refused):
        headers._returned(bytes.fromhex("b701000020000000") + ending)
    with pytest.raises(Refused):
        headers._returned(bytes.fromhex("b700000020000000") + 2 * ending)


@pytest.mark.parametrize(
    ("loader", "own", "kind"),
    [
        ("auto", True, "None"), ("libbpf", True, "None"), ("bcc", True, "HeaderTypes"),
        ("auto", False, "HeaderTypes"), ("bcc", False, "HeaderTypes"), ("libbpf", False, "refused"),
    ],
)  # fmt: skip
def test_who_describes_the_kernel(loader, own, kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_types, "KERNELS_OWN", tmp_path if own else tmp_path / "none")
    if kind == "refused":
        with pytest.raises(TypesUnavailable, match="does not exist"):
            choose(loader, None)
        return
    chosen = choose(loader, None)
    assert type(chosen).__name__ == kind.replace("None", "NoneType")


def test_the_layout_of_a_tracepoint_is_the_kernels_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = tmp_path / "events" / "rdma_cma" / "cm_event_handler"
    event.mkdir(parents=True)
    monkeypatch.setattr(kernel_types, "TRACEFS", (str(tmp_path),))
    (event / "format").write_text(FORMAT)
    found = kernel_types._event("cm_event_handler")
    assert found is not None
    assert found["event"] == Place(24, 8)
    assert found["status"] == Place(32, 4)
    assert kernel_types._event("none") is None


def test_doctor_says_of_the_headers_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(**settings: str) -> doctors.Headers:
        found = doctors.look(Verbs(**settings))
        assert found is not None
        return found

    monkeypatch.setattr(kernel_types, "KERNELS_OWN", tmp_path)
    assert doctors.look(Verbs()) is None
    assert "no headers in" in look(loader="bcc", kernel_headers=str(tmp_path / "none")).missing
    monkeypatch.setattr(kernel_types, "KERNELS_OWN", tmp_path / "none")
    assert "is libbpf" in look(loader="libbpf").missing
    (tmp_path / "build" / "include").mkdir(parents=True)
    monkeypatch.setattr(doctors, "_has_library", lambda: False)
    assert "libbpfcc" in look(kernel_headers=str(tmp_path)).fix
    monkeypatch.setattr(doctors, "_has_library", lambda: True)
    assert not look(kernel_headers=str(tmp_path)).missing
    made = tmp_path / "places.json"
    made.write_text("{}")
    assert "made elsewhere" in look(kernel_headers=str(made)).found
