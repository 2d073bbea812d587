"""transformers' Trainer with our step, our order of the data, and checkpoints that appear whole."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from ps_sglang.errors import TrainingError
from ps_sglang.training.train.batches import FILLER, Batch, Example, LengthOrder
from ps_sglang.training.train.losses import RowLosses
from ps_sglang.training.train.saving import saving

# A folder that the search for checkpoints does not look into.
_PARTIAL: Final = ".partial"
_STATE: Final = "trainer_state.json"


class _EpochSetter(TrainerCallback):  # type: ignore[misc]
    """Accelerate's way to tell a sampler the epoch does not reach it after a resume."""

    def __init__(self, order: LengthOrder) -> None:
        self._order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Whole at an epoch's end, and in between the part that was trained before a resume.
        self._order.epoch = int(state.epoch or 0)


class DecoderTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """Trains on the loss of a `Step`, summed over rows and divided by the answer tokens of the
    whole accumulated batch over all processes."""

    def __init__(
        self,
        model: Any,
        step: RowLosses,
        collate: Callable[[Sequence[Example]], Batch],
        arguments: TrainingArguments,
        examples: list[Example],
        eval_examples: list[Example] | None,
        callbacks: list[TrainerCallback],
        keep_checkpoints: int,
    ) -> None:
        self._step, self._keep = step, keep_checkpoints
        self._partial = False
        super().__init__(
            model=model,
            args=arguments,
            data_collator=collate,
            # The order ends with the filler where processes need one.
            train_dataset=[*examples, FILLER],
            # Sorted, so that little is padding; an average over tokens does not mind the order.
            eval_dataset=eval_examples
            and sorted(eval_examples, key=lambda example: example.length),
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # Our loss is divided by the tokens of the accumulated batch, not by the number of batches.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False

    def train_from(self, checkpoint: Path | None) -> None:
        """Train from the start, or from where `checkpoint` was saved to the end."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / _STATE))
            best = checkpoint.with_name(Path(state.best_model_checkpoint or checkpoint).name)
            if state.best_model_checkpoint not in (None, str(best)):
                # The run was moved, and transformers would forget which checkpoint was the best.
                state.best_model_checkpoint = str(best)
                state.save_to_json(str(checkpoint / _STATE))
            if state.global_step >= state.max_steps:
                # transformers would train one more step.
                self._load_from_checkpoint(str(best))
                self.state = state
                return
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """All weights, on the first process, where FSDP has cut them; every process calls it."""
        if not self.is_fsdp_enabled:
            return None
        weights: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model)
        return weights

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        loss = self._step.losses(model, inputs).sum() / num_items_in_batch
        self._require_finite("loss", loss.item())
        # Processes average their gradients; the tokens are counted over all of them.
        return loss * self.accelerator.num_processes

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # Before the optimizer's step: it would spoil the weights, and a checkpoint keep them.
        self._require_finite("gradient norm", float(norm))
        return norm

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {self.state.global_step + 1}, learning rate "
                f"{self._get_learning_rate():.3g}; what was saved in {self.args.output_dir} before "
                "is good; lower --learning-rate, or raise --warmup, and start again"
            )

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The loss per answer token over the evaluation data, whatever its batches."""
        started = time.monotonic()
        model = self.model_wrapped
        model.eval()
        loss, tokens = 0.0, 0
        for batch in self.get_eval_dataloader(eval_dataset):
            batch = self._prepare_inputs(batch)
            with torch.no_grad():
                losses = self._step.losses(model, batch)
            counts = batch["answer_tokens"]
            # Drops the examples that fill up the last batch of several processes.
            losses, counts = self.accelerator.gather_for_metrics((losses, counts))
            loss += losses.sum().item()
            tokens += int(counts.sum())
        model.train()
        seconds = time.monotonic() - started
        metrics = {f"{metric_key_prefix}_loss": loss / tokens, "eval_runtime": seconds}
        self.log(metrics)
        # It changes `self.control` in place.
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # Left to itself accelerate fills the last batches up with rows that were trained before.
        at_once = self.args.train_batch_size * self.args.world_size
        order = LengthOrder(
            [example.length for example in self.train_dataset[:-1]],
            at_once * self.args.gradient_accumulation_steps,
            self.args.seed,
            multiple=at_once if self.args.world_size > 1 else 1,
        )
        self.add_callback(_EpochSetter(order))
        return order

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder, _PARTIAL)) if self._partial else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As transformers does, into a folder that gets its name when it is whole."""
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        partial, final = run / _PARTIAL / name, run / name
        best = self.state.best_model_checkpoint
        self._partial = True
        try:
            with saving(final):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    if self.state.best_global_step == self.state.global_step:
                        best = str(final)
                    # transformers has noted the best one under its passing name.
                    self.state.best_model_checkpoint = best
                    self.state.save_to_json(str(partial / _STATE))
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    shutil.rmtree(final, ignore_errors=True)
                    partial.rename(final)
        finally:
            self._partial = False
            if self.args.should_save:
                shutil.rmtree(run / _PARTIAL, ignore_errors=True)
        self.state.best_model_checkpoint = best
        if self.args.should_save:
            saved = sorted(
                run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1])
            )
            for old in saved[: -self._keep]:
                if str(old) != best:
                    shutil.rmtree(old)
