"""What each counter file of an RDMA port means: the one metric that it goes to.

Names come from the drivers: ``counters/`` is the same everywhere (drivers/infiniband/core/sysfs.c, IBTA
PortCounters), ``hw_counters/`` is each driver's own. Anything not known here is exported as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fabrictap.catalog import ERRORS, NETWORK_IO, NETWORK_PACKETS, PORT_COUNTER, Metric

COUNTERS = "counters"
COUNTERS_EXT = "counters_ext"
HW_COUNTERS = "hw_counters"

#: PortXmitData and PortRcvData count 4-byte words (IBTA 16.1.3.5).
WORD = 4

#: (metric, direction) -> files that count it, the best first: only one of them may be exported as that
#: metric. counters_ext/ holds the 64-bit counters where a driver shows the 32-bit ones, which stick at
#: 2^32-1, in counters/ (kernels before 4.6, MLNX_OFED). tx_bytes and tx_pkts: efa, bnxt_re;
#: sent_pkts: rdma_rxe.
_TRAFFIC: dict[tuple[str, str], tuple[tuple[str, str, int], ...]] = {
    (NETWORK_IO.name, "transmit"): (
        (COUNTERS_EXT, "port_xmit_data_64", WORD),
        (COUNTERS, "port_xmit_data", WORD),
        (HW_COUNTERS, "tx_bytes", 1),
    ),
    (NETWORK_IO.name, "receive"): (
        (COUNTERS_EXT, "port_rcv_data_64", WORD),
        (COUNTERS, "port_rcv_data", WORD),
        (HW_COUNTERS, "rx_bytes", 1),
    ),
    (NETWORK_PACKETS.name, "transmit"): (
        (COUNTERS_EXT, "port_xmit_packets_64", 1),
        (COUNTERS, "port_xmit_packets", 1),
        (HW_COUNTERS, "tx_pkts", 1),
        (HW_COUNTERS, "sent_pkts", 1),
    ),
    (NETWORK_PACKETS.name, "receive"): (
        (COUNTERS_EXT, "port_rcv_packets_64", 1),
        (COUNTERS, "port_rcv_packets", 1),
        (HW_COUNTERS, "rx_pkts", 1),
        (HW_COUNTERS, "rcvd_pkts", 1),
    ),
}
_METRICS = {metric.name: metric for metric in (NETWORK_IO, NETWORK_PACKETS)}

#: Not counters: lifespan is how long the driver may answer from its cache, in ms.
SETTINGS = frozenset({"lifespan"})

#: Errors whose names do not say so.
_ERRORS = frozenset(
    {
        "link_downed",
        "no_completion_cmds",  # efa: commands that the device never answered
        "out_of_buffer",  # mlx5: packets dropped because no receive was posted
        "rx_icrc_encapsulated",  # mlx5: RoCE packets with a bad ICRC
    }
)
_ERROR_WORDS = frozenset(
    {"err", "errs", "error", "errors", "discard", "discards", "discarded", "drop", "drops", "dropped"}
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_DIRECTIONS = {
    "rcv": "receive",
    "rcvd": "receive",
    "recv": "receive",
    "rx": "receive",
    "In": "receive",  # irdma: ip4InDiscards
    "xmit": "transmit",
    "send": "transmit",
    "sent": "transmit",
    "tx": "transmit",
    "Out": "transmit",
}


#: Counters of drivers that move when a request of this node is sent again (mlx5: Documentation/networking/
#: device_drivers/ethernet/mellanox/mlx5/counters.rst and "Understanding mlx5 Linux Counters"; rdma_rxe:
#: rxe_hw_counters.c): acknowledgement timeouts, sequence and receiver-not-ready NAKs that came in.
RETRIES = frozenset(
    {
        "local_ack_timeout_err",
        "packet_seq_err",
        "implied_nak_seq_err",
        "rnr_nak_retry_err",
        "roce_adp_retrans",
        "completer_retry_err",
        "rcvd_seq_err",
        "rcvd_rnr_err",
    }
)


@dataclass(frozen=True, slots=True)
class File:
    """One counter file: its directory (counters, counters_ext or hw_counters) and its name."""

    group: str
    name: str


@dataclass(frozen=True, slots=True)
class Meaning:
    """The metric of a file, the attributes that set it apart on its port, and what one count is worth."""

    metric: Metric
    attributes: tuple[tuple[str, str], ...]
    scale: int = 1


def classify(
    files: Iterable[File], *, traffic: bool = True, taken: frozenset[str] = frozenset()
) -> dict[File, Meaning]:
    """The meaning of each file of one port, or of one device where ``traffic`` is false.

    Each file gets exactly one meaning, no two the same. Names in ``taken`` are counted elsewhere
    already (older efa shows its port's counters on the device too) and are exported as they are.
    """
    wanted = {file for file in files if file.name not in SETTINGS}
    meanings: dict[File, Meaning] = {}
    if traffic:
        for (metric, direction), candidates in _TRAFFIC.items():
            for group, name, scale in candidates:
                file = File(group, name)
                if file in wanted and file not in meanings:
                    attributes = (("network.io.direction", direction), ("rdma.counter.source", "port"))
                    meanings[file] = Meaning(_METRICS[metric], attributes, scale)
                    break
    names: dict[str, str] = {}
    for file in sorted(wanted - meanings.keys(), key=lambda file: (file.group, file.name)):
        # the same name in two directories must not become one series
        label = (
            file.name
            if names.setdefault(file.name, file.group) == file.group
            else f"{file.group}/{file.name}"
        )
        if is_error(file.name) and file.name not in taken:
            side = direction_of(file.name)
            sides = () if side is None else (("network.io.direction", side),)
            meanings[file] = Meaning(ERRORS, (("hw.type", "network"), ("error.type", label), *sides))
        else:
            meanings[file] = Meaning(PORT_COUNTER, (("rdma.counter.name", label),))
    return meanings


def counts_bytes(meanings: Iterable[Meaning]) -> bool:
    """Whether the port itself counts the bytes that it moves."""
    return any(meaning.metric is NETWORK_IO for meaning in meanings)


def is_error(name: str) -> bool:
    """Whether a counter's name says that it counts errors, discards or drops."""
    return name in _ERRORS or any(word.lower() in _ERROR_WORDS for word in _WORD.findall(name))


def direction_of(name: str) -> str | None:
    """``receive`` or ``transmit`` where the name of a counter says so."""
    for word in _WORD.findall(name):
        direction = _DIRECTIONS.get(word)
        if direction is not None:
            return direction
    return None
