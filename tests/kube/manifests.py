"""Writes packaging/kubernetes/manifests from the chart: python tests/kube/manifests.py"""

from kube import chart

_TITLE = """\
# Generated from packaging/kubernetes/chart by `make manifests`; change it there.
# {what}
# Apply namespace.yaml first.
"""
#: File -> (values, what it is).
_FILES = {
    "fabrictap.yaml": (
        "default",
        "fabrictap with the chart's defaults: on GPU nodes, OTLP to port 4317 of the node.",
    ),
    "fabrictap-simulated.yaml": (
        "simulated",
        "A made-up HGX H100 in each pod, for a first look on any cluster.",
    ),
}


def made():
    """Name of the file -> its text."""
    return {
        name: _TITLE.format(what=what)
        + chart.template(chart.HERE / "values" / f"{values}.yaml", chart.versions()[-1]).replace(
            "app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl"
        )
        for name, (values, what) in _FILES.items()
    }


if __name__ == "__main__":
    for name, text in made().items():
        (chart.MANIFESTS / name).write_text(text)
        print(chart.MANIFESTS / name)
