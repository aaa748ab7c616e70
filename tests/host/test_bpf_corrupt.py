"""Damaged object files: an error that says so, never the end of the agent."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fabrictap.sources.verbs import probes

# Opens each file that it is told of and prints the outcome; a crash shows in its exit status.
OPEN_ALL = """
import sys
from fabrictap.ext.bpf import BpfError, Object
for path in sys.stdin.read().splitlines():
    print("opening", path, flush=True)
    try:
        Object(path).programs()
    except BpfError:
        print("refused", flush=True)
"""


def outcomes(paths: list[Path]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL],
        input="\n".join(map(str, paths)), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.returncode} at {lines[-1] if lines else 'start'}: {done.stderr}"
    return lines


@pytest.fixture(scope="module", params=["verbs_data.bpf.o", "verbs_control.bpf.o"])
def healthy(request) -> bytes:
    return (probes._OBJECTS / request.param).read_bytes()


def test_every_truncation_is_refused(healthy, tmp_path):
    paths = []
    for number in range(200):
        path = tmp_path / f"{number}.bpf.o"
        path.write_bytes(healthy[: len(healthy) * number // 200])
        paths.append(path)
    assert outcomes(paths).count("refused") == len(paths)


def _type_information(healthy: bytes) -> list[range]:
    """Where the sections .BTF and .BTF.ext lie."""
    sections_at = struct.unpack_from("<Q", healthy, 40)[0]
    size, count, names = struct.unpack_from("<HHH", healthy, 58)
    sections = [struct.unpack_from("<IIQQQQ", healthy, sections_at + index * size) for index in range(count)]
    found = []
    for name, _, _, _, offset, length in sections:
        name_at = sections[names][4] + name
        if healthy[name_at : healthy.index(b"\0", name_at)].startswith(b".BTF"):
            found.append(range(offset, offset + length))
    return found


def test_flipped_bits_never_crash(healthy, tmp_path):
    """But for those in the type information: libbpf 1.1 trusts it, and may end the process."""
    trusted = _type_information(healthy)
    assert trusted
    chance = random.Random(20)
    places = [place for place in range(len(healthy)) if not any(place in section for section in trusted)]
    paths = []
    for number in range(400):
        damaged = bytearray(healthy)
        for _ in range(chance.choice((1, 1, 4, 32))):
            damaged[chance.choice(places)] ^= 1 << chance.randrange(8)
        path = tmp_path / f"{number}.bpf.o"
        path.write_bytes(damaged)
        paths.append(path)
    assert 0 < outcomes(paths).count("refused") < len(paths)
