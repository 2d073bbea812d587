"""The demo decoders: LoRA adapters trained on the base's cache, in half precision with a card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.studies.accuracy.card import card
from benchmarks.studies.accuracy.data import ADAPTER
from benchmarks.studies.accuracy.evaluations import adapter_cell
from benchmarks.studies.accuracy.jobs import Runner
from benchmarks.studies.accuracy.plan import LORA_EPOCHS, LORA_RANK, LORA_RATE, Recipe, Study
from benchmarks.studies.accuracy.trainings import Training, train
from ps_sglang.contract import read_manifest, write_manifest
from ps_sglang.contract.adapter_files import ADAPTER_WEIGHTS
from ps_sglang.contract.files import ADAPTER_CONFIG
from ps_sglang.errors import UsageError
from ps_sglang.models.demo import TOOL_CALL_PARSER
from ps_sglang.progress import progress

_SEED: Final = 1


def make_adapter(study: Study, recipe: Recipe, runner: Runner) -> None:
    """Train, halve, measure; `work/adapters/TASK`."""
    once = replace(recipe, epochs=LORA_EPOCHS)
    training = Training(once, "cache-conditioned", LORA_RANK, ADAPTER)
    trained = train(study, training, LORA_RATE, _SEED, runner)
    adapter = study.work / "adapters" / recipe.task
    if not adapter.is_dir():
        _halve(trained / "adapter", adapter)
    row = adapter_cell(study, recipe, adapter, _SEED, runner)
    measured = read_manifest(adapter)
    assert measured is not None, f"{adapter} lost its manifest"
    (adapter / "README.md").write_text(card(recipe.task, measured, row))
    progress(f"{recipe.task} adapter: {row['score']:.1%} at share 1, in {adapter}")


def _halve(trained: Path, adapter: Path) -> None:
    """As float16: half the size, and numpy reads it."""
    adapter.mkdir(parents=True)
    weights = {
        name: tensor.astype(np.float16)
        for name, tensor in load_file(trained / ADAPTER_WEIGHTS).items()
    }
    save_file(weights, adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    # safetensors makes files for the owner's eyes only.
    (adapter / ADAPTER_WEIGHTS).chmod(0o644)
    config = json.loads((trained / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    manifest = read_manifest(trained)
    assert manifest is not None, f"{trained} has no manifest; the trainer left it"
    # The evaluation that follows is in float32, as the demo serves it.
    write_manifest(
        adapter,
        msgspec.structs.replace(
            manifest, kv_cache_dtype="float32", tool_call_parser=TOOL_CALL_PARSER
        ),
    )


def publish(study: Study, target: Path) -> None:
    """Copy the finished adapters into the package.

    Raises UsageError if one is not finished; nothing is copied then.
    """
    sources = [study.work / "adapters" / recipe.task for recipe in study.recipes]
    for source in sources:
        if not (source / "README.md").is_file():  # which is written last
            raise UsageError(
                f"{source} is missing or not finished; this makes it: "
                f"python -m benchmarks.studies.accuracy --tasks {source.name}"
            )
    for source in sources:
        shutil.rmtree(target / source.name, ignore_errors=True)
        shutil.copytree(source, target / source.name)
        progress(f"published {target / source.name}")
