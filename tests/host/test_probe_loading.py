"""What the agent makes of programs that the kernel refuses."""

from __future__ import annotations

import os

import pytest

from fabrictap.ext import records
from fabrictap.ext.bpf import BpfError
from fabrictap.ext.records import decode
from fabrictap.sources.verbs import probes

KIND = records.CM_EVENT
#: A process id that cannot be: beyond PID_MAX_LIMIT.
BASE = 1 << 23


def test_a_program_that_the_kernel_refuses_is_left_out_and_the_others_work(tiny, monkeypatch):
    monkeypatch.setattr(probes, "_OBJECTS", tiny.parent)
    wanted = ["good", "refused_for_null", "refused_for_bounds"]
    made = probes._load("tiny", wanted, "tracepoint", 1 << 16, watched_tgid=os.getpid(), record_kind=KIND)
    probes._attach_all(made, wanted)
    try:
        assert set(made.refused) == {"refused_for_null", "refused_for_bounds"}
        assert "map_value_or_null" in made.refused["refused_for_null"]
        assert made.attached == {"good": 1}
        with pytest.raises(ProcessLookupError):
            os.getpgid(BASE)
        assert len(decode(made.records.poll(0))) == 1
        assert set(made.losses().values()) == {0}
    finally:
        made.close()


def test_an_object_of_which_nothing_loads_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(probes, "_OBJECTS", tiny.parent)
    with pytest.raises(BpfError) as caught:
        probes._load("tiny", ["refused_for_null", "refused_for_bounds"], "tracepoint", 1 << 16)
    assert caught.value.program in ("refused_for_null", "refused_for_bounds")
