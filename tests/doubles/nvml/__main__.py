"""A node to play with: python -m doubles.nvml PROFILE DIRECTORY

Makes it in DIRECTORY, lets its time run, and prints the environment in which a program sees its GPUs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from doubles.nvml import builder, loader
from doubles.nvml.driver import Node


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m doubles.nvml", description="A node of the NVML stand-in."
    )
    parser.add_argument("profile", choices=loader.names())
    parser.add_argument("directory", type=Path, help="must not hold a node yet")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    built = builder.build(directory)
    node = Node.create(built, directory / "node", arguments.profile)
    node.real_clock()
    for name, value in node.environment(built.library).items():
        print(f"export {name}={value}")


main()
