"""Agents whose models take turns over one growing context: ours beside stock SGLang.

    python -m benchmarks.studies.agents --workload react
    python -m benchmarks.studies.agents --report | --publish

Every system runs on the same cores with the same KV memory (see `systems`), is started clean for
each repeat, and is asked for the same sessions. Without --rates or --concurrency all sessions come
at once first, and what the first system does then chooses the rates. What is stock in `stock_pd` is
written in `stock_fork_server`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.gateway.systems import router_version
from benchmarks.report import run, timed
from benchmarks.studies.agents.args import parse, study_of
from benchmarks.studies.agents.headline import headline, last_line
from benchmarks.studies.agents.record import keep, publish, report
from benchmarks.studies.agents.study import run_study
from benchmarks.studies.agents.systems import OURS, STOCK_PD
from benchmarks.studies.agents.table import HEAD, comparisons, markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 a session failed or a system did not start, 2 refused."""
    # As Ctrl-C does, it leaves every block, and so ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse(argv)
    return run("agents", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    if args.report or args.publish:
        (publish if args.publish else report)(args.results)
        return 0
    study = study_of(args)
    router = router_version() if STOCK_PD in study.systems else None
    result: dict[str, Any] = run_study(study, timed(), step_costs=not args.quick)
    result["sglang_router"] = router
    failures = [failure for run in result["runs"] for failure in run["failures"]]
    if not args.quick:
        keep(args.results, result, args.label)
    if failures:
        print(f"agents: {len(failures)} sessions failed: {failures[0]}", file=sys.stderr)
        return 1
    if OURS in study.systems:
        rows = list(comparisons("this one", result))
        print("\n".join(markdown(HEAD, rows)))
    if {OURS, STOCK_PD} <= set(study.systems):
        print(last_line(study.shape.decoders, headline(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
