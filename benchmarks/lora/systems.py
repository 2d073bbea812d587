"""What serves the adapters, each started clean on the same cores with the same KV tokens in all.

| system | what runs |
|---|---|
| `lora` | the launcher's cluster: a prefill worker, a decode worker of all adapters, the gateway |
| `one_worker` | the launcher's `--one-worker`: both in one server, and the gateway |
| `stock_lora` | one plain SGLang server with `--enable-lora --lora-paths`, asked directly |

Stock SGLang cannot run LoRA without CUDA, for it pins memory, and its `torch_native` LoRA takes
longer than `grouped`, which is ours. So stock gets from us what is below its scheduler: the CPU
platform, attention on a CPU, memory that is not pinned, and `grouped`. What is measured is the
sharing, not the kernel. It also has our scheduling policy (`lpm`) and thread count. Its own are the
radix cache, which is on and has the adapter in its key, and all steps of a request; our hooks leave
them alone. All its adapters are in memory; ours read from disk what was asked for long ago.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.lora.adapters import named
from benchmarks.plain import plain_server
from benchmarks.sessions.running import Endpoint, Process, Running, running_cluster
from ps_sglang.launch import ClusterSpec

OURS: Final = "lora"
ONE_WORKER: Final = "one_worker"
STOCK: Final = "stock_lora"

System = Callable[[Path, Mapping[str, Path], int, Path], AbstractContextManager[Running]]
"""Takes the base, the adapters by name, how many tokens of KV there are, and a folder for logs."""


@contextmanager
def ours(base: Path, adapters: Mapping[str, Path], tokens: int, logs: Path) -> Iterator[Running]:
    """A prefill and a decode worker with half of the KV tokens each."""
    half = ("--max-total-tokens", str(tokens // 2))
    spec = ClusterSpec(f"base={base}", named(adapters), port=0, log_dir=logs, engine_args=half)
    with running_cluster(spec, adapters) as running:
        yield running


@contextmanager
def one_worker(
    base: Path, adapters: Mapping[str, Path], tokens: int, logs: Path
) -> Iterator[Running]:
    """One worker with all KV tokens."""
    every = ("--max-total-tokens", str(tokens))
    spec = ClusterSpec(
        f"base={base}", named(adapters), port=0, log_dir=logs, engine_args=every,
        one_worker=True,
    )  # fmt: skip
    with running_cluster(spec, adapters) as running:
        yield running


@contextmanager
def stock(base: Path, adapters: Mapping[str, Path], tokens: int, logs: Path) -> Iterator[Running]:
    """SGLang's server; adapters are loaded at its start, and as many share a batch as of ours."""
    flags = [
        "--max-total-tokens", str(tokens), "--schedule-policy", "lpm", "--enable-metrics",
        "--log-level-http", "warning", "--enable-lora", "--lora-backend", "grouped",
        "--lora-paths", *named(adapters),
    ]  # fmt: skip
    logs.mkdir(parents=True, exist_ok=True)
    with plain_server(base, logs / f"{STOCK}.log", flags) as server:
        yield Running(
            tuple(Endpoint(f"{server.url}/generate", name) for name in adapters),
            (Process("unified", server.pid, server.url),),
        )


SYSTEMS: Final[dict[str, System]] = {OURS: ours, ONE_WORKER: one_worker, STOCK: stock}
