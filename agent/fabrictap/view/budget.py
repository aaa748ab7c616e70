"""What counting posts costs on this node, and how well the running agent sees connections, for the doctor."""

from __future__ import annotations

from collections import Counter

from fabrictap.config import Config
from fabrictap.ext.bpf import has_bpf_loop
from fabrictap.sources.verbs import calibration
from fabrictap.sources.verbs.budget import WINDOW_SECONDS, Limits, first_quota
from fabrictap.sources.verbs.probes import Kind
from fabrictap.view.recording import Recording, RecordingError
from fabrictap.view.text import share


def cost(config: Config) -> str:
    """Measured now, at a function of our own."""
    verbs = config.sources.verbs
    if verbs.data == "off":
        return "posts are not counted: sources.verbs.data is off"
    measured = calibration.measure(
        Kind(bounded=not has_bpf_loop(), returns=True, subtract=verbs.refused == "subtract")
    )
    if measured.problem is not None:
        return f"could not be measured: {measured.problem}"
    told = f"{measured.emulated * 1e-3:.2f} us, {measured.stepped * 1e-3:.1f} us where it is single-stepped"
    if verbs.data == "full":
        return f"{told}; all posts are counted, whatever that adds up to (sources.verbs.data is full)"
    posts = first_quota(Limits(verbs.budget.process, verbs.budget.node), measured.emulated) / WINDOW_SECONDS
    return f"{told}; within the budget, one process that keeps a core busy has {posts:,.0f} a second counted"


def coverage(path: str | None) -> tuple[str, str] | None:
    """(how well the connections of the running agent are seen, what that costs); None where none runs."""
    if path is None:
        return None
    try:
        with Recording.open(path) as recording:
            if recording.alive().state != "running":
                return None
            live = [one for one in recording.connections() if not one.ended]
    except RecordingError:
        return None
    if not live:
        return "no connection is open", ""
    counts = Counter(one.coverage for one in live)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    partly = [one.fraction for one in live if one.fraction is not None]
    if not partly:
        return f"of {len(live)} connections {told}", ""
    return (
        f"of {len(live)} connections {told}",
        (
            f"what is estimated was counted in a part of its time, the least in {share(min(partly))} "
            "(sources.verbs.budget); fabrictap flows --coverage estimated lists them"
        ),
    )
