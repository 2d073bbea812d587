"""The command line of the trainer. Must stay light: `--help` imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

from ps_sglang.parser import SettingsParser, user_path
from ps_sglang.training.train.settings import Dtype, Method, Schedule, TrainSettings

_DESCRIPTION: Final = """\
Train a decoder on the KV cache of a frozen base, so that it can decode from the base's prefill.

Per batch the base prefills the prompts without gradients; the decoder reads each prompt's last
token (with --tail, more of its last tokens) and the answer on that cache; the loss is on answer
tokens only."""

_EPILOG: Final = """\
data: JSON lines, a .parquet file, a folder of save_to_disk (DIR or DIR:split), or a Hugging Face
data set by name (org/name or org/name:split); one object a row
  {"prompt": "2 + 2 =", "completion": " 4"}
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
  Every assistant message is trained, each on the base's cache of all that came before it.
  "tools", "documents" and "chat_template_kwargs" beside "messages" go to the chat template, as a
  server's fields do. What a row holds and the rendered text does not show (tool calls, thoughts,
  names, a part of a text) is refused, unless --drop-unrendered is given. Columns about a row (an
  id, a source) are not read, and named.
  "weight": 0, "train": false or "loss": false in a message, or beside "messages" for the whole
  row, is not learned; marks that are not plainly 0 or 1 are refused.
  A table has every key in every row, in one order: its nulls are left out at every depth. Where a
  null or the order of keys matters, give JSON lines, or keep tools and arguments as JSON text.

result: a checkpoint folder with its prefillshare.json, to launch as a decoder of this base; with
  --lora-rank also the adapter alone in OUT/adapter, with its prefillshare.json. Launch that one:
  all adapters of a base share one worker, a whole model takes one of its own. Log and checkpoints
  are in OUT/training.

several processes or machines, with GPUs and without:
  accelerate launch --num_processes 2 -m ps_sglang.training.train --base B --data D --out O
  torchrun --nproc-per-node 2 -m ps_sglang.training.train --base B --data D --out O

exit status: 0 trained, 1 the run stopped, 2 refused before any work, 130 Ctrl-C

examples:
  ps-sglang train --base base --data train.jsonl --eval-data dev.jsonl --out ./math
  ps-sglang train --base ./qwen3 --data train.jsonl --out ./code --lora-rank 16 \\
      --dtype bfloat16 --batch-size 4 --accumulation 8 --gradient-checkpointing
  ps-sglang train --base base --data train.jsonl --out ./math --resume"""


# Flag -> (type, metavar, help); `%(default)s` is filled in from TrainSettings.
_FLAGS: Final[dict[str, tuple[Any, str, str]]] = {
    "base": (str, "MODEL", "the base: a checkpoint folder, a demo model or a hub id"),
    "data": (str, "DATA", "what to train on"),
    "out": (user_path, "DIR", "where the decoder goes; new, or that of the run to resume"),
    "eval_data": (str, "DATA", "measure the loss on it; the best checkpoint becomes the decoder"),
    "tool_call_parser": (str, "NAME", "SGLang's parser of the calls that the decoder will write"),
    "reasoning_parser": (str, "NAME", "SGLang's parser of the reasoning that it will write"),
    "tail": (int, "TOKENS", "prompt tokens before the last that the decoder reads itself, too"),
    "lora_rank": (int, "N", "train LoRA adapters of this rank; 0 trains all weights"),
    "lora_alpha": (int, "N", "LoRA's scale times its rank; 0 means twice the rank"),
    "max_length": (int, "TOKENS", "longest prompt and answer; 0 means the base's context"),
    "epochs": (float, "N", "passes over the data"),
    "steps": (int, "N", "optimizer steps; wins over --epochs unless 0"),
    "batch_size": (int, "N", "examples a step and process"),
    "accumulation": (int, "N", "batches whose gradients make one step"),
    "learning_rate": (float, "X", "peak learning rate"),
    "warmup": (float, "PART", "part of the steps in which the learning rate rises"),
    "weight_decay": (float, "X", "AdamW's weight decay"),
    "max_grad_norm": (float, "X", "norm that gradients are clipped to"),
    "seed": (int, "N", "seed of the order of the data and of LoRA's start"),
    "keep_kv_gb": (
        float,
        "GB",
        "keep so much base KV between epochs, in each process; 0: none",
    ),
    "keep_kv_dir": (user_path, "DIR", "keep base KV here, for later runs too, not in memory"),
    "checkpoint_steps": (int, "N", "steps between checkpoints (and evaluations); 0: each epoch"),
    "keep_checkpoints": (int, "N", "how many of the last checkpoints stay, beside the best"),
    "log_steps": (int, "N", "steps between lines of progress"),
}
_CHOICES: Final[dict[str, tuple[Any, str]]] = {
    "method": (Method, "`full` is the baseline: ordinary fine-tuning on the model's own KV"),
    "schedule": (Schedule, "how the learning rate goes after the warmup"),
    "dtype": (Dtype, "what the base and the decoder compute in; weights stay float32"),
}
_SWITCHES: Final = {
    "skip_long": "leave out answers that do not fit, instead of cutting them or refusing",
    "drop_unrendered": "train without what a row holds and its rendered text does not show",
    "gradient_checkpointing": "compute activations twice instead of keeping them",
    "resume": "go on from the last checkpoint in --out",
}


def parse_args(argv: Sequence[str] | None) -> TrainSettings:
    """Raises UsageError that says what is wrong with which argument."""
    return TrainSettings(**vars(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = SettingsParser("ps-sglang train", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_settings(TrainSettings, _FLAGS, _CHOICES, _SWITCHES)
    return parser
