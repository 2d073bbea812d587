"""One training run from settings to decoder: set up, train, save."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from ps_sglang.contract import Manifest
from ps_sglang.contract.manifest import BaseReference, Score, Training
from ps_sglang.errors import UsageError
from ps_sglang.models import NamedModel, resolve
from ps_sglang.progress import OnProgress
from ps_sglang.training.train.arguments import training_arguments
from ps_sglang.training.train.base import BaseReader
from ps_sglang.training.train.batches import conditioned_batch, full_batch
from ps_sglang.training.train.data_report import report
from ps_sglang.training.train.decoder import Tokenizing, load_pair, load_tokenizer
from ps_sglang.training.train.examples import Encoded, Encoder
from ps_sglang.training.train.export import export
from ps_sglang.training.train.kv_store import KvStore, open_kv_store
from ps_sglang.training.train.losses import CacheConditioned, Full
from ps_sglang.training.train.progress import TrainingProgress, tensorboard
from ps_sglang.training.train.records import read_data
from ps_sglang.training.train.run_fingerprint import RunFingerprint, check_new, check_resume
from ps_sglang.training.train.saving import saving
from ps_sglang.training.train.settings import TrainSettings
from ps_sglang.training.train.trainer import DecoderTrainer


@dataclass(frozen=True)
class _Data:
    identity: RunFingerprint
    train: Encoded
    evaluation: Encoded | None


def train(settings: TrainSettings, on_progress: OnProgress) -> None:
    """Train, and leave the decoder with its manifest in `settings.out`.

    Raises UsageError before any work for what cannot be run, and TrainingError for a run that
    stopped; its checkpoints stay.
    """
    main = os.environ.get("RANK", "0") == "0"
    on_progress = on_progress if main else _silent
    if settings.lora_rank and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise UsageError(
            "--lora-rank under FSDP: the base shares the decoder's weights, which FSDP cuts; "
            "an adapter is small, so run the processes without FSDP"
        )
    _require_all_processes(os.environ)
    if main and not settings.resume:
        check_new(settings.out)
    base = resolve(settings.base)
    data = _read(settings, base, on_progress)
    if settings.resume:
        check_resume(settings.checkpoints, data.identity, base.path)
    elif main:
        data.identity.write(settings.checkpoints)
    trainer, kv_store = _trainer(settings, base, data, on_progress)
    # Checkpoints say it themselves; this is the log and TensorBoard's.
    with saving(settings.checkpoints, (OSError,)):
        trainer.train_from(_checkpoint(settings, on_progress))
    if kv_store is not None:
        on_progress(kv_store.report())
    weights = trainer.gathered_weights()
    if main:
        manifest = _manifest(settings, base, data, trainer.state)
        export(trainer.model, weights, base, settings.out, manifest)
        on_progress(f"done: decoder in {settings.out}")


def _require_all_processes(environ: Mapping[str, str]) -> None:
    """Raises UsageError where accelerate was asked for several processes and started one."""
    launched = "ACCELERATE_DYNAMO_BACKEND" in environ and "MASTER_PORT" in environ
    # Of torchrun, and of the MPIs that accelerate knows.
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if launched and not any(size in environ for size in sizes):
        raise UsageError(
            "accelerate launch was asked for several processes and started one, as it does "
            "without as many GPUs; start them with torchrun --nproc-per-node 2 -m "
            "ps_sglang.training.train ..., or give --num_processes 1 (and unset MASTER_PORT)"
        )


def _read(settings: TrainSettings, base: NamedModel, on_progress: OnProgress) -> _Data:
    tokenizing = load_tokenizer(base.path)
    limit = _limit(settings, tokenizing)
    encoder = Encoder(
        tokenizing.tokenizer,
        tokenizing.stops,
        limit,
        skip_long=settings.skip_long,
        drop_unrendered=settings.drop_unrendered,
    )
    sets = [read_data(source) for source in (settings.data, settings.eval_data) if source]
    encoded = [encoder.encode(data) for data in sets]
    for dataset in encoded:
        for line in report(dataset, limit):
            on_progress(line)
    digests = [data.digest for data in sets]
    identity = RunFingerprint.of(base, digests[0], digests[1] if digests[1:] else None, settings)
    return _Data(identity, encoded[0], encoded[1] if encoded[1:] else None)


def _limit(settings: TrainSettings, tokenizing: Tokenizing) -> int:
    if settings.max_length > tokenizing.context:
        raise UsageError(
            f"--max-length {settings.max_length} is over the base's context of {tokenizing.context}"
        )
    return settings.max_length or tokenizing.context


def _trainer(
    settings: TrainSettings, base: NamedModel, data: _Data, on_progress: OnProgress
) -> tuple[DecoderTrainer, KvStore | None]:
    arguments = training_arguments(settings, evaluate=data.evaluation is not None)
    # LoRA starts from random numbers.
    set_seed(settings.seed)
    decoder, frozen = load_pair(base.path, settings, arguments.device)
    kv_store = open_kv_store(settings, data.identity.base_fingerprint)
    conditioned = settings.method == "cache-conditioned"
    folder = settings.checkpoints
    tokens = sum(example.length for example in data.train.examples)
    callbacks = [TrainingProgress(folder / "log.jsonl", tokens, on_progress)]
    if arguments.process_index == 0:
        callbacks += tensorboard(folder / "tensorboard")
    trainer = DecoderTrainer(
        decoder,
        CacheConditioned(BaseReader(frozen, kv_store)) if conditioned else Full(),
        partial(conditioned_batch, tail=settings.tail) if conditioned else full_batch,
        arguments,
        data.train.examples,
        data.evaluation.examples if data.evaluation else None,
        callbacks,
        settings.keep_checkpoints,
    )
    return trainer, kv_store


def _checkpoint(settings: TrainSettings, on_progress: OnProgress) -> Path | None:
    if not settings.resume:
        return None
    last = get_last_checkpoint(settings.checkpoints)
    on_progress(f"resuming from {last or 'the start: there is no checkpoint yet'}")
    return last and Path(last)


def _manifest(settings: TrainSettings, base: NamedModel, data: _Data, state: Any) -> Manifest:
    identity, evaluation = data.identity, data.evaluation
    scores = []
    if evaluation is not None and state.best_metric is not None:
        scores.append(
            Score(
                benchmark="evaluation data",
                metric="loss per answer token",
                value=state.best_metric,
                examples=evaluation.answers,
            )
        )
    what = f"LoRA of rank {settings.lora_rank}" if settings.lora_rank else "all weights"
    return Manifest(
        base=BaseReference(name=base.name, fingerprint=identity.base_fingerprint),
        tokenizer=identity.tokenizer,
        chat_template=identity.chat_template,
        kv_cache_dtype=settings.dtype,
        tool_call_parser=settings.tool_call_parser or None,
        reasoning_parser=settings.reasoning_parser or None,
        share_ratio=1.0 if settings.method == "cache-conditioned" else 0.0,
        tail=settings.tail,
        training=Training(
            recipe=f"{settings.method} fine-tuning, {what}",
            data_digest=identity.data,
            settings={
                **settings.curve(),
                "steps": state.global_step,
                "answer_tokens": sum(e.answer_tokens for e in data.train.examples),
                "examples": len(data.train.examples),
            },
        ),
        scores=scores,
    )


def _silent(line: str) -> None:
    """What all processes but the first have to say."""
