"""Two processes through accelerate, on the CPU (gloo)."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ps_sglang.training.train.attention import ATTENTION
from ps_sglang.training.train.base import BaseReader, FrozenBase
from ps_sglang.training.train.batches import AnswerTokens, Example, conditioned_batch
from ps_sglang.training.train.losses import CacheConditioned
from tests.training.train.train_setup import Run, conversations, write_rows

# Several processes that import torch and transformers, on as few cores as there are.
pytestmark = pytest.mark.timeout(300)

STEPS = 9
SHARDED_STEP = Path(__file__).parent / "programs" / "sharded_step.py"


@pytest.mark.parametrize("flags", [(), ("--lora-rank", "4")], ids=["all weights", "lora"])
def test_two_processes_have_the_loss_of_one(
    tiny: dict[str, Path], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Half of the batch each; 9 steps of 8 rows in a second epoch, 7 evaluation rows."""
    dev = write_rows(tmp_path / "dev.jsonl", conversations(7, seed=2))
    one, two = (Run(tmp_path / name, tiny["base"]) for name in ("one", "two"))
    one.train(
        steps=STEPS, batch_size=8, eval_data=str(dev), lora_rank=int(flags[1]) if flags else 0
    )
    two.settings["steps"] = STEPS
    launched(two, "--eval-data", str(dev), *flags)
    for key in ("loss", "grad_norm", "eval_loss"):
        wanted = one.log(key)
        assert two.log(key) == pytest.approx(wanted, rel=1e-4), key
        assert wanted
    other = load_file(two.out / "model.safetensors")
    for name, weights in load_file(one.out / "model.safetensors").items():
        # AdamW divides small gradients by their size, so rounding moves single weights some 1e-6;
        # a filler that weighed something would move them by 1e-4.
        torch.testing.assert_close(other[name], weights, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("rows", [23, 17])
def test_rows_that_the_batch_does_not_divide(
    tiny: dict[str, Path], tmp_path: Path, rows: int
) -> None:
    """The last step has 7 rows, or 1 and a process without any: what fills up weighs nothing."""
    one, two = (Run(tmp_path / name, tiny["base"], rows=rows) for name in ("one", "two"))
    # AdamW divides small gradients by their size, so rounding moves single weights by some 1e-6;
    # a filler that weighed something would move them by 1e-4.
    settings: dict[str, Any] = {"steps": 6, "learning_rate": 1e-4}
    two.settings |= settings
    one.train(**settings, batch_size=8)
    launched(two)
    assert two.log() == pytest.approx(one.log(), rel=1e-5)
    other = load_file(two.out / "model.safetensors")
    for name, weights in load_file(one.out / "model.safetensors").items():
        torch.testing.assert_close(other[name], weights, rtol=0, atol=1e-5, msg=name)


def test_accelerate_that_starts_one_process_is_refused(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    """On a CPU it takes --num_processes 2 and starts one."""
    run = Run(tmp_path / "run", tiny["base"])
    arguments = [x for k, v in run.settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "ps_sglang.training.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode != 0
    assert "asked for several processes and started one" in done.stderr
    assert not run.out.exists()


def launched(run: Run, *flags: str) -> None:
    settings = {**run.settings, "batch_size": 4}
    arguments = [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]
    said = processes("-m", "ps_sglang.training.train", *arguments, *flags).stderr
    # Only the first process speaks.
    assert said.count("done: decoder in") == 1, said[-3000:]


def processes(*program: str) -> subprocess.CompletedProcess[str]:
    """Two of them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *program]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_sharded_weights_have_the_gradients_of_whole_ones(tiny: dict[str, Path]) -> None:
    """FSDP itself: accelerate does not turn it on without a GPU. With gradient checkpointing."""
    chance = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(chance.randrange(3, 400) for _ in range(count))

    rows = [
        Example(tokens(n), (AnswerTokens(n, tokens(m)),)) for n, m in ((10, 5), (12, 8), (4, 6))
    ]
    rows.append(Example(tokens(30), (AnswerTokens(3, tokens(4)), AnswerTokens(30, tokens(9)))))
    base, decoder = (
        AutoModelForCausalLM.from_pretrained(
            tiny[name], dtype=torch.float64, attn_implementation=ATTENTION
        )
        for name in ("base", "a")
    )
    loss = CacheConditioned(BaseReader(FrozenBase(base))).losses(decoder, conditioned_batch(rows))
    loss.sum().backward()
    folders = (str(tiny["base"]), str(tiny["a"]))
    sharded = json.loads(
        processes(str(SHARDED_STEP), *folders, json.dumps([asdict(row) for row in rows])).stdout
    )
    assert sharded["loss"] == pytest.approx(loss.sum().item(), rel=1e-9)
    wanted = {name: value.grad.norm().item() for name, value in decoder.named_parameters()}
    assert sharded["gradients"] == pytest.approx(wanted, rel=1e-9)
