"""SGLang's LoRA flags of a worker that serves adapters: defaults, and what cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ps_sglang.contract import DecoderReport
from ps_sglang.contract.adapter import SERVED_MODULES, beyond_targets
from ps_sglang.contract.tensors import read_tensors
from ps_sglang.errors import UsageError
from ps_sglang.launch import flags

_RANK: Final = "--max-lora-rank"
_MODULES: Final = "--lora-target-modules"
_PER_BATCH: Final = "--max-loras-per-batch"
_LOADED: Final = "--max-loaded-loras"
_DRAIN: Final = "--lora-drain-wait-threshold"

LEAST_RANK: Final = 16
"""Slots are made for this rank where all given adapters have less.

SGLang makes every slot as large as the highest rank allows, and never larger later. Most adapters
have rank 8 or 16. Twice the rank costs twice the memory and time of each slot.
"""
SLOTS: Final = 9
"""Eight adapters in one batch, and the base without one, which takes a slot as well."""
LOADED: Final = 128
"""Adapters kept in the host's memory once asked for; one that was evicted is read again.

Reading one holds up its worker, and where more take turns than are kept, each turn reads one.
"""
PATIENCE_S: Final = 1
"""An adapter that waits longer for a slot is made one: another gets no new requests until then."""
CPU_BACKEND: Final = "grouped"


def projections(base: Path) -> tuple[str, ...]:
    """The linear projections of `base` that adapters may change, sorted.

    Those of experts are none: SGLang's LoRA of experts needs other back ends.
    """
    modules = [name.split(".")[:-1] for name in read_tensors(base)]
    served = [module for module in modules if module and module[-1] in SERVED_MODULES]
    of_experts = {module[-1] for module in served if "experts" in module}
    return tuple(sorted({module[-1] for module in served} - of_experts))


def defaults(
    base: Path, reports: Sequence[DecoderReport], user: Sequence[str], *, cpu: bool
) -> dict[str, str | tuple[str, ...]]:
    """The launcher's choices for a worker of these adapters; a flag in `user` may override each.

    All projections are targets, so that any adapter can be added later.
    """
    adapters = [report.adapter for report in reports if report.adapter is not None]
    slots = int(flags.value_of(user, _PER_BATCH) or SLOTS)
    chosen: dict[str, str | tuple[str, ...]] = {
        _RANK: str(max([LEAST_RANK, *(adapter.rank for adapter in adapters)])),
        _MODULES: projections(base),
        _PER_BATCH: str(SLOTS),
        _LOADED: str(max(LOADED, slots)),
        _DRAIN: str(PATIENCE_S),
    }
    if cpu:
        chosen["--lora-backend"] = CPU_BACKEND
    return chosen


def check(worker: str, words: Sequence[str], reports: Sequence[DecoderReport]) -> None:
    """Refuse what SGLang would refuse after its import, or at an adapter's first request.

    Raises UsageError with all of it; `words` is the worker's whole command line.
    """
    if problems := list(_problems(words, reports)):
        raise UsageError(f"engine flags of {worker}: " + "; ".join(problems))


def _problems(words: Sequence[str], reports: Sequence[DecoderReport]) -> Iterator[str]:
    rank, modules = flags.value_of(words, _RANK), (flags.value_of(words, _MODULES) or "").split()
    if rank is None or int(rank) < 1:
        yield f"{_RANK} must be given, at least 1: SGLang makes its slots by it"
    if not modules:
        yield f"{_MODULES} names no module: give those of your adapters, as in q_proj v_proj"
    if "all" in modules and len(modules) > 1:
        yield f"{_MODULES} names all and others; give all alone"
    for report in reports:
        assert report.adapter is not None
        if rank and report.adapter.rank > int(rank):
            yield (
                f"decoder {report.name} has rank {report.adapter.rank}, "
                f"above --max-lora-rank {rank}; raise it, or leave it away"
            )
        if modules and (missing := beyond_targets(report.adapter, modules)):
            yield (
                f"decoder {report.name} adapts {', '.join(missing)}, which {_MODULES} "
                "lacks; add what is missing, or leave the flag away"
            )
    yield from _slot_problems(words)


def _slot_problems(words: Sequence[str]) -> Iterator[str]:
    slots, loaded = flags.value_of(words, _PER_BATCH), flags.value_of(words, _LOADED)
    if slots is None:
        return
    if int(slots) < 1:
        yield f"{_PER_BATCH} is {slots}, must be at least 1"
    if loaded is not None and int(loaded) < int(slots):
        yield f"{_LOADED} is {loaded}, must be at least {_PER_BATCH}, which is {slots}"
    overlaps = flags.decides(words, "--enable-lora-overlap-loading")
    if overlaps and (loaded is None or int(loaded) > 2 * int(slots)):
        yield f"--enable-lora-overlap-loading needs {_LOADED} of at most {2 * int(slots)}"
