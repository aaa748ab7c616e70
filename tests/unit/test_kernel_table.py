"""docs/kernels.md says what the tests have recorded on the kernels."""

from __future__ import annotations

from pathlib import Path

import kernel_table

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_the_page_has_what_was_recorded() -> None:
    table = kernel_table.tables(kernel_table.read())
    assert table in PAGE.read_text(), f"put this into {PAGE}:\n{table}"


def test_every_kernel_has_what_is_to_be_recorded() -> None:
    for record in kernel_table.read().values():
        assert set(record["about"]) == set(kernel_table.ABOUT)
        assert record["levels"]
        assert not set(record["refused"]) & set(record["levels"])
        for seen in record["levels"].values():
            assert set(seen["missing"]) <= set(kernel_table.GIVES)
            assert "posts" not in seen["missing"]
