"""Learning-rate searches and trainings, through the trainer's own command."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.studies.accuracy.jobs import Runner, flags
from benchmarks.studies.accuracy.plan import Recipe, Study
from ps_sglang.contract import read_manifest
from ps_sglang.progress import progress
from ps_sglang.training.train.settings import Method

_SEARCH_SEED: Final = 0


@dataclass(frozen=True)
class Training:
    """One way to make a decoder of a task. `lora_rank` 0 trains all weights. `data` is the file
    of the task's folder that it learns; the search for a learning rate has one of its own."""

    recipe: Recipe
    method: Method
    lora_rank: int = 0
    data: str = "train"

    @property
    def name(self) -> str:
        adapter = f"-lora{self.lora_rank}" if self.lora_rank else ""
        return f"{self.recipe.task}-{self.method}{adapter}"


def best_rate(study: Study, training: Training, rates: tuple[float, ...], runner: Runner) -> float:
    """The rate with the lowest dev loss after one pass over the search items."""
    if len(rates) == 1:
        return rates[0]
    folder = study.work / "search"
    with runner.makes[folder / training.name]:
        return _searched(study, training, rates, folder, runner)


def _searched(
    study: Study, training: Training, rates: tuple[float, ...], folder: Path, runner: Runner
) -> float:
    losses = {}
    for rate in rates:
        name = f"{training.name}-{rate:g}"
        once = replace(training, recipe=replace(training.recipe, epochs=1), data="search")
        _train(study, once, rate, _SEARCH_SEED, folder / name, f"search-{name}", runner)
        losses[rate] = _dev_loss(folder / name)
        _discard_weights(folder / name)
    best = min(losses, key=losses.__getitem__)
    shown = ", ".join(f"{loss:.4f} at {rate:g}" for rate, loss in losses.items())
    progress(f"{training.name}: learning rate {best:g} of dev losses {shown}")
    chosen = {"rate": best, "dev_loss": {f"{rate:g}": loss for rate, loss in losses.items()}}
    (folder / f"{training.name}.json").write_text(json.dumps(chosen, indent=2) + "\n")
    return best


def train(study: Study, training: Training, rate: float, seed: int, runner: Runner) -> Path:
    """The folder of the decoder, trained if it is not there yet."""
    name = f"{training.name}-seed{seed}"
    out = study.work / "runs" / name
    with runner.makes[out]:
        _train(study, training, rate, seed, out, f"train-{name}", runner)
        for checkpoint in (out / "training").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return out


def _train(
    study: Study,
    training: Training,
    rate: float,
    seed: int,
    out: Path,
    name: str,
    runner: Runner,
) -> None:
    # It is the last file that a training writes.
    if read_manifest(out) is not None:
        return
    started = (out / "training" / "run.json").is_file()
    if not started:
        shutil.rmtree(out, ignore_errors=True)
    recipe, folder = training.recipe, study.data(training.recipe.task)
    conditioned = training.method == "cache-conditioned"
    runner.run(
        name,
        "ps_sglang.training.train",
        *flags(
            base=study.base,
            data=folder / f"{training.data}.jsonl",
            eval_data=folder / "dev.jsonl",
            out=out,
            method=training.method,
            lora_rank=training.lora_rank or None,
            dtype=study.dtype,
            epochs=recipe.epochs,
            # In the middle, for a run that is stopped, and at the end.
            checkpoint_steps=None if training.data == "search" else recipe.steps // 2,
            batch_size=recipe.batch_size,
            learning_rate=f"{rate:g}",
            seed=seed,
            keep_kv_gb=study.keep_kv_gb if conditioned else None,
            keep_kv_dir=study.work / "kv" if conditioned else None,
            keep_checkpoints=1,
        ),
        *(["--resume"] if started else []),
    )


def _dev_loss(out: Path) -> float:
    manifest = read_manifest(out)
    assert manifest is not None, f"{out} has no manifest; the trainer left it"
    return manifest.scores[0].value


def _discard_weights(out: Path) -> None:
    """What the search is for is the loss; weights and checkpoints are gigabytes."""
    shutil.rmtree(out / "adapter", ignore_errors=True)
    for checkpoint in (out / "training").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for weights in out.glob("*.safetensors"):
        weights.unlink()
