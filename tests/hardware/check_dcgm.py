"""The dcgm source on a real DCGM: to be run by hand where one is (docs/hardware.md), not collected by itself.

    python -m pytest tests/hardware/check_dcgm.py -v

Library and address are those of the configuration: FABRICTAP_SOURCES__DCGM__LIBRARY, ..._ADDRESS.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time

import pytest

from fabrictap.config import load
from fabrictap.ext import dcgm
from fabrictap.sources.dcgm import states
from fabrictap.sources.dcgm.entities import Entity
from fabrictap.sources.dcgm.fields import GPU
from fabrictap.sources.dcgm.session import Sample, Session

_TOTAL_MEMORY = 250


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def session():
    settings = load().sources.dcgm
    settings.enabled = "on"
    errors: dict[str, int] = {}
    made = Session(settings, errors)
    made.open(time.monotonic())
    print(f"\n{made.path}, host engine {made.version}: {len(made.inventory.entities)} entities")
    yield made
    made.close()
    assert set(dcgm.handles().values()) == {0}
    assert "version_mismatch" not in errors


@pytest.fixture(scope="module")
def sample(session) -> Sample:
    """Two intervals later, so that rates have something to grow from."""
    time.sleep(2 * load().sources.dcgm.interval)
    made = session.read(time.monotonic())
    assert made.lost is None
    return made


def gpus(sample: Sample) -> list[Entity]:
    return [entity for entity in sample.readings if entity.group == GPU]


def test_where_nobody_listens_the_library_says_so_in_a_code_that_is_known(session):
    if "stand-in" in (session.version or ""):
        pytest.skip("the stand-in connects to nothing")
    library = dcgm.Library(load().sources.dcgm.library)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(dcgm.DcgmError) as caught:
            library.connect(f"127.0.0.1:{closed.getsockname()[1]}", 1000)
    assert caught.value.code in states.FATAL, caught.value
    library.close()


def test_gpus_are_those_that_the_driver_lists(sample):
    listed = tool("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader").split()
    assert sorted(entity.hw_id for entity in gpus(sample)) == sorted(listed)


def test_memory_is_what_the_driver_says(sample):
    listed = tool("nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits")
    total = {uuid: int(mib) for uuid, mib in (line.split(", ") for line in listed.splitlines())}
    assert {entity.hw_id: sample.readings[entity][_TOTAL_MEMORY].value for entity in gpus(sample)} == total


def test_values_are_of_now_and_every_reason_is_known(sample):
    now_us = time.time() * 1e6
    assert sample.readings, "the engine has nothing"
    for entity, readings in sample.readings.items():
        fresh = [reading for field, reading in readings.items() if field not in states.EVENTS]
        with_value = [reading for reading in fresh if reading.value is not None]
        print(entity.hw_id, f"{len(with_value)} of {len(fresh)} fields have a value")
        assert all(abs(now_us - reading.time_us) < 120e6 for reading in with_value), entity
        unknown = [field for field, reading in readings.items() if reading.reason == "error"]
        assert not unknown, f"{entity.hw_id}: a code without a name at {unknown}"


def test_nothing_is_left_at_the_engine(session):
    before = tool("dcgmi", "group", "-l").count("fabrictap-")
    one = Session(load().sources.dcgm, {})
    one.open(time.monotonic())
    assert tool("dcgmi", "group", "-l").count("fabrictap-") > before
    one.close()
    assert tool("dcgmi", "group", "-l").count("fabrictap-") == before
