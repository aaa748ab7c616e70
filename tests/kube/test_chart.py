"""The Helm chart: it renders to what Kubernetes takes, and to what fabrictap itself takes."""

import json
import re

import pytest
import yaml

from fabrictap import config
from fabrictap.cli import main
from kube import chart

IDS = [file.stem for file in chart.VALUES]
BY_NAME = {file.stem: file for file in chart.VALUES}


@pytest.mark.parametrize("values", chart.VALUES, ids=IDS)
def test_helm_lint_finds_nothing(values):
    newest = chart.versions()[-1]
    done = chart.run(*("helm", "lint", "--strict", "--kube-version", newest), "--values", values, chart.CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", chart.VALUES, ids=IDS)
def test_every_version_of_kubernetes_takes_it(values):
    for version in chart.versions():
        done = chart.conform(chart.template(values, version), version)
        assert done.returncode == 0, f"{version}: {done.stdout}{done.stderr}"


def test_the_schemas_do_refuse_what_a_version_does_not_have():
    # A check of the check: a field of 1.30, an unknown field, a wrong type, a missing field.
    good = chart.template(BY_NAME["default"], "1.37.2")
    for version, old, new in (
        ("1.28.15", "appArmorProfile:", "appArmorProfile:"),
        ("1.37.2", "hostPID: true", "hostPid: true"),
        ("1.37.2", "hostPID: true", "hostPID: 'yes'"),
        ("1.37.2", "  selector:\n", "  minReadySeconds: 1\n  selektor:\n"),
    ):
        assert old in good
        done = chart.conform(good.replace(old, new, 1), version)
        assert done.returncode == 1, (version, new)


@pytest.mark.parametrize("values", chart.VALUES, ids=IDS)
def test_fabrictap_takes_its_configuration(values, tmp_path):
    text = chart.template(values)
    file = tmp_path / "fabrictap.yaml"
    file.write_text(chart.objects(text)["ConfigMap"]["data"]["fabrictap.yaml"])
    # As the kubelet hands them over: $(NAME) stands for a variable above it.
    environment = {"NODE_NAME": "node-1", "NODE_IP": "10.0.0.5"}
    for variable in chart.container(text)["env"]:
        if "value" in variable:
            value = variable["value"]
            for name, known in environment.items():
                value = value.replace(f"$({name})", known)
            environment[variable["name"]] = value
    loaded = config.load(str(file), environment)
    real = not yaml.safe_load(values.read_text()).get("simulate")
    assert loaded.ring.path is not None
    assert loaded.resource.attributes["k8s.node.name"] == "node-1"
    assert loaded.resource.attributes.get("host.name") == ("node-1" if real else None)
    assert "$(" not in json.dumps(config.as_written(loaded))


def test_everything_that_can_be_set_arrives(tmp_path):
    file = tmp_path / "fabrictap.yaml"
    text = chart.template(BY_NAME["everything"])
    file.write_text(chart.objects(text)["ConfigMap"]["data"]["fabrictap.yaml"])
    loaded = config.load(str(file), {})
    assert loaded.sources.kubelet.enabled == "on"
    assert loaded.sources.kubelet.certificate == "/etc/fabrictap/kubelet/ca.crt"
    assert loaded.sources.kubelet.interval == 30  # of the user, beside the chart's
    assert loaded.export.otlp.metrics.compression == "none"
    assert loaded.export.otlp.logs.client_key == "/etc/fabrictap/tls/tls.key"
    assert loaded.export.prometheus.listen == "127.0.0.1:9436"
    assert loaded.policy.workloads[0].exposed_memory == 512 << 30
    mounts = {mount["mountPath"] for mount in chart.container(text)["volumeMounts"]}
    assert {"/etc/fabrictap/tls", "/etc/fabrictap/kubelet"} <= mounts
    (rule,) = chart.objects(text)["ClusterRole"]["rules"]
    assert rule == {"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}
    old = chart.objects(chart.template(BY_NAME["everything"], "1.31.14"))["ClusterRole"]["rules"]
    assert old[0]["resources"] == ["nodes/proxy"]


@pytest.mark.parametrize("values", chart.VALUES, ids=IDS)
def test_numbers_are_written_as_the_api_server_reads_them(values):
    # Helm's are floats: 1000000 becomes 1e+06, which is no integer to Go's decoder, and fine to a schema.
    assert not re.search(r"[: ]\d+(\.\d+)?e[+-]?\d+\b", chart.template(values))


def test_another_policy_rolls_the_pods():
    def annotations(*settings):
        text = chart.template(BY_NAME["default"], None, *settings)
        return chart.objects(text)["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]

    assert annotations() == annotations("clusterName=other")
    assert annotations() != annotations("policy.tenant_by=k8s.namespace.name")
    assert annotations() != annotations("config.agent.log_level=debug")


def test_the_default_is_neither_privileged_nor_has_it_a_token_or_a_role():
    text = chart.template(BY_NAME["default"])
    found = chart.objects(text)
    assert set(found) == {"ServiceAccount", "PriorityClass", "ConfigMap", "DaemonSet"}
    assert found["ServiceAccount"]["automountServiceAccountToken"] is False
    assert found["DaemonSet"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert found["PriorityClass"]["preemptionPolicy"] == "Never"
    context = chart.container(text)["securityContext"]
    assert context["privileged"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    page = (chart.ROOT / "docs" / "kubernetes.md").read_text()
    table = page.partition("\n## Capabilities\n")[2].partition("\n## ")[0]
    assert set(context["capabilities"]["add"]) == set(re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE))
    written = [m["mountPath"] for m in chart.container(text)["volumeMounts"] if not m.get("readOnly")]
    assert written == ["/tmp", "/run/fabrictap", "/var/lib/fabrictap"]


def test_privileged_is_only_what_was_asked_for():
    context = chart.container(chart.template(BY_NAME["privileged"]))["securityContext"]
    assert context["privileged"] is True
    assert "capabilities" not in context
    assert "allowPrivilegeEscalation" not in context  # Kubernetes refuses false beside privileged


def test_a_simulated_node_needs_nothing_of_the_real_one():
    spec = chart.objects(chart.template(BY_NAME["simulated"]))["DaemonSet"]["spec"]["template"]["spec"]
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert not {"hostPID", "hostNetwork", "runtimeClassName", "affinity"} & set(spec)
    context = spec["containers"][0]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["networkPolicy.enabled=true"], "set hostNetwork: false too"),
        (["simulate=hgx-h200"], "simulate"),
        (["image.tagg=1"], "tagg"),
        (["config.sorces.nvml.enabled=false"], "sorces"),
        (["securityContext.capabilities={CAP_BPF}"], "capabilities"),
        (["otlp.endpoint=gateway:4317"], "endpoint"),
        (["terminationGracePeriodSeconds=5"], "terminationGracePeriodSeconds"),
    ],
)
def test_a_mistake_is_refused_before_it_reaches_a_cluster(settings, said):
    done = chart.attempt(None, None, *settings)
    assert done.returncode != 0
    assert said in done.stderr


def test_probes_run_commands_that_there_are(capsys):
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        program, *arguments = chart.container(chart.template(BY_NAME["default"]))[name]["exec"]["command"]
        assert program == "fabrictap"
        # The node's own recording is not there: that is said, and not that the options are wrong.
        place = arguments.index("--file") + 1
        assert main([*arguments[:place], "/nonexistent/ring", *arguments[place + 1 :]]) == 1
        assert "/nonexistent/ring does not exist" in capsys.readouterr().err
