"""README.md and docs/: what they say of configuration, links and flow ids is so."""

import re
import struct
from pathlib import Path

import pytest
import yaml

from fabrictap import catalog, config
from fabrictap.ext import layout
from fabrictap.ledger.flows import FlowId
from fabrictap.meanings import MEANINGS, RULES
from fabrictap.view import configuration, doctor

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def keys(tree, path=()):
    """Dotted key -> default of every leaf, as written; ``attributes`` and ``headers`` are leaves."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from keys(value, (*path, key))
        else:
            yield ".".join((*path, key)), value


def test_the_configurations_page_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == configuration.markdown(), "fabrictap check-config --reference >docs/configuration.md"


def test_every_key_has_a_meaning_and_its_default():
    documented = {}
    for key, _, default, meaning in configuration.rows():
        head, brace, rest = key.partition("{")
        names, _, tail = rest.partition("}")
        assert meaning
        for name in names.split(",") if brace else [""]:
            documented[f"{head}{name}{tail}" if brace else key] = yaml.safe_load(default)
    assert documented == dict(keys(config.as_written(config.Config())))
    assert set(MEANINGS) == {key for key, _, _, _ in configuration.rows()}, "a key that there is not"
    rules = {key: set(kind.__struct_fields__) for key, kind in configuration.ENTRIES.items()}
    assert {key: set(meanings) for key, meanings in RULES.items()} == rules


def test_the_operators_page_has_true_defaults():
    known = {key: default for key, _, default, _ in configuration.rows()}
    found = re.findall(
        r"^\| `([a-z_.{},]+)` \| `(.*?)` \| ", (ROOT / "docs" / "operator.md").read_text(), re.MULTILINE
    )
    assert found
    assert {key: default for key, default in found if key in known} == {
        key: known.get(key) for key, _ in found
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    def anchors(file):
        titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
        return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}

    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        if not file.startswith("http"):
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_the_security_page_has_a_word_about_every_finding():
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.partition("\n## Findings\n")[2].partition("\n## ")[0]
    told = [name for title in re.findall(r"^### (.+)$", section, re.MULTILINE) for name in title.split(", ")]
    assert sorted(told) == sorted(finding.name for finding in catalog.findings())


def test_the_security_page_has_every_capability_that_doctor_asks_for():
    page = (ROOT / "docs" / "security.md").read_text()
    section = page.partition("\n## Capabilities\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(CAP_\w+)` \|", section, re.MULTILINE)
    assert sorted(listed) == sorted(one.name for one in doctor.CAPABILITIES)


def test_the_security_page_names_every_program_that_is_started():
    page = (ROOT / "docs" / "security.md").read_text()
    started = set()
    for file in (ROOT / "agent").rglob("*.py"):
        started |= set(re.findall(r'"-m",\s*"(fabrictap\.[a-z_.]+)"', file.read_text()))
        text = file.read_text()
        assert "os.system" not in text
        if "subprocess.Popen(" in text or "subprocess.run(" in text:
            assert file.name in ("returns.py", "providers.py", "kernel_types.py"), (
                f"{file} starts a program that the page does not name"
            )
    assert started
    for module in started:
        assert f"`python -m {module}`" in page


def test_the_test_vector_of_flow_ids_is_right():
    flow = FlowId.of("::ffff:10.9.0.2", 17, "::ffff:10.9.0.1", 17, 235940)
    page = (ROOT / "docs" / "developer.md").read_text()
    for part in (flow.trace_id, flow.sender_span_id, flow.receiver_span_id):
        assert part.hex() in page


def test_the_rings_page_has_the_layout_as_it_is():
    page = (ROOT / "docs" / "ring.md").read_text()
    types = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i32": "i", "float": "f", "double": "d"}
    for structure, fields in layout.FIELDS.items():
        section = page.partition(f"\n## {structure.capitalize()}\n")[2].partition("\n## ")[0]
        assert f"\n{layout.SIZES[structure]} bytes.\n" in section, structure
        documented = {}
        for line in section.splitlines():
            if match := re.match(
                r"\| (\d+) \| (\d+) \| `(\w+)` \| (?:(\d+) x )?(\w+|8 bytes) \| .*\|$", line
            ):
                offset, size, name, many, type_ = match.groups()
                form = {"8 bytes": "q", "bytes": f"{size}s"}.get(type_) or f"{many or ''}{types[type_]}"
                assert struct.calcsize("=" + form) == int(size), line
                documented[name] = (int(offset), form)
        assert documented == fields


def test_the_rings_page_has_the_strides_of_cells():
    page = (ROOT / "docs" / "ring.md").read_text()
    strides = dict(re.findall(r"^\| (\d) [a-z -]+ \| (\d+) \|", page, re.MULTILINE))
    assert strides == {str(kind): str(layout.stride(kind)) for kind in range(1, 5)}
