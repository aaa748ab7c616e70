"""A workload as attributes of a series or span, in the words of the catalog."""

from __future__ import annotations

from fabrictap import catalog
from fabrictap.ledger.workloads.budget import AttributeValue
from fabrictap.ledger.workloads.model import Workload


def attributes(workload: Workload) -> dict[str, AttributeValue]:
    """Semantic-convention attributes of ``workload``; what is not known is left out."""
    known: dict[str, AttributeValue | None] = {
        catalog.K8S_NAMESPACE.name: workload.namespace,
        catalog.K8S_POD.name: workload.pod_name,
        catalog.K8S_POD_UID.name: workload.pod_uid,
        catalog.K8S_CONTAINER.name: workload.container_name,
        catalog.CONTAINER_ID.name: workload.container_id,
        catalog.CONTAINER_RUNTIME.name: workload.runtime,
        catalog.SLURM_JOB.name: workload.slurm_job,
        catalog.SLURM_STEP.name: workload.slurm_step,
        catalog.SLURM_UID.name: workload.slurm_uid,
        catalog.SLURM_USER.name: workload.slurm_user,
        catalog.SLURM_ORIGIN.name: workload.slurm_origin,
        catalog.SYSTEMD_UNIT.name: workload.unit,
    }
    return {name: value for name, value in known.items() if value is not None}
