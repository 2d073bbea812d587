"""Our settings as transformers' TrainingArguments."""

from __future__ import annotations

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from ps_sglang.training.train.settings import TrainSettings


def training_arguments(settings: TrainSettings, *, evaluate: bool) -> TrainingArguments:
    """`evaluate`: measure the loss at every checkpoint, and keep the best one."""
    interval = "steps" if settings.checkpoint_steps else "epoch"
    on_cpu = not torch.cuda.is_available()
    schedule = settings.schedule
    return TrainingArguments(
        output_dir=str(settings.checkpoints),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SchedulerType(
            "constant_with_warmup" if schedule == "constant" else schedule
        ),
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        # Weights that are float32 compute in bfloat16 under autocast.
        bf16=settings.dtype == "bfloat16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        # Our batches name more than the model's own arguments.
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=settings.log_steps,
        logging_first_step=True,
        # A loss that is not finite ends the run; it must not be smoothed away.
        logging_nan_inf_filter=False,
        eval_strategy=interval if evaluate else "no",
        eval_steps=settings.checkpoint_steps or None,
        save_strategy=interval,
        save_steps=settings.checkpoint_steps or 500,
        load_best_model_at_end=evaluate,
        metric_for_best_model="eval_loss" if evaluate else None,
        greater_is_better=False if evaluate else None,
        # Progress has lines of its own.
        disable_tqdm=True,
        report_to="none",
    )
