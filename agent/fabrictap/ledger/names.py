"""The names behind the numbers in the ring's table of connections (ext/ring.h, struct ft_connection)."""

from __future__ import annotations

#: Index of a connection's posted totals.
OPERATIONS = (
    "rdma_write",
    "rdma_write_with_imm",
    "send",
    "send_with_imm",
    "rdma_read",
    "atomic_cmp_and_swp",
    "atomic_fetch_and_add",
    "local_inv",
    "bind_mw",
    "send_with_inv",
    "tso",
    "driver",
    "recv",
    "unknown",
)
QP_TYPES = ("unknown", "rc", "uc", "ud", "raw_packet", "xrc_ini", "xrc_tgt", "driver", "srq")
QP_STATES = ("unknown", "reset", "init", "rtr", "rts", "sqd", "sqe", "err")
COVERAGES = ("control_only", "exact", "since", "estimated")
ORIGINS = ("probe", "netlink")

#: As they stand in the ring's description.
LISTS = {
    "operations": OPERATIONS,
    "qp_types": QP_TYPES,
    "qp_states": QP_STATES,
    "coverages": COVERAGES,
    "origins": ORIGINS,
}
