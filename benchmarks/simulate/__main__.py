"""Ours against stock serving at the paper's scale, simulated.

    python -m benchmarks.simulate [--quick | --study STUDY ...] [--measured STEPS.json] [--out NAME]

The product's gateway policy and base-token index decide, and a tree of pages evicts; only the times
of steps are modelled, or taken from measurements. See docs/simulation.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, save
from benchmarks.simulate.figure import draw
from benchmarks.simulate.hardware import measured
from benchmarks.simulate.studies import SEED, STUDIES, full, quick
from ps_sglang.errors import PsSglangError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description="Simulate shared prefill against stock serving at the paper's scale.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="two rates only, under a minute")
    group.add_argument("--study", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument(
        "--measured", type=Path, metavar="STEPS.json", help="step times of a real engine"
    )
    parser.add_argument("--out", metavar="NAME", help="save results/NAME.json (full: simulate)")
    args = parser.parse_args(argv)
    try:
        steps = None if args.measured is None else measured(args.measured)
        chosen = quick(steps) if args.quick else full(steps)
        cases = [case for case in chosen if case.study in args.study]
        runs = []
        began = time.monotonic()
        for number, case in enumerate(cases, 1):
            runs.append(case.run())
            passed = time.monotonic() - began
            left = passed / number * (len(cases) - number)
            print(f"[{number}/{len(cases)}, about {left:.0f} s left] {case.title}", flush=True)
    except PsSglangError as error:
        print(f"ps-sglang: error: {error}", file=sys.stderr)
        return 2
    name = args.out or (None if args.quick else "simulate")
    if name:
        print(save(name, {"seed": SEED, "runs": runs}))
        for study in ("rates", "hardware", "concurrency"):
            if svg := draw(runs, study):
                path = RESULTS / f"{name}_{study}.svg"
                path.write_text(svg)
                print(path)
    if any(run["study"] == "rates" for run in runs):
        print(summary(runs))
    return 0


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """Shared against stock PD at the highest rate of the first model, device and shape."""
    first = next(one for one in runs if one["study"] == "rates")
    same = [
        one
        for one in runs
        if one["study"] == "rates"
        and all(one[key] == first[key] for key in ("model", "device", "shape"))
    ]
    rate = max(one["rate"] for one in same)
    ours, stock = (
        next(one for one in same if one["rate"] == rate and one["system"] == system)
        for system in ("shared", "stock-pd")
    )
    return (
        f"simulate: N={ours['decoders']} throughput "
        f"{ours['output_tokens_per_s'] / stock['output_tokens_per_s']:.1f}x, p95 "
        f"{stock['turn_s']['p95'] / ours['turn_s']['p95']:.1f}x lower, prefill tokens "
        f"{stock['computed_tokens'] / ours['computed_tokens']:.1f}x fewer than stock PD "
        f"at {rate:g} sessions/s"
    )


if __name__ == "__main__":
    sys.exit(main())
