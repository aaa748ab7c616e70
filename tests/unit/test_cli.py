"""The command line as an operator meets it: in a process of its own, with whatever a shell does to it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fabrictap import cli
from otlp_json import Reader
from otlp_receiver import free_port
from support import eventually

COMMANDS = (
    "run",
    "check-config",
    "doctor",
    "audit",
    "flows",
    "trace",
    "snapshot",
    "recorder",
    "policy",
    "catalog",
    "version",
)
SOURCES = ("infiniband", "verbs", "rdma_netlink")
NO_UPLINK = tuple(f"export.otlp.{signal}.enabled=false" for signal in ("metrics", "traces", "logs"))

has_rdma = pytest.mark.skipif(
    any(Path("/sys/class/infiniband").glob("*")), reason="this machine has RDMA devices"
)


def environment(**more):
    """This one's, less what configures fabrictap; the ring of an agent on this machine is left alone."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FABRICTAP_"))}
    return mine | {"FABRICTAP_RING__PATH": "none", "FABRICTAP_STATE__PATH": "none"} | more


def fabrictap(*arguments, prefix=(), timeout=60, stdin=None, **more):
    argv = [*prefix, sys.executable, "-m", "fabrictap", *map(str, arguments)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout, env=environment(**more), check=False
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def run_with(*settings, duration="500ms", **more):
    arguments = [part for setting in settings for part in ("--set", setting)]
    return fabrictap("run", "--duration", duration, *arguments, **more)


def complaint(done):
    """The one line of a mistake."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


# --- run ------------------------------------------------------------------------------------------


@has_rdma
def test_a_host_without_rdma_is_told_what_is_missing_and_the_agent_reports_on_itself(tmp_path):
    file = tmp_path / "out.jsonl"
    done = run_with(f"export.file.path={file}", "export.interval=200ms", *NO_UPLINK, duration="1s")
    assert done.returncode == 0
    assert "RDMA devices: none below /sys/class/infiniband" in done.stderr
    assert "GPUs: " in done.stderr
    assert f"exports every 0.2s: all to the file {file}" in done.stderr
    for source in SOURCES:
        assert done.stderr.count(f"source {source} is off: ") == 1

    exported = Reader(file)
    exported.poll()
    assert exported.exports >= 4
    assert exported.resource["service.name"] == "fabrictap"
    for source in SOURCES:
        (up,) = exported.now("fabrictap.source.up", source=source)
        assert up.value == 0
    (memory,) = exported.now("process.memory.usage")
    assert memory.value > 10_000_000
    assert exported.total("process.cpu.time") > 0
    assert exported.total("fabrictap.series.refused") == 0
    assert exported.find("rdma.verbs.operations") == []


@pytest.fixture
def powerless():
    """The prefix that runs a command as somebody who may read files and nothing else."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv; apt-get install util-linux")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")
    # The interpreter may lie where nobody may not go, as in a private home.
    for capability in ("", "dac_read_search", "dac_override"):
        prefix = (
            (*nobody, f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}") if capability else nobody
        )
        tried = subprocess.run(
            [*prefix, sys.executable, "-c", "import fabrictap.cli"], capture_output=True, check=False
        )
        if tried.returncode == 0:
            return prefix
    return pytest.skip(f"nobody may not run {sys.executable}: {tried.stderr.decode()[-200:]}")


def test_without_privileges_it_names_the_capabilities_and_does_what_is_possible(powerless):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        file = Path(folder) / "out.jsonl"
        done = run_with(
            f"export.file.path={file}", "export.interval=200ms", *NO_UPLINK, duration="1s", prefix=powerless
        )
        assert done.returncode == 0, done.stderr
        for capability in ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"):
            assert re.search(rf"missing: .*{capability}.* \(not held by uid \d+\): \w+", done.stderr)
        exported = Reader(file)
        exported.poll()
        assert exported.find("fabrictap.source.up")


def test_doctor_without_privileges_says_what_each_capability_costs_and_exits_1(powerless):
    done = fabrictap("doctor", prefix=powerless)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(
        r"MISSING +CAP_BPF +not held by uid \d+\n +costs: no BPF program can be loaded", done.stdout
    )
    assert re.search(r"^[5-7] missing: ", done.stdout, re.MULTILINE)
    assert done.stdout.count("AmbientCapabilities=") == 1  # what mends them all is said once


def test_a_receiver_that_is_not_there_is_one_warning_and_does_not_hold_up_the_end():
    port = free_port()
    began = time.monotonic()
    done = run_with(
        f"export.otlp.metrics.endpoint=http://127.0.0.1:{port}",
        f"export.otlp.traces.endpoint=http://127.0.0.1:{port}",
        "export.interval=100ms",
        duration="1s",
    )
    assert done.returncode == 0
    assert done.stderr.count(f"OTLP metrics to 127.0.0.1:{port}: cannot deliver") == 1
    assert done.stderr.count("cannot deliver") == 1
    assert time.monotonic() - began < 15


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path):
    file = tmp_path / "missing" / "out.jsonl"
    done = run_with(f"export.file.path={file}", "export.interval=100ms", *NO_UPLINK, duration="1s")
    assert done.returncode == 0
    assert done.stderr.count(f"export.file.path {file} cannot be written: No such file or directory") == 1


def test_an_agent_that_exports_nothing_says_so():
    assert "exports nothing: " in run_with(*NO_UPLINK, duration="10ms").stderr


# --- signals --------------------------------------------------------------------------------------


def start(*arguments):
    argv = [sys.executable, "-m", "fabrictap", "run", *arguments]
    settings = [part for setting in NO_UPLINK for part in ("--set", setting)]
    return subprocess.Popen([*argv, *settings], stderr=subprocess.PIPE, text=True, env=environment())


def listens(process):
    """Whether it has a handler of its own for SIGTERM (bit 14 of SigCgt, proc(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 1.0])
def test_a_signal_ends_it_quietly_at_any_moment(number, delay):
    process = start()
    try:
        eventually(lambda: listens(process), "it has a signal handler")
        time.sleep(delay)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in said) == (0, False), said


def test_signals_while_it_stops_change_nothing():
    process = start()
    try:
        eventually(lambda: listens(process), "it has a signal handler")
        time.sleep(0.7)
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
            if process.poll() is not None:
                break
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in said) == (0, False), said


def test_a_log_that_nobody_reads_any_more_does_not_end_it():
    process = start("--duration", "1s")
    process.stderr.close()
    try:
        # 120 is the interpreter's word for a stderr that it could not flush.
        assert process.wait(20) in (0, 120)
    finally:
        process.kill()


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], r"which command\? One of run, check-config, .+, catalog, version; see fabrictap --help"),
        (["recorder"], r"which part\? One of dump, events, list; see fabrictap recorder --help"),
        (["recorder", "dmp"], "did you mean dump"),
        (["recorder", "dump", "--since", "5"], "--since: expected a duration as in"),
        (["flows", "--watch", "often"], "--watch: expected a duration as in"),
        (["flows", "--sort", "rates"], "did you mean rate"),
        (["runn"], r"unknown command 'runn': did you mean run\?"),
        (["nonsense"], r"unknown command 'nonsense': expected one of run, "),
        (["run", "--durtion=1s"], r"fabrictap run: unknown option --durtion=1s, did you mean --duration\?"),
        (["run", "--conf", "x"], r"unknown option --conf, did you mean --config\?"),
        (["run", "now"], r"unexpected argument 'now'; see fabrictap run --help"),
        (["run", "--duration"], r"--duration: expected one argument"),
        (["run", "--duration", "5"], r"--duration: expected a duration as in 500ms, .* got '5'"),
        (["run", "--duration", "-5s"], r"--duration: expected "),
        (["catalog", "--format", "jsn"], r"--format 'jsn': did you mean json\?"),
        (["run", "--set", "nonsense"], r"--set nonsense: expected section.key=value"),
        (["run", "--set", "export.intervall=1s"], r"key export.intervall; did you mean export.interval\?"),
        (["run", "--set", "limits.series=many"], r"limits.series: expected .* got 'many'"),
        (["run", "--set", "export.interval=soon"], r"export.interval: expected a .* got 'soon'"),
        (["doctor", "--set", "sources.verbs.data=ful"], r"got 'ful'; did you mean full\?"),
        (["run", "--config", "/nonexistent.yaml"], r"/nonexistent.yaml: cannot be read: No such file"),
        (["run", "--config", "/"], r"/: cannot be read: Is a directory"),
        (["run", "--set", "export.otlp.traces.endpoint=ftp://x"], r"otlp.traces.endpoint: 'ftp://x': exp"),
        (["check-config", "--set", "export.otlp.metrics.endpoint=http://"], r"'http://' has no host"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_what_would_be_right(arguments, says):
    line = complaint(fabrictap(*arguments))
    assert re.search(says, line), line
    assert line.startswith("fabrictap")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("export: {interval: 10}", r"export.interval: a duration needs a unit, as in 10s, got 10"),
        ("sources: {verbs: {enabled: 1}}", r"sources.verbs.enabled: expected `bool`"),
        ("sources: {verb: {}}", r"unknown key sources.verb; did you mean sources.verbs\?"),
        ("export: [", r"line 1, column 10 not YAML"),
        ("- a", r"expected sections such as 'export:', got a list"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_key(tmp_path, text, says):
    file = tmp_path / "fabrictap.yaml"
    file.write_text(text)
    line = complaint(fabrictap("run", "--config", file))
    assert re.search(says, line), line
    assert str(file) in line


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FABRICTAP_EXPORT__INTERVALL", "1s", r"VALL: .* did you mean export.interval\?"),
        ("FABRICTAP_EXPORT__INTERVAL", "1", r"INTERVAL: export.interval: expected a "),
        ("OTEL_METRIC_EXPORT_INTERVAL", "10s", r"OTEL_METRIC_EXPORT_INTERVAL: expected milliseconds"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", r"OTLP_PROTOCOL: fabrictap speaks grpc only"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_names_the_variable(name, value, says):
    line = complaint(fabrictap("run", **{name: value}))
    assert re.search(says, line), line


# --- output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_is_there_for_every_command(arguments):
    done = fabrictap(*arguments, COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: fabrictap")
    assert max(map(len, done.stdout.splitlines())) <= 80
    if arguments == ["--help"]:
        assert all(command in done.stdout for command in COMMANDS)


def test_the_version_is_said_either_way():
    assert fabrictap("version").stdout == fabrictap("--version").stdout
    assert re.fullmatch(r"fabrictap \d+\.\d+\.\d+\S*\n", fabrictap("version").stdout)


@pytest.mark.parametrize("arguments", [["catalog"], ["doctor"], ["check-config"], ["version"], ["--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        argv = [sys.executable, "-m", "fabrictap", *arguments]
        done = subprocess.run(
            argv, stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_below_the_output_is_one_line():
    with Path("/dev/full").open("wb") as full:
        argv = [sys.executable, "-m", "fabrictap", "catalog"]
        done = subprocess.run(
            argv, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 1
    assert done.stderr == "fabrictap: the output cannot be written: No space left on device\n"


def test_check_config_prints_what_it_would_read_again_and_no_secrets(tmp_path):
    settings = ("export.interval=1500ms", "export.file.max_size=5KiB", "sources.verbs.control=off")
    arguments = [part for setting in settings for part in ("--set", setting)]
    first = fabrictap("check-config", *arguments, OTEL_EXPORTER_OTLP_HEADERS="authorization=hunter2")
    assert first.returncode == 0
    assert "hunter2" not in first.stdout
    tree = yaml.safe_load(first.stdout)
    assert (tree["export"]["interval"], tree["export"]["file"]["max_size"]) == ("1500ms", "5KiB")
    assert tree["sources"]["verbs"]["control"] == "off"
    file = tmp_path / "again.yaml"
    file.write_text(first.stdout)
    assert fabrictap("check-config", "--config", file).stdout == first.stdout


def test_doctor_says_the_same_as_text_and_as_json():
    def shape(said):
        """Without the figures, which are measured anew each time."""
        return re.sub(r"[\d.,]+", "#", said)

    text, data = fabrictap("doctor"), fabrictap("doctor", "--json")
    checks = json.loads(data.stdout)
    assert text.returncode == data.returncode == int(any(check["status"] == "missing" for check in checks))
    for check in checks:
        assert set(check) == {"what", "status", "found", "cost", "fix"}
        assert check["status"] in ("ok", "missing", "absent")
        assert check["what"] in text.stdout
        assert shape(check["found"]) in shape(text.stdout)


@pytest.mark.parametrize(
    ("mine", "account", "believed"),
    [(0, 998, 998), (0, 1000, None), (0, None, None), (1001, 998, None)],
    ids=["root", "an ordinary user of that name", "no package", "not root"],
)
def test_root_believes_the_recordings_of_the_packaged_agent(monkeypatch, mine, account, believed):
    def getpwnam(name):
        assert name == "fabrictap"
        if account is None:
            raise KeyError(name)
        return SimpleNamespace(pw_uid=account)

    monkeypatch.setattr("os.geteuid", lambda: mine)
    monkeypatch.setattr("pwd.getpwnam", getpwnam)
    assert cli._owner(SimpleNamespace(owner=None)) == believed
