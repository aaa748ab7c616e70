"""The NVML stand-in speaks NVML's ABI: nvidia-ml-py's classes and constants, and the real library, say so."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from doubles.nvml import builder, loader, real
from support import require

#: Ours, and what nvidia-ml-py calls it.
STRUCTS = {
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlBAR1Memory_t": pynvml.c_nvmlBAR1Memory_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlProcessInfo_t": pynvml.c_nvmlProcessInfo_v3_t,
    "nvmlGpmMetric_t": pynvml.c_nvmlGpmMetric_t,
    "nvmlGpmSupport_t": pynvml.c_nvmlGpmSupport_t,
    "nvmlGpuFabricInfo_t": pynvml.c_nvmlGpuFabricInfo_t,
    "nvmlGpuFabricInfo_v3_t": pynvml.c_nvmlGpuFabricInfo_v3_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "nvmlDeviceAttributes_t": pynvml.c_nvmlDeviceAttributes,
    "nvmlConfComputeSystemState_t": pynvml.c_nvmlConfComputeSystemState_t,
    "nvmlSystemConfComputeSettings_v1_t": pynvml.c_nvmlSystemConfComputeSettings_v1_t,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
    "nvmlValue_t": pynvml.c_nvmlValue_t,
}
ABI = (builder.HERE / "abi.h").read_text()


@pytest.fixture(autouse=True)
def compiler() -> None:
    require("cc", not builder.missing(), builder.missing())


def offsets(ours: str, theirs: type[ctypes.Structure]) -> list[str]:
    return [
        f'_Static_assert(offsetof({ours}, {name}) == {getattr(theirs, name).offset}, "{ours}.{name}");'
        for name, *_ in theirs._fields_
    ]


@pytest.mark.parametrize("ours", STRUCTS)
def test_a_struct_has_the_size_and_the_offsets_of_nvidia_ml_py(ours: str) -> None:
    theirs = STRUCTS[ours]
    size = f'_Static_assert(sizeof({ours}) == {ctypes.sizeof(theirs)}, "{ours}");'
    builder.check_abi([size, *offsets(ours, theirs)])


def test_the_structs_with_several_lengths_agree() -> None:
    get = pynvml.c_nvmlGpmMetricsGet_t
    second = pynvml.c_nvmlGpuFabricInfo_v2_t
    builder.check_abi(
        [
            *offsets("nvmlGpmMetricsGet_t", get),
            *offsets("nvmlGpuFabricInfo_v3_t", second),
            f'_Static_assert(NVML_FABRIC_V2_SIZE == {ctypes.sizeof(second)}, "v2");',
            *offsets("nvmlProcessInfo_t", pynvml.c_nvmlProcessInfo_v2_t),
        ]
    )


def test_every_constant_has_the_value_of_nvidia_ml_py() -> None:
    ours = set(re.findall(r"^\s+(NVML_[A-Z0-9_]+) =", ABI, re.M)) - {"NVML_FABRIC_V2_SIZE"}
    assert len(ours) > 80
    # The cumulative metrics came after the oldest wheel that will do.
    known = {name for name in ours if hasattr(pynvml, name)}
    assert {
        name for name in ours - known if not re.search(r"_METRIC_(PCIE|NVLINK_L\d+)_[TR]X$", name)
    } == set()
    builder.check_abi(
        [f'_Static_assert({name} == {getattr(pynvml, name)}, "{name}");' for name in sorted(known)]
    )


def test_every_error_code_is_there() -> None:
    ours = set(re.findall(r"(NVML_ERROR_[A-Z_]+) =", ABI))
    theirs = {name for name in dir(pynvml) if name.startswith("NVML_ERROR_")}
    assert theirs <= ours


def test_a_compile_time_check_can_fail() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        builder.check_abi(['_Static_assert(sizeof(nvmlMemory_t) == 25, "wrong");'])


@pytest.mark.parametrize("name", loader.names())
def test_a_profile_names_only_what_nvml_has(name: str) -> None:
    profile = loader.load(name)
    fields = {
        *profile["gpus"].get("fields", {}),
        *profile.get("nvlink", {}).get("fields", {}),
        *profile.get("c2c", {}).get("fields", {}),
    }
    limit = profile["node"]["field_limit"]
    assert {field for field in fields if loader.field(field) >= limit} == set()


def test_the_real_library_without_a_driver_answers_driver_not_loaded() -> None:
    library, why = real.library()
    require("nvml535", library is not None, why)
    assert library is not None
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has NVIDIA's driver")
    script = (
        "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError as error: print(error.value, error)\n"
    )
    # As root the library would make /dev/nvidiactl; a test leaves the machine as it is.
    harmless = ["setpriv", "--bounding-set=-mknod"] if os.geteuid() == 0 else []
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run(
        [*harmless, sys.executable, "-c", script],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "9 Driver Not Loaded"


def test_the_old_stand_ins_have_no_symbol_that_the_real_libraries_lack(tmp_path: Path) -> None:
    library, why = real.library()
    require("nvml535", library is not None, why)
    built = builder.build(tmp_path)
    theirs, ours, all_of_ours = (ctypes.CDLL(str(path)) for path in (library, built.r535, built.library))
    names = re.findall(r"X\((nvml[A-Z]\w+)\)", (builder.HERE / "names.h").read_text())
    assert len(names) > 80
    assert [name for name in names if not hasattr(all_of_ours, name)] == []
    assert [name for name in names if hasattr(ours, name) != hasattr(theirs, name)] == []
