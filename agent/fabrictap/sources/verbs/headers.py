"""Where the fields of kernel structures are, as the kernel's headers say it, compiled by bcc's library.

For kernels without type information (BTF) of their own or of their modules. The library brings a compiler of
200 MiB, so this is a program of its own: ``python -m fabrictap.sources.verbs.headers HEADERS`` prints
{structure: {field: [offset, size]}} of what our programs read, as JSON; "" is the structure itself.

HEADERS is a directory as /lib/modules/RELEASE, with ``build`` and, where a distribution has them apart,
``source``. What is printed may be kept, and used on other nodes of the same kernel that have neither headers
nor the library.

Nothing is loaded into the kernel: each answer is the constant that a compiled function returns.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys
from pathlib import Path

from fabrictap.sources.verbs.btf import Btf

OBJECTS = Path(__file__).parents[2] / "probes"
#: Structures of tracepoints: no header has them.
TRACED = "trace_event_raw_"
LIBRARY = "libbcc.so.0"
_INCLUDES = (
    "linux/sched.h", "linux/sched/signal.h", "linux/fs.h", "linux/fdtable.h",
    "rdma/ib_verbs.h", "rdma/restrack.h", "rdma/uverbs_ioctl.h",
)  # fmt: skip
#: Structures that the kernel has by a typedef's name only.
_TYPEDEFS = {"atomic_counter": "atomic_t"}
_UNIONS = ("ib_gid",)
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
#: Operation codes of BPF: move a 32-bit constant, and load one of 64 bits in two instructions.
_MOVES, _LOAD_64 = (0xB4, 0xB7), 0x18


class Refused(Exception):  # noqa: N818 - an answer
    """The library or the headers are not there, or do not compile; the message says which."""


def wanted() -> dict[str, list[str]]:
    """Structure -> the fields of it that any of our programs reads."""
    found: dict[str, list[str]] = {}
    for path in sorted(OBJECTS.glob("*.bpf.o")):
        for name, fields in Btf(path).wanted().items():
            if not name.startswith(TRACED):
                found[name] = [*dict.fromkeys([*found.get(name, []), *fields])]
    return found


def compile_places(headers: Path, wanted: dict[str, list[str]]) -> dict[str, dict[str, tuple[int, int]]]:
    """In this process. Raises Refused."""
    build = headers / "build"
    source = headers / "source"
    if not (build / "include").is_dir():
        raise Refused(
            f"no kernel headers in {build}: install those of this kernel, as linux-headers-$(uname -r)"
        )
    if not (source / "include").is_dir():
        source = build
    queries = [(name, field) for name, fields in wanted.items() for field in ("", *fields)]
    text = "".join(f"#include <{name}>\n" for name in _INCLUDES)
    for number, (name, field) in enumerate(queries):
        kind = _TYPEDEFS.get(name) or f"{'union' if name in _UNIONS else 'struct'} {name}"
        offset = f"(u64)__builtin_offsetof({kind}, {field}) << 32" if field else "0"
        size = f"sizeof((({kind} *)0)->{field})" if field else f"sizeof({kind})"
        text += f"u64 query{number}(void *ctx) {{ return {offset} | {size}; }}\n"
    values = _constants(source.resolve(), build.resolve(), text, len(queries))
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for (name, field), value in zip(queries, values, strict=True):
        found.setdefault(name, {})[field] = (value >> 32, value & 0xFFFFFFFF)
    return found


def _constants(source: Path, build: Path, text: str, count: int) -> list[int]:
    """What the functions query0, query1 ... return."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Refused(f"{error}: install bcc's library, as libbpfcc of Debian and Ubuntu") from None
    # bcc/bcc_common.h
    library.bpf_module_create_c_from_string.restype = ctypes.c_void_p
    library.bpf_module_create_c_from_string.argtypes = (
        ctypes.c_char_p, ctypes.c_uint, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_bool,
        ctypes.c_char_p,
    )  # fmt: skip
    library.bpf_function_start.restype = ctypes.c_void_p
    library.bpf_function_start.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    library.bpf_function_size.restype = ctypes.c_size_t
    library.bpf_function_size.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    architecture = f"arch/{_ARCHITECTURES.get(platform.machine(), platform.machine())}/include/generated"
    places = ("include", architecture, f"{architecture}/uapi", "include/generated/uapi")
    flags = ["-w", *(f"-I{build / place}" for place in places if build != source)]
    # The directory that it looks for the rest in.
    os.environ["BCC_KERNEL_SOURCE"] = str(source)
    given = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    module = library.bpf_module_create_c_from_string(text.encode(), 0, given, len(flags), True, None)
    if not module:
        raise Refused(f"the headers in {source} do not compile")
    values = []
    for number in range(count):
        name = f"query{number}".encode()
        size = library.bpf_function_size(module, name)
        start = library.bpf_function_start(module, name)
        if not start:
            raise Refused(f"bcc made nothing of the headers in {source}")
        values.append(_returned(ctypes.string_at(start, size)))
    return values


def _returned(code: bytes) -> int:
    """Of ``r0 = constant; exit``. Raises Refused."""
    operation, registers, _, low = struct.unpack_from("<BBhI", code)
    if registers == 0 and operation in _MOVES and len(code) == 16:
        return int(low)
    if registers == 0 and operation == _LOAD_64 and len(code) == 24:
        return int(low) | int(struct.unpack_from("<I", code, 12)[0]) << 32
    raise Refused("bcc's compiler made no constant of a field's place")


def main() -> int:
    """See the module."""
    try:
        if len(sys.argv) != 2:
            raise Refused("usage: python -m fabrictap.sources.verbs.headers HEADERS")
        found = compile_places(Path(sys.argv[1]), wanted())
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
