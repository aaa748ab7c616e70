"""What doctor makes of a node: from made-up kernels, capabilities and device trees."""

import json
import logging
import time

import pytest

import rings
from doubles.kubelet import Kubelet, answer
from fabrictap.config import Config, Devices, Export, File, Infiniband, Otlp, Signal, Sources
from fabrictap.ext.bpf import BpfError
from fabrictap.sources.verbs import providers
from fabrictap.sources.verbs.calibration import Cost
from fabrictap.view import doctor

ALL = (1 << 41) - 1


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A node where all is well and nothing is attached; ``sysfs`` is an empty tree."""
    monkeypatch.setattr(doctor, "_held", lambda: ALL)
    monkeypatch.setattr(doctor, "has_bpf_loop", lambda: True)
    monkeypatch.setattr(doctor, "_btf", lambda: doctor.Check("type information (BTF)", "ok", "there"))
    monkeypatch.setattr(doctor.providers, "discover", lambda: providers.Report([], {}))
    monkeypatch.setattr(doctor.platform, "release", lambda: "6.1.0")
    monkeypatch.setattr(doctor.dcgm, "look", lambda _: doctor.dcgm.Report("no library", absent=True))
    return Config(sources=Sources(infiniband=Infiniband(sysfs=str(tmp_path))))


def checks(config, **options):
    return {check.what: check for check in doctor.examine(config, **options)}


def test_a_node_where_nothing_is_missing_exits_0_and_says_so(node, capsys):
    assert doctor.main(node, as_json=False) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\nNothing is missing.\n")
    assert "MISSING" not in printed


def test_a_device_that_is_absent_is_nothing_missing(node):
    check = checks(node)["RDMA devices"]
    assert check.status == "absent"
    assert "modprobe" in check.fix


@pytest.mark.parametrize("capability", doctor._CAPABILITIES, ids=lambda capability: capability.name)
def test_a_capability_that_is_missing_is_named_with_what_it_costs(node, monkeypatch, capsys, capability):
    monkeypatch.setattr(doctor.platform, "release", lambda: "5.8.0")
    # CAP_SYS_ADMIN implies some of the others.
    held = ALL & ~(1 << capability.number)
    if capability.name in doctor._IMPLIED:
        held &= ~(1 << doctor._SYS_ADMIN)
    monkeypatch.setattr(doctor, "_held", lambda: held)
    assert doctor.main(node, as_json=False) == 1
    printed = capsys.readouterr().out
    assert f"MISSING  {capability.name}" in printed
    assert f"costs: {capability.cost}" in printed
    missing = 2 if capability.name in doctor._IMPLIED else 1
    assert printed.endswith(f"\n{missing} missing: each costs what stands below it.\n")


def test_sys_admin_stands_for_bpf_and_perfmon(node, monkeypatch):
    monkeypatch.setattr(doctor, "_held", lambda: 1 << doctor._SYS_ADMIN)
    found = checks(node)
    assert found["CAP_BPF"].ok
    assert found["CAP_PERFMON"].ok
    assert found["CAP_NET_ADMIN"].status == "missing"


def test_locked_memory_matters_to_old_kernels_only(node, monkeypatch):
    assert "CAP_SYS_RESOURCE" not in checks(node)
    monkeypatch.setattr(doctor.platform, "release", lambda: "5.10.0-32-amd64")
    assert "CAP_SYS_RESOURCE" in checks(node)


def test_json_has_the_same_checks_and_the_same_exit_code(node, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_held", lambda: 0)
    assert doctor.main(node, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert [check["what"] for check in found] == list(checks(node))
    assert {check["status"] for check in found} == {"ok", "missing", "absent"}


def test_a_helper_that_fails_costs_the_posted_bytes_and_no_more(node, monkeypatch):
    def fail():
        raise providers.HelperFailed("opening the RDMA devices took longer than 20 s")

    monkeypatch.setattr(doctor.providers, "discover", fail)
    check = checks(node)["provider libraries"]
    assert (check.status, check.found) == ("missing", "opening the RDMA devices took longer than 20 s")


def test_a_device_whose_provider_is_not_installed_says_which_package_mends_it(node, monkeypatch):
    report = providers.Report(
        [], {"libibverbs.so.1": "cannot open shared object file", "mlx5_0": "no provider"}
    )
    monkeypatch.setattr(doctor.providers, "discover", lambda: report)
    found = checks(node)
    assert found["provider of libibverbs.so.1"].fix == "apt-get install ibverbs-providers"
    assert found["provider of mlx5_0"].status == "missing"


def test_a_provider_function_says_where_it_is_and_what_it_costs(node, monkeypatch, tmp_path):
    library = tmp_path / "libmlx5.so"
    library.write_bytes(b"\x55" + b"\x48\x83\xec\x08")  # push %rbp; sub $8,%rsp
    places = [
        providers.Place("post_send", str(library), "8:1", 1, 0),
        providers.Place("post_recv", str(library), "8:1", 1, 1),
        providers.Place("post_srq_recv", "/nonexistent", "8:1", 2, 0),
    ]
    monkeypatch.setattr(doctor.providers, "discover", lambda: providers.Report(places, {}))
    found = checks(node)
    assert (found["post_send"].found, found["post_send"].cost) == (f"{library} + 0x0", "")
    assert "single-stepped" in found["post_recv"].cost
    assert found["post_srq_recv"].status == "missing"


def test_what_a_counted_post_costs_is_measured_and_told_with_what_the_budget_then_allows(node, monkeypatch):
    costs = [Cost(1000.0, 9000.0), Cost(problem="no right to load")]
    monkeypatch.setattr(doctor.budget.calibration, "measure", lambda kind: costs[0])
    found = checks(node)["cost of a counted post"].found
    assert found.startswith("1.00 us, 9.0 us where it is single-stepped")
    assert found.endswith("a core busy has 10,000 a second counted")
    node.sources.verbs.data = "full"
    assert "sources.verbs.data is full" in checks(node)["cost of a counted post"].found
    del costs[0]
    assert checks(node)["cost of a counted post"].found == "could not be measured: no right to load"
    node.sources.verbs.data = "off"
    assert "sources.verbs.data is off" in checks(node)["cost of a counted post"].found


def test_how_well_the_running_agent_sees_connections_is_told(node, tmp_path):
    node.ring.path = str(tmp_path / "ring")
    assert "connections of the agent" not in checks(node)
    memory, _ = rings.make(tmp_path / "ring", connections=8)
    memory.tick(time.time_ns())
    assert checks(node)["connections of the agent"].found == "no connection is open"
    rings.put_connection(tmp_path / "ring", 0)
    estimated = rings.COVERAGES.index("estimated")
    rings.put_connection(tmp_path / "ring", 1, coverage=estimated, fraction=0.25)
    found = checks(node)["connections of the agent"]
    assert found.found == "of 2 connections 1 estimated, 1 exact"
    assert "the least in 25 %" in found.cost


def test_quick_opens_no_device(node, monkeypatch):
    monkeypatch.setattr(doctor.providers, "discover", lambda: pytest.fail("a device was opened"))
    checks(node, quick=True)


def test_a_kernel_without_type_information_says_what_is_lost(monkeypatch):
    def refuse(module):
        raise BpfError("no BTF", 2)

    monkeypatch.setattr(doctor, "KernelTypes", refuse)
    monkeypatch.setattr(doctor.Path, "exists", lambda path: True)
    check = doctor._btf()
    assert check.status == "missing"
    assert "hooks at the system call" in check.cost
    monkeypatch.setattr(doctor.Path, "exists", lambda path: False)
    assert "netlink only" in doctor._btf().cost
    assert "CONFIG_DEBUG_INFO_BTF" in doctor._btf().fix


# --- what `run` says first ------------------------------------------------------------------------


def test_the_summary_is_a_few_lines_and_warns_only_of_what_is_missing(node):
    lines = list(doctor.summary(node))
    assert {level for level, _ in lines} == {logging.INFO}
    assert len(lines) <= 5
    assert lines[0][1].startswith("fabrictap ")
    assert lines[-1][1] == "  exports every 10s: metrics, traces and logs to http://localhost:4317"


def test_the_summary_says_what_is_missing_once_for_what_it_costs(node, monkeypatch):
    monkeypatch.setattr(doctor, "_held", lambda: 0)
    warnings = [text for level, text in doctor.summary(node) if level == logging.WARNING]
    assert len(warnings) == 6
    assert warnings[1].startswith("  missing: CAP_BPF (not held by uid ")


def test_the_summary_names_every_way_out(node):
    node.export = Export(
        otlp=Otlp(
            metrics=Signal(endpoint="http://a:1"), traces=Signal(enabled=False), logs=Signal(enabled=False)
        ),
        file=File(path="/x"),
    )
    *_, (level, text) = doctor.summary(node)
    assert (level, text) == (logging.INFO, "  exports every 10s: metrics to http://a:1; all to the file /x")
    off = Signal(enabled=False)
    node.export = Export(otlp=Otlp(metrics=off, traces=off, logs=off))
    *_, (level, text) = doctor.summary(node)
    assert (level, "exports nothing" in text) == (logging.WARNING, True)


def test_devices_that_are_left_out_are_not_said_to_be_missing(node, tmp_path):
    (tmp_path / "class" / "infiniband" / "mlx5_0" / "ports").mkdir(parents=True)
    node.devices = Devices(deny=["*"])
    assert checks(node)["RDMA devices"].found == "1 left out by devices.allow and devices.deny"


def test_a_kubelet_is_asked_and_what_it_does_not_say_is_missing(node, tmp_path):
    kubelet = node.sources.kubelet
    assert checks(node)["kubelet"].status == "absent"
    kubelet.socket, kubelet.pods_log_dir = str(tmp_path / "k"), str(tmp_path / "pods")
    kubelet.enabled = "on"
    found = checks(node)
    assert [found[f"kubelet: {what}"].status for what in ("devices of pods", "names of pods")] == [
        "missing"
    ] * 2
    assert "does not answer: unavailable" in found["kubelet: devices of pods"].found
    (tmp_path / "pods" / f"ml_train-0_{'0' * 32}").mkdir(parents=True)
    device = {"resource_name": "nvidia.com/gpu", "device_ids": ["GPU-1"]}
    pod = {"name": "train-0", "namespace": "ml", "containers": [{"name": "main", "devices": [device]}]}
    stand_in = Kubelet(tmp_path / "k", lambda: answer([pod]))
    try:
        found = checks(node)
    finally:
        stand_in.stop()
    assert found["kubelet: devices of pods"].found == "1 pods, 1 devices given to them"
    assert found["kubelet: names of pods"].found == "1 pods and 0 containers named"
    kubelet.enabled = "off"
    assert "switched off" in checks(node)["kubelet"].found
