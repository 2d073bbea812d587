"""What a cache-conditioned step costs against a full fine-tuning step on the same batch.

    python -m benchmarks.train_cost [--quick]

Three ways at two lengths of prompt and answer: full fine-tuning, cache-conditioned, and
cache-conditioned with the base's KV kept from an earlier epoch. A step is everything: the base's
prefill, forward, backward, clipping, AdamW. Every way runs in a fresh process, for its peak
memory; rounds of all ways follow each other, so that what else the machine does hits all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.report import count, parser, run, save, spread
from ps_sglang.models import resolve

FULL, CONDITIONED, KEPT = "full", "cache-conditioned", "kept-kv"
WAYS: Final = (FULL, CONDITIONED, KEPT)
ROWS: Final = 4
# At 4 : 1, of the time of a full fine-tuning step.
BARS: Final = {CONDITIONED: 0.55, KEPT: 0.35}
_KEEP_BYTES: Final = 4_000_000_000
_STEPS: Final = 3


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row's prompt and answer."""

    prompt: int
    answer: int

    def __str__(self) -> str:
        return f"{self.prompt // self.answer}:1"


LENGTHS: Final = (Lengths(320, 80), Lengths(160, 160))


@dataclass(frozen=True)
class Cost:
    """The fastest step of a process, in seconds, and the process's peak memory in bytes."""

    seconds: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save. Exit status 1 if a bar is missed."""
    options = parser("train_cost", __doc__, "one process each, in some minutes")
    options.add_argument("--rounds", type=count, help="processes each (default 5, with --quick 1)")
    args = options.parse_args(argv)
    return run("train_cost", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    rounds = args.rounds or (1 if args.quick else 5)
    base = resolve("base").path
    by_lengths: dict[str, Any] = {}
    for lengths in LENGTHS:
        costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
        for number in range(1, rounds + 1):
            for way in WAYS:
                costs[way].append(cost := in_a_process(way, lengths, base))
                print(
                    f"{lengths} round {number}/{rounds}: {way} {cost.seconds:.2f} s, "
                    f"{cost.peak_bytes / 1e9:.2f} GB",
                    file=sys.stderr,
                    flush=True,
                )
        by_lengths[str(lengths)] = figures(lengths, costs)
    for name, case in by_lengths.items():
        print_figures(name, case)
    together = {"rows": ROWS, "dtype": "float32", "lengths": by_lengths}
    save("train_cost", together, quick=args.quick, publish=args.publish)
    missed = misses(by_lengths)
    print("\n".join(missed) or "all bars met")
    return 1 if missed else 0


def in_a_process(way: str, lengths: Lengths, base: Path) -> Cost:
    """`measure` in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, way, lengths, base).result()


def measure(way: str, lengths: Lengths, base: Path) -> Cost:
    """Some steps of one way on one batch; the first, which fills caches, is not counted."""
    import torch

    step = training_step(way, lengths, base, torch.device("cpu"))
    step()
    seconds = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(min(seconds), peak)


def training_step(way: str, lengths: Lengths, base: Path, device: Any) -> Callable[[], float]:
    """A function that does one whole step and returns the loss per answer token."""
    import torch

    from ps_sglang.training.train.base import BaseReader
    from ps_sglang.training.train.batches import (
        AnswerTokens,
        Example,
        conditioned_batch,
        full_batch,
    )
    from ps_sglang.training.train.decoder import load_pair
    from ps_sglang.training.train.kv_store import MemoryKvStore
    from ps_sglang.training.train.losses import CacheConditioned, Full, RowLosses
    from ps_sglang.training.train.settings import TrainSettings

    settings = TrainSettings(base="base", data="", out=Path("unused"))
    decoder, frozen = load_pair(base, settings, device)
    decoder.train()
    source = torch.Generator().manual_seed(0)
    # Which tokens is all the same; a tiny model of a test has few.
    drawn = torch.randint(3, 500, (ROWS, lengths.prompt + lengths.answer), generator=source)
    examples = [
        Example(row[: lengths.prompt], (AnswerTokens(lengths.prompt, row[lengths.prompt :]),))
        for row in map(tuple, drawn.tolist())
    ]
    step: RowLosses
    if way == FULL:
        # The baseline has one model; it must not pay for the base's memory.
        del frozen
        step, batch = Full(), full_batch(examples)
    else:
        kept = MemoryKvStore(_KEEP_BYTES) if way == KEPT else None
        step, batch = CacheConditioned(BaseReader(frozen, kept)), conditioned_batch(examples)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-5, fused=True)

    def run() -> float:
        loss = step.losses(decoder, batch).sum() / (ROWS * lengths.answer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return run


def figures(lengths: Lengths, costs: dict[str, list[Cost]]) -> dict[str, Any]:
    """Seconds and bytes of every way, and both as a part of full fine-tuning's."""
    seconds = {way: [cost.seconds for cost in costs[way]] for way in WAYS}
    peaks = {way: max(cost.peak_bytes for cost in costs[way]) for way in WAYS}
    median = {way: statistics.median(seconds[way]) for way in WAYS}
    return {
        "prompt_tokens": lengths.prompt,
        "answer_tokens": lengths.answer,
        "seconds": {way: spread(seconds[way]) for way in WAYS},
        "peak_bytes": peaks,
        "time_of_full": {way: median[way] / median[FULL] for way in BARS},
        "memory_of_full": {way: peaks[way] / peaks[FULL] for way in BARS},
    }


def misses(by_lengths: dict[str, Any]) -> list[str]:
    """A line for each bar that is missed at 4 : 1."""
    ratios = by_lengths[str(LENGTHS[0])]["time_of_full"]
    return [
        f"bar missed: {way} takes {ratios[way]:.2f}x a full fine-tuning step, more than {bar}x"
        for way, bar in BARS.items()
        if ratios[way] > bar
    ]


def print_figures(name: str, case: dict[str, Any]) -> None:
    """One line a way."""
    print(f"prompt : answer {name} ({case['prompt_tokens']} and {case['answer_tokens']} tokens)")
    for way in WAYS:
        seconds, peak = case["seconds"][way], case["peak_bytes"][way]
        ratio = f", {case['time_of_full'][way]:.2f}x the time" if way in BARS else ""
        print(
            f"  {way:<18} {seconds['median']:.2f} s a step "
            f"({seconds['min']:.2f} to {seconds['max']:.2f}), {peak / 1e9:.2f} GB{ratio}"
        )


if __name__ == "__main__":
    sys.exit(main())
