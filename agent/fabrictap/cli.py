"""The command line: commands only, each importing what it needs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fabrictap.config import Config, ConfigError, load, parse_duration
from fabrictap.version import VERSION

_USAGE_ERROR = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(_USAGE_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for a finding, 2 for a mistake in what was asked."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        print(f"fabrictap: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fabrictap",
        description="A tap for the GPU interconnect traffic that skips the host CPU.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="watch this node and export over OpenTelemetry")
    _configuration(run)
    run.add_argument("--duration", metavar="TIME", help="stop after this time, as in 30s")
    run.set_defaults(command=_run)

    check = commands.add_parser("check-config", help="read the configuration, print what is in force")
    _configuration(check)
    check.set_defaults(command=_check_config)

    doctor = commands.add_parser("doctor", help="say what can be seen on this node, what not, and why")
    _configuration(doctor)
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(command=_doctor)

    catalog = commands.add_parser("catalog", help="print every metric, span and attribute")
    catalog.add_argument("--format", choices=("markdown", "json"), default="markdown")
    catalog.set_defaults(command=_catalog)

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(command=_version)
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


def _load(options: argparse.Namespace) -> Config:
    return load(options.config, os.environ, options.settings)


def _run(options: argparse.Namespace) -> int:
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
    from fabrictap.node import Node
    from fabrictap.view import doctor

    log = logging.getLogger("fabrictap")
    node = Node(config)
    for check in doctor.examine(config, quick=True):
        if not check.ok:
            log.warning("%s: %s; %s", check.what, check.found, check.cost)
    node.run(duration)
    return 0


def _check_config(options: argparse.Namespace) -> int:
    import msgspec
    import yaml

    print(yaml.safe_dump(msgspec.to_builtins(_load(options)), sort_keys=False), end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fabrictap.view import doctor

    return doctor.main(_load(options), as_json=options.json)


def _catalog(options: argparse.Namespace) -> int:
    from fabrictap.view import catalog

    print(catalog.markdown() if options.format == "markdown" else catalog.as_json(), end="")
    return 0


def _version(options: argparse.Namespace) -> int:  # noqa: ARG001 - every command is called alike
    print(f"fabrictap {VERSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
