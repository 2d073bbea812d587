"""One step of a decoder whose weights are sharded over the processes (FSDP), each with its part
of the rows. Prints the mean of the losses and the norm of every gradient, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from ps_sglang.training.train.attention import ATTENTION
from ps_sglang.training.train.base import BaseReader, FrozenBase
from ps_sglang.training.train.batches import AnswerTokens, Example, conditioned_batch
from ps_sglang.training.train.losses import CacheConditioned


def main(base: Path, decoder: Path, examples: list[Example]) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    frozen, model = (
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation=ATTENTION
        )
        for folder in (base, decoder)
    )
    mesh = dist.init_device_mesh("cpu", (world,))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    step = CacheConditioned(BaseReader(FrozenBase(frozen)))
    loss = step.losses(model.train(), conditioned_batch(examples[rank::world])).sum()
    loss.backward()
    dist.all_reduce(loss)
    gradients = {
        name: (value.grad.full_tensor() * world).norm().item()
        for name, value in model.named_parameters()
    }
    if rank == 0:
        print(json.dumps({"loss": loss.item(), "gradients": gradients}))
    dist.destroy_process_group()


def _example(row: dict[str, Any]) -> Example:
    answers = tuple(
        AnswerTokens(answer["start"], tuple(answer["ids"])) for answer in row["answers"]
    )
    return Example(tuple(row["prompt"]), answers)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), [_example(row) for row in json.loads(sys.argv[3])])
