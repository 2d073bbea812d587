"""Trains until the weights of `checkpoint-4` are written and its optimizer is not: then SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from ps_sglang.training.train.trainer import DecoderTrainer
from tests.training.train.train_setup import Run

save_optimizer = DecoderTrainer._save_optimizer_and_scheduler


def save_or_die(self: Any, folder: str) -> None:
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save_optimizer(self, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests do: the same sums to the last bit
    DecoderTrainer._save_optimizer_and_scheduler = save_or_die
    Run(Path(sys.argv[1]), Path(sys.argv[2])).train(**json.loads(sys.argv[3]))
