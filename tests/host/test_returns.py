"""Whether return probes kill processes with a seccomp filter: tried on this kernel."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from fabrictap.sources.verbs import probes, returns

OBJECT = str(probes._OBJECTS / "verbs_data.bpf.o")


def test_this_kernel_answers_as_its_release_says(bpf):
    """6.14 has the fix, and 6.10 nothing to be fixed; what is between may have it."""
    release = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))
    answered = returns.safe(OBJECT)
    assert answered or (6, 11) <= release < (6, 14)


def test_the_child_has_a_filter_on_and_waits_to_be_probed():
    child = subprocess.Popen(
        [sys.executable, "-m", "fabrictap.sources.verbs.returns"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    offset, path = child.stdout.readline().decode().rstrip("\n").split(" ", 1)
    assert "Seccomp:\t2\n" in Path(f"/proc/{child.pid}/status").read_text()
    assert int(offset) > 0
    assert "libc" in path
    child.communicate(b"\n")
    assert child.returncode == 0


def test_a_child_that_is_killed_is_no_safe_kernel(bpf, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 4096 /bin/sh\nread line\nkill -ILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert "seccomp" in returns._try(OBJECT)


def test_an_object_that_is_not_there_is_no_safe_kernel(tmp_path):
    assert "could not be tried" in returns._try(str(tmp_path / "none.bpf.o"))
