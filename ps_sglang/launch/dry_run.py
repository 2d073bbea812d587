"""A plan as people read it: the table of a dry run, and the lines that a launch begins with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ps_sglang import gateway_admin
from ps_sglang.launch import flag_check, flags
from ps_sglang.launch.environment import threads
from ps_sglang.launch.gpus.budget import MemoryBudget, gb
from ps_sglang.launch.gpus.plan import GpuPlan
from ps_sglang.launch.gpus.sizes import read_size
from ps_sglang.launch.spec import Role, WorkerSpec

if TYPE_CHECKING:
    from ps_sglang.launch.prepare import Plan

_GPU_HEADER: Final = (
    "worker", "host", "GPUs", "tp", "weights", "adapters", "KV", "reserve", "sum", "of", "tokens",
    "page",
)  # fmt: skip
_CPU_HEADER: Final = ("worker", "host", "threads", "weights", "KV", "tokens", "page")
_TOKENS: Final = "--max-total-tokens"


def planned(plan: Plan) -> Iterator[str]:
    """The plan of a launch on GPUs, in short."""
    if plan.gpus is None:
        return
    for name, budget in plan.gpus.budgets.items():
        after = "" if budget.wave == 0 else ", starts when those before it there are ready"
        yield (
            f"{name}: GPU {_numbers(budget.gpus)}, {gb(budget.total_bytes)} GB of "
            f"{gb(budget.free_bytes)}: weights {gb(budget.demand.model_bytes)}, KV "
            f"{gb(budget.kv_bytes)} for {budget.tokens:,} tokens, reserve "
            f"{gb(budget.reserve_bytes)}{after}"
        )
    yield from _pages(plan.gpus)


def table(plan: Plan) -> str:
    """All of a plan: a row for each worker, how pages travel, and how each would be started."""
    lines = [*_cpu_lines(plan)] if plan.gpus is None else [*gpu_lines(plan.gpus, plan.host)]
    for worker in plan.workers:
        variables = {} if plan.gpus is None else plan.gpus.environment(worker.name)
        setting = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        command = shlex.join(["python", "-m", "sglang.launch_server", *worker.argv])
        lines += ["", f"{worker.name}:", "  " + " ".join([*setting, command])]
    lines += ["", "Nothing was started. A launch takes other ports."]
    return "\n".join(lines)


def gpu_lines(gpus: GpuPlan, host: str) -> Iterator[str]:
    """The table of workers on `host`, what they leave of their GPUs, and how pages travel."""
    yield gpus.machine.title
    rows = [_GPU_HEADER, *(_gpu_row(one, host) for one in gpus.budgets.values())]
    yield from gateway_admin.table(rows, names=2)
    yield "Sizes are GB (10^9 bytes) on each GPU of a worker."
    yield from _left(gpus)
    yield from _pages(gpus)


def _gpu_row(budget: MemoryBudget, host: str) -> tuple[str, ...]:
    demand = budget.demand
    sizes = (
        demand.size.weights_bytes,
        demand.adapter_bytes,
        budget.kv_bytes,
        budget.reserve_bytes,
        budget.total_bytes,
        budget.free_bytes,
    )
    return (
        demand.name, host, _numbers(budget.gpus), str(demand.tp), *map(gb, sizes),
        f"{budget.tokens:,}", str(demand.page_size),
    )  # fmt: skip


def _left(gpus: GpuPlan) -> Iterator[str]:
    """What no worker takes of a GPU."""
    unused = []
    for gpu in gpus.machine.gpus:
        there = [one for one in gpus.budgets.values() if gpu.index in one.gpus]
        left = gpu.free_bytes - sum(one.total_bytes for one in there)
        if not there:
            unused.append(gpu.index)
        elif left >= 10**9:
            yield f"GPU {gpu.index}: {gb(left)} GB are left over."
    if unused:
        yield f"GPUs without a worker: {_numbers(unused)}."


def _pages(gpus: GpuPlan) -> Iterator[str]:
    if gpus.transport is not None:
        for way, pairs in gpus.ways.items():
            yield f"pages by {gpus.transport.backend}, {way}: {', '.join(pairs)}"
    yield from (f"note: {note}" for note in gpus.notes)


def _cpu_lines(plan: Plan) -> Iterator[str]:
    yield "no GPU is used" if plan.cpu else "a device whose memory is not planned"
    yield from gateway_admin.table([_CPU_HEADER, *map(_cpu_row, plan.workers)], names=2)
    yield "Sizes are GB (10^9 bytes). On a CPU workers of one model share its weights."
    if any(worker.role is Role.DECODE for worker in plan.workers):
        backend = flags.value_of(plan.workers[0].argv, "--disaggregation-transfer-backend")
        yield f"pages by {backend} from each prefill worker to each decode worker"


def _cpu_row(worker: WorkerSpec) -> tuple[str, ...]:
    size = read_size(worker.model_path, 1, flags.value_of(worker.argv, "--dtype") or "auto", "auto")
    given = flags.value_of(worker.argv, _TOKENS)
    tokens = None if given is None else flag_check.size(given)
    return (
        worker.name,
        worker.host,
        os.environ.get("OMP_NUM_THREADS") or str(threads(worker.role)),
        gb(size.weights_bytes),
        "" if tokens is None else gb(tokens * size.token_bytes),
        "by SGLang" if tokens is None else f"{tokens:,}",
        flags.value_of(worker.argv, "--page-size") or "1",
    )


def _numbers(gpus: Sequence[int]) -> str:
    return ",".join(map(str, gpus))
