"""Who shares a worker, and what a cluster can still serve when some of its workers have died."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ps_sglang.contract.tensors import weight_files
from ps_sglang.errors import UsageError
from ps_sglang.gateway_http import Credentials
from ps_sglang.launch.spec import Role, WorkerSpec
from ps_sglang.workers.client import READY_STATES, WorkersClient

_ANSWER_S: Final = 5.0


def sharing(workers: Iterable[WorkerSpec]) -> Iterator[str]:
    """For each worker of adapters what it holds once, and what whole models would take."""
    for worker in workers:
        if worker.adapters:
            size = sum(file.stat().st_size for file in weight_files(worker.model_path)) / 1e9
            count = len(worker.adapters)
            yield (
                f"{worker.name}: {count} adapter{'s' * (count > 1)} and {worker.model_name} share "
                f"{size:.2g} GB of weights; as whole models {size * (count + 1):.2g} GB"
            )


@dataclass(frozen=True)
class Candidate:
    """A worker, whether it prefills, the decoders that it serves, and whether it gets requests."""

    url: str
    prefills: bool
    decoders: tuple[str, ...] = ()
    able: bool = True


def outlook(candidates: Iterable[Candidate], dead: Collection[str]) -> str:
    """What is served without the workers whose URLs are `dead`, in words."""
    workers = list(candidates)
    available = [worker for worker in workers if worker.able and worker.url not in dead]
    if not any(worker.prefills for worker in available):
        return "no prefill worker is left, so nothing can be served"
    every = dict.fromkeys(name for worker in workers for name in worker.decoders)
    served = {name for worker in available for name in worker.decoders}
    if not (left := [name for name in every if name in served]):
        return "no decode worker is left, so nothing can be served"
    lost = [name for name in every if name not in served]
    return f"still served: {', '.join(left)}" + (f"; no longer: {', '.join(lost)}" if lost else "")


def candidates(
    url: str, workers: Iterable[WorkerSpec], credentials: Credentials | None = None
) -> list[Candidate]:
    """The workers of the gateway at `url`; `workers`, if it does not answer."""
    specs = list(workers)
    # Where one worker does it all there is no other kind, and the gateway lists it for decoding.
    aggregated = any(worker.role is Role.AGGREGATED for worker in specs)
    try:
        listed = WorkersClient(url, _ANSWER_S, credentials).list()
    except UsageError:
        return [
            Candidate(worker.url, worker.role is not Role.DECODE, worker.decoders)
            for worker in specs
        ]
    return [
        Candidate(
            worker["url"],
            aggregated or worker["role"] == Role.PREFILL,
            tuple(worker["decoders"]),
            worker["state"] in READY_STATES,
        )
        for worker in listed
    ]
