"""Which GPUs each worker gets: those it asks for, else free ones, else those with most room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ps_sglang.launch.gpus.machine import Machine


@dataclass(frozen=True)
class Claim:
    """A worker that wants `tp` GPUs, with at least `bytes` on each; `gpus` are those asked for."""

    name: str
    tp: int
    bytes: int
    gpus: tuple[int, ...] | None = None


def assign(claims: Sequence[Claim], machine: Machine) -> dict[str, tuple[int, ...]]:
    """GPUs for each claim, by their numbers; each wants no more than there are.

    First come those who say which. The others take unused GPUs in order, and once too few are left
    the ones with most room. That they fit there is for the budgets to say.
    """
    room = {gpu.index: gpu.free_bytes for gpu in machine.gpus}
    unused = dict.fromkeys(room)
    assigned: dict[str, tuple[int, ...]] = {}

    def take(claim: Claim, gpus: tuple[int, ...]) -> None:
        assigned[claim.name] = gpus
        for gpu in gpus:
            room[gpu] -= claim.bytes
            unused.pop(gpu, None)

    for claim in claims:
        if claim.gpus is not None:
            take(claim, claim.gpus)
    for claim in claims:
        if claim.gpus is not None:
            continue
        if len(unused) >= claim.tp:
            take(claim, tuple(unused)[: claim.tp])
        else:
            take(claim, _roomiest(room, claim.tp))
    return assigned


def _roomiest(room: Mapping[int, int], count: int) -> tuple[int, ...]:
    return tuple(sorted(sorted(room, key=lambda gpu: (-room[gpu], gpu))[:count]))
