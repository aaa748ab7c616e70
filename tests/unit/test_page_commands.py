"""Every command of README.md and docs/ is run, or taken as far as it goes here; whatever is not, says why."""

import argparse
import ast
import configparser
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import typing

import pytest
import yaml

import pages
from bench.__main__ import PARTS
from fabrictap import cli, config
from pages import ROOT, Command
from simulated_agent import Agent

COMMANDS = pages.commands()
OURS = [one for one in COMMANDS if one.program == "fabrictap"]
#: Programs that are not run here, and why. What stands for them is tested elsewhere, or it is not ours.
NOT_RUN = {
    "run": ".ci/run is what runs this test",
    "otelcol": "a server; tests/e2e runs the real one on the same configuration",
    "otelcol-contrib": "likewise",
    "curl": "asks a server that such a command has started; tests/e2e does",
    "grep": "filters what another command says",
    "sort": "likewise",
    "head": "likewise",
    "jq": "likewise",
    "apt": "changes the machine; the packages' tests install into a root of their own",
    "apt-get": "likewise",
    "dpkg": "likewise",
    "pip": "likewise",
    "python3": "likewise",
    "sudo": "changes the machine",
    "systemctl": "changes the machine; tests/vm does it in a machine of its own",
    "journalctl": "reads what such a service says",
    "install": "changes the machine",
    "useradd": "changes the machine",
    "kubectl": "needs a cluster; the manifests are held against Kubernetes' schemas",
    "helm": "needs a cluster, or is run by the chart's tests",
    "podman": "runs a container; the image's tests do",
    "docker": "likewise",
    "buildah": "likewise",
    "promtool": "the tests of the rules run it",
    "prometheus": "a server; the tests of the rules and dashboards run it",
    "grafana-server": "a server",
    "dcgmi": "needs a GPU",
    "ncu": "needs a GPU",
    "nvidia-smi": "needs a GPU",
    "git": "fetches this repository",
    "cd": "changes the directory of a shell",
    "exit": "ends a script",
    "umask": "is for the commands of a script",
    "mkdir": "makes a directory where the page says",
    "logger": "writes to the machine's log",
    "uname": "says which kernel runs",
    "ssh": "needs another machine",
    "scp": "needs another machine",
    "srun": "needs Slurm",
    "sbatch": "needs Slurm",
    "scontrol": "needs Slurm",
}


def stand_in(word, node):
    """What stands in the test for a path of the pages: a configuration, or a recording."""
    if re.fullmatch(r"[\w./-]+\.ya?ml", word):
        return str(node / "fabrictap.yaml")
    return str(node / "ring") if word == "RECORDING" or word.startswith("/run/fabrictap/") else word


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A directory with a configuration, and what the agent of a made-up node has left."""
    directory = tmp_path_factory.mktemp("pages")
    agent = Agent(directory / "ring", "l40s", 5, f"state.path={directory}/state.db")
    agent.stop()
    (directory / "fabrictap.yaml").write_text("export: {interval: 1s}\n")
    return directory


def test_there_are_commands_to_be_tested():
    assert len(OURS) > 12
    assert {"doctor", "audit", "run", "flows", "snapshot", "top", "recorder", "policy"} <= {
        one.words[1] for one in OURS
    }


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_ours_or_has_a_reason_why_it_is_not_run(command):
    known = command.program in ("fabrictap", "make") or command.words[:2] == ("python", "-m")
    assert known or command.program in NOT_RUN, f"say in NOT_RUN why {command.program} is not run"


@pytest.mark.parametrize("command", OURS, ids=str)
def test_our_commands_are_understood(command):
    options, rest = cli.command_line().parse_known_args(command.words[1:])
    assert rest == []
    for setting in getattr(options, "settings", ()):
        assert setting.partition("=")[0] in keys(), setting


@pytest.mark.parametrize("command", OURS, ids=str)
def test_our_commands_do_what_they_are_for(node, command, tmp_path):
    words = [stand_in(word, node) for word in command.words[1:]]
    words = [word.replace("=/tmp/", f"={tmp_path}/") for word in words]
    environment = {
        "FABRICTAP_RING__PATH": str(node / "ring"),
        "FABRICTAP_STATE__PATH": str(node / "state.db"),
        **dict(command.environment),
    }
    codes = {0}
    if words[0] == "run":
        # For a second, of a made-up node, and to nobody: a receiver that is away is waited for at the end.
        off = [f"export.otlp.{signal}.enabled=false" for signal in ("metrics", "traces", "logs")]
        settings = (*off, "sources.simulated.profile=l40s", f"ring.path={tmp_path}/ring")
        words += ["--duration", "1s", *(word for setting in settings for word in ("--set", setting))]
    elif words[0] in ("doctor", "audit", "health"):
        codes = {0, 1, 3}  # what is missing, exposed or dead on this machine is not what is asked here
    elif words[0] == "trace":
        codes = {1}  # there is nobody with this number: tests/host/test_trace.py has real processes
    done = run(words, environment)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    if words[0] not in ("run", "policy"):
        assert (done.stdout or done.stderr).strip(), "it says something"


def run(words, environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FABRICTAP_", "OTEL_"))}
    return subprocess.run(
        [sys.executable, "-m", "fabrictap", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.program == "make"], ids=str)
def test_make_has_the_target_and_the_variables_mean_something(command):
    text = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        name, given, value = word.partition("=")
        if not given:
            assert re.search(rf"^{re.escape(word)}:.*## ", text, re.MULTILINE), f"make has no target {word}"
            continue
        assert re.search(rf"\$\({name}\)|^export {name}$", text, re.MULTILINE), f"the Makefile has no {name}"
        if name == "B":
            assert set(value.split()) <= set(PARTS)
        elif name == "T":
            assert (ROOT / value).exists()


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.words[:2] == ("python", "-m")], ids=str)
def test_modules_that_are_run_are_there(command):
    assert importlib.util.find_spec(command.words[2]) is not None


def test_a_reason_is_for_a_program_that_is_not_ours():
    assert not {"fabrictap", "make"} & set(NOT_RUN)


@pytest.mark.parametrize("block", pages.blocks(), ids=lambda block: f"{block.where} {block.language}")
def test_other_blocks_are_what_they_say(block, tmp_path):
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language in ("yaml", "yml"):
        for tree in yaml.safe_load_all(block.text):
            sections = set(typing.get_type_hints(config.Config))
            if isinstance(tree, dict) and set(tree) <= sections:
                (tmp_path / "part.yaml").write_text(block.text)
                config.load(str(tmp_path / "part.yaml"), {})
    elif block.language == "ini" and "[" not in block.text:
        # Slurm's files: names and values without sections.
        assert all(re.match(r"#|\w+=", line) for line in block.text.splitlines() if line.strip())
    elif block.language == "ini":
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        parser.optionxform = str
        parser.read_string(block.text)
        for section in parser.values():
            for key, value in section.items():
                if key == "ExecStart":
                    words = shlex.split(value)
                    assert words[0].endswith("/fabrictap")
                    assert cli.command_line().parse_known_args(words[1:])[1] == []
    else:
        # Programs in C and PromQL have tests of their own; without a language it is what a program has said.
        known = ("sh", "bash", "console", "c", "promql", "toml", "text", "mermaid", "")
        assert block.language in known, block.language


def test_every_command_that_there_is_stands_in_a_page():
    text = "\n".join(page.read_text() for page in pages.PAGES)
    actions = cli.command_line()._actions
    (commands,) = (one for one in actions if isinstance(one, argparse._SubParsersAction))
    for name in commands.choices:
        assert re.search(rf"fabrictap {name}\b", text), f"no page says what fabrictap {name} is for"


def keys():
    found = set()

    def walk(tree, path):
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                walk(value, (*path, key))
            else:
                found.add(".".join((*path, key)))

    walk(config.as_written(config.Config()), ())
    return found


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("sh", "a b  # c d\ne 'f # g' | h >/dev/null 2>&1 &\n", [("a", "b"), ("e", "f # g"), ("h",)]),
        ("sh", "X=1 Y='2 3' a \\\n  b; c && d\n", [("a", "b"), ("c",), ("d",)]),
        ("sh", "cat >x <<EOF\nno command\nEOF\nb\n", [("cat",), ("b",)]),
        ("console", "$ a b\nsaid\n# c\n$ d\n", [("a", "b"), ("c",), ("d",)]),
    ],
)
def test_commands_are_found_as_a_shell_would(language, text, expected):
    block = pages.Block("x.md", 1, language, text)
    assert [one.words for one in pages.of_block(block)] == expected
    assert pages.of_block(pages.Block("x.md", 1, "sh", "X=1 Y='2 3' a"))[0] == Command(
        "x.md:1", ("a",), (("X", "1"), ("Y", "2 3"))
    )
