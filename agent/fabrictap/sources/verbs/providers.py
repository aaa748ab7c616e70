"""Where the provider libraries keep post_send and its kin.

They are reached through function pointers in ``ibv_context.ops``, in a stripped library: no symbol leads
there. A short-lived helper process (:mod:`fabrictap.sources.verbs.provider_helper`) opens each device, reads
the pointers and names the file and offset behind each; the agent attaches there, system-wide, by inode.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import msgspec

#: Provider functions that can be counted, by the name of the BPF program.
DATA_PATH = ("post_send", "post_recv", "post_srq_recv")
#: Functions of struct ibv_qp_ex that are counted, by the name of the BPF program: byte offset of the pointer
#: (libibverbs/verbs.h, public).
EXTENDED = {
    "wr_atomic_cmp_swp": 184,
    "wr_atomic_fetch_add": 192,
    "wr_bind_mw": 200,
    "wr_local_inv": 208,
    "wr_rdma_read": 216,
    "wr_rdma_write": 224,
    "wr_rdma_write_imm": 232,
    "wr_send": 240,
    "wr_send_imm": 248,
    "wr_send_inv": 256,
    "wr_send_tso": 264,
    "wr_set_ud_addr": 272,
    "wr_set_inline_data": 288,
    "wr_set_inline_data_list": 296,
    "wr_set_sge": 304,
    "wr_set_sge_list": 312,
    "wr_complete": 328,
    "wr_abort": 336,
}
#: Functions of libibverbs that are probed, by the name of the BPF program.
EXPORTED = {"create_ah": "ibv_create_ah", "qp_to_qp_ex": "ibv_qp_to_qp_ex", "modify_qp": "ibv_modify_qp"}
#: Those of them, and of a provider's, that are probed for a moment only (:mod:`work`): their places are known
#: beside the others, and nothing is attached there otherwise.
WINDOWED = frozenset(("poll_cq", "modify_qp"))
#: endbr64: the kernel has to single-step it, at ten times the cost of an emulated instruction.
_ENDBR64 = b"\xf3\x0f\x1e\xfa"
# Opcodes of first instructions that the kernel emulates instead of single-stepping them
# (branch_setup_xol_ops and push_setup_xol_ops, arch/x86/kernel/uprobes.c): push, jmp, nop; mov is
# executed out of line without a trap where optimised. Measured on Linux 6.18.
_CHEAP = frozenset([*range(0x50, 0x58), 0xE9, 0xEB, 0x90, 0x89, 0x8B])
_CHEAP_REX = frozenset(range(0x50, 0x58)) | {0x89, 0x8B}


class HelperFailed(Exception):  # noqa: N818 - a state of the node
    """The helper could not look; the message says why."""


class Place(msgspec.Struct, frozen=True):
    """One function: ``file`` as mapped, ``device`` and ``inode`` as in /proc/PID/maps, byte ``offset``."""

    function: str
    file: str
    device: str
    inode: int
    offset: int


class Report(msgspec.Struct):
    """What the helper found. ``problems``: RDMA device (or library) -> why its functions are unknown.
    ``pid`` was the helper's: what it made and destroyed meanwhile is nobody's traffic."""

    places: list[Place]
    problems: dict[str, str]
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """Where to attach. ``cheap``: the kernel need not single-step the instruction there."""

    offset: int
    cheap: bool


def discover(timeout: float = 20.0) -> Report:
    """Run the helper. Raises HelperFailed."""
    command = [sys.executable, "-m", "fabrictap.sources.verbs.provider_helper"]
    try:
        # A session of its own: what ends the agent's process group is not meant for a helper half-way.
        helper = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # -m looks for modules where the process is first: not in a directory that somebody else may fill.
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise HelperFailed(f"cannot start {sys.executable}: {error.strerror}") from None
    try:
        output, said = helper.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Killed and not waited for: a driver may hold it where no signal reaches.
        helper.kill()
        raise HelperFailed(f"opening the RDMA devices took longer than {timeout:g} s") from None
    if helper.returncode != 0:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise HelperFailed(f"the helper ended with {helper.returncode}: {last[0]}")
    try:
        return msgspec.json.decode(output, type=Report)
    except msgspec.MsgspecError as error:
        raise HelperFailed(f"the helper's answer is not understood: {error}") from None


def entry(descriptor: int, offset: int) -> Entry:
    """The best instruction to probe at a function's start, arguments still in their registers."""
    code = os.pread(descriptor, 16, offset)
    if code.startswith(_ENDBR64):
        offset, code = offset + len(_ENDBR64), code[len(_ENDBR64) :]
    if not code:
        return Entry(offset, False)
    rex = 0x40 <= code[0] < 0x50
    cheap = code[1] in _CHEAP_REX if rex and len(code) > 1 else code[0] in _CHEAP
    return Entry(offset, cheap)
