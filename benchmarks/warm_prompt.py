"""A fully warm 1,000-token prompt with 2 output tokens: the cluster against one plain server.

    python -m benchmarks.warm_prompt [--quick]

Both are up at the same time and take turns. The cluster's time includes its gateway; the plain
server (stock SGLang on the same CPU platform, the decoder's own weights) is asked directly.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plain import generate, plain_server
from benchmarks.report import count, parser, run, save, spread
from ps_sglang.launch import Cluster, ClusterSpec
from ps_sglang.models import resolve

PROMPT_TOKENS = 1000
OUTPUT_TOKENS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    options = parser("warm_prompt", __doc__, "fewer requests, in under 2 minutes")
    options.add_argument("--repeats", type=count, help="requests each (default 30, with --quick 5)")
    args = options.parse_args(argv)
    return run("warm_prompt", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    repeats = args.repeats or (5 if args.quick else 30)
    source = random.Random(0)
    prompt = [source.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)]
    with (
        tempfile.TemporaryDirectory() as logs,
        Cluster.start(
            ClusterSpec("base", ("a",), port=0, log_dir=Path(logs)), on_progress=_on_progress
        ) as cluster,
        plain_server(resolve("a").path, Path(logs) / "plain.log") as plain,
    ):
        urls = {"cluster": f"{cluster.url}/models/a", "plain": plain.url}
        for url in urls.values():
            for _ in range(3):
                ask(url, prompt)
        seconds: dict[str, list[float]] = {name: [] for name in urls}
        for _ in range(repeats):
            for name, url in urls.items():
                seconds[name].append(ask(url, prompt))
    figures: dict[str, Any] = {name: spread(values) for name, values in seconds.items()}
    ratio = figures["cluster"]["median"] / figures["plain"]["median"]
    for name, values in figures.items():
        print(
            f"{name:<8} median {values['median'] * 1e3:.0f} ms "
            f"({values['min'] * 1e3:.0f} to {values['max'] * 1e3:.0f}, {repeats} requests)"
        )
    result = {"seconds": figures, "ratio_of_medians": ratio}
    save("warm_prompt", result, quick=args.quick, publish=args.publish)
    print(f"warm prompt: {ratio:.2f}x one plain server")
    return 0


def ask(url: str, prompt: list[int]) -> float:
    """Seconds until the whole answer is there."""
    started = time.perf_counter()
    answer = generate(url, prompt, {"max_new_tokens": OUTPUT_TOKENS, "temperature": 0})
    assert answer["meta_info"]["completion_tokens"] == OUTPUT_TOKENS
    return time.perf_counter() - started


def _on_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
