"""`ps-sglang status` and `ps-sglang top`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Final

from ps_sglang.errors import UsageError
from ps_sglang.gateway_admin import add_gateway, exit_status
from ps_sglang.status.snapshot import ClusterSnapshot, read
from ps_sglang.status.tables import lines

_STATUS: Final = "Show the workers and decoders of a running cluster, once."
_TOP: Final = "Show the workers and decoders of a running cluster, again and again, until Ctrl-C."
_TIMEOUT_S: Final = 10.0
_CLEAR: Final = "\x1b[H\x1b[2J"


def status(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 the cluster is ready, 1 it is not, 2 no gateway answers."""
    parser = _parser("ps-sglang status", _STATUS)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    args = parser.parse_args(argv)
    found: list[ClusterSnapshot] = []

    def show() -> None:
        found.append(read(args.gateway, _TIMEOUT_S))
        if args.json:
            print(json.dumps(found[0].to_json(), indent=2))
        else:
            print(*lines(found[0]), sep="\n")

    return exit_status(show) or int(not found[0].ready)


def top(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 stopped by Ctrl-C, 2 no gateway answered at the start."""
    parser = _parser("ps-sglang top", _TOP)
    parser.add_argument(
        "--interval",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds between two looks (default 2)",
    )
    args = parser.parse_args(argv)
    if not args.interval > 0:
        parser.error(f"--interval is {args.interval:g}, must be above 0")
    return exit_status(lambda: _watch(args.gateway, args.interval))


def _watch(gateway: str, interval_s: float) -> None:
    before = read(gateway, _TIMEOUT_S)
    _draw(lines(before))
    try:
        while True:
            time.sleep(interval_s)
            try:
                now = read(gateway, _TIMEOUT_S)
            except UsageError as error:  # it may be restarting
                _draw([str(error)])
                continue
            _draw(lines(now, before))
            before = now
    except KeyboardInterrupt:
        return


def _draw(text: Iterable[str]) -> None:
    """In the last one's place on a terminal, below it elsewhere."""
    screen = "\n".join(text)
    print((_CLEAR if sys.stdout.isatty() else "") + screen, flush=True)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_gateway(parser)
    return parser
