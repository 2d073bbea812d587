"""The systems, each started clean on the same cores with the same KV memory.

`--pool` is the tokens that one worker of one model holds. A system of N decoders has room for
2 N pools: stock has a prefill and a decode worker a model, or a plain server of twice the room;
ours has N decode workers and one prefill worker that holds N pools. Those of `benchmarks.lora`
serve as many adapters of the base instead of whole models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.gateway.systems import router
from benchmarks.lora import systems as lora
from benchmarks.sessions.running import Endpoint, Process, Running, running_cluster
from benchmarks.studies.agents.models import CONTEXT_LENGTH, Checkpoints
from benchmarks.studies.agents.stock import StockServer, stock_servers
from ps_sglang.launch import ClusterSpec
from ps_sglang.launch.spec import Role

OURS: Final = "ps_sglang"
STOCK_PD: Final = "stock_pd"
STOCK_UNIFIED: Final = "stock_unified"
UNSHARED: Final = "unshared"

System = Callable[[Checkpoints, int, Path], contextlib.AbstractContextManager[Running]]


@contextmanager
def ours(models: Checkpoints, pool: int, logs: Path) -> Iterator[Running]:
    """The launcher's cluster: one prefill worker for all decoders."""
    with _cluster(models, pool * len(models.decoders), pool, logs) as running:
        yield running


@contextmanager
def unshared(models: Checkpoints, pool: int, logs: Path) -> Iterator[Running]:
    """Ours without the idea: a cluster, and so a prefill worker, for each decoder."""
    with ExitStack() as stack:
        clusters = [
            stack.enter_context(
                _cluster(replace(models, decoders={name: folder}), pool, pool, logs / name)
            )
            for name, folder in models.decoders.items()
        ]
        yield Running(
            tuple(cluster.endpoints[0] for cluster in clusters),
            tuple(process for cluster in clusters for process in cluster.processes),
        )


@contextmanager
def _cluster(
    models: Checkpoints, prefill_pool: int, decode_pool: int, logs: Path
) -> Iterator[Running]:
    spec = ClusterSpec(
        f"base={models.base}",
        tuple(f"{name}={folder}" for name, folder in models.decoders.items()),
        port=0,
        log_dir=logs,
        prefill_engine_args=("--max-total-tokens", str(prefill_pool)),
        decode_engine_args=("--max-total-tokens", str(decode_pool)),
    )
    with running_cluster(spec, models.decoders) as running:
        yield running


@contextmanager
def stock_pd(models: Checkpoints, pool: int, logs: Path) -> Iterator[Running]:
    """Stock prefill/decode disaggregation for each model, `sglang-router` in front of each."""
    roles = (Role.PREFILL, Role.DECODE)
    servers = [
        StockServer(f"{role.value}-{name}", folder, role, pool)
        for name, folder in models.decoders.items()
        for role in roles
    ]
    logs.mkdir(parents=True, exist_ok=True)
    with stock_servers(servers, logs, CONTEXT_LENGTH) as running, ExitStack() as routers:
        processes = [Process(str(server.role), server.pid, server.url) for server in running]
        endpoints = []
        for prefill, decode in zip(running[::2], running[1::2], strict=True):
            # There is one worker of a kind, so the cheapest policy is as good as any.
            command = ["--policy", "round_robin", "--decode", decode.url]
            command += ["--prefill", prefill.url, str(prefill.bootstrap)]
            url, pid = routers.enter_context(router(command, logs / f"{decode.name}-router.log"))
            endpoints.append(Endpoint(f"{url}/generate"))
            processes.append(Process("router", pid))
        yield Running(tuple(endpoints), tuple(processes))


@contextmanager
def stock_unified(models: Checkpoints, pool: int, logs: Path) -> Iterator[Running]:
    """A plain SGLang server for each model, asked directly."""
    servers = [
        StockServer(f"unified-{name}", folder, None, 2 * pool)
        for name, folder in models.decoders.items()
    ]
    logs.mkdir(parents=True, exist_ok=True)
    with stock_servers(servers, logs, CONTEXT_LENGTH) as running:
        yield Running(
            tuple(Endpoint(f"{server.url}/generate") for server in running),
            tuple(Process("unified", server.pid, server.url) for server in running),
        )


def _of_adapters(system: lora.System) -> System:
    def start(
        models: Checkpoints, pool: int, logs: Path
    ) -> contextlib.AbstractContextManager[Running]:
        return system(models.base, models.adapters, 2 * len(models.adapters) * pool, logs)

    return start


WHOLE_MODELS: Final[dict[str, System]] = {
    OURS: ours,
    STOCK_PD: stock_pd,
    STOCK_UNIFIED: stock_unified,
    UNSHARED: unshared,
}
SYSTEMS: Final[dict[str, System]] = WHOLE_MODELS | {
    name: _of_adapters(system) for name, system in lora.SYSTEMS.items()
}
