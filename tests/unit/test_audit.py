"""What an audit says of made-up nodes, as a command and through its parts; nothing hostile stops it."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

import rings
from command import fabrictap
from doubles import node_tree
from fabrictap import catalog
from fabrictap.audit import kernel_users, patience, pci, process, processes, registered, report, verbs
from fabrictap.audit.facts import Denied, Node
from fabrictap.audit.model import Finding, Observed, Present, Severity, Way
from fabrictap.audit.watch import Watch
from fabrictap.view.recording import Recording
from support import require

BUILDERS = {
    "clean": node_tree.clean_cpu_node,
    "hgx": node_tree.hgx_node,
    "misconfigured": node_tree.misconfigured_node,
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """name -> root of each node."""
    found = {}
    for name, build in BUILDERS.items():
        root = tmp_path_factory.mktemp(name)
        build(root)
        found[name] = root
    return found


@pytest.fixture(scope="module")
def wrong(trees):
    """What is said of the misconfigured node."""
    return look(trees["misconfigured"])


def node(root, **more):
    return Node(f"{root}/sys", f"{root}/proc", f"{root}/dev", **more)


def look(root, *arguments, code=0):
    done = fabrictap("audit", "--json", "--root", root, "--file", root / "no-ring", *arguments, code=code)
    return json.loads(done.stdout)


def present(found):
    return {way["key"]: way["present"] for way in found["ways"]}


def found_in(found, way):
    return [one for one in found["findings"] if one["way"] == way]


# --- whole nodes ----------------------------------------------------------------------------------


def test_a_clean_node_without_gpu_and_rdma_has_no_way_and_exits_0(trees):
    found = look(trees["clean"], "--fail-on", "low")
    assert set(present(found).values()) == {"no"}
    assert found["findings"] == []
    assert (found["host"], found["kernel"]) == ("node1", "6.8.0-60-generic")
    done = fabrictap("audit", "--root", trees["clean"], "--file", trees["clean"] / "no-ring")
    assert "\nExposed: nothing was found, and nothing had to be left out.\n" in done.stdout
    assert done.stdout.endswith("\n0 high, 0 medium, 0 low, 0 unknown; 0 of 18 ways present\n")


def test_a_well_kept_hgx_node_has_its_ways_and_nothing_of_high_severity(trees):
    found = look(trees["hgx"], "--fail-on", "high")
    ways = present(found)
    assert {key for key, state in ways.items() if state == "yes"} == {
        "rdma.verbs",
        "rdma.containers",
        "gpudirect.rdma.dmabuf",
        "gpu.nvlink",
        "pcie.p2p",
    }
    # What sysfs does not tell is not called absent.
    assert {key for key, state in ways.items() if state == "unknown"} == {
        "rdma.one_sided",
        "rdma.direct",
        "rdma.odp",
    }
    assert {one["severity"] for one in found["findings"]} == {"medium", "low"}
    assert not found_in(found, "pcie.p2p")
    switches = next(way for way in found["ways"] if way["key"] == "gpu.nvlink")
    assert switches["why"] == "4 NVSwitches, fabric manager runs (900)"
    assert switches["observed"] == "not_observed"
    look(trees["hgx"], "--fail-on", "medium", code=report.EXPOSED)


@pytest.mark.parametrize(
    ("way", "severity", "what", "evidence"),
    [
        ("rdma.verbs", "high", "any user may send management packets", "umad0 0666"),
        ("rdma.verbs", "medium", "may open RDMA devices: the kernel's default", "uverbs0 0666"),
        ("rdma.containers", "medium", "containers with a device for fabric management", "umad0"),
        ("rdma.containers", "medium", "netns shared), and 2 containers", "uverbs0"),
        ("rdma.containers", "low", "as the node's root", "5000/trainer"),
        ("rdma.direct", "medium", "may write queue entries themselves", ": UCX"),
        ("rdma.kernel", "high", "one key to all memory", "nvme_rdma.register_always=N"),
        ("rdma.kernel", "low", "move data over RDMA now", "mount /data"),
        ("dpu", "medium", "a DPU's own processor", "0000:30:00.0 BlueField-2"),
        ("dpu", "low", "embedded switch", "pf0vf0 (pf0vf0)"),
        ("rdma.vf", "medium", "1 device given to virtual machines", "0000:30:00.3 (adapter)"),
        ("gpudirect.rdma.peermem", "medium", "2.00 GiB of GPU memory is registered", None),
        ("gpudirect.storage", "medium", "unseen", None),
        ("gdrcopy", "medium", "/dev/gdrdrv has mode 0666", None),
        ("gpu.imex", "high", "import GPU memory that other nodes", "channel0 0666"),
        ("pcie.p2p", "high", "1 PCIe port with ACS off", "0000:10:01.0"),
        ("pcie.p2p", "low", "GPUs in one IOMMU group", "group 1: 0000:20:00.0, 0000:21:00.0"),
        ("pcie.p2p", "low", "the IOMMU passes through", "0000:20:00.0 (gpu): group 1 is passed through"),
        ("cuda.ipc", "high", "2 workloads share the node's IPC namespace", r"6000/evil\x1b[2J"),
        ("gpu.sharing", "medium", "share a GPU context (MPS)", None),
        ("gpu.sharing", "medium", "re-slice GPUs", None),
        ("gpu.sharing", "low", "take turns on a GPU", "nvidia0: 2 workloads"),
        ("observation", "medium", "kernel lockdown (confidentiality)", None),
        ("observation", "low", "perf_event_paranoid=4", None),
        ("observation", "medium", "no agent runs: nothing observes the 13 ways", None),
    ],
)
def test_a_misconfigured_node_is_told_what_is_wrong_and_what_mends_it(wrong, way, severity, what, evidence):
    (one,) = [one for one in found_in(wrong, way) if what in one["what"]]
    assert (one["severity"], one["certain"]) == (severity, True)
    assert one["fix"]
    if evidence is not None:
        assert any(evidence in piece for piece in one["evidence"]), one["evidence"]


def test_the_worst_stands_first_and_what_is_certain_before_what_is_not(wrong):
    found = wrong["findings"]
    levels = ["high", "medium", "low"]
    ranks = [(levels.index(one["severity"]), not one["certain"]) for one in found]
    assert ranks == sorted(ranks)
    assert ranks[0] == (0, False)


@pytest.mark.parametrize("columns", [80, 100, 160])
@pytest.mark.parametrize("name", BUILDERS)
def test_the_text_fits_and_harms_no_terminal(trees, name, columns):
    done = fabrictap("audit", "--root", trees[name], "--file", trees[name] / "no-ring", COLUMNS=str(columns))
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line.isprintable() for line in lines)


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "level", "code"),
    [
        ("clean", "low", 0),
        ("hgx", "never", 0),
        ("hgx", "high", 0),
        ("hgx", "medium", 1),
        ("misconfigured", "high", 1),
        ("misconfigured", "never", 0),
    ],
)
def test_the_exit_code_says_whether_something_as_bad_was_found(trees, name, level, code):
    look(trees[name], "--fail-on", level, code=code)


def test_what_may_be_as_bad_and_could_not_be_looked_at_has_a_code_of_its_own():
    way = Way("x", "x", Present.UNKNOWN, "who knows")
    sure = Finding(Severity.LOW, "low", "mend")
    unsure = Finding(Severity.HIGH, "perhaps", "look", certain=False)

    def code(level, *findings):
        made = report.Audit("h", "6.1", 0, 0, "absent", "", (way,), tuple(("x", one) for one in findings))
        return report.exit_code(made, level)

    assert code(Severity.HIGH, sure) == report.OK
    assert code(Severity.HIGH, sure, unsure) == report.UNCLEAR
    assert code(Severity.LOW, sure, unsure) == report.EXPOSED
    assert code(None, sure, unsure) == report.OK


# --- no false comfort -----------------------------------------------------------------------------


def test_a_way_that_may_be_there_is_always_a_finding(trees, tmp_path):
    for root in trees.values():
        made = report.audit(node(root), 0, 0)
        doubted = {key for key, one in made.findings if not one.certain}
        assert {way.key for way in made.ways if way.present is Present.UNKNOWN} <= doubted


def test_an_empty_tree_is_unknown_and_not_clean(tmp_path):
    for name in ("sys", "proc", "dev"):
        (tmp_path / name).mkdir()
    found = look(tmp_path, "--fail-on", "low", code=report.UNCLEAR)
    states = present(found)
    for key in (
        "rdma.verbs",
        "rdma.kernel",
        "gpudirect.rdma.peermem",
        "gpudirect.storage",
        "pcie.p2p",
        "dpu",
    ):
        assert states[key] == "unknown", key


def test_processes_that_hide_what_they_have_open_leave_it_unknown(trees, monkeypatch):
    real = os.scandir

    def refuse(path):
        if str(path).endswith("/5000/fd"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(process.os, "scandir", refuse)
    made = report.audit(node(trees["misconfigured"]), 0, 1000)
    reasons = [
        one.what for _, one in made.findings if not one.certain and "hide what they have open" in one.what
    ]
    assert len(reasons) == 3  # who has RDMA devices, which containers, which GPU processes share


def test_outside_of_the_nodes_pid_namespace_processes_are_not_known(trees, tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    for path in (tree.proc / "1/ns/pid", tree.proc / "self/ns/pid"):
        path.unlink(missing_ok=True)
    (tree.proc / "1/ns/pid").symlink_to("pid:[4026532999]")
    doubts = node(tmp_path).processes.doubts
    assert doubts == ["not in the node's pid namespace: processes of others are not seen"]


def test_hidden_processes_are_noticed_by_the_first_that_is_missing(tmp_path):
    tree = node_tree.clean_cpu_node(tmp_path)
    (tree.proc / "1").rename(tmp_path / "hidden")
    assert any("hidepid" in doubt for doubt in node(tmp_path).processes.doubts)


def test_rdma_devices_of_other_network_namespaces_are_not_passed_off_as_none(tmp_path):
    tree = node_tree.clean_cpu_node(tmp_path)
    assert verbs.devices(node(tmp_path))[0] is Present.NO
    tree.module("ib_core", netns_mode="N")
    state, why = verbs.devices(node(tmp_path))
    assert (state, "exclusive" in why) == (Present.UNKNOWN, True)
    node_tree.container(tree, 6000, "app", node_tree.POD_A, "c" * 64, verbs=0)
    state, why = verbs.devices(node(tmp_path))
    assert (state, why) == (Present.YES, "none in this network namespace, but open in 1 process")


def test_a_renamed_device_is_found_by_its_event_file(trees):
    found = node(trees["misconfigured"]).processes.rdma
    assert [one.pid for one in found] == [5000, 6000]
    assert not any(name.startswith("infiniband") for name in found[1].devices)


def test_a_service_with_mounts_of_its_own_is_no_container(trees):
    assert node(trees["clean"]).processes.namespaces == {}


def test_a_link_in_a_container_leads_nowhere(tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    node_tree.container(tree, 6000, "app", node_tree.POD_B, "c" * 64)
    root = tmp_path / "containers" / ("c" * 12)
    (root / "dev/infiniband").symlink_to(tree.dev / "infiniband")
    found = next(way for way in report.audit(node(tmp_path), 0, 0).ways if way.key == "rdma.containers")
    assert found.why == "in /dev of 1 container"  # the other one


def test_shared_memory_that_is_mounted_into_two_pods_is_found(tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    node_tree.container(tree, 6000, "app", node_tree.POD_B, "c" * 64, gpu=1)
    roots = [tmp_path / "containers" / (letter * 12) for letter in "ac"]
    for root in roots:
        (root / "dev/shm").mkdir()

    def shared():
        made = report.audit(node(tmp_path), 0, 0)
        return [one for key, one in made.findings if key == "cuda.ipc" and "/dev/shm" in one.what]

    assert shared() == []
    # A stand-in for the mount: the same directory in both.
    (roots[1] / "dev").rename(tmp_path / "gone")
    (tree.proc / "6000/root").unlink()
    (tree.proc / "6000/root").symlink_to(roots[0])
    (one,) = shared()
    assert len(one.evidence) == 2


# --- hostile and large ----------------------------------------------------------------------------


def test_odd_names_and_files_cost_their_own_line_only(tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    os.mkfifo(tmp_path / "sys/class/infiniband/mlx5_0/parent")
    (tree.dev / "infiniband/uverbs\n9").touch()
    (tmp_path / "sys/bus/pci/devices/../../../etc").mkdir(exist_ok=True)
    tree.process(7000, "\x1b]0;owned\x07\xff", devices=("/dev/nvidia0\n(deleted)", "/dev/nvidia0 (deleted)"))
    tree.file("proc/7000/status", b"\xff" * 9000)
    tree.file("proc/7000/cgroup", b"0::/\xff\xfe\n" * 2000)
    tree.file("proc/7000/uid_map", "x y z")
    tree.file("proc/7000/maps", b"\0" * 5000)
    tree.file("sys/devices/pci0000:00/0000:10:01.0/0000:20:00.0/class", "zebra")
    tree.file("proc/modules", "\n \n" + "x" * 100_000)
    done = fabrictap("audit", "--root", tmp_path, "--file", tmp_path / "no", COLUMNS="80")
    assert all(line.isprintable() for line in done.stdout.splitlines())
    (odd,) = [one for one in node(tmp_path).processes.holders if one.pid == 7000]
    assert (odd.uid, odd.root_outside, odd.gpus) == (None, None, {"nvidia0"})


def test_a_process_that_ends_meanwhile_is_no_finding(tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    (tree.proc / "7000").mkdir()
    found = node(tmp_path).processes
    assert found.doubts == []
    assert 7000 not in {one.pid for one in found.holders}


def test_no_more_processes_than_the_limit_are_looked_at_and_that_is_said(tmp_path, monkeypatch):
    tree = node_tree.clean_cpu_node(tmp_path)
    for pid in range(1000, 1060):
        tree.process(pid, "many", devices=("/dev/nvidia0",))
    monkeypatch.setattr(processes, "MOST_PROCESSES", 50)
    found = processes.Processes.scan(str(tree.proc))
    assert found.looked_at == 50
    assert "only 50 processes were looked at" in found.doubts


def test_more_open_files_than_the_limit_are_said(tmp_path, monkeypatch):
    tree = node_tree.clean_cpu_node(tmp_path)
    tree.process(1000, "many", devices=("/dev/null",) * 9)
    monkeypatch.setattr(process, "MOST_DESCRIPTORS", 8)
    found = processes.Processes.scan(str(tree.proc))
    assert found.doubts == ["1 processes have more open than the 8 that were looked at"]


def test_what_hangs_is_left_behind_and_after_some_the_rest_too():
    released = threading.Event()
    looked = []

    def look_at(item):
        looked.append(item)
        if item in (2, 4):
            released.wait(30)
        return item * 10

    try:
        found = list(patience.each([1, 2, 3, 4, 5, 6], look_at, seconds=0.05, most_hung=2))
    finally:
        released.set()
    assert [one for _, one in found if not isinstance(one, Exception)] == [10, 30]
    assert [item for item, one in found if isinstance(one, patience.HungError)] == [2, 4, 5, 6]
    assert 5 not in looked


def test_a_fault_of_the_audit_itself_is_not_taken_for_a_hung_process(tmp_path, monkeypatch):
    tree = node_tree.clean_cpu_node(tmp_path)
    monkeypatch.setattr(process, "look", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        processes.Processes.scan(str(tree.proc))


# --- PCIe -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "redirects"),
    [
        (node_tree.port_config(), True),
        (node_tree.port_config(port=4), True),
        (node_tree.port_config(acs=0), False),
        (node_tree.port_config(acs=0x04), False),  # requests alone
        (node_tree.port_config(acs=None), False),
        (node_tree.port_config(size=256), None),  # no root: the extended part is not there
        (node_tree.port_config(size=64), None),
        (node_tree.port_config(port=5), None),  # an upstream port has none
        (b"", None),
        (b"\xff" * 4096, None),
        (bytes(4096), None),
    ],
)
def test_acs_is_read_from_configuration_space(config, redirects):
    assert pci.acs_of(config) is redirects


def test_capability_lists_that_turn_in_circles_end():
    raw = bytearray(node_tree.port_config(acs=None))
    raw[0x51] = 0x40  # back to the first
    raw[0x50] = 0x05
    assert pci.is_port(bytes(raw)) is False
    raw = bytearray(node_tree.port_config(acs=None))
    raw[0x102:0x104] = (0x100 << 4 | 1).to_bytes(2, "little")
    assert pci.acs_of(bytes(raw)) is False


def test_ports_that_only_root_can_read_are_unknown(tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    tree.file("sys/devices/pci0000:00/0000:10:01.0/config", node_tree.port_config(size=64))
    made = report.audit(node(tmp_path), 0, 1000)
    (one,) = [one for key, one in made.findings if key == "pcie.p2p"]
    assert not one.certain
    assert one.what.startswith("ACS of 1 PCIe port is not known: 64 of 4096 bytes")


# --- single subjects ------------------------------------------------------------------------------


def test_kernel_services_are_found_by_their_use_where_they_are_built_in(tmp_path):
    tree = node_tree.clean_cpu_node(tmp_path)
    assert kernel_users.ways(node(tmp_path))[0].present is Present.NO
    tree.file("sys/class/nvme/nvme0/transport", "rdma")
    assert kernel_users.ways(node(tmp_path))[0].present is Present.YES


def test_old_kernels_have_no_dma_buf_registration(tmp_path):
    tree = node_tree.hgx_node(tmp_path)
    tree.file("proc/sys/kernel/osrelease", "5.10.0-30-amd64")
    ways = {way.key: way for way in report.audit(node(tmp_path), 0, 0).ways}
    assert ways["gpudirect.rdma.dmabuf"].present is Present.NO
    assert "5.12 is the first" in ways["gpudirect.rdma.dmabuf"].why


def test_memory_that_netlink_lists_is_open_to_an_unknown_degree(trees):
    made = node(trees["hgx"], rdma_owners=lambda: {5000: (2, 1 << 30), 0: (1, 0)})
    (way,) = registered.ways(made)
    assert (way.present, way.why) == (Present.YES, "RDMA netlink lists 1.00 GiB registered")
    (one,) = way.findings
    assert not one.certain
    assert one.evidence[0].startswith("5000/trainer (pod ")
    assert registered.ways(node(trees["hgx"], rdma_owners=dict))[0].present is Present.NO
    denied = node(trees["hgx"], rdma_owners=lambda: Denied("RDMA netlink", "Protocol not supported"))
    assert registered.ways(denied)[0].present is Present.UNKNOWN


# --- with a recording -----------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path, trees):
    """(path, ring, table) of a recording whose agent runs: memory of two kinds, three connections."""
    path = tmp_path / "ring"
    ring, table = rings.make(path)
    now = time.time_ns()

    def put(metric, value, **attributes):
        table.series(metric, attributes, now).set(value, now)

    for name in ("verbs", "infiniband"):
        put(catalog.SOURCE_UP, 1, **{"fabrictap.source": name})
    for access, size in (("read_write", 3 << 30), ("read", 1 << 20), ("none", 5 << 20), ("unknown", 7)):
        put(
            catalog.MR_SIZE,
            size,
            **{
                "process.pid": 5000,
                "process.executable.name": "trainer",
                "rdma.device": "mlx5_0",
                "rdma.memory_region.remote_access": access,
            },
        )
    table.series(catalog.PORT_DARK, {"hw.id": "mlx5_0/1"}, now).observe(0, now)
    ring.tick(time.time_ns())
    return path, ring, table


def watching(path):
    return Watch.take(lambda: Recording.open(str(path)))


def test_a_running_agent_tells_what_peers_may_reach(recorded, trees):
    path, _ring, _table = recorded
    watch = watching(path)
    assert watch.state == "running", watch.why
    (way,) = registered.ways(node(trees["hgx"], watch=watch))
    assert way.present is Present.YES
    assert way.seen.how is Observed.HARDWARE
    sure = {one.what.partition(" of ")[0]: one for one in way.findings if one.certain}
    assert sure["3.00 GiB"].evidence == ("5000/trainer 3.00 GiB on mlx5_0 (read_write)",)
    assert "overwrite" in sure["3.00 GiB"].what
    assert "may read" in sure["1.00 MiB"].what
    (unclear,) = [one for one in way.findings if not one.certain]
    assert unclear.what.startswith("what peers may do to 7 B")


def test_the_worst_coverage_of_what_lives_counts(recorded, trees):
    path, _ring, _table = recorded
    seen = verbs.sight(node(trees["hgx"], watch=watching(path)))
    assert (seen.how, "no connection is open" in seen.by) == (Observed.EXACT, True)
    rings.put_connection(path, 0)
    rings.put_connection(path, 1, coverage=rings.COVERAGES.index("since"))
    assert verbs.sight(node(trees["hgx"], watch=watching(path))).how is Observed.SINCE
    rings.put_connection(path, 3, coverage=rings.COVERAGES.index("estimated"), fraction=0.25)
    made = node(trees["hgx"], watch=watching(path))
    assert verbs.sight(made).how is Observed.ESTIMATED
    (found,) = [one for one in verbs.ways(made)[0].findings if "part of the time" in one.what]
    assert "(the least: 25 %)" in found.what
    rings.put_connection(path, 2, coverage=rings.COVERAGES.index("control_only"))
    made = node(trees["hgx"], watch=watching(path))
    assert verbs.sight(made).how is Observed.HARDWARE
    assert any("1 connection" in one.what for one in verbs.ways(made)[0].findings)


def test_a_source_that_is_down_sees_nothing(recorded, trees):
    path, _ring, table = recorded
    now = time.time_ns()
    table.series(catalog.SOURCE_UP, {"fabrictap.source": "verbs"}, now).set(0, now)
    made = node(trees["hgx"], watch=watching(path))
    assert verbs.sight(made).how is Observed.NOT
    found = [one.what for _, one in report.audit(made, 0, 0).findings]
    assert "sources of the agent do not deliver: verbs" in found


def test_an_agent_whose_recording_cannot_be_read_is_not_known_to_be_absent(recorded, trees, monkeypatch):
    path, _ring, _table = recorded
    watch = Watch.take(lambda: Recording.open(str(path), {4242}))
    assert watch.state == "unknown"
    found = report.audit(node(trees["hgx"], watch=watch), 0, 1000)
    assert [one.certain for key, one in found.findings if key == "observation"] == [False]
    assert verbs.sight(node(trees["hgx"], watch=watch)).how is Observed.UNKNOWN


def test_an_agent_that_has_ended_observes_nothing(recorded, trees):
    path, ring, _table = recorded
    ring.close(time.time_ns())
    watch = watching(path)
    assert (watch.state, "agent of" in watch.why) == ("absent", True)


# --- the rest -------------------------------------------------------------------------------------


def test_the_daemon_does_not_import_it():
    program = textwrap.dedent(
        """
        import sys
        import fabrictap.node, fabrictap.cli
        assert not [name for name in sys.modules if name.startswith("fabrictap.audit")]
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_this_machine_is_audited_for_real(tmp_path):
    done = fabrictap("audit", "--json", "--file", tmp_path / "no-ring")
    found = json.loads(done.stdout)
    assert found["kernel"] == os.uname().release
    assert (present(found)["rdma.verbs"] == "yes") == any(_listdir("/sys/class/infiniband"))
    text = fabrictap("audit", "--file", tmp_path / "no-ring").stdout
    assert text.startswith(f"fabrictap audit of {os.uname().nodename}, ")


def test_what_needs_root_is_unknown_without_it():
    """For real: a user that may not see what a process of another has open."""
    require("root", os.geteuid() == 0, "run as root to become another user")
    # Imported before: that user may not be able to read where this Python is installed.
    program = textwrap.dedent(
        """
        import os, sys
        from fabrictap.view import audit
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        sys.exit(audit.main(None, None, root=sys.argv[1], fail_on="high", as_json=True))
        """
    )
    # Not below pytest's own directory, which only its user may enter.
    with tempfile.TemporaryDirectory(prefix="fabrictap-audit-") as directory:
        Path(directory).chmod(0o755)
        tree = node_tree.hgx_node(Path(directory) / "node")
        (tree.proc / "5000/fd").chmod(0o700)
        done = subprocess.run(
            [sys.executable, "-c", program, tree.root],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == report.UNCLEAR, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] == 65534
    assert any("hide what they have open" in one["what"] for one in found["findings"])


def _listdir(path):
    return list(Path(path).iterdir()) if Path(path).exists() else []
