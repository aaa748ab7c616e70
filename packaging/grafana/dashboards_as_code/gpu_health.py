"""Health of GPUs: the part of the dashboard *GPU and NVLink* about GPUs themselves."""

from __future__ import annotations

from dashboards_as_code.common import PART, YES_IS_BAD, numbered
from dashboards_as_code.panels import (
    CELSIUS,
    GREEN,
    NUMBER,
    ORANGE,
    RED,
    WATTS,
    Json,
    Query,
    about,
    states,
    timeseries,
)
from dashboards_as_code.promql import NODE, P, grown, of
from fabrictap import catalog

_GPU = 'hw_id=~"$gpu"'
_NAME = f"{{{{{NODE}}}}} GPU {{{{gpu_index}}}}"
_STATE_DEGRADED, _STATE_FAILED = 'hw_type="gpu",hw_state="degraded"', 'hw_type="gpu",hw_state="failed"'
_MEMORY_ERRORS = 'error_type=~"ecc_.*|row_remap_.*|pcie_.*",gpu_ecc_span!="aggregate",hw_type="gpu"'
_TROUBLED_CLOCKS = 'gpu_clocks_reason=~"hw_.*|sw_thermal"'


def panels() -> list[Json]:
    new_xids = grown(P.ERRORS, 'error_type=~"xid_.*"', _GPU)
    return [
        states(
            "Condition",
            about(catalog.HW_STATUS, says="The worst that holds."),
            Query(
                numbered(
                    f"max by ({PART}) ({of(P.HW_STATUS, _STATE_DEGRADED, _GPU)}"
                    f" + on ({PART}) 2 * {of(P.HW_STATUS, _STATE_FAILED, _GPU)})"
                ),
                _NAME,
            ),
            mapped={
                "0": ("ok", GREEN),
                "1": ("degraded", ORANGE),
                "2": ("failed", RED),
                "3": ("failed", RED),
            },
        ),
        timeseries(
            "XIDs",
            about(catalog.ERRORS, says="Errors that the driver reported, by number."),
            Query(f"sum by ({NODE}, error_type) ({new_xids})", f"{{{{{NODE}}}}} {{{{error_type}}}}"),
            unit=NUMBER,
            bars=True,
        ),
        timeseries(
            "Memory and PCIe errors",
            about(catalog.ERRORS, says="Growth in five minutes; only what has grown."),
            Query(
                f"sum by ({NODE}, error_type) (increase({of(P.ERRORS, _MEMORY_ERRORS, _GPU)}[5m])) > 0",
                f"{{{{{NODE}}}}} {{{{error_type}}}}",
            ),
            unit=NUMBER,
            bars=True,
            size=(8, 8),
        ),
        states(
            "Rows of memory out of use",
            about(catalog.GPU_ROW_REMAPPING),
            Query(f"{numbered(f'max by ({PART}) ({of(P.GPU_ROW_REMAPPING, _GPU)})')}", _NAME),
            mapped=YES_IS_BAD,
            size=(8, 8),
        ),
        states(
            "Clocks kept down",
            about(catalog.GPU_CLOCKS_REASON, says="By heat, power or a fault; idling and settings left out."),
            Query(
                f"max by ({NODE}, gpu_clocks_reason) ({of(P.GPU_CLOCKS_REASON, _TROUBLED_CLOCKS, _GPU)})",
                f"{{{{{NODE}}}}} {{{{gpu_clocks_reason}}}}",
            ),
            mapped=YES_IS_BAD,
            size=(8, 8),
        ),
        timeseries(
            "Power",
            about(catalog.GPU_POWER),
            Query(numbered(of(P.GPU_POWER, 'hw_type="gpu"', _GPU)), _NAME),
            unit=WATTS,
        ),
        timeseries(
            "Temperature",
            about(catalog.GPU_TEMPERATURE),
            Query(
                numbered(of(P.GPU_TEMPERATURE, 'hw_sensor_location="gpu"', _GPU)),
                _NAME,
            ),
            unit=CELSIUS,
            least=None,
        ),
    ]
