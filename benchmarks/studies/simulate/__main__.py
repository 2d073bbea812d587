"""Ours against stock serving at the paper's scale, simulated.

    python -m benchmarks.studies.simulate [--quick | --study STUDY ...] [--measured STEPS.json] [--out NAME]
    python -m benchmarks.studies.simulate --validate AGENTS.json

The product's gateway policy and base-token index decide, and a tree of pages evicts; only the times
of steps are modelled, or taken from measurements. See docs/simulation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, save
from benchmarks.studies.simulate.figure import draw
from benchmarks.studies.simulate.hardware import measured
from benchmarks.studies.simulate.headline import groups, headline, line
from benchmarks.studies.simulate.studies import MEASURED, STUDIES, Case, quick
from benchmarks.studies.simulate.traces import SEED
from benchmarks.studies.simulate.validate import print_validation
from ps_sglang.errors import PsSglangError, UsageError
from ps_sglang.progress import progress


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a prediction is too far off, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.simulate",
        description="Simulate shared prefill against stock serving at the paper's scale.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="few loads, under a minute")
    group.add_argument(
        "--study", nargs="+", choices=STUDIES, default=[],
        help="takes the place of itself in what is saved; default all, with --measured those that "
        "know one machine",
    )  # fmt: skip
    group.add_argument(
        "--validate", type=Path, metavar="AGENTS.json",
        help="simulate the saved runs of benchmarks.studies.agents, by the step times saved with them",
    )  # fmt: skip
    parser.add_argument(
        "--measured", type=Path, metavar="STEPS.json", help="step times of a real engine"
    )
    parser.add_argument("--out", metavar="NAME", help="save results/NAME.json, by default simulate")
    args = parser.parse_args(argv)
    try:
        steps = None if args.measured is None else measured(args.measured)
        if args.validate is not None:
            if steps is not None:
                raise UsageError(
                    "--validate takes the step times saved with the runs: no --measured"
                )
            return print_validation(args.validate)
        if args.quick:
            runs = _Runs(args.out)
            quick(runs, steps)
            runs.keep()
        else:
            runs = _Runs(args.out or ("simulate" if steps is None else "simulate-measured"))
            runs.load()
            known = STUDIES if steps is None else MEASURED
            for study in args.study or known:
                if study not in known:
                    raise UsageError(f"--study {study} is of modelled GPUs, not of --measured")
                runs.replace(study)
                STUDIES[study](runs, steps)
                runs.keep()
    except PsSglangError as error:
        progress(f"error: {error}")
        return 2
    for title, one in runs.headlines().items():
        print(line(title, one))
    return 0


class _Runs:
    """Runs cases, keeps what they found (under a name, if there is one), and tells."""

    def __init__(self, name: str | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._name, self._part = name, "quick"
        self._began = time.monotonic()

    def __call__(self, case: Case) -> dict[str, Any]:
        """The figures of a case."""
        row = {"part": self._part, **case.run()}
        self.rows.append(row)
        print(
            f"[{len(self.rows)}, {time.monotonic() - self._began:.0f} s] {case.title}: "
            f"{row['output_tokens_per_s']:.0f} tokens/s, turn p95 {row['turn_s']['p95']:.2f} s, "
            f"hit {row['hit_ratio']:.1%}",
            flush=True,
        )
        return row

    def load(self) -> None:
        """Go on from what is saved under the name."""
        path = RESULTS / f"{self._name}.json"
        if path.exists():
            self.rows = json.loads(path.read_text())["runs"]

    def replace(self, study: str) -> None:
        """Forget what was found of a study: it is run next."""
        self._part = study
        self.rows = [row for row in self.rows if row["part"] != study]

    def headlines(self) -> dict[str, dict[str, Any]]:
        """Of each workload, model and device."""
        return {title: headline(group) for title, group in groups(self.rows).items()}

    def keep(self) -> None:
        """Save what there is so far."""
        if self._name is None:
            return
        found = {"seed": SEED, "headlines": self.headlines(), "runs": self.rows}
        print(save(self._name, found))
        for study in ("rates", "concurrency"):
            if svg := draw(self.rows, study):
                path = RESULTS / f"{self._name}-{study}.svg"
                path.write_text(svg)
                print(path)


if __name__ == "__main__":
    sys.exit(main())
