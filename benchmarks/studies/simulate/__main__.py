"""Ours against stock serving at the paper's scale, simulated.

    python -m benchmarks.studies.simulate [--quick | --study STUDY ...] [--measured STEPS.json]
    python -m benchmarks.studies.simulate --publish
    python -m benchmarks.studies.simulate --validate [AGENTS.json]

The product's gateway policy and base-token index decide, and a tree of pages evicts; only the times
of steps are modelled, or taken from measurements. See the page beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.studies.simulate.figure import draw, shown
from benchmarks.studies.simulate.hardware import measured
from benchmarks.studies.simulate.headline import groups, headline, line
from benchmarks.studies.simulate.studies import MEASURED, STUDIES, Case, quick
from benchmarks.studies.simulate.traces import SEED
from benchmarks.studies.simulate.validate import print_validation
from ps_sglang.errors import UsageError

_COMMAND: Final = "python -m benchmarks.studies.simulate"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a prediction is too far off, 2 refused."""
    parser = argparse.ArgumentParser(
        prog=_COMMAND,
        description=(
            "A study, which takes hours: shared prefill against stock serving at the paper's "
            "scale, simulated. --quick gives an impression in a minute."
        ),
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--quick", action="store_true", help="few loads, under a minute; saves nothing but to --out"
    )
    group.add_argument(
        "--publish", action="store_true",
        help="simulate nothing: write the reference in benchmarks/results from out/simulate.json",
    )  # fmt: skip
    group.add_argument(
        "--study", nargs="+", choices=STUDIES, default=[],
        help="takes the place of itself in what is saved; default all, with --measured those that "
        "know one machine",
    )  # fmt: skip
    group.add_argument(
        "--validate", type=Path, nargs="?", const=report.OUT / "agents.json",
        metavar="AGENTS.json",
        help="simulate the saved runs of benchmarks.studies.agents (default out/agents.json), by "
        "the step times saved with them",
    )  # fmt: skip
    parser.add_argument(
        "--measured", type=Path, metavar="STEPS.json", help="step times of a real engine"
    )
    parser.add_argument("--out", metavar="NAME", help="save out/NAME.json, by default simulate")
    args = parser.parse_args(argv)
    return report.run("simulate", lambda: _simulate(args))


def _simulate(args: argparse.Namespace) -> int:
    steps = None if args.measured is None else measured(args.measured)
    if args.validate is not None:
        if steps is not None:
            raise UsageError("--validate takes the step times saved with the runs: no --measured")
        return print_validation(args.validate)
    if args.publish:
        _publish()
        return 0
    if args.quick:
        runs = _Runs(args.out)
        quick(runs, steps)
        runs.keep()
    else:
        runs = _Runs(args.out or ("simulate" if steps is None else "simulate-measured"))
        runs.load()
        studies = STUDIES if steps is None else MEASURED
        for study in args.study or studies:
            if study not in studies:
                raise UsageError(f"--study {study} is of modelled GPUs, not of --measured")
            runs.replace(study)
            STUDIES[study](runs, steps)
            runs.keep()
    for title, figures in runs.headlines().items():
        print(line(title, figures))
    return 0


def _publish() -> None:
    path = report.OUT / "simulate.json"
    kept = report.saved(path, "simulated runs", _COMMAND)
    summary = {name: kept[name] for name in ("environment", "seed", "headlines")}
    report.write(report.REFERENCE / path.name, report.to_json(summary))
    _draw(shown(kept["runs"]), report.REFERENCE, path.stem)


def _draw(rows: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    for study in ("rates", "concurrency"):
        if svg := draw(rows, study):
            report.write(folder / f"{name}-{study}.svg", svg)


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
        path = report.OUT / f"{self._name}.json"
        if path.exists():
            self.rows = report.saved(path, "simulated runs", _COMMAND)["runs"]

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
        report.save(self._name, {"seed": SEED, "headlines": self.headlines(), "runs": self.rows})
        _draw(self.rows, report.OUT, self._name)


if __name__ == "__main__":
    sys.exit(main())
