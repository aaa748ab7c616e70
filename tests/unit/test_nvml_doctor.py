"""What doctor says of GPUs, on the stand-in."""

from __future__ import annotations

import threading

import pytest

from fabrictap.config import Config
from fabrictap.view import doctor, gpus
from support import eventually

pytest_plugins = ["nvml_fixtures"]


@pytest.fixture
def configured(watch, built_nvml, tmp_path):
    """Makes (node, configuration) of a profile; the node's clock is real, so that GPM has its second."""

    def make(profile):
        watched = watch(profile)
        watched.node.real_clock()
        config = Config()
        config.sources.nvml.library = str(built_nvml.library)
        config.sources.infiniband.sysfs = str(tmp_path / "sys")
        return watched.node, config

    return make


def checks(config):
    return {check.what: check for check in doctor._gpus(config)}


def test_every_gpu_with_who_delivers_what_and_what_is_missing_and_why(configured):
    _, config = configured("hgx-h100")
    found = checks(config)
    assert len(found) == 8
    first = found["GPU 0 GPU-0a1b2c3d-4e5f-4a6b-8c7d-000000000000"]
    assert first.ok
    assert first.found.startswith("NVIDIA H100 80GB HBM3, at 0000:1b:00.0, 18 of 18 NVLinks up; ")
    assert "gpm: gpu.memory.bandwidth.utilization; nvml: 2" in first.found
    assert first.cost == "does not have: not_supported: gpu.nvlink.packets"


def test_a_lost_gpu_is_missing_and_the_others_are_not(configured):
    node, config = configured("hgx-h100")
    with node.answer("nvmlDeviceGetUtilizationRates", 15, gpu=2):
        found = list(checks(config).values())
    assert [check.status for check in found] == ["ok", "ok", "missing", *["ok"] * 5]
    assert found[2].found == "gpu_lost"


def on_pci(tmp_path):
    device = tmp_path / "sys/bus/pci/devices/0000:1b:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")


def test_a_driver_that_is_not_loaded_is_missing_where_a_gpu_is_and_absent_where_none_is(configured, tmp_path):
    node, config = configured("hgx-h100")
    node.unload_driver()
    assert checks(config)["GPUs"].status == "absent"
    on_pci(tmp_path)
    check = checks(config)["GPUs"]
    assert check.status == "missing"
    assert "modprobe nvidia" in check.found


def test_no_library_is_absent(configured):
    _, config = configured("laptop")
    config.sources.nvml.library = "/nowhere/libnvidia-ml.so.1"
    assert checks(config)["GPUs"].status == "absent"


def test_a_driver_that_hangs_does_not_hold_doctor(configured, tmp_path, monkeypatch):
    node, config = configured("laptop")
    on_pci(tmp_path)
    monkeypatch.setattr(gpus, "_PATIENCE", 0.3)
    with node.hang("nvmlInitWithFlags"):
        check = checks(config)["GPUs"]
    assert "has not answered" in check.found
    eventually(
        lambda: all(thread.name != "doctor-gpus" for thread in threading.enumerate()), "its thread ends"
    )
