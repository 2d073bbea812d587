"""The gateway's limits on the launcher's command line."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, Final

from ps_sglang.gateway.limits import QUEUED_PER_WORKER, SESSIONS_PER_TENANT, GatewayLimits

LIMITS: Final = tuple(field.name for field in fields(GatewayLimits))


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each limit."""
    group = parser.add_argument_group("limits of the gateway, for all clients together")
    add = group.add_argument
    add(
        "--max-concurrent-requests",
        type=int,
        metavar="N",
        help="refuse more than N unanswered requests with 429; each answer of a request counts "
        "(default: as many as there are connections for)",
    )
    add(
        "--max-queued-requests",
        type=int,
        metavar="N",
        help="... more than N whose prompt waits to be prefilled "
        f"(default {QUEUED_PER_WORKER} for each decode worker)",
    )
    add(
        "--max-queued-tokens",
        type=int,
        metavar="N",
        help="... more than N tokens of such prompts (default: no limit)",
    )
    add(
        "--request-timeout",
        type=float,
        metavar="S",
        help="end a request that has no whole answer after S seconds (default: never)",
    )
    add(
        "--max-sessions",
        type=int,
        metavar="N",
        help="remember N conversations of each tenant; the longest idle one goes first "
        f"(default {SESSIONS_PER_TENANT})",
    )


def taken_limits(chosen: dict[str, Any]) -> GatewayLimits:
    """The limits among the options, which are taken out of these."""
    return GatewayLimits(**{name: chosen.pop(name) for name in LIMITS if name in chosen})
