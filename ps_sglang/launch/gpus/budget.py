"""How the memory of each GPU is divided among the workers on it.

A worker's part is weights, slots for adapters, KV and a reserve. Weights and reserve are what they
are; what is left of a GPU becomes KV, in equal parts beyond the least that each worker needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ps_sglang.launch.gpus.assign import Claim, assign
from ps_sglang.launch.gpus.machine import Gpu, Machine
from ps_sglang.launch.gpus.reserve import (
    CONTEXT_BYTES,
    SMALL,
    BatchSizes,
    reserve_bytes,
    usual_sizes,
)
from ps_sglang.launch.gpus.sizes import ModelSize
from ps_sglang.launch.spec import Role

LEAST_TOKENS: Final = 8192
"""A pool below this, or below a whole context if that is shorter, is refused as of no use."""


@dataclass(frozen=True)
class Demand:
    """What a worker needs, and what its user has said about it; bytes are those on each GPU.

    `gpus` and `memory_bytes` are the user's, None for whatever suits. `most_tokens` limits the
    pool. `fraction` is the user's `--mem-fraction-static`, `running` the limit of requests at once.
    """

    name: str
    role: Role
    tp: int
    size: ModelSize
    adapter_bytes: int
    page_size: int
    context_length: int
    gpus: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    most_tokens: int | None = None
    fraction: float | None = None
    running: int | None = None
    chunk: int | None = None
    decode_graph: int | None = None

    @property
    def model_bytes(self) -> int:
        """Weights, and slots for adapters."""
        return self.size.weights_bytes + self.adapter_bytes

    @property
    def least_tokens(self) -> int:
        """The smallest pool that is worth a start, in whole pages."""
        if self.most_tokens is not None and self.most_tokens < LEAST_TOKENS:
            return max(1, self.most_tokens // self.page_size) * self.page_size
        return -(-min(self.context_length, LEAST_TOKENS) // self.page_size) * self.page_size

    @property
    def least_kv_bytes(self) -> int:
        """Of that pool."""
        return self.kv_bytes(self.least_tokens)

    def kv_bytes(self, tokens: int) -> int:
        """Of a pool of so many tokens: SGLang adds a page, to which it writes what nobody reads."""
        return (tokens + self.page_size) * self.size.token_bytes

    def tokens(self, kv_bytes: int) -> int:
        """The largest pool of whole pages in so many bytes."""
        pages = kv_bytes // (self.size.token_bytes * self.page_size) - 1
        if self.most_tokens is not None:
            pages = min(pages, self.most_tokens // self.page_size)
        return max(0, pages) * self.page_size


@dataclass(frozen=True)
class MemoryBudget:
    """A worker's GPUs, and what it takes of each in bytes.

    `free_bytes` is what is free when it starts, on that of its GPUs which has least. `wave` counts
    how many workers must be ready before, as SGLang measures what is free.
    """

    demand: Demand
    gpus: tuple[int, ...]
    sizes: BatchSizes
    reserve_bytes: int
    tokens: int
    kv_bytes: int
    free_bytes: int
    wave: int

    @property
    def static_bytes(self) -> int:
        """What stays as it is while it serves: weights, adapters, KV."""
        return self.demand.model_bytes + self.kv_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.static_bytes + self.reserve_bytes

    def fraction(self, free_bytes: int) -> float:
        """SGLang's `--mem-fraction-static`, where so much is free when the worker starts.

        SGLang takes it of what is free after CUDA has taken its own. Rounded up, as the pool's
        tokens are limited as well.
        """
        if self.demand.fraction is not None:
            return self.demand.fraction
        usable = max(1, free_bytes - CONTEXT_BYTES)
        return min(0.999, math.ceil(1000 * self.static_bytes / usable) / 1000)


@dataclass(frozen=True)
class _Placed:
    """A demand with its GPUs, and the sizes and reserve that it has there."""

    demand: Demand
    gpus: tuple[int, ...]
    sizes: BatchSizes
    reserve: int

    @property
    def fixed(self) -> int:
        """All but KV."""
        return self.demand.model_bytes + self.reserve

    @property
    def least(self) -> int:
        return self.fixed + self.demand.least_kv_bytes

    @property
    def words(self) -> str:
        """The least that it needs, in GB."""
        demand = self.demand
        adapters = f", adapters {gb(demand.adapter_bytes)}" if demand.adapter_bytes else ""
        return (
            f"{demand.name} {gb(self.least)} GB (weights {gb(demand.size.weights_bytes)}"
            f"{adapters}, KV of {demand.least_tokens:,} tokens {gb(demand.least_kv_bytes)}, "
            f"reserve {gb(self.reserve)})"
        )


def divide(demands: Sequence[Demand], machine: Machine) -> tuple[list[MemoryBudget], list[str]]:
    """A budget for each demand, and what cannot be; every `tp` and `gpus` is known to exist."""
    gpus = {gpu.index: gpu for gpu in machine.gpus}
    assigned = assign([_claim(demand, machine) for demand in demands], machine)
    on = {index: [name for name, there in assigned.items() if index in there] for index in gpus}
    placed = [
        _place(
            demand,
            [gpus[index] for index in assigned[demand.name]],
            alone=all(len(on[index]) == 1 for index in assigned[demand.name]),
        )
        for demand in demands
    ]
    there = {index: [one for one in placed if index in one.gpus] for index in gpus}
    if problems := list(_problems(placed, gpus, there)):
        return [], problems
    budgets: list[MemoryBudget] = []
    for one in placed:
        budgets.append(_budget(one, gpus, there, budgets))
    return budgets, list(_small_fractions(budgets))


def _claim(demand: Demand, machine: Machine) -> Claim:
    largest = max(gpu.total_bytes for gpu in machine.gpus)
    sizes = _given(demand, SMALL)
    reserve = reserve_bytes(demand.role, sizes, demand.tp, demand.running, largest, alone=False)
    least = demand.model_bytes + demand.least_kv_bytes + reserve
    return Claim(demand.name, demand.tp, demand.memory_bytes or least, demand.gpus)


def _given(demand: Demand, sizes: BatchSizes) -> BatchSizes:
    return BatchSizes(demand.chunk or sizes.chunk, demand.decode_graph or sizes.decode_graph)


def _place(demand: Demand, own: Sequence[Gpu], *, alone: bool) -> _Placed:
    """SGLang's sizes and reserve if the worker has its GPUs alone and fits so, else small ones."""
    total = min(gpu.total_bytes for gpu in own)
    numbers = tuple(gpu.index for gpu in own)

    def with_sizes(sizes: BatchSizes, *, alone: bool) -> _Placed:
        sizes = _given(demand, sizes)
        reserve = reserve_bytes(demand.role, sizes, demand.tp, demand.running, total, alone=alone)
        return _Placed(demand, numbers, sizes, reserve)

    if alone and demand.memory_bytes is None:
        usual = with_sizes(usual_sizes(total, demand.tp), alone=True)
        if usual.least <= min(gpu.free_bytes for gpu in own):
            return usual
    return with_sizes(SMALL, alone=False)


def _problems(
    placed: Sequence[_Placed], gpus: Mapping[int, Gpu], there: Mapping[int, Sequence[_Placed]]
) -> Iterator[str]:
    for one in placed:
        demand = one.demand
        if demand.memory_bytes is not None and demand.memory_bytes < one.least:
            yield f"mem of {demand.name} is {gb(demand.memory_bytes)} GB, it needs: {one.words}"
        if demand.fraction is not None and any(
            len(there[index]) > 1 or demand.memory_bytes is not None for index in one.gpus
        ):
            yield (
                f"{demand.name} shares a GPU or has mem, where --mem-fraction-static cannot say "
                "what it gets; give mem in a --spec file, and leave the flag away"
            )
    for index, ones in there.items():
        needed = sum(max(one.least, one.demand.memory_bytes or 0) for one in ones)
        free = gpus[index].free_bytes
        if needed > free:
            each = "; ".join(
                one.words
                + (f" of mem {gb(one.demand.memory_bytes)}" if one.demand.memory_bytes else "")
                for one in ones
            )
            yield f"GPU {index} has {gb(free)} GB for what needs {gb(needed)} GB: {each}"


def _budget(
    one: _Placed,
    gpus: Mapping[int, Gpu],
    there: Mapping[int, Sequence[_Placed]],
    before: Sequence[MemoryBudget],
) -> MemoryBudget:
    demand = one.demand
    earlier = [other for other in before if set(other.gpus) & set(one.gpus)]
    free = min(
        gpus[index].free_bytes - sum(other.total_bytes for other in earlier if index in other.gpus)
        for index in one.gpus
    )
    if demand.fraction is not None:
        kv = int((free - CONTEXT_BYTES) * demand.fraction) - demand.model_bytes
    elif demand.memory_bytes is not None:
        kv = demand.memory_bytes - one.fixed
    else:
        more = min(_more(gpus[index], there[index]) for index in one.gpus)
        kv = demand.least_kv_bytes + more
    tokens = demand.tokens(kv)
    budget = MemoryBudget(
        demand=demand,
        gpus=one.gpus,
        sizes=one.sizes,
        reserve_bytes=one.reserve,
        tokens=tokens,
        kv_bytes=demand.kv_bytes(tokens),
        free_bytes=free,
        wave=1 + max((other.wave for other in earlier), default=-1),
    )
    if demand.fraction is not None:
        budget = replace(budget, reserve_bytes=free - budget.static_bytes)
    return budget


def _more(gpu: Gpu, ones: Sequence[_Placed]) -> int:
    """Bytes of KV beyond the least for each worker that has no `mem`, on one GPU."""
    left = gpu.free_bytes - sum(one.demand.memory_bytes or one.least for one in ones)
    return left // max(1, sum(one.demand.memory_bytes is None for one in ones))


def _small_fractions(budgets: Sequence[MemoryBudget]) -> Iterator[str]:
    for budget in budgets:
        demand = budget.demand
        if budget.tokens < demand.least_tokens:
            yield (
                f"{demand.name}: --mem-fraction-static {demand.fraction:g} leaves KV for "
                f"{budget.tokens:,} tokens of the {demand.least_tokens:,} that it needs at least; "
                "leave the flag away"
            )


def gb(count: int) -> str:
    """Bytes as plans show them, in GB of 10^9."""
    return f"{count / 1e9:.1f}"
