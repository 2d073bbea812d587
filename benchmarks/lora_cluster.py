"""A cluster of LoRA decoders: time to start, memory, and adapters that are added under load.

    python -m benchmarks.lora_cluster [--quick]

Clusters of a prefill and a decode worker with 3 and with 64 random adapters of the demo's base
(rank 8, all projections) take turns. Memory is the sum of PSS of all processes when ready. To the
cluster of 3 new adapters are added, one after another, while 20 requests a second come for the
others: short prompts that are cached, 2 output tokens. An addition takes from the command to the
end of the new adapter's first answer of 1 token, for a prompt that is cached as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

from benchmarks.lora.adapters import named, write_adapters
from benchmarks.plain import generate
from benchmarks.report import count, parser, run, save, spread, timed
from ps_sglang.decoders.client import DecodersClient
from ps_sglang.launch import Cluster, ClusterSpec
from ps_sglang.models import resolve

FEW, MANY = 3, 64
ADDED: Final = 8
_RATE: Final = 20.0
_PROMPT: Final = tuple(range(100, 132))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save. Exit status 1 if a request failed."""
    options = parser("lora_cluster", __doc__, "one start of each, in under 2 minutes")
    options.add_argument("--repeats", type=count, help="starts (default 3, with --quick 1)")
    args = options.parse_args(argv)
    return run("lora_cluster", lambda: _measure(args))


def _measure(args: argparse.Namespace) -> int:
    on_progress = timed()
    repeats = args.repeats or (1 if args.quick else 3)
    base = resolve("base").path
    starts: dict[int, list[Mapping[str, float]]] = {FEW: [], MANY: []}
    added: list[float] = []
    answers: list[float] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as written:
        adapters = write_adapters(base, Path(written), MANY, on_progress)
        folders = list(adapters.values())
        for _ in range(repeats):
            for number in starts:
                with _started(base, dict(islice(adapters.items(), number))) as cluster:
                    memory = cluster.memory_bytes / 1e9
                    starts[number].append({"ready_s": cluster.ready_s, "ready_gb": memory})
                    on_progress(f"{number} adapters: {cluster.ready_s:.1f} s, {memory:.2f} GB")
                    if number == FEW:
                        with under_load(cluster.url, folders[:FEW], answers, failures):
                            for folder in folders[FEW : FEW + ADDED]:
                                added.append(add(cluster.url, folder))
                        on_progress(f"added in {max(added[-ADDED:]):.2f} s at most")
    figures: dict[str, Any] = {
        "adapters": {
            str(number): {name: spread([row[name] for row in rows]) for name in rows[0]}
            for number, rows in starts.items()
        },
        "add_seconds": spread(added),
        "others": {"seconds": spread(answers), "requests": len(answers), "failures": failures},
    }
    save("lora_cluster", figures, quick=args.quick, publish=args.publish)
    print(
        f"lora_cluster: {last_line(figures['adapters'])}, added in {max(added):.2f} s at most, "
        f"{len(failures)} of {len(answers) + len(failures)} others failed"
    )
    return int(bool(failures))


@contextmanager
def _started(base: Path, adapters: Mapping[str, Path]) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory() as logs:
        spec = ClusterSpec(f"base={base}", named(adapters), port=0, log_dir=Path(logs))
        with Cluster.start(spec) as cluster:
            yield cluster


def add(url: str, folder: Path) -> float:
    """Seconds until a new decoder has answered for the first time."""
    began = time.monotonic()
    DecodersClient(url).add(folder.name, str(folder), allow_unverified=False)
    _ask(url, folder.name, 1)
    return time.monotonic() - began


@contextmanager
def under_load(
    url: str, folders: Sequence[Path], answers: list[float], failures: list[str]
) -> Iterator[None]:
    """Inside the block requests come at the rate; adds the seconds of each, and what failed."""
    for folder in folders:
        _ask(url, folder.name, 2)
    over = threading.Event()
    sent: list[Future[float]] = []

    def send() -> None:
        began = time.monotonic()
        while not over.wait(max(0.0, began + len(sent) / _RATE - time.monotonic())):
            sent.append(pool.submit(_ask, url, folders[len(sent) % len(folders)].name, 2))

    with ThreadPoolExecutor(64) as pool:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            over.set()
            sender.join()
    for future in sent:
        if error := future.exception():
            failures.append(str(error))
        else:
            answers.append(future.result())


def _ask(url: str, decoder: str, tokens: int) -> float:
    began = time.monotonic()
    generate(f"{url}/models/{decoder}", _PROMPT, {"max_new_tokens": tokens, "ignore_eos": True})
    return time.monotonic() - began


def last_line(adapters: Mapping[str, Any]) -> str:
    """The medians of the starts in words."""
    return ", ".join(
        f"{number} adapters in {figures['ready_s']['median']:.1f} s and "
        f"{figures['ready_gb']['median']:.2f} GB"
        for number, figures in adapters.items()
    )


if __name__ == "__main__":
    sys.exit(main())
