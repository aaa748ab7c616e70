"""RDMA fabric: ports, links and congestion."""

from __future__ import annotations

from dashboards_as_code.common import FABRIC, PART, RETRANSMITTED, UP_OR_DOWN, node_column
from dashboards_as_code.dashboard import dashboard, row, values
from dashboards_as_code.panels import (
    BYTES_PER_SECOND,
    NUMBER,
    PER_SECOND,
    SHARE,
    Json,
    Query,
    about,
    heatmap,
    stat,
    states,
    timeseries,
)
from dashboards_as_code.promql import IN, NODE, OUT, P, average, of, peak, rate
from dashboards_as_code.tables import Column, table
from fabrictap import catalog

_PORT = 'hw_id=~"$port"'
_NAME = f"{{{{{NODE}}}}} {{{{hw_id}}}}"
_COUNTED = f"{{{{{NODE}}}}} {{{{rdma_counter_name}}}}"


def build() -> Json:
    return dashboard(
        FABRIC,
        "RDMA fabric",
        "Ports of the fabric: how full, how bursty, how congested, how healthy.",
        [
            row("Ports", *_ports()),
            row("Load", *_load()),
            row("Congestion", *_congestion()),
            row("Errors", *_errors()),
        ],
        variables=[
            values(
                "port",
                "Port",
                f'label_values({P.NETWORK_UP}{{k8s_cluster_name=~"$cluster",host_name=~"$node"}}, hw_id)',
            )
        ],
    )


def _ports() -> list[Json]:
    labels = f"{NODE}, hw_id, hw_name, rdma_link_layer"
    facts = f"{labels}, rdma_port_state, hw_model, hw_firmware_version"
    return [
        table(
            "Ports",
            about(catalog.NETWORK_UP, catalog.NETWORK_LIMIT),
            Query(f"max by ({facts}) ({of(P.NETWORK_UP, _PORT)})"),
            Query(f"sum by ({labels}) ({of(P.NETWORK_LIMIT, _PORT)})"),
            Query(f"sum by ({labels}) ({rate(P.NETWORK_IO, OUT, _PORT)})"),
            Query(f"sum by ({labels}) ({rate(P.NETWORK_IO, IN, _PORT)})"),
            columns=[
                node_column(),
                Column("hw_id", "Port"),
                Column("hw_name", "Interface"),
                Column("rdma_link_layer", "Link"),
                Column("Value #A", "Up", mapped=UP_OR_DOWN),
                Column("rdma_port_state", "State"),
                Column("Value #B", "Speed", BYTES_PER_SECOND),
                Column("Value #C", "Sent", BYTES_PER_SECOND),
                Column("Value #D", "Received", BYTES_PER_SECOND),
                Column("hw_model", "Model"),
                Column("hw_firmware_version", "Firmware"),
            ],
            sort="Sent",
            size=(24, 9),
        ),
        states(
            "Ports over time",
            about(catalog.NETWORK_UP),
            Query(f"min by ({NODE}, hw_id) ({of(P.NETWORK_UP, _PORT)})", _NAME),
            mapped=UP_OR_DOWN,
            size=(24, 9),
        ),
    ]


def _load() -> list[Json]:
    used = (
        f"max by ({NODE}, hw_id) (sum by ({PART}, network_io_direction) ({rate(P.NETWORK_IO, _PORT)})"
        f" / on ({PART}) group_left () {of(P.NETWORK_LIMIT, _PORT)})"
    )
    return [
        timeseries(
            "Traffic by port (received below)",
            about(catalog.NETWORK_IO),
            Query(f"sum by ({NODE}, hw_id) ({rate(P.NETWORK_IO, OUT, _PORT)})", f"{_NAME} sent"),
            Query(f"sum by ({NODE}, hw_id) ({rate(P.NETWORK_IO, IN, _PORT)})", f"{_NAME} received"),
            unit=BYTES_PER_SECOND,
            mirrored="received",
            size=(12, 9),
        ),
        heatmap(
            "Share of the link's speed",
            about(catalog.NETWORK_IO, catalog.NETWORK_LIMIT, says="In the busier direction."),
            Query(used, _NAME),
            unit=SHARE,
            size=(12, 9),
        ),
        timeseries(
            "Bursts beside averages",
            about(
                *catalog.rates(catalog.NETWORK_IO),
                says="Of the busiest port: the rate over an export interval, and the largest between two "
                "samples in it.",
            ),
            Query(f"max({of(average(catalog.NETWORK_IO), OUT, _PORT)})", "average"),
            Query(f"max({of(peak(catalog.NETWORK_IO), OUT, _PORT)})", "peak"),
            Query(f"max({of(P.NETWORK_LIMIT, _PORT)})", "speed of the link"),
            unit=BYTES_PER_SECOND,
        ),
        timeseries(
            "Packets sent",
            about(catalog.NETWORK_PACKETS),
            Query(f"sum by ({NODE}) ({rate(P.NETWORK_PACKETS, OUT, _PORT)})", f"{{{{{NODE}}}}}"),
            unit=PER_SECOND,
            stacked=True,
        ),
    ]


def _congestion() -> list[Json]:
    waits = rate(P.PORT_COUNTER, 'rdma_counter_name="port_xmit_wait"', _PORT)
    marks = "np_ecn_marked_roce_packets|np_cnp_sent|rp_cnp_handled"
    notices = rate(P.PORT_COUNTER, f'rdma_counter_name=~"{marks}"', _PORT)
    again = " or ".join(f"sum by ({NODE}, hw_id) ({counted})" for counted in RETRANSMITTED)
    return [
        timeseries(
            "Waiting for credits (InfiniBand)",
            about(
                catalog.PORT_COUNTER,
                says="port_xmit_wait: ticks in a second in which data was there and could not be sent. What "
                "a tick is depends on the device; compare ports with each other.",
            ),
            Query(f"topk(10, sum by ({NODE}, hw_id) ({waits}))", _NAME),
            unit=PER_SECOND,
            size=(8, 8),
        ),
        timeseries(
            "Congestion notices (RoCE)",
            about(
                catalog.PORT_COUNTER,
                says="Packets marked on the way (ECN), notices sent for them, notices handled.",
            ),
            Query(f"sum by ({NODE}, rdma_counter_name) ({notices})", _COUNTED),
            unit=PER_SECOND,
            size=(8, 8),
        ),
        timeseries(
            "Packets sent again",
            about(
                catalog.ERRORS, catalog.PORT_COUNTER, says="And asked for again, by the drivers' counters."
            ),
            Query(again, _NAME),
            unit=PER_SECOND,
            size=(8, 8),
        ),
    ]


def _errors() -> list[Json]:
    errors = of(P.ERRORS, 'hw_type="network"', _PORT)
    drops = rate(P.ERRORS, 'error_type=~".*discard.*|out_of_buffer|.*drop.*"', _PORT)
    return [
        stat(
            "Errors in an hour",
            about(catalog.ERRORS, says="Of all ports that are shown."),
            Query(f"sum(increase({errors}[1h]))"),
            unit=NUMBER,
            size=(4, 8),
            decimals=0,
            steps=((None, "green"), (1, "orange")),
        ),
        timeseries(
            "Errors by kind",
            about(catalog.ERRORS, says="In five minutes; only what has grown."),
            Query(
                f"sum by ({NODE}, hw_id, error_type) (increase({errors}[5m])) > 0",
                f"{_NAME} {{{{error_type}}}}",
            ),
            unit=NUMBER,
            bars=True,
            size=(10, 8),
        ),
        timeseries(
            "Drops and discards",
            about(catalog.ERRORS),
            Query(f"sum by ({NODE}, hw_id) ({drops})", _NAME),
            unit=PER_SECOND,
            size=(10, 8),
        ),
    ]
