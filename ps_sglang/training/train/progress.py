"""What a person sees of a run, and the log that scripts read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ps_sglang.progress import OnProgress, duration


class TrainingProgress(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """A line at every log: step, loss, tokens/s, time left; and `log.jsonl` with the same rows.

    `tokens` are those of one epoch, prompts and answers, so that rates need no count of batches.
    """

    def __init__(self, log: Path, tokens: int, on_progress: OnProgress) -> None:
        self._log, self._tokens, self._on_progress = log, tokens, on_progress
        self._began, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            # A resumed run goes on from its checkpoint: what came after it is trained again.
            self._log.write_text("".join(json.dumps(row) + "\n" for row in state.log_history))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        with self._log.open("a") as file:
            file.write(json.dumps(state.log_history[-1]) + "\n")
        if "eval_loss" in logs:
            self._on_progress(f"step {state.global_step}: evaluation loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            self._on_progress(self._line(state, logs))

    def _line(self, state: Any, logs: Any) -> str:
        done = state.global_step - self._first
        seconds = (time.monotonic() - self._began) / done
        # Not of the epochs to come: a run may end within its first.
        epochs_a_step = state.epoch / state.global_step
        rate = self._tokens * epochs_a_step / seconds
        left = (state.max_steps - state.global_step) * seconds
        return (
            f"step {state.global_step}/{state.max_steps}: loss {logs['loss']:.4f}, "
            f"{rate:,.0f} tokens/s, {duration(left)} left"
        )


def tensorboard(folder: Path) -> list[TrainerCallback]:
    """TensorBoard's writer if it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return []
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(log_dir=str(folder)))]
