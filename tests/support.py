"""What tests of all kinds share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest


def require(name: str, present: bool, how: str) -> None:
    """Skip the test unless ``present``; fail instead where REQUIRE names ``name`` or says "all".

    ``name`` is what the test needs (a word, as in "collector"), ``how`` the reason and the command that
    provides it. REQUIRE is a list separated by commas or blanks.
    """
    if present:
        return
    required = os.environ.get("REQUIRE", "").replace(",", " ").split()
    if name in required or "all" in required:
        pytest.fail(f"REQUIRE names {name}, which is not here: {how}", pytrace=False)
    pytest.skip(f"no {name}: {how}")


def eventually(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it does not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}", pytrace=False)
        time.sleep(0.01)
