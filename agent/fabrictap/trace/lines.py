"""One line, or one JSON object, of what was recorded."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from fabrictap.ext import records
from fabrictap.ext.completions import COMPLETED, OUTCOMES, RECEIVE, REFUSED, SENT, Work
from fabrictap.ext.records import Record
from fabrictap.sources.verbs import wc
from fabrictap.sources.verbs.control import QP_STATES, QP_TYPES
from fabrictap.view.text import address, duration, plain

_NS = 10**9
#: enum ibv_send_flags, enum ibv_wc_flags, enum ibv_access_flags (libibverbs/verbs.h).
_SEND_FLAGS = ((1, "fence"), (2, "signaled"), (4, "solicited"), (8, "inline"), (16, "ip_csum"))
_WC_FLAGS = ((1, "grh"), (2, "imm"), (4, "ip_csum_ok"), (8, "inv"))
_ACCESS = (
    (1, "local_write"), (2, "remote_write"), (4, "remote_read"), (8, "remote_atomic"), (16, "mw_bind"),
    (32, "zero_based"), (64, "on_demand"),
)  # fmt: skip
_STATE, _AV, _MTU, _RQ_PSN, _SQ_PSN, _PEER = 1 << 0, 1 << 7, 1 << 8, 1 << 12, 1 << 16, 1 << 20
_WORK_EVENTS = {SENT: "post", RECEIVE: "post", COMPLETED: "completion", REFUSED: "refused"}
_CONTROL_EVENTS = {
    records.CONTEXT_OPENED: "open",
    records.CONTEXT_CLOSED: "close",
    records.QP_CREATED: "create_qp",
    records.QP_MODIFIED: "modify_qp",
    records.QP_DESTROYED: "destroy_qp",
    records.MR_REGISTERED: "reg_mr",
    records.MR_DEREGISTERED: "dereg_mr",
}
TITLES = ("TIME", "TID", "QP", "EVENT", "OPERATION", "BYTES", "DETAILS")
_WIDTHS = (15, 7, 15, 10, 20, 11)
_BYTES = 5

#: What happened, as JSON has it. ``time_ns`` is since the epoch.
Happening = dict[str, Any]


def of_work(work: Work, device: str | None, offset_ns: int) -> Happening | None:
    """A request, a refusal or a completion; None for what is of no interest to a reader."""
    event = _WORK_EVENTS.get(work.kind)
    if event is None:
        return None
    found: Happening = {
        "time_ns": work.time_ns + offset_ns,
        "event": event,
        "pid": work.pid,
        "tid": work.tid,
        "device": device,
        "qpn": work.qpn,
    }
    if work.kind == RECEIVE and work.status:  # its number is an SRQ's
        del found["qpn"]
        found["srq"] = work.qpn
    if work.kind in (SENT, RECEIVE):
        found |= {
            "operation": wc.posted(work.operation),
            "bytes": work.bytes,
            "wr_id": work.wr_id,
            "sges": work.number,
            "flags": _flags(work.flags, _SEND_FLAGS) if work.kind == SENT else [],
            "chained": work.place,
        }
        if work.peer_qpn:
            found["peer_qpn"] = work.peer_qpn
    elif work.kind == REFUSED:
        found |= {"requests": work.number, "error": errno.errorcode.get(work.status, str(work.status))}
    else:
        _complete(found, work)
    return found


def _complete(found: Happening, work: Work) -> None:
    found |= {"wr_id": work.wr_id, "status": wc.status(work.status)}
    if work.status:
        found["vendor_error"] = work.vendor_error
        return
    found["operation"] = wc.completed(work.operation)
    if work.operation >= wc.RECEIVE:
        found["bytes"] = work.bytes
    if work.flags:
        found["flags"] = _flags(work.flags, _WC_FLAGS)
    if work.latency_ns:
        found["latency_ns"] = work.latency_ns
    elif (why := OUTCOMES[work.outcome]) is not None:
        found["unmatched"] = why


def of_record(record: Record, offset_ns: int) -> Happening | None:
    """What the kernel did for the process."""
    event = _CONTROL_EVENTS.get(record.kind)
    if event is None:
        return None
    found: Happening = {
        "time_ns": record.time_ns + offset_ns,
        "event": event,
        "pid": record.pid,
        "tid": record.tid,
        "device": record.device or None,
    }
    if record.kind in (records.QP_CREATED, records.QP_MODIFIED, records.QP_DESTROYED):
        found |= {"qpn": record.qpn, "type": QP_TYPES.get(record.qp_type, "unknown")}
    if record.kind == records.QP_MODIFIED:
        _modified(found, record)
    if record.kind in (records.MR_REGISTERED, records.MR_DEREGISTERED):
        found |= {"lkey": record.mr_lkey, "rkey": record.mr_rkey, "length": record.mr_length}
        if record.mr_access is not None:
            found["access"] = _flags(record.mr_access, _ACCESS)
    if record.exiting:
        found["exiting"] = True
    return found


def _modified(found: Happening, record: Record) -> None:
    mask = record.qp_mask
    if mask & _STATE:
        found["state"] = QP_STATES[record.qp_state] if record.qp_state < len(QP_STATES) else "unknown"
    if mask & _AV and record.qp_peer_gid is not None:
        found["peer_gid"] = record.qp_peer_gid
    for bit, name, value in (
        (_PEER, "peer_qpn", record.qp_peer_qpn),
        (_RQ_PSN, "rq_psn", record.qp_rq_psn),
        (_SQ_PSN, "sq_psn", record.qp_sq_psn),
        (_MTU, "mtu", 128 << record.qp_path_mtu),
    ):
        if mask & bit:
            found[name] = value
    if record.qp_result:
        found["error"] = errno.errorcode.get(-record.qp_result, str(record.qp_result))


def titles() -> str:
    return _columns(TITLES)


def line(one: Happening) -> str:
    """A line of the table; details are NAME=VALUE."""
    when = datetime.fromtimestamp(one["time_ns"] // _NS, tz=timezone.utc)
    time = f"{when:%H:%M:%S}.{one['time_ns'] % _NS // 1000:06}"
    queue = one.get("qpn", one.get("srq"))
    where = plain(one["device"] or "?")
    if queue is not None:
        where += f"/{'srq' if 'srq' in one else ''}{queue}"
    what = one.get("operation") or one.get("type") or ""
    size = one.get("bytes", one.get("length"))
    details = _DETAILS.get(one["event"], _control)(one)
    bytes_ = "" if size is None else str(size)
    return _columns((time, str(one["tid"]), where, one["event"], what, bytes_, details))


def _columns(cells: tuple[str, ...]) -> str:
    made = [
        cell.rjust(wide) if index == _BYTES else cell.ljust(wide)
        for index, (cell, wide) in enumerate(zip(cells, _WIDTHS, strict=False))
    ]
    return " ".join([*made, cells[-1]]).rstrip()


def _posted(one: Happening) -> str:
    parts = [f"wr_id={one['wr_id']:#x}", f"sges={one['sges']}"]
    parts += [",".join(one["flags"])] if one["flags"] else []
    parts += [f"chained={one['chained']}"] if one["chained"] else []
    parts += [f"peer_qpn={one['peer_qpn']}"] if "peer_qpn" in one else []
    return " ".join(parts)


def _completed(one: Happening) -> str:
    parts = [f"wr_id={one['wr_id']:#x}"]
    if one["status"] != "success":
        return " ".join([*parts, f"ERROR {one['status']}", f"vendor_error={one['vendor_error']:#x}"])
    if "latency_ns" in one:
        parts.append(f"latency={duration(one['latency_ns'] / _NS)}")
    elif "unmatched" in one:
        parts.append(f"latency unknown: {one['unmatched']}")
    parts += [",".join(one["flags"])] if one.get("flags") else []
    return " ".join(parts)


def _refused(one: Happening) -> str:
    number = getattr(errno, one["error"], 0)
    return f"ERROR {one['error']} ({os.strerror(number)}): {one['requests']} of those just posted"


def _control(one: Happening) -> str:
    parts = []
    if "state" in one:
        parts.append(f"state={one['state']}")
    if "peer_gid" in one or "peer_qpn" in one:
        parts.append(f"peer={address(one.get('peer_gid'))}/{one.get('peer_qpn', '-')}")
    parts += [f"{name}={one[name]}" for name in ("rq_psn", "sq_psn", "mtu") if name in one]
    parts += [f"{name}={one[name]:#x}" for name in ("lkey", "rkey") if name in one]
    parts += [f"access={','.join(one['access']) or 'local_read'}"] if "access" in one else []
    parts += [f"ERROR {one['error']}"] if "error" in one else []
    parts += ["as the process exits"] if one.get("exiting") else []
    return " ".join(parts)


_DETAILS: dict[str, Callable[[Happening], str]] = {
    "post": _posted,
    "completion": _completed,
    "refused": _refused,
}


def _flags(value: int, known: tuple[tuple[int, str], ...]) -> list[str]:
    named = [name for bit, name in known if value & bit]
    rest = value & ~sum(bit for bit, _ in known)
    return [*named, f"{rest:#x}"] if rest else named
