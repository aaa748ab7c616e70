"""The options of ``fabrictap trace``, and what is wrong with them."""

from __future__ import annotations

import argparse
import sys

_MOST_SECONDS, _MOST_LINES = 86400, 1_000_000


def add(parser: argparse.ArgumentParser) -> None:
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--pid", type=int, metavar="PID", help="this process")
    whom.add_argument("--qp", metavar="DEVICE/QPN", help="this connection, as in mlx5_0/1234")
    parser.add_argument(
        "--for", metavar="TIME", dest="time", default="10s", help="how long (10s); Ctrl-C ends it before"
    )
    parser.add_argument(
        "--rate",
        type=int,
        metavar="LINES",
        default=1000,
        help="lines in a second (1000); what is beyond is counted only",
    )
    parser.add_argument("--json", action="store_true", help="an object a line, the summary last")


def run(options: argparse.Namespace) -> int:
    """Raises ConfigError for a mistake; 1 where there is nothing to trace."""
    from fabrictap.config import ConfigError, parse_duration  # noqa: PLC0415 - of this command only

    try:
        seconds = parse_duration(options.time)
    except ValueError as error:
        raise ConfigError(f"--for: {error}") from None
    if not 0 < seconds <= _MOST_SECONDS:
        raise ConfigError(f"--for {options.time}: expected more than 0s, and up to 1d")
    if not 0 <= options.rate <= _MOST_LINES:
        raise ConfigError(f"--rate {options.rate}: expected from 0 (the summary only) to {_MOST_LINES}")
    from fabrictap.trace import command  # noqa: PLC0415 - likewise: it loads libbpf
    from fabrictap.trace.whom import TraceError  # noqa: PLC0415 - likewise

    try:
        whom = command.find(options.pid, options.qp)
        return command.main(whom, seconds, rate=options.rate, as_json=options.json)
    except TraceError as error:
        print(f"fabrictap: {error}", file=sys.stderr)
        return 1
