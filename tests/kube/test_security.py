"""kube-score over all that the chart makes: nothing, but what is written here with the reason."""

import json

import pytest

from kube import chart

#: Check -> why what it asks for is not so.
EXCEPTIONS = {
    "container-security-context-user-group-id": "root: the kubelet's socket and the trace file system are "
    "root's; a user and group of 10000 and more could not open them",
    "container-image-pull-policy": "IfNotPresent: the tag is a release, and a node must not lose its agent "
    "with the registry",
    "container-ephemeral-storage-request-and-limit": "the root file system is read-only and /tmp is a tmpfs "
    "of a limited size: none is used",
    "pod-networkpolicy": "with hostNetwork no NetworkPolicy can hold the pod; networkPolicy.enabled is for "
    "hostNetwork: false, and the agent listens to nothing by default",
}
#: And with these values besides.
MORE = {
    "privileged": {"container-security-context-privileged": "the documented fallback, asked for by name"},
}


COLLECTOR = chart.ROOT / "packaging" / "otel-collector" / "kubernetes.yaml"
#: The same for the tiers of Collectors.
COLLECTOR_EXCEPTIONS = {
    "container-image-pull-policy": EXCEPTIONS["container-image-pull-policy"],
    "pod-networkpolicy": "ingress is held; egress goes to backends that are the operator's to name",
}


def complaints(text):
    """Check -> what kube-score says, where it is not content."""
    done = chart.run(
        *("kube-score", "score", "--output-format", "json"),
        *("--enable-optional-test", "container-seccomp-profile"),
        "-",
        stdin=text,
    )
    # 1 critical, 5 warning, 7 almost, 10 fine
    return {
        check["check"]["id"]: [comment["summary"] for comment in check["comments"] or ()]
        for one in json.loads(done.stdout)
        for check in one["checks"] or ()
        if not check["skipped"] and check["grade"] < 10
    }


@pytest.mark.parametrize("values", chart.VALUES, ids=lambda file: file.stem)
def test_kube_score_finds_nothing_but_what_is_justified(values):
    allowed = EXCEPTIONS | MORE.get(values.stem, {})
    found = complaints(chart.template(values))
    assert {check: said for check, said in found.items() if check not in allowed} == {}


def test_no_exception_is_left_over():
    """One that nothing needs any more would hide what comes."""
    assert set(EXCEPTIONS) <= set().union(*(complaints(chart.template(values)) for values in chart.VALUES))
    for name, more in MORE.items():
        assert set(more) <= set(complaints(chart.template(chart.HERE / "values" / f"{name}.yaml")))


def test_the_tiers_of_collectors_likewise():
    assert set(complaints(COLLECTOR.read_text())) == set(COLLECTOR_EXCEPTIONS)
    for version in chart.versions():
        done = chart.conform(COLLECTOR.read_text(), version)
        assert done.returncode == 0, f"{version}: {done.stdout}{done.stderr}"
