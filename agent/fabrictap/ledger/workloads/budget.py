"""How many different identities series may carry, and what is left out first. Pure.

The number of series is the number of attribute sets: a node that starts a process a second must not make
a series a second for ever. A budget admits a fixed number of different sets. When they run out, a set
loses attributes, the finest first, in the order of :data:`DROP_ORDER`, until it is one that is known or
fits; what remains of a set that fits nowhere is empty. The data is still counted, with less detail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

AttributeValue = str | int | bool
Attributes = Mapping[str, AttributeValue]
Key = frozenset[tuple[str, AttributeValue]]

#: What is dropped first, second and so on: the process; the container and step; the pod; the job and unit;
#: what is left.
DROP_ORDER: tuple[tuple[str, ...], ...] = (
    ("process.pid",),
    ("container.id", "k8s.container.name", "slurm.step.id"),
    ("k8s.pod.uid", "k8s.pod.name"),
    ("slurm.job.id", "slurm.job.origin", "slurm.job.uid", "slurm.job.user", "systemd.unit.name"),
    ("process.executable.name", "container.runtime.name", "k8s.namespace.name"),
)


class CardinalityBudget:
    """At most ``limit`` different attribute sets at a time, the empty one not counted.

    Full detail may take half of the limit, and each coarser level half of what is then left, so that a
    flood of processes leaves room for their containers, and one of containers for their pods. The last
    level may take all that is left. A set is held once for each ``admit`` and free after as many
    ``release``.
    """

    def __init__(self, limit: int, order: Sequence[Sequence[str]] = DROP_ORDER) -> None:
        if limit < 1:
            raise ValueError(f"a budget of {limit} attribute sets holds nothing")
        self.limit = limit
        #: How often a set lost the attributes of each step of the order: index 0 is the finest.
        self.dropped: list[int] = [0] * len(order)
        self._order = tuple(frozenset(names) for names in order)
        self._held: Counter[Key] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def admit(self, attributes: Attributes) -> dict[str, AttributeValue]:
        """``attributes``, or what of them is in the budget. Give the result back with :meth:`release`."""
        kept = dict(attributes)
        free = self.limit
        for level in range(len(self._order) + 1):
            if level:
                names = self._order[level - 1]
                if not names.isdisjoint(kept):
                    self.dropped[level - 1] += 1
                    kept = {name: value for name, value in kept.items() if name not in names}
            if not kept:
                return kept
            free = free - free // 2 if level < len(self._order) - 1 else 0
            key = frozenset(kept.items())
            if key in self._held or len(self._held) < self.limit - free:
                self._held[key] += 1
                return kept
        # attributes that no step of the order names
        return {}

    def release(self, admitted: Attributes) -> None:
        """One holder less of a set that :meth:`admit` returned."""
        if not admitted:
            return
        key = frozenset(admitted.items())
        if key not in self._held:
            raise KeyError(f"not in the budget: {dict(admitted)}")
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
