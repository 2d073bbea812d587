"""LoRA decoders beside stock SGLang multi-LoRA: agents that take turns over one growing context.

    python -m benchmarks.lora [--quick] [--adapters N ...] [--latency N ...] [--repeats R]

Random adapters (rank 8, all projections) of the demo's base are served by a prefill and a decode
worker, by one worker, and by one stock server with `--enable-lora` and RadixAttention. All have the
same cores and the same KV tokens. Stock gets our LoRA backend, scheduling policy and CPU platform,
as its own do not run or are slower here: see `benchmarks.lora.systems`.

The same sessions come under each load: 8 at a time (16 from 16 adapters on), which is more than any
system keeps up with, and for --latency at parts of the rate that stock then did. Lengths are
forced. Every system is started clean for each repeat and they take turns. Tokens are counted by the
workers' metrics; a page is a token. PSS is of all processes, after all loads. `decode step` is 16
requests over 4 adapters against merged weights (`benchmarks.lora_step`).

What is measured is kept in out/lora.json, by N, beside what was measured of other N.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from benchmarks import lora_step
from benchmarks.lora.adapters import write_adapters
from benchmarks.lora.starts import Plan, measure_all
from benchmarks.lora.summary import last_line, lines, summary
from benchmarks.lora.systems import OURS, STOCK
from benchmarks.lora.workload import QUICK, SHAPE, count_for, longest, trace, turns_of
from benchmarks.report import OUT, REFERENCE, count, parser, run, saved, timed, to_json, write
from ps_sglang.models import resolve
from ps_sglang.training.machine import environment

_ADAPTERS: Final = (1, 2, 4, 8, 16, 64)
_LATENCY: Final = (4,)
_HEADLINE: Final = 4
_PARTS: Final = (0.6, 0.9)
_QUICK_PARTS: Final = (0.7,)
_TOKENS_PER_SESSION: Final = 9216
_MANY: Final = 16
_FILE: Final = "lora.json"
_COMMAND: Final = "python -m benchmarks.lora"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 a session failed or a system did not start, 2 refused."""
    # As Ctrl-C does, it leaves every block, and so ends what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parser(
        "lora", __doc__, "4 adapters, one start, without one worker, in under 8 minutes"
    )
    options.add_argument(
        "--adapters", type=count, nargs="+", metavar="N",
        help=f"numbers of adapters (default {' '.join(map(str, _ADAPTERS))}, with --quick 4)",
    )  # fmt: skip
    options.add_argument(
        "--latency", type=count, nargs="*", metavar="N",
        help="those that also get sessions at fixed rates (default 4)",
    )  # fmt: skip
    options.add_argument("--repeats", type=count, help="clean starts (default 3, with --quick 1)")
    args = options.parse_args(argv)
    return run("lora", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    on_progress = timed()
    on_progress("a decode step against merged weights")
    (case,) = (case for case in lora_step.cases(8) if case.name == lora_step.BAR_CASE)
    rounds = 2 if args.quick else 5
    steps = lora_step.measure([case], rounds, on_progress)["times_merged"][case.name]
    numbers = sorted(set(args.adapters or ((_HEADLINE,) if args.quick else _ADAPTERS)))
    latency = _LATENCY if args.latency is None else args.latency
    plans = [_plan(n, latency=n in latency, quick=args.quick) for n in numbers]
    starts: dict[int, list[dict[str, Any]]] = {n: [] for n in numbers}
    base = resolve("base").path
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(base, Path(folder), max(numbers), on_progress)
        repeats = args.repeats or (1 if args.quick else 3)
        for plan, row in measure_all(repeats, plans, base, adapters, on_progress):
            starts[plan.adapters].append(row)
    runs = (run for rows in starts.values() for row in rows for run in row["runs"])
    if failures := [failure for run in runs for failure in run["failures"]]:
        print(f"lora: {len(failures)} sessions failed: {failures[0]}", file=sys.stderr)
        return 1
    found = {
        plan.adapters: {
            "environment": environment(),
            "plan": asdict(plan),
            "decode_step": steps,
            **summary(starts[plan.adapters]),
        }
        for plan in plans
    }
    whole = {n: {**figures, "starts": starts[n]} for n, figures in found.items()}
    keep(OUT / ("lora-quick.json" if args.quick else _FILE), whole)
    if args.publish:
        keep(REFERENCE / _FILE, found)
    for n, figures in found.items():
        print("\n".join(lines(n, figures)))
    shown = _HEADLINE if _HEADLINE in found else numbers[-1]
    print(last_line(shown, found[shown], steps[lora_step.OURS]["median"]))
    return 0


def _plan(adapters: int, *, latency: bool, quick: bool) -> Plan:
    """With many adapters twice as many sessions at a time, for each is of other agents."""
    shape = QUICK if quick else SHAPE
    concurrent = 4 if quick else 8 if adapters < _MANY else 16
    sessions = count_for(adapters, concurrent, turns_of(shape))
    parts = (_QUICK_PARTS if quick else _PARTS) if latency else ()
    tokens = _TOKENS_PER_SESSION * max(concurrent, 8)
    assert concurrent * longest(trace(shape, adapters, sessions, None)) <= tokens // 2
    plan = Plan(adapters, sessions, concurrent, parts, tokens, shape)
    return replace(plan, systems=(STOCK, OURS)) if quick else plan


def keep(path: Path, found: Mapping[int, Any]) -> None:
    """Write the figures of these N; the file keeps those of others."""
    kept: dict[str, Any] = saved(path, "figures", _COMMAND) if path.exists() else {}
    kept |= {str(n): figures for n, figures in found.items()}
    write(path, to_json(dict(sorted(kept.items(), key=lambda item: int(item[0])))))


if __name__ == "__main__":
    sys.exit(main())
