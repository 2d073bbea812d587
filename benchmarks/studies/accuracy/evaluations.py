"""The study's cells: a decoder on a test set, through the evaluator's own command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.studies.accuracy.jobs import Runner, flags
from benchmarks.studies.accuracy.plan import Recipe, Study


def base_cells(study: Study, recipe: Recipe, runner: Runner) -> None:
    """The base as it is, and with worked examples before the question."""
    _evaluate(study, recipe.task, "base", None, 0, (0.0,), runner)
    _evaluate(study, recipe.task, "base", None, 0, (0.0,), runner, few_shot=recipe.few_shot)


def decoder_cells(
    study: Study, task: str, method: str, decoder: Path, seed: int, runner: Runner
) -> None:
    """A trained decoder at every share of the study."""
    _evaluate(study, task, method, decoder, seed, study.shares, runner)


def report_only_cells(
    study: Study, task: str, method: str, decoder: Path | None, seed: int, runner: Runner
) -> None:
    """On a task that nobody was trained on: each system as it is meant to run."""
    share = 1.0 if method == "cache-conditioned" else 0.0
    _evaluate(study, task, method, decoder, seed, (share,), runner)


def adapter_cell(
    study: Study, recipe: Recipe, adapter: Path, seed: int, runner: Runner
) -> dict[str, Any]:
    """The row of an adapter at share 1, which its manifest holds from then on."""
    cell = study.work / "adapters" / f"{recipe.task}.json"
    _evaluate(study, recipe.task, "adapter", adapter, seed, (1.0,), runner, cell=cell)
    row: dict[str, Any] = json.loads(cell.read_text())["rows"][0]
    return row


def _evaluate(
    study: Study,
    task: str,
    system: str,
    decoder: Path | None,
    seed: int,
    shares: tuple[float, ...],
    runner: Runner,
    few_shot: int = 0,
    cell: Path | None = None,
) -> None:
    """`decoder` None is the base itself. A `cell` that is there already stays; one of its own is
    no row of the study, and its decoder's manifest records it."""
    shots = "-fewshot" if few_shot else ""
    name = f"{task}-{system}{shots}-seed{seed}"
    out = cell or study.work / "cells" / f"{name}.json"
    if out.is_file():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    runner.run(
        f"evaluate-{name}",
        "ps_sglang.training.evaluate",
        *flags(
            task=task,
            base=study.base,
            decoder=decoder or study.base,
            share=tuple(f"{share:g}" for share in shares),
            count=study.count or None,
            few_shot=few_shot or None,
            system=f"{system}{shots}",
            seed=seed,
            dtype="float32" if cell else study.dtype,
            out=out,
            answers=out.with_suffix(".jsonl"),
        ),
        *(["--record"] if cell else []),
    )
