"""The chart, rendered and judged by the programs that tests/kube/build.sh builds."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import yaml

from support import require

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHART = ROOT / "packaging" / "kubernetes" / "chart"
MANIFESTS = ROOT / "packaging" / "kubernetes" / "manifests"
VALUES = sorted((HERE / "values").glob("*.yaml"))
#: The namespace that the manifests are for.
NAMESPACE = "fabrictap"


@cache
def tools() -> Path:
    """The folder of programs and schemas; skips the test where it is not there."""
    build = HERE / "build.sh"
    folder = Path(
        subprocess.run([build, "--path"], capture_output=True, text=True, check=True).stdout.strip()
    )
    require("kube", folder.is_dir(), f"{folder} does not exist; make it with {build}")
    return folder


def versions() -> list[str]:
    """The versions of Kubernetes whose schemas are there, oldest first."""
    found = [folder.name for folder in (tools() / "schemas").iterdir()]
    return sorted(found, key=lambda text: [int(part) for part in text.split(".")])


def run(program: str, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm, kubeconform or kube-score; helm keeps its files where nobody else's are."""
    home = ROOT / "build" / "helm"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HELM_CACHE_HOME": str(home)}
    return subprocess.run(
        [tools() / "bin" / program, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )


@cache
def template(values: Path | None = None, version: str | None = None, *settings: str) -> str:
    """What ``helm template`` makes of the chart: a stream of YAML documents. The test fails if it fails."""
    done = attempt(values, version, *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def attempt(
    values: Path | None = None, version: str | None = None, *settings: str
) -> subprocess.CompletedProcess[str]:
    """``helm template``, which may fail."""
    arguments: list[str | Path] = ["template", "fabrictap", CHART, "--namespace", NAMESPACE]
    if values is not None:
        arguments += ["--values", values]
    arguments += ["--kube-version", version or versions()[-1]]
    for setting in settings:
        arguments += ["--set", setting]
    return run("helm", *arguments)


def conform(text: str, version: str) -> subprocess.CompletedProcess[str]:
    """Hold a stream of YAML documents against the API of a version of Kubernetes."""
    where = tools() / "schemas" / version / "{{.ResourceKind}}{{.KindSuffix}}.json"
    return run("kubeconform", "-strict", "-output=json", "-schema-location", str(where), stdin=text)


def objects(text: str) -> dict[str, dict]:
    """Kind -> object; the chart has no two of a kind."""
    found = [one for one in yaml.safe_load_all(text) if one]
    kinds = [one["kind"] for one in found]
    assert len(set(kinds)) == len(kinds), kinds
    return dict(zip(kinds, found, strict=True))


def container(text: str) -> dict:
    (only,) = objects(text)["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    return only
