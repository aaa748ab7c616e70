"""``fabrictap audit``: every way past the CPU, what observes it, what is exposed now, and the fix."""

from __future__ import annotations

import json
import os
import time

from fabrictap.audit import netlink, report
from fabrictap.audit.facts import Node
from fabrictap.audit.model import Severity
from fabrictap.audit.watch import Watch
from fabrictap.view import text
from fabrictap.view.recording import Recording

_COLUMNS = 100


def main(path: str | None, owner: int | None, *, root: str | None, fail_on: str, as_json: bool) -> int:
    """Print the audit of this node, or of a copy of another's below ``root``; report.exit_code's code.

    ``path`` is the agent's recording, None where there is none; ``owner``: a user whose files are believed.
    """
    node = Node() if root is None else Node(f"{root}/sys", f"{root}/proc", f"{root}/dev")
    if root is None:
        node.rdma_owners = netlink.owners
    node.watch = _watch(node, path, owner, copy=root is not None)
    made = report.audit(node, time.time_ns(), os.geteuid())
    if as_json:
        print(json.dumps(report.as_json(made), indent=2))
    else:
        for line in report.lines(made, text.room() or _COLUMNS):
            print(line)
    return report.exit_code(made, None if fail_on == "never" else Severity[fail_on.upper()])


def _watch(node: Node, path: str | None, owner: int | None, *, copy: bool) -> Watch:
    if path is None:
        return Watch(
            "unknown", "no recording is named" if copy else "ring.path is null: it keeps no recording"
        )
    owners = {0, os.geteuid()} | (set() if owner is None else {owner})
    found = Watch.take(lambda: Recording.open(path, owners))
    others = [pid for pid in node.processes.named("fabrictap") if pid != os.getpid()]
    if found.state == "absent" and others:
        # Perhaps another command, perhaps an agent with another ring.path.
        return Watch("unknown", f"{found.why}; but process {others[0]} is called fabrictap (--file?)")
    return found
