"""The policy: read strictly, asked quickly, reloaded on SIGHUP, and proposed from what was observed."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

import rings
from fabrictap import catalog, config
from fabrictap.config import ConfigError, Size
from fabrictap.insight.policy import CompiledPolicy, network_of, workload_key
from fabrictap.insight.remembered import Remembered
from fabrictap.insight.statefile import StateFile
from fabrictap.view import policy as view
from findings_house import GiB, rules
from otlp_json import Reader
from support import eventually

TRAIN = {"process.pid": 1, "process.executable.name": "python", "k8s.namespace.name": "train-a"}


def load(tmp_path, text):
    path = tmp_path / "fabrictap.yaml"
    path.write_text(text)
    return config.load(str(path), {})


# --- reading --------------------------------------------------------------------------------------


def test_a_policy_is_read_with_units_and_written_as_it_was(tmp_path):
    made = load(
        tmp_path,
        """
policy:
  tenant_by: k8s.namespace.name
  workloads:
    - match: {k8s.namespace.name: "train-*"}
      tenant: blue
      peers: [10.1.0.0/16, "fe80::/64", 192.168.1.1]
      egress_budget: 2TiB
      exposed_memory: 80GiB
      remote_read: true
      queue_pairs: 100
    - peers: []
""",
    )
    first, second = made.policy.workloads
    assert (first.egress_budget, first.exposed_memory) == (2 << 40, 80 << 30)
    assert (second.match, second.peers, second.egress_budget) == ({}, [], None)
    written = config.as_written(made)["policy"]
    assert written["workloads"][0]["egress_budget"] == "2TiB"
    assert load(tmp_path, yaml.safe_dump({"policy": written})) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workloads: {a: 1}", "policy.workloads: expected a list, each entry with some of match, tenant"),
        ("workloads: [1]", "policy.workloads: expected a list, each entry with some of match, tenant"),
        (
            "workloads: [{peer: []}]",
            "unknown key policy.workloads[0].peer; did you mean policy.workloads[0].peers?",
        ),
        (
            "workloads: [{egress_budget: 5}]",
            "policy.workloads[0].egress_budget: a size needs a unit, as in 64MiB",
        ),
        ("workloads: [{peers: [10.0.0.0/99]}]", "policy.workloads[0].peers: expected addresses or networks"),
        ("workloads: [{match: {k8s.namespace: a}}]", "did you mean k8s.namespace.name?"),
        (
            "workloads: [{remote_read: true}]",
            "policy.workloads[0].remote_read: who may read is said by peers",
        ),
        ("workloads: [{queue_pairs: 0}]", "policy.workloads[0].queue_pairs: expected at least 1, got 0"),
        ("workloads: [{}, {tenant: a}]", "policy.workloads[0] has no match and so is for all"),
        ("tenant_by: namespace", "policy.tenant_by: no attribute of a process is 'namespace'"),
    ],
)
def test_a_mistake_in_a_policy_is_one_line_that_names_its_place(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"policy: {{{text}}}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "findings.ignore=new_pear",
            "findings.ignore: no kind of finding is 'new_pear'; did you mean new_peer?",
        ),
        ("findings.interval=2m", "findings.interval: expected at most 30s"),
        ("findings.dark_window=1s", "findings.dark_window: expected from findings.interval"),
        ("findings.dark_share=1.5", "findings.dark_share: expected from 0 to 1, got 1.5"),
        ("findings.learn_days=0", "findings.learn_days: expected from 1 to 27, got 0"),
    ],
)
def test_limits_of_findings_are_checked(setting, says):
    with pytest.raises(ConfigError) as caught:
        config.load(None, {}, [setting])
    assert says in str(caught.value)


# --- asking ---------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_is_the_rule():
    compiled = CompiledPolicy(
        rules(
            {"match": {"k8s.namespace.name": "train-*", "process.executable.name": "nccl"}, "tenant": "one"},
            {"match": {"k8s.namespace.name": "train-*"}, "tenant": "two"},
            {"tenant": "rest"},
        )
    )
    assert compiled.tenant(TRAIN) == "two"
    assert compiled.tenant(TRAIN | {"process.executable.name": "nccl"}) == "one"
    assert compiled.tenant({"process.pid": 5}) == "rest"


def test_addresses_of_ipv4_and_ipv6_and_gids_are_one_kind():
    rule = CompiledPolicy(rules({"peers": ["10.1.0.0/16", "fe80::/64", "2001:db8::5"]})).rule({})
    for gid, allowed in (
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.0.1", False),
        ("fe80::1", True),
        ("fe80:0:0:1::1", False),
        ("2001:db8::5", True),
        ("::", False),
    ):
        assert rule.allows(gid) is allowed, gid
    assert CompiledPolicy(rules()).rule({}).allows("::1") is None


def test_workloads_are_named_by_what_a_restart_does_not_change():
    for identity, name in (
        ({"k8s.namespace.name": "ml", "k8s.pod.name": "a-1", "k8s.container.name": "main"}, "k8s:ml/main"),
        ({"k8s.pod.uid": "u"}, "pod:u"),
        ({"slurm.job.id": "7", "slurm.job.user": "eve", "process.executable.name": "x"}, "slurm:eve/x"),
        ({"slurm.job.id": "7", "slurm.job.uid": 5, "process.executable.name": "x"}, "slurm:5/x"),
        ({"systemd.unit.name": "nfs.service", "process.executable.name": "x"}, "systemd:nfs.service"),
        ({"process.pid": 1, "process.executable.name": "ib_write_bw"}, "process:ib_write_bw"),
    ):
        assert workload_key(identity) == name


def test_answers_are_bounded():
    compiled = CompiledPolicy(rules({"tenant": "a"}))
    for pid in range(10_000):
        compiled.rule({"process.pid": pid})
    assert len(compiled._answers) <= 4096


def test_networks_stand_for_many_addresses():
    assert network_of("::ffff:10.1.2.3") == "10.1.2.0/24"
    assert network_of("fe80::1:2:3:4") == "fe80::/64"


# --- proposing ------------------------------------------------------------------------------------


def fabrictap(*arguments):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))}
    return subprocess.run(
        [sys.executable, "-m", "fabrictap", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )


def remember(path):
    remembered = Remembered(1000)
    hour = 480000
    for number in range(40):
        peer = f"::ffff:10.7.0.{number}"
        remembered.sent("k8s:ml/main", peer, GiB, hour)
        remembered.learn(remembered.workload("k8s:ml/main", hour), peer, hour)
    remembered.sent("process:a*[b]", "fe80::1", 5, hour)
    remembered.sent("dark:mlx5_0/1", "unknown", 5, hour)
    file = StateFile(str(path), remembered)
    assert file.save(file.take())


def test_a_policy_is_proposed_from_what_is_remembered_and_can_be_used_as_it_is(tmp_path):
    remember(tmp_path / "state.db")
    before = (tmp_path / "state.db").read_bytes()
    done = fabrictap("policy", "learn", "--state", tmp_path / "state.db")
    assert (done.returncode, done.stderr) == (0, "")
    made = load(tmp_path, done.stdout)
    first, second = made.policy.workloads
    assert first.match == {"k8s.namespace.name": "ml", "k8s.container.name": "main"}
    assert (first.peers, first.egress_budget) == (["10.7.0.0/24"], Size(3 * GiB))
    compiled = CompiledPolicy(made.policy)
    odd = compiled.rule({"process.executable.name": "a*[b]"})
    assert odd.allows("fe80::1")
    # A name with the signs of a pattern matches itself alone.
    assert not compiled.rule({"process.executable.name": "axb"}).stated
    assert second.match == {"process.executable.name": "a[*][[]b]"}
    assert (tmp_path / "state.db").read_bytes() == before


def test_a_policy_is_proposed_from_a_recording(tmp_path):
    path = tmp_path / "ring"
    ring, table = rings.make(path)
    identity = {"k8s.namespace.name": "ml", "k8s.container.name": "main", "process.pid": 5}
    for peer in ("::ffff:10.0.0.7", "fe80::7"):
        table.series(catalog.QP_STATUS, {**identity, "rdma.peer.gid": peer}, time.time_ns()).set(
            1, time.time_ns()
        )
    ring.tick(time.time_ns())
    done = fabrictap("policy", "learn", "--file", path)
    assert done.returncode == 0, done.stderr
    (rule,) = load(tmp_path, done.stdout).policy.workloads
    assert rule.peers == ["10.0.0.7", "fe80::7"]


def test_a_state_that_is_none_is_said_in_one_line_and_left_alone(tmp_path):
    path = tmp_path / "state.db"
    for content, says in ((None, "No such file"), (b"no database at all" * 100, "is no state of fabrictap")):
        if content is not None:
            path.write_bytes(content)
        done = fabrictap("policy", "learn", "--state", path)
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert path.read_bytes() == b"no database at all" * 100


def test_nothing_observed_is_an_empty_policy():
    assert yaml.safe_load(view.text(view.propose({}), "here")) == {"policy": {"workloads": []}}


# --- SIGHUP ---------------------------------------------------------------------------------------


def test_sighup_puts_a_new_policy_into_force_and_keeps_the_old_one_where_it_is_wrong(tmp_path):
    path, out = tmp_path / "fabrictap.yaml", tmp_path / "out.jsonl"
    base = {
        "ring": {"path": None, "tick": "100ms"},
        "state": {"path": None},
        "findings": {"interval": "100ms"},
        "export": {
            "interval": "100ms",
            "file": {"path": str(out)},
            "otlp": {signal: {"enabled": False} for signal in ("metrics", "traces", "logs")},
        },
    }

    def write(**more):
        path.write_text(yaml.safe_dump(base | more))

    write()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))}
    log = (tmp_path / "log").open("w+")
    agent = subprocess.Popen(
        [sys.executable, "-m", "fabrictap", "run", "--config", path], stderr=log, env=env, text=True
    )

    def said():
        return (tmp_path / "log").read_text()

    try:
        exported = Reader(out)
        eventually(lambda: exported.poll() and exported.find("fabrictap.source.up"), "it exports", 30)
        # What is changed without a word is a finding.
        write(policy={"workloads": [{"tenant": "a"}]})
        eventually(lambda: "fabrictap.finding.raised" in out.read_text(), "the changed file is told", 20)
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: "policy read again: rules for workloads: 1" in said(), "the policy is read", 20)
        assert "takes a restart" not in said()
        write(policy={"workloads": [{"tenants": "a"}]})
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: "the policy stays as it is: " in said(), "the mistake is told", 20)
        assert "did you mean policy.workloads[0].tenant?" in said()
        write(policy={"workloads": []}, limits={"series": 5})
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: "only the policy is read again" in said(), "what was not taken is told", 20)
        agent.terminate()
        assert agent.wait(20) == 0
    finally:
        agent.kill()
        agent.wait()
        log.close()
    assert "Traceback" not in said()
    line = next(line for line in out.read_text().splitlines() if "resourceLogs" in line)
    assert re.search(r'"stringValue":"file_replaced"', line)
    assert str(path) in line
