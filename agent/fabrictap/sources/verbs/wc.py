"""Names of what stands in a struct ibv_wc (libibverbs/verbs.h)."""

from __future__ import annotations

from fabrictap.ledger import names

#: enum ibv_wc_status without IBV_WC_.
STATUSES = (
    "success", "loc_len_err", "loc_qp_op_err", "loc_eec_op_err", "loc_prot_err", "wr_flush_err",
    "mw_bind_err", "bad_resp_err", "loc_access_err", "rem_inv_req_err", "rem_access_err", "rem_op_err",
    "retry_exc_err", "rnr_retry_exc_err", "loc_rdd_viol_err", "rem_inv_rd_req_err", "rem_abort_err",
    "inv_eecn_err", "inv_eec_state_err", "fatal_err", "resp_timeout_err", "general_err", "tm_err",
    "tm_rndv_incomplete",
)  # fmt: skip
#: enum ibv_wc_opcode as the operation that was asked for; what it does not tell apart is its plain form.
OPERATIONS = {
    0: "send",
    1: "rdma_write",
    2: "rdma_read",
    3: "atomic_cmp_and_swp",
    4: "atomic_fetch_and_add",
    5: "bind_mw",
    6: "local_inv",
    7: "tso",
    128: "recv",
    129: "recv",
}
#: From this opcode on it is a completion of a receive.
RECEIVE = 128


def status(number: int) -> str:
    return STATUSES[number] if number < len(STATUSES) else "unknown"


def completed(opcode: int) -> str:
    """The operation of a completion."""
    return OPERATIONS.get(opcode, "unknown")


def posted(opcode: int) -> str:
    """The operation of a work request: enum ibv_wr_opcode, or 128 for a receive."""
    if opcode == RECEIVE:
        return "recv"
    return names.OPERATIONS[opcode] if opcode < names.OPERATIONS.index("recv") else "unknown"
