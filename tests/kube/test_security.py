"""kube-score over all that the chart makes: nothing, but what is written here with the reason."""

import json

import pytest

from kube import chart

#: Check -> why what it asks for is not so.
EXCEPTIONS = {
    "container-security-context-user-group-id": "root: the kubelet's PodResources socket and the trace file system "
    "are root's; a user and group of 10000 and more could not open them",
    "container-image-pull-policy": "IfNotPresent: the tag is a release, and a node must not lose its agent with the "
    "registry",
    "container-ephemeral-storage-request-and-limit": "the root file system is read-only and /tmp is a tmpfs of a "
    "limited size: none is used",
    "pod-networkpolicy": "with hostNetwork no NetworkPolicy can hold the pod; networkPolicy.enabled is for "
    "hostNetwork: false, and the agent listens to nothing by default",
    "pod-topology-spread-constraints": "a DaemonSet",
}
#: And with these values besides.
MORE = {
    "privileged": {"container-security-context-privileged": "the documented fallback, asked for by name"},
    "simulated": {},
}


@pytest.mark.parametrize("values", chart.VALUES, ids=lambda file: file.stem)
def test_kube_score_finds_nothing_but_what_is_justified(values):
    done = chart.run("kube-score", "score", "--output-format", "json", "-", stdin=chart.template(values))
    found = {}
    for one in json.loads(done.stdout):
        for check in one["checks"] or ():
            # 1 critical, 5 warning, 7 almost, 10 fine
            if not check["skipped"] and check["grade"] < 10:
                found[check["check"]["id"]] = [comment["summary"] for comment in check["comments"] or ()]
    allowed = EXCEPTIONS | MORE.get(values.stem, {})
    unjustified = {name: said for name, said in found.items() if name not in allowed}
    assert unjustified == {}


def test_no_exception_is_left_over():
    """One that nothing needs any more would hide what comes."""
    needed = set()
    for values in chart.VALUES:
        done = chart.run("kube-score", "score", "--output-format", "json", "-", stdin=chart.template(values))
        needed |= {
            check["check"]["id"]
            for one in json.loads(done.stdout)
            for check in one["checks"] or ()
            if not check["skipped"] and check["grade"] < 10
        }
    assert set(EXCEPTIONS) - needed == set()
