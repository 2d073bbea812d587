"""Start-up time and memory of a whole cluster: 1 prefill worker, 3 decode workers, the gateway.

    python -m benchmarks.startup [--quick]

Seconds from the first line of the launcher until all answer requests; memory is the sum of PSS
(shared pages counted once) of all its processes, when ready and after some use. One plain SGLang
server is started in between, the way SGLang starts, without its warm-up requests.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plain import generate, plain_server
from benchmarks.report import count, parser, run, save, spread
from ps_sglang.launch import Cluster, ClusterSpec, procfs
from ps_sglang.models import resolve

DECODERS = ("a", "b", "c")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    options = parser("startup", __doc__, "one start, in under 2 minutes")
    options.add_argument("--repeats", type=count, help="starts (default 3, with --quick 1)")
    args = options.parse_args(argv)
    return run("startup", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    repeats = args.repeats or (1 if args.quick else 3)
    seconds, ready_gb, used_gb, plain_seconds, plain_gb = [], [], [], [], []
    for number in range(repeats):
        with (
            tempfile.TemporaryDirectory() as logs,
            Cluster.start(ClusterSpec("base", DECODERS, port=0, log_dir=Path(logs))) as cluster,
        ):
            seconds.append(cluster.ready_s)
            ready_gb.append(cluster.memory_bytes / 1e9)
            use(cluster.url)
            used_gb.append(cluster.memory_bytes / 1e9)
        with (
            tempfile.TemporaryDirectory() as logs,
            plain_server(resolve("a").path, Path(logs) / "plain.log") as plain,
        ):
            plain_seconds.append(plain.ready_s)
            pids = [plain.pid, *procfs.descendants(plain.pid)]
            plain_gb.append(sum(procfs.proportional_bytes(pid) for pid in pids) / 1e9)
        print(
            f"start {number + 1}: {seconds[-1]:.1f} s, {ready_gb[-1]:.2f} GB ready, "
            f"{used_gb[-1]:.2f} GB after use; one plain server {plain_seconds[-1]:.1f} s, "
            f"{plain_gb[-1]:.2f} GB",
            flush=True,
        )
    figures = {
        "ready_seconds": spread(seconds),
        "ready_pss_gb": spread(ready_gb),
        "used_pss_gb": spread(used_gb),
        "one_plain_server_seconds": spread(plain_seconds),
        "one_plain_server_pss_gb": spread(plain_gb),
    }
    save("startup", figures, quick=args.quick, publish=args.publish)
    print(
        f"startup: {figures['ready_seconds']['median']:.1f} s, "
        f"{figures['ready_pss_gb']['median']:.1f} GB for 1 + 3 workers"
    )
    return 0


def use(url: str) -> None:
    """Three distinct prompts of 1,000 tokens to every decoder."""
    source = random.Random(0)
    for _ in range(3):
        ids = [source.randrange(1000, 40000) for _ in range(1000)]
        for name in DECODERS:
            generate(f"{url}/models/{name}", ids, {"max_new_tokens": 8})


if __name__ == "__main__":
    sys.exit(main())
