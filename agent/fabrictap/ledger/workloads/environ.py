"""What Slurm put into a process's environment. Pure: bytes in.

The environment is the process's own and may say anything; it is asked for the user's name, and for the
job where no cgroup says one (``ProctrackType=proctrack/linuxproc``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = re.compile(rb"[0-9]{1,10}")
_USER = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?")
#: Variables as srun sets them (man srun, OUTPUT ENVIRONMENT VARIABLES); the later names are older ones.
_NAMES = {
    b"SLURM_JOB_ID": "job",
    b"SLURM_JOBID": "old_job",
    b"SLURM_STEP_ID": "step",
    b"SLURM_STEPID": "old_step",
    b"SLURM_PROCID": "task",
    b"SLURM_JOB_UID": "uid",
    b"SLURM_JOB_USER": "user",
}
#: Steps that are no number, slurm/slurm.h: SLURM_BATCH_SCRIPT, SLURM_EXTERN_CONT, SLURM_INTERACTIVE_STEP.
_STEPS = {0xFFFFFFFB: "batch", 0xFFFFFFFC: "extern", 0xFFFFFFFA: "interactive"}


@dataclass(frozen=True, slots=True)
class SlurmVariables:
    """``rejected``: variables whose value cannot be Slurm's."""

    job: str | None = None
    step: str | None = None
    task: str | None = None
    uid: int | None = None
    user: str | None = None
    rejected: int = 0


def parse(environ: bytes) -> SlurmVariables:
    """Slurm's variables of ``environ`` (NAME=VALUE, zero bytes between). As getenv: the first counts."""
    found: dict[str, str] = {}
    rejected: set[str] = set()
    # Only what begins like this is looked at: the rest may be a megabyte of anything.
    for match in re.finditer(rb"(?:\A|\0)(SLURM_[A-Z_]{1,32})=([^\0]{0,256})(?=\0|\Z)", environ):
        name = _NAMES.get(match[1])
        if name is None or name in found or name in rejected:
            continue
        if (_USER if name == "user" else _NUMBER).fullmatch(match[2]) is None:
            rejected.add(name)
            continue
        found[name] = match[2].decode("ascii")
    step = found.get("step", found.get("old_step"))
    uid = found.get("uid")
    return SlurmVariables(
        job=found.get("job", found.get("old_job")),
        step=_STEPS.get(int(step), step) if step is not None else None,
        task=found.get("task"),
        uid=int(uid) if uid is not None else None,
        user=found.get("user"),
        rejected=len(rejected),
    )
