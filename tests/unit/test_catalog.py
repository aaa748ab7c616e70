"""The catalog: one name one meaning, and nothing in the code that it does not know."""

import ast
import json
import re
from pathlib import Path

import pytest

import fabrictap
from fabrictap import catalog
from fabrictap.catalog import Kind, Standard
from fabrictap.ext import records
from fabrictap.insight.findings import Severity
from fabrictap.ledger import names, providers
from fabrictap.ledger.memory import REMOTE_ATOMIC, REMOTE_READ, REMOTE_WRITE, MemoryRegion
from fabrictap.sources.rdma_netlink import reconcile as rdma_reconcile
from fabrictap.sources.verbs import control as verbs_control
from fabrictap.sources.verbs import posts as verbs_posts
from fabrictap.sources.verbs import probes
from fabrictap.view import catalog as view

PACKAGE = Path(fabrictap.__file__).parent
ROOT = Path(__file__).parents[2]
NAME = re.compile(
    r"(rdma|hw|gpu|fabrictap|process|network|otel|cpu|error|k8s|container|slurm|systemd)(\.[a-z][a-z0-9_]*)+"
)
#: UCUM as the semantic conventions use it: bytes, seconds, ratios, and annotations of things in the singular.
UNIT = re.compile(r"By|s|1|By/s|W|J|Cel|\{[a-z_]+\}")


def test_names_are_unique_and_written_as_the_conventions_want():
    for things in (catalog.metrics(), catalog.spans()):
        names = [thing.name for thing in things]
        assert len(names) == len(set(names)) > 0
        assert all(NAME.fullmatch(name) for name in names)


def test_an_attribute_has_one_meaning():
    attributes = list(catalog.attributes())
    assert len({attribute.name for attribute in attributes}) == len(attributes)
    things = (*catalog.metrics(), *catalog.spans(), *catalog.events())
    used = {a.name: a for thing in things for a in thing.attributes}
    used |= {a.name: a for a in (*catalog.ON_ANY_COUNTER, *catalog.ON_THE_RESOURCE)}
    assert all(any(attribute is known for known in attributes) for attribute in used.values())
    assert set(used) == {attribute.name for attribute in attributes}, "an attribute that nothing has"


@pytest.mark.parametrize(
    "thing", [*catalog.metrics(), *catalog.spans(), *catalog.events()], ids=lambda thing: thing.name
)
def test_nothing_has_an_attribute_twice_or_no_meaning(thing):
    names = [attribute.name for attribute in thing.attributes]
    assert len(names) == len(set(names))
    assert thing.description[0].isupper() or thing.description[0].isdigit()
    assert not thing.description.endswith(".")


@pytest.mark.parametrize("metric", [*catalog.metrics()], ids=lambda metric: metric.name)
def test_a_metric_has_a_unit_of_the_conventions_and_none_in_its_name(metric):
    assert UNIT.fullmatch(metric.unit), metric.unit
    assert not re.search(r"_(bytes|seconds|total|count)$", metric.name)
    if metric.kind is Kind.COUNTER:
        assert metric.unit != "1"


def test_what_the_conventions_define_is_marked_so():
    # Of these name spaces nothing is ours.
    for metric in catalog.metrics():
        theirs = metric.name.startswith(("hw.", "process.", "otel."))
        assert (metric.standard is Standard.SEMCONV) == theirs, metric.name


def test_closed_sets_are_what_the_code_says():
    operations = set(catalog.RDMA_OPERATION.values)
    assert set(names.OPERATIONS) == operations
    assert set(verbs_posts._OPERATION.values()) == set(range(len(names.OPERATIONS)))
    types = set(catalog.RDMA_QP_TYPE.values)
    assert set(names.QP_TYPES) == types
    assert set(names.QP_STATES) == set(catalog.RDMA_QP_STATE.values)
    assert set(names.COVERAGES) == set(catalog.COVERAGE.values)
    assert set(names.ORIGINS) == set(catalog.ORIGIN.values)
    assert set(verbs_control.QP_TYPES.values()) | {"srq", "unknown"} == types
    assert set(rdma_reconcile.QP_TYPE_NAMES.values()) | {"srq", "unknown"} == types
    assert set(verbs_control.QP_STATES) | {"unknown"} == set(catalog.RDMA_QP_STATE.values)
    # System calls are hooked by their tracepoints.
    assert set(probes.LEVELS) - {"syscall"} | {"tracepoint"} <= set(catalog.PROBE_METHOD.values)
    accesses = {
        MemoryRegion("d", 1, 1, None, None, 1, access).remote_access
        for access in (None, 0, 1, REMOTE_READ, REMOTE_WRITE, REMOTE_READ | REMOTE_WRITE, REMOTE_ATOMIC)
    }
    assert accesses == set(catalog.RDMA_MR_ACCESS.values)
    assert [finding.name for finding in catalog.findings()] == list(catalog.FINDING_KIND.values)
    assert [one.name.lower() for one in Severity] == list(catalog.FINDING_SEVERITY.values)
    assert set(catalog.PROVIDER.values) == set(providers.RANK)
    assert catalog.UNAVAILABLE.values == providers.REASONS
    if catalog.LOSS.values:
        assert set(records.LOSSES) <= set(catalog.LOSS.values)


def strings(path):
    return (
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_the_code_uses_no_name_that_the_catalog_does_not_have():
    things = (*catalog.metrics(), *catalog.spans(), *catalog.attributes(), *catalog.events())
    known = {thing.name for thing in things}
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
    }
    for folder in ("sources", "ledger", "insight"):
        for path in (PACKAGE / folder).glob("*.py"):
            for line, text in strings(path):
                if NAME.fullmatch(text) and text not in modules:
                    assert text in known, f"{path.name}:{line}: {text}"


def test_no_part_writes_the_name_of_a_flow_attribute_that_the_span_does_not_have():
    names = {attribute.name for attribute in catalog.FLOW_SPAN.attributes}
    flows = {text for _, text in strings(PACKAGE / "ledger" / "flows.py") if NAME.fullmatch(text)}
    assert flows - {catalog.FLOW_SPAN.name, catalog.FLOW_WINDOW_SPAN.name} <= names


# --- in print -------------------------------------------------------------------------------------


def rows(markdown, title):
    """First cells of the table below a heading."""
    section = markdown.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]


def test_markdown_and_json_list_the_same():
    markdown, data = view.markdown(), json.loads(view.as_json())
    for title in ("Metrics", "Spans", "Findings", "Events", "Attributes"):
        assert rows(markdown, title) == [thing["name"] for thing in data[title.lower()]]
    for metric in data["metrics"]:
        line = next(line for line in markdown.splitlines() if line.startswith(f"| `{metric['name']}` |"))
        for text in (metric["kind"], f"`{metric['unit']}`", metric["description"], metric["standard"]):
            assert text in line
        assert all(f"`{name}`" in line for name in metric["attributes"])


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    width = 0
    for line in view.markdown().splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|"):
            assert width in (0, cells), line
        width = cells if line.startswith("|") else 0


def test_the_page_in_docs_is_current():
    page = (ROOT / "docs" / "catalog.md").read_text()
    assert page == view.markdown(), "run: fabrictap catalog > docs/catalog.md"
