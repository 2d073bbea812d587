"""A study, which takes hours: four systems on three tasks at five shares of the base's KV.

    python -m benchmarks.studies.accuracy [--work DIR] [--at-once N]
    python -m benchmarks.studies.accuracy --quick | --report | --publish

Run by `make accuracy`. It can be stopped at any time: what is done is kept in --work, and the same
command goes on from there. --quick is one small cell, in under 10 minutes; it saves nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.report import REPOSITORY, run
from benchmarks.studies.accuracy.plan import RECIPES, Study
from ps_sglang.home import home
from ps_sglang.progress import progress


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 complete, 1 a job failed, 2 refused, 130 Ctrl-C."""
    args = _parser().parse_args(argv)
    recipes = tuple(RECIPES[name] for name in args.tasks)
    work = args.work or home() / "accuracy"
    study = Study(recipes, tuple(args.seeds), work.resolve(), at_once=args.at_once)
    status = run("accuracy", lambda: _do(args, study))
    if status == 130:
        progress("stopped; the same command goes on from here")
    return status


def _do(args: argparse.Namespace, study: Study) -> int:
    if args.quick:
        with tempfile.TemporaryDirectory(prefix="ps_sglang-accuracy-") as folder:
            _run(_quick(study, Path(folder)))
        return 0
    if not (args.report or args.publish):
        _run(study)
    _report(study, args.publish)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", type=Path, metavar="DIR", help="default accuracy/ in the cache folder")
    add("--tasks", nargs="+", choices=RECIPES, default=[*RECIPES], help="default all three")
    add("--seeds", nargs="+", type=int, default=[1, 2], metavar="N", help="default 1 2")
    add("--at-once", type=int, default=1, metavar="N", help="jobs at a time; they share the cores")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--quick", action="store_true", help="one small cell; saves nothing")
    part.add_argument("--report", action="store_true", help="only report what is there, in out")
    part.add_argument(
        "--publish", action="store_true",
        help="only report, in benchmarks/results and in the page, too, and copy the finished "
        "adapters into the package",
    )  # fmt: skip
    return parser


def _quick(study: Study, work: Path) -> Study:
    """Full fine-tuning and cache-conditioned on a little code, without a search."""
    return replace(
        study,
        recipes=(replace(RECIPES["code"], examples=160, rates=(1.5e-4,)),),
        seeds=(1,),
        work=work,
        shares=(0.0, 1.0),
        count=40,
        adapters=False,
        report_only=False,
    )


# Imported late, all that follows: `--help` needs none of it.


def _run(study: Study) -> None:
    from benchmarks.studies.accuracy.data import write_data
    from benchmarks.studies.accuracy.jobs import Runner
    from benchmarks.studies.accuracy.report import rows, table
    from benchmarks.studies.accuracy.units import run_all, units

    for recipe in study.recipes:
        write_data(study, recipe)
    threads = max(1, (os.cpu_count() or 1) // study.at_once)
    run_all(list(units(study, Runner(study.work / "logs", threads))), study.at_once)
    print(table(rows(study.work)))


def _report(study: Study, publish: bool) -> None:
    from benchmarks.studies.accuracy import adapters, report

    if publish:
        adapters.publish(study, REPOSITORY / "ps_sglang" / "models" / "adapters")
    report.save_results(study, publish=publish)


if __name__ == "__main__":
    sys.exit(main())
