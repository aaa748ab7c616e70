"""What several dashboards show in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards_as_code.dashboard import to
from dashboards_as_code.panels import (
    GREEN,
    GREY,
    ORANGE,
    RED,
    YELLOW,
    Json,
    Mapped,
)
from dashboards_as_code.promql import CLUSTER, NODE, OUT, P, of, rate
from dashboards_as_code.tables import Column
from fabrictap import catalog
from fabrictap.insight.detectors.links import RETRANSMISSIONS

FLEET, NODES, GPUS, FABRIC, FLOWS, SECURITY, AGENT = (
    f"fabrictap-{name}" for name in ("fleet", "node", "gpu", "fabric", "flows", "security", "agent")
)
#: One node among those of several clusters; and one part of hardware on it.
PLACE = f"{CLUSTER}, {NODE}"
PART = f"{PLACE}, hw_id"

#: From which severity of an alert on a share, a number of things that should be 0, dark bytes in a second.
FULL: Sequence[tuple[float | None, str]] = ((None, GREEN), (0.7, YELLOW), (0.9, ORANGE))
NONE_WANTED: Sequence[tuple[float | None, str]] = ((None, GREEN), (1, RED))
WARN_FROM_ONE: Sequence[tuple[float | None, str]] = ((None, GREEN), (1, ORANGE))
DARK: Sequence[tuple[float | None, str]] = ((None, GREEN), (100e3, ORANGE), (10e6, RED))

UP_OR_DOWN: Mapped = {"1": ("up", GREEN), "0": ("down", RED)}
YES_IS_BAD: Mapped = {"0": ("no", GREEN), "1": ("yes", ORANGE)}
FINDINGS_OPEN: Mapped = {"0": ("none", GREY), "1": ("open", ORANGE)}

#: Of an RDMA port, in one direction, and where a port's own counters are meant.
SENT = rate(P.NETWORK_IO, OUT)
DARK_OUT = rate(P.PORT_DARK, OUT)
#: Of GPUs, the sum over their links.
NVLINK_OUT = rate(P.GPU_IO, 'gpu_interconnect="nvlink"', OUT)
#: Not the devices that MIG splits them into.
WHOLE_GPUS = of(P.GPU_PRESENT, 'hw_parent=""')
#: Counters of repeated packets, which some drivers have among the errors and some elsewhere.
RETRANSMITTED = (
    rate(P.ERRORS, f'error_type=~"{"|".join(sorted(RETRANSMISSIONS))}"'),
    rate(P.PORT_COUNTER, f'rdma_counter_name=~"{"|".join(sorted(RETRANSMISSIONS))}"'),
)


def numbered(expr: str) -> str:
    """``expr``, which has a GPU's hw_id, with its number on the node as gpu_index."""
    return f"({expr}) * on ({PART}) group_left (gpu_index) {of(P.GPU_PRESENT)}"


def node_column() -> Column:
    return Column(NODE, "Node", link=to(NODES, "This node", node="${__value.raw}"))


def finding_columns() -> list[Column]:
    """Of a table of findings: what, where, and what may be done about it."""
    runbook: Json = {
        "title": "What it means and what to do",
        "url": "https://github.com/fabrictap/fabrictap/blob/main/docs/runbooks.md#${__value.raw}",
        "targetBlank": True,
    }
    return [
        Column("fabrictap_finding_kind", "Finding", link=runbook),
        Column(
            "fabrictap_finding_severity",
            "Severity",
            mapped={
                name: (name, color)
                for name, color in zip(catalog.FINDING_SEVERITY.values, (GREY, ORANGE, RED), strict=True)
            },
        ),
        node_column(),
    ]
