"""The unit under a real systemd: ready, watched, restarted, reloaded, confined."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest

from package.conftest import page
from package.roots import Root, System
from support import eventually

UNIT = "fabrictap.service"
#: Instead of half a minute and five seconds.
FASTER = "[Service]\nWatchdogSec=4s\nRestartSec=100ms\n"
CONFIG = """
export:
  otlp: {metrics: {enabled: false}, traces: {enabled: false}, logs: {enabled: false}}
  file: {path: /var/lib/fabrictap/out.jsonl}
"""


pytestmark = pytest.mark.parametrize("root", ["bookworm"], indirect=True)


@pytest.fixture(scope="module")
def node(installed: Root) -> Iterator[Root]:
    """Debian 12 with systemd, the package, and less patience."""
    units = installed.path / "etc/systemd/system"
    drop_in = units / f"{UNIT}.d"
    drop_in.mkdir()
    (drop_in / "faster.conf").write_text(FASTER)
    (installed.path / "etc/fabrictap/config.yaml").write_text(CONFIG)
    yield installed
    shutil.rmtree(drop_in)
    (units / "try.service").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def system(node: Root) -> Iterator[System]:
    with node.booted() as booted:
        yield booted


def log(system: System) -> str:
    return system.run(["journalctl", "--no-pager", "-o", "cat", "-u", UNIT]).check().stdout


def until_active(system: System, restarts: int) -> None:
    def there() -> bool:
        found = system.show(UNIT, "ActiveState", "NRestarts")
        return found == {"ActiveState": "active", "NRestarts": str(restarts)}

    eventually(there, f"the unit is active after {restarts} restarts", 60)


def test_it_starts_with_the_node_and_says_that_it_is_ready(system):
    until_active(system, 0)
    found = system.show(UNIT, "Type", "StatusText", "WatchdogUSec", "User", "UnitFileState")
    assert found.pop("StatusText").startswith("watching: ")
    assert found == {
        "Type": "notify",
        "WatchdogUSec": "4s",
        "User": "fabrictap",
        "UnitFileState": "enabled",
    }


def test_the_sandbox_leaves_what_the_probes_need(system, node):
    """In a unit of the same settings a BPF object is loaded, attached to a process by uprobe, and hit."""
    unit = (node.path / "usr/lib/systemd/system" / UNIT).read_text()
    unit = re.sub("(?m)^(ExecStart|ExecReload|Restart|WatchdogSec|Type)=.*$", "", unit)
    program = "; ".join(
        (
            "from fabrictap.sources.verbs import probes, returns",
            "print('problem:', returns._try(str(probes._OBJECTS / 'verbs_data.bpf.o')))",
            "open('/sys/kernel/btf/vmlinux', 'rb').read(4)",
        )
    )
    command = f'/usr/lib/fabrictap/bin/python3 -I -c "{program}"'
    unit = unit.replace("[Service]\n", f"[Service]\nType=oneshot\nExecStart={command}\n")
    (node.path / "etc/systemd/system/try.service").write_text(unit)
    system.run(["systemctl", "daemon-reload"]).check()
    started = system.run(["systemctl", "start", "try.service"])
    said = system.run(["journalctl", "--no-pager", "-o", "cat", "-u", "try.service"]).stdout
    assert started.rc == 0, said
    assert "problem: None" in said


def test_what_it_writes_is_its_own(system):
    eventually(lambda: system.run(["test", "-s", "/var/lib/fabrictap/out.jsonl"]).rc == 0, "it exports", 30)
    said = system.run(
        ["stat", "-c", "%U %a %n", "/run/fabrictap", "/run/fabrictap/ring", "/var/lib/fabrictap"]
    )
    assert said.check().stdout.splitlines() == [
        "fabrictap 755 /run/fabrictap",
        "fabrictap 640 /run/fabrictap/ring",
        "fabrictap 700 /var/lib/fabrictap",
    ]


def test_root_reads_the_recording_of_the_packaged_agent_without_being_told_whose_it_is(system):
    snapshot = json.loads(system.run(["fabrictap", "snapshot", "--json"]).check().stdout)
    assert snapshot


def test_a_reload_reads_the_policy_again(system, node):
    (node.path / "etc/fabrictap/config.yaml").write_text(CONFIG + "policy: {workloads: [{tenant: a}]}\n")
    system.run(["systemctl", "reload", UNIT]).check()
    eventually(lambda: "policy read again: rules for workloads: 1" in log(system), "it is read", 30)
    until_active(system, 0)


def test_slurms_prolog_and_epilog_keep_what_a_job_did_and_never_fail(system):
    for name in ("prolog", "epilog"):
        script = "\n".join(page(name))
        ran = system.run(["env", "SLURM_JOB_ID=7", "sh", "-c", script]).check()
        assert ran.stderr == ""
    kept = system.run(["cat", "/var/spool/fabrictap/7/events.jsonl"]).check().stdout
    assert "fabrictap.agent.started" in kept
    json.loads(system.run(["cat", "/var/spool/fabrictap/7/snapshot.json"]).check().stdout)
    assert system.run(["stat", "-c", "%a", "/var/spool/fabrictap/7"]).stdout == "700\n"
    system.run(["rm", "-r", "/var/spool/fabrictap"]).check()


def test_a_killed_agent_is_started_again(system):
    before = system.show(UNIT, "MainPID")["MainPID"]
    system.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT]).check()
    until_active(system, 1)
    assert system.show(UNIT, "MainPID")["MainPID"] != before
    # The recording of the one that died is kept.
    listed = system.run(["fabrictap", "recorder", "list", "--json"]).check().stdout
    assert [json.loads(line)["agent"] for line in listed.splitlines()].count("died") == 1


def test_a_hung_agent_is_ended_and_started_again(system):
    system.run(["systemctl", "kill", "--kill-whom=main", "--signal=STOP", UNIT]).check()
    eventually(lambda: system.show(UNIT, "NRestarts") == {"NRestarts": "2"}, "the watchdog ends it", 60)
    until_active(system, 2)
    said = system.run(["journalctl", "--no-pager", "-o", "cat", f"UNIT={UNIT}"]).check().stdout
    assert "Watchdog timeout" in said


def test_a_wrong_configuration_is_said_and_not_tried_again(system, node):
    good = (node.path / "etc/fabrictap/config.yaml").read_text()
    (node.path / "etc/fabrictap/config.yaml").write_text("exports: {}\n")
    assert system.run(["systemctl", "restart", UNIT]).rc != 0
    assert system.show(UNIT, "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed",
        "ExecMainStatus": "2",
        "NRestarts": "0",
    }
    assert "did you mean export?" in log(system)
    (node.path / "etc/fabrictap/config.yaml").write_text(good)
    system.run(["systemctl", "restart", UNIT]).check()


def test_stopping_is_a_clean_end(system):
    system.run(["systemctl", "stop", UNIT]).check()
    assert system.show(UNIT, "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": "0",
    }
    assert system.run(["test", "-e", "/run/fabrictap/ring"]).rc == 0, "the recording outlives the agent"


def test_systemd_judges_its_exposure_as_low_as_it_can_be(system):
    """CAP_SYS_ADMIN, the devices and the network are the larger part of what is left."""
    said = system.run(["systemd-analyze", "security", "--no-pager", "--threshold=50", UNIT])
    assert said.rc == 0, said.stdout
