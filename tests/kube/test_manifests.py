"""packaging/kubernetes/manifests: what the chart makes, for those without Helm."""

import re
from pathlib import Path

import yaml

from fabrictap import catalog
from fabrictap.export import prometheus
from fabrictap.version import VERSION
from kube import chart, manifests


def test_the_manifests_are_those_that_the_chart_makes():
    for name, text in manifests.made().items():
        there = chart.MANIFESTS / name
        assert there.is_file(), f"make manifests: {there} is missing"
        assert there.read_text() == text, f"make manifests: {there} is not what the chart makes now"
    assert {file.name for file in chart.MANIFESTS.iterdir()} == {*manifests.made(), "namespace.yaml"}


def test_the_namespace_lets_such_pods_in():
    (namespace,) = yaml.safe_load_all((chart.MANIFESTS / "namespace.yaml").read_text())
    assert namespace["metadata"]["name"] == chart.NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_the_chart_is_of_this_version():
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == VERSION


def test_every_value_is_in_the_schema_and_the_page():
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    schema = yaml.safe_load((chart.CHART / "values.schema.json").read_text())
    assert set(values) | {"global"} == set(schema["properties"])
    page = (Path(chart.ROOT) / "docs" / "kubernetes.md").read_text()
    table = page.partition("\n## Values\n")[2].partition("\n## ")[0]
    said = {
        name
        for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert said == set(values)


def test_names_of_metrics_on_the_page_are_those_that_prometheus_has():
    page = (Path(chart.ROOT) / "docs" / "kubernetes.md").read_text()
    said = set(re.findall(r"`((?:hw|gpu|fabrictap)_[a-z_]+)`", page)) - {"hw_id"}
    assert said
    assert said <= {prometheus.name(metric) for metric in catalog.metrics()}
