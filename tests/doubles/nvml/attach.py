"""Nodes of the NVML stand-in for the test process itself: pynvml, unmodified, initialised on one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml

from doubles.nvml import builder
from doubles.nvml.driver import Node


@contextmanager
def attached(
    built: builder.Built, path: Path, profile: str, library: Path | None = None, initialise: bool = True
) -> Iterator[Node]:
    """A new node at ``path`` that nvidia-ml-py in this process talks to through ``library``."""
    node = Node.create(built, path, profile)
    before = os.environ.get(builder.VARIABLE)
    os.environ[builder.VARIABLE] = str(path)
    builder.bind(pynvml, library or built.library)
    if initialise:
        pynvml.nvmlInit()
    try:
        yield node
    finally:
        node.withdraw_all()
        node.load_driver()
        while True:  # as often as it was initialised
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError_Uninitialized:
                break
        if before is None:
            del os.environ[builder.VARIABLE]
        else:
            os.environ[builder.VARIABLE] = before
        node.close()
