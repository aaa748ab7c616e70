"""What was seen on each kernel, recorded in tests/vm/kernels.json, as the table of docs/kernels.md.

    python tests/kernel_table.py            prints the table
    RECORD=kernels make test T=tests/vm/test_kernels.py    records anew; then the page is to be written again

The tests in the VM hold the record against what they see, a unit test the page against the record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "vm" / "kernels.json"

#: Kernels that are to be recorded -> the Debian release that has them.
DEBIAN = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}

#: The level of a machine without RDMA, on which a stand-in of a provider posts and counts for itself.
STAND_IN = "stand-in"

#: What an agent can give, in the order of the table: name -> heading.
GIVES = {
    "posts": "posts",
    "flows": "flows",
    "memory": "memory",
    "cm": "CM events",
    "older": "older connection",
    "older_peer": "its peer",
    "ends": "ends",
}
#: What a kernel has: name -> heading.
ABOUT = {
    "types": "BTF",
    "module_types": "BTF of modules",
    "bpf_loop": "bpf_loop",
    "uprobe_multi": "uprobe multi",
    "return_probes": "return probes safe",
}


def read() -> dict[str, Any]:
    """Kernel -> its record; empty where nothing was recorded yet."""
    return dict(json.loads(RECORD.read_text())) if RECORD.exists() else {}


def write(kernel: str, record: dict[str, Any]) -> None:
    """Record a kernel anew."""
    records = {**read(), kernel: record}
    order = sorted(records, key=lambda name: [int(part) for part in name.split(".")])
    RECORD.write_text(json.dumps({name: records[name] for name in order}, indent=2) + "\n")


def tables(records: dict[str, Any]) -> str:
    """Markdown: what each kernel has, what each level gives on it, and why a level is refused."""
    lines = [_row("kernel", "release", *ABOUT.values()), _row(*["---"] * (len(ABOUT) + 2))]
    for kernel, record in records.items():
        lines.append(_row(kernel, record["release"], *(_yes(record["about"][name]) for name in ABOUT)))
    lines += ["", _row("kernel", "level", "hooks", *GIVES.values()), _row(*["---"] * (len(GIVES) + 3))]
    reasons: list[str] = []
    for kernel, record in records.items():
        for level, reason in record["refused"].items():
            if reason not in reasons:
                reasons.append(reason)
            note = f"refused [{reasons.index(reason) + 1}]"
            lines.append(_row(kernel, level, note, *[""] * len(GIVES)))
        for level, seen in record["levels"].items():
            gives = (_yes(name not in seen["missing"]) for name in GIVES)
            lines.append(_row(kernel, level, seen["hooked"] or "none", *gives))
    if missing := [kernel for kernel in DEBIAN if kernel not in records]:
        lines += ["", f"Not recorded yet: {', '.join(missing)}."]
    if reasons:
        lines += ["", *(f"[{number}] `{reason}`  " for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    sys.stdout.write(tables(read()))
