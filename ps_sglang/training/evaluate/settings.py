"""What an evaluation is asked to do. Defaults live here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from ps_sglang.training.settings import Ranges, refuse, unfit_values

Split = Literal["dev", "test"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """One decoder on one task.

    `share` holds ratios, 0 to 1: of a prompt of n tokens the first round(share * (n - 1 - tail))
    have their KV from the base, the decoder reads the rest. 0 is an ordinary model, 1 without a
    tail what a cluster serves. Empty with `through`: only the cluster is asked.

    `count` 0 means all items of the split. `system` is what the rows call the decoder, by default
    its name; `seed` that of its training, and `tail` its tail in tokens, by default what its
    manifest says. `batch_tokens` bounds a batch's prompts and answers together. `at_once` is the
    number of requests to the cluster.
    """

    task: str
    base: str
    decoder: str
    share: tuple[float, ...] = (1.0,)
    split: Split = "test"
    count: int = 0
    few_shot: int = 0
    system: str = ""
    seed: int | None = None
    tail: int | None = None
    dtype: Dtype = "float32"
    batch_tokens: int = 8192
    through: str = ""
    at_once: int = 4
    out: Path | None = None
    answers: Path | None = None
    figure: Path | None = None
    record: bool = False
    allow_unverified: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError naming every value that cannot be."""
        wrong = unfit_values(self, _RANGES, _CHOICES)
        wrong += [f"--share {s:g}: must be 0 to 1" for s in self.share if not 0 <= s <= 1]
        if len(set(self.share)) < len(self.share):
            wrong.append(f"--share {' '.join(f'{s:g}' for s in self.share)}: one of them twice")
        if not self.share and not self.through:
            wrong.append("--share without a value: needs --through, or nothing is evaluated")
        if self.record and 1 not in self.share:
            wrong.append("--record: needs --share 1, which is what a cluster serves")
        if self.tail is not None and self.tail < 0:
            wrong.append(f"--tail {self.tail}: must be at least 0")
        if self.tail and self.through:
            wrong.append(f"--tail {self.tail}: no cluster serves a tail yet; leave out --through")
        if self.record and self.tail is not None:
            wrong.append("--record: records the score at the decoder's own tail; leave out --tail")
        if self.figure and not self.share:
            wrong.append(f"--figure {self.figure}: needs a value of --share")
        refuse(wrong)


_CHOICES: Final = {"split": get_args(Split), "dtype": get_args(Dtype)}
_RANGES: Final[Ranges] = (
    (("count", "few_shot"), "at least 0", lambda value: value >= 0),
    (("batch_tokens", "at_once"), "at least 1", lambda value: value >= 1),
)
