"""Writes every dashboard beside this package; see `make dashboards`."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards_as_code import agent, fabric, fleet, flows, gpu, node, security

FOLDER = Path(__file__).parents[1] / "dashboards"


def texts() -> dict[str, str]:
    """Name of each file, and what is in it."""
    built = [module.build() for module in (fleet, node, gpu, fabric, flows, security, agent)]
    return {f"{one['uid']}.json": json.dumps(one, indent=1, ensure_ascii=False) + "\n" for one in built}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
