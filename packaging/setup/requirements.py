"""Prints what pyproject.toml needs from pip, to build, to run and to develop, one requirement per line.

So that pip is asked when these change, and not whenever a source file does.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # no TOML reader in the library yet; pip brings one
    from pip._vendor import tomli as tomllib


def main() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
    ]
    sys.stdout.write("".join(f"{requirement}\n" for requirement in dict.fromkeys(requirements)))


if __name__ == "__main__":
    main()
