"""The command line of the benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.lora.systems import STOCK as STOCK_LORA
from benchmarks.report import OUT
from benchmarks.sessions.workload import KINDS, TEXT, Shape
from benchmarks.studies.agents.models import MODELS
from benchmarks.studies.agents.study import Study
from benchmarks.studies.agents.systems import OURS, STOCK_PD, SYSTEMS, WHOLE_MODELS

# From idle to past saturation, of what stock does when all sessions come at once.
PARTS: Final = (0.4, 0.7, 1.0, 2.0)
_QUICK_PARTS: Final = (0.7,)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.agents",
        description=(
            "A study, which takes hours: sessions in which several models take turns over one "
            "growing context, on ps_sglang, on stock SGLang (prefill/decode workers for each "
            "model; a plain server for each) and on ps_sglang with a prefill worker for each "
            "model. --quick gives an impression in minutes."
        ),
    )
    add = parser.add_argument
    add("--workload", choices=(*KINDS, TEXT), default="react", help="default react")
    add("--decoders", type=int, default=3, metavar="N", help="models that take turns (default 3)")
    add("--model", choices=MODELS, default="small", help="shape of their weights (default small)")
    add(
        "--systems", nargs="+", choices=SYSTEMS, default=[*WHOLE_MODELS],
        help=f"default {' '.join(WHOLE_MODELS)}; the others serve adapters of one base",
    )  # fmt: skip
    add("--sessions", type=int, default=24, metavar="N", help="under each load (default 24)")
    add(
        "--parts", type=float, nargs="+", default=[*PARTS], metavar="P",
        help="rates as parts of what stock does when all sessions come at once, which every "
        f"system has to do first (default {' '.join(map(str, PARTS))})",
    )  # fmt: skip
    add(
        "--rates", type=float, nargs="+", default=[], metavar="R",
        help="sessions/s, instead of --parts",
    )  # fmt: skip
    add(
        "--concurrency", type=int, nargs="+", default=[], metavar="C",
        help="numbers of sessions at a time, instead of --parts",
    )  # fmt: skip
    add("--repeats", type=int, default=3, metavar="R", help="clean starts (default 3)")
    add(
        "--pool", type=int, default=65536, metavar="TOKENS",
        help="KV memory of one worker of one model (default 65536)",
    )  # fmt: skip
    add("--system-tokens", type=int, metavar="N", help="of the prompt that all sessions share")
    add("--steps", type=int, metavar="N", help="of each agent's loop")
    add("--observation-tokens", type=int, metavar="N", help="mean length of a tool's result")
    add(
        "--output-tokens", type=int, nargs=2, metavar=("LEAST", "MOST"),
        help="few of them make the workload heavy in prompts",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="default 0")
    add(
        "--results", type=Path, default=OUT, metavar="FOLDER",
        help="where studies, step costs and figures are kept (default out)",
    )  # fmt: skip
    add("--label", default="", metavar="WORD", help="to keep it beside the study of the same name")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--quick", action="store_true",
        help="short sessions on ps_sglang and stock_pd, in under 8 minutes; saves nothing",
    )  # fmt: skip
    part.add_argument(
        "--report", action="store_true",
        help="measure nothing: draw figures and table again from what is kept",
    )  # fmt: skip
    part.add_argument(
        "--publish", action="store_true",
        help="measure nothing: write the reference in benchmarks/results from what is kept",
    )  # fmt: skip
    return parser.parse_args(argv)


def study_of(args: argparse.Namespace) -> Study:
    """What the options ask for."""
    # Stock first: by what it does the rates are chosen.
    systems = sorted(args.systems, key=lambda name: (name != STOCK_PD, name != STOCK_LORA))
    parts = _QUICK_PARTS if args.quick else tuple(args.parts)
    return Study(
        shape=_shape(args),
        model=args.model,
        systems=(STOCK_PD, OURS) if args.quick else tuple(systems),
        count=min(args.sessions, 8) if args.quick else args.sessions,
        rates=tuple(args.rates),
        parts=() if args.rates or args.concurrency else parts,
        concurrency=tuple(args.concurrency),
        repeats=1 if args.quick else args.repeats,
        pool=args.pool,
        seed=args.seed,
    )


def _shape(args: argparse.Namespace) -> Shape:
    shape = Shape(kind=args.workload, decoders=args.decoders)
    if args.quick:
        # Heavy in prompts, as agents are, and a third as long.
        shape = replace(
            shape, steps=3, trials=1, task_tokens=(64, 128), observation_most=1024,
            output_tokens=(4, 12), pause=0.1,
        )  # fmt: skip
    lengths = {
        "steps": args.steps,
        "system_tokens": args.system_tokens,
        "observation_tokens": args.observation_tokens,
        "output_tokens": tuple(args.output_tokens) if args.output_tokens else None,
    }
    return replace(shape, **{name: value for name, value in lengths.items() if value is not None})
