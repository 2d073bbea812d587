"""Faults on a real cluster under load, one at a time: what is lost, and how soon all is well.

    python -m benchmarks.faults [--quick] [--rows NAME ...] [--times N] [--hours H]

The launcher runs two prefill and two decode workers of each decoder, so that every role has a
second one; where a link is cut or slow, one of the two is on another host. Sessions of agents speak
all the time. Then something is killed, stopped, flooded or filled up, by a schedule that a seed
gives. Every answer is compared with the Hugging Face reference token for token, and every request
must end in an answer or an error with a reason. In the end all workers are good, all answers exact,
no page and no queue is taken, and what the processes hold of the machine is back.

Recovery takes from the kill (or the end of the fault) until all that is there again. `lost` counts
requests that ended in an error; agents ask again, as agents do. `p95 of others` compares the
waiting time of turns during the fault with that before. What is measured is kept in
out/faults.json, row by row, beside what was measured of other rows.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.models import KINDS
from benchmarks.faults.rows import NAMES, ROWS, Row
from benchmarks.faults.soak import soak
from benchmarks.faults.suite import run_rows, scene
from benchmarks.faults.summary import last_line, ordered, table
from benchmarks.faults.tries import is_good
from benchmarks.report import OUT, REFERENCE, count, parser, run, save, saved, timed, to_json, write
from ps_sglang.open_files import raise_limit
from ps_sglang.training.machine import environment

_COMMAND: Final = "python -m benchmarks.faults"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all rows good, 1 some are not, 2 refused."""
    # As Ctrl-C does, it leaves every block, and so ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parser("faults", __doc__, "each row once on tiny models, in under 10 minutes")
    add = options.add_argument
    add("--rows", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    add("--times", type=count, help="how often each row (default 20, long ones 1, with --quick 1)")
    add("--model", choices=KINDS, help="what is served (default demo, with --quick tiny)")
    add("--seed", type=int, default=0, help="what all chance comes from (default 0)")
    add("--hours", type=float, metavar="H", help="instead: so long a random fault each minute")
    args = options.parse_args(argv)
    if args.hours is not None and not args.hours > 0:
        options.error(f"--hours is {args.hours:g}, must be above 0")
    return run("faults", lambda: asyncio.run(_measure(args)))


async def _measure(args: argparse.Namespace) -> int:
    on_progress = timed()
    raise_limit()  # each client that is played has a connection
    kind = args.model or ("tiny" if args.quick else "demo")
    chosen = [row for row in ROWS if _is_chosen(row, args)]
    rows = [row for row in chosen if (why := row.missing(kind)) is None or _skip(row, why)]
    if args.hours is not None:
        async with scene(kind, args.seed, on_progress) as there:
            found = await soak(there, args.hours, args.seed, on_progress)
        save("faults_soak", found, publish=args.publish, summary=_without_samples(found))
        print(
            f"faults: {args.hours:g} h, {found['requests']} requests, {found['wrong']} wrong "
            f"tokens, {found['unaccounted']} unaccounted, memory "
            f"{found['slopes_per_hour']['memory_mb']} MB/h"
        )
        return int(bool(found["wrong"] or found["unaccounted"] or found["problems"]))
    done: dict[str, Any] = {}
    keep = _keeper(done, kind, args)
    times = args.times or (1 if args.quick else None)
    for two_hosts in (False, True):
        if here := [row for row in rows if row.two_hosts is two_hosts]:
            async with scene(kind, args.seed, on_progress, two_hosts=two_hosts) as there:
                await run_rows(there, here, times, args.seed, on_progress, keep, quick=args.quick)
    print(table(done))
    print(last_line(done))
    return int(not all(map(is_good, done.values())))


def _is_chosen(row: Row, args: argparse.Namespace) -> bool:
    return row.name in args.rows if args.rows else row.quick or not args.quick


def _skip(row: Row, why: str) -> bool:
    print(f"skipped {row.name}: {why}", flush=True)
    return False


def _keeper(
    done: dict[str, Any], kind: str, args: argparse.Namespace
) -> Callable[[str, dict[str, Any]], None]:
    """Writes each row as soon as it is there: to `done`, and to the files of results."""

    def keep(name: str, found: dict[str, Any]) -> None:
        entry = {**found, "model": kind, "seed": args.seed, "environment": environment()}
        done[name] = entry
        _merge(OUT / ("faults-quick.json" if args.quick else "faults.json"), name, entry)
        if args.publish:
            _merge(REFERENCE / "faults.json", name, {**entry, "tries": None})

    return keep


def _merge(path: Path, name: str, found: dict[str, Any]) -> None:
    kept = saved(path, "figures", _COMMAND) if path.exists() else {}
    write(path, to_json(ordered(kept | {name: found})))


def _without_samples(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "samples"}


if __name__ == "__main__":
    sys.exit(main())
