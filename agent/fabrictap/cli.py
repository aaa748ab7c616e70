"""The command line: commands only, each importing what it needs.

Nothing is imported here that is not needed to say what is wrong with an option, so that a signal in the
first moments meets as little as possible.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fabrictap.trace import arguments
from fabrictap.version import VERSION

if TYPE_CHECKING:
    from types import FrameType

    from fabrictap.config import Config

_USAGE_ERROR = 2
_SOFTWARE_ERROR = 70
_INTERRUPTED = 130
#: As view/flows.py has them.
_SORTS = ("rate", "bytes", "operations", "age", "pid", "process", "device", "peer")


class _Parser(argparse.ArgumentParser):
    """One line for each mistake, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{self.prog}: {message}{' See' if message.endswith('?') else '; see'} {self.prog} --help")
        raise SystemExit(_USAGE_ERROR)

    def unknown(self, argument: str) -> NoReturn:
        """End with a word about an argument that no command knows."""
        if not argument.startswith("-"):
            self.error(f"unexpected argument {argument!r}")
        near = difflib.get_close_matches(argument.partition("=")[0], self._option_string_actions, n=1)
        self.error(f"unknown option {argument}" + (f", did you mean {near[0]}?" if near else ""))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(choices)}"
            what = action.option_strings[0] if action.option_strings else "unknown command"
            raise argparse.ArgumentError(None, f"{what} {value!r}: {hint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0, 1 where something was found missing or could not be written, 2 for a mistake in what was asked, 70
    (EX_SOFTWARE) for a fault of fabrictap itself.
    """
    try:
        try:
            return _run_command(arguments)
        finally:
            # Here and not at the interpreter's end, where a reader that has gone is an ugly message.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        _drop_stdout()
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        _drop_stdout()
        what = error.filename or "the output cannot be written"
        _complain(f"fabrictap: {what}: {error.strerror or error}")
        return 1
    except Exception as error:
        if os.environ.get("FABRICTAP_TRACEBACK"):
            raise
        _complain(
            f"fabrictap: this should not have happened: {type(error).__name__}: {error}; "
            "please report it with what FABRICTAP_TRACEBACK=1 in the environment adds"
        )
        return _SOFTWARE_ERROR


def _run_command(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        options.parser.unknown(rest[0])
    from fabrictap.config import ConfigError

    try:
        return int(options.command(options))
    except ConfigError as error:
        _complain(f"fabrictap: {error}")
        return _USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fabrictap",
        description="A tap for the GPU interconnect traffic that skips the host CPU.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fabrictap {VERSION}")
    parser.set_defaults(parser=parser, command=_no_command)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, does: str, command: Any, to: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = to.add_parser(
            name, help=does, description=f"{does[:1].upper()}{does[1:]}.", allow_abbrev=False
        )
        made.set_defaults(parser=made, command=command)
        return made

    run = add("run", "watch this node and export over OpenTelemetry", _run)
    _configuration(run)
    run.add_argument("--duration", metavar="TIME", help="stop after this time, as in 30s")
    run.add_argument(
        "--simulate",
        metavar="PROFILE",
        help="watch a made-up node instead of this one: hgx-h100, a100-mig, gb200 or l40s",
    )

    check = add("check-config", "read the configuration, print what is in force", _check_config)
    _configuration(check)

    doctor = add("doctor", "say what can be seen on this node, what not, and why", _doctor)
    _configuration(doctor)
    doctor.add_argument("--json", action="store_true", help="as JSON")

    does = "list the ways past the CPU: what observes each, what is exposed, what mends it"
    _audit_options(add("audit", does, _audit))

    flows = add("flows", "list the RDMA connections: who, with whom, how much", _reads(_flows))
    flows.add_argument("--all", action="store_true", help="also those that have ended a moment ago")
    flows.add_argument("--pid", type=int, metavar="PID", help="of this process")
    for name, what in (
        ("process", "the process's name"),
        ("device", "DEVICE or DEVICE/PORT"),
        ("peer", "the peer's ADDRESS or ADDRESS/QPN"),
        ("state", "the state: init, rtr, rts, err ..."),
        ("type", "the transport: rc, ud ..."),
        ("coverage", "exact, since, estimated or control_only"),
    ):
        flows.add_argument(f"--{name}", metavar="PATTERN", help=f"{what}, a shell pattern")
    flows.add_argument(
        "--sort", metavar="KEY", choices=_SORTS, default="rate", help=f"by {', '.join(_SORTS)}"
    )
    flows.add_argument("-v", "--operations", action="store_true", help="also what was posted, by opcode")
    flows.add_argument(
        "--watch", nargs="?", const="1s", metavar="TIME", help="again every TIME (1s) until interrupted"
    )
    flows.add_argument("--json", action="store_true", help="an object a line")
    flows.add_argument("--no-header", action="store_true", help="no line of titles")
    _recording(flows)

    arguments.add(add("trace", "print what one process or connection posts and completes now", arguments.run))

    snapshot = add(
        "snapshot", "one picture of what is going on now, or was when the agent ended", _reads(_snapshot)
    )
    snapshot.add_argument("--json", action="store_true", help="as JSON")
    _recording(snapshot)

    _health_options(
        add("health", "say whether the agent lives, in one line and by the exit code", _reads(_health))
    )

    _recorder(
        add("recorder", "what the flight recorder has, also of an agent that is dead", _no_recorder_command),
        add,
    )

    catalog = add("catalog", "print every metric, span and attribute", _catalog)
    catalog.add_argument("--format", choices=("markdown", "json"), default="markdown")

    _policy(add("policy", "rules for what workloads may do", _no_policy_command))
    add("version", "print the version", _version)
    return parser


def _configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file")
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="settings",
        help="set one key; may be repeated, wins over everything else",
    )


def _recording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file", metavar="PATH", help="the recording, instead of the configuration's ring.path"
    )
    parser.add_argument(
        "--owner", metavar="USER", help="read files of this user too, as where the agent runs as one"
    )
    _configuration(parser)


def _recorder(parser: argparse.ArgumentParser, add: Callable[..., argparse.ArgumentParser]) -> None:
    parts = parser.add_subparsers(metavar="PART")
    dump = add("dump", "print what every series did, tick by tick", _reads(_dump), parts)
    dump.add_argument("--since", metavar="TIME", help="the last of it only, as in 30s or 5m")
    dump.add_argument("--metric", metavar="PATTERN", help="metrics of this name, a shell pattern")
    dump.add_argument("--format", choices=("table", "json", "csv", "otlp"), default="table")
    events = add("events", "print what happened", _reads(_events), parts)
    events.add_argument("--since", metavar="TIME", help="the last of it only, as in 30s or 5m")
    events.add_argument("--json", action="store_true", help="an object a line")
    kept = add("list", "list the files that are kept, and how their agents ended", _reads(_list), parts)
    kept.add_argument("--json", action="store_true", help="an object a line")
    for part in (dump, events, kept):
        _recording(part)


def _audit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--fail-on",
        metavar="LEVEL",
        choices=("high", "medium", "low", "never"),
        default="never",
        help="exit with 1 where something is exposed as badly (high, medium, low), with 3 where it may "
        "be and could not be looked at",
    )
    parser.add_argument("--root", metavar="DIR", help="another node's: DIR/sys, DIR/proc and DIR/dev")
    _recording(parser)


def _health_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-age", metavar="TIME", default="30s", help="without a tick for longer it hangs (30s)"
    )
    parser.add_argument(
        "--ready", action="store_true", help="0 only where, besides, one of its sources delivers"
    )
    _recording(parser)


def _policy(parser: argparse.ArgumentParser) -> None:
    policies = parser.add_subparsers(metavar="PART")
    does = "propose a policy from what was observed, as YAML"
    learn = policies.add_parser("learn", help=does, description=f"{does.capitalize()}.", allow_abbrev=False)
    learn.set_defaults(parser=learn, command=_reads(_policy_learn))
    learn.add_argument(
        "--state", metavar="PATH", help="what detectors remember, instead of the configuration's state.path"
    )
    learn.add_argument(
        "--recording", action="store_true", help="read the flight recorder (ring.path or --file) instead"
    )
    _recording(learn)


def _load(options: argparse.Namespace) -> Config:
    from fabrictap.config import check_profile, load

    settings = list(options.settings)
    profile = getattr(options, "simulate", None)
    if profile is not None:
        check_profile(profile, "--simulate")
        settings.append(f"sources.simulated.profile={profile}")
    return load(options.config, os.environ, settings)


def _no_command(options: argparse.Namespace) -> NoReturn:
    parser: _Parser = options.parser
    parser.error(
        "which command? One of run, check-config, doctor, audit, flows, trace, snapshot, health, recorder, "
        "policy, catalog, version"
    )


def _run(options: argparse.Namespace) -> int:
    import signal

    def on_signals(handler: Callable[[int, FrameType | None], Any] | int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)

    def leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - fixed by signal
        # The interpreter's own end takes a moment, in which a second Ctrl-C changes nothing.
        on_signals(signal.SIG_IGN)
        raise SystemExit(0)

    # Until the node takes over there is nothing to hand in: asked to stop, it stops.
    on_signals(leave)
    import logging

    from fabrictap.config import ConfigError, parse_duration

    config = _load(options)
    duration = None
    if options.duration is not None:
        try:
            duration = parse_duration(options.duration)
        except ValueError as error:
            raise ConfigError(f"--duration: {error}") from None
    logging.basicConfig(
        level=config.agent.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
        stream=sys.stderr,
    )
    # A log that nobody can read any more must not fill what is left of it with tracebacks.
    logging.raiseExceptions = False
    from fabrictap.node import Node
    from fabrictap.view import doctor

    log = logging.getLogger("fabrictap")
    node = Node(config, lambda: _load(options), options.config)
    for level, text in doctor.summary(config):
        log.log(level, text)
    node.run(duration)
    # All is handed in; see above.
    on_signals(signal.SIG_IGN)
    return 0


def _check_config(options: argparse.Namespace) -> int:
    import yaml

    from fabrictap.config import as_written
    from fabrictap.export import scrape
    from fabrictap.export.uplink import Uplink

    config = _load(options)
    if (where := config.export.prometheus.listen) is not None:
        scrape.parse(where, allow_remote=config.export.prometheus.allow_remote)
    # Whether the endpoints can be used is found out where they are used; nothing is connected by that.
    Uplink(config.export.otlp).close(0)
    print(yaml.safe_dump(as_written(config), sort_keys=False), end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fabrictap.view import doctor

    return doctor.main(_load(options), as_json=options.json)


def _audit(options: argparse.Namespace) -> int:
    from fabrictap.view import audit

    path = options.file
    if path is None and options.root is None:
        path = _load(options).ring.path
    return audit.main(path, _owner(options), root=options.root, fail_on=options.fail_on, as_json=options.json)


def _reads(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """``command``, which reads a recording: one that cannot be read is one line and exit code 1."""

    def reading(options: argparse.Namespace) -> int:
        from fabrictap.view.recording import RecordingError

        try:
            return command(options)
        except RecordingError as error:
            _complain(f"fabrictap: {error}")
            return 1

    return reading


def _no_recorder_command(options: argparse.Namespace) -> NoReturn:
    parser: _Parser = options.parser
    parser.error("which part? One of dump, events, list")


def _path(options: argparse.Namespace) -> str:
    """Where the recording is."""
    from fabrictap.config import ConfigError

    if options.file is not None:
        return str(options.file)
    path = _load(options).ring.path
    if path is None:
        raise ConfigError("ring.path is null: the agent keeps no recording; --file PATH names one")
    return path


def _owner(options: argparse.Namespace) -> int | None:
    import pwd

    from fabrictap.config import ConfigError

    name = options.owner
    if name is None:
        return _packaged_agent()
    try:
        return int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"--owner {name}: no such user") from None


def _packaged_agent() -> int | None:
    """The system account under which the package's unit runs the agent; root believes its files too."""
    import pwd

    try:
        user = pwd.getpwnam("fabrictap").pw_uid if os.geteuid() == 0 else None
    except KeyError:
        return None
    # An ordinary user of that name (login.defs: from UID_MIN, 1000) is somebody else.
    return user if user is not None and user < 1000 else None


def _time(options: argparse.Namespace, name: str) -> float | None:
    from fabrictap.config import ConfigError, parse_duration

    value = getattr(options, name)
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"--{name.replace('_', '-')}: {error}") from None


def _flows(options: argparse.Namespace) -> int:
    from fabrictap.view import flows, recorder

    wanted = flows.Filter(
        options.pid,
        options.process,
        options.device,
        options.peer,
        options.state,
        options.type,
        options.coverage,
        options.all,
    )
    watch = _time(options, "watch")
    return flows.main(
        recorder.opener(_path(options), _owner(options)),
        wanted,
        sort=options.sort,
        watch=None if watch is None else max(watch, 0.1),
        header=not options.no_header,
        operations=options.operations,
        json_=options.json,
    )


def _snapshot(options: argparse.Namespace) -> int:
    from fabrictap.view import recorder, snapshot

    return snapshot.main(recorder.opener(_path(options), _owner(options)), as_json=options.json)


def _health(options: argparse.Namespace) -> int:
    from fabrictap.view import health, recorder

    max_age = _time(options, "max_age")
    with recorder.opener(_path(options), _owner(options))() as recording:
        return health.main(recording, 30.0 if max_age is None else max_age, ready=options.ready)


def _dump(options: argparse.Namespace) -> int:
    from fabrictap.view import dump, recorder

    since = _time(options, "since")
    with recorder.opener(_path(options), _owner(options))() as recording:
        dump.write(recording, options.format, since, options.metric, print)
        if recording.unreadable:
            _complain(f"fabrictap: {recording.unreadable} records could not be read")
    return 0


def _events(options: argparse.Namespace) -> int:
    from fabrictap.view import recorder

    since = _time(options, "since")
    with recorder.opener(_path(options), _owner(options))() as recording:
        return recorder.events(recording, since, as_json=options.json)


def _list(options: argparse.Namespace) -> int:
    from fabrictap.view import recorder

    return recorder.list_files(_path(options), _owner(options), as_json=options.json)


def _catalog(options: argparse.Namespace) -> int:
    from fabrictap.view import catalog

    print(catalog.markdown() if options.format == "markdown" else catalog.as_json(), end="")
    return 0


def _no_policy_command(options: argparse.Namespace) -> NoReturn:
    parser: _Parser = options.parser
    parser.error("which part? It has: learn")


def _policy_learn(options: argparse.Namespace) -> int:
    from fabrictap.config import ConfigError
    from fabrictap.view import policy

    if options.recording or options.file is not None:
        from fabrictap.view import recorder

        source = _path(options)
        with recorder.opener(source, _owner(options))() as recording:
            observed = policy.from_recording(recording)
    else:
        from fabrictap.insight.remembered import Remembered
        from fabrictap.insight.statefile import StateFile, StateFileError

        config = _load(options)
        path = options.state or config.state.path
        if path is None:
            raise ConfigError("state.path is null: nothing is remembered; --state PATH or --recording")
        remembered = Remembered(config.limits.egress_pairs)
        try:
            StateFile(path, remembered).read()
        except StateFileError as error:
            _complain(f"fabrictap: {error}")
            return 1
        observed, source = policy.from_memory(remembered), path
    print(policy.text(policy.propose(observed), source), end="")
    return 0


def _version(options: argparse.Namespace) -> int:  # noqa: ARG001 - every command is called alike
    print(f"fabrictap {VERSION}")
    return 0


def _complain(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr)


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere, instead of failing once more at the interpreter's end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
