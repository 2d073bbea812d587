"""What adapters cost in a forward on a CPU: ours, SGLang's `torch_native`, and merged weights.

    python -m benchmarks.lora_step [--quick]

Decode steps of 1, 4 and 16 requests, 64 tokens of context each, over up to 16 adapters of the demo
(rank 8, all seven projections; 0 are requests for the base), and the prefill of one prompt. A
forward is everything: preparing the batch, the model, sampling. Merged weights are the base without
LoRA layers, which takes what any merged model takes. All systems are loaded at once and take turns;
a ratio is between the medians of one round. Also: the time to load an adapter and to fill a slot,
and their size.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.one_batch import AdapterCosts, Forward, OneBatch, one_batch
from benchmarks.report import count, parser, run, save, spread, timed
from ps_sglang.launch.environment import threads
from ps_sglang.launch.spec import Role
from ps_sglang.models import resolve
from ps_sglang.models.demo import ADAPTERS
from ps_sglang.models.stand_in import PROJECTIONS

MERGED, STOCK, OURS = "merged", "torch_native", "grouped"
BAR: Final = 1.3
BAR_CASE: Final = "decode 16 over 4"
_ADAPTERS: Final = 16
_RANK: Final = 8
_CONTEXT: Final = 64
_PROMPT: Final = 512
_KV_TOKENS: Final = 4096


@dataclass(frozen=True)
class Case:
    """One forward that is measured, `steps` times a round; none is a prefill."""

    name: str
    forward: Forward
    steps: int | None = None


def cases(steps: int) -> list[Case]:
    """Every shape of batch."""
    shapes = ((1, 1), (4, 1), (4, 4), (16, 0), (16, 1), (16, 4), (16, 16))
    return [
        *(
            Case(f"decode {requests} over {adapters}", Forward(requests, _CONTEXT, adapters), steps)
            for requests, adapters in shapes
        ),
        Case(f"prefill {_PROMPT} tokens", Forward(1, _PROMPT, 1)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save. Exit status 1 if the bar is missed."""
    options = parser("lora_step", __doc__, "2 rounds, in under 3 minutes")
    options.add_argument("--rounds", type=count, help="rounds (default 7, with --quick 2)")
    args = options.parse_args(argv)
    return run("lora_step", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    rounds = args.rounds or (2 if args.quick else 7)
    figures = measure(cases(8), rounds, timed())
    save("lora_step", figures, quick=args.quick, publish=args.publish)
    ratios = figures["times_merged"][BAR_CASE]
    print(
        f"lora_step: 16 requests over 4 adapters {ratios[OURS]['median']:.2f}x a step of merged "
        f"weights, {STOCK} {ratios[STOCK]['median']:.2f}x"
    )
    return int(ratios[OURS]["median"] > BAR)


def measure(
    wanted: Sequence[Case], rounds: int, say: Callable[[str], None], cores: int | None = None
) -> dict[str, Any]:
    """Seconds and ratios to merged weights of every case, and what adapters cost.

    `cores` is how many threads compute, all cores unless given.
    """
    with ExitStack() as stack:
        systems = {
            name: stack.enter_context(
                one_batch(
                    resolve("base").path, _flags(name), _KV_TOKENS, cores or threads(Role.PREFILL)
                )
            )
            for name in (MERGED, STOCK, OURS)
        }
        costs = {name: systems[name].load(_adapters()) for name in (STOCK, OURS)}
        say("loaded")
        taken: dict[str, dict[str, list[float]]] = {
            case.name: {name: [] for name in systems} for case in wanted
        }
        for number in range(rounds + 1):  # the first is for caches
            for case in wanted:
                for name in random.sample(list(systems), len(systems)):
                    seconds = _seconds(systems[name], case, name)
                    if number:
                        taken[case.name][name].append(seconds)
            say(f"round {number}/{rounds}")
    return figures(taken, costs)


def figures(
    taken: Mapping[str, Mapping[str, Sequence[float]]], costs: Mapping[str, AdapterCosts]
) -> dict[str, Any]:
    """What is saved, of the seconds by case and system, one a round."""
    ratios = {
        case: {
            name: spread([one / merged for one, merged in zip(rows, by[MERGED], strict=True)])
            for name, rows in by.items()
            if name != MERGED
        }
        for case, by in taken.items()
    }
    for case, by in ratios.items():
        print(
            f"{case:20} merged {statistics.median(taken[case][MERGED]) * 1e3:6.1f} ms, "
            + ", ".join(f"{name} {row['median']:.2f}x" for name, row in by.items())
        )
    return {
        "rank": _RANK,
        "context_tokens": _CONTEXT,
        "times_merged": ratios,
        "milliseconds": {
            case: {name: spread([1e3 * one for one in rows]) for name, rows in by.items()}
            for case, by in taken.items()
        },
        "adapter": {
            name: {
                "load_milliseconds": spread([1e3 * one for one in cost.load_s]),
                "fill_milliseconds": spread([1e3 * one for one in cost.fill_s]),
                "loaded_mb": cost.loaded_bytes / 1e6,
                "slot_mb": cost.slot_bytes / 1e6,
            }
            for name, cost in costs.items()
        },
    }


def _seconds(system: OneBatch, case: Case, name: str) -> float:
    forward = case.forward
    if name == MERGED:
        forward = Forward(**{**asdict(forward), "adapters": 0})
    if case.steps is None:
        return system.prefill(forward)
    return statistics.median(system.decode(forward, case.steps))


def _flags(name: str) -> list[str]:
    if name == MERGED:
        return []
    return [
        "--enable-lora", "--lora-backend", name, "--max-lora-rank", str(_RANK),
        "--max-loras-per-batch", str(_ADAPTERS + 1), "--lora-target-modules", *PROJECTIONS,
    ]  # fmt: skip


def _adapters() -> list[tuple[str, Any]]:
    folders = sorted(path for path in ADAPTERS.iterdir() if path.is_dir())
    return [(f"adapter-{number}", folders[number % len(folders)]) for number in range(_ADAPTERS)]


if __name__ == "__main__":
    sys.exit(main())
