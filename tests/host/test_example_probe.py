"""The probe that docs/developer.md shows: its C is that of the tests, its Python works as it stands there."""

import os
import re

from pages import ROOT

PAGE = (ROOT / "docs" / "developer.md").read_text()


def test_the_program_is_part_of_the_one_that_is_tested():
    (shown,) = re.findall(r"```c\n(.*?)```", PAGE, re.DOTALL)
    assert shown.rstrip() in (ROOT / "tests" / "host" / "tiny.bpf.c").read_text()


def test_what_loads_it_is_told_of_the_call(tiny, monkeypatch):
    (program,) = (
        text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "tiny.bpf.o" in text
    )
    monkeypatch.chdir(tiny.parent)
    assert tiny.name == "tiny.bpf.o"
    names = {}
    exec(compile(program, "docs/developer.md", "exec"), names)
    assert names["told"] == [0]
    assert os.getpgid(0) > 0
