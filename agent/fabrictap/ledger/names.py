"""The words that the rows of the ring's table of connections keep as numbers: a word's place in its list.

The lists also stand in the ring's about section, for its readers. Words are added at the end only.
"""

from __future__ import annotations

QP_TYPES = ("unknown", "rc", "uc", "ud", "raw_packet", "xrc_ini", "xrc_tgt", "driver", "srq")
QP_STATES = ("unknown", "reset", "init", "rtr", "rts", "sqd", "sqe", "err")
COVERAGES = ("control_only", "since", "exact")
ORIGINS = ("probe", "netlink")
#: The first twelve are enum ibv_wr_opcode, libibverbs/verbs.h.
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
