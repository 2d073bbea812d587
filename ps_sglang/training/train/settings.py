"""What a training run is asked to do. Defaults live here and nowhere else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from ps_sglang.contract.manifest import parser_problem
from ps_sglang.training.settings import Ranges, refuse, unfit_values

Method = Literal["cache-conditioned", "full"]
Dtype = Literal["float32", "bfloat16"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run. Lengths in tokens, sizes in examples, intervals in optimizer steps.

    `tail` is how many prompt tokens the decoder reads before the boundary token; with 0 it reads
    none. `lora_rank` 0 trains all weights. `steps` 0 means `epochs`. `checkpoint_steps` 0 means
    once an epoch. `max_length` 0 means the base's context.
    """

    base: str
    data: str
    out: Path
    eval_data: str = ""
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    method: Method = "cache-conditioned"
    tail: int = 0
    lora_rank: int = 0
    lora_alpha: int = 0
    max_length: int = 0
    skip_long: bool = False
    drop_unrendered: bool = False
    epochs: float = 1.0
    steps: int = 0
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: Schedule = "linear"
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    keep_kv_gb: float = 0.0
    keep_kv_dir: Path | None = None
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    log_steps: int = 10
    resume: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError naming every value that cannot be."""
        wrong = unfit_values(self, _RANGES, _CHOICES)
        if self.lora_alpha and not self.lora_rank:
            wrong.append(f"--lora-alpha {self.lora_alpha}: needs --lora-rank")
        if self.keep_kv_dir and not self.keep_kv_gb:
            wrong.append(f"--keep-kv-dir {self.keep_kv_dir}: needs --keep-kv-gb, its bound")
        if self.keep_kv_gb and self.method == "full":
            wrong.append(f"--keep-kv-gb {self.keep_kv_gb:g}: full fine-tuning reads no base KV")
        if self.tail and self.method == "full":
            wrong.append(f"--tail {self.tail}: full fine-tuning reads the whole prompt itself")
        parsers = self.tool_call_parser or None, self.reasoning_parser or None
        if problem := parser_problem(*parsers):
            wrong.append(problem)
        refuse(wrong)

    @property
    def checkpoints(self) -> Path:
        """Where the run keeps its state, log and checkpoints."""
        return self.out / "training"

    @property
    def alpha(self) -> int:
        return self.lora_alpha or 2 * self.lora_rank

    def curve(self) -> dict[str, str | int | float | bool]:
        """The settings that the loss curve depends on: what a resumed run may not change, and
        what a manifest tells of how the decoder was made."""
        return {k: v for k, v in asdict(self).items() if k not in _NOT_OF_THE_CURVE}


_NOT_OF_THE_CURVE: Final = (
    # Known by fingerprint and digest, not by where they lie.
    *("base", "data", "eval_data", "out"),
    # For those who serve it.
    *("tool_call_parser", "reasoning_parser"),
    *("gradient_checkpointing", "keep_kv_gb", "keep_kv_dir"),
    # What it would drop is refused without it.
    "drop_unrendered",
    *("keep_checkpoints", "log_steps", "resume"),
)
_CHOICES: Final = {
    "method": get_args(Method),
    "dtype": get_args(Dtype),
    "schedule": get_args(Schedule),
}
_COUNTS = ("batch_size", "accumulation", "keep_checkpoints", "log_steps")
_MAY_BE_ZERO = (
    *("tail", "lora_rank", "lora_alpha"),
    *("max_length", "steps", "checkpoint_steps", "seed"),
)
_RANGES: Final[Ranges] = (
    (_COUNTS, "at least 1", lambda value: value >= 1),
    (_MAY_BE_ZERO, "at least 0", lambda value: value >= 0),
    (("epochs", "learning_rate", "max_grad_norm"), "above 0", lambda value: value > 0),
    (("weight_decay", "keep_kv_gb"), "at least 0", lambda value: value >= 0),
    (("warmup",), "a part of the steps, 0 to 1", lambda value: 0 <= value < 1),
)
