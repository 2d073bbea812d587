"""Agents whose models take turns over one growing context: ours beside stock SGLang.

    python -m benchmarks.studies.agents --workload react

Every system runs on the same cores with the same KV memory (see `systems`), is started clean for
each repeat, and is asked for the same sessions. Without --rates or --concurrency all sessions come
at once first, and what the first system does then chooses the rates. What is stock in `stock_pd` is
written in `stock_host`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.studies.agents.args import parse, study_of
from benchmarks.studies.agents.headline import headline, last_line
from benchmarks.studies.agents.record import keep, report
from benchmarks.studies.agents.study import run_study
from benchmarks.studies.agents.systems import OURS, STOCK_PD
from benchmarks.studies.agents.table import HEAD, comparisons, markdown
from ps_sglang.errors import MissingPackageError, PsSglangError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 a session failed or a system did not start, 2 refused."""
    # As Ctrl-C does, it leaves every block, and so ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse(argv)
    try:
        return _measure(args)
    except PsSglangError as error:
        print(f"agents: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130


def _measure(args: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    if args.report:
        for path in report(args.results):
            print(f"wrote {path}")
        return 0
    study = study_of(args)
    router = _router_version()
    if router is None and STOCK_PD in study.systems:
        raise MissingPackageError(
            f"{STOCK_PD} needs sglang-router; run: pip install sglang-router==0.3.2   "
            "(or leave it out of --systems)"
        )
    found: dict[str, Any] = run_study(study, say, step_costs=not args.quick)
    found["sglang_router"] = router
    failures = [failure for run in found["runs"] for failure in run["failures"]]
    if not args.quick:
        for path in keep(args.results, found, args.label):
            print(f"wrote {path}")
    if failures:
        print(f"agents: {len(failures)} sessions failed: {failures[0]}", file=sys.stderr)
        return 1
    if OURS in study.systems:
        rows = list(comparisons("this one", found))
        print("\n".join(markdown(HEAD, rows)))
    if {OURS, STOCK_PD} <= set(study.systems):
        print(last_line(study.shape.decoders, headline(found)))
    return 0


def _router_version() -> str | None:
    try:
        return version("sglang-router")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
