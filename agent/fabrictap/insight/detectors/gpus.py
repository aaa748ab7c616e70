"""GPUs: shared by strangers without MIG, split differently than before, confidential computing gone off."""

from __future__ import annotations

from collections.abc import Iterator

from fabrictap import catalog
from fabrictap.insight.detectors import Context, Owner
from fabrictap.insight.findings import Finding, Severity
from fabrictap.ledger.gpus import Gpu
from fabrictap.series import AttributeValue

#: How long a change that somebody made is told of.
_HOLD_NS = 3600 * 10**9
_MOST_NAMED = 5
#: What makes a process somebody's work: monitoring and daemons of the node have none of these.
_WORK = (catalog.K8S_POD_UID, catalog.SLURM_JOB, catalog.CONTAINER_ID)


class GpuUse:
    """Costs what there are of GPUs and of processes that use them."""

    name = "gpus"

    def __init__(self) -> None:
        self._split: dict[str, tuple[frozenset[str], str | None, int]] = {}
        self._confidential: set[str] = set()

    def look(self, now_ns: int, context: Context) -> Iterator[Finding]:
        gpus = context.ledger.gpus
        here = {gpu.id for gpu in gpus}
        for gone in self._split.keys() - here:
            del self._split[gone]
        for gpu in gpus:
            if not gpu.migs:
                yield from self._shared(gpu, gpus.users(gpu.id), context)
            yield from self._splits(gpu, now_ns)
        yield from self._confidence(context)

    @staticmethod
    def _shared(gpu: Gpu, pids: frozenset[int], context: Context) -> Iterator[Finding]:
        parties: dict[str, Owner] = {}
        stated = True
        for pid in sorted(pids):
            owner = context.owner(pid)
            work = [owner.identity[one.name] for one in _WORK if one.name in owner.identity]
            if not work:
                continue
            if owner.tenant is None:
                # Without tenants the pods and jobs themselves are strangers to each other.
                stated = False
            parties.setdefault(f"tenant {owner.tenant}" if owner.tenant is not None else str(work[0]), owner)
        if len(parties) < 2:
            return
        names = [owner.workload for owner in parties.values()]
        yield Finding(
            catalog.GPU_SHARED,
            Severity.WARN if stated else Severity.INFO,
            f"{gpu.id} is used by {len(parties)} {'tenants' if stated else 'pods or jobs'} without MIG: "
            f"{', '.join(names[:_MOST_NAMED])}",
            (gpu.id,),
            len(parties),
            "{tenant}",
            1,
            None,
            _evidence(gpu) | {catalog.FINDING_CANDIDATES.name: "; ".join(names[:_MOST_NAMED])},
        )

    def _splits(self, gpu: Gpu, now_ns: int) -> Iterator[Finding]:
        now = frozenset(mig.id for mig in gpu.migs)
        before, text, since_ns = self._split.get(gpu.id, (now, None, now_ns))
        if now != before:
            text, since_ns = f"{gpu.id} had {len(before)} MIG devices and has {len(now)} others now", now_ns
        elif text is not None and now_ns - since_ns > _HOLD_NS:
            text = None
        self._split[gpu.id] = (now, text, since_ns)
        if text is not None:
            yield Finding(
                catalog.MIG_CHANGED,
                Severity.INFO,
                text,
                (gpu.id,),
                len(now),
                "{gpu}",
                None,
                since_ns,
                _evidence(gpu),
            )

    def _confidence(self, context: Context) -> Iterator[Finding]:
        for series in context.series.get(catalog.GPU_CONFIDENTIAL.name, ()):
            if series.ended or series.value is None:
                continue
            gpu = str(series.attributes[catalog.HW_ID.name])
            if series.value == 1:
                self._confidential.add(gpu)
            elif gpu in self._confidential:
                yield Finding(
                    catalog.CONFIDENTIAL_OFF,
                    Severity.ERROR,
                    f"confidential computing is off on {gpu}; it was on",
                    (gpu,),
                    attributes={catalog.HW_ID.name: gpu},
                )


def _evidence(gpu: Gpu) -> dict[str, AttributeValue]:
    return {catalog.HW_ID.name: gpu.id}
