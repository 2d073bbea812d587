"""The study's units of work in the order in which they matter, and running them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.studies.accuracy.adapters import make_adapter
from benchmarks.studies.accuracy.evaluations import base_cells, decoder_cells, report_only_cells
from benchmarks.studies.accuracy.jobs import Runner
from benchmarks.studies.accuracy.plan import METHODS, Recipe, Study
from benchmarks.studies.accuracy.trainings import Training, best_rate, train
from ps_sglang.progress import progress
from ps_sglang.training.train.settings import Method


@dataclass(frozen=True)
class Unit:
    """Work of which nothing else waits for a part. `what` is for a person."""

    what: str
    run: Callable[[], object]


def units(study: Study, runner: Runner) -> Iterator[Unit]:
    """One seed of everything first; the report-only tasks last."""
    for number, seed in enumerate(study.seeds):
        for recipe in study.recipes:
            for method in METHODS:
                yield _trained(study, recipe, method, seed, runner)
            if number == 0 and study.adapters:
                yield _adapter(study, recipe, runner)
        if number == 0:
            for recipe in study.recipes:
                yield _base(study, recipe, runner)
    if study.report_only:
        for recipe in study.recipes:
            yield _report_only(study, recipe, runner)


def _trained(study: Study, recipe: Recipe, method: Method, seed: int, runner: Runner) -> Unit:
    training = Training(recipe, method)

    def run() -> None:
        rate = best_rate(study, training, recipe.rates, runner)
        decoder = train(study, training, rate, seed, runner)
        decoder_cells(study, recipe.task, method, decoder, seed, runner)

    return Unit(f"{training.name}, seed {seed}", run)


def _adapter(study: Study, recipe: Recipe, runner: Runner) -> Unit:
    return Unit(f"{recipe.task} adapter", lambda: make_adapter(study, recipe, runner))


def _base(study: Study, recipe: Recipe, runner: Runner) -> Unit:
    return Unit(f"{recipe.task} base", lambda: base_cells(study, recipe, runner))


def _report_only(study: Study, recipe: Recipe, runner: Runner) -> Unit:
    task, seed = recipe.report_only, study.seeds[0]

    def run() -> None:
        report_only_cells(study, task, "base", None, 0, runner)
        for method in METHODS:
            training = Training(recipe, method)
            rate = best_rate(study, training, recipe.rates, runner)
            decoder = train(study, training, rate, seed, runner)
            report_only_cells(study, task, method, decoder, seed, runner)

    return Unit(f"{task} (report only)", run)


def run_all(units: Sequence[Unit], at_once: int) -> None:
    """`at_once` units at a time. After one that fails no other starts; what was done stays."""
    failed = threading.Event()

    def run(unit: Unit, place: str) -> None:
        if failed.is_set():
            return
        progress(f"[{place}] {unit.what}")
        try:
            unit.run()
        except BaseException:
            failed.set()
            raise
        progress(f"[{place}] {unit.what}: complete")

    with ThreadPoolExecutor(at_once) as pool:
        done = [
            pool.submit(run, unit, f"{number}/{len(units)}")
            for number, unit in enumerate(units, start=1)
        ]
    for future in done:
        future.result()
